"""A head's numbers over the rows of a split: see `head_numbers.py` for what each means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.sample import IGNORE
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import read_ahead, validation_batches
from pipelines.scoring.explaining import PRESENCE, class_shares, told
from pipelines.scoring.head_numbers import Fragments, OwnClass, Presence
from segmodels.heads.maps import Maps
from segmodels.segmentor import Segmentor


@torch.no_grad()
def measure(
    model: Segmentor, uri: str, batch: int, rows: int | None = None, beat: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """The numbers of a model's head: those of `presence`, `relation` and `attention` that the head has.

    The head sees each image whole or, bound to its crop, in crops side by side, the last flush with the border. It runs
    in float32.

    Args:
        model: in evaluation mode.
        uri: of the split's shards, with labels of the model's classes.
        batch: images at a time.
        rows: how many, evenly spread over the split; all if None.
        beat: told how many images are done.
    """
    shards, device = open_shards(uri), model.mean.device
    chosen = set(np.linspace(0, len(shards) - 1, min(rows or len(shards), len(shards))).astype(int).tolist())
    batches = [[row for row in each if row in chosen] for each in validation_batches(shards, batch)]
    numbers, done = Numbers(model.num_classes), 0
    for part in read_ahead(shards, list(filter(None, batches))):
        for image, mask in crops(part.image, part.masks, model):
            features = model.features(image.to(device))
            shares = class_shares(mask, model.num_classes, features[-1].shape[2:]).to(device)
            maps = Maps(shares=shares)
            numbers.add(maps, model.head(features, maps), mask)
        done += len(part)
        beat(done)
    return {"rows": done} | numbers.table()


class Numbers:
    """All numbers that a head has."""

    def __init__(self, classes: int) -> None:
        self.presence: Presence | None = None
        self.relation, self.fragments = OwnClass(classes), Fragments()

    def add(self, maps: Maps, outputs: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add images."""
        for kind in PRESENCE:
            if kind in outputs:
                self.presence = self.presence or Presence(PRESENCE[kind])
                self.presence.add(told(kind, outputs[kind]), mask)
        self.relation.add(maps)
        if "lambda_" in maps:
            self.fragments.add(maps)

    def table(self) -> dict[str, Any]:
        """Those that there are."""
        found: dict[str, Any] = {}
        if self.presence is not None:
            found["presence"] = self.presence.table()
        if self.relation.sums:
            found["relation"] = self.relation.table()
        if self.fragments.rows:
            found["attention"] = self.fragments.table()
        return found


def crops(image: Tensor, mask: Tensor, model: Segmentor) -> Iterator[tuple[Tensor, Tensor]]:
    """What the head sees of images (B, 3, H, W) and masks (B, H, W): the whole or crops, filled below and right."""
    if model.window is None:
        yield image, mask
        return
    size, window = mask.shape[1:], model.window
    canvas = model.mean.cpu().round().to(image.dtype).repeat(len(image), 1, *map(max, size, window))
    labels = mask.new_full((len(mask), *canvas.shape[2:]), IGNORE)
    canvas[..., : size[0], : size[1]], labels[:, : size[0], : size[1]] = image, mask
    for top in starts(size[0], window[0]):
        for left in starts(size[1], window[1]):
            part = slice(top, top + window[0]), slice(left, left + window[1])
            yield canvas[:, :, *part], labels[:, *part]


def starts(side: int, window: int) -> list[int]:
    """Where crops begin that cover a side: as few as there can be, the last flush with the border."""
    count = max(1, math.ceil(side / window))
    return [max(0, min(k * window, side - window)) for k in range(count)]


def metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The numbers as MLflow metrics, `head/…`, shares in percent; what is not finite is left out."""
    found: dict[str, float] = {}
    if "presence" in numbers:
        found |= {f"head/presence/{name}": 100 * value for name, value in numbers["presence"]["mean"].items()}
    for relation, shares in numbers.get("relation", {}).items():
        names = {"relation": "own_class", "even": "own_class_at_random", "true": "own_class_of_true_relation"}
        found |= {f"head/{relation}/{names[field]}": 100 * shares[field] for field in names}
    if "attention" in numbers:
        kept = numbers["attention"].items()
        found |= {f"head/attention/{name}": value for name, value in kept if isinstance(value, float)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def lines(numbers: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The numbers as tables for people."""
    found = []
    if "presence" in numbers:
        found += presence_lines(numbers["presence"], classes)
    if "relation" in numbers:
        found += relation_lines(numbers["relation"], classes)
    if "attention" in numbers:
        found += attention_lines(numbers["attention"])
    return found


def presence_lines(table: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Precision and recall of presence."""
    what = "probability" if table["kind"] == "sigmoid" else "share of the pixels"
    per, means = table["classes"], table["mean"]
    found = [
        f"presence of classes in {table['images']} images (predicted: {what} of at least {table['at_least']:g})",
        f"{'':>20}  {'images':>7}  {'predicted':>9}  {'precision %':>11}  {'recall %':>8}  {'average precision %':>19}",
    ]
    names = ("precision", "recall", "average_precision")
    for k, name in enumerate(classes):
        cells = [percent(per[key][k]) for key in names]
        found.append(f"{name:>20}  {per['images'][k]:>7}  {per['predicted'][k]:>9}  {row(cells)}")
    found.append(f"{'mean':>20}  {'':>7}  {'':>9}  {row([percent(means[key]) for key in names])}")
    if "error" in means:
        found.append(f"{'':>20}  mean |predicted - true share|: {means['error']:.4f}")
    return found


def row(cells: Sequence[str]) -> str:
    """Three cells in the columns of `presence_lines`."""
    return f"{cells[0]:>11}  {cells[1]:>8}  {cells[2]:>19}"


def relation_lines(table: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Shares of relations on the own class, three columns a relation."""
    names = ("relation", "even", "true")
    rows = [(name, [shares["classes"][field][k] for shares in table.values() for field in names])
            for k, name in enumerate(classes)]  # fmt: skip
    rows.append(("all pixels", [shares[field] for shares in table.values() for field in names]))
    return [
        "share of a pixel's relation that lies on its own class, percent: of the head's relation; of equal weights on",
        "the same cells (random); of the true relation (truth), which is no bound: cells mix classes, some less",
        f"{'':>20}" + "".join(f"  {name:>24}" for name in table),
        f"{'':>20}" + f"  {'head':>8}{'random':>8}{'truth':>8}" * len(table),
        *(f"{name:>20}" + "".join(f"{'' if i % 3 else '  '}{percent(value):>8}" for i, value in enumerate(values))
          for name, values in rows),
    ]  # fmt: skip


def attention_lines(table: Mapping[str, Any]) -> list[str]:
    """Rank of RecoNet's A and likeness of its fragments."""
    ranks = ", ".join(
        f"{table[f'rank_{axis}']:.1f} (effective {table[f'effective_rank_{axis}']:.2f}) along {name}"
        for axis, name in (("c", "channels"), ("h", "rows"), ("w", "columns"))
    )
    curve = ", ".join(f"{count}: {value:.2f}" for count, value in table["by_fragments"].items())
    return [
        f"attention A of {table['fragments']} fragments, means over {table['tensors']} tensors: rank {ranks}",
        f"fragments are alike: cosine {table['cosine']:.4f}, correlation {table['correlation']:.4f}",
        f"effective rank along channels of the n fragments of greatest weight: {curve}",
    ]


def percent(value: float) -> str:
    """A share in percent; `-` for none."""
    return "-" if value != value else f"{value * 100:.2f}"
