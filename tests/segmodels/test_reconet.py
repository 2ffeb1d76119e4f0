"""RecoNet against naive loops over ranks, written from its equations."""

import pytest
import torch
from naive_layers import agree, cbr, compare, draw, enlarge, randomise, relative, sigmoid

from segmodels.heads.catalog import build_head
from segmodels.heads.maps import Maps
from segmodels.heads.reconet import RecoNet, TensorGeneration, TensorReconstruction, reconet_head

B, C, H, W, R = 2, 6, 5, 3, 4


def unit(rank=R, size=(H, W), resample=False):
    """TGM and TRM in float64 with weights and λ far from their start."""
    tgm, trm = TensorGeneration(C, size, rank, resample=resample).double(), TensorReconstruction(rank).double()
    for layer in (tgm.c, tgm.h, tgm.w):
        torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(trm.weight)
    return tgm, trm


def matrices(tgm):
    """W_c, W_h and W_w, (r, n, n) each."""
    return [layer.weight.unflatten(0, (R, -1)) for layer in (tgm.c, tgm.h, tgm.w)]


def naive(x, w_c, w_h, w_w, weight):
    """A = Σ λ_i v_c[i] ⊗ v_h[i] ⊗ v_w[i], Y = A · x, term by term; w_* are (r, n, n)."""
    return sum(naive_ranks(x, w_c, w_h, w_w, weight))


def naive_ranks(x, w_c, w_h, w_w, weight):
    """A_i · x of every rank i, λ_i included, image by image."""
    lambda_ = weight.exp() / weight.exp().sum()
    images = []
    for b in range(x.shape[0]):
        u_c = torch.stack([x[b, c].sum() / (H * W) for c in range(C)])
        u_h = torch.stack([x[b, :, h].sum() / (C * W) for h in range(H)])
        u_w = torch.stack([x[b, :, :, w].sum() / (C * H) for w in range(W)])
        ranks = []
        for i in range(len(weight)):
            v_c, v_h, v_w = (sigmoid(m[i] @ u) for m, u in ((w_c, u_c), (w_h, u_h), (w_w, u_w)))
            ranks.append(lambda_[i] * v_c[:, None, None] * v_h[None, :, None] * v_w[None, None, :] * x[b])
        images.append(torch.stack(ranks))
    return torch.stack(images, 1)


def test_equals_the_loop_in_outputs_and_gradients():
    tgm, trm = unit()
    x = draw(B, C, H, W)
    slow = naive(x, *matrices(tgm), trm.weight)
    compare(trm(x, *tgm(x)), slow, [x, *tgm.parameters(), trm.weight])


@pytest.mark.parametrize("training", [False, True])
def test_whole_context_equals_its_equations(training):
    """Three images: the norm of the two global vectors of a pair would leave nothing but their signs."""
    net = randomise(RecoNet(C, (H, W), R, tgm_trm=True, gpm=True, resample=False)).train(training)
    x = draw(3, C, H, W)
    g = cbr(net.gpm.project, x.mean((2, 3), keepdim=True)) * torch.ones_like(x)
    y = naive(x, *matrices(net.tgm), net.trm.weight)
    compare(net(x), cbr(net.fuse, torch.cat([x, y, g], 1)), [x, *net.parameters()])


def test_gradcheck():
    tgm, trm = unit(rank=2)
    x = torch.randn(1, C, H, W, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: trm(x, *tgm(x)), (x,))


def test_gates_and_lambda_are_in_0_1():
    tgm, trm = unit()
    assert trm.lambda_.sum().item() == pytest.approx(1)
    assert ((trm.lambda_ > 0) & (trm.lambda_ < 1)).all()
    assert torch.equal(TensorReconstruction(R).lambda_, torch.full((R,), 1 / R))
    gates = tgm(torch.randn(B, C, H, W, dtype=torch.float64))
    assert [tuple(v.shape) for v in gates] == [(B, R, C), (B, R, H), (B, R, W)]
    assert all(((v > 0) & (v < 1)).all() for v in gates)


def test_rows_gate_rows():
    """Square map, one bright row: only its row's gate moves when every matrix is the identity."""
    tgm, _ = unit(size=(5, 5))
    for layer in (tgm.h, tgm.w):
        layer.weight.data = torch.eye(5, dtype=torch.float64).repeat(R, 1)
    x = torch.zeros(1, C, 5, 5, dtype=torch.float64)
    x[:, :, 2] = 1
    _, v_h, v_w = tgm(x)
    assert torch.allclose(v_h[0, 0], torch.tensor([0, 0, 1.0, 0, 0]).double().sigmoid())
    assert torch.allclose(v_w[0, 0], torch.full((5,), 1 / 5).double().sigmoid())


def test_start_is_kaiming_fan_out_of_one_rank():
    tgm = TensorGeneration(64, (32, 48), 16)
    for layer, n in ((tgm.c, 64), (tgm.h, 32), (tgm.w, 48)):
        assert layer.weight.std().item() == pytest.approx((2 / n) ** 0.5, rel=0.03)


def test_resample_is_the_identity_at_its_own_size():
    tgm, _ = unit()
    free, _ = unit(resample=True)
    free.load_state_dict(tgm.state_dict())
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(tgm(x), free(x), strict=True))


def stretched(v, length):
    """Linear interpolation with aligned ends, entry by entry: (B, n) -> (B, length)."""
    return enlarge(v[:, None, :, None], (length, 1))[:, 0, :, 0]


@pytest.mark.parametrize("size", [(3, 2), (9, 4), (4, 7), (H, 6)])
def test_resample_interpolates_the_pooled_vectors_and_the_gates(size):
    """The row's and the column's on their own grids, there and back, in outputs and gradients."""
    tgm, _ = unit(resample=True)
    x = draw(B, C, *size)
    pooled = x.mean((2, 3)), x.mean((1, 3)), x.mean((1, 2))
    for gates, u, matrix in zip(tgm(x), pooled, matrices(tgm), strict=True):
        v = [sigmoid(stretched(u, matrix.shape[2]) @ m.T) for m in matrix]
        slow = torch.stack([stretched(rank, u.shape[1]) for rank in v], 1)
        assert agree(gates, slow, [x, *tgm.parameters()])


def test_wrong_size_names_given_allowed_and_cure():
    head = build_head("reconet", [8], 3, channels=4, rank=2, feature_size=(4, 6)).eval()
    with pytest.raises(ValueError, match=r"\(4, 7\).*\(4, 6\).*windows of the training crop.*resample: true"):
        head([torch.zeros(1, 8, 4, 7)])
    free = build_head("reconet", [8], 3, channels=4, rank=2, feature_size=(4, 6), resample=True).eval()
    assert free.feature_size is None
    assert free([torch.zeros(1, 8, 4, 7)])["logits"].shape == (1, 3, 4, 7)


def test_ablation_switches():
    def names(**switches):
        return {n for n, _ in reconet_head([8], 3, channels=4, rank=2, feature_size=(4, 4), **switches).named_modules()}

    assert {"context.tgm", "context.trm", "context.gpm"} <= names()
    assert "context.gpm" not in names(gpm=False)
    assert not {"context.tgm", "context.trm"} & names(tgm_trm=False)
    base = reconet_head([8], 3, channels=4, tgm_trm=False, gpm=False)
    assert set(base.state_dict()) == set(build_head("fcn", [8], 3, channels=4).state_dict())
    assert base.feature_size is None


def test_one_image_in_training_is_an_error_with_the_cure():
    head = reconet_head([8], 3, channels=4, rank=2, feature_size=(4, 4)).train()
    with pytest.raises(ValueError, match="Raise the batch"):
        head([torch.randn(1, 8, 4, 4)])
    assert head.eval()([torch.randn(1, 8, 4, 4)])["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0; allowed: an integer of at least 1"),
        ({"rank": 2.5}, "rank is 2.5; allowed: int"),
        ({"channels": -1}, "channels is -1"),
        ({"feature_size": (0, 4)}, "feature_size is 0"),
        ({"feature_size": None}, "feature_size is None"),
        ({"gpm": 1}, "gpm is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"rnak": 3}, r"unknown keyword 'rnak' of head 'reconet'; allowed: channels=512, rank=64.*'rank'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("reconet", [8], 3, **{"channels": 4, "rank": 2, "feature_size": (4, 4)} | keywords)


def test_unknown_head_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown head 'reconnet'; allowed: fcn, .*Did you mean 'reconet'\?"):
        build_head("reconnet", [8], 3)


def test_sub_attention_maps_are_what_each_rank_contributes():
    head = randomise(reconet_head([8], 3, channels=C, rank=R, feature_size=(H, W))).eval()
    maps, features = Maps(), [draw(B, 8, H, W)]
    assert torch.equal(head(features, maps=maps)["logits"], head(features)["logits"])
    x = cbr(head.reduce, features[0])
    ranks = naive_ranks(x, *matrices(head.context.tgm), head.context.trm.weight).mean(2).transpose(0, 1)
    assert maps["sub_attention"].shape == (B, R, H, W)
    for i in range(R):
        assert relative(maps["sub_attention"][:, i], ranks[:, i]) < 1e-10, i
    a = torch.einsum("r,brc,brh,brw->bchw", *(maps[name] for name in ("lambda_", "v_c", "v_h", "v_w")))
    assert relative(maps["full_attention"], a.mean(1)) < 1e-10
    assert relative(maps["attended"], (a * x).mean(1)) < 1e-10
    assert relative(maps["sub_attention"].sum(1), maps["attended"]) < 1e-10  # the fragments sum to Y
