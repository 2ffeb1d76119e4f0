"""Files of weights: each public layout rebuilt by hand with random tensors, loaded, compared entry by entry."""

import collections
import datetime
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file

from segmodels import weights
from segmodels.backbone import build_backbone
from segmodels.segmentor import build_segmentor
from segmodels.weight_files import SUFFIXES, Unreadable, shapes
from segmodels.weights import COUNTER, load_weights, match_entries

SMALL = "test_resnet"  # 75 entries of a few dozen channels; a plain ResNet with a stem of three convolutions


def drawn(trunk, seed=0):
    """A trunk's state dict with other numbers in it, in the trunk's order."""
    generator = torch.Generator().manual_seed(seed)
    whole = {k: v for k, v in trunk.state_dict().items() if not k.endswith(COUNTER)}
    return {k: torch.rand(v.shape, generator=generator) for k, v in whole.items()}


def trunk_of(name=SMALL):
    return build_backbone(name, 32).trunk


def loaded(path, name=SMALL):
    """What a trunk holds after a file was loaded, and what was told."""
    trunk = trunk_of(name)
    taken = load_weights(trunk, str(path), name)
    return {k: v for k, v in trunk.state_dict().items() if not k.endswith(COUNTER)}, taken


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def prefixed(state, prefix, **extra):
    return {f"{prefix}{k}": v for k, v in state.items()} | {k: torch.rand(3) for k in extra.get("extra", ())}


HEADS = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias", "auxiliary_head.conv_seg.weight")
LAYOUTS = {
    "torchvision": lambda s: s | {"fc.weight": torch.rand(9, 3), "fc.bias": torch.rand(9)},
    "torchvision segmentation": partial(
        prefixed, prefix="backbone.", extra=("classifier.0.weight", "classifier.4.bias", "aux_classifier.0.weight")
    ),
    "torchvision's training script": lambda s: {"model": s, "optimizer": {}, "epoch": 3, "lr_scheduler": {"last": 1}},
    "timm": lambda s: {"arch": "x", "epoch": 9, "state_dict": prefixed(s, "", extra=("head.fc.weight",))},
    "timm's average": lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s},
    "model_ema": lambda s: {"model": {k: v + 1 for k, v in s.items()}, "model_ema": s},
    "DDP": lambda s: {"state_dict": prefixed(s, "module.", extra=("module.fc.weight",))},
    "DDP of a compiled model": lambda s: prefixed(s, "module._orig_mod."),
    "MMSegmentation": lambda s: {
        "meta": {"epoch": 1, "CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3]]},
        "state_dict": collections.OrderedDict(prefixed(s, "backbone.", extra=HEADS)),
        "optimizer": {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "PyTorch-Encoding": lambda s: {
        "epoch": 50,
        "state_dict": prefixed(s, "pretrained.", extra=("pretrained.fc.weight", "head.conv5.0.weight", "auxlayer.w")),
        "best_pred": 0.8,
    },
    "encoder and decoder": partial(prefixed, prefix="encoder.", extra=("decoder.conv1.weight",)),
    "contrastive": lambda s: {
        "state_dict": prefixed(s, "module.encoder_q.") | prefixed({k: v + 1 for k, v in s.items()}, "module.encoder_k.")
    },
    "thop was here": lambda s: s | {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts_give_the_trunk(layout, tmp_path):
    state = drawn(trunk_of())
    torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    found, taken = loaded(tmp_path / "w.pth")
    assert equal(found, state)
    assert taken.taken.startswith("75 entries")
    assert taken.missing == "15 counters of batch norms, which decide nothing"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_and_the_formats_of_before_zip(suffix, tmp_path):
    state, path = drawn(trunk_of()), tmp_path / f"w.pth{suffix}"
    if suffix == ".safetensors":
        save_file(prefixed(state, "backbone."), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    assert equal(loaded(path)[0], state)


def test_the_deep_stem_of_mmsegmentation_is_timms(tmp_path):
    """ResNetV1c: `stem` holds convolutions and norms in one row; timm's last norm is `bn1`."""
    state = drawn(trunk_of())
    names = {f"conv1.{i}.": f"stem.{i}." for i in (0, 1, 3, 4, 6)} | {"bn1.": "stem.7."}
    own = {k: next((k.replace(a, b, 1) for a, b in names.items() if k.startswith(a)), k) for k in state}
    assert "stem.7.running_var" in own.values()
    torch.save({"state_dict": {f"backbone.{own[k]}": v for k, v in state.items()}}, tmp_path / "w.pth")
    found, taken = loaded(tmp_path / "w.pth")
    assert equal(found, state)
    assert "without 'backbone.' before their names" in taken.taken


def test_a_checkpoint_of_our_own_gives_its_trunk(tmp_path):
    parts = {"num_classes": 3, "crop": (32, 32), "backbone": {"name": SMALL, "output_stride": 32}}
    model = build_segmentor(**parts, head={"name": "fcn", "channels": 8}, aux={"name": "fcn", "channels": 8})
    torch.save({"format": 1, "model": model.state_dict(), "step": 3}, tmp_path / "best.pt")
    trunk = trunk_of()
    taken = load_weights(trunk, str(tmp_path / "best.pt"), SMALL)
    assert all(torch.equal(v, trunk.state_dict()[k]) for k, v in model.backbone.trunk.state_dict().items())
    assert "90 entries below 'model'" in taken.taken
    assert taken.left == "1 of mean, 1 of std, 8 of head, 8 of aux"
    assert taken.missing == "nothing"


@pytest.mark.parametrize("counted", [True, False])
def test_other_names_in_the_same_order_are_taken_by_it(counted, tmp_path):
    trunk = trunk_of()
    state = {k: v if k.endswith(COUNTER) else torch.rand(v.shape) for k, v in trunk.state_dict().items()}
    state = {k: v for k, v in state.items() if counted or not k.endswith(COUNTER)}
    theirs = {f"_layer{i}._part.{k.split('.')[-1]}": v for i, (k, v) in enumerate(state.items())}
    if counted:  # a counter's module is that of its norm
        parents = {k.rpartition(".")[0]: f"_m{i}" for i, k in enumerate(state)}
        theirs = {f"{parents[k.rpartition('.')[0]]}.{k.split('.')[-1]}": v for k, v in state.items()}
    torch.save(theirs | {"_fc.weight": torch.rand(9, 3), "_fc.bias": torch.rand(9)}, tmp_path / "w.pth")
    found, taken = loaded(tmp_path / "w.pth")
    assert all(torch.equal(found[k], v) for k, v in state.items() if not k.endswith(COUNTER))
    assert "by their order" in taken.taken
    assert taken.left == "2 of _fc"
    assert (taken.missing == "nothing") == counted


def test_order_is_no_cure_where_kinds_differ_or_nothing_keeps_it(tmp_path):
    state = drawn(trunk_of())
    swapped = {"weight": "bias", "bias": "weight"}
    other = {f"_{i}.{swapped.get(k.split('.')[-1], k.split('.')[-1])}": v for i, (k, v) in enumerate(state.items())}
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="another model's weights"):
        loaded(tmp_path / "w.pth")
    save_file({f"_{i:03d}.{k.split('.')[-1]}": v for i, (k, v) in enumerate(state.items())}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="another model's weights"):
        loaded(tmp_path / "w.safetensors")


def test_a_larger_trunk_is_not_this_one(tmp_path):
    with torch.device("meta"):
        large, small = (shapes(build_backbone(name, 32).trunk.state_dict()) for name in ("resnet101", "resnet50"))
    match = match_entries(small, large, ordered=True)
    assert match.fit(small, large) == sum(not weights.counts(key) for key in small)
    assert not match.whole(small, large)
    assert match.odd[0] == "layer3.6.conv1.weight"
    assert not match_entries(small, large, True, ["layer3.6.conv1.weight"]).whole(small, large)
    assert match_entries(small, large, True, match.odd).whole(small, large)  # parts that a trunk leaves out


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_timms_names_of_parts_and_of_wholes_are_one(name):
    """timm's feature extractors write `stages_0.blocks` for `stages.0.blocks`, or put `model.` before all names."""
    with torch.device("meta"):
        whole = shapes(timm.create_model(name).state_dict())
        own = shapes(timm.create_model(name, features_only=True).state_dict())
    match = match_entries(own, whole, ordered=False)
    assert match.whole(own, whole)
    assert len(set(match.names.values())) == len(own)
    mine, theirs = (
        [k.removeprefix("model.").replace("_", ".") for k in keys] for keys in (match.names, match.names.values())
    )
    assert mine == theirs


class Pickled:
    """Stands for what a training leaves in its files: a logger's history, a config."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"w": torch.zeros(1)}, "when": datetime.datetime(2020, 1, 1)}, r"a pickled datetime\.datetime"),
        ({"state_dict": {"w": torch.zeros(1)}, "log": Pickled()}, r"a pickled .*Pickled: code, .*weights_only=False"),
        ([1, 2], "a list without tensors"),
        ({"config": {"a": 1}, "step": 3}, r"a dict of the keys \['config', 'step'\] without tensors.*state_dict_ema"),
        (b"<html>not found</html>", r"\(22 bytes\) is no state dict that PyTorch reads"),
        (b"", r"\(0 bytes\) is no state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_the_cure(content, message, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(Unreadable, match=message):
        loaded(path)


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "w.zip").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"allowed: null, 'hub', or a file ending in \.pth"):
        loaded(tmp_path / "w.zip")
    with pytest.raises(FileNotFoundError, match="give an existing file"):
        loaded(tmp_path / "none.pth")
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(Unreadable, match="is no state dict"):
        loaded(tmp_path / "w.safetensors")


def test_another_shape_is_named(tmp_path):
    state = drawn(trunk_of())
    first = next(iter(state))
    torch.save(state | {first: torch.zeros(1, 2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"1 shapes differ, such as '{first}' has the shape \[1, 2\], {SMALL} wants"):
        loaded(tmp_path / "w.pth")
