"""The end of a run: the best weights of its last stage as an MLflow model, which the tracker logs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipelines.base.errors import users_message
from pipelines.recipes.recipe import Recipe
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import final_weights


def pack_last(recipe: Recipe, folder: Path) -> None:
    """Write the MLflow model of the last stage; what keeps it from that costs a warning, never the run."""
    place = RunFolder(folder).stage(recipe.stages[-1].name)
    if not place.result.exists():
        return
    began = time.monotonic()
    try:
        from pipelines.serving.packing import pack_stage

        agreement = pack_stage(place)
    except Exception as error:
        why = users_message(error) or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(
            f"warning: the run is complete, but its MLflow model is not written: {why}\n"
            f"  python -m pipelines.export {final_weights(place)} --mlflow    writes and logs it later",
            file=sys.stderr,
        )
        return
    print(f"{'model':>18}  {place.model}, in {time.monotonic() - began:.0f} s; {agreement.lines()[0]}", flush=True)
