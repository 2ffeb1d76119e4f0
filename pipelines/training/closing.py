"""The end of a stage: its best weights, scored once under each protocol that the recipe names."""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipelines.base.files import write_json
from pipelines.base.pictures import save_counts
from pipelines.base.text import Progress
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import inference_by
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import Record
from pipelines.runs.stopping import asked_to_stop
from pipelines.scoring.counting import Halted, ImageCounts, Share, count_images
from pipelines.scoring.judged import Judged
from pipelines.training.job import Interrupted
from pipelines.training.learner import Learner
from segmodels.inference import protocol


def score_best(learner: Learner, record: Record, beat: Callable[[], None]) -> Interrupted | None:
    """Score the stage's best weights under the recipe's protocols, in one pass over the validation rows.

    The model of the learner has these weights afterwards; its last checkpoint was written before.

    Args:
        learner: whose training is done.
        record: of the stage; it gets a line with all scores.
        beat: called as often as there is progress.

    Returns:
        Why there are no scores yet, where a signal came: the same command scores again.
    """
    learner.saving.flush(beat)  # from here on its files are read
    job, names = learner.job, learner.job.recipe.protocols
    if job.val is None or not names or job.end < job.steps:  # a part of a training is not its end
        return None
    if dist.is_initialized():
        dist.barrier()  # rank 0 may still be writing them
    if learner.copy:
        learner.copy.bring_file(job.place.best)
    learner.shown.load_state_dict(Checkpoint.read(job.place.best, mapped=True).model)
    share = Share(learner.device, learner.rank, learner.world)
    inferences = [dataclasses.replace(inference_by(n, job.recipe), flip_pairs=job.flip_pairs) for n in names]
    fetch = learner.copy.fetch if learner.copy else None
    with asked_to_stop(RunFolder(job.folder.parent).stop, fetch=fetch) as asked:
        try:
            counts = count_images(
                learner.shown, job.val, inferences, share, learner.precision, job.recipe.inference.batch,
                told(learner, record, beat), asked, job.recipe.measures,
            )  # fmt: skip
        except Halted as halted:
            name, step = signal.Signals(halted.signal).name, learner.progress.step
            text = f"stopped in stage {job.stage.name}, trained but not scored under its protocols"
            record.add("note", step, text=f"{name}: {text}")
            return Interrupted(signal=name, text=text)
    if learner.rank == 0:
        tests = {
            name: line_of(learner, name, protocol(how), each)
            for name, how, each in zip(names, inferences, counts, strict=True)
        }
        record.add("test", learner.progress.step, weights=learner.progress.best_step, tests=tests)
    return None


def line_of(learner: Learner, name: str, words: str, counts: ImageCounts) -> dict[str, Any]:
    """What the record says of a protocol: its words, all scores with intervals, and the files with the rest.

    These are the counts of all rows and of each, what measures say in full, and their pictures.
    """
    place, total = learner.job.place, counts.total()
    rows = len(open_shards(str(learner.job.val)))
    judged = Judged.of(counts, rows, learner.job.classes)
    files = {"counts": (place.test(name), total), "image_counts": (place.image_counts(name), counts.entries)}
    paths = {k: str(Path(save_counts(path, what)).relative_to(place.path)) for k, (path, what) in files.items()}
    if judged.readings:
        write_json(place.measures(name), judged.pages())
    pictures = judged.draw(place.measures(name).parent, f"-{name}", words)
    drawn = [str(path.relative_to(place.path)) for path in pictures]
    return {"protocol": words, "rows": rows, **judged.numbers(), **paths, "pictures": drawn}


def told(learner: Learner, record: Record, beat: Callable[[], None]) -> Callable[[int], None]:
    """A beat that also notes every few seconds how far the scoring of this worker is; the screen shows it."""
    rows, done = len(open_shards(str(learner.job.val))), itertools.count(1)
    things = "images" if learner.world == 1 else "images of this worker's share"
    say = Progress(
        -(-rows // learner.world),
        things,
        lambda line: record.add("progress", learner.progress.step, text=f"test{line}"),
    )

    def both(images: int) -> None:
        beat()
        for _ in range(images):
            say.reach(next(done))

    return both
