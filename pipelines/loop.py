"""The training loop of one worker, and validation; both run the same on one laptop core and on many GPUs."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.transforms import VIEWS, TrainView
from pipelines import checkpoint, figures
from pipelines.cluster import Sizes
from pipelines.door import SetupError, check_names, users_message
from pipelines.feed import Batch, read_ahead, train_batches, under_way, validation_batches
from pipelines.plan import Plan, open_shards
from pipelines.recipe import InferenceSpec, Recipe, Stage, Workers, to_page
from pipelines.record import Record, write_text
from pipelines.stopping import STOP, asked_to_stop
from segmodels.inference import Inference, predict
from segmodels.losses import Objective
from segmodels.metrics import Confusion, scores
from segmodels.optim import build_sgd, parameter_groups, poly, set_lr
from segmodels.segmentor import Segmentor, build_segmentor

FAULT = "fault.txt"  # in a run's folder: why its input was refused
OUTCOME = "outcome.json"  # in a stage's folder: what its training returned


@dataclass(frozen=True)
class Job:
    """One stage for the workers. Paths are absolute: Ray's workers change their directory.

    `initial` is the checkpoint whose weights the stage starts from, `seen` a digest of each row trained on so far.
    `until` is the step at which training ends before the last; the learning rate falls as if it did not. Of one that
    is to be `succeeded`, each worker has Ray start the process of a worker after it.
    """

    recipe: Recipe
    stage: Stage
    folder: Path
    train: str
    val: str | None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    rows: int
    steps: int
    sizes: Sizes
    threads: int
    weights: str | None = None
    initial: Path | None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    until: int | None = None
    succeeded: bool = False

    @property
    def end(self) -> int:
        """The step at which training ends."""
        return self.until or self.steps


def train_stages(jobs: Sequence[Job]) -> dict[str, Any]:
    """All stages of a chain on one of Ray's workers, each unless its outcome stands already.

    Ray restarts the workers after any exception. A fault of the input would only come again: the next attempt finds
    the note of the last and ends.

    Returns:
        Empty when all stages have their outcome; else `failure`, a message, or `stopped`, a signal's name, and `text`.
    """

    from pipelines.group import connected

    check_names()
    folder = jobs[0].folder.parent
    note = folder / FAULT
    if not (folder / "recipe.yaml").exists():
        raise SetupError(f"a worker does not see {folder}: put `output` where all nodes share a file system")
    with connected():
        for job in jobs:
            if note.exists():
                return {"failure": note.read_text()}
            if (job.folder / OUTCOME).exists():
                continue
            if ended := train_stage(job, note):
                return ended
    return {}


def train_stage(job: Job, note: Path) -> dict[str, Any]:
    """One stage of a chain on one worker; empty when its outcome stands, else as `train_stages`."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    try:
        with (
            Pulse(job.folder / f"hang-worker{rank}.txt", job.recipe.workers) as pulse,
            contextlib.ExitStack() as opened,
        ):
            outcome = train(job, pulse, opened)
    except Exception as error:
        if message := users_message(error):
            with contextlib.suppress(OSError):  # a full disk, perhaps
                write_text(note, f"stage {job.stage.name}: {message}")
        raise
    if "failure" in outcome:
        return {"failure": f"stage {job.stage.name}: {outcome['failure']}"}
    if "stopped" in outcome:
        return outcome
    if rank == 0:
        write_text(job.folder / OUTCOME, json.dumps(outcome))
    if dist.is_initialized():
        dist.barrier()  # nobody begins the next stage before its first weights are written
    return {}


class Pulse:
    """Ends this process when it makes no progress for `workers.hang_minutes`, the stacks of its threads in a file.

    Ray replaces an ended worker, and the others with it, and the stage continues from its checkpoint. The clock runs
    in C, outside of the interpreter's lock, so that a call that never returns is caught too.
    """

    def __init__(self, path: Path, workers: Workers) -> None:
        self.seconds, self.path = workers.hang_minutes * 60, path
        self.here = workers.count == 0  # in the user's own process, whose end must be explained on its screen

    def __enter__(self) -> Pulse:
        self.file = self.path.open("a")  # what an earlier attempt left there is looked at afterwards
        self.beat()
        return self

    def beat(self) -> None:
        """Progress: the clock starts anew."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=2 if self.here else self.file)

    def __exit__(self, *error: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()


def train(job: Job, pulse: Pulse, opened: contextlib.ExitStack) -> dict[str, Any]:
    """One stage on one worker: read, forward, backward, step, report. What it opens is closed with `opened`.

    Returns:
        `{"failure": message}` where the loss stopped being finite, `{"stopped": signal, "text": …}` after SIGTERM or
        Ctrl-C, else the stage's results; equal on all workers but for what rank 0 alone measures.
    """
    import ray.train
    import ray.train.torch

    from pipelines.prestart import one_more

    recipe, stage, context = job.recipe, job.stage, ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    precision = set_up_process(job, device)
    validation = recipe.validation or recipe.inference
    inference = dataclasses.replace(inference_of(recipe, validation), flip_pairs=job.flip_pairs)

    torch.manual_seed(recipe.seed)  # fresh layers are equal on all workers and in all runs
    model = build_model(job).to(device)
    layout = device.type == "cuda" if recipe.workers.channels_last is None else recipe.workers.channels_last
    model = model.to(memory_format=torch.channels_last if layout else torch.contiguous_format)  # type: ignore[call-overload]
    note = start_weights(model, job)
    objective = Objective(recipe.loss)
    optimizer = build_optimizer(model, recipe, stage)
    average = ModelEmaV3(model, recipe.optim.ema, use_warmup=True) if recipe.optim.ema else None
    shown = average.module if average else model  # what is validated, and handed on
    state = resume(job.folder, model, optimizer, shown)
    note = f"continues from its checkpoint at step {state['step']}" if state["step"] else note
    net = distribute(model, world, device, recipe.workers.compile)
    pulse.beat()  # setting up is progress too: on a busy machine it alone takes half a minute
    micro = micro_batch(recipe, world)
    plan = dataclasses.replace(make_plan(job), world=world, rank=rank, start=state["step"])
    batches = train_batches(plan, recipe.feed, job.sizes.feed_tasks, job.sizes.feed_cpus)
    feed = opened.enter_context(under_way(batches))
    record = Record(job.folder / "record.jsonl") if rank == 0 else None
    meter = Meter(device, recipe.batch, state, rank)
    stop = job.folder.parent / STOP
    validations = validation_steps(job)

    def score(step: int) -> None:
        """Validate, record, and keep the weights when they are the best so far."""
        pulse.beat()
        share_buffers(shown, world)
        counts = validate(shown, str(job.val), inference, device, rank, world, precision, validation.batch, pulse.beat)
        result = scores(torch.from_numpy(counts))
        state["before"] = result.miou if step == 0 else state["before"]
        state["after"], best = result.miou, result.miou > state["best"]
        if best:
            state.update(best=result.miou, best_step=step)
        if record:
            if best:
                checkpoint.save(job.folder / "best.pt", content(job, shown, state | {"step": step}))
            overlays = draw_overlays(job, shown, inference, device, step)
            matrix = f"validation/step-{step:08d}.npy"  # in the stage's folder, wherever people move it
            figures.save_counts(job.folder / matrix, counts)
            values = {"miou": result.miou, "accuracy": result.accuracy, "fwiou": result.fwiou}
            record.add("val", step, **values, iou=result.iou, counts=matrix, overlays=overlays, rows=int(state["val"]))
        ray.train.report({"step": step, "miou": result.miou})
        meter.restart()

    def keep(step: int) -> None:
        """Write the checkpoint from which a resume continues at `step`."""
        state["step"] = step
        meter.store(state)
        if rank == 0:
            going_on = {"optimizer": optimizer.state_dict()} | ({"trained": model.state_dict()} if average else {})
            checkpoint.save(
                checkpoint.step_file(job.folder / "checkpoints", step), content(job, shown, state) | going_on
            )
            checkpoint.prune(job.folder / "checkpoints", recipe.keep_last, step)
        meter.saved = time.monotonic()

    if job.val:
        state["val"] = len(open_shards(job.val))
    if record:
        step = state["step"]
        hung = [str(path) for path in job.folder.glob("hang-worker*.txt") if path.stat().st_size]
        note += f". Workers hung and were replaced; where they stood: {', '.join(hung)}" if hung else ""
        record.add("note", step, text=note)
    if job.val and state["step"] == 0 and state["before"] is None:
        score(0)
    train_mode(model, recipe)
    for step, batch in enumerate(meter.waiting(feed), start=plan.start):
        pulse.beat()
        torch.manual_seed(hash((recipe.seed, step, rank)) & 0x7FFFFFFF)  # dropout needs no state in checkpoints
        factor = poly(step, job.steps, power=recipe.optim.power, warmup=warmup_of(job))
        set_lr(optimizer, factor)
        batch = batch.to(device, layout)
        labelled, asked = over_workers(count_labelled(batch.mask), asked_to_stop(stop) if rank == 0 else 0, world)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part, last in micro_batches(batch, micro):
            with synchronise(net, last), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs = net(part.image)
            # Shares of the GLOBAL batch's labelled pixels and images; DDP averages, hence the number of workers.
            pixels, images = count_labelled(part.mask) / labelled * world, len(part.mask) / recipe.batch * world
            loss, _ = objective(outputs, part.mask, pixels, images)
            loss.backward()
            total += loss.detach() / world
        optimizer.step()
        after_step(model)
        meter.add(total)
        done = step + 1
        if job.succeeded and done == plan.start + 1:
            one_more()
        if average:
            average.update(model, step=done)
        log_now, val_now = done % recipe.log_every == 0 or done == job.end, done in validations
        # on CPUs alone: on a GPU, looking at it would wait for the step
        ending = (log_now or val_now or device.type == "cpu") and bool(asked) and done < job.end
        if log_now or val_now or ending:
            losses = meter.losses(world)
            if bad := [i for i, value in enumerate(losses) if not np.isfinite(value)]:
                return {"failure": not_finite(plan, done - len(losses) + bad[0], losses[bad[0]])}
        if log_now or val_now:
            meter.kept = []
            if record:
                lr = optimizer.param_groups[0]["lr"]
                record.add("train", done, loss=float(np.mean(losses)), lr=lr, epoch=done * recipe.batch / job.rows,
                           **meter.rates(done, job.steps))  # fmt: skip
            if val_now:
                score(done)
                train_mode(model, recipe)
            if val_now or done == job.end or (meter.due(recipe.checkpoint_minutes) and not ending):
                keep(done)
        if ending:
            if not val_now:
                keep(done)
            return stopped(record, signal.Signals(int(asked)).name, stage.name, done)
    if record:
        record.close()
    return {k: state[k] for k in ("step", "before", "after", "best", "best_step")} | {"images_per_s": meter.overall()}


def set_up_process(job: Job, device: torch.device) -> str:
    """Threads and numerics of this process; returns the precision in use, `bf16` or `fp32`."""
    torch.set_num_threads(job.threads)
    wish = job.recipe.workers.precision
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        return "bf16" if wish == "bf16" or (wish == "auto" and torch.cuda.is_bf16_supported()) else "fp32"
    return "bf16" if wish == "bf16" else "fp32"


def build_model(job: Job) -> Segmentor:
    """The segmentor of the recipe with the classes of the stage's shards."""
    recipe = job.recipe
    backbone = dataclasses.asdict(recipe.backbone) | {"weights": job.weights}
    return build_segmentor(
        num_classes=len(job.classes), crop=recipe.view.crop, backbone=backbone, head=recipe.head, aux=recipe.aux
    )


def start_weights(model: Segmentor, job: Job) -> str:
    """Take over the weights of the stage before; returns a sentence for the record.

    Raises:
        RecipeError: as `checkpoint.check_views`.
    """
    if job.initial is None:
        return f"starts from {'backbone weights ' + job.weights if job.weights else 'random weights'}"
    before = checkpoint.load(job.initial)
    checkpoint.check_views(before, job.initial)
    fresh = checkpoint.initialise(model, before["model"], tuple(before["classes"]) == job.classes)
    source = f"starts from the weights of {before['stage']} (step {before['step']})"
    if fresh:
        return f"{source}; the classes differ, so these were initialised anew: {', '.join(fresh)}"
    return f"{source}, classifier included: the classes are the same"


def build_optimizer(model: Segmentor, recipe: Recipe, stage: Stage) -> torch.optim.SGD:
    """SGD over the recipe's groups at the stage's learning rate."""
    optim = recipe.optim
    groups = parameter_groups(
        model,
        lr=stage.lr if stage.lr is not None else optim.lr,
        weight_decay=optim.weight_decay,
        head_lr_scale=optim.head_lr_scale,
        decay_norm_and_bias=optim.decay_norm_and_bias,
    )
    return build_sgd(groups, momentum=optim.momentum, nesterov=optim.nesterov)


def warmup_of(job: Job) -> int:
    """Warmup steps of the stage."""
    return job.recipe.optim.warmup if job.stage.warmup is None else job.stage.warmup


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, shown: nn.Module) -> dict[str, Any]:
    """Continue from the newest checkpoint of the stage; the state of a fresh stage where there is none.

    `shown` is the model itself, or the average of its weights where the recipe asks for one.

    The optimizer keeps its own rates, which are the checkpoint's too, but for a member of a population that goes on
    from the weights of another.

    Raises:
        RecipeError: as `checkpoint.check_views`.
    """
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        return {"step": 0, "before": None, "after": None, "best": -1.0, "best_step": -1, "seconds": 0.0, "images": 0,
                "losses": []}  # fmt: skip
    checkpoint.check_views(found, folder / "checkpoints")
    shown.load_state_dict(found["model"])
    if shown is not model:
        model.load_state_dict(found["trained"])
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(found["optimizer"])
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    return dict(found["state"])


def content(job: Job, model: Segmentor, state: dict[str, Any]) -> dict[str, Any]:
    """What every checkpoint holds: enough to evaluate the weights and to know where they come from."""
    return {
        "model": model.state_dict(),
        "views": VIEWS,
        "recipe": to_page(job.recipe),
        "stage": job.stage.name,
        "step": state["step"],
        "state": dict(state),
        "classes": list(job.classes),
        "palette": [list(colour) for colour in job.palette],
        "seen": torch.from_numpy(job.seen),
    }


def distribute(model: Segmentor, world: int, device: torch.device, compiled: bool) -> nn.Module:
    """DDP around the model where there are several workers; synchronised BatchNorm exactly on CUDA."""
    net: nn.Module = model
    if world > 1:
        if device.type == "cuda":  # SyncBatchNorm does not run on CPUs: there each worker normalises its own share
            net = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        net = DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    return torch.compile(net) if compiled else net  # type: ignore[return-value]


def share_buffers(model: nn.Module, world: int) -> None:
    """Give all workers rank 0's running statistics, the ones that the checkpoint holds."""
    if world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def train_mode(model: Segmentor, recipe: Recipe) -> None:
    """Training mode; with `optim.freeze_norm` batch norms keep their running statistics and normalise by them."""
    model.train()
    if recipe.optim.freeze_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def make_plan(job: Job) -> Plan:
    """The stage's stream of samples, as one worker of one sees it."""
    view = TrainView(**dataclasses.asdict(job.recipe.view), flip_pairs=job.flip_pairs)
    return Plan(job.train, job.rows, view, job.recipe.seed, job.recipe.batch, job.end)


def micro_batch(recipe: Recipe, world: int) -> int:
    """Images of one forward pass: the largest part of a worker's share that `workers.micro_batch` allows."""
    share = recipe.batch // world
    most = recipe.workers.micro_batch or share
    return next(size for size in range(min(most, share), 0, -1) if share % size == 0)


def micro_batches(batch: Batch, size: int) -> Iterator[tuple[Batch, bool]]:
    """Parts of a batch, each with whether it is the last."""
    for first in range(0, len(batch.mask), size):
        part = slice(first, first + size)
        yield Batch(batch.image[part], batch.mask[part]), first + size >= len(batch.mask)


def synchronise(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients travel between workers with the last part of an accumulated batch alone."""
    return contextlib.nullcontext() if last or not hasattr(net, "no_sync") else net.no_sync()  # type: ignore[operator]


def after_step(model: nn.Module) -> None:
    """Let modules move what no gradient moves: EMANet's bases, averaged over the workers."""
    for module in model.modules():
        if callable(move := getattr(module, "after_step", None)):
            move()


def count_labelled(mask: Tensor) -> Tensor:
    """Labelled pixels, on the device."""
    return (mask != 255).sum().float()


def over_workers(labelled: Tensor, asked: int, world: int) -> tuple[Tensor, Tensor]:
    """Labelled pixels of all workers, at least 1, and the signal that asked rank 0 to stop, or 0; never a host sync."""
    both = torch.stack([labelled, torch.full_like(labelled, asked)])
    if world > 1:
        dist.all_reduce(both)
    return both[0].clamp(min=1.0), both[1]


def stopped(record: Record | None, name: str, stage: str, step: int) -> dict[str, Any]:
    """Note the end by a signal; returns it as the stage's outcome."""
    text = f"stopped in stage {stage} at step {step}, its checkpoint written"
    if record:
        record.add("note", step, text=f"{name}: {text}")
        record.close()
    return {"stopped": name, "text": text}


def validation_steps(job: Job) -> set[int]:
    """Steps after which the stage validates: each `val_every` epochs, and the last."""
    if job.val is None:
        return set()
    every = job.stage.val_every * job.rows / job.recipe.batch
    regular = {round(k * every) for k in range(1, int(job.end / every) + 1)} if every >= 1 else set()
    return {step for step in regular if 0 < step < job.end} | {job.end}


def not_finite(plan: Plan, step: int, value: float) -> str:
    """The message for a loss that is nan or inf; steps are counted from 1 in it, as in the record."""
    return (
        f"the loss became {value} at step {step + 1}, on the samples {', '.join(plan.ids(step))}. Nothing was saved "
        "after it. Look at these samples (audit), or train with a lower learning rate or more warmup, which is another "
        "run (name=OTHER); the same command goes on from the last checkpoint."
    )


def inference_of(recipe: Recipe, spec: InferenceSpec) -> Inference:
    """A recipe's way to predict, its window defaulting to the training crop."""
    window = (spec.window or recipe.view.crop) if spec.mode == "slide" else None
    return Inference(spec.mode, window, spec.stride, spec.scales, spec.flip)


def validate(
    model: Segmentor,
    uri: str,
    inference: Inference,
    device: torch.device,
    rank: int,
    world: int,
    precision: str,
    batch: int = 8,
    beat: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Confusion counts int64 (K, K), rows truth, of ALL rows of the shards, summed over the workers.

    On CPUs one thread computes each batch: how many share a convolution changes its rounding, and now and then a
    pixel's class. So the counts are the same for any number of workers; more workers use more cores.

    Raises:
        RuntimeError: the pixels counted are not, class by class, those that the manifest counts.
    """
    model.eval()
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    shards = open_shards(uri)
    confusion = Confusion(model.num_classes).to(device)
    rows = 0
    mine = validation_batches(shards, batch)[rank::world]
    beat()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for part in read_ahead(shards, mine):
            part = part.to(device, channels_last=device.type == "cuda")
            confusion.update(predict(model, part.image, inference).argmax(1), part.mask)
            rows += len(part.mask)
            beat()
    torch.set_num_threads(threads)
    counts = torch.cat([confusion.counts.flatten(), torch.tensor([rows], device=device)])
    if world > 1:
        dist.all_reduce(counts)
    *cells, rows = counts.cpu().numpy()
    matrix = np.array(cells, np.int64).reshape(model.num_classes, model.num_classes)
    truth = np.array(shards.manifest.histogram[: model.num_classes], np.int64)
    if rows != len(shards) or not np.array_equal(matrix.sum(1), truth):
        raise RuntimeError(
            f"validation counted {rows} rows and {matrix.sum()} pixels of {uri}, its manifest has "
            f"{len(shards)} rows and {truth.sum()} labelled pixels: each must be read exactly once"
        )
    return matrix


@torch.inference_mode()
def draw_overlays(job: Job, model: Segmentor, inference: Inference, device: torch.device, step: int) -> list[str]:
    """Image | truth | prediction of the same few validation rows each time; returns the PNG files."""
    shards = open_shards(str(job.val))
    rows = np.linspace(0, len(shards) - 1, min(job.recipe.overlays, len(shards))).astype(int)
    files = []
    for row in np.argsort(np.array(shards.ids))[rows]:
        image, mask = shards.sample(int(row))
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device)
        prediction = predict(model, tensor, inference).argmax(1)[0].cpu().numpy().astype(np.uint8)
        path = job.folder / "overlays" / figures.safe_name(shards.ids[row]) / f"step-{step:08d}.png"
        files.append(figures.save_overlay(path, image, mask, prediction, job.palette))
    return [str(Path(file).relative_to(job.folder)) for file in files]


class Meter:
    """Losses kept on the device, and where the seconds go."""

    def __init__(self, device: torch.device, batch: int, state: dict[str, Any], rank: int = 0) -> None:
        self.device, self.batch, self.rank = device, batch, rank
        # Each worker's part of the losses of steps not logged yet: what a checkpoint holds is rank 0's.
        self.kept = [torch.tensor(value, device=device) * (rank == 0) for value in state["losses"]]
        self.seconds, self.images = state["seconds"], state["images"]
        self.saved = time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval, leaving out what validation took."""
        self.began, self.waited, self.steps = time.monotonic(), 0.0, 0

    def waiting(self, feed: Iterator[Batch]) -> Iterator[Batch]:
        """The feed, with the time spent in it measured; the first batch's start-up is not the step's wait."""
        first = True
        while True:
            asked = time.monotonic()
            batch = next(feed, None)
            if first:
                self.restart()
                first = False
            else:
                self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor) -> None:
        """Count a step; the loss stays on the device until it is read."""
        self.kept.append(loss)
        self.steps += 1

    def losses(self, world: int) -> np.ndarray:
        """Global losses of the steps not logged yet: the one host sync of the loop. From here on they are rank 0's."""
        stacked = torch.stack(self.kept)
        if world > 1:
            dist.all_reduce(stacked)
        self.kept = list(stacked if self.rank == 0 else torch.zeros_like(stacked))
        return stacked.cpu().numpy()

    def rates(self, done: int, steps: int) -> dict[str, float]:
        """images/s over all workers, share of the time spent waiting for data, seconds left, peak GPU memory."""
        span = max(time.monotonic() - self.began, 1e-9)
        images = self.steps * self.batch
        self.seconds += span
        self.images += images
        rates = {"images_per_s": images / span, "data_wait": self.waited / span}
        rates["eta_s"] = (steps - done) * span / max(self.steps, 1)
        if self.device.type == "cuda":
            rates["gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        self.restart()
        return rates

    def overall(self) -> float:
        """images/s of the stage, over all workers and resumes, validation left out."""
        return self.images / self.seconds if self.seconds else 0.0

    def store(self, state: dict[str, Any]) -> None:
        """Carry the sums over a resume; losses not logged yet are read from the device."""
        state.update(seconds=self.seconds, images=self.images, losses=[float(loss) for loss in self.kept])

    def due(self, minutes: float) -> bool:
        """Whether the last checkpoint is older than `minutes`."""
        return time.monotonic() - self.saved >= minutes * 60
