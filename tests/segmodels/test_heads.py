"""The contract of every head: all variants on small maps, and each head once whole, in a segmentor."""

import contextlib
import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from variants import EXEMPT, VARIANTS

from segmodels import heads
from segmodels.checks import keywords_of
from segmodels.heads.catalog import HEADS, build_head
from segmodels.heads.maps import KINDS, Maps
from segmodels.losses import Objective
from segmodels.segmentor import build_segmentor, classifier_keys
from segmodels.sync_norm import SyncBatchNorm, synchronised

K, CROP = 5, (64, 96)
WIDTHS, SIZES = (8, 12, 16, 32), ((16, 24), (8, 12), (4, 6), (4, 6))
# Larger than SIZES, as an export takes a tile of one cell for a constant
EXAMPLE = ((32, 44), (16, 22), (8, 11), (8, 11))
OTHER = ((40, 56), (20, 28), (10, 14), (10, 14))
TERM = {"presence": "se", "class_prior": "cp"}  # vectors; all other outputs are maps
EXTRA = {"coarse", "presence", "class_prior", "pam", "cam"}

# The maps that pictures are drawn from: of each head, and of its variants that lack or add a part that gives them.
GIVES = {
    "reconet": {"sub_attention", "full_attention", "attended", "v_c", "v_h", "v_w", "lambda_"},
    "reconet-gpm": set(),
    "reconet-base": set(),
    "srnet": {"nodes", "node_channels", "unit_input", "unit_output"},
    "srnet-base": set(),
    "ctnet": {"class_relation"},
    "ctnet-occm": set(),
    "ctnet-se-occm": set(),
    "cbam": {"spatial_gate"},
    "cbam-channels": set(),
    "gc": {"attention"},
    "gc-average": set(),
    "encnet": {"assignment"},
    "ccnet": {"cross"},
    "emanet": {"responsibilities"},
    "danet": {"position"},
    "danet-cam": set(),
    "psanet": {"collect", "distribute"},
    "psanet-collect": {"collect"},
    "psanet-distribute": {"distribute"},
    "ocr": {"regions"},
    "dfseg-sr": {"nodes", "node_channels", "unit_input", "unit_output"},
    "dfseg-sr-gap": {"nodes", "node_channels", "unit_input", "unit_output"},
    "dfseg-sr-fc": {"nodes", "node_channels", "unit_input", "unit_output"},
    "dfseg-sr-sa": {"nodes", "node_channels", "unit_input", "unit_output"},
    "deeplabv3plus-sr": {"nodes", "node_channels", "unit_input", "unit_output"},
    "nonlocal": {"relation"},
    "sa2x": {"relation"},
    "ocnet": {"global", "local", "dense"},
    "ocnet-global": {"global"},
    "ocnet-local": {"local"},
    "ocnet-sa": {"relation"},
    "ocnet-pyramid-sa": {"relation"},
    "ocnet-pyramid-wide-value": set(),  # without the scale 1
    "ocnet-pyramid-unmasked": set(),
    "ocnet-pyramid-global": {"global"},
    "ocnet-asp-global": {"global"},
    "ocnet-asp-local": {"local"},
    "ocnet-asp-sa": {"relation"},
}

every_variant = pytest.mark.parametrize("name", VARIANTS)
every_head = pytest.mark.parametrize("name", HEADS)
# The variants compiled with their backward pass: each head's last, as every head's first is compiled forwards, and
# some that have more of a head's parts. The export checks for all variants that no value decides what is computed.
rewritten = [*{keywords["name"]: name for name, keywords in VARIANTS.items()}.values()]
rewritten += ["cfnet-encoding", "ocnet-uneven", "ocnet-sa"]
# Heads whose own code asks for the mode. For the others, both modes have one graph, except for PyTorch's own layers.
asking = [path.stem for path in sorted(Path(heads.__file__).parent.glob("*.py")) if "self.training" in path.read_text()]


def build(name):
    """A head on narrow maps, awake."""
    torch.manual_seed(0)
    keywords = dict(VARIANTS[name])
    kind = keywords.pop("name")
    if "feature_size" in keywords_of(HEADS[kind]):
        keywords["feature_size"] = SIZES[-1]
    return awake(build_head(kind, WIDTHS, K, **keywords))


def awake(module):
    """Move norms, gates and weights away from a start at 0, which would hide the block before them from the tests."""
    for name, parameter in module.named_parameters():
        if parameter.any() or name.endswith("bias"):
            continue
        if parameter.ndim > 1:
            nn.init.kaiming_uniform_(parameter)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module


def features(batch, sizes=SIZES, dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.rand(batch, width, *size, dtype=dtype) for width, size in zip(WIDTHS, sizes, strict=True)]


def train_loss(head, maps, mask=None):
    """All outputs, resized, under their terms."""
    outputs = {k: F.interpolate(v, (8, 12)) if v.ndim == 4 else v for k, v in head(maps).items()}
    mask = torch.randint(0, K, (len(maps[0]), 8, 12), dtype=torch.uint8) if mask is None else mask
    return Objective({k: {TERM.get(k, "cross_entropy"): 1.0} for k in outputs})(outputs, mask)[0]


def test_every_head_has_a_variant():
    assert {keywords["name"] for keywords in VARIANTS.values()} == set(HEADS)
    assert set(EXEMPT) | set(GIVES) <= set(VARIANTS)


@every_variant
def test_every_parameter_gets_a_finite_gradient(name):
    """All of them a gradient, as DDP waits for each; of zeros exactly where the variant's table says why."""
    head = build(name).train()
    train_loss(head, features(3)).backward()
    trained = [(key, parameter) for key, parameter in head.named_parameters() if parameter.requires_grad]
    for key, parameter in trained:
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    size = {f"head.{key}": parameter.grad.abs().max().item() for key, parameter in trained}
    excused = {key for key in size if any(part in key for part in EXEMPT.get(name, ()))}
    assert not {key for key in size if not size[key] > 1e-9} - excused
    assert all(any(part in key for key in excused) for part in EXEMPT.get(name, ()))
    assert not {key for key in excused if size[key] > 1e-6}  # no excuse where there is a gradient


@every_variant
def test_state_dict_precision_layout_and_batch_hardly_matter(name):
    first, second, maps = build(name).eval(), build(name).eval(), features(3)
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        logits = first(maps)["logits"]
        assert torch.equal(second(maps)["logits"], logits)
        assert set(first(maps)) <= {"logits"} | EXTRA
        one = first([m[1:2] for m in maps])["logits"]
        assert torch.allclose(one, logits[1:2], atol=1e-5)
        last = copy.deepcopy(first).to(memory_format=torch.channels_last)
        assert torch.allclose(
            last([m.to(memory_format=torch.channels_last) for m in maps])["logits"], logits, atol=1e-5
        )
        double = copy.deepcopy(first).double()(features(3, dtype=torch.float64))["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            half = first(maps)["logits"].float()
    assert double.dtype == torch.float64
    assert (half - logits).norm() < 0.06 * logits.norm()


@every_variant
def test_a_crop_without_labels_gives_zero_loss_and_gradient(name):
    head = build(name).train()
    loss = train_loss(head, features(2), torch.full((2, 8, 12), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in head.parameters() if p.requires_grad)


@every_variant
def test_norms_become_synchronised_ones(name):
    head = synchronised(build(name))
    norms = [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(type(norm) is SyncBatchNorm for norm in norms)


@every_head
def test_compiles_without_graph_breaks(name):
    compiles(build(name).train())


@pytest.mark.slow
@pytest.mark.parametrize("name", rewritten)
def test_compiles_with_its_backward_pass(name):
    """Gradients of the graph that a compiler rewrites, relative to the head's greatest.

    Not each to its own size: those of biases that a norm cancels are rounding errors.
    """
    head, maps = build(name).train(), features(2)
    torch._dynamo.reset()
    values, gradients = [], []
    for run in (head, torch.compile(head, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(2)
        outputs = run(maps)
        weights = {key: torch.linspace(-1, 1, value.numel()).view_as(value) for key, value in outputs.items()}
        head.zero_grad()
        sum((value * weights[key]).sum() for key, value in outputs.items()).backward()
        values.append(outputs)
        gradients.append({key: p.grad for key, p in head.named_parameters() if p.grad is not None})
    assert values[0].keys() == values[1].keys()
    assert all(torch.allclose(values[1][key], value, atol=1e-4) for key, value in values[0].items())
    assert gradients[0].keys() == gradients[1].keys()
    greatest = max(gradient.abs().max() for gradient in gradients[0].values())
    for key, gradient in gradients[0].items():
        assert (gradients[1][key] - gradient).abs().max() < 1e-5 * greatest, key


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, keywords in VARIANTS.items() if keywords["name"] in asking])
def test_compiles_without_graph_breaks_in_eval(name):
    compiles(build(name).eval())


def test_no_shared_part_asks_for_the_mode():
    assert asking
    assert set(asking) <= {*HEADS, "interlaced"}  # which refuses small maps in training, and computes the same


def compiles(head):
    """It compiles to one graph, which gives what the head gives."""
    maps = features(2)
    torch._dynamo.reset()
    torch.manual_seed(2)
    plain = head(maps)["logits"]
    torch.manual_seed(2)
    compiled = torch.compile(head, fullgraph=True, backend="eager")(maps)["logits"]
    assert torch.allclose(compiled, plain, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",  # pyramids take seconds each; the whole suite looks at one
    [pytest.param(v, marks=[pytest.mark.long] if v.startswith("ocnet-pyramid-") else []) for v in VARIANTS],
)
def test_exports_with_free_batch_and_where_defined_free_size(name):
    head = build(name).eval()
    bound = getattr(head, "feature_size", None)
    free = dict.fromkeys((0,) if bound else (0, 2, 3), torch.export.Dim.AUTO)
    sizes, other = (SIZES, SIZES) if bound else (EXAMPLE, OTHER)
    program = torch.export.export(head, (features(2, sizes),), dynamic_shapes=([free] * 4,)).module()
    for batch, maps in ((3, other), (1, other), (2, sizes)):
        inputs = features(batch, maps)
        assert torch.allclose(program(inputs)["logits"], head(inputs)["logits"], atol=1e-5)


@pytest.mark.slow
def test_resampling_that_is_exported_at_its_own_grid_takes_other_maps():
    head = build("reconet-resample").eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(head, (features(2),), dynamic_shapes=([free] * 4,)).module()  # of SIZES[-1] cells
    for sizes in (SIZES, OTHER):
        assert torch.allclose(program(features(3, sizes))["logits"], head(features(3, sizes))["logits"], atol=1e-5)


@contextlib.contextmanager
def counted(head):
    """How often each of its modules is called."""
    calls = Counter()
    hooks = [m.register_forward_pre_hook(lambda m, x, key=key: calls.update([key])) for key, m in head.named_modules()]
    yield calls
    for hook in hooks:
        hook.remove()


@every_variant
def test_context_maps_come_with_the_logits(name):
    head, maps, asked = build(name).eval(), features(2), Maps((0.4, 0.7))
    with torch.no_grad():
        with counted(head) as plain:
            logits = head(maps)["logits"]
        with counted(head) as asking_for_maps:
            assert torch.equal(head(maps, maps=asked)["logits"], logits)
    assert asking_for_maps == plain
    assert set(asked) == GIVES.get(name, GIVES.get(VARIANTS[name]["name"], set()))
    assert set(asked) <= set(KINDS)
    assert all(value.isfinite().all() and not value.requires_grad for value in asked.values())
    assert asked.gathered == {}


def segmentor(name, classes=K):
    return build_segmentor(
        num_classes=classes,
        crop=CROP,
        backbone={"name": "resnet18", "output_stride": 16},
        head=VARIANTS[name],
        aux={"name": "fcn", "channels": 8},
    )


@pytest.mark.slow
@every_head
def test_whole_in_a_segmentor(name):
    """Outputs at the image's size, classifiers found, no other parameter bound to the number of classes."""
    torch.manual_seed(0)
    model, images = awake(segmentor(name)).train(), torch.randint(0, 256, (2, 3, *CROP), dtype=torch.uint8)
    outputs = model(images)
    assert {"logits", "aux"} <= set(outputs)
    for key, value in outputs.items():
        assert value.shape == ((2, K) if key in TERM else (2, K, *CROP)), key
    with torch.no_grad():
        assert set(model.eval()(images)) <= {"logits"} | EXTRA - {"pam", "cam"}
    with torch.device("meta"):  # only the shapes, with one more class
        other = segmentor(name, K + 1).state_dict()
    keys = set(classifier_keys(model))
    assert all(model.state_dict()[key].shape[0] == K for key in keys)
    assert {k for k, v in model.state_dict().items() if v.shape != other[k].shape} == keys


def test_a_whole_model_exports_with_free_sizes():
    model = awake(segmentor("srnet")).eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(model, (torch.zeros(2, 3, *CROP, dtype=torch.uint8),), dynamic_shapes=(free,))
    image = torch.randint(0, 256, (1, 3, 80, 112), dtype=torch.uint8)
    assert torch.allclose(program.module()(image)["logits"], model(image)["logits"], atol=1e-4)
