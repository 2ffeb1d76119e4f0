"""The variants of all heads that the contract test runs, as a recipe would name them; sizes are small."""

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "fcn": {"name": "fcn", "channels": 16},
    "reconet": {"name": "reconet", "channels": 16, "rank": 4},
    "reconet-resample": {"name": "reconet", "channels": 16, "rank": 4, "resample": True},
    "reconet-gpm": {"name": "reconet", "channels": 16, "tgm_trm": False},
    "reconet-tensor": {"name": "reconet", "channels": 16, "rank": 4, "gpm": False},
}

# Parameters that rightly get no gradient: variant -> parts of their names, each with its reason.
EXEMPT: dict[str, tuple[str, ...]] = {}
