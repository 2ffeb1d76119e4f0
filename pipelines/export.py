#!/usr/bin/env python
"""Write a checkpoint's model as a file that runs without this project, with its card; or as an MLflow model.

ONNX and PyTorch's exported program take raw RGB, uint8 (B, 3, H, W), normalise inside, and give class ids or
probabilities; B is free, and H and W where the head allows. What is written is run next to the model before it is in
its place: the difference and the speed of both are printed. FILE's card, in Markdown, lies beside it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, program, run, writable
from pipelines.base.errors import InputError

if TYPE_CHECKING:
    from pipelines.runs.folder import StageFolder
    from pipelines.scoring.evaluation import Task
    from pipelines.serving.exporting import Source

FORMATS = ("onnx", "torch", "safetensors")
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
EXAMPLES = """\
examples:
  python -m pipelines.export ~/context-heads/runs/NAME/camvid/best.pt --out camvid.onnx
  python -m pipelines.export best.pt --format torch --output probabilities --out camvid.pt2 --images data/camvid/val
  python -m pipelines.export best.pt --out camvid.onnx --output probabilities --int8 data/camvid/val
  python -m pipelines.export ~/context-heads/runs/NAME/camvid/best.pt --mlflow --register camvid --alias champion
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="best.pt or step-….pt of a run, or a finished run; a path or a URI")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write; its card is FILE with suffix .md")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of FILE (.onnx, .pt2, .safetensors)")
    parser.add_argument(
        "--output", choices=["classes", "probabilities"], default="classes",
        help="what the program gives: class ids, uint8 (B, H, W), by default; or float32 (B, K, H, W)",
    )  # fmt: skip
    parser.add_argument("--images", metavar="SHARDS", help="compare on these images (default: scenes of the sample)")
    parser.add_argument(
        "--int8", metavar="SHARDS",
        help="also write FILE with .int8.onnx, quantised, and print the mIoU of both on these labelled shards",
    )  # fmt: skip
    parser.add_argument("--mlflow", action="store_true", help="log the stage's best weights to its run, as a model")
    parser.add_argument("--register", metavar="NAME", help="register that model as the next version of NAME")
    parser.add_argument("--alias", action="append", default=[], help="an alias that moves to that version; repeatable")
    parser.add_argument("--tracking", help="MLflow's address (default: the one that the run logged to)")
    parser.add_argument("--allow-seen", action="store_true", help="with --int8: score on training rows all the same")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser.parse_args()


def main() -> None:
    args = parse()
    form = check(args)
    from pipelines.runs.named import named_checkpoint

    path = named_checkpoint(args.checkpoint)
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt and RUN/STAGE/checkpoints/step-….pt"
        )
    if form:
        writable("--out", args.out.expanduser().resolve().parent)
    if args.mlflow:
        log_model(path, args)
    if form:
        write_file(path, form, args)


def check(args: argparse.Namespace) -> str | None:
    """The format of the file that is asked for, None for no file.

    Raises:
        InputError: options that do not fit together.
    """
    args.mlflow = args.mlflow or args.register is not None
    if args.alias and not args.register:
        raise InputError(f"--alias {args.alias[0]} names a version of a registered model: give --register NAME too")
    if args.out is None and not args.mlflow:
        raise InputError("nothing to do: give --out FILE for a file, or --mlflow for a model in MLflow")
    if args.out is None:
        if odd := [name for name in ("format", "images", "int8") if getattr(args, name)]:
            raise InputError(f"--{odd[0]} is for a file: give --out FILE")
        return None
    form = args.format or next((name for name, suffix in SUFFIXES.items() if args.out.suffix == suffix), None)
    if form is None:
        known = ", ".join(f"{suffix} for {name}" for name, suffix in SUFFIXES.items())
        raise InputError(f"--out {args.out}: its suffix names no format ({known}); give one, or --format")
    if args.int8 and form != "onnx":
        raise InputError(f"--int8 quantises ONNX files, and --format is {form}. Give --format onnx")
    if args.out.is_dir():
        raise InputError(f"--out {args.out} is a folder; give the file to write, such as {args.out}/model.onnx")
    return form


def write_file(path: Path, form: str, args: argparse.Namespace) -> None:
    """Write the file and its card, and say how it agrees with the model."""
    from datasets.storage import below
    from pipelines.feed.plan import open_shards

    images, scored = (below(str(Path.cwd()), uri) if uri else None for uri in (args.images, args.int8))
    for uri in filter(None, (images, scored)):
        open_shards(uri)  # their faults are told before PyTorch is imported, which takes seconds
    out = args.out.expanduser().resolve()
    print(f"{path} as {form}: PyTorch is imported, the checkpoint is read", flush=True)
    from pipelines.base.files import write_text
    from pipelines.serving.card import Written, model_card, place_of
    from pipelines.serving.exporting import export_file, open_source
    from pipelines.serving.images import rows_of, scenes
    from pipelines.serving.program import check_form, least

    check_form(form)
    source = open_source(path)
    task = plan_int8(path, source, str(scored), args) if scored else None
    tried = rows_of(images, source.model) if images else scenes(source.model, source.checkpoint.recipe.view.crop)
    agreement = export_file(source, form, args.output, out, tried)
    print("\n".join(agreement.lines()))
    more: list[str] = []
    if task:
        from pipelines.serving.quantised import quantise

        more = quantise(out, source.model, task)
        print("\n".join(more))
    written = Written(out.name, form, args.output, source.inference, agreement, least(source.model), more)
    card = out.with_suffix(".md")
    write_text(card, model_card(source.checkpoint, place_of(path), written))
    print(f"written: {out} ({out.stat().st_size / 2**20:.1f} MiB), {card}")


def plan_int8(path: Path, source: Source, uri: str, args: argparse.Namespace) -> Task:
    """How both programs are scored on shards: as the file predicts.

    Raises:
        InputError: other classes, no labels, rows that were trained on, or a program that must give probabilities.
    """
    from pipelines.scoring.evaluation import Wishes, plan_evaluation

    if args.output == "classes" and source.inference.window is not None:
        raise InputError(
            "--int8 scores by the recipe's windows, whose probabilities are averaged, and --output is classes. "
            "Give --output probabilities"
        )
    wishes = Wishes(overrides={"scales": [1.0], "flip": False})
    return plan_evaluation(path, source.checkpoint, uri, wishes, "fp32", args.allow_seen)


def log_model(path: Path, args: argparse.Namespace) -> None:
    """Pack a stage's best weights unless they are packed, log them to the stage's run, register them if asked for."""
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.run import locked
    from pipelines.serving.card import place_of

    place = place_of(path)
    if place is None or not place.result.is_file():
        raise InputError(
            f"{path} does not lie in a finished stage of a run, so MLflow has no run to link its model to. Give "
            "RUN/STAGE/best.pt, or write a file with --out FILE"
        )
    from pipelines.runs.results import final_weights

    if path != (meant := final_weights(place).resolve()):
        raise InputError(f"--mlflow logs the best weights of a stage, {meant}, and {path} are others. Give the former")
    with locked(RunFolder(place.path.parent).path):  # what trains sends its record itself
        send(place, args)


def send(place: StageFolder, args: argparse.Namespace) -> None:
    """See `log_model`.

    Raises:
        SetupError: MLflow does not answer.
    """
    from pipelines.recipes.reading import load_recipe
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.mlflow_client import answering
    from pipelines.runs.mlflow_models import register
    from pipelines.runs.tracked import last_address
    from pipelines.runs.tracker import Tracker

    files = RunFolder(place.path.parent)
    if not place.model.exists():
        print(f"{place.path.name}: PyTorch is imported, its model is packed", flush=True)
        from pipelines.serving.packing import pack_stage

        print("\n".join(pack_stage(place).lines()))
    recipe = load_recipe(files.recipe)
    tracker = Tracker(recipe, files.path.parents[1], files.path, args.tracking or last_address(files.tracking))
    with answering(tracker.uri):
        tracker.deliver(place)
        model = str(tracker.model_of(place.path.name))
        print(f"logged: models:/{model}")
        if args.register:
            note = place.card.read_text()
            run_id = tracker.run_of(place)
            number = register(tracker.client, tracker.uri, args.register, model, run_id, args.alias, note)
            print(f"registered: models:/{args.register}/{number}" + "".join(f", @{alias}" for alias in args.alias))
    serve = f"uv run mlflow models serve -m {shlex.quote(str(place.model))} --env-manager uv --port 5001"
    print(f"Look at it:  {tracker.ui_command()}\nServe it:    {serve}")


if __name__ == "__main__":
    run(main)
