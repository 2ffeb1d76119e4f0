"""Views of classification: windows against their transcription, seeds, and the way through a table."""

import math
import pickle
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import through_shards, write_image

from datasets.readers.imagenet import imagenet
from datasets.sample import DataError, Segment
from datasets.tasks.classification import ClassView, class_of, middle_window, random_window, resized
from datasets.transforms import sample_seed

VIEW = ClassView((24, 24))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (130, 90))


def naive_window(generator: random.Random, height: int, width: int, area: tuple[float, float]) -> tuple[int, ...]:
    """torchvision's RandomResizedCrop, line by line, with Python's generator."""
    for _ in range(10):
        target = height * width * (area[0] + (area[1] - area[0]) * generator.random())
        low, high = math.log(0.75), math.log(4 / 3)
        aspect = math.e ** (low + (high - low) * generator.random())
        w, h = round((target * aspect) ** 0.5), round((target / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return (
                math.floor(generator.random() * (height - h + 1)),
                math.floor(generator.random() * (width - w + 1)),
                h,
                w,
            )
    w, h = width, height
    if width / height < 0.75:
        h = round(width / 0.75)
    elif width / height > 4 / 3:
        w = round(height * 4 / 3)
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("size", "area"), [((90, 130), (0.08, 1.0)), ((200, 20), (0.08, 1.0)), ((20, 200), (0.9, 1.0))]
)
def test_windows_equal_the_transcription(size: tuple[int, int], area: tuple[float, float]) -> None:
    for seed in range(200):
        window = random_window(random.Random(seed), size, area)
        assert window == naive_window(random.Random(seed), *size, area)
        top, left, height, width = window
        assert 0 <= top <= size[0] - height
        assert 0 <= left <= size[1] - width


def test_windows_have_all_areas_ratios_and_places() -> None:
    windows = [random_window(random.Random(seed), (300, 300), (0.08, 1.0)) for seed in range(2000)]
    shares = np.array([h * w / 90000 for _, _, h, w in windows])
    ratios = np.array([w / h for _, _, h, w in windows])
    assert 0.075 < shares.min() < 0.09
    assert shares.max() > 0.95
    assert abs(np.mean(shares) - 0.5) < 0.05  # large ones fit less often
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    small = [(top / (300 - h), left / (300 - w)) for top, left, h, w in windows if h < 200 and w < 200]
    assert np.abs(np.mean(small, 0) - 0.5).max() < 0.05
    assert np.min(small) < 0.03
    assert np.max(small) > 0.97


def test_a_view_is_the_window_resized_once_and_flipped(image: np.ndarray) -> None:
    for seed in range(20):
        generator = random.Random(seed)
        top, left, height, width = naive_window(generator, 90, 130, (0.08, 1.0))
        part = image[top : top + height, left : left + width]
        how = cv2.INTER_AREA if min(height, width) >= 24 else cv2.INTER_LINEAR
        wanted = cv2.resize(part, (24, 24), interpolation=how)
        flipped = generator.random() < 0.5
        np.testing.assert_array_equal(VIEW.view(image, seed), wanted[:, ::-1] if flipped else wanted)


def test_views_differ_per_sample_and_epoch_and_come_again(image: np.ndarray) -> None:
    seeds = [sample_seed(7, epoch, f"id{i}") for epoch in range(4) for i in range(8)]
    views = [VIEW.view(image, seed).tobytes() for seed in seeds]
    assert len(set(views)) == 32
    copy = pickle.loads(pickle.dumps(VIEW))
    assert [copy.view(image, seed).tobytes() for seed in seeds] == views
    assert hash(copy) == hash(VIEW)


def test_flips_are_as_often_as_asked_for(image: np.ndarray) -> None:
    whole = [ClassView((90, 120), (1, 1), flip) for flip in (0.0, 1.0)]
    plain, turned = (view.view(image, 3) for view in whole)
    np.testing.assert_array_equal(plain, turned[:, ::-1])
    half = ClassView((90, 120), (1, 1), 0.5)
    assert 70 < sum(half.view(image, seed).tobytes() == plain.tobytes() for seed in range(200)) < 130


@pytest.mark.parametrize(
    ("size", "crop", "window"),
    [
        ((256, 256), (224, 224), (16, 16, 224, 224)),
        ((512, 1024), (224, 224), (32, 288, 448, 448)),
        ((375, 500), (224, 224), (23, 86, 328, 328)),
        ((100, 400), (10, 40), (6, 25, 88, 350)),
        ((1, 1), (224, 224), (0, 0, 1, 1)),
    ],
)
def test_validation_sees_the_middle(size: tuple[int, int], crop: tuple[int, int], window: tuple[int, ...]) -> None:
    assert middle_window(size, crop) == window


def test_validation_is_the_centre_crop_of_the_resized_image() -> None:
    coarse = np.random.default_rng(1).random((5, 8, 3)).astype(np.float32)
    image = (255 * np.clip(cv2.resize(coarse, (800, 512), interpolation=cv2.INTER_CUBIC), 0, 1)).astype(np.uint8)
    view = ClassView.of((224, 224), (0.08, 1), 0.5, train=False)
    short = cv2.resize(image, (400, 256), interpolation=cv2.INTER_AREA)[16:240, 88:312]
    assert np.abs(view.view(image, 5).astype(int) - short).max() <= 1
    assert view.view(image, 5).tobytes() == view.view(image, 6).tobytes()
    assert view.words == "the middle 224x224 of an image whose short side is 256"


def test_rows_travel_through_a_table(tmp_path: Path) -> None:
    for i, wnid in enumerate(("n00000001", "n00000002", "n00000003")):
        write_image(tmp_path / f"train/{wnid}/{wnid}_{i}.JPEG", (40 + i, 50))
    shards = through_shards(imagenet(tmp_path), "train", tmp_path / "made")
    canvas = VIEW.canvas(shards.sizes)
    assert canvas == (24, 24)
    samples = [VIEW.read(shards, row, 11 + row, canvas) for row in (0, 2, 1)]
    assert [number for _, number in samples] == [0, 2, 1]
    table = VIEW.pack(samples)
    for part, rows in ((table, slice(0, 3)), (table.slice(1, 2), slice(1, 3))):
        images, classes = VIEW.unpack(part)
        np.testing.assert_array_equal(images, np.stack([pixels for pixels, _ in samples[rows]]))
        assert classes.tolist() == [number for _, number in samples[rows]]
        assert classes.dtype == np.int64


def test_a_small_window_is_enlarged_linearly_and_its_own_size_copied(image: np.ndarray) -> None:
    np.testing.assert_array_equal(resized(image, (3, 4, 24, 24), (24, 24)), image[3:27, 4:28])
    wanted = cv2.resize(image[:10, :40], (24, 24), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resized(image, (0, 0, 10, 40), (24, 24)), wanted)


def test_the_class_is_that_of_the_only_or_the_largest_segment() -> None:
    one, other = Segment(3, False, (0, 0, 4, 4), b""), Segment(5, False, (0, 0, 4, 5), b"")
    assert class_of((one,), "") == 3
    assert class_of((one, other), "") == 5
    for nothing in (None, ()):
        with pytest.raises(DataError, match="row 4: no segment, so no class; classification takes shards"):
            class_of(nothing, "row 4")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"crop": (0, 3)}, r"crop is \(0, 3\)"),
        ({"area": (0.5, 2.0)}, r"area is \(0.5, 2.0\); allowed is \(least, greatest\), 0 to 1"),
        ({"area": (0, 1)}, r"area is \(0, 1\)"),
        ({"flip": 1.1}, r"flip is 1.1; allowed is a probability"),
    ],
)
def test_bad_values(keywords: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassView(**{"crop": (8, 8)} | keywords)
