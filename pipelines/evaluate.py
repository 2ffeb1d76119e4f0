#!/usr/bin/env python
"""Score a checkpoint on a split: every row once, one confusion matrix over all of them.

The checkpoint knows its model, its classes and the rows that it was trained on; scoring it on those is refused.
Prints mIoU with its protocol and IoU per class; with --out also writes scores.json and the confusion matrix.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.door import run, writable

EXAMPLES = """\
examples:
  python -m pipelines.evaluate ~/context-heads/runs/NAME/camvid/best.pt data/camvid/val
  python -m pipelines.evaluate best.pt s3://bucket/voc12/val --mode slide --stride 342 342 --workers 4
  python -m pipelines.evaluate best.pt data/voc12/val --scales 0.75 1.0 1.25 --flip --out scores/
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="best.pt or step-….pt of a run")
    parser.add_argument("shards", help="folder or URI of one split's shards")
    parser.add_argument("--mode", choices=["whole", "slide"], help="whole image or sliding window (default: recipe)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the training crop)")
    parser.add_argument(
        "--stride", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the recipe's, else 2/3 of the window)"
    )
    parser.add_argument("--scales", type=float, nargs="+", help="image scales to average over (default: the recipe's)")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--workers", type=int, help="Ray workers, on CPUs a core each (default: this process)")
    parser.add_argument("--gpus", type=int, choices=[0, 1], help="GPUs of each worker (default: 1 where there are any)")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="default: bf16 on GPUs")
    parser.add_argument("--allow-seen", action="store_true", help="score on training rows all the same, and say so")
    parser.add_argument("--out", type=Path, help="folder for scores.json, confusion.png and iou.png")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from pipelines import checkpoint
    from pipelines.cluster import ray_cluster
    from pipelines.recipe import RecipeError, Workers

    if args.workers is not None and args.workers < 1:
        raise RecipeError(f"--workers {args.workers}: 1 or more; without it, this process scores alone")

    content = checkpoint.load(args.checkpoint.resolve())
    task = plan(args, content)
    if args.out:
        writable("--out", args.out)
    if args.workers is None:
        counts = evaluate_here(task)
    else:
        with ray_cluster(Workers(count=args.workers, gpus=args.gpus)) as sizes:
            counts = evaluate_on_ray(task, sizes)
    show(args, content, task, counts)


def plan(args: argparse.Namespace, content: dict[str, Any]) -> dict[str, Any]:
    """Check shards against checkpoint; returns what a worker needs to know.

    Raises:
        RecipeError: other classes, unlabelled shards, rows that were trained on, or a window the head cannot use.
    """
    import numpy as np

    from datasets.shards import Shards
    from pipelines.loop import inference_of
    from pipelines.preflight import check_sizes, check_window, digests, locate, meta_model_of
    from pipelines.recipe import Recipe, RecipeError, convert, convert_table

    recipe: Recipe = convert(Recipe, content["recipe"], "")
    keys = ("mode", "window", "stride", "scales", "flip")
    given = {k: getattr(args, k) for k in keys if getattr(args, k) is not None}
    kept = {k: v for k, v in content["recipe"]["inference"].items() if k not in given}
    if "mode" in given and given["mode"] != recipe.inference.mode:
        kept |= dict.fromkeys({"window", "stride"} & kept.keys())  # of the other mode
    spec = convert_table(type(recipe.inference), kept | given, "inference")
    recipe = dataclasses.replace(recipe, inference=spec)
    uri = locate(str(Path.cwd()), args.shards)
    shards = Shards(uri)
    if not shards.manifest.labelled or not len(shards):
        raise RecipeError(f"{uri} holds {len(shards)} rows, labelled: {shards.manifest.labelled}: nothing to score")
    if list(shards.manifest.classes) != content["classes"]:
        raise RecipeError(
            f"{args.checkpoint} knows {len(content['classes'])} classes {content['classes'][:4]}…, {uri} has "
            f"{len(shards.manifest.classes)} {list(shards.manifest.classes)[:4]}…: they must be the same, in this order"
        )
    both = int(np.isin(digests(shards), content["seen"].numpy()).sum())
    if both and not args.allow_seen:
        raise RecipeError(
            f"{both} of the {len(shards)} images of {uri} were trained on by this checkpoint's chain: the score would "
            "mean nothing. Score on other rows, or add --allow-seen to see it labelled as such."
        )
    check_window(recipe, spec, meta_model_of(recipe, 2).window)
    check_sizes(recipe, spec, uri, shards)
    inference = dataclasses.replace(inference_of(recipe, spec), flip_pairs=shards.manifest.flip_pairs)
    return {"checkpoint": args.checkpoint.resolve(), "recipe": recipe, "uri": uri, "inference": inference, "both": both,
            "precision": args.precision}  # fmt: skip


def load_model(task: dict[str, Any]) -> Any:
    """The checkpoint's segmentor, on the CPU."""
    from pipelines import checkpoint
    from segmodels.segmentor import build_segmentor

    content, recipe = checkpoint.load(task["checkpoint"]), task["recipe"]
    backbone = dataclasses.asdict(recipe.backbone) | {"weights": None}
    model = build_segmentor(
        num_classes=len(content["classes"]), crop=recipe.view.crop, backbone=backbone, head=recipe.head, aux=recipe.aux
    )
    model.load_state_dict(content["model"])
    return model


def evaluate_here(task: dict[str, Any], rank: int = 0, world: int = 1, device: Any = None) -> Any:
    """Counts of the split, on this process' share of the rows."""
    import torch

    from pipelines.loop import validate

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = task["precision"] == "bf16" or (task["precision"] == "auto" and device.type == "cuda")
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # as in training
    model = load_model(task).to(device, memory_format=layout)
    return validate(
        model, task["uri"], task["inference"], device, rank, world, "bf16" if bf16 else "fp32",
        task["recipe"].inference.batch,
    )  # fmt: skip


def evaluate_worker(config: dict[str, Any]) -> Any:
    """One Ray worker's part; the counts are summed over the workers."""
    import ray.train
    import ray.train.torch

    from pipelines.group import connected

    context = ray.train.get_context()
    with connected():
        counts = evaluate_here(config, context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    return counts.tolist()


def evaluate_on_ray(task: dict[str, Any], sizes: Any) -> Any:
    """Counts of the split, by several workers."""
    import tempfile

    import numpy as np

    from pipelines.group import trainer

    with tempfile.TemporaryDirectory() as folder:
        job = trainer(evaluate_worker, task, sizes, "evaluate", Path(folder), failures=0)
        return np.array(job.fit().return_value)  # type: ignore[attr-defined]


def show(args: argparse.Namespace, content: dict[str, Any], task: dict[str, Any], counts: Any) -> None:
    """Print the scores with their protocol; write files when asked."""
    import torch

    from datasets.shards import read_manifest
    from pipelines import figures
    from segmodels.inference import protocol
    from segmodels.metrics import scores

    result, manifest = scores(torch.as_tensor(counts)), read_manifest(task["uri"])
    seen = f"; {task['both']} OF THEM WERE TRAINED ON" if task["both"] else ""
    how = f"{manifest.benchmark} {manifest.split}, {manifest.rows} rows, {protocol(task['inference'])}{seen}"
    for name, value in zip(content["classes"], result.iou, strict=True):
        print(f"{name:>20}  {'absent' if value != value else f'{value * 100:6.2f}'}")
    print(f"{'mIoU':>20}  {result.miou * 100!r} %   ({how})")
    print(f"{'pixel accuracy':>20}  {result.accuracy * 100:.4f} %   fwIoU {result.fwiou * 100:.4f} %")
    if args.out:
        numbers = dataclasses.asdict(result) | {
            "protocol": how, "checkpoint": str(task["checkpoint"]), "shards": task["uri"], "shards_hash": manifest.hash,
            "stage": content["stage"], "step": content["step"], "classes": content["classes"],
            "confusion": torch.as_tensor(counts).tolist(),
        }  # fmt: skip
        (args.out / "scores.json").write_text(json.dumps(numbers, indent=1))
        title = f"mIoU {result.miou * 100:.2f} %\n{how}"
        counts = torch.as_tensor(counts).numpy()
        figures.confusion_figure(counts, content["classes"], title).savefig(args.out / "confusion.png", dpi=110)
        figures.iou_figure(result.iou, content["classes"], title).savefig(args.out / "iou.png", dpi=110)
        print(f"written: {args.out}/scores.json, confusion.png, iou.png")


if __name__ == "__main__":
    run(main)
