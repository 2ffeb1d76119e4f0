"""What learns in a stage: model, optimizer, average of the weights, and what a checkpoint holds of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.transforms import TrainView, views_version
from pipelines.cluster.device import named, precision_of
from pipelines.cluster.sizes import several
from pipelines.feed.plan import SamplePlan
from pipelines.recipes.model import build_model, count_norms, frozen_norms
from pipelines.recipes.recipe import Recipe, Stage, micro_batch
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import DRAWS, Checkpoint, Numerics, Progress
from pipelines.training.gauges import unheard
from pipelines.training.job import Job
from segmodels.losses import Objective
from segmodels.optim import build_sgd, parameter_groups
from segmodels.segmentor import Segmentor
from segmodels.sync_norm import synchronised


@dataclass
class Learner:
    """What one worker trains in a stage, and how far it is.

    `net` is the model as a step calls it: wrapped where there are several workers, compiled where the recipe says so.
    `average` is the running average of the weights, where the recipe asks for one. `origin` is a sentence that says
    where the weights come from; `frozen` are the names of norms that keep their statistics.
    """

    job: Job
    rank: int
    world: int
    device: torch.device
    precision: str
    channels_last: bool
    model: Segmentor
    net: nn.Module
    objective: Objective
    optimizer: torch.optim.SGD
    average: ModelEmaV3 | None
    progress: Progress
    origin: str
    frozen: Sequence[str] = ()

    @property
    def shown(self) -> Segmentor:
        """The model that is validated and handed on."""
        return self.average.module if self.average else self.model

    @property
    def micro(self) -> int:
        """Images of one forward pass."""
        return micro_batch(self.job.recipe, self.world)

    @property
    def numerics(self) -> Numerics:
        """How it computes."""
        synchronised = self.device.type == "cuda" and self.world > 1
        frozen = len(self.frozen) == count_norms(self.model)
        per_norm = 0 if frozen else self.micro * (self.world if synchronised else 1)
        return Numerics(self.precision, per_norm, self.world, synchronised)

    def autocast(self) -> torch.autocast:
        """The context in which the model computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def plan(self) -> SamplePlan:
        """The samples that this worker sees, from where it is to the end of its training."""
        return dataclasses.replace(make_plan(self.job), world=self.world, rank=self.rank, start=self.progress.step)

    def checkpoint(self, step: int, resumable: bool = False) -> Checkpoint:
        """What is kept of it at a step; all that a resume needs where it is to be `resumable`."""
        job = self.job
        return Checkpoint(
            model=self.shown.state_dict(),
            recipe=job.recipe,
            stage=job.stage.name,
            step=step,
            progress=self.progress.to(step),
            classes=job.classes,
            palette=job.palette,
            flip_pairs=job.flip_pairs,
            seen=job.seen,
            views=views_version(job.recipe.view.rotate),
            numerics=self.numerics,
            optimizer=self.optimizer.state_dict() if resumable else None,
            trained=self.model.state_dict() if resumable and self.average else None,
        )

    def keep(self) -> None:
        """Write the checkpoint from which a resume continues; only rank 0 does."""
        if self.rank == 0:
            place, step = self.job.place, self.progress.step
            self.checkpoint(step, resumable=True).write(place.checkpoint(step))
            checkpoint.prune(place.checkpoints, self.job.recipe.keep_last, step)


def make_learner(job: Job, rank: int, world: int, device: torch.device) -> Learner:
    """What a worker trains, as the stage's newest checkpoint has it, else as the stage begins.

    Raises:
        InputError: weights of another model, or views of another version.
    """
    recipe = job.recipe
    precision = set_up_process(job, device)
    torch.manual_seed(recipe.seed)  # fresh layers are equal on all workers and in all runs
    model = build_model(recipe, len(job.classes), job.weights).to(device)
    channels_last = device.type == "cuda" if recipe.workers.channels_last is None else recipe.workers.channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    origin = start_weights(model, job)
    learner = Learner(
        job, rank, world, device, precision, channels_last, model, model, Objective(recipe.loss),
        optimizer=build_optimizer(model, recipe, job.stage),
        average=ModelEmaV3(model, recipe.optim.ema, use_warmup=True) if recipe.optim.ema else None,
        progress=Progress(),
        origin=origin,
        frozen=frozen_norms(model, recipe, "all" if job.initial else "backbone" if job.weights else ""),
    )  # fmt: skip
    resume(learner)
    learner.origin += f"; {several(world, 'worker')} on {named(device)}, {precision}{unheard(device)}"
    if recipe.optim.freeze_norm:
        learner.origin += f"; {told_of_frozen(learner)}"
    learner.net = distribute(model, world, device, recipe.workers.compile)
    return learner


def told_of_frozen(learner: Learner) -> str:
    """What the record says of frozen norms."""
    frozen, norms = len(learner.frozen), count_norms(learner.model)
    if not frozen:
        return "no batch norm is frozen, since none is pretrained"
    rest = f"; the other {norms - frozen} are fresh, and learn" if frozen < norms else ""
    return f"{frozen} of {norms} batch norms are frozen{rest}"


def set_up_process(job: Job, device: torch.device) -> str:
    """Threads and numerics of this process; returns the precision in use, `bf16` or `fp32`."""
    torch.set_num_threads(job.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return precision_of(job.recipe.workers.precision, device)


def start_weights(model: Segmentor, job: Job) -> str:
    """Take over the weights of the stage before; returns a sentence for the record.

    Raises:
        InputError: as `checkpoint.check_views`.
    """
    if job.initial is None:
        return f"starts from {'backbone weights ' + job.weights if job.weights else 'random weights'}"
    before = Checkpoint.read(job.initial, mapped=True)  # only the weights leave the file
    checkpoint.check_views(before.views, before.recipe.view.rotate, job.initial)
    fresh = checkpoint.initialise(model, before.model, before.classes == job.classes)
    source = f"starts from the weights of {before.stage} (step {before.step})"
    if fresh:
        return f"{source}; the classes differ, so these were initialised again: {', '.join(fresh)}"
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


def resume(learner: Learner) -> None:
    """Continue from the newest checkpoint of the stage, if there is one.

    The optimizer keeps its own rates. They are the checkpoint's too, except for a member of a population that goes on
    from the weights of another.

    Raises:
        InputError: as `checkpoint.check_views`, or it would compute otherwise than before.
    """
    folder, passed = learner.job.place.checkpoints, list[str]()
    content = checkpoint.newest(folder, passed=passed)
    learner.origin += "".join(f"; passed over: {message}" for message in passed)
    if content is None:
        return
    found = Checkpoint.of(content)
    checkpoint.check_views(found.views, found.recipe.view.rotate, folder)
    if found.numerics:
        checkpoint.check_numerics(found.numerics, learner.numerics, folder)
    learner.shown.load_state_dict(found.model)
    if learner.average and found.trained is not None:
        learner.model.load_state_dict(found.trained)
    optimizer = learner.optimizer
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(found.optimizer or {}))
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    learner.progress = found.progress
    if found.progress.step:
        learner.origin = f"continues from its checkpoint at step {found.progress.step}"
        learner.origin += "".join(f"; passed over: {message}" for message in passed)
        if found.draws != DRAWS:
            learner.origin += "; a version up to 0.3.5 wrote it: from here on dropout draws other masks than there"


def distribute(model: Segmentor, world: int, device: torch.device, compiled: bool) -> nn.Module:
    """DDP around the model where there are several workers; batch norm over all of them exactly on CUDA.

    No step sends buffers: synchronised norms are equal on all workers, EMANet's bases are averaged by `after_step`, and
    `share_buffers` comes before each validation.
    """
    net: nn.Module = model
    if world > 1:
        on_gpu = device.type == "cuda"
        net = DistributedDataParallel(
            synchronised(model) if on_gpu else model,
            device_ids=[device] if on_gpu else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    return torch.compile(net) if compiled else net  # type: ignore[return-value]


def share_buffers(model: nn.Module, world: int) -> None:
    """Give all workers rank 0's running statistics, the ones that the checkpoint holds."""
    if world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def make_plan(job: Job) -> SamplePlan:
    """The stage's stream of samples, as the only worker would see it."""
    view = TrainView(**dataclasses.asdict(job.recipe.view), flip_pairs=job.flip_pairs)
    return SamplePlan(job.train, job.rows, view, job.recipe.seed, job.recipe.batch, job.end)
