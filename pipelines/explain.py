#!/usr/bin/env python
"""Show what a head saw: its context maps on one image, errors, and the numbers that its paper argues with.

For RecoNet the fragments A_i·x and the full A; for OCNet the relations of chosen pixels next to the true relation; for
SRNet the channels of its node groups and its features before and after; for CTNet the relation of pixels to classes and
the presence of classes; for the comparison heads the attention of those that have one. --against puts a second model
next to it. --measure sums up over a split: presence as precision and recall, the share of a relation on the pixel's own
class, the rank of RecoNet's attention. The pictures are PNGs 900 pixels wide.

Of a model of another task the features before and after each unit of backbone.context are drawn, if it has any.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, program, run, writable
from pipelines.base.errors import InputError
from pipelines.base.files import replacing, write_json
from pipelines.base.text import Progress

if TYPE_CHECKING:
    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.subject import Subject

EXAMPLES = """\
examples:
  python -m pipelines.explain best.pt data/voc12/val --row 2007_000033 --out seen
  python -m pipelines.explain best.pt street.jpg --pixel 210 96 --pixel 40 180 --out seen
  python -m pipelines.explain best.pt data/voc12/val --row 2007_000033 --against other/best.pt --out seen
  python -m pipelines.explain best.pt data/voc12/val --measure --out seen              # numbers over the split
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="best.pt or step-….pt of a run, or a finished run; a path or a URI")
    parser.add_argument("source", metavar="IMAGE|SHARDS", help="a JPEG or PNG, or folder or URI of one split's shards")
    parser.add_argument("--row", metavar="ID", help="the row of the shards to explain")
    parser.add_argument(
        "--pixel", type=int, nargs="+", action="extend", default=[], metavar="X Y",
        help="column and row of a pixel of the image whose relations are drawn; as many as you like (default: deep "
        "inside of each of the three largest classes, one)",
    )  # fmt: skip
    parser.add_argument("--against", metavar="CHECKPOINT", help="a second model, of the same classes")
    parser.add_argument("--measure", action="store_true", help="the head's numbers over the split's rows")
    parser.add_argument("--rows", type=int, metavar="N", help="--measure so many rows, evenly spread (default: all)")
    parser.add_argument("--allow-seen", action="store_true", help="--measure on training rows all the same, and say so")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for pictures, maps and numbers")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser.parse_args()


def main() -> None:
    args = parse()
    from datasets.storage import below
    from pipelines.feed.plan import open_shards
    from pipelines.runs.named import named_checkpoint

    args.path = named_checkpoint(args.checkpoint)
    args.other = named_checkpoint(args.against) if args.against else None
    source = Path(args.source).expanduser()
    is_image = source.is_file()
    check(args, is_image)
    uri = below(str(Path.cwd()), args.source)
    if not is_image:
        open_shards(uri)  # their faults are told before PyTorch is imported, which takes seconds
    print("PyTorch is imported, the checkpoint is read", flush=True)
    from pipelines.recipes.tasks import SEGMENTATION
    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.explaining import check_head
    from pipelines.scoring.subject import check_pixels, from_file, from_row

    path = args.path
    checkpoint = Checkpoint.read(path, mapped=True)
    if checkpoint.recipe.task != SEGMENTATION:
        explain_task(args, path, checkpoint, uri, is_image)
        return
    if args.against is None or args.measure:
        check_head(checkpoint.recipe, path)
    if args.out:
        writable("--out", args.out)
    if args.measure:
        measure(args, path, checkpoint, uri)
    if args.row or is_image:
        subject = from_file(source) if is_image else from_row(open_shards(uri), args.row, path, checkpoint)
        pixels = check_pixels(args.pixel, subject.image.shape)
        draw(args, path, checkpoint, subject, pixels, {"image": str(source)} if is_image else {"shards": uri})


def explain_task(args: argparse.Namespace, path: Path, checkpoint: Checkpoint, uri: str, is_image: bool) -> None:
    """Draw what the context in the trunk's blocks does to one image, of a task other than segmentation.

    Raises:
        InputError: there is none, or options of segmentation's heads are given.
    """
    from pipelines.cluster.device import device_here
    from pipelines.feed.plan import open_shards
    from pipelines.recipes.model import how
    from pipelines.scoring.context_maps import check_context, context_facts, context_figures, context_maps
    from pipelines.scoring.evaluation import load_model
    from pipelines.scoring.subject import from_file, from_row

    given = {"--pixel": args.pixel, "--against": args.against, "--measure": args.measure}
    check_context(checkpoint.recipe, path, [name for name, value in given.items() if value])
    writable("--out", args.out)
    source = Path(args.source).expanduser()
    subject = from_file(source) if is_image else from_row(open_shards(uri), args.row, path, checkpoint)
    model = load_model(checkpoint.recipe, checkpoint, device_here()).eval()
    seen, units = context_maps(model, checkpoint.recipe, subject.image)
    trained = ", TRAINED ON" if subject.seen else ""
    about = f"{checkpoint.recipe.backbone.name}, stage {checkpoint.stage}, step {checkpoint.step} on {subject.name}"
    drawn = save(args.out, context_figures(seen, units, about + trained))
    where = {"image": str(source)} if is_image else {"shards": uri}
    report = where | {
        "checkpoint": str(path), "stage": checkpoint.stage, "step": checkpoint.step, "row": subject.name,
        "trained_on": subject.seen, "context": dict(checkpoint.recipe.backbone.context or {}),
        "units": context_facts(units), "protocol": how(checkpoint.recipe), "pictures": drawn,
    }  # fmt: skip
    write_json(args.out / "explain.json", report)
    print(f"written to {args.out}: {', '.join([*drawn, 'explain.json'])}")


def save(out: Path, figures: dict[str, Any]) -> list[str]:
    """Write figures as PNGs; their names."""
    for name, figure in figures.items():
        with replacing(out / f"{name}.png") as temporary:
            figure.savefig(temporary)
    return [f"{name}.png" for name in figures]


def check(args: argparse.Namespace, is_image: bool) -> None:
    """What can be known of the command line alone.

    Raises:
        InputError: it cannot be run.
    """
    for path in (args.path, args.other) if args.against else (args.path,):
        if not path.is_file():
            raise InputError(
                f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt and RUN/STAGE/checkpoints/step-….pt"
            )
    if is_image and (args.row or args.measure):
        raise InputError(f"{args.source} is one image file; --row and --measure need the shards of a split")
    if not is_image and not args.row and not args.measure:
        raise InputError("nothing to do: --row ID draws one row of the shards, --measure sums up over all of them")
    if args.out is None and not (args.measure and not args.row):
        raise InputError("--out is missing: the folder for the pictures")
    if (args.against or args.pixel) and not (args.row or is_image):
        raise InputError("--against and --pixel belong to one image: give --row ID, or an image file")
    if args.rows is not None and (args.rows < 1 or not args.measure):
        raise InputError(f"--rows {args.rows}: 1 or more, and with --measure")


def draw(
    args: argparse.Namespace, path: Path, checkpoint: Checkpoint, subject: Subject, pixels: list[tuple[int, int]],
    source: dict[str, str],
) -> None:  # fmt: skip
    """Write all pictures of one image, its maps as maps.npz, and explain.json."""
    import numpy as np

    from pipelines.cluster.device import device_here
    from pipelines.recipes.model import how
    from pipelines.scoring.evaluation import load_model
    from pipelines.scoring.explaining import explain, facts
    from pipelines.scoring.head_figures import figures

    device = device_here()
    model = load_model(checkpoint.recipe, checkpoint, device).eval()
    seen = explain(model, checkpoint.recipe, subject, pixels)
    trained = ", TRAINED ON" if subject.seen else ""
    about = (
        f"{checkpoint.recipe.head['name']}, stage {checkpoint.stage}, step {checkpoint.step} on {subject.name}{trained}"
    )
    pictures = figures(seen, checkpoint.classes, checkpoint.palette, about)
    report: dict[str, Any] = (
        source | {"checkpoint": str(path), "stage": checkpoint.stage, "step": checkpoint.step} | facts(seen, checkpoint)
    )
    report["protocol"] = how(checkpoint.recipe)
    if args.against:
        pictures["against"], report["against"] = beside(args.other, checkpoint, subject, seen.prediction)
    drawn = save(args.out, pictures)
    arrays = seen.maps | {f"{n}_{p.x}_{p.y}": m for p in seen.pixels for n, m in p.maps.items()}
    with replacing(args.out / "maps.npz") as temporary:
        np.savez_compressed(temporary, prediction=seen.prediction, **arrays)  # type: ignore[arg-type]
    report["pictures"] = drawn
    write_json(args.out / "explain.json", report)
    print(f"written to {args.out}: {', '.join([*report['pictures'], 'maps.npz', 'explain.json'])}")


def beside(path: Path, checkpoint: Checkpoint, subject: Subject, prediction: Any) -> tuple[Any, dict[str, Any]]:
    """The picture of two models on one image, and what is told of the second.

    Raises:
        InputError: the second has other classes.
    """
    from pipelines.cluster.device import device_here
    from pipelines.recipes.model import how
    from pipelines.recipes.tasks import refuse_task
    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.evaluation import load_model
    from pipelines.scoring.explaining import predict_image
    from pipelines.scoring.side_by_side import compare, differing

    second = Checkpoint.read(path, mapped=True)
    refuse_task(second.recipe.task, f"--against {path}:")
    if second.classes != checkpoint.classes:
        raise InputError(
            f"--against {path} knows {len(second.classes)} classes {list(second.classes[:4])}…, the first checkpoint "
            f"{len(checkpoint.classes)} {list(checkpoint.classes[:4])}…: they must be the same, in this order"
        )
    device = device_here()
    guess = predict_image(load_model(second.recipe, second, device).eval(), second.recipe, subject.image)
    names = tuple(f"{n}: {c.recipe.head['name']}, {c.stage}" for n, c in (("first", checkpoint), ("second", second)))
    figure = compare(subject, prediction, guess, names, checkpoint.classes, checkpoint.palette, subject.name)  # type: ignore[arg-type]
    share = float(differing(prediction, guess, subject.mask).mean())
    return figure, {"checkpoint": str(path), "protocol": how(second.recipe), "differ": share}


def measure(args: argparse.Namespace, path: Path, checkpoint: Checkpoint, uri: str) -> None:
    """Print the head's numbers over the split, and write them to head.json."""
    from pipelines.cluster.device import device_here
    from pipelines.scoring.evaluation import load_model, plan_evaluation
    from pipelines.scoring.explaining import check_measured
    from pipelines.scoring.measuring import lines, measure

    check_measured(checkpoint.recipe, path)
    task = plan_evaluation(path, checkpoint, uri, allow_seen=args.allow_seen)
    rows = min(args.rows or task.manifest.rows, task.manifest.rows)
    device = device_here()
    model = load_model(checkpoint.recipe, checkpoint, device).eval()
    progress = Progress(rows, "images", lambda line: print(line, flush=True))
    found = measure(model, uri, checkpoint.recipe.inference.batch, rows, progress.reach)
    view = "whole images" if model.window is None else f"crops of {model.window[0]}x{model.window[1]}, side by side"
    seen = f"; {task.seen} OF THE SPLIT'S ROWS WERE TRAINED ON" if task.seen else ""
    split = f"{task.manifest.benchmark} {task.manifest.split}"
    said = f"{split}, {found['rows']} of {task.manifest.rows} rows, {view}, fp32{seen}"
    print(f"{checkpoint.recipe.head['name']} on {said}")
    print("\n".join(lines(found, checkpoint.classes)))
    if args.out:
        about = {"checkpoint": str(path), "shards": uri, "shards_hash": task.manifest.hash, "protocol": said,
                 "stage": checkpoint.stage, "step": checkpoint.step, "classes": list(checkpoint.classes)}  # fmt: skip
        write_json(args.out / "head.json", about | found)
        print(f"written: {args.out / 'head.json'}")


if __name__ == "__main__":
    run(main)
