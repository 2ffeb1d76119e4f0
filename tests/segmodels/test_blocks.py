"""Context in a ResNet's blocks: where it stands, what it costs, which weights load; gates against loops."""

import pytest
import torch
from naive_layers import assert_parity, draw, norm, randomise, relu, sigmoid
from torch import nn

from segmodels.backbone import build_backbone
from segmodels.blocks import ReasonedGate, ResidualAttention
from segmodels.cost import conv_matmul_macs
from segmodels.weights import load_weights

SMALL = "test_resnet"  # a block per stage, of 32, 48, 192 and 96 channels
SR = {"name": "sr", "place": "layer4", "ratio": 2}
CONTEXTS = [
    {"name": "se", "place": "blocks"},
    {"name": "cbam", "place": "blocks"},
    {"name": "sr", "place": "blocks"},
    {"name": "sr", "place": "blocks", "reasoning": "sa", "nodes": 4},
    SR,
    {"name": "nonlocal", "place": "layer4", "embed_channels": 8},
    {"name": "isa", "place": "layer4", "embed_channels": 8, "partition": [2, 2]},
]


def built(context=None, name=SMALL, weights=None):
    return build_backbone(name, 32, weights, context=context)


def meta(context, name):
    with torch.device("meta"):
        return built(context, name).eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def saved(state, path):
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "context", "added"),
    [
        # SRNet's Table X prints 25.56, 28.09, 28.09 and 25.64 M for ResNet-50, 44.55, 49.33 and 44.70 for ResNet-101.
        ("resnet50", {"name": "se", "place": "blocks"}, 28_088_024 - 25_557_032),
        ("resnet50", {"name": "cbam", "place": "blocks"}, 28_089_624 - 25_557_032),
        ("resnet50", {"name": "sr", "place": "blocks"}, 85_088),
        ("resnet101", {"name": "se", "place": "blocks"}, 4_777_712),
        ("resnet101", {"name": "sr", "place": "blocks"}, 161_792),  # 44.71 M: 0.01 too many
        ("resnet50", {"name": "sr", "place": "layer4"}, 603_000),
        ("resnet50", {"name": "nonlocal", "place": "layer4"}, 3 * (4 * 2048 * 1024 + 2 * 2048)),
        ("resnet50", {"name": "nonlocal", "place": "before_last_of_layer3"}, 4 * 1024 * 512 + 2 * 1024),
        ("resnet101", {"name": "isa", "place": "before_last_of_layer3"}, 5_253_120),
    ],
)
def test_parameters(name, context, added):
    assert count(meta(context, name)) - count(meta(None, name)) == added


@pytest.mark.parametrize(("name", "giga"), [("sr", 0.56), ("nonlocal", 29.45)])
def test_cost_at_the_size_of_table_ix(name, giga):
    """Printed are +0.56 and +30.5 GMACs at 1200 x 800; the latter is 3.5 % off."""
    image = torch.zeros(1, 3, 800, 1200, device="meta")
    plain, more = (meta(c, "resnet50") for c in (None, {"name": name, "place": "layer4"}))
    with torch.no_grad():
        assert conv_matmul_macs(more, image) - conv_matmul_macs(plain, image) == pytest.approx(giga * 1e9, rel=2e-3)


@pytest.mark.parametrize("training", [False, True])
def test_the_reasoned_gate_equals_its_equations(training):
    net = randomise(ReasonedGate(12, 3, "gcn")).train(training)
    x = draw(2, 12, 3, 5)
    g = torch.stack([sum(x[:, :, i, j] for i in range(3) for j in range(5))]).squeeze(0).div(15).view(2, 3, 4)
    mix, update = net.reason.adjacency.weight[:, :, 0], net.reason.update.weight[:, :, 0]
    mixed = torch.stack([sum(mix[n, m] * g[:, m] for m in range(3)) for n in range(3)], 1)
    z = relu(norm(net.reason.adjacency_norm, mixed)) + g
    states = torch.stack([sum(update[s, t] * z[:, :, t] for t in range(4)) for s in range(4)], 1)  # (B, d, K)
    gate = sigmoid(relu(norm(net.reason.update_norm, states)))
    assert_parity(net(x), torch.stack([x[:, c] * gate[:, c % 4, c // 4, None, None] for c in range(12)], 1), net, x)


def test_a_gate_stands_before_the_shortcut_and_a_unit_behind_the_last_relu():
    gated, unit = built({"name": "sr", "place": "blocks"}).eval(), built(SR).eval()
    x = torch.randn(2, 192, 4, 5)
    with torch.no_grad():
        for trunk in (gated.trunk, unit.trunk):
            block = trunk.layer4[0]
            y = block.act1(block.bn1(block.conv1(x)))
            y = block.act2(block.bn2(block.conv2(y))) if hasattr(block, "conv3") else block.bn2(block.conv2(y))
            y = block.bn3(block.conv3(y)) if hasattr(block, "conv3") else y
            y = y if block.se is None else block.se(y)
            y = (y + block.downsample(x)).relu()
            last = block.act3 if hasattr(block, "act3") else block.act2
            y = last[1](y) if isinstance(last, nn.Sequential) else y
            assert torch.allclose(block(x), y, atol=1e-6)


@pytest.mark.parametrize("context", CONTEXTS[4:], ids=lambda c: c["name"])
def test_a_residual_unit_starts_as_the_identity_and_learns(context, tmp_path):
    plain = built().eval()
    path = saved(plain.trunk.state_dict(), tmp_path / "plain.pth")
    more, image = built(context, weights=path).eval(), torch.randn(2, 3, 129, 97)
    with torch.no_grad():
        assert torch.equal(more(image)[3], plain(image)[3])
    for module in more.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    with torch.no_grad():
        assert not torch.allclose(more(image)[3], plain(image)[3], atol=1e-2)
    more.train()(image)[3].square().sum().backward()
    added = [p for n, p in more.trunk.named_parameters() if n.startswith(more.context)]
    assert added
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in added)


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda c: f"{c['place']}-{c['name']}")
def test_files_of_plain_trunks_and_of_trunks_with_the_same_context_load(context, tmp_path):
    plain, source = built(), built(context)
    loaded = built(context, weights=saved(plain.trunk.state_dict(), tmp_path / "plain.pth")).trunk.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in plain.trunk.state_dict().items())
    fresh = loaded.keys() - plain.trunk.state_dict().keys()
    assert fresh
    assert all(key.startswith(source.context) for key in fresh)
    own = {f"backbone.trunk.{k}": torch.rand_like(v, dtype=torch.float32) for k, v in source.trunk.state_dict().items()}
    loaded = built(context, weights=saved({"model": own}, tmp_path / "own.pt")).trunk.state_dict()
    assert all(torch.equal(v.float(), own[f"backbone.trunk.{k}"].to(v.dtype).float()) for k, v in loaded.items())


def test_half_a_context_and_a_context_that_a_plain_trunk_lacks_are_refused(tmp_path):
    state = built(SR).trunk.state_dict()
    path = saved(state, tmp_path / "sr.pth")
    with pytest.raises(ValueError, match=r"another model's weights: 0 keys missing.*more than test_resnet has"):
        built(weights=path)
    kept = {k: v for k, v in state.items() if "reason" not in k}
    with pytest.raises(ValueError, match=r"another model's weights: .*keys missing.*reason"):
        built(SR, weights=saved(kept, tmp_path / "half.pth"))


def test_a_plain_file_says_what_stays_fresh(tmp_path):
    trunk, path = built(SR), saved(built().trunk.state_dict(), tmp_path / "plain.pth")
    taken = load_weights(trunk.trunk, path, SMALL, added=trunk.context)
    assert taken.missing.endswith("of the trunk's context, which are fresh")
    assert load_weights(built().trunk, path, SMALL).missing == "nothing"


@pytest.mark.parametrize(
    "context", [CONTEXTS[2], {"name": "isa", "place": "before_last_of_layer3", "partition": [2, 2]}]
)
def test_programs_have_it(context):
    trunk = built(context, SMALL if context["name"] == "sr" else "resnet18").eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        program = torch.export.export(trunk, (image,)).module()
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(program(image), trunk(image), strict=True))


def test_interlaced_attention_sums_with_its_input():
    unit = ResidualAttention(8, 4, partition=(2, 2)).eval()
    nn.init.ones_(unit.norm.weight)
    x = torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        assert torch.allclose(unit(x) - x, unit.norm(unit.restore(unit.attention(x))), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "context", "message"),
    [
        ("xception65", SR, "backbone.context is for ResNets; allowed for xception65, which is none: null"),
        ("df1", SR, "allowed for df1, which is none: null"),
        ("timm/res2net50_26w_4s", SR, "whose blocks are others: null"),
        ("timm/seresnet50", CONTEXTS[0], "of timm/seresnet50 have gates already"),
        (SMALL, {"name": "sr"}, "unknown place of backbone.context ''; allowed: blocks, layer4, before_last"),
        (SMALL, {"name": "sr", "place": "layer5"}, "Did you mean 'layer4'"),
        (SMALL, {"place": "blocks"}, "unknown name of backbone.context in blocks ''; allowed: se, cbam, sr"),
        (SMALL, {"name": "se", "place": "layer4"}, "in layer4 'se'; allowed: sr, nonlocal, isa"),
        (SMALL, {"name": "isa", "place": "before_last_of_layer3"}, "layer3 of test_resnet has one block"),
        (SMALL, SR | {"node": 4}, "unknown keyword 'node' of backbone.context 'sr' in layer4; .*Did you mean 'nodes'"),
        (SMALL, CONTEXTS[2] | {"nodes": 5}, "nodes is 5; allowed: a divisor of channels, which is 32"),
        (SMALL, CONTEXTS[2] | {"reasoning": "fc"}, "unknown reasoning 'fc'; allowed: gcn, eq5, sa"),
    ],
)
def test_bad_contexts(name, context, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(name, 32, context=context)
