"""A study from its checks to its table: everything found wrong before the first trial, then trials, then files."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.base.addresses import locate
from pipelines.base.errors import RunFailed, Stopped
from pipelines.base.files import write_text
from pipelines.cluster.inside_ray import start_actors
from pipelines.cluster.nodes import check_nodes, output_folder
from pipelines.cluster.session import ray_cluster
from pipelines.cluster.sizes import joins, machine, placed, possible, totals
from pipelines.driver.checks import check_known_share, check_share
from pipelines.driver.estimate import check_gpus
from pipelines.driver.run import SAMPLE, say_taken, store_bytes
from pipelines.driver.start import start_of
from pipelines.recipes.reading import load_recipe, make_recipe
from pipelines.recipes.recipe import Recipe, splits_of
from pipelines.runs.folder import StudyFolder
from pipelines.runs.mlflow_client import default_uri
from pipelines.runs.mlflow_faults import check_address
from pipelines.runs.run import check_views, keep_recipe, locked, settle
from pipelines.studies.fair import check_fair, check_models, check_samples, corners, expand
from pipelines.studies.files import Numbers, protocol_of, published_of, write_files
from pipelines.studies.population import Population
from pipelines.studies.searching import Listed, Searched, Source
from pipelines.studies.study import StudyPlan, Trial, to_yaml
from pipelines.studies.tracker import StudyTracker
from pipelines.studies.trial import TrialContext, TrialEnd, ended
from pipelines.studies.tuning import fit_trials, room, slots_of, spare, stoppable_trials
from pipelines.studies.watch import Watch


@dataclass(frozen=True)
class Checked:
    """A study that has passed all checks: its trials (none yet of a search), the root of their shards, the most classes
    of a stage, and what its table says of it."""

    plan: StudyPlan
    base: Recipe
    trials: list[Trial]
    root: str
    classes: int
    protocol: str | Mapping[str, str]
    numbers: Numbers
    caption: str


def run_study(plan: StudyPlan, at_once: int | None = None, confidence: float = 0.95) -> Path:
    """Run what has not ended of a study, print its table, write it with its pictures, send all of it to MLflow.

    Args:
        at_once: trials at the same time; None for as many as the cluster carries.
        confidence: of the intervals.

    Returns:
        The study's folder.

    Raises:
        InputError, DataError, SetupError: bad input, found before a trial starts.
        RunFailed: some trials failed for good; the table of the others is there.
        Stopped: SIGTERM or Ctrl-C ended it, resumable.
    """
    trials = expand(plan)
    check_models(plan, trials)
    check_fair(plan, trials)
    numbers = published_of(plan)
    base = make_recipe(plan.page | {"seed": plan.study.seeds[0], "name": "base"})
    output = output_folder(base.output)
    check_address(base.tracking or default_uri(output))
    folder = output / "studies" / plan.name
    with locked(folder), contextlib.ExitStack() as session:
        for trial in trials:
            settle(trial.recipe, StudyFolder(folder).trial(trial.name).path)
        check_trials(folder)
        recipes = (base, *(trial.recipe for trial in trials))
        for recipe in {repr((r.weights, r.backbone, r.head)): r for r in recipes}.values():
            say_taken(start_of(recipe, output))
        for recipe in (base, *(trial.recipe for trial in trials)):
            check_known_share(recipe)
        checked = None if base.data == SAMPLE else check(plan, base, trials, numbers, base.data)
        slots = at_once or slots_of(base.workers, *machine())
        session.enter_context(
            ray_cluster(base.workers, partial(store_bytes, base), slots, lambda sizes: start_actors())
        )
        if checked is None:
            from pipelines.shards.sample import sample_shards

            checked = check(plan, base, trials, numbers, str(sample_shards(output, splits_of(base))))
        # in a local session Ray's CPUs are bookkeeping, and the machine's cores decide
        at_once = at_once if os.environ.get("RAY_ADDRESS") else slots
        sizes, at_once = room(base.workers, **totals(), wanted=at_once)
        if joins():
            sizes = placed(sizes, possible(), at_once)
        for trial in checked.trials:
            check_share(trial.recipe, sizes)
            check_gpus(trial.recipe, checked.classes, sizes)
        splits = [locate(checked.root, uri) for recipe in (base, *(trial.recipe for trial in checked.trials))
                  for stage in recipe.stages for uri in (stage.train, stage.val) if uri]  # fmt: skip
        check_nodes(folder, base.tracking or default_uri(output), splits)
        place = TrialContext(folder, checked.root, output, sizes)
        write_text(StudyFolder(folder).page, to_yaml(plan))
        failed = run_trials(checked, place, at_once, confidence)
    if failed:
        raise RunFailed(
            f"{len(failed)} trial(s) failed for good: {', '.join(failed)}. Why is in "
            f"{StudyFolder(folder).trial('NAME').ended}; "
            "the same command tries them again, from their last checkpoints."
        )
    return folder


def check_trials(folder: Path) -> None:
    """Make sure that no trial would go on with other views than it saw.

    Raises:
        InputError: as `check_views`.
    """
    for trial in StudyFolder(folder).trials():
        if trial.recipe.exists():
            end = ended(load_recipe(trial.recipe), trial.path)
            if end is None or end.status == "failed":
                check_views(trial.path)


def check(plan: StudyPlan, base: Recipe, trials: list[Trial], numbers: Numbers, root: str) -> Checked:
    """Open the shards of all variants, or of one point of a search."""
    seen = trials
    if plan.study.search:
        point = next(corners(plan.study.search))
        seen = [Trial("corner", "corner", plan.study.seeds[0], plan.recipe("corner", point, plan.study.seeds[0]))]
    planned, caption = check_samples(plan, seen, root)
    protocols = {trial.variant: protocol_of(planned[trial.variant], trial) for trial in seen}
    protocol = protocols["corner"] if plan.study.search else protocols
    classes = max(len(stage.train.classes) for stages in planned.values() for stage in stages)
    return Checked(plan, base, trials, root, classes, protocol, numbers, caption)


def run_trials(checked: Checked, place: TrialContext, at_once: int, confidence: float) -> list[str]:
    """Run what is left, then table and files; returns the names of the trials that failed for good."""
    from pipelines.studies.searcher import Queue  # brings Ray

    tracker = StudyTracker(checked.plan, checked.base, place)
    source, before = source_of(checked, place)
    for trial in before:
        tracker.add(trial)
    status, asked = "FAILED", None
    try:
        with tracker.sending():
            if left := source.left():
                print(f"{checked.plan.name}: {left} trial(s) to run, {at_once} at once, {len(before)} ended before; "
                      f"{place.folder}", flush=True)  # fmt: skip
                cores = totals()["cores"] if joins() else machine()[0]
                queue = Queue(source, at_once, spare(place.sizes, at_once, cores))
                watch = Watch(place, lambda name: look_up(checked, place, name), tracker, left, at_once)
                with stoppable_trials(place, queue, watch) as told:
                    fit_trials(place, queue, left, at_once, checked.plan.study.stop_early, watch, before)
                    asked = told()
        status = "KILLED" if asked else "FINISHED"
    finally:
        trials = trials_of(checked, place)
        files, best = write_files(
            checked.plan, place, trials, checked.protocol, checked.numbers, checked.caption, confidence
        )
        tracker.close(files, best, status)
    if asked:
        code = getattr(signal, asked).value + 128
        raise Stopped(f"{asked}: the study stopped, its trials wrote checkpoints; the same command goes on", code)
    print(f"\n{place.study.table('html')}\nLook at it:  {tracker.ui_command()}")
    ends = {trial.name: ended(trial.recipe, place.trial(trial.name)) for trial in trials}
    return [name for name, end in ends.items() if end and end.status == "failed"]


def trials_of(checked: Checked, place: TrialContext) -> list[Trial]:
    """The study's trials; of a search those that it has drawn."""
    if checked.plan.study.search is None:
        return checked.trials
    known = [trial.path.name for trial in place.study.trials() if trial.point.exists()]
    return [look_up(checked, place, name) for name in known]


def source_of(checked: Checked, place: TrialContext) -> tuple[Source, list[Trial]]:
    """What is still to run, and the trials that have ended; those that failed are to run again."""
    if checked.plan.study.search:
        clear_failed(place, [trial.path.name for trial in place.study.trials()])
        search = checked.plan.study.search
        source = (Population if search.algorithm == "pbt" else Searched)(checked.plan, search, place)
        known = [look_up(checked, place, name) for name in source.names if source.known(name)]
        return source, [trial for trial in known if ended(trial.recipe, place.trial(trial.name))]
    for trial in checked.trials:
        place.trial(trial.name).mkdir(parents=True, exist_ok=True)
        keep_recipe(trial.recipe, place.trial(trial.name))
    clear_failed(place, [trial.name for trial in checked.trials])
    before = [trial for trial in checked.trials if ended(trial.recipe, place.trial(trial.name))]
    names = [trial.name for trial in checked.trials if trial not in before]
    return Listed(names), before


def clear_failed(place: TrialContext, names: Sequence[str]) -> None:
    """Forget that trials failed, so that they are tried again."""
    for name in names:
        note = place.files(name).ended
        if note.exists() and TrialEnd.read(note).status == "failed":
            note.unlink()


def look_up(checked: Checked, place: TrialContext, name: str) -> Trial:
    """A trial by its name; one that a search drew from its folder."""
    for trial in checked.trials:
        if trial.name == name:
            return trial
    recipe = load_recipe(place.files(name).recipe)
    return Trial(name, name, recipe.seed, recipe)
