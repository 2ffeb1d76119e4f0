import pytest
import torch
from torch import nn

from segmodels.heads.reconet import reconet_head
from segmodels.inference import Inference, predict, protocol
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
    ],
)
def test_bad_values(values):
    with pytest.raises(ValueError, match="allowed"):
        Inference(**values)
