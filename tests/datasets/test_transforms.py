"""Seeded views and the order of an epoch."""

import pickle
import random

import albumentations as A
import cv2
import numpy as np
import pytest

from datasets.augment import ScaledWindow, pipeline_of
from datasets.sample import DataError
from datasets.transforms import TrainView, epoch_order, sample_seed, views_version
from datasets.window import Window

VIEW = TrainView((64, 72), (0.5, 2.0))


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image and a mask of 7s and 9s in the same blotches, 120x150."""
    coarse = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    smooth = cv2.resize(coarse, (150, 120), interpolation=cv2.INTER_CUBIC)
    image = (np.clip(smooth, 0, 1)[..., None] * [255, 200, 150]).astype(np.uint8)
    return image, np.where(smooth > 0.5, 7, 9).astype(np.uint8)


def test_sixty_four_samples_get_sixty_four_views(pair: tuple[np.ndarray, np.ndarray]) -> None:
    views = {VIEW(*pair, sample_seed(0, 0, f"id{i}"))[0].tobytes() for i in range(64)}
    assert len(views) == 64


def test_one_seed_one_view_also_in_another_process(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first = VIEW(*pair, 5)
    VIEW(*pair, 6)
    for view in (VIEW, pickle.loads(pickle.dumps(VIEW)), TrainView((64, 72), (0.5, 2.0))):
        for a, b in zip(first, view(*pair, 5), strict=True):
            np.testing.assert_array_equal(a, b)


def test_seeds_differ_by_seed_epoch_and_id() -> None:
    seeds = {sample_seed(s, e, i) for s in range(4) for e in range(4) for i in "abcd"}
    assert len(seeds) == 64
    assert sample_seed(0, 0, "2007_000032") == 11_867_209_922_593_784_077  # else raise VIEWS


def test_windows_are_at_every_place_and_no_other() -> None:
    window, generator = Window((10, 10), (1, 1), (0, 0, 0)), random.Random(0)
    corners = {window.draw(generator, (12, 13))[0][:2] for _ in range(400)}
    assert corners == {(top, left) for top in range(3) for left in range(4)}


def test_views_are_contiguous_and_of_the_crop(pair: tuple[np.ndarray, np.ndarray]) -> None:
    full = TrainView([64, 72], [0.3, 3.0], brightness=0.2, contrast=0.2, rotate=10)  # lists, as YAML gives them
    for seed in range(20):
        image, mask = full(*pair, seed)
        assert (image.shape, mask.shape) == ((64, 72, 3), (64, 72))
        assert image.flags.c_contiguous
        assert mask.flags.c_contiguous
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {7, 9, 255}


def test_scale_one_is_a_plain_crop_of_the_padded_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = pair
    view = TrainView((64, 200), (1, 1), flip=0, fill=(1, 2, 3))
    padded = cv2.copyMakeBorder(image, 0, 0, 0, 50, cv2.BORDER_CONSTANT, value=(1, 2, 3))
    padded_mask = cv2.copyMakeBorder(mask, 0, 0, 0, 50, cv2.BORDER_CONSTANT, value=255)
    tops = set()
    for seed in range(8):
        got, got_mask = view(image, mask, seed)
        (top,) = (t for t in range(57) if np.array_equal(got, padded[t : t + 64]))
        np.testing.assert_array_equal(got_mask, padded_mask[top : top + 64])
        tops.add(top)
    assert len(tops) > 3


@pytest.mark.parametrize("s", [0.45, 0.75, 1.3, 2.0])
def test_window_agrees_with_the_whole_image_resized(pair: tuple[np.ndarray, np.ndarray], s: float) -> None:
    image, mask = pair
    size = round(120 * s), round(150 * s)
    whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    whole_mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    below, right = max(0, 64 - size[0]), max(0, 72 - size[1])
    whole = cv2.copyMakeBorder(whole, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(9, 9, 9))
    whole_mask = cv2.copyMakeBorder(whole_mask, 0, below, 0, right, cv2.BORDER_CONSTANT, value=255)
    window = ScaledWindow((64, 72), (s, s), (9, 9, 9))
    for seed in range(6):
        window.set_random_seed(seed)
        got = window(image=image, mask=mask)
        top, left = (min(round(v * s), n - m) for v, n, m in zip(
            window.params["window"][:2], whole.shape, (64, 72), strict=False
        ))  # fmt: skip
        expected = whole[top : top + 64, left : left + 72]
        # the window's corner and its size are each rounded to source pixels: together less than one pixel's slope
        slope = sum(np.abs(np.diff(expected.astype(int), axis=axis)).mean() for axis in (0, 1))
        assert np.abs(got["image"].astype(int) - expected).mean() < slope + 0.5
        assert (got["mask"] == whole_mask[top : top + 64, left : left + 72]).mean() > 0.96


def test_padding_is_fill_and_255(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = TrainView((100, 100), (0.5, 0.5), flip=0)(*pair, 0)
    padding = np.ones((100, 100), bool)
    padding[:60, :75] = False
    np.testing.assert_array_equal(mask == 255, padding)
    assert (image[padding] == (124, 116, 104)).all()


@pytest.mark.parametrize("change", [{}, {"flip": 0}, {"flip": 1}, {"crop": (200, 220)}, {"scale": (1, 1)}])
def test_the_common_view_draws_and_cuts_like_compose(pair: tuple[np.ndarray, np.ndarray], change: dict) -> None:
    view = TrainView(**({"crop": (64, 72), "scale": (0.5, 2.0)} | change))
    pipeline = pipeline_of(0, Window(view.crop, view.scale, view.fill), flip=view.flip)
    for seed in range(40):
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        expected = pipeline(image=pair[0], mask=pair[1])
        for got, name in zip(view(*pair, seed), ("image", "mask"), strict=True):
            np.testing.assert_array_equal(got, expected[name])


def test_compose_controls_the_window(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = pair
    pipeline = A.Compose([ScaledWindow((32, 32), (0.5, 2.0), (0, 0, 0))])
    views = []
    for seed in (1, 2, 1):
        pipeline.set_random_seed(seed)
        views.append(pipeline(image=image, mask=mask)["image"].tobytes())
    assert views[0] == views[2] != views[1]


def test_flips_do_not_follow_the_scale() -> None:
    """Each pixel is its column's number: the sign of the slope shows the flip, its size the scale."""
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy()
    view = TrainView((64, 64), (0.5, 2.0))
    slopes = []
    for seed in range(200):
        row = view(columns, columns[..., 0].copy(), seed)[0][0, :, 0].astype(int)
        slopes.append(row[-1] - row[0])
    flipped, step = np.array(slopes) < 0, np.abs(slopes)
    assert 60 < flipped.sum() < 140
    assert abs(np.corrcoef(flipped, step)[0, 1]) < 0.25


def test_epoch_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    order = epoch_order(301, 7, 2)
    assert sorted(order) == list(range(301))
    assert not np.array_equal(order, epoch_order(301, 7, 3))
    assert not np.array_equal(order, epoch_order(301, 8, 2))


def test_a_turned_window_is_filled_with_what_is_next_to_it() -> None:
    """Of an image of 240x320, 3 % of each turned crop would be padding if the crop were turned after it was cut."""
    columns = np.arange(320, dtype=np.uint8) % 250
    mask = np.tile(columns // 50, (240, 1))
    image = np.repeat(np.tile(columns, (240, 1))[..., None], 3, axis=2)
    view = TrainView((128, 128), (1, 1), flip=0, rotate=10)
    padded = []
    for seed in range(60):
        got, got_mask = view(image, mask, seed)
        padded.append((got_mask == 255).mean())
        inside = (got_mask != 255) & (abs(got[..., 0].astype(int) % 50 - 25) < 23)  # away from the classes' borders
        assert (
            got_mask[inside] == got[..., 0][inside] // 50
        ).mean() > 0.99  # at its border the image fades into the fill
    assert np.mean(padded) < 0.004
    assert view(image, mask, 2)[0].std(axis=0).max() > 1  # columns are no longer upright


@pytest.mark.parametrize("degrees", [0.0, 90.0, 180.0])
def test_a_quarter_turn_of_a_window_is_that_of_its_pixels(degrees: float) -> None:
    generator = np.random.default_rng(0)
    window = Window((8, 8), (1, 1), (0, 0, 0))
    for pixels in (
        generator.integers(0, 256, (8, 8, 3)).astype(np.uint8),
        generator.integers(0, 9, (8, 8)).astype(np.uint8),
    ):
        out = np.empty_like(pixels)
        window.cut_turned(pixels, (0, 0, 8, 8), (8, 8), degrees, out)
        np.testing.assert_array_equal(out, np.rot90(pixels, round(degrees / 90)))


def test_only_turned_views_have_their_own_version() -> None:
    assert (views_version(0), views_version(10)) == (2, 3)


@pytest.mark.parametrize("rotate", [0, 1e-9])  # the common view, and Compose
def test_a_flip_exchanges_left_and_right_classes_of_the_mask(
    pair: tuple[np.ndarray, np.ndarray], rotate: float
) -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 3, 5, 9, 255], np.uint8), pair[0].shape[:2])
    plain, paired = (
        TrainView(mask.shape, (1, 1), flip=1, rotate=rotate, flip_pairs=pairs)(pair[0], mask, 1)[1]
        for pairs in ((), ((3, 5),))
    )
    assert (plain != paired).any()
    np.testing.assert_array_equal(paired, np.choose((plain == 3) + 2 * (plain == 5), [plain, 5, 3]))
    unflipped = TrainView(mask.shape, (1, 1), flip=0, rotate=rotate, flip_pairs=((3, 5),))(pair[0], mask, 1)[1]
    assert (unflipped == mask).mean() > 0.9


def test_colours_change_and_masks_do_not(pair: tuple[np.ndarray, np.ndarray]) -> None:
    views = [TrainView((64, 64), (1, 1), flip=0, saturation=s, hue=h) for s, h in ((0.5, 0), (0.5, 0.1), (0, 0.1))]
    made = [view(*pair, seed=5) for view in views]
    plain = TrainView((64, 64), (1, 1), flip=0)(*pair, seed=5)
    for image, mask in made:
        assert (image != plain[0]).any()
        np.testing.assert_array_equal(mask, plain[1])
    grey = [image @ np.array([0.299, 0.587, 0.114]) for image in (made[0][0], plain[0])]
    assert np.abs(grey[0] - grey[1]).mean() < 4  # saturation does not change the brightness


def test_a_view_is_written_where_it_is_wanted(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for view in (TrainView((150, 90), (0.4, 1.5)), TrainView((150, 90), (0.4, 1.5), brightness=0.2)):
        for seed in range(8):
            block = np.full((3, 150, 90, 3), 77, np.uint8), np.full((3, 150, 90), 77, np.uint8)
            view(*pair, seed, out=(block[0][1], block[1][1]))
            image, mask = view(*pair, seed)
            np.testing.assert_array_equal(block[0][1], image)
            np.testing.assert_array_equal(block[1][1], mask)
            assert all((part[[0, 2]] == 77).all() for part in block)


@pytest.mark.parametrize("wrong", [{"scale": (2, 1)}, {"crop": (0, 5)}, {"flip": 1.5}, {"rotate": -1}])
def test_wrong_view(wrong: dict) -> None:
    with pytest.raises(DataError, match=f"view: {next(iter(wrong))} is"):
        TrainView(**({"crop": (8, 8), "scale": (1, 1)} | wrong))
