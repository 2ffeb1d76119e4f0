"""Every head learns eight pictures by heart, and its ranks stay one model under DDP."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from variants import VARIANTS

from pipelines.training.learner import share_buffers
from segmodels.checks import keywords_of
from segmodels.heads.catalog import HEADS, build_head
from segmodels.losses import Objective

K, STEPS, SIDE = 4, 60, 32
WIDTHS, SIZES = (12, 16, 24, 32), (8, 4, 4, 4)
TERM = {"presence": "se", "class_prior": "cp"}
WEIGHT = {"logits": 1.0}  # of the other outputs: 0.2


class Trunk(nn.Module):
    """Four small stages at strides 4, 8, 8, 8, and a head: logits at the image's size."""

    def __init__(self, name):
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        strides = (4, 2, 1, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 5, s, 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, s in zip(inputs, WIDTHS, strides, strict=True)
        )
        keywords = dict(VARIANTS[name])
        if "feature_size" in keywords_of(HEADS[keywords["name"]]):
            keywords["feature_size"] = (SIZES[-1], SIZES[-1])
        if "dropout" in keywords_of(HEADS[keywords["name"]]):
            keywords["dropout"] = 0.0
        if "norm_momentum" in keywords_of(HEADS[keywords["name"]]):  # EMANet's statistics take thousands of steps
            keywords["norm_momentum"] = 0.1
        self.head = build_head(keywords.pop("name"), WIDTHS, K, **keywords)

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        outputs = self.head(features)
        size = (SIDE, SIDE)
        return {k: F.interpolate(v, size, mode="bilinear") if v.ndim == 4 else v for k, v in outputs.items()}


def pictures(seed=0, count=8):
    """Blocks of colours, each colour a class: images that differ, and masks with an ignored edge."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(-1, 1, (K, 3)).astype(np.float32)
    blocks = rng.integers(0, K, (count, 4, 4))
    mask = blocks.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2).astype(np.uint8)
    image = colours[mask].transpose(0, 3, 1, 2) + rng.normal(0, 0.05, (count, 3, SIDE, SIDE)).astype(np.float32)
    mask[:, 0] = 255
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(mask)


def objective(outputs):
    return Objective({k: {TERM.get(k, "cross_entropy"): WEIGHT.get(k, 0.2)} for k in outputs})


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_eight_pictures_are_learned_in_60_steps(name):
    torch.manual_seed(0)
    model, (image, mask) = Trunk(name).train(), pictures()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(STEPS):
        outputs = model(image)
        loss, _ = objective(outputs)(outputs, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for module in model.modules():
            if hasattr(module, "after_step"):
                module.after_step()
    for mode in (True, False):  # by the running statistics too
        with torch.no_grad():
            right = model.train(mode)(image)["logits"].argmax(1) == mask
        assert right[mask != 255].float().mean() > 0.8  # 25 % is chance; the bounds of blocks are between cells


def train_as_rank(rank, port, names, places):
    """Three steps of each head under DDP, each rank on its own pictures; keeps all weights and buffers."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    states = {}
    for name in names:
        torch.manual_seed(0)
        model = Trunk(name).train()
        net = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        image, mask = pictures(seed=rank, count=4)
        for step in range(3):
            with net.no_sync() if step == 1 else torch.enable_grad():  # one of the parts is accumulated
                outputs = net(image)
                objective(outputs)(outputs, mask)[0].backward()
            if step == 1:
                continue
            optimizer.step()
            optimizer.zero_grad()
            for module in model.modules():
                if hasattr(module, "after_step"):
                    module.after_step()
        bases = {k: v.clone() for k, v in model.named_buffers() if k.endswith("bases")}  # equal without any broadcast
        share_buffers(model, 2)  # running statistics, as the loop does before it validates and saves
        states[name] = model.state_dict() | {f"own {key}": value for key, value in bases.items()}
    torch.save(states, places[rank])
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_other_pictures_stay_one_model(tmp_path):
    """Weights, running statistics and bases equal on both ranks; DDP waits for no parameter that gets no gradient."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = [str(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.multiprocessing.spawn(train_as_rank, (port, list(HEADS), places), nprocs=2)
    first, second = (torch.load(place, weights_only=True) for place in places)
    assert set(first) == set(HEADS)
    assert any(key.startswith("own ") for key in first["emanet"])
    for name, state in first.items():
        for key, value in state.items():
            assert torch.equal(value, second[name][key]), f"{name}: {key}"
