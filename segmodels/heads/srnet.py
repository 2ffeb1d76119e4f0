"""SRNet: channel context reasoned in a squeezed vector of node groups (Li et al., TIP 2021, arXiv:2011.03308).

We follow the paper, whose cost table needs a 3x3 convolution with batch norm and ReLU on either side of the SR unit.
Its public code reduces by a 1x1 instead, squeezes a pair of maps other than the reconstructed one, and restores the
width by a grouped convolution with group norm: `layout="official"`. There the group norm, over the channels of one
gate, cancels the gate's size, up to its epsilon; all that is left is whether the gate is zero. We do not copy that
code's permutation of the channels between entering the nodes and leaving them, so its checkpoints need it undone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import choose, positive
from segmodels.heads.context_head import ContextHead, Refined
from segmodels.heads.maps import Maps
from segmodels.layers import check_norm_batch


class GraphReasoning(nn.Module):
    """Graph convolution over K nodes of d states, after Eq. (5): Z = relu(BN(A G)) + G, then relu(BN(W Zᵀ))ᵀ.

    A mixes nodes (K x K), W states (d x d). The authors' code has it so; Eq. (5) as printed, `PrintedReasoning`, has
    neither ReLU nor norm between the two products, and takes the mixed nodes away where the code adds them.

    Shape: (B, K, d) -> (B, K, d).

    Raises:
        ValueError: one image in training though K or d is 1, so that a norm sees one value per channel.
    """

    def __init__(self, nodes: int, states: int) -> None:
        super().__init__()
        self.single = 1 in (nodes, states)
        self.adjacency = nn.Conv1d(nodes, nodes, 1, bias=False)
        self.adjacency_norm = nn.BatchNorm1d(nodes)
        self.update = nn.Conv1d(states, states, 1, bias=False)
        self.update_norm = nn.BatchNorm1d(states)

    def forward(self, g: Tensor) -> Tensor:
        if self.single:
            check_norm_batch(self.update_norm, g, "graph reasoning with 1 node or 1 state")
        z = self.adjacency_norm(self.adjacency(g)).relu() + g
        return self.update_norm(self.update(z.mT)).relu().mT


class PrintedReasoning(nn.Module):
    """Graph convolution as Eq. (5) is printed, σ(W G (I - A)): no norm, no sum with G, σ the only nonlinearity.

    σ is ReLU, which the authors' code has there.

    Shape: (B, K, d) -> (B, K, d).
    """

    def __init__(self, nodes: int, states: int) -> None:
        super().__init__()
        self.adjacency = nn.Conv1d(nodes, nodes, 1, bias=False)
        self.update = nn.Conv1d(states, states, 1, bias=False)

    def forward(self, g: Tensor) -> Tensor:
        return self.update((g - self.adjacency(g)).mT).relu().mT


class AttentionReasoning(nn.Module):
    """Self-attention over the nodes, Eq. (6): relu(ρ(G) [φ(G)ᵀ θ(G)]), with neither softmax nor scale in the paper.

    Shape: (B, K, d) -> (B, K, d).
    """

    def __init__(self, states: int) -> None:
        super().__init__()
        self.theta, self.phi, self.rho = (nn.Linear(states, states, bias=False) for _ in range(3))

    def forward(self, g: Tensor) -> Tensor:
        affinity = self.theta(g) @ self.phi(g).mT  # (B, K, K): the transpose of the paper's, as nodes are rows here
        return (affinity @ self.rho(g)).relu()


def dense_reasoning(nodes: int, states: int, hidden: int) -> nn.Sequential:
    """Two linear layers over all K·d values with ReLU between, as in squeeze-and-excitation: (B, K, d) -> (B, K, d)."""
    layers = nn.Linear(nodes * states, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, nodes * states)
    return nn.Sequential(nn.Flatten(1), *layers, nn.Unflatten(1, (nodes, states)))


SQUEEZES = dict.fromkeys(("gap", "ghp"))
LAYOUTS = dict.fromkeys(("paper", "official"))
REASONINGS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "none": lambda nodes, states, hidden: nn.Identity(),
    "fc": dense_reasoning,
    "gcn": lambda nodes, states, hidden: GraphReasoning(nodes, states),
    "eq5": lambda nodes, states, hidden: PrintedReasoning(nodes, states),
    "sa": lambda nodes, states, hidden: AttentionReasoning(states),
}


class SqueezeReasoning(nn.Module):
    """The SR unit: squeeze the map to a vector, reason over its node groups, gate the map with the result, add x.

    t is a 1x1 convolution of x to C' channels. The squeezed g is the mean of t over the positions ("gap", global
    average pooling) or of t · e, e a second such convolution ("ghp", global Hadamard pooling). Then
    Y = BN(W_R (t · reason(g))) + x. The paper sums t · e, so that g grows with the map although the reasoning's batch
    norms freeze its size at that of training; we average, in float32, unless `ghp_sum`.

    The convolutions of x are stacked into one, which reads x once.

    Args:
        channels: C.
        squeeze: "gap" or "ghp".
        reasoning: "none", "fc", "gcn" (after Eq. 5, as in the authors' code), "eq5" (Eq. 5 as printed) or "sa" (Eq. 6).
        nodes: K; node k owns the k-th run of d = C'/K channels.
        ratio: C/C'.
        fc_hidden: width between the two layers of "fc"; the paper does not state it.
        layout: "paper", or "official": t is a third convolution, outside of the pair, and W_R is grouped by gate.
        ghp_sum: sum over positions as printed.

    Shape: (B, C, H, W) -> (B, C, H, W). Maps: `nodes` (B, K, H, W), of t · reason(g) the most salient channel of each
    node: the one with the greatest mean of |·| over the positions, as Fig. 6 does not say; `node_channels` (B, K), its
    number in C'; `unit_input` and `unit_output` (B, C, H, W), x and Y.

    Raises:
        ValueError: an unknown name, a width that does not divide, or a pair of options that does not go together.
    """

    gives_maps = True

    def __init__(
        self,
        channels: int,
        *,
        squeeze: str = "ghp",
        reasoning: str = "gcn",
        nodes: int = 16,
        ratio: int = 2,
        fc_hidden: int = 16,
        layout: str = "paper",
        ghp_sum: bool = False,
    ) -> None:
        super().__init__()
        choose(SQUEEZES, squeeze, "squeeze")
        choose(LAYOUTS, layout, "layout")
        if squeeze == "gap" and (layout == "official" or ghp_sum):
            what = "layout 'official'" if layout == "official" else "ghp_sum"
            raise ValueError(f"squeeze is 'gap' with {what}; allowed: 'ghp', as only a pair of maps has that")
        inner = part("channels", channels, "ratio", ratio)
        states = part("channels / ratio", inner, "nodes", nodes)
        self.nodes, self.ghp_sum = nodes, ghp_sum
        self.branches = 1 if squeeze == "gap" else 3 if layout == "official" else 2
        self.project = nn.Conv2d(channels, self.branches * inner, 1, bias=False)
        self.reason = choose(REASONINGS, reasoning, "reasoning")(nodes, states, positive("fc_hidden", fc_hidden))
        self.restore = nn.Conv2d(inner, channels, 1, groups=inner if layout == "official" else 1, bias=False)
        self.norm = nn.GroupNorm(inner, channels) if layout == "official" else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        branches = self.project(x).chunk(self.branches, 1)
        g = self.squeeze(branches).unflatten(1, (self.nodes, -1))
        gated = branches[0] * self.reason(g).flatten(1)[:, :, None, None]
        y = self.norm(self.restore(gated)) + x
        if maps is not None:
            self.show(maps, x, gated, y)
        return y

    def show(self, maps: Maps, x: Tensor, gated: Tensor, y: Tensor) -> None:
        """Fill the maps, of t · reason(g) (B, C', H, W) and the unit's input and output."""
        groups = gated.unflatten(1, (self.nodes, -1))
        salient = groups.abs().mean((3, 4)).argmax(2)  # (B, K)
        maps.add("nodes", groups.take_along_dim(salient[:, :, None, None, None], 2).squeeze(2))
        maps.add("node_channels", salient + torch.arange(self.nodes, device=x.device) * groups.shape[2])
        maps.add("unit_input", x)
        maps.add("unit_output", y)

    def squeeze(self, branches: Sequence[Tensor]) -> Tensor:
        """(B, C', H, W) of each branch -> (B, C'). The pair is t and e or, in the official layout, all but t."""
        wide = torch.promote_types(branches[0].dtype, torch.float32)  # as a sum of thousands of products needs
        factor = branches[0] if len(branches) == 1 else branches[-2] * branches[-1]
        reduce = torch.sum if self.ghp_sum else torch.mean
        return reduce(factor, (2, 3), dtype=wide).to(factor.dtype)


def srnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    squeeze: str = "ghp",
    reasoning: str = "gcn",
    nodes: int = 16,
    ratio: int = 2,
    fc_hidden: int = 16,
    layout: str = "paper",
    ghp_sum: bool = False,
    dropout: float = 0.1,
) -> ContextHead:
    """SRNet: 3x3 reduce, SR unit, second 3x3, dropout, classifier.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K of the logits.
        channels: C, width of both 3x3 convolutions.
        squeeze: "gap" or "ghp"; "none", only with reasoning "none", leaves the two 3x3: the base row of Table III, in
            which the unit's other keywords change nothing, so that a study may set them for all of its rows.
        reasoning, nodes, ratio, fc_hidden, layout, ghp_sum: see `SqueezeReasoning`. Table III has "gap" and "ghp"
            with "none", "fc" and "gcn", and "ghp" with "sa"; the other pairs are allowed too.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: as `SqueezeReasoning`, or a reasoning without a squeeze.
    """
    positive("channels", channels)
    choose({"none": None} | SQUEEZES, squeeze, "squeeze")
    choose(LAYOUTS, layout, "layout")
    if squeeze == "none" and choose(REASONINGS, reasoning, "reasoning") is not REASONINGS["none"]:
        raise ValueError(
            f"reasoning is {reasoning!r} with squeeze 'none'; allowed: 'none', as reasoning needs a squeezed vector "
            "and Table III has no such row. Set squeeze to 'gap' or 'ghp'"
        )
    context: nn.Module = nn.Identity()
    if squeeze != "none":
        context = SqueezeReasoning(
            channels,
            squeeze=squeeze,
            reasoning=reasoning,
            nodes=nodes,
            ratio=ratio,
            fc_hidden=fc_hidden,
            layout=layout,
            ghp_sum=ghp_sum,
        )
    return ContextHead(in_channels, num_classes, Refined(context, channels), channels, dropout=dropout)


def part(whole_name: str, whole: int, name: str, parts: int) -> int:
    """whole / parts.

    Raises:
        ValueError: one of them is no positive integer, or the division leaves a remainder.
    """
    if positive(whole_name, whole) % positive(name, parts):
        raise ValueError(f"{name} is {parts}; allowed: a divisor of {whole_name}, which is {whole}")
    return whole // parts
