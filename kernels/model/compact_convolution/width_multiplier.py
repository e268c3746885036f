"""Width multiplier: the same network with fewer channels everywhere, or with smaller images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kernels.chain import links
from kernels.model.block import NetworkSpec
from kernels.model.compact_convolution.fitted import fitted

__all__ = ["WidthMultiplier"]


@dataclass(frozen=True)
class WidthMultiplier:
    r"""Thin every layer by the same factor, and shrink the image by another.

    .. math:: M \to \alpha M, \quad N \to \alpha N, \quad H \times W \to \rho H \times \rho W, \qquad
              k^2 M N H W \to \alpha^2 \rho^2 \, k^2 M N H W

    Products fall with the square of either factor; parameters with the square of the width, and not with the
    resolution. The first layer's inputs and the last one's outputs, the task's own, stay.

    Parameters
    ----------
    width : float
        Alpha: channels of a convolution, and features of a linear layer, that remain; at least one does.
    resolution : float
        Rho: the image's height and width, 0 < resolution <= 1; averaged down by `torch.nn.AdaptiveAvgPool2d`.

    Source
    ------
    Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
    sections 3.3 and 3.4.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> WidthMultiplier(width=0.25).build(NetworkSpec(network, (1, 8, 8)))[3]
    Linear(in_features=72, out_features=10, bias=True)
    """

    width: float = 0.5
    resolution: float = 1.0

    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width: expected a positive factor, got {self.width}")
        if not 0 < self.resolution <= 1:
            raise ValueError(f"resolution: expected 0 < resolution <= 1, got {self.resolution}")

    def build(self, spec: NetworkSpec) -> nn.Sequential:
        """An untrained thinner network.

        Parameters
        ----------
        spec : NetworkSpec
            Its network is a chain.

        Raises
        ------
        TypeError
            If it is no chain, or has a layer that cannot be thinned; the message says which.
        """
        layers = links(spec.network)
        trained = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
        outputs = {place: self._thinned(layers[place]) for place in trained[:-1]}
        if self.resolution == 1:
            return fitted(layers, spec.shape, outputs)
        height, width = (max(1, round(self.resolution * side)) for side in spec.shape[-2:])
        small = nn.AdaptiveAvgPool2d((height, width))
        return fitted([small, *layers], spec.shape, {place + 1: count for place, count in outputs.items()})

    def _thinned(self, layer: nn.Module) -> int:
        outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        return max(1, round(self.width * outputs))  # type: ignore[arg-type, operator]
