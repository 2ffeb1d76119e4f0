"""`bench inference`: what is counted and compared before it is timed, and what is refused."""

import argparse
import json

import numpy as np
import pytest
import torch

from pipelines.base.errors import InputError
from pipelines.bench import main
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import load_recipe
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.speed import inference, subjects
from pipelines.speed.rounds import Disagreement
from segmodels.cost import conv_matmul_macs, on_meta

TRUNK = ["backbone.name=test_resnet", "backbone.weights=null", "head.channels=16"]
SMALL = ["srnet/camvid_resnet50s", *TRUNK, "head.nodes=4"]


def options(*words, repeats=1):
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=repeats)
    inference.add_options(parser)
    args = parser.parse_args(words)
    inference.check(args)
    return args


def test_a_key_changes_the_name_before_it():
    found = subjects.read_words(["a", "x=1", "y=2", "b", "a", "x=3"])
    assert found == [("a", ["x=1", "y=2"]), ("b", []), ("a", ["x=3"])]
    with pytest.raises(InputError, match=r"x=1: name a recipe"):
        subjects.read_words(["x=1", "a"])


def test_a_recipe_has_its_benchmarks_classes_and_its_form_folded(tmp_path, capsys):
    main(
        [
            "inference",
            *SMALL,
            "--size",
            "64",
            "96",
            "--repeats",
            "2",
            "--batch",
            "2",
            "--json",
            str(tmp_path / "i.json"),
        ]
    )
    page = json.loads((tmp_path / "i.json").read_text())
    eager, fused = page["rows"]
    assert [row[1:5] for row in page["rows"]] == [[form, "fp32", "64 x 96", "2"] for form in ("eager", "fused")]
    assert eager[5:7] == fused[5:7]
    assert 0 < float(fused[7]) <= float(eager[7])
    assert 0 < float(fused[-1]) < 1e-4  # folded: not the very same numbers
    measured = page["measured"][f"{' '.join(SMALL)} 64x96 fp32"]
    assert [len(form["seconds"]) for form in measured["forms"].values()] == [2, 2]
    assert float(eager[9]) == pytest.approx(2 / sorted(measured["forms"]["eager"]["seconds"])[0], rel=0.9)
    model, _ = subjects.subject_of(SMALL[0], SMALL[1:], None).at((64, 96))
    assert model.model.num_classes == 11
    assert measured["parameters"] == sum(p.numel() for p in model.parameters())  # and no auxiliary head
    assert measured["gmacs"] == conv_matmul_macs(on_meta(model), torch.zeros(1, 3, 64, 96, device="meta")) / 1e9
    assert "Inference on" in capsys.readouterr().out


def test_a_bound_model_is_counted_over_its_windows():
    words = ["reconet/camvid_resnet50s", *TRUNK, "head.rank=2", "view.crop=[32,32]", "inference.stride=null"]
    one, many = (options(*words, "--counts-only", "--size", *map(str, size)) for size in ((32, 32), (32, 74)))
    (first,), (second,) = one.counted.values(), many.counted.values()
    assert second.gmacs == pytest.approx(3 * first.gmacs)  # 22 from window to window: at 0, 22 and 42
    assert first.parameters == second.parameters


def test_a_head_by_itself_and_a_part_of_it():
    args = options("ocnet", "attention=sa", "channels=32", "part=context", "ocnet", "channels=32", "--size", "64", "64")
    part, whole = args.counted.values()
    assert part.subject == "ocnet attention=sa channels=32 part=context"
    assert part.gmacs < whole.gmacs
    report = inference.measure(args)
    assert [row[:2] for row in report.rows[::2]] == [[part.subject, "eager"], [whole.subject, "eager"]]


def test_forms_that_do_not_agree_are_not_timed(monkeypatch):
    args = options("fcn", "channels=8", "--size", "64", "64")
    broken = torch.nn.Conv2d(2048, 21, 1)
    monkeypatch.setattr("segmodels.folding.fold_norms", lambda model, inputs: lambda maps: broken(maps[-1]))
    monkeypatch.setattr(subjects.Logits, "__init__", plain_logits)
    with pytest.raises(Disagreement, match="fcn channels=8: fused differs from eager by"):
        inference.measure(args)


def plain_logits(self, model, windows=None):
    """As `Logits`, of anything that can be called."""
    torch.nn.Module.__init__(self)
    object.__setattr__(self, "model", model)
    self.windows = windows


def test_a_checkpoint_is_taken_with_its_weights(tmp_path):
    recipe = load_recipe(SMALL[0], [*SMALL[1:], "aux={name: fcn, channels: 8}"])
    state = build_model(recipe, 2).state_dict()
    assert any(key.startswith("aux.") for key in state)
    Checkpoint(
        model=state, recipe=recipe, stage="first", step=1, progress=Progress(), classes=("a", "b"),
        palette=((0, 0, 0), (1, 1, 1)), seen=np.zeros(0, np.int64),
    ).write(tmp_path / "best.pt")  # fmt: skip
    best = str(tmp_path / "best.pt")
    model, shapes = subjects.subject_of(best, [], None).at((32, 48))
    assert all(torch.equal(value, state[key]) for key, value in model.model.state_dict().items())
    assert shapes == [(3, 32, 48)]
    assert model.model.aux is None
    with pytest.raises(InputError, match="a checkpoint has its recipe"):
        subjects.subject_of(best, ["head.rank=2"], None)


def test_curves_have_a_line_for_each_model_and_form(tmp_path, capsys):
    path = tmp_path / "curves.png"
    words = ["fcn", "channels=8", "fcn", "channels=4", "--size", "32", "32", "--size", "64", "64"]
    main(["inference", *words, "--repeats", "1", "--picture", str(path)])
    assert path.stat().st_size > 10_000
    assert f"curves: {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recnet"], "no recipe 'recnet'"),
        (["nowhere/best.pt"], "no checkpoint nowhere/best.pt"),
        (["ocnet", "attention=dense"], "unknown attention 'dense'"),
        (["fcn", "chanels=8"], "unexpected keyword|unknown keyword 'chanels'"),
        (["fcn", "--forms", "fuse"], "no form 'fuse'; did you mean 'fused'"),
        (["fcn", "--dtype", "fp16"], "no type 'fp16'"),
        (["fcn", "--batch", "0"], "--batch 0: 1 or more"),
        (["fcn", "--size", "0", "8"], "--size 0 8"),
        (["fcn", "--picture", "x.png"], "two --size or more"),
        (["own/small"], "give --classes K"),
        (["reconet/camvid_resnet50s", *TRUNK, "view.crop=[32,32]"], "window .* with stride"),
        (["fcn", "part=contxt"], "fcn part=contxt: "),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(words, message):
    with pytest.raises(InputError, match=message):
        options(*words)


def test_a_size_that_a_model_does_not_take_is_refused(monkeypatch):
    def picky(model, maps):
        raise ValueError("of 9 cells or more")

    monkeypatch.setattr("segmodels.cost.conv_matmul_macs", picky)
    with pytest.raises(InputError, match="fcn does not take 16 x 32 pixels: of 9 cells or more"):
        options("fcn", "--size", "16", "32")


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(inference.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="compiles with g\\+\\+ or clang\\+\\+"):
        options("fcn", "--forms", "compiled")


@pytest.mark.slow
@pytest.mark.long
def test_compiled_forms_compute_the_same():
    report = inference.measure(options(*SMALL, "--size", "64", "64", "--forms", *inference.FORMS))
    assert [row[1] for row in report.rows] == list(inference.FORMS)
    assert all(float(row[-1]) < 1e-4 for row in report.rows)
