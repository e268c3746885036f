"""Spatially adaptive convolution: tiles that show nothing but background are not computed."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from kernels.chain import links

__all__ = ["SpatiallyAdaptive", "TiledChain", "TiledConv2d"]


class TiledConv2d(nn.Module):
    """A convolution of stride one that computes the tiles of its map whose input differs from the background.

    Parameters
    ----------
    conv : nn.Conv2d
    before, after : Tensor
        What the layer takes and gives, (1, channels, rows, columns), where an item is all background.
    tile : int
        Rows and columns of a tile.
    """

    def __init__(self, conv: nn.Conv2d, before: Tensor, after: Tensor, tile: int) -> None:
        super().__init__()
        self.conv, self.tile = conv, tile
        self.before: Tensor
        self.after: Tensor
        self.register_buffer("before", before, persistent=False)
        self.register_buffer("after", after, persistent=False)

    def forward(self, x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """The map, and each item's multiply-accumulates, (batch,)."""
        conv, tile = self.conv, self.tile
        items, _, rows, columns = self.after.expand(len(x), -1, -1, -1).shape
        down, across = -(-rows // tile), -(-columns // tile)
        span = [conv.dilation[a] * (conv.kernel_size[a] - 1) + tile for a in (0, 1)]
        # so many rows and columns more that the last tiles are whole
        more = [across * tile - columns, down * tile - rows]
        left, right, above, below = conv._reversed_padding_repeated_twice
        edges = [left, right + more[0], above, below + more[1]]
        padded = functional.pad(x, edges)
        differs = ((x - self.before).abs().amax(1, keepdim=True) > threshold).float()
        differs = functional.max_pool2d(functional.pad(differs, edges), span, tile)[:, 0] > 0
        differs |= ~torch.isfinite(x).flatten(1).all(1)[:, None, None]  # who is not a number is looked at everywhere
        which, row, column = differs.nonzero(as_tuple=True)
        y = functional.pad(self.after, [0, more[0], 0, more[1]]).repeat(items, 1, 1, 1)
        if len(which):
            windows = padded.unfold(2, span[0], tile).unfold(3, span[1], tile)
            patches = windows[which, :, row, column]
            found = functional.conv2d(patches, conv.weight, conv.bias, dilation=conv.dilation)
            tiles = y.unfold(2, tile, tile).unfold(3, tile, tile)
            tiles[which, :, row, column] = found
        each = conv.weight.numel() * tile * tile
        return y[:, :, :rows, :columns], each * differs.flatten(1).sum(1).float()


class TiledChain(nn.Module):
    """A chain whose convolutions skip background; norms, rectifiers and pooling run on the whole maps.

    Parameters
    ----------
    layers : list of nn.Module
    threshold : float
        By how much a number must differ from the background's to count.
    """

    def __init__(self, layers: list[nn.Module], threshold: float) -> None:
        super().__init__()
        self.layers, self.threshold = nn.ModuleList(layers), threshold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,)."""
        cost = torch.zeros(len(x))
        for layer in self.layers:
            if isinstance(layer, TiledConv2d):
                x, spent = layer(x, self.threshold)
                cost += spent
            else:
                x = layer(x)
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    cost += layer.weight.numel() * math.prod(x.shape[2:])
        return x, cost


@dataclass(frozen=True)
class SpatiallyAdaptive:
    r"""Compute a convolution in the tiles where something is to be seen, and fill in the rest from an empty image.

    .. math:: y_t = \begin{cases} (W * x)_t & \max_{u \in R(t)} |x_u - x^0_u| > \varepsilon \\ y^0_t & \text{else}
    \end{cases}

    with t a tile of the map, R(t) what its outputs look at, and x⁰, y⁰ the layer's input and output for an image of
    background alone. Tiles that count are gathered into one batch, convolved, and scattered back. With ε = 0 the
    result is the whole network's: what is left out would have given y⁰. The mask is not learned; it follows from what
    each layer sees.

    Parameters
    ----------
    threshold : float
        ε >= 0.
    tile : int
        Rows and columns of a tile; small ones skip more and look at more margin.

    Source
    ------
    Ren, Pokrovsky, Yang and Urtasun, "SBNet: Sparse Blocks Network for Fast Inference", CVPR 2018: blocks that are
    gathered, convolved and scattered. Deciding place by place how much to compute: Figurnov et al., "Spatially
    Adaptive Computation Time for Residual Networks", CVPR 2017.

    Examples
    --------
    >>> import datasets
    >>> mnist = datasets.workload("mnist-cnn")
    >>> network, x = mnist.trained(), torch.tensor(mnist.data().validation.x[:8])
    >>> logits, cost = SpatiallyAdaptive().apply(network, mnist.data())(x)
    >>> torch.allclose(logits, network(x), atol=1e-4), bool(cost.max() > cost.min())
    (True, True)
    """

    threshold: float = 0.0
    tile: int = 2

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: expected at least 0, got {self.threshold}")
        if self.tile < 1:
            raise ValueError(f"tile: expected at least 1, got {self.tile}")

    def apply(self, network: nn.Module, data: Any) -> TiledChain:
        """A copy of the network that skips background: what most items show at a place, the median of ``data.train``.

        Parameters
        ----------
        network : nn.Sequential
            Trained; left as it is.
        data : datasets.Data

        Raises
        ------
        TypeError
            If the network is no chain.
        ValueError
            If a convolution is in groups, has a stride, is padded by other than zeros or constrained, by its name; or
            if there is none.
        """
        chain = links(copy.deepcopy(network).eval())
        background = torch.tensor(data.train.x).median()
        x = background.expand(1, *data.train.x.shape[1:]).clone()
        layers: list[nn.Module] = []
        with torch.no_grad():
            for place, layer in enumerate(chain):
                after = layer(x)
                if isinstance(layer, nn.Conv2d):
                    plain = layer.groups == 1 and layer.stride == (1, 1) and layer.padding_mode == "zeros"
                    if not plain or parametrize.is_parametrized(layer):
                        raise ValueError(
                            f"{place}: expected a convolution of stride 1 in one group, padded by zeros, got {layer}"
                        )
                    layers.append(TiledConv2d(layer, x, after, self.tile))
                else:
                    layers.append(layer)
                x = after
        if not any(isinstance(layer, TiledConv2d) for layer in layers):
            raise ValueError("network: expected a convolution; there is none")
        return TiledChain(layers, self.threshold).eval()
