"""Models in MLflow: packed in a folder, logged to the run that they come from, registered under a name."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.base.errors import InputError
from pipelines.runs.folder import StageFolder
from pipelines.runs.mlflow_client import NOTE, TEXT_CHARS
from pipelines.runs.results import About, Result

RUNS = ("mlflow", "onnxruntime", "numpy")  # all that a packed model needs, at the versions that it was packed with
KIND = "semantic segmentation"
PAGE = "MLmodel"  # MLflow's name of what describes a model
VERSIONS = "mlflow.modelVersions"  # the tag of a logged model that its page reads
SCORE = "val/mIoU"
ABOUT = ("shards.train", "shards.train.hash", "shards.val", "shards.val.hash", "cost.parameters", "cost.macs")
DIGITS = 12  # of a hash: MLflow takes up to 36


def pack(folder: Path, script: Path, files: Mapping[str, Path], example: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write a folder that MLflow loads and serves in a process without this project.

    Nothing is pickled: MLflow copies `script` and executes it. What it gives for the example is compared with the
    signature as the folder is written.

    Args:
        folder: is made, whole or not at all.
        script: calls `mlflow.models.set_model`.
        files: what it opens, by name.
        example: images RGB uint8 (B, H, W, 3).
        about: the model's metadata.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for setting in (
        "MLFLOW_UV_AUTO_DETECT",
        "MLFLOW_LOG_UV_FILES",
    ):  # else a lock file of the current folder goes along,
        os.environ[setting] = "false"  # and the model is served from all that this project needs
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    for name in ("mlflow.pyfunc", "mlflow.utils.environment"):  # what is checked, and that pip has no version
        logging.getLogger(name).setLevel(logging.ERROR)
    images, classes = np.dtype(np.uint8), np.dtype(np.uint8)
    signature = ModelSignature(
        Schema([TensorSpec(images, (-1, -1, -1, 3))]), Schema([TensorSpec(classes, (-1, -1, -1))])
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as draft:
        place = Path(draft) / folder.name
        pyfunc.save_model(
            path=str(place), python_model=str(script.resolve()), signature=signature, input_example=example,
            artifacts={name: str(path.resolve()) for name, path in files.items()}, metadata=dict(about),
            pip_requirements=[f"{name}=={version(name)}" for name in RUNS],
        )  # fmt: skip
        for cache in place.rglob("__pycache__"):
            shutil.rmtree(cache)
        forget_origin(place / PAGE)
        shutil.rmtree(folder, ignore_errors=True)
        place.replace(folder)


def forget_origin(path: Path) -> None:
    """Take the folders of the machine that packed it out of a model's page: MLflow needs only the names."""
    from mlflow.models import Model

    page = Model.load(str(path))
    flavor = page.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for file in flavor["artifacts"].values():
        file["uri"] = file["path"]
    page.save(str(path))


def send_stage_model(client: Any, run: str, place: StageFolder) -> str:
    """Log a stage's packed model to its run, with the scores of its weights and what they were measured on.

    Returns:
        The model's id. One that a driver which died meanwhile had begun is gone on with.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    done, about = Result.read(place.result), About.read(place.about)
    name = f"{place.path.parent.name}-{place.path.name}"
    step = done.steps if done.best_step is None else done.best_step
    params = {"stage": done.stage, "step": str(step), "protocol": done.protocol}
    model = find_model(client, run, name, params | {k: str(v) for k, v in about.params.items() if k in ABOUT})
    if str(model.status) == "READY":
        return model.model_id
    upload(client, model, run, place.model)
    client.log_artifact(run, str(place.card), place.model.name)
    of = dataset_of(about) | {"model_id": model.model_id}
    # of the time of the stage's own point: MLflow keeps a point that is sent twice once
    scores = [p for p in client.get_metric_history(run, SCORE) if p.step == step]
    client.log_batch(run, metrics=[Metric(p.key, p.value, p.timestamp, p.step, **of) for p in scores])
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step=step)])
    client.set_logged_model_tags(model.model_id, {NOTE: place.card.read_text()[:TEXT_CHARS]})
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def has_model(client: Any, model: str) -> bool:
    """Whether a store has a logged model, and has not deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_logged_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def find_model(client: Any, run: str, name: str, params: Mapping[str, str]) -> Any:
    """The model of a run, made where it is new; MLflow takes no / : . in its name."""
    experiment = client.get_run(run).info.experiment_id
    clean = re.sub(r"[^\w-]", "-", name)
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}' AND name = '{clean}'")
    return found[0] if found else client.create_logged_model(experiment, clean, run, {}, dict(params), KIND)


def upload(client: Any, model: Any, run: str, folder: Path) -> None:
    """Upload a packed model, its page with the ids that MLflow gave it."""
    from mlflow.models import Model

    client.log_model_artifacts(model.model_id, str(folder))
    page = Model.load(str(folder / PAGE))
    page.run_id, page.model_id, page.model_uuid = run, model.model_id, model.model_id
    page.artifact_path = model.artifact_location
    with tempfile.TemporaryDirectory() as draft:
        page.save(f"{draft}/{PAGE}")
        client.log_model_artifact(model.model_id, f"{draft}/{PAGE}")


def dataset_of(about: About) -> dict[str, str]:
    """What a stage is scored on, as MLflow names it: BENCHMARK/SPLIT and the beginning of the rows' hash."""
    uri, digest = about.params.get("shards.val"), about.params.get("shards.val.hash")
    if not uri or not digest:
        return {}
    return {"dataset_name": "/".join(str(uri).rstrip("/").split("/")[-2:]), "dataset_digest": str(digest)[:DIGITS]}


def new_version(client: Any, name: str, model: str, run: str, note: str) -> Any:
    """A version of a registered model, which the logged model's page names; a server notes that by itself."""
    version = client.create_model_version(
        name, f"models:/{model}", run, description=note[:TEXT_CHARS], model_id=model
    )  # fmt: skip
    noted = json.loads(client.get_logged_model(model).tags.get(VERSIONS, "[]"))
    entry = {"name": name, "version": version.version}
    if entry not in noted:
        client.set_logged_model_tags(model, {VERSIONS: json.dumps([*noted, entry])})
    return version


def register(client: Any, uri: str, name: str, model: str, run: str, aliases: Sequence[str], note: str) -> str:
    """Register a logged model as the next version of a name; one that is a version already stays that one.

    Args:
        client: of the store.
        uri: its address, which MLflow's own registry asks for by itself.
        name: created where it is new.
        model: id of the logged model.
        run: that it comes from.
        aliases: names that move to this version.
        note: describes the version.

    Returns:
        The version.

    Raises:
        InputError: MLflow does not take the name or an alias.
    """
    from mlflow.exceptions import MlflowException

    try:
        with registry_at(uri):
            return next_version(client, name, model, run, aliases, note)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise InputError(f"--register {name} --alias {' '.join(aliases)}: {error.message}") from error
        raise


@contextlib.contextmanager
def registry_at(uri: str) -> Iterator[None]:
    """MLflow's own registry at an address: it asks the process' settings, which it also writes to the environment."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before or "")
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)


def next_version(client: Any, name: str, model: str, run: str, aliases: Sequence[str], note: str) -> str:
    """See `register`."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.source == f"models:/{model}"]
    version = versions[0] if versions else new_version(client, name, model, run, note)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)
