#!/usr/bin/env python
"""Send a run's record to MLflow: what a server that was away lacks, or all of it to another server.

The record in the run's folder is the truth; what MLflow has of it already is not sent again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import run

EXAMPLES = """\
examples:
  python -m pipelines.replay ~/context-heads/runs/NAME
  python -m pipelines.replay ~/context-heads/runs/NAME --tracking http://127.0.0.1:5000
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run: OUTPUT/runs/NAME")
    parser.add_argument("--tracking", help="MLflow's address (default: the one that the run logged to)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    import json

    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import load_recipe
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.run import locked
    from pipelines.runs.tracker import Tracker

    folder = args.run.expanduser().resolve()
    files = RunFolder(folder)
    if not files.recipe.is_file():
        raise InputError(f"{folder} is no run: it has no {files.recipe.name}. Runs are in OUTPUT/runs/NAME")
    recipe = load_recipe(files.recipe)
    with locked(folder):  # a run that trains sends its record itself
        known = json.loads(files.tracking.read_text())["uri"] if files.tracking.exists() else None
        tracker = Tracker(recipe, folder.parents[1], folder, args.tracking or known)
        missing = tracker.undelivered()
        done = [stage.name for stage in recipe.stages if files.stage(stage.name).result.exists()]
        for name in missing:
            tracker.deliver(files.stage(name))
            print(f"{name:>18}  sent")
        tracker.settle("FINISHED" if len(done) == len(recipe.stages) else "KILLED")
    print(f"{tracker.uri} has everything of {recipe.name}" + ("" if missing else ", and had it before"))
    print(f"Look at it:  {tracker.ui_command()}")


if __name__ == "__main__":
    run(main)
