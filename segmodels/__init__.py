"""Segmentation models: backbones, context heads, losses, schedules, scores, inference and cost.

`segmodels.load("best.pt").predict("street.jpg")` is all that a user of a trained model needs; see `loading.py`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`load`, looked up on its first use: what only builds heads need not import it."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from segmodels.loading import load

    return load
