"""A run before anything is taken: what it would do, need and write, and every reason why it would fail."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.base.text import duration
from pipelines.cluster.gpus import Found
from pipelines.cluster.sizes import in_short, joins
from pipelines.driver.checks import check_model, check_share
from pipelines.driver.estimate import GIB, check_memory, estimate, fits, precision_on
from pipelines.driver.opening import warn_without_validation
from pipelines.driver.outlook import Speed, done_steps, measured_speed, possible_speed
from pipelines.driver.places import check_places, places
from pipelines.driver.planned import PlannedStage, plan_stages
from pipelines.driver.reasons import Reasons
from pipelines.driver.room import Room, check_gpus_named, room_of
from pipelines.driver.run import say_taken
from pipelines.driver.start import start_of
from pipelines.driver.weights import HUB, TRUNK, WHOLE, Weights, look_at
from pipelines.recipes.recipe import Recipe, micro_batch, splits_of
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.runs.folder import RunFolder
from pipelines.runs.mlflow_client import default_uri
from pipelines.runs.mlflow_faults import check_address
from pipelines.runs.results import finished, lined
from pipelines.runs.run import check_views, settle
from pipelines.runs.where import is_bucket, local_output
from segmodels.gpus import STEP, known_gpu
from segmodels.step_cost import StepCost

NOWHERE = Path(tempfile.gettempdir()) / "no run is here"  # one in a bucket is not looked at
ASSUMED = 21  # classes where no shards tell them


def dry_run(recipe: Recipe, gpus: Sequence[str] = ()) -> None:
    """Print the plan of a run. Nothing is written, no Ray session starts; a cluster of RAY_ADDRESS is asked, and left.

    Args:
        gpus: names of GPUs: the first is planned with instead of those that are there, others are set beside it.

    Raises:
        InputError: it would fail; the message has every reason.
    """
    check_gpus_named(gpus)
    reasons = Reasons()
    output = local_output(recipe.output)
    folder = (NOWHERE if is_bucket(recipe.output) else output / "runs") / str(recipe.name)
    print(f"{recipe.name}: what it would do; nothing is started, nothing is written", flush=True)
    warn_without_validation(recipe)
    planned = look(recipe, output, folder, reasons)
    room = room_of(recipe, gpus, reasons)
    classes = max((len(plan.train.classes) for plan in planned), default=0)
    show_stages(recipe, planned, folder)
    costs = show_workers(recipe, room, room.gpus[:1] if gpus else room.gpus, classes, reasons)
    show_times(recipe, planned, folder, room, costs, bool(gpus))
    with reasons.guard():
        print("\n" + "\n".join(lined(["what", "where", "bytes"], places(recipe, output, planned))))
    if finished(recipe, folder):
        print(f"\n{recipe.name} is finished: there is nothing to do. `name=OTHER` trains again")
    reasons.refuse(str(recipe.name))
    print("\nnothing speaks against it" + told_of_nodes() + told_of_bucket(recipe))


def told_of_nodes() -> str:
    """What no dry run can know."""
    return "; what only its nodes can tell (whether each sees shards and output) is looked at when it starts" * joins()


def told_of_bucket(recipe: Recipe) -> str:
    """That a run which is in its bucket already was not looked at."""
    return "; whether the bucket takes files, and holds a part of this run, is seen at the start" * is_bucket(
        recipe.output
    )


def look(recipe: Recipe, output: Path, folder: Path, reasons: Reasons) -> list[PlannedStage]:
    """The checks that a run makes before Ray starts, all of them; returns the stages that can be planned."""
    with reasons.guard():
        check_model(recipe)
    with reasons.guard():
        check_address(recipe.tracking or default_uri(output))
    with reasons.guard():
        settle(recipe, folder)
    with reasons.guard():
        check_views(folder)
    start = None
    with reasons.guard():
        start = check_start(recipe, output)
    with shards_of(recipe, output) as root:
        planned = plan_stages(recipe, root, folder, reasons.guard, start.seen if start else None)
    with reasons.guard():
        check_places(recipe, output, folder, planned)
    return planned


def check_start(recipe: Recipe, output: Path) -> Weights | None:
    """The weights that a recipe starts from as far as they are on this machine; a file elsewhere is only looked at.

    Raises:
        InputError: they are missing, or do not fit.
    """
    weights, key = (recipe.backbone.weights, TRUNK) if recipe.weights is None else (recipe.weights, WHOLE)
    if weights is None or weights == HUB:  # timm would download them
        return None
    if "://" in weights:
        look_at(weights, key)
        return None
    found = start_of(recipe, output)
    say_taken(found)
    return found


@contextlib.contextmanager
def shards_of(recipe: Recipe, output: Path) -> Iterator[str]:
    """The root of a recipe's shards; the bundled sample's are drawn in a temporary folder."""
    if recipe.data != Recipe.data:
        yield recipe.data
        return
    from pipelines.shards.sample import sample_shards

    with tempfile.TemporaryDirectory() as drawn, contextlib.redirect_stdout(io.StringIO()):
        yield str(sample_shards(Path(drawn), splits_of(recipe)))


def show_stages(recipe: Recipe, planned: Sequence[PlannedStage], folder: Path) -> None:
    """Rows, steps and rate of each stage, and whether it has begun."""
    known = {plan.stage.name: plan for plan in planned}
    rows = []
    for stage in recipe.stages:
        plan, done = known.get(stage.name), done_steps(folder, stage.name)
        state = "finished" if RunFolder(folder).stage(stage.name).result.exists() else "begins"
        state = f"goes on at step {done}" if done and state == "begins" else state
        rate = f"{recipe.optim.lr if stage.lr is None else stage.lr:g}"
        rows.append([stage.name, *(counts(recipe, plan) if plan else "????"), rate, state])
    head = ["stage", "rows", "val rows", "steps", "epochs", "rate", "state"]
    print("\n" + "\n".join(lined(head, rows, range(1, 6))))


def counts(recipe: Recipe, plan: PlannedStage) -> list[str]:
    """Rows, rows of validation, steps and epochs of a stage."""
    epochs = plan.steps * recipe.batch / plan.train.rows if plan.train.rows else 0
    return [f"{plan.train.rows:,}", f"{plan.val.rows:,}" if plan.val else "–", f"{plan.steps:,}", f"{epochs:.1f}"]


def show_workers(
    recipe: Recipe, room: Room, gpus: Sequence[Found], classes: int, reasons: Reasons
) -> dict[str, StepCost]:
    """Workers, how the batch falls to them, and what a step holds and computes; returns a step by its precision.

    Args:
        recipe: that is planned.
        room: what it would have.
        gpus: those that must have room for a step.
        classes: K, 0 where it is not known.
        reasons: takes what speaks against it.
    """
    sizes = room.sizes
    if sizes is None:
        return {}
    with reasons.guard():
        check_share(recipe, sizes)
    world = max(1, sizes.count)
    share = recipe.batch // world
    if recipe.batch % world:
        return {}
    micro = micro_batch(recipe, world)
    print(f"\nworkers    {in_short(sizes) if sizes.count else 'this process'}, by {room.source}")
    print(f"batch      {recipe.batch} images = {world} x {share}, by {share // micro} forward pass(es) of {micro}")
    with reasons.guard():
        if classes and (close := check_memory(recipe, classes, sizes, gpus)):
            print(f"warning    {close}")
    if recipe.task != SEGMENTATION:
        print(f"memory     not estimated for task: {recipe.task}")
        return {}
    on_gpu = bool(sizes.gpus)
    beside = "CUDA's own, about 1 GiB, comes" if on_gpu else "the process itself and its data come"
    costs = {}
    for precision in sorted(precisions(recipe, room)):
        with contextlib.suppress(ValueError):  # said by check_share
            cost = costs[precision] = estimate(recipe, classes or ASSUMED, world, precision)
            print(f"memory     {cost.peak / GIB:.2f} GiB at a step's peak for each worker in {precision} "
                  f"({cost.state / GIB:.2f} of them stay); {beside} on top")  # fmt: skip
            print(f"work       {cost.flops / 1e9:,.4g} GFLOP a step for each worker")
    if costs and not classes:
        print(f"           as for {ASSUMED} classes: there are no shards that tell how many there are")
    return costs


def precisions(recipe: Recipe, room: Room) -> set[str]:
    """In what the workers would compute: on each kind of GPU; bf16 where none is known."""
    if room.sizes and room.sizes.gpus:
        return {precision_on(recipe, name) for name, _ in room.gpus} or {precision_on(recipe, "")}
    return {"fp32" if recipe.workers.precision == "auto" else recipe.workers.precision}


def show_times(
    recipe: Recipe,
    planned: Sequence[PlannedStage],
    folder: Path,
    room: Room,
    costs: dict[str, StepCost],
    asked: bool,
) -> None:
    """A step's least time on GPUs, and how long the stages would take, without validation."""
    left = images_left(planned, folder, recipe.batch)
    known = [gpu for name, _ in room.gpus if (gpu := known_gpu(name))]
    rows = []
    for gpu in known:
        cost = costs.get(precision := precision_on(recipe, gpu.name))
        if cost is None:
            continue
        speed = possible_speed(cost, recipe, gpu)
        rows.append([gpu.name, precision, f"{gpu.memory_gib:g}", "yes" if fits(cost, gpu.memory_gib) else "no",
                     f"{1e3 * cost.roofline(gpu):.1f}", f"{1e3 * cost.roofline(gpu) / STEP:.1f}",
                     f"{speed.images_per_s:.0f}", duration(left / speed.images_per_s) if left else "?"])  # fmt: skip
    head = ["GPU", "precision", "GiB", "fits", "roofline ms", "step ms", "images/s", "what is left"]
    if rows:
        print("\n" + "\n".join(lined(head, rows, range(2, 8))))
        print(f"Roofline: 80 % of the published products, 90 % of the published bandwidth; a step: that / {STEP}, as "
              "RecoNet reached on an H200. Input, collectives and validation come on top.")  # fmt: skip
    found = measured_speed(recipe, folder, known[0] if asked and known else None)
    print(f"\ntime       {expected(found, left)}")


def images_left(planned: Sequence[PlannedStage], folder: Path, batch: int) -> int:
    """Images that the stages have still to train on."""
    open_ = [plan for plan in planned if not RunFolder(folder).stage(plan.stage.name).result.exists()]
    return batch * sum(plan.steps - done_steps(folder, plan.stage.name) for plan in open_)


def expected(speed: Speed | None, left: int) -> str:
    """How long what is left takes at a speed."""
    if not left:
        return "nothing is left of the stages whose shards are known"
    if speed is None:
        return "unknown by measurement: no run next to it trained this model with this batch on this hardware"
    return (
        f"{duration(left / speed.images_per_s)} without validation, at {speed.images_per_s:.1f} images/s "
        f"({speed.source})"
    )
