"""Every variant of the contract as ONNX, run by onnxruntime at sizes that the export did not see."""

import numpy as np
import pytest
import torch
from test_heads import EXAMPLE, OTHER, SIZES, build, features
from variants import VARIANTS

from pipelines.serving.program import OPSET, open_onnx, quiet
from pipelines.serving.translations import table

QUICK = ["reconet"]  # bound to its map; a whole free one is in tests/pipelines/test_export.py
SLOW = ["ocnet", "srnet", "ctnet", "ccnet"]  # forms that needed translations, and the papers' heads


def marks(name):
    """Every variant has its form; the whole suite looks at few of them."""
    return [] if name in QUICK else [pytest.mark.slow] if name in SLOW else [pytest.mark.slow, pytest.mark.long]


class Logits(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *maps):
        return self.head(list(maps))["logits"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in VARIANTS])
def test_onnx_gives_what_the_head_gives(name, tmp_path):
    head = Logits(build(name).eval())
    bound = getattr(head.head, "feature_size", None) or getattr(head.head, "one_size_programs", False)
    free = dict.fromkeys((0,) if bound else (0, 2, 3), torch.export.Dim.AUTO)
    sizes, other = (SIZES, SIZES) if bound else (EXAMPLE, OTHER)
    with quiet():
        program = torch.onnx.export(
            head, tuple(features(2, sizes)), dynamic_shapes=((free,) * 4,), opset_version=OPSET, verbose=False,
            input_names=list("abcd"), custom_translation_table=table(), dynamo=True,
        )  # fmt: skip
    program.save(tmp_path / "head.onnx")
    session = open_onnx(tmp_path / "head.onnx", 1)
    for batch, maps in ((3, other), (1, other), (2, sizes)):
        given = dict(zip("abcd", features(batch, maps), strict=True))
        read = {entry.name: given[entry.name].numpy() for entry in session.get_inputs()}  # some heads read one map
        found, meant = session.run(None, read)[0], head(*given.values()).detach().numpy()
        assert found.shape == meant.shape
        assert np.abs(found - meant).max() < 1e-5 * max(1, np.abs(meant).max())
