"""Step 3 of `bench gpu`: two processes share the GPU over gloo, as NCCL takes no device twice.

Do their gradients add up to those of one process with the whole batch, is the own synchronised norm PyTorch's, and does
a trunk with norms that hold an activation (Xception-65) stay itself when they are synchronised?
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_checks import apart
from pipelines.speed.rounds import exact
from segmodels.backbone import build_backbone
from segmodels.sync_norm import synchronised

WORLD = 2
NEAR = 1e-3  # of gradients and norms in float32, relative to the greatest
Work = Callable[[int, torch.device], Any]


def lines(case: Case) -> Iterator[Line]:
    """What is measured."""
    wide = 8 if case.small else 64
    for name, distance in gradients_of_two(case.device, wide).items():
        yield Line(
            f"two of 4 images against one of 8: {name}", distance, predicted=f"<= {NEAR:g}", good=distance <= NEAR
        )
    for name, distance in norms_of_two(case.device, wide).items():
        yield Line(f"own synchronised norm: {name}", distance, predicted=f"<= {NEAR:g}", good=distance <= NEAR)
    distance = xception_kept(case.device)
    yield Line("Xception-65 with synchronised norms", distance, predicted="0", good=distance <= 1e-5)


def in_two(work: Work, device: str) -> Any:
    """What `work(rank, device)` gives on rank 0 of two processes that share a device, in a gloo group.

    Raises:
        Exception: what one of them raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(meet, (folder, work, device), nprocs=WORLD)
        return torch.load(f"{folder}/answer", weights_only=True)


def meet(rank: int, folder: str, work: Work, device: str) -> None:
    """One of the two processes, which meet in a folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    answer = work(rank, torch.device(device, 0) if device == "cuda" else torch.device(device))
    if rank == 0:
        torch.save(answer, f"{folder}/answer")
    dist.barrier()
    dist.destroy_process_group()


def network(wide: int) -> nn.Sequential:
    """Convolutions, norms and a classifier that a seed draws."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before in (3, wide, wide):
        layers += [nn.Conv2d(before, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(wide, 5, 1))


def loss_of(net: nn.Module, images: Tensor) -> Tensor:
    """A number that depends on every pixel."""
    return net(images).float().square().mean()


def drawn(wide: int) -> Tensor:
    """Eight images."""
    return torch.randn(8, 3, 4 * wide, 4 * wide + 1, generator=torch.Generator().manual_seed(1))


def gradients_of_two(device: str, wide: int) -> dict[str, float]:
    """Differences of gradients and running statistics, two processes with synchronised norms against one."""
    found = in_two(Trained(wide), device)
    net, images = network(wide).to(device).train(), drawn(wide).to(device)
    with exact():
        loss_of(net, images).backward()
    wanted = {name: p.grad for name, p in net.named_parameters()}
    moving = {name: value for name, value in net.named_buffers() if value.is_floating_point()}
    return {
        "gradients": max(apart(found[name], value) for name, value in wanted.items() if value is not None),
        "running statistics": max(apart(found[name], value) for name, value in moving.items()),
    }


class Trained:
    """Work of two: a backward pass, each with its half of the images."""

    def __init__(self, wide: int) -> None:
        self.wide = wide

    def __call__(self, rank: int, device: torch.device) -> dict[str, Tensor]:
        net = DistributedDataParallel(synchronised(network(self.wide).to(device).train()))
        with exact():
            loss_of(net, drawn(self.wide).chunk(WORLD)[rank].to(device)).backward()
        gradients = {name: p.grad.cpu() for name, p in net.module.named_parameters() if p.grad is not None}
        return gradients | {name: value.cpu() for name, value in net.module.named_buffers()}


def norms_of_two(device: str, wide: int) -> dict[str, float]:
    """Differences of the own synchronised norm from PyTorch's, which needs a GPU, or from a norm over all images."""
    return in_two(Normed(wide), device)


class Normed:
    """Work of two: the own norm, and the other, forward and backward."""

    def __init__(self, wide: int) -> None:
        self.wide = wide

    def __call__(self, rank: int, device: torch.device) -> dict[str, float]:
        whole = torch.randn(8, self.wide, 9, 7, generator=torch.Generator().manual_seed(2)).to(device) * 3 + 1
        cotangent = torch.randn(whole.shape, generator=torch.Generator().manual_seed(3)).to(device)
        own, own_x = passed(synchronised(nn.BatchNorm2d(self.wide)), rank, whole, cotangent)
        if device.type == "cuda":
            other, other_x = passed(nn.SyncBatchNorm(self.wide), rank, whole, cotangent)
        else:
            plain, x = nn.BatchNorm2d(self.wide).train(), whole.clone().requires_grad_()
            y = plain(x)
            y.backward(cotangent)
            other, other_x = y.chunk(WORLD)[rank], (x.grad if x.grad is not None else x).chunk(WORLD)[rank]
        return {"output": apart(own, other), "gradient": apart(own_x, other_x)}


def passed(norm: nn.Module, rank: int, whole: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of a norm for a process' half."""
    x = whole.chunk(WORLD)[rank].clone().requires_grad_()
    y = norm.to(x.device).train()(x)
    y.backward(cotangent.chunk(WORLD)[rank])
    return y.detach(), x.grad if x.grad is not None else torch.zeros_like(x)


def xception_kept(device: str) -> float:
    """How much Xception-65's last map moves in evaluation when its norms are synchronised."""
    torch.manual_seed(0)
    trunk = build_backbone("xception65", output_stride=16, weights=None).to(device).eval()
    image = torch.randn(1, 3, 65, 65, device=device)
    with torch.no_grad(), exact():
        before = trunk(image)[-1]
        after = synchronised(copy.deepcopy(trunk)).eval()(image)[-1]
    return apart(after, before)
