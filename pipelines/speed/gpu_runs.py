"""Steps 4 and 7 of `bench gpu`: whole runs, by Ray: the feeds against a batch at hand, and whether a model learns."""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterator
from statistics import median

from datasets.readers.voc import CLASSES
from pipelines.speed import accuracy, step
from pipelines.speed.drawn import draw, scratch, write_shards
from pipelines.speed.gpu import Case, Line

FORM = {"cuda": "bf16+channels_last", "cpu": "fp32"}
KEEPS = 0.95  # of the rate on a batch at hand
LEARNT = 0.1  # mIoU that a model must pass


def lines(case: Case) -> Iterator[Line]:
    """What is measured."""
    yield from feeds(case) if case.name == "feeds" else learning(case)


def feeds(case: Case) -> Iterator[Line]:
    """`bench step` with one form."""
    small = case.small
    names = ["resident", "feed=ray"] if small else list(step.FEEDS)
    words = ["--forms", FORM[case.device], "--feeds", *names, "--steps", "12" if small else "60", "--rows",
             "32" if small else "256"]  # fmt: skip
    args = parsed(step, words)
    step.check(args)
    found = step.measure(args).measured[FORM[case.device]]
    assert isinstance(found, dict)
    rates = {feed: median(runs[0][1:]) for feed, runs in found.items()}
    for feed, rate in rates.items():
        yield Line(f"{feed}", rate, "images/s", "217" if feed == "resident" else "")
        if feed != "resident":
            share = rate / rates["resident"]
            good = share >= KEEPS if case.device == "cuda" and not small else None
            yield Line(f"{feed} to resident", share, "", f">= {KEEPS}", good)


def learning(case: Case) -> Iterator[Line]:
    """`bench accuracy` on CamVid's shards; where none are named, on drawn scenes, whose mIoU is no score."""
    with scratch() as folder:
        data = case.data
        if not data:
            data = str(folder / "data")
            rows, size = (16, (88, 120)) if case.small else (256, (352, 480))
            scenes = draw(rows + rows // 4, size)
            for split, count in {"train": rows, "val": rows // 4}.items():
                made = write_shards(folder / split, itertools.islice(scenes, count), CLASSES)
                shutil.copytree(made / "train", f"{data}/camvid/{split}")
        words = ["stages.0.val_every=0" if case.small else "stages.0.val_every=20", "--data", data]
        words += ["--epochs", "40", "--steps", "4", *(["--recipes", accuracy.RECIPES[0]] if case.small else [])]
        args = parsed(accuracy, words)
        for name, results in accuracy.measure(args).measured.items():
            assert isinstance(results, list)
            result = results[0]
            good = result["miou"] > LEARNT if case.device == "cuda" and not case.small else None
            yield Line(f"{name}: mIoU, {'CamVid' if case.data else 'drawn scenes'}", 100 * result["miou"], "%",
                       "much more than 10", good)  # fmt: skip
            yield Line(f"{name}: images/s", result["images_per_s"], "images/s")


def parsed(module: object, words: list[str]) -> argparse.Namespace:
    """The options of a measurement."""
    parser = argparse.ArgumentParser()
    module.add_options(parser)  # type: ignore[attr-defined]
    args = parser.parse_args(words)
    args.repeats = 1
    return args
