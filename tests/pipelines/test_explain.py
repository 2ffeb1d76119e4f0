"""The door `explain`: what it draws and writes, and what it refuses."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from datasets.manifest import read_manifest
from pipelines import explain
from pipelines.base.errors import InputError
from pipelines.driver.run import run_recipe
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import load_recipe
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.record import Record, read_record
from pipelines.scoring.evaluation import load_model
from pipelines.scoring.explaining import class_shares, predict_image
from pipelines.scoring.head_figures import principal_colours
from pipelines.scoring.measuring import measure, metrics
from pipelines.scoring.panels import BLUE, ORANGE, region_names
from pipelines.scoring.seen import digests
from pipelines.scoring.side_by_side import differing, regions, verdicts
from pipelines.scoring.subject import Subject, choose_pixels, cut, view
from pipelines.training import showing
from segmodels.heads.maps import Maps

OCNET = {"name": "ocnet", "channels": 16, "key_channels": 8, "partition": [2, 2]}
HEADS = {
    "ocnet": (OCNET, {"relations"}, {"global", "local", "dense"}),
    "srnet": ({"name": "srnet", "channels": 16, "nodes": 4}, {"nodes", "unit_pca"}, {"nodes", "node_channels"}),
    "ctnet": (
        {"name": "ctnet", "channels": 16, "key_channels": 8, "kernels": [3]},
        {"class_relation", "presence"},
        {"class_relation"},
    ),
    "reconet": ({"name": "reconet", "channels": 16, "rank": 3}, {"sub_attention"}, {"full_attention", "v_c"}),
    "gc": ({"name": "gc", "channels": 16}, {"attention"}, {"attention"}),
}


@pytest.fixture
def val(shards):
    return str(shards / "voc12/val")


@pytest.fixture
def made(recipe_file, val, tmp_path):
    """Writes a checkpoint of random weights with a head; gives its path."""

    def write(head, name="best.pt", classes=None, seen=()):
        inference = {"mode": "slide" if head["name"] == "reconet" else "whole", "batch": 2}
        page = recipe_file(head=head, inference=inference, backbone={"name": "test_resnet", "output_stride": 8})
        manifest, recipe = read_manifest(val), load_recipe(page)
        torch.manual_seed(0)
        model = build_model(recipe, len(classes or manifest.classes))
        Checkpoint(
            model=model.state_dict(), recipe=recipe, stage="first", step=1, progress=Progress(),
            classes=classes or manifest.classes, palette=manifest.palette, seen=np.array(seen, np.int64),
        ).write(tmp_path / name)  # fmt: skip
        return tmp_path / name

    return write


@pytest.fixture
def opened(monkeypatch, capsys):
    def open_door(*words):
        monkeypatch.setattr(sys, "argv", ["explain", *map(str, words)])
        explain.main()
        return capsys.readouterr().out

    return open_door


def fail(constant):
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_map_is_drawn_900_pixels_wide_and_written(name, made, val, tmp_path, opened):
    head, figures, arrays = HEADS[name]
    row, out = open_shards(val).ids[3], tmp_path / "out"
    opened(made(head), val, "--row", row, "--out", out)
    report = json.loads((out / "explain.json").read_text(), parse_constant=fail)
    assert {file.stem for file in out.glob("*.png")} == {"overview"} | figures
    assert set(report["pictures"]) == {file.name for file in out.glob("*.png")}
    for file in out.glob("*.png"):
        assert cv2.imread(str(file)).shape[1] == 900
    with np.load(out / "maps.npz") as found:
        assert arrays <= {key.rpartition("_")[0].rpartition("_")[0] if key[-1].isdigit() else key for key in found}
        prediction = found["prediction"]
    _, mask = open_shards(val).sample(3)
    assert report["errors"] == pytest.approx((prediction != mask)[mask != 255].mean())
    assert report["row"] == row
    assert not report["trained_on"]


def test_relations_are_the_heads_and_their_shares_those_of_the_labels(made, val, tmp_path, opened):
    shards, path = open_shards(val), made(OCNET)
    image, mask = shards.sample(2)
    y, x = max(np.argwhere(mask != 255).tolist(), key=lambda place: abs(place[0] - place[1]))  # no cell of the diagonal
    opened(path, val, "--row", shards.ids[2], "--pixel", x, y, "--out", tmp_path / "out")
    checkpoint = Checkpoint.read(path)
    model = load_model(checkpoint.recipe, checkpoint, torch.device("cpu")).eval()
    maps = Maps(((y + 0.5) / mask.shape[0], (x + 0.5) / mask.shape[1]))
    with torch.no_grad():
        features = model.features(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        model.head(features, maps)
    (pixel,) = json.loads((tmp_path / "out/explain.json").read_text())["pixels"]
    assert pixel["class"] == checkpoint.classes[mask[y, x]]
    shares = class_shares(mask, len(checkpoint.classes), features[-1].shape[2:])[0].numpy()
    row, column = maps.cell(shares.shape[1:])
    with np.load(tmp_path / "out/maps.npz") as found:
        for name in ("global", "local", "dense"):
            weights = found[f"{name}_{x}_{y}"]
            assert weights == pytest.approx(maps[name][0].numpy())
            mine = shares[:, row, column]
            own = sum(weights[i] * (mine @ shares[:, *i]) for i in np.ndindex(weights.shape))
            all_labelled = sum(weights[i] * shares[:, *i].sum() for i in np.ndindex(weights.shape))
            assert pixel["own_class"][name] == pytest.approx(own / all_labelled / mine.sum(), rel=1e-4)


def test_an_image_without_labels_has_no_truth_and_a_padded_crop_suits_a_bound_head(made, tmp_path, opened):
    image = np.random.default_rng(0).integers(0, 255, (20, 50, 3), np.uint8)  # lower than the crop of 32
    cv2.imwrite(str(tmp_path / "street.png"), image)
    path = made(HEADS["reconet"][0])
    opened(path, tmp_path / "street.png", "--pixel", 45, 10, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out/explain.json").read_text())
    assert report["shown_to_the_head"] == {"top": 0, "left": 18, "height": 32, "width": 32}
    assert "errors" not in report
    assert report["maps"]["sub_attention"] == [3, 4, 4]


def test_two_models_side_by_side_also_where_the_first_has_no_maps(made, val, tmp_path, opened):
    row = open_shards(val).ids[0]
    plain = made({"name": "fcn", "channels": 16}, "fcn.pt")
    opened(plain, val, "--row", row, "--against", made(OCNET), "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out/explain.json").read_text())
    assert report["pictures"] == ["overview.png", "against.png"]
    image, mask = open_shards(val).sample(0)
    guesses = []
    for path in (plain, tmp_path / "best.pt"):
        checkpoint = Checkpoint.read(path)
        model = load_model(checkpoint.recipe, checkpoint, torch.device("cpu")).eval()
        guesses.append(predict_image(model, checkpoint.recipe, image))
    assert report["against"]["differ"] == pytest.approx(((guesses[0] != guesses[1]) & (mask != 255)).mean())


def test_measure_prints_and_writes_the_numbers(made, val, tmp_path, opened):
    shown = opened(made(OCNET), val, "--measure", "--rows", 5, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out/head.json").read_text(), parse_constant=fail)
    assert found["rows"] == 5
    assert "5 of 11 rows, whole images, fp32" in shown
    assert set(found["relation"]) == {"global", "local", "dense"}
    dense = found["relation"]["dense"]
    assert dense["even"] < dense["true"] <= 1
    assert f"{dense['relation'] * 100:.2f}" in shown
    shown = opened(made(HEADS["reconet"][0]), val, "--measure")
    assert "attention A of 3 fragments, means over 44 tensors" in shown  # images of 40x56: two crops by two
    shown = opened(made(HEADS["ctnet"][0]), val, "--measure")
    assert "presence of classes in 11 images" in shown


def refused(*words):
    return lambda **names: [word.format(**names) for word in words]


BAD = {
    "no row": (refused("{path}", "{val}", "--row", "2007_9", "--out", "o"), r"no row '2007_9'.*nearest ids"),
    "nothing": (refused("{path}", "{val}", "--out", "o"), r"nothing to do: --row ID"),
    "no out": (refused("{path}", "{val}", "--row", "{row}"), r"--out is missing"),
    "no checkpoint": (refused("none.pt", "{val}", "--row", "{row}", "--out", "o"), r"no checkpoint .*none.pt"),
    "outside": (
        refused("{path}", "{val}", "--row", "{row}", "--pixel", "99", "3", "--out", "o"),
        r"--pixel 99 3: outside of the image, \d\dx\d\d pixels.*allowed: 0 to \d\d and 0 to \d\d",
    ),
    "odd": (refused("{path}", "{val}", "--row", "{row}", "--pixel", "1", "--out", "o"), r"1 values \[1\].*pairs X Y"),
    "image": (refused("{path}", "{path}", "--row", "{row}", "--out", "o"), r"one image file; --row and --measure need"),
    "no image": (refused("{path}", "{path}", "--out", "o"), r"best.pt: neither JPEG nor PNG"),
    "rows": (refused("{path}", "{val}", "--measure", "--rows", "0"), r"--rows 0: 1 or more"),
    "alone": (refused("{path}", "{val}", "--measure", "--pixel", "1", "1"), r"belong to one image"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_command_lines(case, made, val, tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, message = BAD[case]
    row = open_shards(val).ids[0]
    with pytest.raises(InputError, match=message):
        opened(*words(path=made(OCNET), val=val, row=row))
    assert not list(tmp_path.glob("**/*.png"))


def test_heads_without_maps_or_numbers_are_refused_with_the_list_of_those_that_have_some(made, val, opened, tmp_path):
    row = open_shards(val).ids[0]
    for head, why in (
        ({"name": "fcn", "channels": 16}, "fcn gives no context maps .*no weights between pixels"),
        ({"name": "gc", "channels": 16, "pooling": "average"}, "with these keywords it lacks the part that gives att"),
    ):
        with pytest.raises(InputError, match=rf"{why}.*Heads that do: cbam, ccnet, ctnet, .*--against") as error:
            opened(made(head), val, "--row", row, "--out", tmp_path / "out")
        assert "fcn, " not in str(error.value)
    with pytest.raises(InputError, match=r"neither presence.*Heads that have one: ctnet, danet, encnet, nonlocal, oc"):
        opened(made(HEADS["srnet"][0]), val, "--measure")


@pytest.mark.slow
def test_other_classes_and_rows_trained_on(made, val, opened, tmp_path):
    row, others = open_shards(val).ids[0], tuple(f"class{k}" for k in range(21))
    with pytest.raises(InputError, match=r"knows 21 classes \['class0'.*must be the same"):
        opened(made(OCNET, classes=others), val, "--row", row, "--out", tmp_path / "out")
    other = made(OCNET, "other.pt", classes=others)
    with pytest.raises(InputError, match=r"--against .*knows 21 classes \['class0'"):
        opened(made(OCNET), val, "--row", row, "--against", other, "--out", tmp_path / "out")
    learned = made(OCNET, seen=digests(open_shards(val)))
    with pytest.raises(InputError, match=r"were trained on.*--allow-seen"):
        opened(learned, val, "--measure")
    opened(learned, val, "--row", row, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out/explain.json").read_text())["trained_on"]


@pytest.mark.slow
def test_a_stage_ends_with_pictures_and_numbers_of_what_its_head_sees(recipe_file, tmp_path, capsys):
    import mlflow

    head = {"head": OCNET, "backbone": {"name": "test_resnet", "output_stride": 8}}
    page = recipe_file(**head, name="shown", inference={"mode": "whole", "batch": 1})
    run_recipe(load_recipe(page))
    place = RunFolder(tmp_path / "out/runs/shown").stage("first")
    (line,) = [line for line in read_record(place.record)[0] if line["kind"] == "head"]
    assert line["rows"] == 11
    assert {Path(file).name for file in line["pictures"]} == {"overview.png", "relations.png"}
    assert len({Path(file).parent for file in line["pictures"]}) == 2
    checkpoint = Checkpoint.read(place.best)
    model = load_model(checkpoint.recipe, checkpoint, torch.device("cpu")).eval()
    expected = measure(model, f"{checkpoint.recipe.data}/voc12/val", 2)
    assert line["numbers"] == pytest.approx(metrics(expected), rel=1e-4)
    assert f"4 pictures in first/explain (weights of step {line['weights']}); of 11 rows" in capsys.readouterr().out
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    (found,) = [run for run in client.search_runs(experiments) if run.info.run_name == "shown/first"]
    assert found.data.metrics["head/dense/own_class"] == pytest.approx(100 * expected["relation"]["dense"]["relation"])
    folder = Path(line["pictures"][0]).parent
    assert len(client.list_artifacts(found.info.run_id, str(folder))) == 2


@pytest.fixture
def learner(made, val, tmp_path):
    """What the end of a stage needs of one."""
    place = StageFolder(tmp_path / "run/first")
    place.path.mkdir(parents=True)
    checkpoint = Checkpoint.read(made(OCNET))
    checkpoint.write(place.best)
    model = load_model(checkpoint.recipe, checkpoint, torch.device("cpu"))
    job = SimpleNamespace(
        recipe=replace(checkpoint.recipe, explain=1), val=val, end=5, steps=5, place=place,
        classes=checkpoint.classes, palette=checkpoint.palette, stage=checkpoint.recipe.stages[0],
    )  # fmt: skip
    return SimpleNamespace(job=job, rank=0, shown=model, progress=Progress(step=5, best_step=5))


def test_the_best_weights_are_shown_not_the_last(learner):
    with torch.no_grad():
        for parameter in learner.shown.parameters():
            parameter.zero_()
    with Record(learner.job.place.record) as record:
        showing.show_best(learner, record, lambda: None)
    (line,) = read_record(learner.job.place.record)[0]
    best = Checkpoint.read(learner.job.place.best).model
    assert all(torch.equal(value, best[name]) for name, value in learner.shown.state_dict().items())
    assert all((learner.job.place.path / file).is_file() for file in line["pictures"])


def test_pictures_that_fail_cost_a_note_and_not_the_training(learner, monkeypatch):
    def fails(*args):
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(showing, "measure", fails)
    with Record(learner.job.place.record) as record:
        showing.show_best(learner, record, lambda: None)
    (line,) = read_record(learner.job.place.record)[0]
    assert line["text"] == "warning: nothing shows what the head sees: CUDA out of memory"


def test_nothing_is_shown_of_a_part_by_others_or_where_none_is_wanted(learner):
    job = learner.job
    quiet = replace(job.recipe, explain=0)
    for change in ({"rank": 1}, {"job": SimpleNamespace(**vars(job) | {"end": 3})},
                   {"job": SimpleNamespace(**vars(job) | {"val": None})},
                   {"job": SimpleNamespace(**vars(job) | {"recipe": quiet})}):  # fmt: skip
        showing.show_best(SimpleNamespace(**vars(learner) | change), None, None)
    assert not (job.place.path / "explain").exists()


def test_pixels_are_chosen_deep_inside_of_the_largest_classes():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 20:27] = 4
    mask[12:15, 3:6] = 7
    mask[15:, :] = 255
    first, second, third = choose_pixels(mask)
    assert mask[first[1], first[0]] == 0
    assert second == (23, 5)
    assert third == (4, 13)
    assert choose_pixels(np.full((4, 6), 255, np.uint8)) == [(3, 2)]


def test_the_view_of_a_bound_head_stays_on_the_image():
    assert view((40, 56), None, [(3, 3)]) == (0, 0, 40, 56)
    assert view((40, 56), (32, 32), [(55, 0)]) == (0, 24, 32, 32)
    assert view((40, 56), (32, 32), [(20, 20), (30, 22)]) == (5, 9, 32, 32)
    assert view((20, 56), (32, 32), []) == (0, 12, 32, 32)
    with pytest.raises(InputError, match=r"further apart than 32x32 pixels"):
        view((40, 56), (32, 32), [(0, 0), (40, 0)])
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert cut(image, (1, 2, 2, 3), 9).tolist() == [[8, 9, 10], [14, 15, 16]]
    assert cut(image, (3, 4, 2, 3), 9).tolist() == [[22, 23, 9], [9, 9, 9]]


def test_shares_of_classes_are_counts_of_pixels():
    mask = np.array([[0, 0, 1], [0, 2, 255], [1, 1, 255], [2, 2, 255]], np.uint8)
    shares = class_shares(mask, 3, (2, 1))[0, :, :, 0]
    assert torch.allclose(shares, torch.tensor([[3, 0], [1, 2], [1, 2]]) / 6)


def test_verdicts_on_two_predictions_and_the_regions_where_they_differ():
    mask = np.zeros((20, 20), np.uint8)
    mask[:, 10:] = 1
    mask[:, 19] = 255
    one, other = mask.copy(), mask.copy()
    one[2:6, 2:8] = 1  # only the second is right
    other[10:12, 12:14] = 0  # only the first is right
    one[15, 15], other[15, 15] = 2, 3
    one[:, 19], other[:, 19] = 0, 1  # no label
    where = differing(one, other, mask)
    assert where.sum() == 24 + 4 + 1
    assert regions(where) == [(2, 2, 6, 4), (12, 10, 2, 2), (15, 15, 1, 1)]
    assert regions(where, 1) == [(2, 2, 6, 4)]
    (title, first), (title_both, _) = verdicts(Subject("", np.zeros((20, 20, 3), np.uint8), mask), one, other, where)
    assert "(blue) 1.1%" in title  # 4 of 380
    assert "(orange) 6.3%" in title
    assert "(pink) 0.3%" in title_both
    for colour, number in ((BLUE, 4), (ORANGE, 24)):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (first == rgb).all(2).sum() == number
    assert [t for t, _ in verdicts(Subject("", np.zeros((20, 20, 3), np.uint8)), one, other, one != other)] == [
        "they differ (pink)"
    ]


def test_principal_colours_share_one_basis_and_scale():
    draw = np.random.default_rng(0)
    before = draw.standard_normal((7, 4, 5)) * np.arange(1, 8)[:, None, None]
    one, same, share = principal_colours(before, before)
    assert np.array_equal(one, same)
    centred = before.reshape(7, -1) - before.reshape(7, -1).mean(1, keepdims=True)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    assert share == pytest.approx(values[:3].sum() / values.sum())
    first = np.linalg.svd(centred, full_matrices=False)[2][0].reshape(4, 5)
    assert abs(np.corrcoef(one[..., 0].ravel(), first.ravel())[0, 1]) > 0.98
    _, far, _ = principal_colours(before, before + 100)
    assert far[..., 0].std() < 2 * one[..., 0].std()
    assert principal_colours(before[:1], before[:1])[0][..., 1:].max() == 0


def test_regions_are_named_in_their_middle():
    mask = np.zeros((30, 30), np.uint8)
    mask[10:21, 10:21] = 1
    mask[0, 0] = 2  # too small
    names = {name: (x, y) for x, y, name in region_names(mask, ["sky", "cat", "dog"])}
    assert names["cat"] == (15, 15)
    assert set(names) == {"sky", "cat"}
