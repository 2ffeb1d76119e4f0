"""The splits that a stage reads, as MLflow's datasets."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.recipes.recipe import Stage
from pipelines.runs.mlflow_client import Shards
from pipelines.runs.results import About

USES = {"train": "training", "val": "validation"}  # the words of MLflow
COLUMNS = {"id": "string", "image": "binary", "mask": "binary", "height": "integer", "width": "integer"}
DIGITS = 12  # of the hash, as messages show it


def shards_of(about: About, stage: Stage) -> Iterator[Shards]:
    """The splits of a stage; the whole hash of each is in its facts."""
    for part, use in USES.items():
        name, uri = getattr(stage, part), about.params.get(f"shards.{part}")
        if not name or not uri:
            continue
        content = about.params[f"shards.{part}.hash"]
        facts = {"num_rows": about.params[f"shards.{part}.rows"], "num_classes": len(about.classes), "hash": content}
        yield Shards(
            use, short(uri), content[:DIGITS], kind(uri), uri,
            [{"name": key, "type": type_} for key, type_ in COLUMNS.items()],
            facts | dict(about.shards.get(part, {})) | {"classes": list(about.classes)},
        )  # fmt: skip


def short(uri: str) -> str:
    """BENCHMARK/SPLIT, the last two parts of a split's address."""
    return "/".join(uri.partition("?")[0].rstrip("/").split("/")[-2:])


def kind(uri: str) -> str:
    """MLflow's word for where shards are."""
    scheme, mark, _ = uri.partition("://")
    return scheme if mark else "local"
