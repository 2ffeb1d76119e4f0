"""What is settled before a worker starts: where weights and shards are, and what is done already."""

import hashlib
import shutil

import pytest

from pipelines.base.addresses import locate
from pipelines.base.errors import InputError
from pipelines.driver.run import run_recipe
from pipelines.driver.weights import Weights, localise
from pipelines.recipes.reading import load_recipe


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


def test_shards_lie_below_the_root_or_where_they_say(tmp_path):
    assert locate(str(tmp_path), "voc12/val") == str(tmp_path / "voc12/val")
    assert locate("s3://b/x", "voc12/val") == "s3://b/x/voc12/val"
    assert locate("s3://b/x/?region=eu-1", "val") == "s3://b/x/val?region=eu-1"
    assert locate("s3://b/x", "/data/val") == "/data/val"
    assert locate("/data", "gs://b/val") == "gs://b/val"


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
