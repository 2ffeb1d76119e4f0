"""The study's table against numbers worked out by hand, and its plots."""

import json
import re

import cv2
import numpy as np
import pytest

from pipelines.base.files import to_json
from pipelines.studies import marks, plots
from pipelines.studies.table import build, cells, html, markdown, metrics_of, numbers, text

PROTOCOL = "camvid val, 101 rows, whole, scales 1.0, no flip"


def trial(variant, seed, miou, status="done", **costs):
    return {"variant": variant, "seed": seed, "miou": miou, "status": status, **costs}


ROWS = [
    # b - a at the same seed: 0.02, 0.01, 0.03: mean 2 points, s = 1, half = 4.3027 · 1 / √3 = 2.48: zero is inside
    *(trial("a", s, m, parameters=2_000_000, gmacs=10.0) for s, m in enumerate([0.40, 0.50, 0.60])),
    *(trial("b", s, m, parameters=2_500_000, gmacs=12.5, images_per_s=20.25) for s, m in enumerate([0.42, 0.51, 0.63])),
    # c - a: 0.02, 0.018, 0.022: mean 2 points, s = 0.2, half = 0.50
    *(trial("c", s, m, parameters=3_000_000, gmacs=11.0) for s, m in enumerate([0.42, 0.518, 0.622])),
    trial("d", 0, None, "failed"),
]
VARIANTS = {name: {"head.rank": rank} for name, rank in zip("abcde", (16, 32, 48, 64, 80), strict=True)}


def example(**more):
    printed = {"a": 80.0, "b": 81.2, "c": 80.5, "d": None}
    given = {"baseline": "a", "published": printed, "published_as": "RecoNet Table 8, mIoU", "curve": "head.rank"}
    return build("Rank", VARIANTS, ROWS, PROTOCOL, **given | more)


def test_every_cell_by_hand():
    by_name = {row["variant"]: row for row in cells(example())}
    # of a: mean 0.5, s = 0.1, half = 4.3027 · 0.1 / √3 = 0.2484
    assert by_name["a"]["measured"] == "50.00 ± 24.84 (3 seeds)"
    assert by_name["a"]["verdict"] == "baseline"
    assert by_name["b"] == {
        "variant": "b",
        "published": "81.2",
        "measured": "52.00 ± 26.17 (3 seeds)",  # s = √(0.0222 / 2) = 0.10536, half 0.26172
        "gain published": "+1.20",
        "gain measured": "+2.00 ± 2.48",
        "difference of gains": "+0.80 ± 2.48",
        "verdict": "no difference shown",
        "parameters, M": "2.500",
        "GMACs": "12.500",
        "images/s": "20.2",
        "note": "",
    }
    assert by_name["c"]["gain measured"] == "+2.00 ± 0.50"
    assert by_name["c"]["difference of gains"] == "+1.50 ± 0.50"
    assert by_name["c"]["verdict"] == "better"
    assert (by_name["d"]["verdict"], by_name["d"]["note"]) == ("no result", "1 of 1 failed")
    assert (by_name["e"]["verdict"], by_name["e"]["published"]) == ("no trial", "-")


def test_a_published_number_that_has_another_value_elsewhere_is_marked():
    table = example(elsewhere={"b": "80.9 in the prose"})
    assert [row["published"] for row in cells(table)] == ["80", "81.2*", "80.5", "-", "-"]
    assert cells(table)[1]["gain published"] == "+1.20"
    assert [line["published_elsewhere"] for line in numbers(table)["variants"]][:2] == ["", "80.9 in the prose"]


def test_the_order_in_which_trials_ended_does_not_matter():
    given = {"baseline": "a", "published": {"a": 80.0, "b": 81.2}}
    assert text(build("Rank", VARIANTS, ROWS, PROTOCOL, **given)) == text(
        build("Rank", VARIANTS, ROWS[::-1], PROTOCOL, **given)
    )


def test_published_numbers_never_enter_measured_cells():
    other = example(published={"a": 1.0, "b": 2.0, "c": 3.0})
    kept = ("measured", "gain measured", "verdict")
    for one, two in zip(cells(example()), cells(other), strict=True):
        assert {k: one[k] for k in kept} == {k: two[k] for k in kept}
    assert not {"published", "gain published", "difference of gains"} & set(cells(example(published=None))[0])


def test_published_without_the_baselines_number_has_no_gain():
    row = cells(example(published={"b": 81.2}))[1]
    assert (row["published"], row["gain published"], row["difference of gains"]) == ("81.2", "-", "-")


def test_a_search_is_sorted_and_shows_its_settings():
    rows = [trial("t0", 0, 0.3), trial("t1", 0, 0.5), trial("t2", 0, None, "pruned")]
    space = {name: {"optim.lr": lr} for name, lr in (("t0", 0.1), ("t1", 0.0123456), ("t2", 1.0), ("t3", 2.0))}
    shown = cells(build("Search", space, rows, PROTOCOL))
    assert [row["variant"] for row in shown] == ["t1", "t0", "t2", "t3"]
    assert (shown[0]["settings"], shown[0]["measured"]) == ("optim.lr=0.01235", "50.00 (1 seed)")
    assert not {"verdict", "gain measured"} & set(shown[0])


def test_every_rendering_says_how_it_was_measured_and_what_is_published():
    table = example(notes="Ranks of | the paper.")
    for shown in (text(table), markdown(table), html(table)):
        flat = " ".join(shown.split())
        for words in (PROTOCOL, "no difference shown", "Published: as printed, RecoNet Table 8, mIoU", "95 %"):
            assert words in flat
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {
        12
    }  # activations and memory, unknown, have no column
    assert len(lines) == 2 + 5


def test_variants_with_a_protocol_of_their_own_are_named():
    per_variant = dict.fromkeys(VARIANTS, PROTOCOL) | {"c": "the same, but with flip"}
    shown = " ".join(text(build("Rank", VARIANTS, ROWS, per_variant, baseline="a")).split())
    assert f"percent, {PROTOCOL}. But c: the same, but with flip. ±" in shown
    with pytest.raises(ValueError, match="no protocol for e"):
        build("Rank", VARIANTS, ROWS, dict.fromkeys("abcd", PROTOCOL))


def test_html_is_escaped():
    page = html(build("<Rank>", {"a&b": {}}, [trial("a&b", 0, 0.5)], "x<y", baseline="a&b"))
    assert page.count("&lt;Rank&gt;") == 2
    assert '<td class="text">a&amp;b</td>' in page
    assert "percent, x&lt;y." in page
    assert not any(raw in page for raw in ("<Rank>", "a&b", "x<y"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"a": {}, "b": {}}}, "trials of c, d; the study has the variants a, b"),
        ({"baseline": "z"}, "baseline is 'z'; the study has the variants a, b, c"),
    ],
)
def test_rows_and_baseline_must_be_of_the_study(change, message):
    given = {"title": "t", "variants": VARIANTS, "rows": ROWS, "protocol": PROTOCOL} | change
    with pytest.raises(ValueError, match=message):
        build(**given)


def test_before_the_baseline_has_run_the_table_has_no_gains():
    shown = cells(build("Rank", VARIANTS, ROWS[3:6], PROTOCOL, baseline="a"))
    assert [row["verdict"] for row in shown] == ["no trial", "", "no trial", "no trial", "no trial"]


def test_a_bar_in_a_cell_makes_no_column():
    shown = markdown(build("Search", {"t0": {"x": "p|q"}}, [trial("t0", 0, 0.3)], PROTOCOL))
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_a_search_that_has_not_begun_has_a_table_all_the_same(tmp_path):
    table = build("Search", {}, [], PROTOCOL)
    assert text(table).splitlines()[:2] == ["Search", "variant  measured"]
    assert "| variant | measured |" in markdown(table)
    assert ">measured</th></tr>" in html(table)
    assert plots.draw(table, tmp_path) == {}


def test_plots_are_written_for_what_there_is(tmp_path):
    made = plots.draw(example(), tmp_path)
    assert set(made) == {"gains", "curve", "pareto-gmacs", "pareto-parameters"}
    for path in made.values():
        assert np.ptp(cv2.imread(path)) > 100
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.png" for name in made)  # nothing half-written
    assert plots.draw(build("Rank", VARIANTS, [], PROTOCOL, baseline="a"), tmp_path / "none") == {}


def test_plots_hold_the_tables_numbers():
    figure = plots.gains(example())
    measured = {tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert {round(x[0], 6) for x in measured} == {2.0}
    published = next(line for line in figure.axes[0].lines if line.get_marker() == "D")
    assert list(np.round(published.get_xdata(), 6)) == [1.2, 0.5]
    left, right = plots.curve(example()).axes
    assert list(left.get_xticks()) == [16, 32, 48]
    assert np.ptp(left.get_ylim()) == pytest.approx(np.ptp(right.get_ylim()))
    edge = plots.front(example(), "gmacs").axes[0].lines[0]
    assert list(edge.get_xdata()) == [10.0, 11.0]  # c is as good as b for less, or better


def test_parallel_coordinates_need_two_keys():
    settings = {"a": {"x": 1, "y": "p"}, "b": {"x": 2, "y": "q"}}
    rows = [trial("a", 0, 0.4), trial("b", 0, 0.5)]
    figure = plots.parallel(build("t", settings, rows, PROTOCOL))
    heights = [list(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert heights == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    same = {name: given | {"y": "p"} for name, given in settings.items()}
    assert plots.parallel(build("t", same, rows, PROTOCOL)) is None
    some = {"a": {"x": 1, "y": "p"}, "b": {"x": 2, "z": "q"}}  # named variants, not points of one space
    assert plots.parallel(build("t", some, rows, PROTOCOL)) is None


def test_names_are_labels_letter_by_letter(tmp_path):
    """Two dollar signs are no mathematics, and a sign that no font has is no error."""
    space = {name: {"view.way": way, "optim.lr": lr} for name, way, lr in
             (("a$_$b", "$5_$10", 0.1), ("US$ and CA$", "\\alpha^", 0.2), ('"道路", grün/%', "{}_$", 0.4))}  # fmt: skip
    rows = [
        trial(name, seed, 0.4 + 0.1 * seed + 0.01 * i, gmacs=1.0 + i) for i, name in enumerate(space) for seed in (0, 1)
    ]
    table = build("1$_ and 5$_ 研究", space, rows, "val of $_$", baseline="a$_$b", published=dict.fromkeys(space, 80.0),
                  published_as="Table $1_$", curve="view.way")  # fmt: skip
    assert set(plots.draw(table, tmp_path)) == {"gains", "curve", "parallel", "pareto-gmacs"}
    figure = plots.gains(table)
    figure.draw_without_rendering()
    shown = [text._preprocess_math(text.get_text()) for text in figure.axes[0].get_yticklabels()]
    assert shown == [("US$ and CA$", False), ('"□□", grün/%', False)]
    assert list(metrics_of(numbers(table)))[:3] == ["mIoU/a___b", "mIoU/US_ and CA_", "mIoU/_道路__ grün__"]


def test_numbers_are_json_that_every_reader_takes():
    page = json.loads(to_json(numbers(example())), parse_constant=lambda name: 1 / 0)
    a, b, _, d, e = page["variants"]
    assert (page["baseline"], page["protocol"]) == ("a", PROTOCOL)
    assert b | {"costs": None} == {
        "variant": "b", "settings": {"head.rank": 32}, "seeds": 3, "mIoU": pytest.approx(52.0),
        "mIoU_half_width": pytest.approx(26.172, abs=1e-3), "gain": pytest.approx(2.0),
        "gain_half_width": pytest.approx(2.484, abs=1e-3), "verdict": "no difference shown", "note": "",
        "published": 81.2, "published_gain": 1.2, "published_elsewhere": "", "costs": None}  # fmt: skip
    assert (a["gain"], d["mIoU"], d["seeds"], e["verdict"]) == (None, None, 0, "no trial")
    metrics = metrics_of(page)
    assert {key for key in metrics if key.endswith("/b")} == {
        "mIoU/b", "mIoU_half_width/b", "gain/b", "gain_half_width/b", "seeds/b"}  # fmt: skip
    assert {key for key in metrics if key.endswith(("/a", "/e"))} == {
        "mIoU/a", "mIoU_half_width/a", "seeds/a", "seeds/e"}  # fmt: skip


def test_axes_of_parallel_coordinates():
    heights, ticks = marks.column([1e-4, 1e-3, 1e-2])
    assert heights == pytest.approx([0, 0.5, 1])
    assert [name for _, name in ticks] == ["0.0001", "0.001", "0.01"]
    assert marks.column([2.0, 3.0, 4.0])[0] == [0.0, 0.5, 1.0]
    assert marks.column([[64, 64], [96, 96]]) == ([0.0, 1.0], [(0.0, "[64, 64]"), (1.0, "[96, 96]")])
    assert marks.column([7.0, 7.0])[0] == [0.0, 0.0]
    assert marks.axis([16, 128]) == ([16.0, 128.0], "log")
    assert marks.axis([0.1, 0.3]) == ([0.1, 0.3], "linear")
    assert marks.axis(["avg", "max"]) == ([0.0, 1.0], "linear")


def test_a_study_of_another_task_names_its_score():
    table = example(metric="box AP", published_as="SRNet Table 9a, AP_box")
    assert not any("mIoU" in shown(table) for shown in (text, markdown, html))
    assert "Measured: box AP in percent, camvid val" in " ".join(text(table).split())
    page = json.loads(to_json(numbers(table)))
    assert (page["metric"], page["variants"][1]["box AP"]) == ("box AP", pytest.approx(52.0))
    metrics = metrics_of(page)
    assert metrics["box AP/b"] == pytest.approx(52.0)
    assert metrics["box AP_half_width/b"] == pytest.approx(26.172, abs=1e-3)
    assert not any("mIoU" in name for name in metrics)
    assert plots.gains(table).axes[0].get_xlabel() == "gain over a, percentage points of box AP, paired by seed"
    assert plots.curve(table).axes[0].get_ylabel() == plots.front(table, "gmacs").axes[0].get_ylabel()
    assert plots.curve(table).axes[0].get_ylabel() == "box AP, percent"


def test_a_table_of_an_older_version_is_of_miou():
    page = json.loads(to_json(numbers(example())))
    assert page.pop("metric") == "mIoU"
    assert metrics_of(page)["mIoU/b"] == pytest.approx(52.0)
