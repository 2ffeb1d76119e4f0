"""What learns in a stage: model, optimizer, average of the weights, and what a checkpoint holds of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from datasets.transforms import views_version
from pipelines.cluster.device import fix_order, named_together, precision_of
from pipelines.cluster.sizes import several
from pipelines.feed.batch import Target
from pipelines.feed.plan import SamplePlan
from pipelines.recipes.model import build_model, count_norms, frozen_norms
from pipelines.recipes.recipe import Recipe, Stage, micro_batch, norm_batch
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.recipes.views import train_view
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import DRAWS, Checkpoint, Numerics, Progress
from pipelines.training.copy import Copy
from pipelines.training.job import Job
from pipelines.training.saving import Saving
from pipelines.training.scaling import Scaling
from pipelines.training.telemetry import unheard
from segmodels import files
from segmodels.kernels import settle_kernels
from segmodels.losses import Objective
from segmodels.optim import build_adamw, build_sgd, parameter_groups
from segmodels.precision import autocast, spare_grouped
from segmodels.segmentor import Segmentor
from segmodels.starting import start_from
from segmodels.sync_norm import synchronised


@dataclass
class Learner:
    """What one worker trains in a stage, and how far it is.

    `net` is the model as a step calls it, wrapped where there are several workers; `losses` calls it and gives the
    loss, compiled where the recipe says so. `average` is the running average of the weights, where the recipe asks for
    one, `scaling` scales the loss in fp16. `origin` is a sentence that says where the weights come from; `frozen` are
    the names of norms that keep their statistics; `devices` are those of all workers, in words. `saving` writes its
    checkpoints; `copy` is what its machine has of a run in a bucket.
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
    optimizer: torch.optim.Optimizer
    average: ModelEmaV3 | None
    progress: Progress
    origin: str
    frozen: Sequence[str] = ()
    saving: Saving = field(default_factory=Saving)
    copy: Copy | None = None
    scaling: Scaling | None = None
    devices: str = ""
    losses: Callable[..., tuple[Tensor, dict[str, Tensor]]] = field(init=False)

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
        recipe, frozen = self.job.recipe, len(self.frozen) == count_norms(self.model)
        synchronised = recipe.norm == "sync" and self.world > 1
        per_norm = 0 if frozen else norm_batch(recipe, self.world)
        return Numerics(self.precision, per_norm, self.world, synchronised, recipe.workers.compress)

    @property
    def computes(self) -> dict[str, str]:
        """On what and how, as the record and MLflow's tags have it."""
        return {"workers": str(self.world), "devices": self.devices, "precision": self.precision}

    def autocast(self) -> torch.autocast:
        """The context in which the model computes."""
        return autocast(self.device, self.precision)

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
            scaling=self.scaling.state() if resumable and self.scaling else None,
        )

    def keep(self) -> None:
        """Write the checkpoint from which a resume continues; only rank 0 does."""
        if self.rank == 0:
            place, step = self.job.place, self.progress.step
            self.saving.write(self.checkpoint(step, resumable=True), place.checkpoint(step), self.job.recipe.keep_last)

    def keep_best(self, step: int) -> None:
        """Write the weights with the best score so far; only rank 0 does."""
        if self.rank == 0:
            self.saving.write(self.checkpoint(step), self.job.place.best)


def make_learner(job: Job, rank: int, world: int, device: torch.device, copy: Copy | None = None) -> Learner:
    """What a worker trains, as the stage's newest checkpoint has it, else as the stage begins.

    Raises:
        InputError: weights of another model, or views of another version.
    """
    recipe = job.recipe
    precision = set_up_process(job, device)
    kernels = settle_kernels(device, precision)
    torch.manual_seed(recipe.seed)  # fresh layers are equal on all workers and in all runs
    model = build_model(recipe, len(job.classes), job.weights).to(device)
    channels_last = device.type == "cuda" if recipe.workers.channels_last is None else recipe.workers.channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    spare_grouped(model, device, precision)
    origin = start_weights(model, job)
    learner = Learner(
        job, rank, world, device, precision, channels_last, model, model, Objective(recipe.loss),
        optimizer=build_optimizer(model, recipe, job.stage),
        average=ModelEmaV3(model, recipe.optim.ema, use_warmup=True) if recipe.optim.ema else None,
        progress=Progress(),
        origin=origin,
        frozen=frozen_norms(model, recipe, "all" if job.initial or job.start else "backbone" if job.weights else ""),
        saving=Saving(copy.mirror if copy else None),
        copy=copy,
        scaling=Scaling(device) if precision == "fp16" else None,
        devices=named_together(device, world),
    )  # fmt: skip
    resume(learner)
    learner.origin += f"; {several(world, 'worker')} on {learner.devices}, {precision}{unheard(device)}"
    learner.origin += f"; {kernels}" if kernels else ""
    if recipe.optim.freeze_norm:
        learner.origin += f"; {told_of_frozen(learner)}"
    learner.net = distribute(model, world, device, recipe)
    learner.losses = forward_pass(learner)
    return learner


def told_of_frozen(learner: Learner) -> str:
    """What the record says of frozen norms."""
    frozen, norms = len(learner.frozen), count_norms(learner.model)
    if not frozen:
        return "no batch norm is frozen, since none is pretrained"
    rest = f"; the other {norms - frozen} are fresh, and learn" if frozen < norms else ""
    return f"{frozen} of {norms} batch norms are frozen{rest}"


def set_up_process(job: Job, device: torch.device) -> str:
    """Threads and numerics of this process; returns the precision in use, `bf16`, `fp16` or `fp32`."""
    torch.set_num_threads(job.threads)
    fixed = job.recipe.workers.deterministic
    fix_order(fixed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not fixed
    return precision_of(job.recipe.workers.precision, device)


def start_weights(model: Segmentor, job: Job) -> str:
    """Take over the weights of the stage before, or of another run; returns a sentence for the record.

    Raises:
        InputError: as `checkpoint.check_views`.
    """
    if job.start is not None:
        content = files.read(job.start, mapped=True)
        taken = start_from(model, content, job.classes)
        return f"starts from {job.start}; taken: {taken.taken}; left: {taken.left}; missing: {taken.missing}"
    if job.initial is None:
        return f"starts from {'backbone weights ' + job.weights if job.weights else 'random weights'}"
    before = Checkpoint.read(job.initial, mapped=True)  # only the weights leave the file
    checkpoint.check_views(before.views, before.recipe.view.rotate, job.initial)
    fresh = checkpoint.initialise(model, before.model, before.classes == job.classes)
    source = f"starts from the weights of {before.stage} (step {before.step})"
    if fresh:
        return f"{source}; the classes differ, so these were initialised again: {', '.join(fresh)}"
    return f"{source}, classifier included: the classes are the same"


def build_optimizer(model: Segmentor, recipe: Recipe, stage: Stage) -> torch.optim.Optimizer:
    """The recipe's optimizer over its groups, at the stage's learning rate."""
    optim = recipe.optim
    groups = parameter_groups(
        model,
        lr=stage.lr if stage.lr is not None else optim.lr,
        weight_decay=optim.weight_decay,
        head_lr_scale=optim.head_lr_scale,
        decay_norm_and_bias=optim.decay_norm_and_bias,
        layer_decay=optim.layer_decay,
    )
    if optim.name == "adamw":
        return build_adamw(groups, optim.betas, optim.eps)
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
    if learner.scaling and found.scaling is not None:
        learner.scaling.load(found.scaling)
    optimizer = learner.optimizer
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(found.optimizer or {}))
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    learner.progress = found.progress
    if found.progress.step:
        learner.origin = f"continues from its checkpoint at step {found.progress.step}"
        learner.origin += "".join(f"; passed over: {message}" for message in passed)
        if found.numerics and found.numerics.world != learner.world:
            learner.origin += (
                f"; from here on {several(learner.world, 'worker')}, before that {found.numerics.world}: the same "
                "batches, with other rounding"
            )
        if found.draws != DRAWS:
            learner.origin += "; a version up to 0.3.5 wrote it: from here on dropout draws other masks than there"


def distribute(model: Segmentor, world: int, device: torch.device, recipe: Recipe) -> nn.Module:
    """DDP around the model where there are several workers, with batch norm over all of them unless it is local.

    No step sends buffers: synchronised norms are equal on all workers, EMANet's bases are averaged by `after_step`, and
    `share_buffers` comes before each validation.
    """
    if world == 1:
        return model
    net = DistributedDataParallel(
        synchronised(model) if recipe.norm == "sync" else model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    if recipe.workers.compress == "bf16":
        net.register_comm_hook(None, bf16_compress_hook)
    return net


def forward_pass(learner: Learner) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """From images and targets to the loss and its terms, as `Objective` gives them; compiled where the recipe says so.

    Models of other tasks than segmentation give their terms themselves.
    """
    workers = learner.job.recipe.workers

    def losses(image: Tensor, mask: Tensor, pixels: Tensor | float, images: float) -> tuple[Tensor, dict[str, Tensor]]:
        with learner.autocast():
            outputs = learner.net(image)
        return learner.objective(outputs, mask, pixels, images)

    def task_losses(
        image: Tensor, target: Target, _: Tensor | float, images: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with learner.autocast():
            terms = learner.net(image, target, images)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        return loss, {name: term.detach().float() for name, term in terms.items()}

    if learner.job.recipe.task != SEGMENTATION:
        losses = task_losses  # type: ignore[assignment]
    if not workers.compile:
        return losses
    return torch.compile(losses, mode="reduce-overhead" if workers.graphs else None)


def share_buffers(model: nn.Module, world: int) -> None:
    """Give all workers rank 0's running statistics, the ones that the checkpoint holds, in one message."""
    buffers = list(model.buffers())
    if world == 1 or not buffers:
        return
    flat = torch.cat([buffer.detach().flatten().view(torch.uint8) for buffer in buffers])
    dist.broadcast(flat, 0)
    with torch.no_grad():
        for buffer, part in zip(buffers, flat.split([b.numel() * b.element_size() for b in buffers]), strict=True):
            buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))  # a copy begins where a type's values may


def make_plan(job: Job) -> SamplePlan:
    """The stage's stream of samples, as the only worker would see it."""
    view = train_view(job.recipe, job.flip_pairs)
    return SamplePlan(job.train, job.rows, view, job.recipe.seed, job.recipe.batch, job.end)
