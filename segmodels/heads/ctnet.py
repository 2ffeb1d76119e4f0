"""CTNet: channel context, then spatial context through class vectors (Li et al., TPAMI 2022, arXiv:2104.09805).

We follow the paper where its published cost supports it, and its public code in what the paper leaves out: the scale of
the class relation and the 3x3 convolution after it. The cost needs 128 channels of query and key where the code has
256, and a 1x1 reduction (after JPU) where the code has a 3x3. The code's gate has no bias (`gate_bias`), and it
normalises the class logits of P_p over the batch, which we leave out: P_p is the paper's fully connected layer. We also
leave out its initialisation of all convolutions, normal with deviation 0.001: the norms after them undo it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose, positive
from segmodels.heads.attention import few_keys
from segmodels.heads.maps import Maps
from segmodels.layers import Classifier, ConvNormReLU, dropout_classifier

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "mix": lambda x: x.mean((2, 3)) + x.amax((2, 3)),
}
GATES = dict.fromkeys(("mce", "eca", "se"))
GATE_BIASES = dict.fromkeys(("channel", "shared", "none"))
# What the spatial context (SCM) and the 3x3 branch next to it read: the map, or the map gated by C_m; None: no SCM.
ARRANGEMENTS: dict[str, tuple[str | None, str]] = {
    "ctnet": ("gated", "gated"),
    "occm": (None, "gated"),
    "oscm": ("map", "map"),
    "panet": ("map", "gated"),
}


class ChannelConvolution(nn.Module):
    """The logits of C_m: one-dimensional convolutions over the channel axis, of several reaches, and a mix of them.

    MCE with several kernels and a mixing layer of one weight each; ECA with one kernel and no mixing layer.

    Args:
        channels: C.
        kernels: lengths in channels.
        even: allow even kernels, which reach one channel further to the right.
        mix: have the mixing layer.
        bias: of the mixing layer, one per channel (the paper), one shared by all channels, or none (the code).

    Shape: (B, C) -> (B, C).

    Raises:
        ValueError: no kernel, one longer than the channel axis, or an even one that is not allowed.
    """

    def __init__(
        self,
        channels: int,
        kernels: Sequence[int],
        *,
        even: bool = False,
        mix: bool = True,
        bias: str = "channel",
    ) -> None:
        super().__init__()
        choose(GATE_BIASES, bias, "gate_bias")
        for kernel in kernels:
            if positive("kernels", kernel) > channels:
                raise ValueError(
                    f"kernels has {kernel}, longer than the channel axis; allowed: 1 to channels={channels}. "
                    "Leave it out, or widen channels"
                )
            if kernel % 2 == 0 and not even:
                raise ValueError(
                    f"kernels has {kernel}, which reaches further to one side; allowed: odd lengths, or with "
                    "even_kernels: true, as in the paper's sweep of single kernels, even ones too"
                )
        if not kernels or (len(kernels) > 1 and not mix):
            raise ValueError(f"kernels is {tuple(kernels)}; allowed: one or more for gate 'mce', one for 'eca' ([9])")
        self.reaches = nn.ModuleList(nn.Conv1d(1, 1, kernel, bias=False) for kernel in kernels)
        self.mix = nn.Conv1d(len(kernels), 1, 1, bias=bias == "shared") if mix else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(channels)) if mix and bias == "channel" else None
        self.padding = [((kernel - 1) // 2, kernel // 2) for kernel in kernels]

    def forward(self, p: Tensor) -> Tensor:
        p = p.unsqueeze(1)
        s = [reach(F.pad(p, sides)) for reach, sides in zip(self.reaches, self.padding, strict=True)]
        logits = self.mix(torch.cat(s, 1)).squeeze(1)
        return logits if self.bias is None else logits + self.bias


class ChannelContext(nn.Module):
    """CCM: the gate C_m of the channels, and the presence P_p of the classes that it speaks for.

    C_m is the sigmoid of the gate's logits on the pooled map; P_p the softmax over classes of a fully connected layer
    on C_m. That layer is a `Classifier`, as a change of the number of classes replaces it.

    Args:
        channels: C.
        num_classes: n.
        gate: module from (B, C) to the logits of C_m.
        pooling: "avg", "max" or "mix", their sum.

    Shape: (B, C, H, W) -> C_m (B, C), P_p (B, n), in float32 or better.
    """

    def __init__(self, channels: int, num_classes: int, gate: nn.Module, pooling: str) -> None:
        super().__init__()
        self.pool = choose(POOLINGS, pooling, "pooling")
        self.gate = gate
        self.prior = Classifier(channels, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c_m = self.gate(self.pool(x)).sigmoid()
        logits = self.prior(c_m[:, :, None, None]).flatten(1)
        return c_m, logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)


class SpatialContext(nn.Module):
    """SCM: every pixel gathers from the n class vectors of M, E = softmax over classes of k^-½ q(x) key(M).

    Then a 1x1 convolution back to C channels and, of its sum with x, a 3x3 convolution. M = C_m ⊗ P_p has rank 1: its
    class vectors are parallel, and classes differ only by the norms and ReLUs of key and value.

    Args:
        channels: C.
        key_channels: k, width of query, key and value.
        scale: divide by √k, as the code and not the paper does.

    Shape: (B, C, H, W), M (B, C, n) -> (B, C, H, W). Maps: `class_relation`, E as (B, n, H, W).
    """

    def __init__(self, channels: int, key_channels: int, *, scale: bool = True) -> None:
        super().__init__()
        self.scale = positive("key_channels", key_channels) ** -0.5 if scale else 1.0
        self.query = ConvNormReLU(channels, key_channels, 3)
        self.key = ConvNormReLU(channels, key_channels, 1)
        self.value = ConvNormReLU(channels, key_channels, 1)
        self.up = ConvNormReLU(key_channels, channels, 1)
        self.fuse = ConvNormReLU(channels, channels, 3)

    def forward(self, x: Tensor, m: Tensor, maps: Maps | None = None) -> Tensor:
        m = m.unsqueeze(3)
        q, k, v = (y.flatten(2) for y in (self.query(x), self.key(m), self.value(m)))
        relation = few_keys(q, k, self.scale)  # E: (B, n, N)
        if maps is not None:
            maps.add("class_relation", relation.unflatten(2, x.shape[2:]))
        return self.fuse(self.up((v @ relation).unflatten(2, x.shape[2:])) + x)


class CTNet(nn.Module):
    """The head: reduce, channel and spatial context as arranged, fuse with a 3x3 branch, classify.

    Shape: list of maps, the last (B, in, H, W) -> {"logits": (B, n, H, W), "class_prior": P_p (B, n)}.
    """

    gives_maps = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ccm: ChannelContext,
        scm: SpatialContext | None,
        channels: int,
        *,
        sources: tuple[str | None, str],
        reduce_kernel: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.reduce = ConvNormReLU(in_channels, channels, reduce_kernel)
        self.ccm, self.scm = ccm, scm
        self.local = ConvNormReLU(channels, channels, 3)
        self.fuse = ConvNormReLU(channels if scm is None else 2 * channels, channels, 1)
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = self.reduce(features[-1])
        c_m, p_p = self.ccm(x)
        read = {"map": x, "gated": x * c_m[:, :, None, None] if "gated" in self.sources else x}
        spatial, local = self.sources
        branches = [self.local(read[local])]
        if self.scm is not None and spatial is not None:
            m = c_m.unsqueeze(2) * p_p.to(c_m.dtype).unsqueeze(1)  # M, (B, C, n)
            branches.insert(0, self.scm(read[spatial], m, maps))
        return {"logits": self.classify(self.fuse(torch.cat(branches, 1))), "class_prior": p_p}


def ctnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 128,
    gate: str = "mce",
    kernels: tuple[int, ...] = (9, 17, 33, 65),
    even_kernels: bool = False,
    gate_bias: str = "channel",
    se_reduction: int = 16,
    pooling: str = "avg",
    arrangement: str = "ctnet",
    scale: bool = True,
    reduce_kernel: int = 1,
    dropout: float = 0.0,
) -> CTNet:
    """CTNet on the last map, in the paper that of JPU; its output `class_prior` is P_p, for the CP-loss.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: n.
        channels: C.
        key_channels: k, see `SpatialContext`.
        gate: "mce", "eca" (one kernel, such as [9]) or "se" (two linear layers).
        kernels: lengths of the gate's convolutions in channels; not for "se".
        even_kernels: allow even lengths, see `ChannelConvolution`; Fig. 7 sweeps them.
        gate_bias: "channel", "shared" or "none", see `ChannelConvolution`; for "mce".
        se_reduction: C over the width between the two layers of "se"; the paper does not state it.
        pooling: "avg", "max" or "mix".
        arrangement: "ctnet"; "occm", no spatial context (P_p then learns only from the CP-loss: give that a weight);
            "oscm", no gate on the map, C_m and P_p serve only M; "panet", both side by side on the map, their outputs
            concatenated. The paper does not say where OSCM gets its class vectors, nor how PANet joins.
        scale: see `SpatialContext`.
        reduce_kernel: side of the reducing convolution in cells: 1 after JPU, 3 in the code.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: an unknown name, a bad width, kernel or dropout.
    """
    positive("channels", channels)
    positive("num_classes", num_classes)
    if reduce_kernel not in (1, 3):
        raise ValueError(f"reduce_kernel is {reduce_kernel}; allowed: 1 (after JPU), 3")
    choose(GATES, gate, "gate")
    choose(GATE_BIASES, gate_bias, "gate_bias")
    logits: nn.Module
    if gate == "se":
        logits = squeeze_excitation(channels, positive("se_reduction", se_reduction))
    else:
        logits = ChannelConvolution(channels, tuple(kernels), even=even_kernels, mix=gate == "mce", bias=gate_bias)
    ccm = ChannelContext(channels, num_classes, logits, pooling)
    sources = choose(ARRANGEMENTS, arrangement, "arrangement")
    scm = SpatialContext(channels, key_channels, scale=scale) if sources[0] is not None else None
    return CTNet(
        in_channels[-1], num_classes, ccm, scm, channels, sources=sources, reduce_kernel=reduce_kernel, dropout=dropout
    )


def squeeze_excitation(channels: int, reduction: int) -> nn.Sequential:
    """The logits of C_m as in squeeze-and-excitation: (B, C) -> (B, C)."""
    if reduction > channels:
        raise ValueError(f"se_reduction is {reduction}; allowed: 1 to channels={channels}. Lower it")
    hidden = channels // reduction
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))
