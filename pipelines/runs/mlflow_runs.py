"""Experiments and runs of MLflow: found, restored when deleted, created once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.runs.local_store import artifact_location
from pipelines.runs.mlflow_client import KEY, PARENT, send_params


def find_experiment(client: Any, name: str, uri: str, say: Callable[[str], None] = lambda text: None) -> str:
    """Id of an experiment, created when missing and restored when deleted; of a local store with artifacts next to it.

    Args:
        say: is told of a restored one.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=artifact_location(uri, name))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        say(f"the experiment {name!r} was deleted there; it is restored, with the runs that went with it")
    return found.experiment_id


def find_run(client: Any, run: str, say: Callable[[str], None] = lambda text: None) -> Any:
    """A run by its id, restored when deleted; None where the store does not have it, or no longer.

    Args:
        say: is told of a restored one.
    """
    try:
        found = client.get_run(run)
    except Exception as error:  # of MLflow, which only its client imports
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if found.info.lifecycle_stage == "deleted":
        experiment = client.get_experiment(found.info.experiment_id)
        if experiment.lifecycle_stage == "deleted":
            find_experiment(client, experiment.name, "", say)
        else:
            say(f"the run {found.info.run_name!r} was deleted there; it is restored, since it goes on")
        client.restore_run(run)
    return found


def create_run(
    client: Any,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    began: int | None = None,
) -> str:
    """A new run with its parameters, or the one that a server which died meanwhile had begun.

    Args:
        began: when it began, in ms, which may be long ago; None for now.

    Returns:
        Its id.
    """
    run = begun(client, experiment, name, tags)
    run = run or client.create_run(experiment, run_name=name, start_time=began, tags=dict(tags)).info.run_id
    send_params(client, run, params)
    return run


def begun(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> str | None:
    """Id of the unfinished run of that name and key or parent: created, but its id never reached this machine."""
    tag = next((tag for tag in (KEY, PARENT) if tag in tags), None)
    if tag is None:
        return None
    found = client.search_runs([experiment], f"tags.`{tag}` = '{tags[tag]}' and attributes.status = 'RUNNING'")
    return next((run.info.run_id for run in found if run.info.run_name == name), None)
