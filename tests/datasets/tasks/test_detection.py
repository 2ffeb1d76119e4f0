"""The view of detection, its canvas, its way through a block, and the order of an epoch."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_api

from datasets.sample import DataError, Segment, decode_image
from datasets.shards import Shards
from datasets.tasks.aspect import aspect_order
from datasets.tasks.detection import DetectionView
from datasets.tasks.resized import STEP, Placed, resized
from datasets.transforms import epoch_order, sample_seed

VIEW = DetectionView(short=(48, 72), long=110)


@pytest.fixture(scope="module")
def instances(task_shards: Path) -> Shards:
    return Shards(str(task_shards / "coco_instances/train"))


def read(view: Any, shards: Shards, row: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """A sample after its way through a block."""
    images, (target,) = view.unpack(view.pack([view.read(shards, row, seed, view.canvas(shards.sizes))]))
    return images[0], target


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


class TestSizes:
    def test_as_mmdetection_rounds(self) -> None:
        sizes = np.array([[480, 640], [640, 480], [427, 640], [100, 500], [3, 4000]])
        expected = [[800, 1067], [1067, 800], [800, 1199], [267, 1333], [1, 1333]]
        assert resized(sizes, 800, 1333).tolist() == expected

    def test_a_canvas_is_the_least_multiple_of_32_that_holds_all(self) -> None:
        view = DetectionView()
        assert view.canvas(np.array([[480, 640], [427, 640]])) == (800, 1216)
        assert view.canvas(np.array([[480, 640], [640, 480]])) == (1088, 1088)

    def test_every_short_side_fits_the_canvas_of_the_greatest(self) -> None:
        sizes = np.random.default_rng(0).integers(30, 900, (300, 2))
        view = DetectionView(short=(64, 100), long=150)
        for short in range(64, 101):
            assert (resized(sizes, short, 150).max(0) <= view.canvas(sizes)).all()
        assert (np.array(view.canvas(sizes)) % STEP == 0).all()

    @pytest.mark.parametrize(
        ("keys", "match"),
        [
            ({"short": 0}, "short is"),
            ({"short": (900, 800)}, "short is"),
            ({"short": 800, "long": 700}, "long is 700; allowed is at least short's 800"),
            ({"flip": 1.5}, "flip is 1.5"),
            ({"fill": (0, 0, 256)}, "fill is"),
        ],
    )
    def test_values_out_of_range(self, keys: dict[str, Any], match: str) -> None:
        with pytest.raises(DataError, match=match):
            DetectionView(**keys)


class TestRecipe:
    def test_the_keys_of_a_recipe(self) -> None:
        train = DetectionView.of((800, 1333), (0.8, 1.0), 0.5, train=True)
        assert train == DetectionView((640, 800), 1333, 0.5)
        val = DetectionView.of((800, 1333), (0.8, 1.0), 0.5, train=False)
        assert val == DetectionView(800, 1333, 0)
        assert val.words == "short side 800, long side at most 1333"
        assert {val.place((480, 640), seed) for seed in range(50)} == {Placed((480, 640), (800, 1067), False)}

    def test_its_order_is_that_of_batches_of_one_orientation(self) -> None:
        sizes = np.array([[30, 40], [40, 30]] * 20)
        np.testing.assert_array_equal(VIEW.order(sizes, 1, 2, 4), aspect_order(sizes, 1, 2, 4))
        assert not np.array_equal(VIEW.order(sizes, 1, 2, 4), epoch_order(40, 1, 2))
        assert VIEW.orders


class TestView:
    def test_it_is_hashable_and_a_list_is_a_pair(self) -> None:
        assert hash(DetectionView(short=[48, 72], fill=[1, 2, 3])) == hash(
            pickle.loads(pickle.dumps(DetectionView((48, 72), fill=(1, 2, 3))))
        )
        assert DetectionView(short=64).shorts == (64, 64)

    def test_boxes_are_those_of_the_masks_within_a_pixel(self, instances: Shards) -> None:
        seen = 0
        for row in range(len(instances)):
            for seed in range(2, 6):  # the third flips
                _, target = read(VIEW, instances, row, seed)
                for box, mask in zip(target["boxes"], target["masks"], strict=True):
                    assert np.abs(box - box_of(mask)).max() <= 1
                    seen += 1
        assert seen > 60

    def test_masks_are_the_scene_resized_as_the_image_is(self, instances: Shards) -> None:
        """Of a picture that shows each object's mask, the view's pixels are the masks, but for blurred edges."""
        row = 2
        size = instances.sizes[row].tolist()
        placed = VIEW.place(tuple(size), 5)
        _, target = read(VIEW, instances, row, 5)
        whole = [s for s in instances.segments(row) if not s.crowd]
        for segment, mask in zip(whole, target["masks"], strict=True):
            pixels = rle_api.decode({"size": size, "counts": segment.rle})
            shown = np.zeros((*mask.shape, 3), np.uint8)
            placed.put(np.repeat(pixels[..., None] * 255, 3, axis=2), shown)
            assert ((shown[..., 0] > 127) != mask).mean() < 0.01
            assert ((shown[..., 0] > 127) != mask[:, ::-1]).mean() > 0.02

    def test_a_flip_mirrors_image_boxes_and_masks(self, instances: Shards) -> None:
        plain, turned = DetectionView(60, 110, flip=0), DetectionView(60, 110, flip=1)
        (image, target), (mirrored, other) = (read(view, instances, 1, 9) for view in (plain, turned))
        height, width = target["size"]
        np.testing.assert_array_equal(other["size"], target["size"])
        np.testing.assert_array_equal(mirrored[:height, :width], image[:height, :width][:, ::-1])
        np.testing.assert_array_equal(other["masks"][:, :, :width], target["masks"][:, :, :width][:, :, ::-1])
        np.testing.assert_allclose(other["boxes"][:, [2, 0]], width - target["boxes"][:, [0, 2]], atol=1e-4)
        np.testing.assert_array_equal(other["labels"], target["labels"])
        assert not np.array_equal(image, mirrored)

    def test_padding_is_at_right_and_bottom(self, instances: Shards) -> None:
        image, target = read(DetectionView(32, 200, flip=0, fill=(7, 8, 9)), instances, 0, 0)
        height, width = target["size"]
        assert min(height, width) == 32
        assert (image[height:] == (7, 8, 9)).all()
        assert (image[:, width:] == (7, 8, 9)).all()
        assert not target["masks"][:, height:].any()
        assert not target["masks"][:, :, width:].any()

    def test_labels_count_things_from_0_and_crowds_are_left_out(self, instances: Shards) -> None:
        crowds = 0
        for row in range(len(instances)):
            segments = instances.segments(row)
            crowds += sum(s.crowd for s in segments)
            assert read(VIEW, instances, row, 0)[1]["labels"].tolist() == [
                s.number - 1 for s in segments if not s.crowd
            ]
        assert crowds

    def test_objects_under_a_pixel_and_empty_outlines_are_left_out(self, instances: Shards) -> None:
        size = tuple(instances.sizes[0].tolist())

        def drawn(top: int, bottom: int, left: int, right: int, width: float = 0) -> Segment:
            mask = np.zeros(size, np.uint8, order="F")
            mask[top:bottom, left:right] = 1
            return Segment(1, False, (left, top, width or right - left, bottom - top), rle_api.encode(mask)["counts"])

        class Few(Shards):
            def segments(self, i: int) -> tuple[Segment, ...]:
                return drawn(0, 20, 0, 20), drawn(30, 31, 30, 31), drawn(5, 5, 5, 5, 9), drawn(2, 12, 30, 38)

        few = Few(instances.uri)
        half, whole = (read(DetectionView(n, 200, flip=0), few, 0, 0)[1] for n in (min(size) // 2, min(size)))
        assert half["boxes"].tolist()[0][:2] == [0, 0]
        assert len(half["boxes"]) == 2  # the single pixel becomes half a pixel
        assert len(whole["boxes"]) == 3
        np.testing.assert_array_equal(whole["boxes"][2], [30, 2, 38, 12])

    def test_an_image_without_objects(self, instances: Shards) -> None:
        class Bare(Shards):
            def segments(self, i: int) -> tuple[Segment, ...]:
                return ()

        image, target = read(VIEW, Bare(instances.uri), 0, 0)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["masks"].shape == (0, *image.shape[:2])

    def test_seeds_differ_by_sample_and_epoch(self, instances: Shards) -> None:
        seeds = [sample_seed(0, epoch, instances.index.name(row)) for epoch in range(20) for row in range(3)]
        placed = {(p.size, p.flipped) for p in (VIEW.place((50, 60), seed) for seed in seeds)}
        assert len(placed) > 15
        assert len({flipped for _, flipped in placed}) == 2
        first, again = (VIEW.read(instances, 3, 7, (96, 128)) for _ in range(2))
        np.testing.assert_array_equal(first[0], again[0])
        assert first[1].masks == again[1].masks
        assert first[1].seed == 7

    def test_a_canvas_that_is_too_small_is_an_error(self, instances: Shards) -> None:
        with pytest.raises(ValueError, match="does not fit a canvas"):
            VIEW.read(instances, 0, 0, (32, 32))

    def test_rows_that_have_only_masks_are_refused(self, shards: Path) -> None:
        with pytest.raises(DataError, match=r"only masks.*prepare coco_instances"):
            VIEW.read(Shards(str(shards / "voc12/val")), 0, 0, (160, 160))

    def test_an_image_of_the_same_size_keeps_its_pixels(self, instances: Shards) -> None:
        image = decode_image(instances.encoded(0)[0])
        view = DetectionView(min(image.shape[:2]), 200, flip=0)
        got, _ = view.read(instances, 0, 0, (96, 96))
        np.testing.assert_array_equal(got[: image.shape[0], : image.shape[1]], image)


class TestBlocks:
    def test_a_batch_cut_from_a_block_is_what_was_read_bit_for_bit(self, instances: Shards) -> None:
        canvas = VIEW.canvas(instances.sizes)
        samples = [VIEW.read(instances, row, row + 1000, canvas) for row in range(6)]
        other = [VIEW.read(instances, row, 0, (160, 160)) for row in range(2)]  # the next batch of the same block
        block = VIEW.pack(samples + other)
        images, targets = VIEW.unpack(block.slice(2, 4))
        np.testing.assert_array_equal(images, np.stack([image for image, _ in samples[2:]]))
        for (_, objects), target in zip(samples[2:], targets, strict=True):
            assert target["boxes"].dtype == np.float32
            assert target["labels"].dtype == np.int64
            assert target["masks"].dtype == np.uint8
            assert target["masks"].flags.c_contiguous
            np.testing.assert_array_equal(target["boxes"], objects.boxes)
            np.testing.assert_array_equal(target["labels"], objects.labels)
            assert (target["seed"], tuple(target["size"])) == (objects.seed, objects.size)
            assert target["masks"].shape == (len(objects.boxes), *canvas)
            for mask, (x, y, w, h), counts in zip(target["masks"], objects.windows, objects.masks, strict=True):
                window = rle_api.decode({"size": [int(w), int(h)], "counts": counts}).T
                np.testing.assert_array_equal(mask[y : y + h, x : x + w], window)
                assert mask.sum() == window.sum() > 0
        assert not images.flags.owndata
        with pytest.raises(ValueError, match="share a canvas"):
            VIEW.unpack(block)

    def test_chunks_and_seeds_of_64_bits(self, instances: Shards) -> None:
        import pyarrow as pa

        large = 2**64 - 1
        parts = [VIEW.pack([VIEW.read(instances, row, large - row, (96, 128))]) for row in range(2)]
        images, targets = VIEW.unpack(pa.concat_tables(parts))
        assert images.shape == (2, 96, 128, 3)
        assert [target["seed"] for target in targets] == [large, large - 1]


class TestOrder:
    @pytest.mark.parametrize(("rows", "wide", "batch"), [(100, 0.7, 8), (103, 0.3, 8), (64, 0.5, 16), (97, 1.0, 5)])
    def test_batches_of_the_stream_are_of_one_orientation_but_for_one_an_epoch(
        self, rows: int, wide: float, batch: int
    ) -> None:
        sizes = np.array([[30, 40] if i < wide * rows else [40, 30] for i in range(rows)])
        epochs, stream = 12, []
        for epoch in range(epochs):
            order = aspect_order(sizes, 3, epoch, batch)
            assert sorted(order.tolist()) == list(range(rows))
            stream += (sizes[order, 1] >= sizes[order, 0]).tolist()
        steps = [stream[i : i + batch] for i in range(0, len(stream) - batch + 1, batch)]
        mixed = [i for i, step in enumerate(steps) if len(set(step)) > 1]
        assert len(mixed) <= epochs
        for step in mixed:  # a mixed batch lies within an epoch, and no two in the same
            assert step * batch // rows == ((step + 1) * batch - 1) // rows
        assert len({step * batch // rows for step in mixed}) == len(mixed)
        assert len(set(map(tuple, steps))) > 1 or wide == 1.0

    def test_it_is_a_pure_function_that_differs_by_epoch_and_seed(self) -> None:
        sizes = np.random.default_rng(0).integers(30, 60, (90, 2))
        made = [aspect_order(sizes, seed, epoch, 8).tolist() for seed in (0, 1) for epoch in (0, 1)]
        assert len(set(map(tuple, made))) == 4
        assert aspect_order(sizes, 1, 1, 8).tolist() == made[3]

    def test_squares_are_landscape_and_one_orientation_keeps_the_plain_order(self) -> None:
        sizes = np.array([[40, 40], [30, 40]] * 25)
        for epoch in range(3):
            np.testing.assert_array_equal(aspect_order(sizes, 1, epoch, 8), epoch_order(50, 1, epoch))

    def test_epochs_shorter_than_a_batch(self) -> None:
        sizes = np.array([[30, 40], [40, 30], [30, 40]])
        for epoch in range(6):
            assert sorted(aspect_order(sizes, 0, epoch, 16).tolist()) == [0, 1, 2]


def test_a_placed_box_is_cut_at_the_edges() -> None:
    placed = Placed((10, 20), (20, 40), flipped=True)
    boxes = placed.boxes(np.array([[-1.0, 2.0, 5.0, 30.0]]))
    np.testing.assert_array_equal(boxes, [[32, 4, 40, 20]])
