"""Perforation: a convolution is computed at some places of its map, and the others copy their nearest neighbour."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from kernels.chain import links
from kernels.counting import macs

__all__ = ["PerforatedConv2d", "PerforatedNetwork", "Perforation", "kept_places", "nearest"]

MASKS = ("grid", "random")


@lru_cache(maxsize=256)
def kept_places(rows: int, columns: int, rate: float, mask: str) -> Tensor:
    """The places of a map that are computed, as sorted indices into its rows times columns.

    A grid draws rows and columns evenly, as many that their product is near the rate; random places are drawn once,
    with the same numbers for every map of the size.

    Parameters
    ----------
    rows, columns : int
    rate : float
        0 < rate <= 1; at least one place is kept.
    mask : {"grid", "random"}

    Examples
    --------
    >>> kept_places(4, 4, 0.25, "grid").tolist()
    [0, 2, 8, 10]
    """
    if mask == "random":
        count = max(1, round(rate * rows * columns))
        order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(rows * columns))
        return order[:count].sort().values
    share = math.sqrt(rate)
    down, across = (torch.arange(n := max(1, round(share * size))) * size // n for size in (rows, columns))
    return (down[:, None] * columns + across).flatten()


@lru_cache(maxsize=256)
def nearest(rows: int, columns: int, rate: float, mask: str) -> Tensor:
    """For each place of a map, which of the kept places is nearest, the earliest of those that are equally near.

    Examples
    --------
    >>> nearest(1, 4, 0.25, "grid").tolist()  # two of four columns: the first and the third
    [0, 0, 1, 1]
    """
    kept = kept_places(rows, columns, rate, mask)
    places = torch.arange(rows * columns)
    apart = (places[:, None] // columns - kept // columns) ** 2 + (places[:, None] % columns - kept % columns) ** 2
    return apart.argmin(1)


class PerforatedConv2d(nn.Module):
    """A convolution that is computed at kept places, one product of gathered patches; its rate may be set at any time.

    Parameters
    ----------
    conv : nn.Conv2d
        In one group, with padding by zeros.
    rate : float
    mask : {"grid", "random"}
    """

    def __init__(self, conv: nn.Conv2d, rate: float, mask: str) -> None:
        super().__init__()
        self.conv, self.rate, self.mask = conv, rate, mask

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, in_channels, rows, columns) to (batch, out_channels, rows, columns)."""
        conv = self.conv
        if self.rate == 1:
            return conv(x)
        high, wide = conv.kernel_size
        padded = functional.pad(x, conv._reversed_padding_repeated_twice)
        windows = padded.unfold(2, _span(conv, 0), conv.stride[0]).unfold(3, _span(conv, 1), conv.stride[1])
        windows = windows[..., :: conv.dilation[0], :: conv.dilation[1]]
        rows, columns = windows.shape[2:4]
        kept = kept_places(rows, columns, self.rate, self.mask)
        patches = windows[:, :, kept // columns, kept % columns].transpose(1, 2)  # (batch, kept, channels, k, k)
        patches = patches.reshape(len(x), len(kept), x.shape[1] * high * wide)
        y = functional.linear(patches, conv.weight.flatten(1), conv.bias).transpose(1, 2)
        spread = nearest(rows, columns, self.rate, self.mask)
        return y[:, :, spread].reshape(len(x), conv.out_channels, rows, columns)


def _span(conv: nn.Conv2d, axis: int) -> int:
    return conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1


class PerforatedNetwork(nn.Module):
    """A network some of whose convolutions are perforated; every item costs the same.

    Parameters
    ----------
    network : nn.Module
    x : Tensor
        One item, for counting.
    """

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.network, self.x = network, x
        self.set_rate(next(m.rate for m in network.modules() if isinstance(m, PerforatedConv2d)))

    def set_rate(self, rate: float) -> None:
        """Compute this share of the places from now on."""
        for module in self.network.modules():
            if isinstance(module, PerforatedConv2d):
                module.rate = rate
        self.cost = float(macs(self.network, self.x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,)."""
        return self.network(x), torch.full((len(x),), self.cost)


@dataclass(frozen=True)
class Perforation:
    r"""Compute convolutions at a share of their places only, and let the others take the value of the nearest.

    .. math:: y_{nij} = \sum_{c, u, v} w_{ncuv} \, x_{c, i'+u, j'+v}, \qquad (i', j') = \ell(i, j) \in I

    with I the kept places and ℓ the nearest of them. The weights stay, so the share can be set when the network runs,
    and no training is needed; what is lost is detail that the next layers would have pooled away in part. The first
    convolution stays whole: it is cheap, and all others see the image through it.

    Parameters
    ----------
    rate : float
        The share of places that is computed, 0 < rate <= 1.
    mask : {"grid", "random"}
        Where they lie.

    Source
    ------
    Figurnov, Ibraimova, Vetrov and Kohli, "PerforatedCNNs: Acceleration through Elimination of Redundant Convolutions",
    NIPS 2016.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> network = Perforation(rate=0.25).apply(noisy.trained(), noisy.data())
    >>> logits, cost = network(torch.tensor(noisy.data().validation.x[:3]))
    >>> network.set_rate(1.0)
    >>> bool(network.cost > 2 * cost[0])
    True
    """

    rate: float = 0.5
    mask: str = "grid"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: expected 0 < rate <= 1, got {self.rate}")
        if self.mask not in MASKS:
            raise ValueError(f"mask: expected one of {', '.join(MASKS)}, got {self.mask!r}")

    def apply(self, network: nn.Module, data: Any) -> PerforatedNetwork:
        """A copy of the network whose convolutions, but the first, are perforated.

        Parameters
        ----------
        network : nn.Sequential
            Trained; left as it is.
        data : datasets.Data
            Gives an item to count with.

        Raises
        ------
        TypeError
            If the network is no chain.
        ValueError
            If a convolution is in groups, padded by other than zeros or constrained, by its name; or if there is but
            one.
        """
        chain = links(copy.deepcopy(network).eval())
        places = [i for i, layer in enumerate(chain) if isinstance(layer, nn.Conv2d)][1:]
        if not places:
            raise ValueError("network: expected at least two convolutions; the first stays whole")
        for place in places:
            conv: Any = chain[place]
            if conv.groups > 1 or conv.padding_mode != "zeros" or parametrize.is_parametrized(conv):
                raise ValueError(f"{place}: expected a plain convolution in one group, padded by zeros, got {conv}")
            chain[place] = PerforatedConv2d(conv, self.rate, self.mask)
        return PerforatedNetwork(nn.Sequential(*chain), torch.tensor(data.train.x[:1])).eval()
