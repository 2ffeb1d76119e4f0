"""`python -m segmodels`: papers, keywords and costs are read off the code."""

import re
import sys
import types

import pytest

from segmodels import backbone, cards
from segmodels.__main__ import main
from segmodels.heads.catalog import HEADS
from segmodels.losses import TERMS


def builder(text, file_text="Two heads."):
    """A function with this docstring, in a module with that one."""
    module = types.ModuleType("some_heads", file_text)
    sys.modules["some_heads"] = module

    def head(in_channels, num_classes, *, rank: int = 3, mode: str = "a", size: tuple[int, int] | None = None):
        pass

    head.__module__, head.__doc__ = "some_heads", text
    return head


@pytest.mark.parametrize(
    ("text", "paper"),
    [
        (
            "Net: it is (as B, 2019) so (A et al., ECCV 2020, arXiv:2008.00490).",
            ("A et al.", "ECCV 2020", "2008.00490"),
        ),
        ("Net: wrapped over\n    lines (A, B and C, 2017, 1706.05587).", ("A, B and C", "2017", "1706.05587")),
        ("Net (A et al., ECCV 2018, not on arXiv).\n\nSee (D, 1999).", ("A et al.", "ECCV 2018", "")),
        ("Net in the common frame.", ("M et al.", "CVPR 2001", "")),
    ],
)
def test_the_paper_is_read_off_the_builder_or_else_its_module(text, paper):
    found = cards.paper_of(builder(text, "Mod: it is (M et al., CVPR 2001)."))
    assert (found.authors, found.venue, found.arxiv) == paper
    assert found.title.split(":")[0].split()[0] in ("Net", "Mod")


def test_a_head_without_a_paper_has_its_title():
    assert cards.paper_of(builder("Net alone.")) == cards.Paper("Net alone", "", "", "")


def test_keywords_with_types_defaults_and_descriptions():
    found = cards.keywords(builder("""Net.

    Args:
        in_channels: widths.
        rank, mode: first line
            and second: with a colon.
        size: (h, w) in cells.

    Raises:
        ValueError: never.
    """))  # fmt: skip
    assert [(k.name, k.kind, k.default) for k in found] == [
        ("rank", "int", 3), ("mode", "str", "a"), ("size", "tuple[int, int] | None", None)
    ]  # fmt: skip
    assert [k.text for k in found] == ["first line and second: with a colon."] * 2 + ["(h, w) in cells."]


def test_all_heads_are_listed_with_their_cost(capsys):
    main([])
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1 : len(HEADS) + 1]] == list(HEADS)
    assert re.search(r"^fcn +Long et al., CVPR 2015 +1411\.4038 +9,448,981 +38\.699 +any$", shown, re.M)
    assert re.search(r"^reconet +.* 27,801,173 +42\.072 +bound to its crop$", shown, re.M)
    assert re.search(r"^psanet +.* bound to its crop$", shown, re.M)
    assert "not counted" not in shown


@pytest.mark.parametrize("name", HEADS)
def test_every_head_names_its_paper_and_describes_its_keywords(name):
    paper = cards.paper_of(HEADS[name])
    assert paper.authors
    assert paper.venue
    assert [k.name for k in cards.keywords(HEADS[name]) if not k.text] == []


def test_a_head_that_does_not_take_the_features_is_named(capsys, monkeypatch):
    def broken(in_channels, num_classes, *, channels: int = 8):
        """Broken (A, 2020)."""
        raise ValueError("needs 5 stages")

    for name in set(HEADS) - {"fcn"}:
        monkeypatch.delitem(HEADS, name)
    monkeypatch.setitem(HEADS, "broken", broken)
    main([])
    assert "not counted: broken: needs 5 stages" in capsys.readouterr().out


def test_a_heads_attentions_from_other_files_are_shown_with_it(capsys):
    main(["ocnet"])
    shown = capsys.readouterr().out
    for text in (
        "SA: Z = ρ(softmax(θ(x) φ(x)ᵀ / √E) g(x))",
        "ISA: self-attention in two sparse stages",
        "checkerboard",
    ):
        assert text in shown
    assert "ContextHead\n" not in shown  # the frame of most heads is not this one's


def test_one_head(capsys):
    main(["reconet"])
    shown = capsys.readouterr().out
    assert "We follow the paper. Its public code differs" in shown
    assert "rank: int = 64" in shown
    assert "number of rank-1 tensors" in shown
    assert "A = Σ_i λ_i v_c[i] ⊗ v_h[i] ⊗ v_w[i]" in shown
    assert re.search(r"GMACs, conv\+matmul +42\.072", shown)
    assert re.search(r"GMACs, leaf-modules +41\.950", shown)
    assert "here (64, 64) cells" in shown
    assert "Shape:" not in shown


def test_costs_at_sizes_of_ones_own(capsys):
    main(["fcn", "--size", "256", "128", "--size", "512", "512", "--batch", "2"])
    shown = capsys.readouterr().out
    assert re.search(r"^ +256x128 +512x512$", shown, re.M)
    assert re.search(r"GMACs, conv\+matmul +4\.837 +38\.699 ", shown)  # of one image; 32 x 16 cells are an eighth
    cells, floats = 2 * 32 * 16, 512 + 512  # the reduced map, and what its norm makes of it
    assert re.search(rf"MiB at once +{4 * cells * floats / 2**20:.1f} +{8 * 4 * cells * floats / 2**20:.1f} ", shown)
    assert "at 256x128 gives logits (2, 21, 32, 16)" in shown
    assert "bench inference fcn --size 256 128" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fcn", "--size", "0", "4"], "1 or more"),
        (["fcn", "--batch", "0"], "1 or more"),
        (["losses", "--size", "4", "4"], "losses: heads and backbones take one --size"),
        (["heads", "--size", "64", "64", "--size", "8", "8"], "several, and --batch N, are for one head"),
    ],
)
def test_costs_that_cannot_be_counted(capsys, words, message):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_losses(capsys):
    main(["losses"])
    shown = capsys.readouterr().out
    assert all(f"\n{name}\n" in f"\n{shown}" for name in TERMS)
    assert "threshold: float = 0.7" in shown
    assert "(not described)" not in shown


def test_backbones(capsys, monkeypatch):
    for name in set(backbone.BACKBONES) - {"resnet18"}:
        monkeypatch.delitem(backbone.BACKBONES, name)
    main(["backbones"])
    assert re.search(r"resnet18 +4 8 8 8 +64 128 256 512 +11,176,512 +48\.130", capsys.readouterr().out)


def test_one_of_timms_networks_at_each_of_its_output_strides(capsys):
    main(["timm/test_efficientnet", "--size", "64", "64"])
    shown = capsys.readouterr().out
    assert re.findall(r"^ +(\d+)  (4 8 \d+ \d+)  ", shown, re.M) == [
        ("8", "4 8 8 8"),
        ("16", "4 8 16 16"),
        ("32", "4 8 16 32"),
    ]
    assert "without what only classifies: conv_head., bn2., classifier." in shown
    assert "weights of `hub:`: test_efficientnet.r160_in1k" in shown


def test_timms_names_by_a_word(capsys):
    main(["timm/efficientnet_lite"])
    assert "timm/tf_efficientnet_lite0, timm/tf_efficientnet_lite1" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["timm/convnetx_tiny"])
    assert "Did you mean 'convnext_tiny'?" in capsys.readouterr().err


def test_unknown_name(capsys):
    with pytest.raises(SystemExit) as left:
        main(["recnet"])
    assert left.value.code == 2
    assert "unknown name 'recnet'; allowed: fcn, " in (shown := capsys.readouterr().err)
    assert "Did you mean 'reconet'?" in shown
