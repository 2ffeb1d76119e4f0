"""The benchmark of protocols at its smallest: what it compares counts the same, and it notices when it does not."""

import pytest

from pipelines.bench import build_parser
from pipelines.speed import evaluate
from pipelines.speed.rounds import Disagreement

SMALL = (
    "evaluate --images 1 --size 24 32 --crop 24 24 --backbone test_resnet --channels 8 --scales 0.5 1 --repeats 1 "
    "--threads 1"
)


def measure(words=SMALL):
    args = build_parser().parse_args(words.split())
    return args.measure(args)


def test_a_row_for_each_case_and_form_and_a_goal_for_each_case():
    report = measure()
    assert [row[:2] for row in report.rows] == [
        [case, form] for case in evaluate.GOALS for form in (*evaluate.LOOPS, evaluate.OURS)
    ]
    for case, forms in report.measured.items():
        best = min(forms[name][0] for name in evaluate.LOOPS)
        assert f"{case}, times as fast as the faster loop" in " ".join(report.notes)
        (shown,) = [row[3] for row in report.rows if row[:2] == [case, evaluate.OURS]]
        assert float(shown) == pytest.approx(best / forms[evaluate.OURS][0], abs=0.01)


def test_a_loop_that_counts_otherwise_is_noticed(monkeypatch):
    loop = evaluate.loop
    monkeypatch.setattr(evaluate, "loop", lambda model, uri, way: loop(model, uri, way).T.copy())
    with pytest.raises(Disagreement, match="counts otherwise"):
        measure()
