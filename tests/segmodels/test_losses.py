"""Loss terms against loops written from their definitions, their gradients, and sums over parts of a batch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmodels import entropy
from segmodels.losses import TERMS, Objective
from segmodels.memory import peak_bytes
from segmodels.terms import boundary, class_pixels, cp, cross_entropy, dice, lovasz_softmax, near_boundary, ohem, se

K = 4
MAPS = [name for name, term in TERMS.items() if term.takes == "map"]
VECTORS = [name for name, term in TERMS.items() if term.takes == "vector"]


def batch(images=2, height=5, width=7, ignored=0.2):
    """Float64 logits that need a gradient, and a mask in which class 3 is absent from image 0."""
    logits = torch.randn(images, K, height, width, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, K, (images, height, width), dtype=torch.uint8)
    mask[0][mask[0] == 3] = 1
    mask[torch.rand(mask.shape) < ignored] = 255
    return logits, mask


def output_for(name, logits):
    """What a term takes: the logits, or a vector of theirs."""
    if TERMS[name].takes == "map":
        return logits
    vector = logits.mean((2, 3)) * 3
    return vector.softmax(1) if name == "cp" else vector


def pixels_of(logits, mask):
    """(probabilities, class) of the labelled pixels, as numpy."""
    p = logits.detach().softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).numpy()
    y = mask.flatten().numpy()
    return [(row, int(label)) for row, label in zip(p, y, strict=True) if label != 255]


def test_mean_over_labelled_pixels():
    logits, mask = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    mask[0] = 255
    expected = F.cross_entropy(logits[1:], mask[1:].long())
    assert torch.allclose(cross_entropy(logits, mask), expected)
    assert cross_entropy(logits.bfloat16(), mask).dtype == torch.float32


@pytest.mark.parametrize(
    ("smoothing", "weights"), [(0.0, None), (0.1, None), (0.0, [1, 2, 0.5, 0]), (0.2, [1, 2, 3, 4])]
)
def test_cross_entropy_by_hand(smoothing, weights):
    logits, mask = batch()
    w = weights or [1] * K
    losses = [
        -(1 - smoothing) * w[y] * math.log(p[y]) - smoothing / K * sum(w[k] * math.log(p[k]) for k in range(K))
        for p, y in pixels_of(logits, mask)
    ]
    loss = cross_entropy(logits, mask, label_smoothing=smoothing, class_weights=weights)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.0, 9), (0.05, 9), (1.0, 1), (0.0, 10_000)])
@pytest.mark.parametrize("weights", [None, [1, 2, 0.5, 3]])
def test_ohem_by_hand(threshold, min_kept, weights):
    logits, mask = batch()
    hard = sorted((p[y], y) for p, y in pixels_of(logits, mask))
    below = sum(p < threshold for p, _ in hard)
    kept = hard[: max(below, min_kept)]
    losses = [(weights or [1] * K)[y] * -math.log(p) for p, y in kept]
    loss = ohem(logits, mask, threshold=threshold, min_kept=min_kept, class_weights=weights)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("absent", [False, True])
def test_dice_by_hand(absent):
    logits, mask = batch()
    if absent:
        mask[mask == 2] = 0
    pixels = pixels_of(logits, mask)
    losses = []
    for k in {y for _, y in pixels}:
        overlap = sum(p[k] for p, y in pixels if y == k)
        squares = sum(p[k] ** 2 for p, _ in pixels) + sum(y == k for _, y in pixels)
        losses.append(1 - (2 * overlap + 0.5) / (squares + 0.5))
    assert dice(logits, mask, smooth=0.5).item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("absent", [False, True])
def test_lovasz_by_hand(absent):
    """The Lovász extension by its definition: sorted errors times the growth of the Jaccard loss of a growing set."""
    logits, mask = batch()
    if absent:
        mask[mask == 2] = 0
    pixels = pixels_of(logits, mask)
    losses = []
    for k in sorted({y for _, y in pixels}):
        errors = [1 - p[k] if y == k else p[k] for p, y in pixels]
        truth = {i for i, (_, y) in enumerate(pixels) if y == k}
        value, wrong, before = 0.0, set(), 0.0
        for i in sorted(range(len(pixels)), key=lambda i: -errors[i]):
            wrong.add(i)
            jaccard = 1 - len(truth - wrong) / len(truth | wrong)  # of the prediction that is wrong exactly there
            value, before = value + errors[i] * (jaccard - before), jaccard
        losses.append(value)
    assert lovasz_softmax(logits, mask).item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_lovasz_of_a_hard_prediction_is_one_minus_the_mean_iou():
    _, mask = batch(ignored=0)
    prediction = torch.randint(0, K, mask.shape)
    logits = 200 * F.one_hot(prediction, K).permute(0, 3, 1, 2).double()
    hits = [((prediction == k) & (mask == k)).sum() / ((prediction == k) | (mask == k)).sum() for k in range(K)]
    assert lovasz_softmax(logits, mask).item() == pytest.approx(1 - np.mean(hits), rel=1e-6)


@pytest.mark.parametrize("width", [1, 2, 9])
def test_boundary_by_hand(width):
    logits, mask = batch()
    mask[0, :4, :] = 1
    mask[0, 1, 3] = 255  # no boundary to its neighbours
    weight = torch.ones(mask.shape, dtype=torch.float64)
    for b, i, j in np.ndindex(*mask.shape):
        square = mask[b, max(i - width, 0) : i + width + 1, max(j - width, 0) : j + width + 1]
        if mask[b, i, j] != 255 and any(v not in (255, mask[b, i, j]) for v in square.flatten()):
            weight[b, i, j] = 3
    assert 0 < (weight == 3).sum() < (mask != 255).sum() or width == 9
    assert torch.equal(near_boundary(mask, width), weight == 3)
    entropy = F.cross_entropy(logits, mask.long(), ignore_index=255, reduction="none")
    expected = (entropy * weight).sum() / (mask != 255).sum()
    assert boundary(logits, mask, width=width, factor=3.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_se_and_cp_by_hand():
    logits, mask = batch(images=3)
    mask[2] = 255
    presence, prior = output_for("se", logits), output_for("cp", logits)
    for term, output in ((se, presence), (cp, prior)):
        losses = []
        for b in range(2):
            for k in range(K):
                pixels, total = (mask[b] == k).sum().item(), (mask[b] != 255).sum().item()
                target = float(pixels > 0) if term is se else pixels / total
                p = output[b, k].sigmoid().item() if term is se else output[b, k].item()
                losses.append(-target * math.log(p) - (1 - target) * math.log(1 - p))
        assert term(output, mask).item() == pytest.approx(sum(losses) / (3 * K), rel=1e-7)  # image 2 counts 0


def test_class_pixels():
    mask = torch.tensor([[[0, 2, 255], [2, 2, 255]], [[1, 1, 1], [1, 1, 0]]], dtype=torch.uint8)
    assert class_pixels(mask, 3).tolist() == [[1, 0, 3], [1, 5, 0]]


def test_cp_may_take_the_least_classs_pixels_off_as_the_public_code_does():
    """There the counts minus the least are scaled to 0..1 and then to a sum of 1: to these shares."""
    mask = torch.tensor([[[0] * 5 + [1] * 3 + [2] * 2], [[0] * 6 + [2] * 4]], dtype=torch.uint8)
    prior = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], dtype=torch.float64)

    def entropy(shares):
        pairs = zip(prior.tolist(), shares, strict=True)
        return sum(-t * math.log(p) - (1 - t) * math.log(1 - p) for row in pairs for p, t in zip(*row, strict=True)) / 6

    assert cp(prior, mask).item() == pytest.approx(entropy([[0.5, 0.3, 0.2], [0.6, 0, 0.4]]))
    least = [(n - 2) / 3 for n in (5, 3, 2)]  # over the range
    assert cp(prior, mask, subtract_least=True).item() == pytest.approx(
        entropy([[n / sum(least) for n in least], [0.6, 0, 0.4]])
    )
    even = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    assert cp(prior[:1], even, subtract_least=True) == cp(prior[:1], even)


def test_cp_of_certain_probabilities_is_finite():
    prior = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    loss = cp(prior, mask)
    loss.backward()
    assert loss.isfinite()
    assert prior.grad.isfinite().all()
    assert cp(torch.tensor([[0.5, 0.5]]), mask).item() == pytest.approx(math.log(2))  # the target's own entropy


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_that_of_finite_differences(name):
    logits, mask = batch(height=3, width=4)
    function = TERMS[name].function
    options = {"min_kept": 3} if name == "ohem" else {}
    assert torch.autograd.gradcheck(lambda x: function(output_for(name, x), mask, **options), logits)


@pytest.mark.parametrize("name", TERMS)
def test_no_labels_give_zero_with_zero_gradient(name):
    logits, mask = batch(ignored=1.1)
    assert (mask == 255).all()
    loss = TERMS[name].function(output_for(name, logits), mask)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", TERMS)
def test_float32_inside_under_autocast(name):
    logits, mask = batch()
    low = output_for(name, logits).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = Objective({"out": {name: 1.0}})({"out": low}, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(TERMS[name].function(low.double(), mask).item(), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_parts_of_a_batch_add_up_for_means(name):
    """Images 0; 1 and 2; 3, as three workers would hold them: unequal numbers of images and of labels."""
    logits, mask = batch(images=4)
    mask[1] = 255
    objective = Objective({"out": {name: 1.0}})
    outputs = output_for(name, logits)
    whole, _ = objective({"out": outputs}, mask)
    total, logged = 0, 0
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        pixels = (mask[part] != 255).sum() / (mask != 255).sum()
        loss, parts = objective({"out": outputs[part]}, mask[part], pixels, len(mask[part]) / 4)
        total, logged = total + loss, logged + parts[f"out/{name}"]
    grad, grad_of_parts = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (whole, total))
    same = torch.allclose(total, whole, rtol=1e-6) and torch.allclose(grad, grad_of_parts, rtol=1e-5, atol=1e-9)
    assert torch.allclose(total, logged)
    assert same == (TERMS[name].exact or name == "ohem")  # all pixels of so small a part are kept
    if name == "ohem":
        function = TERMS[name].function
        few = [function(outputs[i : i + 1], mask[i : i + 1], min_kept=2, threshold=0.0) for i in (0, 2, 3)]
        assert not torch.allclose(sum(few) / 3, function(outputs, mask, min_kept=6, threshold=0.0))


def test_objective_weighs_and_names_its_terms():
    outputs = {name: torch.randn(1, 3, 4, 4, requires_grad=True) for name in ("logits", "aux")}
    outputs["presence"] = torch.randn(1, 3, requires_grad=True)
    mask = torch.randint(0, 3, (1, 4, 4), dtype=torch.uint8)
    terms = {
        "logits": {"cross_entropy": 1.0, "boundary": {"factor": 3, "width": 1}},
        "aux": {"cross_entropy": {"weight": 0.2, "label_smoothing": 0.1, "class_weights": [1, 2, 3]}},
        "presence": {"se": 0.5},
    }
    total, parts = Objective(terms)(outputs, mask)
    losses = [
        cross_entropy(outputs["logits"], mask),
        boundary(outputs["logits"], mask, factor=3, width=1),
        cross_entropy(outputs["aux"], mask, label_smoothing=0.1, class_weights=[1, 2, 3]),
        se(outputs["presence"], mask),
    ]
    assert torch.allclose(total, losses[0] + losses[1] + 0.2 * losses[2] + 0.5 * losses[3])
    assert total.requires_grad
    assert list(parts) == ["logits/cross_entropy", "logits/boundary", "aux/cross_entropy", "presence/se"]
    assert all(torch.allclose(part, loss) for part, loss in zip(parts.values(), losses, strict=True))
    assert not any(part.requires_grad for part in parts.values())


def test_shares_scale_by_what_a_term_is_a_mean_over():
    outputs = {"logits": torch.randn(1, 3, 4, 4), "presence": torch.randn(1, 3)}
    mask = torch.randint(0, 3, (1, 4, 4), dtype=torch.uint8)
    objective = Objective({"logits": {"cross_entropy": 1.0}, "presence": {"se": 1.0}})
    _, parts = objective(outputs, mask, torch.tensor(0.25), 0.5)
    assert torch.allclose(parts["logits/cross_entropy"], 0.25 * cross_entropy(outputs["logits"], mask))
    assert torch.allclose(parts["presence/se"], 0.5 * se(outputs["presence"], mask))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"crossentropy": 1.0}, r"unknown loss term 'crossentropy'; allowed: cross_entropy, ohem.* Did you mean"),
        ({}, "at least one term"),
        ({"cross_entropy": -1}, "weight of loss term 'cross_entropy' is -1; allowed: a finite number, 0 or more"),
        ({"cross_entropy": "1e-1"}, "is '1e-1'; allowed"),
        ({"cross_entropy": True}, "is True; allowed"),
        ({"cross_entropy": {"weight": math.nan}}, "is nan; allowed"),
        ({"ohem": {"treshold": 0.7}}, r"unknown keyword 'treshold' of loss term 'ohem'.* Did you mean 'threshold'\?"),
        ({"ohem": {"min_kept": 0.5}}, "min_kept is 0.5; allowed: int"),
        ({"ohem": {"min_kept": 0}}, "min_kept is 0; allowed: 1 or more"),
        ({"ohem": {"threshold": 1.5}}, "threshold is 1.5; allowed: from 0 to 1"),
        ({"cross_entropy": {"label_smoothing": 1.0}}, "label_smoothing is 1.0; allowed: from 0 to below 1"),
        ({"cross_entropy": {"class_weights": 3}}, "class_weights is 3; allowed: null, or a list"),
        ({"cross_entropy": {"class_weights": [0, 0]}}, "not all 0"),
        ({"cross_entropy": {"class_weights": "abc"}}, "class_weights is 'abc'"),
        ({"cross_entropy": {"ignore": 0}}, "unknown keyword 'ignore'"),
        ({"dice": {"smooth": 0.0}}, "smooth is 0.0; allowed: above 0"),
        ({"boundary": {"width": 0}}, "width is 0; allowed: 1 or more"),
        ({"boundary": {"factor": math.inf}}, "factor is inf; allowed: above 0"),
    ],
)
def test_a_wrong_term_is_named(terms, message):
    with pytest.raises(ValueError, match=message):
        Objective({"logits": terms})


def test_outputs_that_do_not_fit_are_named():
    mask = torch.zeros(1, 1, 1, dtype=torch.uint8)
    outputs = {"logits": torch.zeros(1, 2, 1, 1), "presence": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match=r"output 'logit'; the model gave: logits, presence. Did you mean 'logits'\?"):
        Objective({"logit": {"cross_entropy": 1.0}})(outputs, mask)
    with pytest.raises(ValueError, match=r"'se' takes a vector \(B, K\), .*; output 'logits' has shape \(1, 2, 1, 1\)"):
        Objective({"logits": {"se": 1.0}})(outputs, mask)
    with pytest.raises(ValueError, match=r"'dice' takes a map .*; output 'presence' .* Terms for it: se, cp"):
        Objective({"presence": {"dice": 1.0}}).check({"presence": torch.zeros(1, 2, device="meta")})
    with pytest.raises(ValueError, match="class_weights has 3 numbers; allowed: 2, one per class"):
        Objective({"logits": {"cross_entropy": {"class_weights": [1, 1, 1]}}})(outputs, mask)


def test_every_option_has_its_limits():
    from segmodels.checks import keywords_of
    from segmodels.losses import LIMITS

    assert {name for term in TERMS.values() for name in keywords_of(term.function)} <= set(LIMITS)


LARGE = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"label_smoothing": 0.1, "class_weights": (1, 2, 0.5, 3)}),
    ("ohem", {"threshold": 0.3, "min_kept": 20, "class_weights": (1, 2, 0.5, 0)}),
    ("boundary", {"width": 1, "factor": 3.0}),
]


@pytest.mark.parametrize(("name", "options"), LARGE)
@pytest.mark.parametrize("part", [1, 2 * 8 * K * 5 * 7])  # bytes: an image at a time, or two of three
def test_large_maps_get_the_same_loss_and_gradient(name, options, part, monkeypatch):
    logits, mask = batch(images=3)
    mask[1] = 255
    expected = TERMS[name].function(logits, mask, **options)
    (gradient,) = torch.autograd.grad(expected * 3, logits)
    monkeypatch.setattr(entropy, "LARGE_BYTES", 1)
    monkeypatch.setattr(entropy, "PART_BYTES", part)
    plain, used = entropy.plain_entropy, []
    monkeypatch.setattr(entropy, "plain_entropy", lambda part, *rest: used.append(len(part)) or plain(part, *rest))
    loss = TERMS[name].function(logits, mask, **options)
    assert torch.equal(loss, expected)
    assert used == ([1, 1, 1] if part == 1 else [2, 1])
    assert torch.allclose(torch.autograd.grad(loss * 3, logits)[0], gradient, rtol=1e-12, atol=1e-15)


def test_of_large_maps_only_the_gradient_is_a_second_copy(monkeypatch):
    """Logits, their softmax, and two maps of slopes by PyTorch; logits, slopes and a part of the images by ours."""
    mask = torch.randint(0, 30, (8, 16, 16), dtype=torch.uint8)
    size = 4 * 8 * 30 * 16 * 16

    def step():
        cross_entropy(torch.zeros(8, 30, 16, 16, requires_grad=True), mask).backward()

    before = peak_bytes(step, "cpu") / size
    monkeypatch.setattr(entropy, "LARGE_BYTES", size - 1)
    monkeypatch.setattr(entropy, "PART_BYTES", size // 8)
    after = peak_bytes(step, "cpu") / size
    assert before > 3.9, before
    assert after < 2.6, after
