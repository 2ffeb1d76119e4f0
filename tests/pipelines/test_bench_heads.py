"""The benchmark of the heads: bytes counted by hand, one unit at its smallest, wrong peers and names refused."""

import argparse
import dataclasses

import pytest
import torch

from pipelines.base.errors import InputError
from pipelines.speed import heads
from pipelines.speed.rounds import Disagreement, agreement, in_turns
from pipelines.speed.unit_case import Case, drawn_peaks
from pipelines.speed.units import UNITS
from segmodels.memory import LiveStorages, peak_bytes

SHAPE = (2, 32, (16, 16))


def options(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1)
    heads.add_options(parser)
    args = parser.parse_args(words)
    heads.check(args)
    return args


def test_storages_count_from_the_operation_to_their_end_and_views_count_nothing():
    given = torch.ones(1000)
    with LiveStorages() as live:
        view = given.view(10, 100)
        given.add_(1)
        assert live.now == 0
        double = view * 2
        part = double[0]
        del double
        assert live.now == 4000  # the view holds all of it
        del part
        assert (live.now, live.peak) == (0, 4000)
        half = given.bfloat16()
        both = half + 1
        assert (live.now, live.peak) == (4000, 4000)
        del half, both
    assert live.now == 0


def test_peak_of_both_passes_by_hand():
    x = torch.randn(1000, requires_grad=True)

    def work():
        y = x.exp()  # 4000, held for its own gradient
        z = y * 2  # 4000, held for that of the sine
        loss = z.sin().sum()  # 4000, freed before the backward pass, and 4
        return torch.autograd.grad(loss, x)  # 4 of ones; then cosine and its product, 8000

    assert peak_bytes(work, "cpu") == 4000 + 4000 + 4 + 4 + 8000


def test_peak_of_a_matrix_product_is_its_operands_and_gradients():
    x, weight = (torch.randn(100, 100, requires_grad=True) for _ in range(2))
    ones = torch.ones(100, 100)
    assert peak_bytes(lambda: torch.autograd.grad(x @ weight, (x, weight), ones), "cpu") == 3 * 40000


@pytest.mark.parametrize("name", UNITS)
def test_every_peer_computes_the_same(name):
    assert Case(name, UNITS[name], SHAPE, "cpu").agree() < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [lambda module, x: module(x).roll(1, 3), lambda module, x: module(x) * torch.nan, lambda module, x: x[:, :1]],
    ids=["moved", "not a number", "narrow"],
)
def test_a_wrong_peer_is_refused(wrong):
    case = Case("nl", dataclasses.replace(UNITS["nl"], plain=wrong), SHAPE, "cpu")
    with pytest.raises(Disagreement, match=r"nl: ours and plain differ by .*; allowed: 0\.001"):
        case.agree()


def test_a_gate_at_zero_hides_no_wrong_context():
    case = Case("pam", UNITS["pam"], SHAPE, "cpu")
    with pytest.raises(Disagreement):
        agreement("pam", case.module, {"ours": UNITS["pam"].ours, "identity": lambda module, x: x}, case.inputs)


def test_ranks_one_by_one_are_slower_to_hold_at_the_published_size():
    ours, plain = drawn_peaks(UNITS["tgm+trm"])
    assert plain > 4 * ours > 4 * 16 * 512 * 64 * 64 * 4  # Y itself is among what is held


@pytest.mark.slow
def test_table_has_both_forms_and_the_heads_beside():
    report = heads.measure(options("--only", "tgm+trm", "a2", "fcn", "--size", "16", "16", "--channels", "32"))
    modes = [("training", "2 x 32 x 16 x 16"), *(("evaluation", f"{batch} x 32 x 16 x 16") for batch in (2, 1))]
    assert [(row[0], row[1], row[2], row[6]) for row in report.rows] == [
        (name, form, *mode) for name in ("tgm+trm", "a2") for mode in modes for form in ("ours", "plain")
    ]
    assert report.rows[0][3:6] == ["32", "rank 64", "fp32"]
    assert [row[8] == "–" for row in report.rows] == 2 * [False, False, True, True, True, True]
    assert [row[:3] for row in report.second.rows] == [
        [name, mode, batch]
        for name in ("fcn", "a2")
        for mode, batch in (("training", "2"), ("evaluation", "2"), ("evaluation", "1"))
    ]
    assert report.measured["a2 fp32"]["ours"]["peak"] > 0
    assert report.measured["a2 fp32 in evaluation, batch 1"]["ours"]["both"] == []
    text = report.markdown()
    assert "goal: tgm+trm fp32 2x faster or 4x smaller:" in text
    assert text.count("\n|---") == 2


@pytest.mark.parametrize(
    ("both", "peak", "found"),
    [
        ([0.95, 0.98, 1.01], 1.004, ["equal", "equal"]),
        ([0.97, 0.98, 0.99], 0.994, ["slower", "larger"]),  # near, but all rounds agree
        ([0.90, 0.96, 1.10], 1.006, ["slower", "smaller"]),  # the rounds do not, but it is far
        ([1.01, 1.02, 1.02], 4.0, ["faster", "smaller"]),
    ],
)
def test_equal_is_near_one_and_on_both_sides_of_it(both, peak, found):
    against = {"both": both, "peak": [peak]}
    assert list(heads.verdicts(against).values()) == found
    behind = heads.shortfall(against)
    assert ("both" in behind, "peak" in behind) == ("slower" in found, "larger" in found)


def test_turns_go_both_ways_after_one_that_is_not_counted():
    calls = []
    cases = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    assert in_turns(cases, 2) == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert "".join(calls) == "abbaab"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "rca"], "'rca'; did you mean 'rcca'"),
        (["--only", "recone"], "did you mean 'reconet'"),
        (["--dtype", "bf32"], "did you mean"),
        (["--batch", "1"], "--batch of 2 or more"),
        (["--size", "4", "48"], "16 cells or more"),
    ],
)
def test_bad_words_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        options(*words)
