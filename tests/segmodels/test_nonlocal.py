"""The non-local block against loops over pixels, written from its equations."""

import pytest
import torch
from naive_layers import compare, relative

from segmodels.heads.catalog import build_head
from segmodels.heads.maps import Maps
from segmodels.heads.nonlocal_ import NonLocal, nonlocal_head
from segmodels.plain.nonlocal_ import nonlocal_plain

B, C, E, H, W = 2, 6, 4, 3, 5


def unit(training=False):
    """A block in float64 with its batch norm far from the start."""
    block = NonLocal(C, E)
    norm = block.w_z[1]
    for parameter in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(parameter)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return block.double().train(training)


def naive(block, x):
    """z_i = W_z Σ_j exp(θ_i · φ_j) g_j / Σ_j exp(θ_i · φ_j) + x_i, pixel by pixel; and the softmax, (B, N, N)."""
    theta, phi, g = block.theta_phi_g.weight[:, :, 0, 0].chunk(3)
    conv, norm = block.w_z
    images, relations = [], []
    for b in range(B):
        pixels = [x[b, :, h, w] for h in range(H) for w in range(W)]
        rows, weights = [], []
        for i in pixels:
            scores = torch.stack([((theta @ i) * (phi @ j)).sum() for j in pixels]).exp()
            weights.append(scores / scores.sum())
            y = sum(weight * (g @ j) for weight, j in zip(weights[-1], pixels, strict=True))
            rows.append(conv.weight[:, :, 0, 0] @ y)
        images.append(torch.stack(rows))
        relations.append(torch.stack(weights))
    y = torch.stack(images)
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean = y.mean((0, 1))
        var = ((y - mean) ** 2).mean((0, 1))
    y = (y - mean) / (var + norm.eps) ** 0.5 * norm.weight + norm.bias
    return x + y.mT.reshape(x.shape), torch.stack(relations)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loop_in_outputs_and_gradients(training):
    block = unit(training)
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    leaves = [x, *block.parameters()]
    for form in (block(x), nonlocal_plain(block, x)):
        compare(form, naive(block, x)[0], leaves)


def test_channels_last_changes_nothing():
    block, x = unit(), torch.randn(B, C, H, W, dtype=torch.float64)
    assert relative(block(x.contiguous(memory_format=torch.channels_last)), block(x)) < 1e-10


def test_starts_as_the_identity():
    x = torch.randn(B, C, H, W)
    assert torch.equal(NonLocal(C, E)(x), x)


def test_map_is_the_row_of_the_asked_pixel():
    block, x, maps = unit(), torch.randn(B, C, H, W, dtype=torch.float64), Maps((0.5, 0.7))
    assert torch.equal(block(x, maps), block(x))
    assert torch.allclose(maps["relation"], naive(block, x)[1][:, 1 * W + 3].view(B, H, W))
    head = nonlocal_head([C], 3, channels=4).eval()
    maps = Maps()
    head([x.float()], maps)
    assert maps["relation"].shape == (B, H, W)


def test_cost(golden):
    golden(lambda: NonLocal(512, 256), 525312, 10.7374, (1, 512, 64, 64))


def test_half_the_width_is_the_default():
    assert nonlocal_head([8], 3, channels=12).context.w_z[0].in_channels == 6
    assert nonlocal_head([8], 3, channels=12, embed_channels=5).context.w_z[0].in_channels == 5


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"channels": 0}, "channels is 0; allowed: an integer of at least 1"),
        ({"embed_channels": -2}, "embed_channels is -2; allowed: an integer of at least 1"),
        ({"embed_channels": 2.0}, "embed_channels is 2.0; allowed: int"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("nonlocal", [8], 3, **{"channels": 4} | keywords)
