#!/usr/bin/env python
"""Predict images with a trained model: masks, overlays, areas of each class; and archives for test servers.

A model of another task gives its own: of classification the five likeliest classes (classification.csv, .json), of
detection COCO's results (detection.json: boxes, masks, scores), of panoptic COCO's pictures (panoptic/NAME.png,
panoptic.json); overlays of the latter two.

INPUT is an image, a folder, a pattern in quotes, a video, s3://BUCKET/PREFIX, or shards, with or without labels. The
folder of --out gets masks/NAME.png (palette PNGs in the benchmark's own values), overlays/NAME.jpg, areas.csv and
areas.parquet. An image is predicted as the checkpoint's recipe says, by one CPU thread or one GPU: any number of
workers gives the same bytes. The same command continues from what an interrupted one has written. An image that does
not read is named, the others are predicted, and the command ends with code 1. EXIF rotation is not applied.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, check_local, program, run, writable
from pipelines.base.errors import InputError, RunFailed
from pipelines.base.text import Progress, duration

if TYPE_CHECKING:
    from pipelines.serving.plan import Plan
    from pipelines.serving.predicting import Made, Task
    from pipelines.serving.results import Results
    from pipelines.serving.sources import Source

SERVERS = ("voc12", "cityscapes", "ade20k", "lip", "pascal_context")
OF_MASKS = ("submission", "classes", "mode", "window", "stride", "scales", "flip", "tile_pixels")
"""Options that only models which predict masks have."""
EXAMPLES = """\
examples:
  python -m pipelines.predict best.pt street.jpg --out predicted
  python -m pipelines.predict best.pt 'photos/**/*.jpg' drive.mp4 --out predicted --every 10
  python -m pipelines.predict best.pt s3://bucket/photos --out predicted --workers 8 --gpus 1
  python -m pipelines.predict best.pt data/cityscapes/test --out test --submission cityscapes

submissions (archive in --out; names must be the published ones):
  voc12           results.tgz  results/VOC2012/Segmentation/comp6_test_cls/ID.png, palette PNGs, 0 to 20
  cityscapes      results.zip  CITY_SEQUENCE_FRAME.png, label ids, only 2048x1024
  ade20k          results.zip  ADE_test_00000001.png, 1 to 150
  lip             results.zip  ID.png, 0 to 19
  pascal_context  results.zip  ID.png, 1 to 59, 0: none of them (there is no test server)
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", help="best.pt or step-….pt of a run, a finished run, or a file of `export`; a path or a URI"
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="see above; may be several")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--submission", choices=SERVERS, help="also pack the masks as its server takes them")
    parser.add_argument(
        "--classes", type=Path, metavar="YAML", help="classes.yaml of your folder: masks hold its values"
    )
    parser.add_argument("--overlays", action=argparse.BooleanOptionalAction, default=True, help="default: drawn")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video, each N-th frame (default: all)")
    parser.add_argument("--mode", choices=["whole", "slide"], help="whole image or sliding window (default: recipe)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the training crop)")
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the recipe's)")
    parser.add_argument("--scales", type=float, nargs="+", help="image scales to average over (default: the recipe's)")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, help="average with the mirrored image (default: the recipe's)"
    )
    parser.add_argument(
        "--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto",
        help="default: bf16 on GPUs that have it, else fp32",
    )  # fmt: skip
    parser.add_argument(
        "--tile-pixels", type=int, metavar="N",
        help="larger images are predicted in tiles of so many pixels that overlap (default: 8,388,608)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="Ray workers, on CPUs a core each (default: this process)")
    parser.add_argument("--gpus", type=int, choices=[0, 1], help="GPUs of each worker (default: 1 where there are any)")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser.parse_args()


def main() -> None:
    args = parse()
    for option, least in (("workers", 1), ("every", 1), ("tile_pixels", 4096)):
        if (given := getattr(args, option)) is not None and given < least:
            raise InputError(f"--{option.replace('_', '-')} {given}: {least} or more")
    check_local("--out", args.out)
    from pipelines.runs.named import named_checkpoint

    path = named_checkpoint(args.checkpoint)
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt and RUN/STAGE/checkpoints/step-….pt"
        )
    from pipelines.serving.sources import find

    sources, others = find(args.inputs)  # their faults are told before PyTorch is imported, which takes seconds
    if others:
        from datasets.text import named

        print(f"not predicted, neither images nor videos: {named(others)}")
    shown = args.checkpoint if "://" in args.checkpoint else path
    print(f"{shown} on {len(sources):,} file(s) or row(s): PyTorch is imported, the checkpoint is read", flush=True)
    predict(args, path, sources)


def predict(args: argparse.Namespace, path: Path, sources: list[Source]) -> None:
    """Predict the sources, and write all that is asked for.

    Raises:
        RunFailed: some did not read; what else there is is written, but for an archive.
    """
    from pipelines.recipes.tasks import SEGMENTATION
    from pipelines.runs.checkpoint import load

    checkpoint = load(path, mapped=True)
    task = checkpoint["recipe"].get("task", SEGMENTATION)
    (predict_masks if task == SEGMENTATION else predict_task)(args, path, checkpoint, sources)


def predict_masks(args: argparse.Namespace, path: Path, checkpoint: dict[str, Any], sources: list[Source]) -> None:
    """Predict the masks of the sources.

    Raises:
        RunFailed: some did not read; what else there is is written, but for an archive.
    """
    from pipelines.serving.film import write_film
    from pipelines.serving.plan import about
    from pipelines.serving.predicting import keep, tabulate, to_do
    from pipelines.serving.results import Results
    from pipelines.serving.submission import image_ids

    plan = planned(args, path, checkpoint)
    noted = about(plan)
    ids = image_ids(args.submission, [source.name for source in sources]) if args.submission else {}
    results = Results(writable("--out", args.out.expanduser()))
    results.begin(noted)
    tasks, there = to_do(results, sources, plan.overlays)
    print(
        f"predicts {noted['inference']}" + (f"; {len(there):,} image(s) are there already" if there else ""), flush=True
    )
    began = time.monotonic()
    faults, areas = keep(results, make(args, plan, tasks), reporting(tasks, args.every))
    seconds, new = time.monotonic() - began, len(areas)
    for source in [source for source in sources if source.kind == "video"] if plan.overlays else []:
        write_film(results, source, plan)
    count = tabulate(results, areas, there, plan)
    print(f"{new:,} image(s) predicted in {duration(seconds)}, {new / max(seconds, 1e-9):.2g} images/s")
    parts = f"masks, {'overlays, ' if plan.overlays else ''}areas.csv, areas.parquet"
    print(f"written: {results.path}, {parts} of {count:,} image(s)")
    if faults:
        raise RunFailed(told(faults, bool(args.submission)))
    if args.submission:
        pack(args.submission, results, ids)


def predict_task(args: argparse.Namespace, path: Path, checkpoint: dict[str, Any], sources: list[Source]) -> None:
    """Predict the classes, objects or panoptic pictures of the sources, by a model of another task than segmentation.

    Raises:
        InputError: an option of masks is given, or a video.
        RunFailed: some did not read; what else there is is written.
    """
    from pipelines.serving.results import Results
    from pipelines.serving.task_predicting import TaskPainter, about, gather, keep_found, left_to_do, plan_images

    task = checkpoint["recipe"]["task"]
    given = [name for name in OF_MASKS if getattr(args, name) is not None] + (["every"] if args.every != 1 else [])
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{path} is of task: {task}, which predicts no masks: leave out {options}")
    plan = plan_images(path, checkpoint, args.precision, args.overlays)
    results, noted = Results(args.out.expanduser()), about(plan)
    tasks, there = left_to_do(results, sources, plan.overlays)
    writable("--out", results.path)
    results.begin(noted)
    print(
        f"predicts {task}: {noted['inference']}" + (f"; {len(there):,} image(s) are there already" if there else ""),
        flush=True,
    )
    began = time.monotonic()
    faults, names = keep_found(results, make(args, plan, tasks, TaskPainter), reporting(tasks, 1))
    seconds = time.monotonic() - began
    files = gather(results, [*there, *names], plan)
    print(f"{len(names):,} image(s) predicted in {duration(seconds)}, {len(names) / max(seconds, 1e-9):.2g} images/s")
    parts = ", ".join([*files, *(["overlays/"] if plan.overlays else []), "images/"])
    print(f"written: {results.path}, {parts} of {len(there) + len(names):,} image(s)")
    if faults:
        raise RunFailed(told(faults, False))


def planned(args: argparse.Namespace, path: Path, checkpoint: dict[str, Any]) -> Plan:
    """What to predict with.

    Raises:
        InputError: classes that the server does not want, a way to predict that the head does not take, or a bad page.
    """
    from datasets.release_ids import release_ids
    from pipelines.serving.plan import plan_prediction
    from pipelines.serving.submission import check_classes
    from segmodels.tiles import PIXELS

    if args.submission:
        check_classes(args.submission, checkpoint["classes"])
    classes = checkpoint["classes"]
    ids = values_in(args.classes, classes) if args.classes else release_ids(classes)
    keys = ("mode", "window", "stride", "scales", "flip")
    given = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    pixels = args.tile_pixels or PIXELS
    return plan_prediction(path, checkpoint, ids, given, args.precision, pixels, args.overlays, args.every)


def values_in(page: Path, classes: Sequence[str]) -> tuple[int, ...]:
    """The value of each class in the user's own masks.

    Raises:
        InputError: the page names other classes, or colours.
    """
    from datasets.readers.classes_yaml import read_settings

    settings = read_settings(page, "a folder with classes.yaml")
    values = {number: value for value, number in reversed(settings.values.items())}
    if list(settings.names) != list(classes) or any(number not in values for number in range(len(classes))):
        raise InputError(
            f"--classes {page}: it names {list(settings.names[:3])}… with the values {list(settings.values)[:3]}…, the "
            f"checkpoint knows {list(classes[:3])}…; give the page of the folder that it was trained on"
        )
    return tuple(values[number] for number in range(len(classes)))


def make(args: argparse.Namespace, plan: Any, tasks: list[Task], kind: Any = None) -> Iterator[Made]:
    """The results of the tasks, by this process or by Ray's workers.

    Args:
        args: the command line.
        plan: what to predict with.
        tasks: to do.
        kind: makes who predicts of the plan; None for `Painter`.
    """
    from pipelines.serving.predicting import Painter, make_here, make_on_ray

    if not tasks:
        return
    if args.workers is None:
        yield from make_here(plan, tasks, kind or Painter)
        return
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers

    print(f"Ray starts, {args.workers} worker(s) predict", flush=True)
    with ray_cluster(Workers(count=args.workers, gpus=args.gpus)) as sizes:
        yield from make_on_ray(plan, tasks, sizes, kind or Painter)


def reporting(tasks: Sequence[Task], every: int) -> Any:
    """Takes how many images are done, and says so every few seconds."""
    from pipelines.serving.reading import frames_in

    total = frames_in((task.source for task in tasks), every) - sum(len(task.there) for task in tasks)
    return Progress(max(1, total), "images", lambda line: print(line, flush=True), rate=True).reach


def told(faults: Sequence[Made], submission: bool) -> str:
    """What to say at the end of sources that did not read."""
    lines = "".join(f"\n  {fault.name}: {fault.fault}" for fault in faults[:20])
    more = f"\n  and {len(faults) - 20:,} more" if len(faults) > 20 else ""
    archive = " There is no archive: a server wants all images." if submission else ""
    return (
        f"{len(faults):,} image(s) or video(s) did not read and are left out; the others are written.{archive} Replace "
        f"or remove these, and give the same command again:{lines}{more}"
    )


def pack(benchmark: str, results: Results, ids: dict[str, str]) -> None:
    """Write the archive, and say what it lacks."""
    from pipelines.serving.submission import FORMS, write_archive

    path, form = write_archive(benchmark, results, ids), FORMS[benchmark]
    print(f"written: {path}, {len(ids):,} image(s), {path.stat().st_size / 1e6:.1f} MB. For: {form.about}")
    if form.images and len(ids) != form.images:
        print(f"note: the split test has {form.images:,} images, this archive {len(ids):,}; the server may refuse it")


if __name__ == "__main__":
    run(main, resumes=True)
