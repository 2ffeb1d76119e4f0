"""GloRe: reasoning over a graph of projected nodes (Chen et al., CVPR 2019, arXiv:1811.12814).

We follow the public code: one projection serves both ways, and the graph's step is W(relu(A V + V)).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.context_head import ContextHead, Refined


class GlobalReasoning(nn.Module):
    """The GloRe unit: V = S Pᵀ, V' = W(relu(A V + V)), x + BN(conv(V' P)); S are states, P the projection.

    S and P come from one convolution, which reads x once. The last norm's weight starts at 0, so that the unit starts
    as the identity.

    Args:
        channels: C.
        states: width of a node.
        nodes: number of nodes.
        normalize: divide V by the number of positions, for maps of varying size.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, states: int = 128, nodes: int = 64, normalize: bool = True) -> None:
        super().__init__()
        self.split, self.normalize = (positive("states", states), positive("nodes", nodes)), normalize
        self.project = nn.Conv2d(channels, states + nodes, 1)
        self.adjacency = nn.Conv1d(nodes, nodes, 1)
        self.update = nn.Conv1d(states, states, 1, bias=False)
        self.extend = nn.Conv2d(states, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-4)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        s, p = (y.flatten(2) for y in self.project(x).split(self.split, 1))  # (B, states, N), (B, nodes, N)
        v = p @ s.mT  # (B, nodes, states)
        v = v / s.shape[2] if self.normalize else v
        v = self.update((self.adjacency(v) + v).relu().mT)  # (B, states, nodes)
        return x + self.norm(self.extend((v @ p).unflatten(2, x.shape[2:])))


def glore_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    states: int = 128,
    nodes: int = 64,
    normalize: bool = True,
    dropout: float = 0.1,
) -> ContextHead:
    """GloRe between two 3x3 convolutions.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of both 3x3 convolutions.
        states, nodes, normalize: see `GlobalReasoning`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a bad width or dropout.
    """
    context = GlobalReasoning(positive("channels", channels), states=states, nodes=nodes, normalize=normalize)
    return ContextHead(in_channels, num_classes, Refined(context, channels), channels, dropout=dropout)
