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

from pipelines.door import run

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

    from pipelines.recipe import RecipeError, load_recipe
    from pipelines.runs import locked
    from pipelines.tracking import Tracker

    folder = args.run.expanduser().resolve()
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} is no run: it has no recipe.yaml. Runs lie in OUTPUT/runs/NAME")
    recipe = load_recipe(folder / "recipe.yaml")
    with locked(folder):  # a run that trains sends its record itself
        known = json.loads((folder / "mlflow.json").read_text())["uri"] if (folder / "mlflow.json").exists() else None
        tracker = Tracker(recipe, folder.parents[1], folder, args.tracking or known)
        missing = tracker.undelivered()
        done = [stage.name for stage in recipe.stages if (folder / stage.name / "done.json").exists()]
        for name in missing:
            tracker.deliver(folder / name)
            print(f"{name:>18}  sent")
        tracker.settle("FINISHED" if len(done) == len(recipe.stages) else "KILLED")
    print(f"{tracker.uri} has everything of {recipe.name}" + ("" if missing else ", and had it before"))
    print(f"Look at it:  {tracker.ui_command()}")


if __name__ == "__main__":
    run(main)
