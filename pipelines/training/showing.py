"""The end of a stage: what the head of its best weights sees, as pictures and numbers."""

from __future__ import annotations

from collections.abc import Callable

from datasets.shards import Shards
from pipelines.base import pictures
from pipelines.base.files import replacing
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import shown_rows
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.record import Record
from pipelines.scoring.explaining import explain
from pipelines.scoring.head_figures import figures
from pipelines.scoring.measuring import measure, metrics
from pipelines.scoring.subject import Subject
from pipelines.training.learner import Learner

MEASURED = 50  # rows: the numbers are for a glance; `explain --measure` takes all


def show_best(learner: Learner, record: Record, beat: Callable[[], None]) -> None:
    """Draw the context maps of the stage's best weights on a few validation rows, and take the head's numbers.

    Only rank 0 does, as rows are few. What goes wrong here costs a note in the record, not the training, which is done.
    The model of the learner has the best weights afterwards.

    Args:
        learner: whose training is done.
        record: of the stage; it gets a line with the files and numbers.
        beat: called as often as there is progress.
    """
    job, recipe = learner.job, learner.job.recipe
    wanted = job.val is not None and recipe.explain and job.end >= job.steps  # a part of a training is not its end
    head = getattr(learner.shown, "head", None)  # of a segmentor
    if not wanted or learner.rank or not getattr(head, "gives_maps", False):
        return
    learner.shown.load_state_dict(Checkpoint.read(job.place.best, mapped=True).model)
    learner.shown.eval()
    try:
        files = draw(learner, open_shards(str(job.val)), beat)
        numbers = measure(learner.shown, str(job.val), 1, MEASURED, lambda done: beat())
    except Exception as error:  # whatever matplotlib, or a GPU without room, can raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        record.add("note", learner.progress.step, text=f"warning: nothing shows what the head sees: {first[0]}")
        return
    if files:
        record.add(
            "head", learner.progress.step, weights=learner.progress.best_step, rows=numbers["rows"], pictures=files,
            numbers=metrics(numbers),
        )  # fmt: skip


def draw(learner: Learner, shards: Shards, beat: Callable[[], None]) -> list[str]:
    """The figures of some rows, spread over the split; their files, from the stage's folder on."""
    job, files = learner.job, []
    for row in shown_rows(shards, job.recipe.explain):
        image, mask = shards.sample(row)
        seen = explain(learner.shown, job.recipe, Subject(shards.ids[row], image, mask), [])
        about = f"{job.recipe.head['name']}, stage {job.stage.name}, best weights, on {seen.subject.name}"
        beat()
        for name, figure in figures(seen, job.classes, job.palette, about).items():
            path = job.place.explained(pictures.safe_name(seen.subject.name), name)
            with replacing(path) as temporary:
                figure.savefig(temporary)
            files.append(str(path.relative_to(job.place.path)))
            beat()
    return files
