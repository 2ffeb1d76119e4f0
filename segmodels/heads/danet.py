"""DANet: position and channel attention side by side (Fu et al., CVPR 2019, arXiv:1809.02983).

Paper and public code agree, except for the channel attention: the code's softmax is over the row's maximum minus the
energy, which favours unlike channels, where Eq. (3) has the energy itself. We follow the code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.attention import attention
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU, dropout_classifier, without_autocast

NEGLIGIBLE = 80.0  # e^-80 is 1.8e-35, the least normal number of float32 1.2e-38


class PositionAttention(nn.Module):
    """PAM: each pixel gathers from all, Eq. (1) and (2), without scale; α starts at 0.

    Args:
        channels: C.
        key_channels: width of queries and keys.

    Maps: "position" (B, H, W), the weights with which the asked pixel gathers; they sum to 1.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, key_channels, 1)
        self.key = nn.Conv2d(channels, key_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        q, k, v = (p(x).flatten(2).mT.unsqueeze(1) for p in (self.query, self.key, self.value))  # (B, 1, N, …)
        y = attention(q, k, v, scale=1.0)
        if maps is not None:
            maps.relate("position", q[:, 0], k[:, 0], 1.0, (x.shape[2], x.shape[3]))
        return x + self.alpha * y.squeeze(1).mT.unflatten(2, x.shape[2:])


class ChannelAttention(nn.Module):
    """CAM: each channel gathers from all, Eq. (3) and (4), as in the public code most from unlike ones; β starts at 0.

    The energies are sums over all pixels, up to thousands: in half precision the softmax would be off, so they are
    computed in float32. softmax(max − e) = softmax(−e): the row's maximum cancels. They are also so far apart that
    many weights are numbers below the least normal one, with which a CPU multiplies a hundred times as slowly: weights
    below e^-80 of the row's greatest are 0, which is nothing beside the rounding of that one.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        f = x.flatten(2)
        with without_autocast(x):
            full = f.to(torch.promote_types(x.dtype, torch.float32))
            energies = full @ full.mT
            far = energies.detach() - energies.detach().amin(2, keepdim=True) > NEGLIGIBLE
            weights = (-energies).masked_fill(far, -torch.inf).softmax(2)
        return x + self.beta * (weights.to(x.dtype) @ f).view_as(x)


class DANet(nn.Module):
    """Two branches, each a 3x3 reduction, an attention and a 3x3 convolution; their sum is classified.

    In training each branch has a classifier of its own, for the two further cross entropies. With only one branch there
    is one classifier.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}, with "pam" and "cam" likewise
    in training.
    """

    gives_maps = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int,
        branches: dict[str, nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.reduce = nn.ModuleDict({name: ConvNormReLU(in_channels, channels, 3) for name in branches})
        self.attend = nn.ModuleDict(branches)
        self.after = nn.ModuleDict({name: ConvNormReLU(channels, channels, 3) for name in branches})
        self.classify = dropout_classifier(channels, num_classes, dropout)
        own = (
            {}
            if len(branches) == 1
            else {name: dropout_classifier(channels, num_classes, dropout) for name in branches}
        )
        self.classify_branch = nn.ModuleDict(own)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        branches = {name: self.branch(name, x, maps) for name in self.attend}
        outputs = {"logits": self.classify(sum(branches.values()))}
        if self.training:
            outputs |= {name: classify(branches[name]) for name, classify in self.classify_branch.items()}
        return outputs

    def branch(self, name: str, x: Tensor, maps: Maps | None) -> Tensor:
        """One branch's map (B, channels, H, W)."""
        attend, y = self.attend[name], self.reduce[name](x)
        return self.after[name](attend(y, maps) if name == "pam" else attend(y))


def danet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 64,
    pam: bool = True,
    cam: bool = True,
    dropout: float = 0.1,
) -> DANet:
    """DANet with its three classifiers.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of both branches; in the papers a quarter of the backbone's.
        key_channels: width of the position attention's queries and keys; 0 for an eighth of `channels`.
        pam, cam: ablation switches: whether to have the branch of position, of channel attention.
        dropout: probability that a channel is dropped before each classifier.

    Raises:
        ValueError: a width below 1, neither branch, or a bad dropout.
    """
    if not (pam or cam):
        raise ValueError("pam and cam are both false; allowed: one or both (for no context take head: fcn)")
    if key_channels != 0:
        positive("key_channels", key_channels)
    branches: dict[str, nn.Module] = {}
    if pam:
        branches["pam"] = PositionAttention(positive("channels", channels), key_channels or max(1, channels // 8))
    if cam:
        branches["cam"] = ChannelAttention()
    return DANet(in_channels[-1], num_classes, positive("channels", channels), branches, dropout)
