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
from pipelines.speed.rounds import difference, exact
from segmodels.backbone import build_backbone
from segmodels.sync_norm import synchronised

WORLD = 2
NEAR = 1e-3  # of gradients and norms in float32, relative to the greatest
Work = Callable[[int, torch.device], Any]


def lines(case: Case) -> Iterator[Line]:
    """What is measured."""
    wide = 8 if case.small else 64
    for name, distance in compared(case.device, wide).items():
        yield Line(name, distance, predicted=f"<= {NEAR:g}", good=distance <= NEAR)
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


def compared(device: str, wide: int) -> dict[str, float]:
    """Differences: two processes with synchronised norms from one, and the own norm from PyTorch's.

    PyTorch's synchronised norm is for GPUs: on a CPU the other is a plain norm over all images.
    """
    found = in_two(Compared(wide), device)
    net, images = network(wide).to(device).train(), drawn(wide).to(device)
    with exact():
        loss_of(net, images).backward()
    wanted = {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}
    moving = {name: value.cpu() for name, value in net.named_buffers() if value.is_floating_point()}
    return {
        "two of 4 images against one of 8: gradients": furthest(found["net"], wanted),
        "two of 4 images against one of 8: running statistics": furthest(found["net"], moving),
    } | {f"own synchronised norm: {name}": far for name, far in found["norm"].items()}


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The greatest difference of tensors of one name."""
    return max(difference(found[name], value) for name, value in wanted.items())


class Compared:
    """Work of two: a backward pass, each with its half of the images; and the own norm beside another."""

    def __init__(self, wide: int) -> None:
        self.wide = wide

    def __call__(self, rank: int, device: torch.device) -> dict[str, Any]:
        return {"net": self.trained(rank, device), "norm": self.normed(rank, device)}

    def trained(self, rank: int, device: torch.device) -> dict[str, Tensor]:
        """Gradients and running statistics."""
        net = DistributedDataParallel(synchronised(network(self.wide).to(device).train()))
        with exact():
            loss_of(net, drawn(self.wide).chunk(WORLD)[rank].to(device)).backward()
        gradients = {name: p.grad.cpu() for name, p in net.module.named_parameters() if p.grad is not None}
        return gradients | {name: value.cpu() for name, value in net.module.named_buffers()}

    def normed(self, rank: int, device: torch.device) -> dict[str, float]:
        """Differences of output and gradient."""
        whole = torch.randn(8, self.wide, 9, 7, generator=torch.Generator().manual_seed(2)).to(device) * 3 + 1
        cotangent = torch.randn(whole.shape, generator=torch.Generator().manual_seed(3)).to(device)
        own, own_x = passed(synchronised(nn.BatchNorm2d(self.wide)), rank, whole, cotangent)
        if device.type == "cuda":
            other, other_x = passed(nn.SyncBatchNorm(self.wide), rank, whole, cotangent)
        else:
            x = whole.clone().requires_grad_()
            y = nn.BatchNorm2d(self.wide).train()(x)
            other, other_x = (z.chunk(WORLD)[rank] for z in (y, torch.autograd.grad(y, x, cotangent)[0]))
        return {"output": difference(own, other), "gradient": difference(own_x, other_x)}


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
    return difference(after, before)
