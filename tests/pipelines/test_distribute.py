"""DDP, synchronised norms and compilation around a model, without starting workers."""

import pytest
import torch
from torch import nn

from pipelines.training import learner
from segmodels.segmentor import build_segmentor

HEADS = {
    "srnet": {"name": "srnet", "channels": 16, "nodes": 4},
    "encnet": {"name": "encnet", "channels": 16, "codes": 4},
}


class Parallel(nn.Module):
    """DDP without a group of processes."""

    def __init__(self, module, device_ids=None):
        super().__init__()
        self.module, self.device_ids = module, device_ids


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setattr(learner, "DistributedDataParallel", Parallel)


def model(head="srnet"):
    return build_segmentor(
        num_classes=3,
        crop=(32, 32),
        backbone={"name": "test_resnet", "output_stride": 32},
        head=HEADS[head],
        aux={"name": "fcn", "channels": 8},
    )


def norms(net):
    """Names of the batch norms with their types."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: type(module) for name, module in net.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("head", HEADS)
def test_on_gpus_every_norm_is_synchronised_those_of_vectors_too(head):
    built = model(head)
    before, device = norms(built), torch.device("cuda", 1)
    assert nn.BatchNorm1d in before.values()
    net = learner.distribute(built, 2, device, False)
    assert type(net) is Parallel
    assert net.device_ids == [device]
    assert norms(net.module) == dict.fromkeys(before, nn.SyncBatchNorm)


@pytest.mark.parametrize("head", HEADS)
def test_on_cpus_norms_stay_as_they_are(head):
    built = model(head)
    before = norms(built)
    net = learner.distribute(built, 2, torch.device("cpu"), False)
    assert type(net) is Parallel
    assert net.device_ids is None
    assert net.module is built
    assert norms(built) == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_worker_has_its_model_alone(device):
    built = model()
    before = norms(built)
    assert learner.distribute(built, 1, torch.device(device), False) is built
    assert norms(built) == before


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_compiled_is_the_whole(world):
    built = model()
    net = learner.distribute(built, world, torch.device("cuda", 0), True)
    assert isinstance(net, torch._dynamo.OptimizedModule)
    assert type(net._orig_mod) is (Parallel if world > 1 else type(built))
    assert nn.SyncBatchNorm in norms(net).values() if world > 1 else net._orig_mod is built
