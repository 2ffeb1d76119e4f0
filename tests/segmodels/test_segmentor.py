import pytest
import torch

from segmodels.segmentor import build_segmentor, upsample

CROP = (64, 96)
OCNET = {"name": "ocnet", "channels": 8}


def build(crop=CROP, stride=16, **parts):
    return build_segmentor(
        **{
            "num_classes": 4,
            "crop": crop,
            "backbone": {"name": "resnet18", "output_stride": stride},
            "head": {"name": "reconet", "channels": 8, "rank": 2},
        }
        | parts
    )


def test_normalises_raw_rgb_as_the_backbone_wants():
    model = build().eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = torch.randint(0, 256, (1, 3, *CROP), dtype=torch.uint8)
    model(image.to(memory_format=torch.channels_last))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(seen[0], (image / 255 - mean) / std, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("crop", "stride", "size"), [((64, 96), 8, (8, 12)), ((65, 97), 8, (9, 13)), ((65, 33), 32, (3, 2))]
)
def test_feature_size_is_what_the_backbone_gives(crop, stride, size):
    model = build(crop, stride).eval()
    assert model.feature_size == size
    assert model.window == crop
    assert model(torch.zeros(1, 3, *crop))["logits"].shape == (1, 4, *crop)


def test_unbound_heads_have_no_window():
    assert build(head={"name": "fcn", "channels": 8}).window is None
    free = build(head={"name": "reconet", "channels": 8, "rank": 2, "resample": True}).eval()
    assert free.window is None
    assert free(torch.zeros(1, 3, 80, 50))["logits"].shape == (1, 4, 80, 50)


def test_aux_reads_its_stage_and_is_256_wide():
    model = build(aux={"name": "fcn"})
    assert tuple(model.aux.reduce[0].weight.shape) == (256, 256, 3, 3)
    model = build(aux={"name": "fcn", "stage": 2, "channels": 8}).train()
    assert tuple(model.aux.reduce[0].weight.shape) == (8, 128, 3, 3)
    assert model(torch.zeros(2, 3, *CROP))["aux"].shape == (2, 4, *CROP)
    bound = build(stride=32, aux={"name": "reconet", "channels": 8, "rank": 2})
    assert bound.aux.feature_size == (4, 6)  # stage 3 is at stride 16


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        model = build(aux={"name": "fcn"})
    assert all(v.is_meta for v in model.state_dict().values())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"head": {"channels": 8}}, "it needs a name"),
        ({"head": {"name": "fcn", "rank": 3}}, "unknown keyword 'rank' of head 'fcn'; allowed: channels=512"),
        ({"backbone": {"name": "resnet18", "stride": 8}}, "unknown keyword 'stride' of backbone"),
        ({"aux": {"name": "fcn", "stage": 5}}, "stage is 5; allowed: 1, 2, 3, 4"),
        ({"crop": (0, 64)}, "crop is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"head": {"name": "reconet", "feature_size": [7, 7]}}, r"feature_size is \(7, 7\).*gives \(4, 6\)"),
        ({"head": {"name": "reconet", "feature_size": 8}}, "feature_size is 8; allowed: two integers"),
        ({"head": {"name": "reconet", "feature_size": [4]}}, r"feature_size is \[4\]; allowed: two integers"),
        ({"head": {"name": "psp", "bins": 3}}, r"bins is 3; allowed"),
        ({"head": {"name": "ann", "sizes": 3}}, r"head 'ann': sizes is 3; allowed: a list, such as \[1, 3, 6, 8\]"),
        ({"head": OCNET | {"scheme": "pyramid", "attention": "sa"}}, "'ocnet' on a crop of .*pyramid has 6 x 6 tiles"),
        (
            {"head": OCNET | {"partition": [5, 4]}},
            r"partition is \(5, 4\), but the map has \(4, 6\) cells; allowed in training: at most 4 and 6",
        ),
        (
            {"head": OCNET | {"scheme": "pyramid", "pyramid": [1, 2], "partition": [2, 4]}},
            r"partition is \(2, 4\), but the map cut into 2 x 2 tiles has \(4, 6\) cells; .*: at most 2 and 3",
        ),
        (
            {"head": OCNET | {"scheme": "asp", "pool": 5}},
            "pool is 5, .* Lower pool, or enlarge",
        ),
    ],
)
def test_bad_recipes(parts, message):
    with pytest.raises(ValueError, match=message):
        build(**parts)


def test_logits_reach_the_loss_in_its_own_layout():
    """A map laid out by channels would be copied at the image's size."""
    output = torch.randn(2, 5, 4, 4).to(memory_format=torch.channels_last).bfloat16()
    assert upsample(output, torch.zeros(2, 3, 32, 32)).is_contiguous()
