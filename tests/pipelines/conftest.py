"""Models that cost nothing to try on the meta device, for tests that build many; nodes and a tracking server."""

import functools

import pytest
import torch
import torch.nn.functional as F
from disturbed import Nodes
from torch import nn
from tracking_server import Server

from segmodels import backbone, segmentor
from segmodels.tasks import classification, detection


class Shapes(nn.Module):
    """A trunk's widths, strides and normalisation; its maps are empty."""

    def __init__(self, trunk):
        super().__init__()
        self.name, self.channels, self.strides = trunk.name, trunk.channels, trunk.strides
        self.mean, self.std, self.taps = trunk.mean, trunk.std, None

    def forward(self, image):
        batch, _, *size = image.shape
        maps = zip(self.channels, self.strides, strict=True)
        return [torch.zeros(batch, c, *(-(-side // s) for side in size), device=image.device) for c, s in maps]


def same(x, *statistics, training=False, **options):
    """What a batch norm does to a shape, and its complaint about a single value per channel."""
    if training or (len(statistics) > 4 and statistics[4]):
        F._verify_batch_size(x.size())
    return x


def resized(x, size=None, *options, **more):
    """What an interpolation does to a shape."""
    size = [size] if isinstance(size, int) else size
    return x.new_empty(*x.shape[:2], *size) if size is not None else x


@functools.cache
def shapes(build, name, output_stride):
    with torch.device("meta"):
        return Shapes(build(name=name, output_stride=output_stride, weights=None))


@pytest.fixture
def hollow(monkeypatch):
    """Trunks, batch norms and interpolations keep shapes alone; heads, losses and all other layers are the real ones.

    On the meta device those three are decomposed into thousands of small operations: a second for each model.
    """
    build = backbone.build_backbone
    for module in (segmentor, classification, detection):
        monkeypatch.setattr(
            module, "build_backbone", lambda name, output_stride=8, **options: shapes(build, name, output_stride)
        )
    monkeypatch.setattr(F, "batch_norm", same)
    monkeypatch.setattr(F, "interpolate", resized)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """The address of a tracking server: several nodes ask for one."""
    server = Server(tmp_path_factory.mktemp("tracking"))
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture(scope="module")
def three_nodes():
    """A head without CPUs and three nodes of two, on this machine."""
    nodes = Nodes(3)
    yield nodes
    nodes.close()
