"""A trained model from its file alone: what it needs, what it takes, and that nothing is lost on the way."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import segmodels
from segmodels import files
from segmodels.files import FileError
from segmodels.inference import Inference, predict
from segmodels.loading import inference_of
from segmodels.precision import settle_precision
from segmodels.segmentor import build_segmentor

PARTS = {"backbone": {"name": "test_resnet", "output_stride": 32}, "head": {"name": "fcn", "channels": 8}}
SLIDE = {"mode": "slide", "window": None, "stride": [16, 24], "scales": [1.0, 1.5], "flip": True, "batch": 4}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def content():
    """What a checkpoint of a run holds, of random weights; classes 1 and 2 change places in a mirrored image."""
    torch.manual_seed(0)
    aux = {"name": "fcn", "stage": 3, "channels": 8}
    model = build_segmentor(num_classes=4, crop=(32, 32), aux=aux, **PARTS)
    return {
        "format": files.FORMAT,
        "model": model.state_dict(),
        "recipe": PARTS | {"aux": aux, "view": {"crop": [32, 32]}, "inference": SLIDE},
        "classes": ["ground", "left arm", "right arm", "sky"],
        "palette": [[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]],
        "flip_pairs": [[1, 2]],
        "seen": torch.zeros(3, dtype=torch.int64),
        "stage": "last",
        "step": 7,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(100_000)}}},
    }


@pytest.fixture
def best(content, tmp_path):
    torch.save(content, tmp_path / "best.pt")
    return tmp_path / "best.pt"


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (44, 61, 3), np.uint8)


def test_the_file_alone_gives_what_the_network_gives(best, content, image, tmp_path):
    model = segmodels.load(best, device="cpu")
    network = build_segmentor(num_classes=4, crop=(32, 32), aux=content["recipe"]["aux"], **PARTS).eval()
    network.load_state_dict(content["model"])
    how = Inference("slide", (32, 32), (16, 24), (1.0, 1.5), True, ((1, 2),))
    wanted = predict(network, torch.from_numpy(image).permute(2, 0, 1)[None], how)[0]
    Image.fromarray(image).save(tmp_path / "x.png")
    assert (model.classes, model.palette[1]) == (("ground", "left arm", "right arm", "sky"), (250, 0, 0))
    assert model.protocol == "slide 32x32 stride 16x24, scales 1.0 1.5, flip"
    mask = model.predict(tmp_path / "x.png")
    assert (mask.dtype, mask.shape) == (np.uint8, (44, 61))
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(mask, wanted.argmax(0).numpy())
    np.testing.assert_array_equal(model.predict(image, probabilities=True), wanted.numpy())
    coloured, again = model.predict([image, Image.fromarray(image)], colours=True)
    np.testing.assert_array_equal(coloured, np.array(content["palette"], np.uint8)[mask])
    np.testing.assert_array_equal(coloured, again)
    with pytest.raises(ValueError, match="both asked for"):
        model.predict(image, probabilities=True, colours=True)


def test_a_safetensors_file_is_small_and_the_same_model(best, content, image, tmp_path):
    small = tmp_path / "model.safetensors"
    files.write_safetensors(small, files.read(best))
    assert small.stat().st_size < best.stat().st_size - 300_000
    kept = files.read(small)
    assert not [name for name in kept["model"] if name.startswith("aux.")]
    assert (kept["stage"], kept["step"], "optimizer" in kept, "seen" in kept) == ("last", 7, False, False)
    one, other = (segmodels.load(path, device="cpu").predict(image, probabilities=True) for path in (best, small))
    np.testing.assert_array_equal(one, other)
    data = small.read_bytes()
    for name, broken in {"cut": data[:-20], "foreign": data.replace(b"context-heads", b"another-words")}.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(FileError, match=r"no readable checkpoint"):
            segmodels.load(tmp_path / name)


def test_the_recipes_way_to_predict_can_be_changed_and_a_wrong_one_is_named(best):
    given = {"mode": "whole", "scales": [1.0], "flip": False}
    assert segmodels.load(best, inference=given).inference == Inference(flip_pairs=((1, 2),))
    with pytest.raises(ValueError, match=r"inference has no windows; allowed: .*flip"):
        segmodels.load(best, inference={"windows": [8, 8]})
    with pytest.raises(ValueError, match="precision is 'fp8'; allowed: auto, bf16, fp16, fp32"):
        segmodels.load(best, precision="fp8")
    assert inference_of({"mode": "slide", "window": [16, 16]}, [32, 32]).window == (16, 16)
    assert settle_precision("auto", CPU) == "fp32"


def test_a_file_that_does_not_note_the_sides_is_not_mirrored_in_silence(content, tmp_path):
    torch.save({key: value for key, value in content.items() if key != "flip_pairs"}, tmp_path / "old.pt")
    with pytest.raises(FileError, match=r"old\.pt .*change places in a mirrored image.*left arm, right arm"):
        segmodels.load(tmp_path / "old.pt")
    assert segmodels.load(tmp_path / "old.pt", inference={"flip": False}).inference.flip_pairs == ()
    plain = {key: value for key, value in content.items() if key != "flip_pairs"} | {"classes": ["a", "b", "c", "d"]}
    torch.save(plain, tmp_path / "plain.pt")
    assert segmodels.load(tmp_path / "plain.pt").inference.flip


@pytest.mark.slow
def test_neither_ray_nor_mlflow_nor_pipelines_nor_datasets_is_needed(best, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "x.png")
    code = f"""
import sys
for name in ("ray", "mlflow", "pipelines", "datasets"):
    sys.modules[name] = None  # an import of it fails
import segmodels
model = segmodels.load({str(best)!r}, device="cpu")
print(model.predict({str(tmp_path / "x.png")!r}).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("(44, 61)\n", 0), done.stderr


def test_loading_runs_no_code(tmp_path, content):
    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    torch.save(content | {"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(FileError, match="no readable checkpoint"):
        segmodels.load(tmp_path / "evil.pt")


def test_the_page_in_the_metadata_is_strict_json(best, tmp_path):
    files.write_safetensors(tmp_path / "m.safetensors", files.read(best))
    data = (tmp_path / "m.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["context-heads"])["palette"][1] == [250, 0, 0]


def test_a_large_image_is_predicted_in_tiles_of_bounded_size_with_the_same_result(best, monkeypatch):
    """20,000 pixels wide in small: 48x1000 by tiles of 4,096 pixels, sliding at scale 1."""
    wide, one = np.random.default_rng(1).integers(0, 256, (48, 1000, 3), np.uint8), {"scales": [1.0], "flip": False}
    whole = segmodels.load(best, device="cpu", inference=one)
    tiled = segmodels.load(best, device="cpu", inference=one, pixels=4096)
    sizes = []

    def spy(network, given, how):
        sizes.append(given.shape[2] * given.shape[3])
        return predict(network, given, how)

    monkeypatch.setattr("segmodels.loading.predict", spy)
    first = whole.predict(wide, probabilities=True)
    assert sizes == [48_000]
    sizes.clear()
    np.testing.assert_array_equal(tiled.predict(wide, probabilities=True), first)
    assert len(sizes) > 10
    assert max(sizes) <= 4096 + 48 * 24  # the last takes the rest, less than a window's step
    np.testing.assert_array_equal(tiled.predict(wide), first.argmax(0))
