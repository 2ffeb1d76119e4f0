"""Whole models that start from a checkpoint: of the same classes, of others, with and without an auxiliary head."""

import pytest
import torch

from segmodels.segmentor import build_segmentor, classifier_keys
from segmodels.starting import start_from


def built(classes, head="fcn", aux=True, name="test_resnet", **keywords):
    return build_segmentor(
        num_classes=len(classes), crop=(32, 32), backbone={"name": name, "output_stride": 32},
        head={"name": head, "channels": 8, **keywords}, aux={"name": "fcn", "channels": 4} if aux else None,
    )  # fmt: skip


def content_of(model, classes, head="fcn"):
    page = {"backbone": {"name": "test_resnet"}, "head": {"name": head}, "aux": None}
    return {"model": model.state_dict(), "classes": list(classes), "stage": "voc", "step": 30, "recipe": page}


def same(model, other, but=()):
    own, theirs = model.state_dict(), other.state_dict()
    return {key for key in own if key not in theirs or not torch.equal(own[key], theirs[key])} == set(but)


def test_all_is_taken_where_the_classes_are_the_same():
    before, after = built("abc"), built("abc")
    assert not same(after, before)
    taken = start_from(after, content_of(before, "abc"), "abc")
    assert same(after, before)
    assert taken.taken.startswith(f"{len(before.state_dict())} entries of voc (step 30), ")
    assert (taken.left, taken.missing) == ("nothing", "nothing")


@pytest.mark.parametrize("classes", ["abd", "ab", "cba"])
def test_classifiers_are_fresh_where_a_class_is_another(classes):
    before, after = built("abc"), built(classes)
    fresh = {key: value.clone() for key, value in after.state_dict().items() if key in classifier_keys(after)}
    taken = start_from(after, content_of(before, "abc"), classes)
    assert {key for key in fresh if torch.equal(after.state_dict()[key], fresh[key])} == set(fresh)
    others = [key for key in after.state_dict() if key not in fresh]
    assert all(torch.equal(after.state_dict()[key], before.state_dict()[key]) for key in others)
    assert taken.left == "4 of classifiers of other classes"
    assert taken.missing == "4 of classifiers, which are fresh"


def test_an_auxiliary_head_may_be_on_one_side_alone():
    before, after = built("abc", aux=False), built("abc")
    taken = start_from(after, content_of(before, "abc"), "abc")
    number = sum(key.startswith("aux.") for key in after.state_dict())
    assert (taken.left, taken.missing) == ("nothing", f"{number} of aux")
    assert start_from(built("abc", aux=False), content_of(after, "abc"), "abc").left == f"{number} of aux"


def test_another_model_is_refused_with_the_way_to_its_trunk():
    before = content_of(built("abc"), "abc")
    for other in (built("abc", "gc"), built("abc", name="resnet10t")):
        with pytest.raises(
            ValueError, match=r"another model \(backbone test_resnet, head fcn\).* as backbone\.weights"
        ):
            start_from(other, before, "abc")
    with torch.device("meta"):  # compares, and copies nothing
        assert start_from(built("abc"), before, "abc").left == "nothing"
