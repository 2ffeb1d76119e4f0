"""A study before anything is taken: its trials, what each needs, and every reason why one would fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.base.text import duration
from pipelines.cluster.nodes import output_folder
from pipelines.cluster.sizes import in_short, machine
from pipelines.driver.checks import check_share
from pipelines.driver.dry_run import check_start, expected, images_left, precisions, shards_of
from pipelines.driver.estimate import GIB, check_memory, estimate
from pipelines.driver.outlook import measured_speed, possible_speed
from pipelines.driver.planned import PlannedStage, plan_stages
from pipelines.driver.reasons import Reasons
from pipelines.driver.room import Room, check_gpus_named, room_of
from pipelines.recipes.reading import make_recipe
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.runs.folder import StudyFolder
from pipelines.runs.mlflow_client import default_uri
from pipelines.runs.mlflow_faults import check_address
from pipelines.runs.results import lined
from pipelines.runs.run import settle
from pipelines.studies.fair import check_fair, check_models, check_samples, corners, expand
from pipelines.studies.files import published_of
from pipelines.studies.study import StudyPlan, Trial
from pipelines.studies.trial import ended
from pipelines.studies.tuning import slots_of
from segmodels.gpus import known_gpu


def dry_run_study(plan: StudyPlan, gpus: Sequence[str] = (), at_once: int | None = None) -> None:
    """Print what a study would run. Nothing is written or started, see `driver.dry_run.dry_run`.

    Args:
        gpus: names of GPUs; the first is planned with instead of those that are there.
        at_once: trials at the same time; None for as many as the machines carry.

    Raises:
        InputError: a trial would fail; the message has every reason.
    """
    check_gpus_named(gpus)
    reasons = Reasons()
    trials = trials_of(plan, reasons)
    base = make_recipe(plan.page | {"seed": plan.study.seeds[0], "name": "base"})
    output = output_folder(base.output)
    folder = output / "studies" / plan.name
    print(f"{plan.name}: what it would do; nothing is started, nothing is written", flush=True)
    look(plan, trials, base, output, reasons)
    room = room_of(base, gpus, reasons)
    rows, seconds, images = [], 0.0, 0
    with shards_of(base, output) as root:
        if not plan.study.search:
            with reasons.guard():
                check_samples(plan, trials, root)
        for variant in dict.fromkeys(trial.variant for trial in trials):
            own = [trial for trial in trials if trial.variant == variant]
            planned = stages_of(own[0], root, reasons)
            left = [trial for trial in own if not ended(trial.recipe, StudyFolder(folder).trial(trial.name).path)]
            row, each = row_of(own[0], planned, room, reasons)
            rows.append([variant, f"{len(own) - len(left)} of {len(own)}", *row])
            seconds += len(left) * each
            images += sum(images_left(planned, StudyFolder(folder).trial(t.name).path, t.recipe.batch) for t in left)
    head = ["variant", "trials done", "M parameters", "steps", "GiB at peak", "TFLOP/step", "hours by roofline"]
    print("\n" + "\n".join(lined(head, rows, range(1, 7))))
    slots = at_once or slots_of(base.workers, *((machine()[0], len(gpus)) if gpus else machine()))
    print(f"\neach trial {in_short(room.sizes) if room.sizes else 'finds no place'}, by {room.source}; {slots} at once")
    found = measured_speed(base, StudyFolder(folder).trial("base").path)
    print(f"time       {expected(found, images) if found else by_roofline(seconds, slots)}")
    print(f"writes     {folder}; numbers to {base.tracking or default_uri(output)}")
    if plan.study.search:
        print(f"search     {plan.study.search.trials} points of it; shown are the corners of its space")
    reasons.refuse(plan.name)
    print("\nnothing speaks against it")


def trials_of(plan: StudyPlan, reasons: Reasons) -> list[Trial]:
    """The trials, or one for each corner of a search's space."""
    if not plan.study.search:
        return expand(plan, reasons.guard)
    seed, trials = plan.study.seeds[0], dict[str, Trial]()
    for point in corners(plan.study.search):
        name = ", ".join(f"{key}={value}" for key, value in point.items())
        with reasons.guard():
            trials[name] = Trial(name, name, seed, plan.recipe("corner", point, seed))
    return list(trials.values())


def look(plan: StudyPlan, trials: Sequence[Trial], base: Recipe, output: Path, reasons: Reasons) -> None:
    """The checks that a study makes before Ray starts, but for those of shards."""
    variants = [] if plan.study.search else list(trials)
    with reasons.guard():
        check_models(plan, variants)
    with reasons.guard():
        check_fair(plan, variants)
    with reasons.guard():
        published_of(plan)
    with reasons.guard():
        check_address(base.tracking or default_uri(output))
    for trial in variants:
        with reasons.guard():
            settle(trial.recipe, StudyFolder(output / "studies" / plan.name).trial(trial.name).path)
    for recipe in {repr(recipe.backbone): recipe for recipe in (base, *(trial.recipe for trial in trials))}.values():
        with reasons.guard():
            check_start(recipe, output)


def stages_of(trial: Trial, root: str, reasons: Reasons) -> list[PlannedStage]:
    """The stages of a variant; what is wrong with their shards is said with its name."""
    told = Reasons()
    planned = plan_stages(trial.recipe, root, guard=told.guard)
    for message in told.found:
        reasons.add(f"variant {trial.variant!r}: {message}")
    return planned


def row_of(trial: Trial, planned: Sequence[PlannedStage], room: Room, reasons: Reasons) -> tuple[list[str], float]:
    """What a trial of a variant needs, and its seconds by the roofline of the first GPU that is known."""
    from pipelines.recipes.model import meta_model

    recipe, classes = trial.recipe, max((len(plan.train.classes) for plan in planned), default=0)
    steps = sum(plan.steps for plan in planned)
    unknown = ["?", f"{steps:,}", "?", "?", "–"], 0.0
    if not classes or room.sizes is None:
        return unknown
    told = Reasons()
    with told.guard():
        check_share(recipe, room.sizes)
        check_memory(recipe, classes, room.sizes, room.gpus[:1])
    for message in told.found:
        reasons.add(f"variant {trial.variant!r}: {message}")
    try:
        parameters = sum(p.numel() for p in meta_model(recipe, classes).parameters())
        if recipe.task != SEGMENTATION:  # whose steps are not estimated
            return [f"{parameters / 1e6:.1f}", *unknown[0][1:]], 0.0
        cost = estimate(recipe, classes, max(1, room.sizes.count), min(precisions(recipe, room)))
    except ValueError:  # said by check_models or check_share
        return unknown
    gpu = next((gpu for name, _ in room.gpus if (gpu := known_gpu(name))), None)
    seconds = steps * recipe.batch / possible_speed(cost, recipe, gpu).images_per_s if gpu else 0.0
    hours = f"{seconds / 3600:.1f}" if gpu else "–"
    row = [f"{parameters / 1e6:.1f}", f"{steps:,}", f"{cost.peak / GIB:.2f}", f"{cost.flops / 1e12:.3g}", hours]
    return row, seconds


def by_roofline(seconds: float, slots: int) -> str:
    """How long the trials take by their rooflines."""
    if not seconds:
        return "unknown: name a GPU with --gpu, or let one trial run"
    return f"{duration(seconds / slots)} without validation, by the roofline of the first GPU"
