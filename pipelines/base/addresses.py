"""Paths and URIs: where they point, and that they hold no secret."""

from __future__ import annotations

import re

from datasets.storage import below

CURE = (
    "Leave it out of the address, and set the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)


def locate(root: str, name: str) -> str:
    """Where shards are: `name` itself when it is a URI or an absolute path, else below the root (a path or URI)."""
    return below(root, name)


def holds_secret(uri: str | None) -> bool:
    """Whether a URI has a user or password before its host; Google's `anonymous` is neither."""
    if not uri or "://" not in uri:
        return False
    kind, _, rest = uri.partition("://")
    user, at, _ = rest.split("/", 1)[0].rpartition("@")
    return bool(at) and not (kind in ("gs", "gcs") and user == "anonymous")


def hide_secret(uri: str) -> str:
    """The URI without what is before its host."""
    return re.sub(r"://[^/]*@", "://***@", uri)
