import dataclasses
import math

import pytest
import torch
from torch import nn

from segmodels import passes
from segmodels.heads.reconet import reconet_head
from segmodels.held import HELD_BYTES, held_bytes, images_at_once
from segmodels.inference import AVERAGES, Inference, predict, predict_together, protocol
from segmodels.memory import peak_bytes
from segmodels.passes import Way, exponentials
from segmodels.segmentor import Segmentor, build_segmentor

K = 4


class Pixels(nn.Module):
    """A backbone that sees one pixel at a time, and the size and border of what it was given."""

    mean, std, channels, strides = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (3,), (1,)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return [x]


class Classify(nn.Conv2d):
    def forward(self, features):
        return {"logits": super().forward(features[-1])}


@pytest.fixture
def model():
    return Segmentor(Pixels(), Classify(3, K, 1), K).eval()


@pytest.fixture
def image():
    return torch.randint(0, 256, (2, 3, 23, 31), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("window", "stride"), [((10, 12), None), ((23, 31), (23, 31)), ((8, 9), (8, 2)), ((40, 12), None)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_windows_over_a_per_pixel_model_equal_the_whole(model, image, window, stride, flip):
    whole = predict(model, image, Inference())
    slide = predict(model, image, Inference("slide", window, stride, flip=flip))
    assert torch.allclose(slide, whole, atol=1e-6)
    assert torch.allclose(whole, model(image)["logits"].softmax(1))
    assert torch.allclose(whole.sum(1), torch.ones(2, 23, 31))


def test_windows_have_their_size_and_are_flush_with_the_border(model, image):
    predict(model, image, Inference("slide", (10, 12)))
    assert {tuple(x.shape) for x in model.backbone.seen} == {(2, 3, 10, 12)}
    # rows 0, 7, 13 and columns 0, 8, 16, 19
    assert len(model.backbone.seen) == 12
    normalised = (image - model.mean) / model.std
    assert torch.allclose(model.backbone.seen[-1], normalised[..., 13:, 19:], atol=1e-6)


def test_overlaps_are_averaged_by_count(image):
    class Rows(nn.Module):
        """Probability by place in the window: what overlaps is visible."""

        def forward(self, features):
            x = features[-1]
            ramp = torch.arange(x.shape[2]).float().view(1, 1, -1, 1).expand(x.shape[0], 1, *x.shape[2:])
            return {"logits": torch.cat([ramp, -ramp], 1)}

    model = Segmentor(Pixels(), Rows(), 2).eval()
    result = predict(model, image[:, :, :6], Inference("slide", (4, 31), (2, 31)))[0, 0, :, 0]
    p = torch.sigmoid(2 * torch.arange(4.0))
    expected = torch.stack([p[0], p[1], (p[2] + p[0]) / 2, (p[3] + p[1]) / 2, p[2], p[3]])
    assert torch.allclose(result, expected)


def test_padding_is_the_mean_colour(model, image):
    predict(model, image, Inference("slide", (30, 40)))
    x = model.backbone.seen[0]
    assert x.shape[2:] == (30, 40)
    assert not x[..., 23:, :].any()
    assert not x[..., 31:].any()
    assert x[..., :23, :31].any()


def test_scales_are_averaged_at_the_images_size(model, image):
    both = predict(model, image, Inference(scales=(0.5, 1.0)))
    assert {tuple(x.shape[2:]) for x in model.backbone.seen} == {(12, 16), (23, 31)}
    parts = [predict(model, image, Inference(scales=(s,))) for s in (0.5, 1.0)]
    assert torch.allclose(both, (parts[0] + parts[1]) / 2, atol=1e-6)
    assert both.dtype == torch.float32


def test_a_mirrored_image_shows_a_left_arm_where_a_right_one_is(model, image):
    plain = predict(model, image, Inference())
    both = predict(model, image, Inference(flip=True, flip_pairs=((1, 2),)))  # pixel by pixel, mirrors change nothing
    mean = (plain[:, 1] + plain[:, 2]) / 2
    expected = torch.stack([plain[:, 0], mean, mean, plain[:, 3]], 1)
    torch.testing.assert_close(both, expected, atol=1e-6, rtol=0)


def test_flip_is_the_mean_of_the_image_and_its_mirror():
    model = build_segmentor(
        num_classes=K, crop=(32, 48), backbone={"name": "resnet18"}, head={"name": "fcn", "channels": 8}
    ).eval()
    image = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    plain, mirrored = predict(model, image, Inference()), predict(model, image.flip(3), Inference()).flip(3)
    assert not torch.allclose(plain, mirrored, atol=1e-4)
    assert torch.allclose(predict(model, image, Inference(flip=True)), (plain + mirrored) / 2, atol=1e-6)


def test_bound_head_keeps_to_its_crop(image):
    head = reconet_head([3], K, channels=4, rank=2, feature_size=(10, 12))
    model = Segmentor(Pixels(), head, K, crop=(10, 12)).eval()
    assert predict(model, image, Inference("slide", (10, 12))).shape == (2, K, 23, 31)
    with pytest.raises(
        ValueError, match=r"whole inference.*\(23, 31\).*\(10, 12\).*mode: slide with window: \[10, 12\]"
    ):
        predict(model, image, Inference())
    with pytest.raises(ValueError, match=r"slide inference.*\(12, 12\)"):
        predict(model, image, Inference("slide", (12, 12)))
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        predict(model.train(), image, Inference("slide", (10, 12)))


def test_protocol_in_words():
    assert protocol(Inference("slide", (512, 512))) == "slide 512x512 stride 342x342, scales 1.0, no flip"
    assert protocol(Inference(scales=(0.75, 1), flip=True)) == "whole, scales 0.75 1.0, flip"
    assert Inference("slide", [512, 1024], [256, 512]) == Inference("slide", (512, 1024), (256, 512))


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "sliding"},
        {"mode": "slide"},
        {"window": (4, 4)},
        {"stride": (4, 4)},
        {"mode": "slide", "window": (4, 4), "stride": (5, 4)},
        {"mode": "slide", "window": (4, 4), "stride": (0, 4)},
        {"scales": ()},
        {"scales": (0.0,)},
        {"scales": (1.0, 1.0)},
        {"average": "votes"},
    ],
)
def test_bad_values(values):
    with pytest.raises(ValueError, match="allowed"):
        Inference(**values)


WAYS = [
    Inference(),
    Inference(scales=(1.0, 1.5)),  # its first scale is all of the one before
    Inference("slide", (10, 12), scales=(0.5, 1.0, 1.5), flip=True, flip_pairs=((1, 2),)),
    Inference("slide", (10, 12), (10, 5)),
    Inference("slide", (30, 12), scales=(1.0, 1.5)),
    Inference(scales=(1.5, 1.0), flip=True, average="logits"),
    Inference("slide", (10, 12), scales=(0.5, 1.0), average="logits"),
    Inference("slide", (10, 12), scales=(0.5, 1.0), flip=True, average="exponentials"),
    Inference("slide", (10, 12), scales=(0.5, 1.0, 1.5), flip=True, average="exponentials"),
]


@pytest.fixture
def unlike():
    """A model that sees more than a pixel, so that a window, a scale and a mirror change what it says."""
    torch.manual_seed(0)
    model = Segmentor(Pixels(), Classify(3, K, 5, padding=2), K).eval()
    with torch.no_grad():
        model.head.weight *= 20
    return model


def test_ways_that_are_predicted_together_have_the_very_numbers_that_they_have_alone(unlike, image):
    for together, way in zip(predict_together(unlike, image, WAYS), WAYS, strict=True):
        assert torch.equal(together, predict(unlike, image, way)), way
        assert torch.allclose(together.sum(1), torch.ones(2, 23, 31), atol=1e-5)


def test_the_model_sees_each_window_of_each_scale_once_plainly_and_once_mirrored(unlike, image):
    ways = [Inference("slide", (10, 12)), Inference("slide", (10, 12), scales=(0.5, 1.0), flip=True)]
    predict_together(unlike, image, [*ways, Inference("slide", (10, 12), average="logits"), Inference()])
    seen = [tuple(x.shape[2:]) for x in unlike.backbone.seen]
    # (12, 16): rows 0, 2, columns 0, 4; (23, 31): rows 0, 7, 13, columns 0, 8, 16, 19; each mirrored; and the whole
    assert seen.count((10, 12)) == 2 * 4 + 2 * 12
    assert seen.count((23, 31)) == 1
    assert len(seen) == 33


def naive(model, image, way):
    """The average of a way, window by window and pass by pass, from its words."""
    height, width = image.shape[2:]
    total = 0
    for scale in way.scales:
        size = round(height * scale), round(width * scale)
        scaled = nn.functional.interpolate(image.float(), size, mode="bilinear", align_corners=True)
        window, stride = way.window or size, way.stride or size
        full = [max(size[0], window[0]), max(size[1], window[1])]
        canvas = model.mean.expand(len(image), 3, *full).clone()
        canvas[..., : size[0], : size[1]] = scaled
        count, part = torch.zeros(1, 1, *full), torch.zeros(len(image), K, *full)
        tops, lefts = ([*range(0, a - w, s), a - w] for a, w, s in zip(full, window, stride, strict=True))
        for top in tops:
            for left in lefts:
                place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
                logits = [model(canvas[place])["logits"]]
                if way.flip:
                    mirrored = model(canvas[place].flip(3))["logits"].flip(3)
                    logits.append(mirrored[:, [0, 2, 1, 3]] if way.flip_pairs else mirrored)
                stacked = torch.stack(logits).double()
                value = {
                    "probabilities": lambda x: x.softmax(2).mean(0),
                    "logits": lambda x: x.mean(0),
                    "exponentials": lambda x: x.sum(0).exp(),
                }[way.average](stacked)
                part[place] += value.float()
                count[place] += 1
        part = (part / count)[..., : size[0], : size[1]]
        total = total + nn.functional.interpolate(part, (height, width), mode="bilinear", align_corners=True)
    if way.average == "logits":
        return (total / len(way.scales)).softmax(1)
    return total / total.sum(1, keepdim=True)


@pytest.mark.parametrize("way", WAYS, ids=protocol)
def test_averages_are_what_their_words_say(unlike, image, way):
    expected = naive(unlike, image, way)
    torch.testing.assert_close(predict(unlike, image, way), expected.detach(), atol=1e-5, rtol=1e-4)


def test_averages_by_hand(image):
    """One pixel, two classes; plain it has logits (0, 0), mirrored (2 ln 3, 0): odds of 1 and of 9."""

    class Turned(nn.Module):
        def forward(self, features):
            x = features[-1]
            self.calls = getattr(self, "calls", 0) + 1
            first = torch.full_like(x[:, :1], 0.0 if self.calls % 2 else 2 * math.log(3))
            return {"logits": torch.cat([first, torch.zeros_like(first)], 1)}

    model = Segmentor(Pixels(), Turned(), 2).eval()
    first = {
        a: predict(model, image[..., :1, :1], Inference(flip=True, average=a))[0, 0, 0, 0].item() for a in AVERAGES
    }
    assert first == pytest.approx({"probabilities": (0.5 + 0.9) / 2, "logits": 0.75, "exponentials": 0.9})


def test_exponentials_of_large_logits_stay_finite_and_a_common_offset_changes_nothing(unlike, image):
    way = Inference(scales=(0.5, 1.0), flip=True, average="exponentials")
    expected = predict(unlike, image, way)
    with torch.no_grad():
        unlike.head.bias += 500
    assert unlike(image)["logits"].min() > 200
    torch.testing.assert_close(predict(unlike, image, way), expected, atol=1e-3, rtol=0)
    with torch.no_grad():
        unlike.head.weight *= 100
    assert predict(unlike, image, way).isfinite().all()


def test_exponentials_of_pixels_far_below_the_others_are_not_lost():
    way = Way((1, 2), (1, 2), True, (), "exponentials")
    values = exponentials(torch.tensor([0.0, -140.0]).view(1, 1, 1, 2), way, {})
    assert (values > 0).all()
    assert values[..., 0].item() == pytest.approx(math.exp(60))


class Forgetful(Pixels):
    """As `Pixels`, without a memory of what it saw."""

    def forward(self, x):
        return [x]


class Upsampled(nn.Module):
    """A head whose map is small, as a real one's: of the memory only logits and averages matter."""

    def forward(self, features):
        x = features[-1]
        return {"logits": x.new_zeros(len(x), self.classes, -(-x.shape[2] // 8), -(-x.shape[3] // 8))}


def held(ways, size, classes):
    """Bytes that predicting an image holds at most, counted on tensors that hold nothing; an interpolation is one."""
    with torch.device("meta"):
        head = Upsampled()
        head.classes = classes
        model = Segmentor(Forgetful(), head, classes).eval()
        image = torch.zeros(1, 3, *size, dtype=torch.uint8)
        return peak_bytes(lambda: predict_together(model, image, ways), "cpu")


def bound(ways, size, classes):
    """The bytes that `predict_together` promises."""
    largest = max(s for way in ways for s in way.scales)
    scaled = [round(side * largest) for side in size]
    different = {dataclasses.replace(way, scales=(1.0,)) for way in ways}
    canvases = sum(
        math.prod(max(a, w) for a, w in zip(scaled, way.window, strict=True)) for way in different if way.window
    )
    passes = max(math.prod(way.window or scaled) for way in ways)
    held = 3 if len({way.average == "probabilities" for way in ways}) == 1 else 6
    return 4 * classes * ((len(ways) + 1) * math.prod(size) + canvases + held * passes)


MULTI = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@pytest.mark.parametrize(
    "ways",
    [
        [Inference("slide", (512, 1024), scales=MULTI, flip=True)],
        [Inference("slide", (512, 1024)), Inference("slide", (512, 1024), scales=MULTI, flip=True, average="logits")],
        [Inference(scales=MULTI, flip=True, average="logits")],
    ],
    ids=["windows", "two protocols", "whole"],
)
def test_memory_of_a_large_image_with_many_classes_is_bounded(ways, monkeypatch):
    # on the meta device an interpolation is thousands of operations, which hold what the real one does not
    monkeypatch.setattr(nn.functional, "interpolate", lambda x, size, **options: x.new_empty(*x.shape[:2], *size))
    size, classes = (1024, 2048), 150
    peak = held(ways, size, classes)
    assert peak > 4 * classes * math.prod(size)  # it counts what there is
    assert peak < bound(ways, size, classes) + 4 * 3 * math.prod(size) * 10  # images in float32, up to twice their size
    one = held([dataclasses.replace(way, scales=(2.0,)) for way in ways[-1:]], size, classes)
    assert peak < 1.3 * one + 4 * classes * math.prod(size) * len(ways)  # no scale is held while the next is predicted


@pytest.mark.parametrize("way", WAYS)
def test_values_of_large_windows_are_the_same_in_strips(way, unlike, monkeypatch):
    """Softmax and mirroring in their place, a few rows at a time, where one way sees a window."""
    image = torch.randint(0, 256, (2, 3, 23, 31), dtype=torch.uint8)
    expected = predict(unlike, image, way)
    strips, in_strips = [], passes.in_strips
    monkeypatch.setattr(passes, "large", lambda values: True)
    monkeypatch.setattr(passes, "STRIP_BYTES", 4 * 2 * unlike.num_classes * 31 * 4)  # four rows
    monkeypatch.setattr(passes, "in_strips", lambda *given: strips.append(1) or in_strips(*given))
    assert torch.allclose(predict(unlike, image, way), expected, rtol=1e-5, atol=1e-12)  # a CPU rounds by the row
    assert bool(strips) == (way.flip or way.average == "probabilities")


def test_a_large_window_is_held_twice_and_not_three_times(monkeypatch):
    monkeypatch.setattr(nn.functional, "interpolate", lambda x, size, **options: x.new_empty(*x.shape[:2], *size))
    size, classes = (1024, 2048), 150
    map_bytes = 4 * classes * math.prod(size)
    lean = held([Inference(flip=True)], size, classes)
    monkeypatch.setattr(passes, "LARGE_BYTES", 1 << 40)
    assert held([Inference(flip=True)], size, classes) > 3 * map_bytes > 2.2 * map_bytes > lean


@pytest.mark.parametrize(
    "ways",
    [
        [Inference("slide", (512, 1024), scales=MULTI, flip=True)],
        [Inference("slide", (512, 1024)), Inference("slide", (512, 1024), scales=MULTI, flip=True, average="logits")],
        [Inference(scales=MULTI, flip=True, average="logits"), Inference()],
    ],
)
def test_images_at_once_share_a_bound_of_memory(ways, monkeypatch):
    monkeypatch.setattr(nn.functional, "interpolate", lambda x, size, **options: x.new_empty(*x.shape[:2], *size))
    size, classes = (1024, 2048), 150
    each = held_bytes(ways, size, classes)
    assert bound(ways, size, classes) < held(ways, size, classes) + each  # in its order of magnitude
    assert each > held(ways, size, classes)
    at_once = images_at_once(ways, classes, 8)
    assert at_once(size) == 1 < at_once((256, 512)) <= at_once((64, 128)) <= 8
    assert images_at_once([Inference()], 19, 8)((1024, 2048)) == 8  # Cityscapes as ever
    assert at_once((256, 512)) * held_bytes(ways, (256, 512), classes) <= HELD_BYTES
