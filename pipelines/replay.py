#!/usr/bin/env python
"""Send the record of a run or a study to MLflow: what a server that was away lacks, or all of it to another server.

The record in the folder is the truth; what MLflow has of it already is not sent again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import run

if TYPE_CHECKING:
    from pipelines.runs.store import Place

EXAMPLES = """\
examples:
  python -m pipelines.replay ~/context-heads/runs/NAME
  python -m pipelines.replay ~/context-heads/studies/NAME
  python -m pipelines.replay s3://BUCKET/FOLDER/runs/NAME
  python -m pipelines.replay ~/context-heads/runs/NAME --tracking http://127.0.0.1:5000
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a run or a study: OUTPUT/runs/NAME, OUTPUT/studies/NAME; URI of a run")
    parser.add_argument("--tracking", help="MLflow's address (default: the one that the run logged to)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from pipelines.base.errors import InputError
    from pipelines.runs.folder import RunFolder, StudyFolder
    from pipelines.runs.run import locked
    from pipelines.runs.store import in_bucket
    from pipelines.runs.where import is_bucket

    if is_bucket(args.run):
        with in_bucket(args.run) as place:
            told = send_run(place.folder, args.tracking, place)
        print(f"Look at it:  {told}")
        return
    folder = Path(args.run).expanduser().resolve()
    study = next((place for place in (folder, *folder.parents[1:2]) if StudyFolder(place).page.is_file()), None)
    if study is None and not (page := RunFolder(folder).recipe).is_file():
        raise InputError(
            f"{folder} is no run: it has no {page.name}. Runs are in OUTPUT/runs/NAME, studies in OUTPUT/studies/NAME"
        )
    with locked(study or folder):  # what trains sends its record itself
        told = send_study(study, args.tracking) if study else send_run(folder, args.tracking)
    print(f"Look at it:  {told}")


def send_run(folder: Path, tracking: str | None, place: Place | None = None) -> str:
    """Send what MLflow lacks of a run; returns what opens its page.

    Args:
        folder: of the run, or a copy of it.
        tracking: MLflow's address; None for the one that the run logged to.
        place: where the run is in a bucket.

    Raises:
        InputError: there is no run.
        SetupError: MLflow does not answer.
    """
    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import load_recipe
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.mlflow_client import answering
    from pipelines.runs.tracked import last_address
    from pipelines.runs.tracker import Tracker

    files = RunFolder(folder)
    if not files.recipe.is_file():
        raise InputError(f"{folder} is no run: it has no {files.recipe.name}")
    output, bring = (place.output, place.bring) if place else (folder.parents[1], lambda path: None)
    uri = tracking or last_address(files.tracking)
    tracker = Tracker(load_recipe(files.recipe), output, folder, uri, bring=bring)
    with answering(tracker.uri):
        tracker.connect()
        missing = tracker.undelivered()
        for name in missing:
            tracker.deliver(tracker.folder.stage(name))
            print(f"{name:>18}  sent")
        tracker.send_end(tracker.end_of_stages())
    print(f"{tracker.uri} has everything of {tracker.recipe.name}" + ("" if missing else ", and had it before"))
    return tracker.ui_command()


def send_study(folder: Path, tracking: str | None) -> str:
    """Send what MLflow lacks of a study and its trials; returns what opens its page.

    Raises:
        SetupError: MLflow does not answer.
    """
    from pipelines.studies.study_run import open_study, replay

    study = open_study(folder, tracking)
    sent = replay(study)
    print(
        f"{study.uri} has everything of {folder.name}" + (f": {sent} trial(s) sent" if sent else ", and had it before")
    )
    return study.ui_command()


if __name__ == "__main__":
    run(main)
