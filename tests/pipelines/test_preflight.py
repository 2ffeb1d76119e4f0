"""What is found before Ray starts: where weights and shards are, whether they fit, and what is done already."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from datasets import storage
from datasets.sample import DataError
from pipelines.base.addresses import locate
from pipelines.base.door import ROOT
from pipelines.base.errors import InputError
from pipelines.cluster.sizes import Sizes
from pipelines.driver import weights
from pipelines.driver.checks import check_known_share
from pipelines.driver.opening import warn_of_small_shares
from pipelines.driver.run import run_recipe
from pipelines.driver.start import check_weights
from pipelines.driver.weights import Weights, localise
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import LATER, to_page
from pipelines.runs.run import settle
from segmodels.backbone import build_backbone


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Runs a recipe that must be refused before Ray starts, without a trace; returns the message."""

    def run(page, *overrides):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.db")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipelines.driver.run.ray_cluster", lambda *_, **__: pytest.fail("Ray starts"))
            patch.setattr("pipelines.driver.run.alone", lambda *_: pytest.fail("the training starts"))
            with pytest.raises(InputError) as caught:
                run_recipe(load_recipe(page, overrides))
        assert not list((tmp_path / "out/runs").glob("*"))
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.db")} == before
        return str(caught.value)

    return run


@pytest.fixture(scope="module")
def trunk():
    """The state dict of a small trunk."""
    return build_backbone("test_resnet", 32).trunk.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {f"net.{k}": v for k, v in list(s.items())[:20]},
            r"17 of the 75 entries.*lacks 'layer\d",
        ),
        (lambda s: dict(list(s.items())[:20]), r"17 of the 75 entries.*lacks 'layer\d.*; did you mean 'layer"),
        (lambda s: s | {"conv1.0.weight": torch.zeros(1)}, r"74 of the 75.*'conv1.0.weight' has the shape \[1\]"),
        (lambda s: s | {"layer1.9.w": torch.zeros(1)}, r"75 of the 75.*1 more, such as \['layer1.9.w'\]"),
        (
            lambda s: s | {"conv1.0.weight": torch.zeros(len(s["conv1.0.weight"]), 4, 3, 3)},
            r"74 of the 75.*has the shape \[\d+, 4, 3, 3\].*It reads images of 4 channels, and models here read RGB",
        ),
        (
            lambda s: build_backbone("resnet18", 32).trunk.state_dict(),
            "All of resnet18 is in it: set backbone.name=resnet18",
        ),
        (lambda s: [1, 2], "no state dict that PyTorch reads: a list without tensors"),
    ],
)
def test_weights_that_do_not_fit_are_compared_with_the_trunk(change, message, trunk, recipe_file, refused, tmp_path):
    torch.save(change(trunk), tmp_path / "w.pth")
    told = refused(recipe_file(), "workers.count=1", "feed=ray", f"backbone.weights={tmp_path / 'w.pth'}")
    assert re.search(message, told), told


def test_weights_in_a_bucket_are_fetched_whole_or_the_cure_is_said(tmp_path, monkeypatch):
    (tmp_path / "there.pth").write_bytes(b"weights" * 999)
    weights.fetch(f"file://{tmp_path}/there.pth", tmp_path / "out" / "here.pth")
    assert (tmp_path / "out/here.pth").read_bytes() == b"weights" * 999
    with pytest.raises(InputError, match=r"nothing\.pth"):
        weights.fetch(f"file://{tmp_path}/nothing.pth", tmp_path / "out" / "none.pth")

    def refuse(uri):
        raise DataError(f"{uri}: ACCESS_DENIED; {storage.cure('ACCESS_DENIED')}")

    monkeypatch.setattr(weights, "locate", refuse)
    with pytest.raises(InputError, match=r"cannot be read: .*ACCESS_DENIED; give credentials that may read") as told:
        weights.fetch("s3://user:secret@bucket/w.pth", tmp_path / "out" / "none.pth")
    assert "secret" not in str(told.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["here.pth"]


def test_files_that_are_no_weights_are_named(recipe_file, refused, tmp_path):
    page = recipe_file()
    for name, content, message in (
        ("page.pth", b"<html>not found</html>", "(22 bytes) is no state dict that PyTorch reads"),
        ("empty.pth", b"", "(0 bytes) is no state dict"),
        ("weights.zip", b"x", "a file ending in .pth, .pt"),
    ):
        (tmp_path / name).write_bytes(content)
        assert message in refused(page, f"backbone.weights={tmp_path / name}")
    assert "no such file; did you mean 'page.pth'?" in refused(page, f"backbone.weights={tmp_path / 'pages.pth'}")
    assert "a folder; name the file" in refused(page, f"backbone.weights={tmp_path}")
    assert "Allowed: a path" in refused(page, "backbone.weights=http://127.0.0.1:9/w.pth")


def test_weights_that_fit_pass_with_and_without_their_usual_wrapping(trunk, recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    for name, content in (
        ("a.pth", trunk),
        ("b.pth", {"state_dict": {f"module.{key}": value for key, value in trunk.items()}}),
        ("c.pth", trunk | {"fc.weight": torch.zeros(3)}),
    ):
        torch.save(content, tmp_path / name)
        check_weights(recipe, localise(str(tmp_path / name), tmp_path))


def test_a_download_that_timm_cannot_make_is_refused_at_once(recipe_file, monkeypatch, refused):
    assert "timm has no df1 to download" in refused(
        recipe_file(backbone={"name": "df1", "output_stride": 32}), "backbone.weights=hub:"
    )
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    message = refused(recipe_file(), "backbone.weights=hub:")
    assert "timm cannot download the weights of test_resnet: http://127.0.0.1:9 cannot be reached (" in message
    assert "and this machine's cache has none of them. Give a file, or null" in message
    assert "Give a file, or null" in message


def test_a_run_of_before_other_optimizers_goes_on_and_with_another_is_another(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    page = to_page(recipe)
    page["optim"] = {key: value for key, value in page["optim"].items() if key not in LATER}
    assert len(page["optim"]) == len(to_page(recipe)["optim"]) - 7
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(page))
    settle(recipe, tmp_path)
    with pytest.raises(InputError, match=r"another recipe \(optim\.name: 'sgd' -> 'adamw'"):
        settle(load_recipe(recipe_file(), ["optim.name=adamw"]), tmp_path)


@pytest.fixture
def changed(shards, tmp_path):
    """Shards whose manifests are changed, by split."""

    def change(**splits):
        root = tmp_path / "changed"
        for split in ("train", "val"):
            shutil.copytree(shards / "voc12" / split, root / "voc12" / split)
            path = root / "voc12" / split / "manifest.json"
            content = json.loads(path.read_text())
            path.write_text(json.dumps(content | (splits[split](content) if split in splits else {})))
        return str(root)

    return change


def unlabelled(content):
    return {"histogram": [0] * len(content["classes"]) + [sum(content["histogram"])]}


def test_a_split_without_a_labelled_pixel_is_refused(changed, recipe_file, refused):
    root = changed(val=unlabelled)
    message = refused(recipe_file(data=root))
    assert "stage first: " in message
    assert (
        "voc12/val has no labelled pixel: all pixels of its 11 masks are ignored, so nothing can be scored" in message
    )
    shutil.rmtree(root)
    assert "voc12/train has no labelled pixel" in refused(recipe_file(data=changed(train=unlabelled)))


def test_one_class_alone_is_refused(changed, recipe_file, refused):
    only = lambda content: {"classes": content["classes"][:1], "palette": content["palette"][:1]}  # noqa: E731
    assert "has only the class 'background'" in refused(recipe_file(data=changed(train=only, val=only)))


def test_class_weights_must_be_as_many_as_the_classes(recipe_file, refused):
    loss = {"logits": {"cross_entropy": {"class_weights": [1.0, 2.0]}}, "aux": {"cross_entropy": 0.4}}
    message = refused(recipe_file(loss=loss))
    assert "loss.logits.cross_entropy.class_weights has 2 numbers, but " in message
    assert "voc12/train has 21 classes: background, aeroplane" in message


def test_a_batch_that_workers_cannot_share_is_refused_before_ray_starts(recipe_file, refused):
    head = {"name": "psp", "channels": 8}  # whose norms see one value per channel of one image
    page = recipe_file(head=head, batch=2, workers={"count": 2, "gpus": 0}, feed="ray")
    assert "workers.micro_batch" in refused(page, "norm=local")
    check_known_share(load_recipe(page))  # synchronised norms see both workers' images
    assert "workers.micro_batch" in refused(page, "workers.count=1", "workers.micro_batch=1")
    check_known_share(load_recipe(recipe_file(batch=2, workers={"count": 1, "gpus": 0})))


def test_cuda_graphs_are_of_what_is_compiled_on_gpus(recipe_file, refused):
    page = recipe_file()
    assert "CUDA graphs need GPUs" in refused(page, "workers={count: 0, compile: true, graphs: true}")
    for wish in ("gpus: 0, compile: true", "gpus: 1"):
        with pytest.raises(InputError, match=r"give workers\.compile=true, and not workers\.gpus=0"):
            load_recipe(page, [f"workers={{graphs: true, {wish}}}"])
    with pytest.raises(InputError, match="gone with its next pass"):
        load_recipe(page, ["workers={graphs: true, compile: true, gpus: 1, micro_batch: 2}"])


def test_without_any_validation_one_line_says_so(recipe_file, capsys):
    run_recipe(load_recipe(recipe_file(stages=[{"name": "first", "train": "voc12/train", "steps": 2}])))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "validation" in line]
    assert line.startswith("warning: no stage has validation shards, so there will be no score, no best checkpoint")


SCRIPT = """\
from pipelines.driver.guard import check_guard

def train():
    check_guard()

{}
"""


@pytest.mark.parametrize(
    ("last", "refused"),
    [
        ("train()", True),
        ("for _ in range(1):\n    train()", True),
        ('if __name__ == "__main__":\n    train()', False),
        ("import threading\nthreading.Thread(target=train).start()", False),
    ],
)
def test_a_script_without_a_main_guard_is_told_to_have_one(last, refused, tmp_path):
    """Each loader process would import the script, and train again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(last))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == refused, done.stderr
    if refused:
        assert "script.py, line " in done.stderr
        assert ": each loader process (feed=torch, workers.feed_tasks) imports this script again" in done.stderr
        assert 'Put what the script does below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.slow
def test_the_guard_is_asked_for_where_this_process_starts_loader_processes(recipe_file, monkeypatch):
    asked = []
    monkeypatch.setattr("pipelines.driver.run.check_guard", lambda: asked.append(1))
    run_recipe(load_recipe(recipe_file(), ["stages.first.steps=2", "workers.feed_tasks=1"]))
    assert asked == [1]
    run_recipe(load_recipe(recipe_file(), ["stages.first.steps=2", "name=other"]))
    assert asked == [1]


def test_weights_come_from_a_path_or_a_uri_with_their_hash(tmp_path):
    source = tmp_path / "w.pth"
    source.write_bytes(b"weights")
    given = localise(str(source), tmp_path)
    assert given.path == str(source)
    assert given.sha256 == hashlib.sha256(b"weights").hexdigest()
    copy = localise(source.as_uri(), tmp_path / "out")
    assert copy.sha256 == given.sha256
    assert copy.path != given.path
    assert localise(None, tmp_path) == Weights()
    with pytest.raises(InputError, match="cannot be read"):
        localise(f"file://{tmp_path}/none.pth", tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        localise("/no/such.pth", tmp_path)


def test_weights_in_a_bucket_that_does_not_answer_are_told_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.storage.FIRST_S", 0.2)
    uri = "s3://key:secret@bucket/w.pth?endpoint_override=127.0.0.1:9&scheme=http"
    with pytest.raises(InputError, match=r"backbone.weights = .* cannot be read") as told:
        localise(uri, tmp_path / "out")
    assert "secret" not in str(told.value)
    assert not list((tmp_path / "out").rglob("*.pth"))


def test_shards_lie_below_the_root_or_where_they_say(tmp_path):
    assert locate(str(tmp_path), "voc12/val") == str(tmp_path / "voc12/val")
    assert locate("s3://b/x", "voc12/val") == "s3://b/x/voc12/val"
    assert locate("s3://b/x/?region=eu-1", "val") == "s3://b/x/val?region=eu-1"
    assert locate("s3://b/x", "/data/val") == "/data/val"
    assert locate("/data", "gs://b/val") == "gs://b/val"


@pytest.mark.slow
def test_a_finished_stage_is_not_run_again(recipe_file, tmp_path, capsys):
    stages = [{"name": name, "train": "voc12/train", "steps": 2} for name in ("first", "second")]
    recipe = load_recipe(recipe_file(stages=stages))
    run_recipe(recipe)
    folder = tmp_path / "out/runs/tiny"
    before = (folder / "first/record.jsonl").read_bytes()
    shutil.rmtree(folder / "second")
    capsys.readouterr()
    run_recipe(recipe)
    assert "first  is finished, not run again" in capsys.readouterr().out
    assert (folder / "first/record.jsonl").read_bytes() == before
    assert (folder / "second/done.json").exists()


@pytest.mark.parametrize(
    ("batch", "sizes", "fewer"),
    [
        (16, Sizes(16, 1, 1.0, 1, 1.0), 4),
        (16, Sizes(8, 1, 1.0, 1, 1.0), 4),
        (6, Sizes(3, 1, 1.0, 1, 1.0), 1),
        (2, Sizes(2, 1, 1.0, 1, 1.0), 1),
        (16, Sizes(4, 1, 1.0, 1, 1.0), None),
        (1, Sizes(1, 1, 1.0, 1, 1.0), None),  # there are no fewer
        (16, Sizes(16, 0, 1.0, 1, 1.0), None),
    ],
)
def test_too_few_images_for_each_gpu_are_warned_about_with_the_cure(batch, sizes, fewer, capsys):
    warn_of_small_shares(dataclasses.replace(load_recipe("sample", []), batch=batch), sizes)
    said = capsys.readouterr().err
    assert (f"warning: {batch // sizes.count} image(s) of the batch of {batch}" in said) == (fewer is not None)
    assert fewer is None or f"workers.count={fewer} takes about as long" in said
