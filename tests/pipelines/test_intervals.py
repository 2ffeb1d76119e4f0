"""Means, paired gains and verdicts against arithmetic written out by hand."""

import math
import random

import pytest

from pipelines.scoring.intervals import NO_DIFFERENCE, Interval, pareto, summarise, t_interval

# Student's t for two-sided 95 %, from the printed tables: 1, 2, 3 and 4 degrees of freedom.
T95 = {1: 12.7062047, 2: 4.3026527, 3: 3.1824463, 4: 2.7764451}


def trial(variant, seed, miou, status="done", **costs):
    return {"variant": variant, "seed": seed, "miou": miou, "status": status, **costs}


def trials(**scores):
    return [trial(name, seed, miou) for name, values in scores.items() for seed, miou in enumerate(values)]


def test_three_values_by_hand():
    # mean 0.5; squares 0.01² + 0.01² + 0 = 0.0002, over n - 1 = 2: variance 0.0001, s = 0.01; half = 4.3027 · 0.01 / √3
    interval = t_interval([0.49, 0.5, 0.51])
    assert interval.mean == pytest.approx(0.5)
    assert interval.half == pytest.approx(0.0248414, abs=1e-7)
    assert (interval.low, interval.high) == pytest.approx((0.4751586, 0.5248414), abs=1e-7)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_half_width_is_the_tables_t(n):
    values = [0.0, 1.0] + [0.5] * (n - 2)  # squares 2 · 0.25, so s = √(0.5 / (n - 1)) whatever n
    assert t_interval(values).half == pytest.approx(T95[n - 1] * math.sqrt(0.5 / (n - 1)) / math.sqrt(n), rel=1e-6)


def test_other_confidence():
    # 1 degree of freedom is Cauchy's distribution: the quantile at 0.75 is tan(π/4) = 1; s = 0.1/√2, half = s/√2 = 0.05
    assert t_interval([0.4, 0.5], 0.5).half == pytest.approx(0.05)


def test_gain_is_paired_by_seed_by_hand():
    # differences 0.02, 0.01, 0.03: mean 0.02, s = 0.01, half = 4.3027 · 0.01 / √3 = 0.0248 > 0.02: zero is inside
    base, other = summarise(trials(a=[0.40, 0.50, 0.60], b=[0.42, 0.51, 0.63]), "a")
    assert (base.verdict, base.gain) == ("baseline", None)
    assert other.gain.mean == pytest.approx(0.02)
    assert other.gain.half == pytest.approx(0.0248414, abs=1e-7)
    assert (other.gain.n, other.verdict) == (3, NO_DIFFERENCE)
    # differences 0.02, 0.018, 0.022: s = 0.002, half = 0.00497 < 0.02
    assert summarise(trials(a=[0.40, 0.50, 0.60], b=[0.42, 0.518, 0.622]), "a")[1].verdict == "better"
    assert summarise(trials(a=[0.40, 0.50, 0.60], b=[0.38, 0.482, 0.578]), "a")[1].verdict == "worse"


def test_a_constant_shift_is_found_though_the_intervals_overlap():
    generator = random.Random(0)
    for _ in range(50):
        base = [0.3, 0.7, *(generator.uniform(0.3, 0.7) for _ in range(generator.randint(1, 5)))]
        shift, noise = generator.uniform(0.01, 0.02), [generator.uniform(-1e-4, 1e-4) for _ in base]
        low, high = summarise(trials(a=base, b=[x + shift + e for x, e in zip(base, noise, strict=True)]), "a")
        assert low.mean.high > high.mean.mean > high.mean.low  # the spread of the seeds dwarfs the shift
        assert high.verdict == "better"
        assert high.gain.mean == pytest.approx(shift, abs=1e-4)


def test_the_order_of_the_rows_does_not_matter():
    rows = trials(a=[0.4, 0.5, 0.6], b=[0.42, 0.51, 0.63])
    mixed = [rows[i] for i in (0, 5, 3, 2, 4, 1)]
    assert {s.variant: s for s in summarise(mixed, "a")} == {s.variant: s for s in summarise(rows, "a")}


def test_one_seed_has_no_interval():
    base, other = summarise(trials(a=[0.4], b=[0.5]), "a")
    assert base.mean == Interval(0.4, None, 1)
    assert (other.gain.half, other.verdict) == (None, "one seed: no interval")
    assert other.gain.mean == pytest.approx(0.1)


def test_identical_scores_show_no_difference():
    assert summarise(trials(a=[0.4, 0.5], b=[0.4, 0.5]), "a")[1].verdict == NO_DIFFERENCE


def test_common_seeds_alone_are_paired():
    rows = [*trials(a=[0.4, 0.5, 0.6]), trial("b", 1, 0.52), trial("b", 2, 0.62), trial("b", 7, 0.99)]
    other = summarise(rows, "a")[1]
    assert (other.seeds, other.paired) == ((1, 2, 7), (1, 2))
    assert other.gain.mean == pytest.approx(0.02)  # seed 7 has no partner
    assert other.mean.n == 3
    assert other.note == "paired seeds: 1, 2, of 3 here and 3 of the baseline"
    assert summarise([*trials(a=[0.4]), trial("b", 7, 0.5)], "a")[1].verdict == "no common seed"


def test_trials_that_are_not_done_count_for_nothing():
    rows = [*trials(a=[0.4, 0.5]), trial("b", 0, 0.9), trial("b", 1, None, "failed"), trial("c", 0, 0.1, "pruned")]
    _, b, c = summarise(rows, "a")
    assert (b.mean, b.verdict) == (Interval(0.9, None, 1), "one seed: no interval")
    assert b.note == "1 of 2 failed; paired seeds: 0, of 1 here and 2 of the baseline"
    assert (c.mean, c.gain, c.verdict, c.note) == (None, None, "no result", "1 of 1 pruned")


def test_without_a_baseline_there_are_no_gains():
    assert [(s.gain, s.verdict) for s in summarise(trials(a=[0.4, 0.5], b=[0.6, 0.7]), None)] == [(None, "")] * 2


def test_costs_of_a_variant():
    rows = [
        trial("a", 0, 0.4, parameters=10, gmacs=1.5, activation_mib=7.5, memory_mib=100.0, images_per_s=30.0),
        trial("a", 1, 0.5, parameters=10, gmacs=1.5, memory_mib=140.0, images_per_s=10.0),
        trial("a", 2, 0.5, parameters=10, gmacs=1.5, memory_mib=None, images_per_s=29.0),
    ]
    costs = summarise(rows, "a")[0].costs
    assert costs == {"parameters": 10, "gmacs": 1.5, "activation_mib": 7.5, "memory_mib": 140.0, "images_per_s": 29.0}
    assert set(summarise(trials(a=[0.4]), "a")[0].costs.values()) == {None}


@pytest.mark.parametrize(
    ("rows", "baseline", "message"),
    [
        (trials(a=[0.4]), "b", "baseline 'b' has no trial; there are trials of: a"),
        ([*trials(a=[0.4]), *trials(a=[0.5])], "a", r"several trials of seed \[0\]"),
        ([trial("a", 0, float("nan"))], "a", "seed 0 is 'done' with mIoU nan"),
    ],
)
def test_impossible_rows_are_refused(rows, baseline, message):
    with pytest.raises(ValueError, match=message):
        summarise(rows, baseline)


def test_confidence_and_empty_values_are_refused():
    with pytest.raises(ValueError, match="confidence is 95"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_pareto_by_hand():
    # (0.5, 1) is cheap, (0.7, 3) good; (0.6, 4) is beaten by the second, (0.5, 2) by the first; equal points both stay
    points = [(0.5, 1.0), (0.7, 3.0), (0.6, 4.0), (0.5, 2.0), (0.7, 3.0)]
    assert pareto(points) == [True, True, False, False, True]
    assert pareto([]) == []
