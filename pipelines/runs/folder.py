"""The names of all files of a run, a stage and a study; nobody else spells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "step-*.pt"
HANGS = "hang-worker*.txt"
LEFT_HERE = {(".", "ray")}  # folders of a run, below which one, that never leave this machine


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}.pt"


@dataclass(frozen=True)
class StageFolder:
    """The files of one stage of a run."""

    path: Path

    @property
    def about(self) -> Path:
        """What is known before the stage starts."""
        return self.path / "about.json"

    @property
    def record(self) -> Path:
        """What happens in it, a line per event."""
        return self.path / "record.jsonl"

    @property
    def system(self) -> Path:
        """What the machine does meanwhile."""
        return self.path / "system.jsonl"

    @property
    def outcome(self) -> Path:
        """What the workers return; with it their part of the stage ends."""
        return self.path / "outcome.json"

    @property
    def result(self) -> Path:
        """What the driver makes of it; with it the stage ends."""
        return self.path / "done.json"

    @property
    def best(self) -> Path:
        """The weights with the best score."""
        return self.path / "best.pt"

    @property
    def model(self) -> Path:
        """The best weights as MLflow's folder: a program, its card, what runs it."""
        return self.path / "model"

    @property
    def card(self) -> Path:
        """The card of that model."""
        return self.model / "artifacts" / "card.md"

    @property
    def checkpoints(self) -> Path:
        """The folder from which a stage continues."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / step_name(step)

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to go on with."""
        return self.result.exists() or any(self.checkpoints.glob(CHECKPOINTS))

    def counts(self, step: int) -> Path:
        """The confusion counts of a validation."""
        return self.path / "validation" / f"step-{step:08d}.npy"

    def test(self, protocol: str) -> Path:
        """The confusion counts of the best weights under a protocol."""
        return self.path / "test" / f"{protocol}.npy"

    def image_counts(self, protocol: str) -> Path:
        """The same of each validation row."""
        return self.path / "test" / f"{protocol}-images.npy"

    def measures(self, protocol: str) -> Path:
        """What measures say of the best weights under a protocol."""
        return self.path / "test" / f"{protocol}-measures.json"

    def explained(self, row: str, figure: str) -> Path:
        """A picture of what the head of the best weights sees in a validation row."""
        return self.path / "explain" / row / f"{figure}.png"

    def overlay(self, name: str, step: int) -> Path:
        """The picture of a validation row."""
        return self.path / "overlays" / name / f"step-{step:08d}.png"

    def hang(self, rank: int) -> Path:
        """Where a worker was when it made no progress."""
        return self.path / f"hang-worker{rank}.txt"

    def hangs(self) -> list[Path]:
        """Those of workers that were ended for it."""
        return [path for path in sorted(self.path.glob(HANGS)) if path.stat().st_size]


def commit_of(name: str) -> int:
    """In which turn a file of a run becomes visible elsewhere: a later one relies on all before it.

    Pictures, notes and the best weights; records, which name pictures; checkpoints, which go on behind a line of the
    record; the outcome, with which the workers' part ends; the result, with which the stage ends.

    Args:
        name: the file's path from the run's folder on.
    """
    path = Path(name)
    stage = StageFolder(path.parent)
    if path in (stage.outcome, stage.result):
        return 3 if path == stage.outcome else 4
    if path.suffix == ".jsonl":
        return 1
    return 2 if path.parent.name == stage.checkpoints.name else 0


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, which is a chain of stages; a study's trial is one too."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.path / ".lock"

    @property
    def lease(self) -> Path:
        """Who trains into a bucket, where no lock is."""
        return self.path / "lease.json"

    @property
    def stop(self) -> Path:
        """The signal that asks the workers to end."""
        return self.path / "stop.txt"

    @property
    def resize(self) -> Path:
        """Asks the workers to end with a checkpoint, so that others go on."""
        return self.path / "resize.txt"

    @property
    def fault(self) -> Path:
        """Why a worker refused its input."""
        return self.path / "fault.txt"

    @property
    def error(self) -> Path:
        """What ended the workers for good."""
        return self.path / "error.txt"

    @property
    def tracking(self) -> Path:
        """The runs in MLflow, and how much of the record they have."""
        return self.path / "mlflow.json"

    @property
    def origin(self) -> Path:
        """Who began it, by which command, with which code, versions and machine."""
        return self.path / "origin.json"

    @property
    def machines(self) -> Path:
        """On which machines its workers were, a line for each start of them."""
        return self.path / "machines.jsonl"

    @property
    def timeline(self) -> Path:
        """Where the seconds before and between the stages went."""
        return self.path / "timeline.json"

    @property
    def ray(self) -> Path:
        """The folder that Ray Train writes to."""
        return self.path / "ray"

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage."""
        return StageFolder(self.path / name)

    def stages(self) -> list[StageFolder]:
        """Those that have begun, by name."""
        found = [StageFolder(path) for path in sorted(self.path.glob("*"))]
        return [stage for stage in found if stage.record.exists() or stage.checkpoints.exists()]

    @property
    def ended(self) -> Path:
        """How a trial ended before its last step."""
        return self.path / "ended.json"

    @property
    def point(self) -> Path:
        """Where a trial is in the space of a search."""
        return self.path / "point.json"

    @property
    def part(self) -> Path:
        """Which part of the steps a trial trains, and whose weights it starts from."""
        return self.path / "part.json"

    @property
    def marks(self) -> Path:
        """When the parts of a trial's life began."""
        return self.path / "timeline.jsonl"


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study."""

    path: Path

    @property
    def page(self) -> Path:
        """The resolved study."""
        return self.path / "study.yaml"

    @property
    def tracking(self) -> Path:
        """Its run in MLflow."""
        return self.path / "mlflow.json"

    @property
    def origin(self) -> Path:
        """Who began it, by which command, with which code, versions and machine."""
        return self.path / "origin.json"

    @property
    def plots(self) -> Path:
        """The folder of its pictures."""
        return self.path / "plots"

    @property
    def tune(self) -> Path:
        """The folder that Ray Tune writes to."""
        return self.path / "tune"

    def table(self, suffix: str) -> Path:
        """The table as `txt`, `md` or `html`."""
        return self.path / f"table.{suffix}"

    def trial(self, name: str) -> RunFolder:
        """The folder of a trial."""
        return RunFolder(self.path / "trials" / name)

    def trials(self) -> list[RunFolder]:
        """All that there are, by name."""
        return [RunFolder(path) for path in sorted((self.path / "trials").glob("*"))]
