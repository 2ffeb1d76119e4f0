"""Two checkpoints on the same rows, from their files to pictures of the rows on which they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.storage import below
from pipelines.base import pictures
from pipelines.base.errors import InputError
from pipelines.base.files import write_json
from pipelines.cluster.device import device_here, precision_of
from pipelines.feed.plan import open_shards
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.tasks import refuse_task
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.where import local_output
from pipelines.scoring.bootstrap import ClassCounts
from pipelines.scoring.compared import Comparison, draw_row, most_changed, page_of, picture_name, row_scores
from pipelines.scoring.counting import ImageCounts
from pipelines.scoring.evaluation import Task, Wishes, load_model, plan_evaluation
from pipelines.shards.sample import sample_shards
from segmodels.inference import predict
from segmodels.precision import autocast


@dataclass(frozen=True)
class Side:
    """One of the two: its checkpoint, and the task that scores it under one protocol."""

    checkpoint: Checkpoint
    task: Task

    def named(self, given: str) -> Side:
        """The same, with the checkpoint as it was given."""
        return Side(self.checkpoint, self.task.named(given))

    @property
    def protocol(self) -> str:
        """The name of its only protocol."""
        return next(iter(self.task.protocols))


def rows_of(checkpoints: Sequence[Checkpoint]) -> str:
    """The shards that the checkpoints' stages validate on.

    Raises:
        InputError: there are none, or not the same.
    """
    found = sorted({uri for uri in map(validated_on, checkpoints) if uri})
    if len(found) != 1:
        told = f"are validated on {' and '.join(found)}" if found else "validate on nothing"
        raise InputError(f"the stages of A and B {told}: name the SHARDS on which to compare them")
    return found[0]


def validated_on(checkpoint: Checkpoint) -> str | None:
    """The shards that a checkpoint's stage validates on; None where it does not."""
    recipe: Recipe = checkpoint.recipe
    stage = next(stage for stage in recipe.stages if stage.name == checkpoint.stage)
    if stage.val is None:
        return None
    drawn = recipe.data == Recipe.data
    root = str(sample_shards(local_output(recipe.output), [stage.val])) if drawn else recipe.data
    return below(root, stage.val)


def plan_sides(
    files: Sequence[Path], uri: str | None, wishes: Wishes, precision: str, allow_seen: bool
) -> tuple[Side, Side]:
    """Check two checkpoints and a split against each other.

    Args:
        files: the checkpoints of A and B.
        uri: of the split; None for the one that both validate on.
        wishes: the one protocol for both; none for each recipe's own `inference`.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        allow_seen: compare on rows that either was trained on too.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: no rows to compare on, or what `plan_evaluation` refuses.
    """
    checkpoints = [Checkpoint.read(file, mapped=True) for file in files]
    for file, checkpoint in zip(files, checkpoints, strict=True):
        refuse_task(checkpoint.recipe.task, f"compare runs {file}:")
    uri = uri or rows_of(checkpoints)
    a, b = (
        Side(checkpoint, plan_evaluation(file, checkpoint, uri, wishes, precision, allow_seen))
        for file, checkpoint in zip(files, checkpoints, strict=True)
    )
    return a, b


def classes_of(side: Side, counts: Mapping[str, ImageCounts]) -> ClassCounts:
    """The counts of a side's only protocol, by image and class."""
    return counts[side.protocol].by_class(side.task.manifest.rows)


def write_comparison(
    folder: Path, sides: tuple[Side, Side], counts: tuple[ClassCounts, ClassCounts], found: Comparison, number: int
) -> list[Path]:
    """Write compared.json, and pictures of at most `number` rows that gained and as many that lost most.

    Returns:
        The files.
    """
    a, b = sides
    shards = open_shards(a.task.uri)
    about = {
        side: {"checkpoint": each.task.shown, "stage": each.checkpoint.stage, "step": each.checkpoint.step,
               "protocol": each.task.words(each.protocol)}
        for side, each in zip("ab", sides, strict=True)
    }  # fmt: skip
    page = page_of(found, a.checkpoint.classes, shards.ids)
    page["a"] |= about["a"]
    page["b"] |= about["b"]
    write_json(folder / "compared.json", {"shards": a.task.uri, "shards_hash": a.task.manifest.hash} | page)
    files = [folder / "compared.json"]
    worse, better = most_changed(found.change, number)
    chosen = {row: picture_name("worse", place, shards.ids[row]) for place, row in enumerate(worse, 1)}
    chosen |= {row: picture_name("better", place, shards.ids[row]) for place, row in enumerate(better, 1)}
    guesses = [predictions(side, list(chosen)) for side in (a, b)]
    scored = [row_scores(each) * 100 for each in counts]
    for (row, name), one, other in zip(chosen.items(), *guesses, strict=True):
        image, mask = shards.sample(row)
        title = f"{shards.ids[row]}: mean IoU of its classes A {scored[0][row]:.1f}, B {scored[1][row]:.1f} %"
        sheet = draw_row(image, mask, one, other, a.checkpoint.palette, title)
        files.append(Path(pictures.write_png(folder / name, sheet)))
    return files


@torch.inference_mode()
def predictions(side: Side, rows: Sequence[int]) -> list[np.ndarray]:
    """A side's prediction of some rows, uint8 (H, W) each."""
    device = device_here()
    model = load_model(side.task.recipe, side.checkpoint, device).eval()
    precision, shards = precision_of(side.task.precision, device), open_shards(side.task.uri)
    found = []
    with autocast(device, precision):
        for row in rows:
            image = torch.from_numpy(shards.sample(row)[0].copy()).permute(2, 0, 1)[None].to(device)
            guess = predict(model, image, side.task.protocols[side.protocol]).argmax(1)[0]
            found.append(guess.byte().cpu().numpy())
    return found


def heading(sides: tuple[Side, Side]) -> list[str]:
    """What is compared: both files and protocols; a line of its own where A and B are not predicted alike."""
    lines = [f"{name}: {s.task.shown}, {s.task.words(s.protocol)}" for name, s in zip("AB", sides, strict=True)]
    one, other = (side.task.protocols[side.protocol] for side in sides)
    note = "NOTE: A and B are not predicted alike; --protocol NAME sets one protocol for both"
    return lines if one == other else [*lines, note]
