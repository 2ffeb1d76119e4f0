"""The table of heads."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from segmodels.checks import check_keywords, choose, keywords_of
from segmodels.heads.a2 import a2_head
from segmodels.heads.ann import ann_head
from segmodels.heads.apcnet import apcnet_head
from segmodels.heads.aspp import aspp_head
from segmodels.heads.cbam import cbam_head
from segmodels.heads.ccnet import ccnet_head
from segmodels.heads.cfnet import cfnet_head
from segmodels.heads.cgnl import cgnl_head
from segmodels.heads.ctnet import ctnet_head
from segmodels.heads.danet import danet_head
from segmodels.heads.deeplabv3plus import deeplabv3plus_head
from segmodels.heads.dfseg import dfseg_head
from segmodels.heads.dmnet import dmnet_head
from segmodels.heads.efficient import efficient_head
from segmodels.heads.emanet import emanet_head
from segmodels.heads.encnet import encnet_head
from segmodels.heads.fcn import fcn_head
from segmodels.heads.gc import gc_head
from segmodels.heads.glore import glore_head
from segmodels.heads.latentgnn import latentgnn_head
from segmodels.heads.nonlocal_ import nonlocal_head
from segmodels.heads.ocnet import ocnet_head, sa2x_head
from segmodels.heads.ocr import ocr_head
from segmodels.heads.psanet import psanet_head
from segmodels.heads.psp import psp_head
from segmodels.heads.reconet import reconet_head
from segmodels.heads.se import se_head
from segmodels.heads.srnet import srnet_head

HEADS: dict[str, Callable[..., nn.Module]] = {
    "fcn": fcn_head,
    "a2": a2_head,
    "ann": ann_head,
    "apcnet": apcnet_head,
    "aspp": aspp_head,
    "cbam": cbam_head,
    "ccnet": ccnet_head,
    "cfnet": cfnet_head,
    "cgnl": cgnl_head,
    "ctnet": ctnet_head,
    "danet": danet_head,
    "deeplabv3plus": deeplabv3plus_head,
    "dfseg": dfseg_head,
    "dmnet": dmnet_head,
    "efficient": efficient_head,
    "emanet": emanet_head,
    "encnet": encnet_head,
    "gc": gc_head,
    "glore": glore_head,
    "latentgnn": latentgnn_head,
    "nonlocal": nonlocal_head,
    "ocnet": ocnet_head,
    "ocr": ocr_head,
    "psanet": psanet_head,
    "psp": psp_head,
    "reconet": reconet_head,
    "sa2x": sa2x_head,
    "se": se_head,
    "srnet": srnet_head,
}


def build_head(name: str, in_channels: Sequence[int], num_classes: int, **keywords: Any) -> nn.Module:
    """Build a head of `HEADS` with a recipe's keywords.

    Args:
        name: a key of `HEADS`.
        in_channels: widths of the backbone's stages, the first to the one that the head reads.
        num_classes: K.
        keywords: the keyword-only parameters of the head's builder.

    Raises:
        ValueError: an unknown head or keyword (names the nearest and the allowed), or a bad value.
    """
    builder = choose(HEADS, name, "head")
    check_keywords(keywords, keywords_of(builder), f"head {name!r}")
    return builder(in_channels, num_classes, **keywords)
