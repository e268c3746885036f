"""Octave convolution: a share of the maps at half the resolution, from layer to layer."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from kernels.chain import links
from kernels.model.block import ConvSpec, NetworkSpec, is_standard
from kernels.model.compact_convolution.geometry import keeps_size

__all__ = ["Octave", "OctaveConvolution", "Octaves"]

BETWEEN = (nn.ReLU, nn.ReLU6, nn.Identity, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d)


class Octave(nn.Module):
    r"""A convolution of maps at two resolutions into maps at two resolutions, by four paths.

    .. math::
        y_H = w_{HH} * x_H + \mathrm{up}_2(w_{LH} * x_L), \qquad
        y_L = w_{LL} * x_L + w_{HL} * \mathrm{pool}_2(x_H)

    Parameters
    ----------
    spec : ConvSpec
        Of the standard convolution; it keeps the size of maps.
    low_in, low_out : int
        Channels at half resolution on either side; where there are none, maps are one tensor.
    """

    def __init__(self, spec: ConvSpec, low_in: int, low_out: int) -> None:
        super().__init__()
        if not keeps_size(spec):
            raise ValueError(f"spec: expected a convolution that keeps the size of maps, got {spec}")
        inputs, outputs = (spec.in_channels - low_in, low_in), (spec.out_channels - low_out, low_out)

        def path(source: int, target: int, bias: bool) -> nn.Conv2d | None:
            if not (inputs[source] and outputs[target]):
                return None
            own = {"in_channels": inputs[source], "out_channels": outputs[target], "bias": spec.bias and bias}
            return nn.Conv2d(**(asdict(spec) | own))

        self.high_to_high, self.high_to_low = path(0, 0, True), path(0, 1, inputs[1] == 0)
        self.low_to_high, self.low_to_low = path(1, 0, inputs[0] == 0), path(1, 1, True)
        self.pairs_in, self.pairs_out = bool(low_in), bool(low_out)

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        high, low = x if self.pairs_in else (x, None)  # type: ignore[misc]
        y = self.high_to_high(high)  # type: ignore[misc]
        if low is not None:
            up = self.low_to_high(low)  # type: ignore[misc]
            y = y + functional.interpolate(up, size=y.shape[2:], mode="nearest")
        if not self.pairs_out:
            return y
        z = self.high_to_low(functional.avg_pool2d(high, 2))  # type: ignore[misc, arg-type]
        return y, (z if low is None else z + self.low_to_low(low))  # type: ignore[misc]


class Octaves(nn.Module):
    """A layer of its own for either resolution."""

    def __init__(self, high: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.high, self.low = high, low

    def forward(self, maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        high, low = maps
        return self.high(high), self.low(low)


@dataclass(frozen=True)
class OctaveConvolution:
    r"""From the first to the last standard convolution of a chain, keep a share of the maps at half resolution.

    .. math:: \frac{\text{octave}}{\text{standard}} = 1 - \frac34 \alpha (2 - \alpha)

    for a layer with the share alpha on both sides: the path from high to high does (1 - alpha)² of the products, the
    three others, which all work at the low resolution, a quarter each of their share. The first layer reads whole
    maps, the last gives them back, and both save less; what lies between two, norms, activations, poolings, works on
    each resolution by itself.

    Parameters
    ----------
    alpha : float
        Share of the channels at half resolution, 0 < alpha < 1.

    Source
    ------
    Chen et al., "Drop an Octave: Reducing Spatial Redundancy in Convolutional Neural Networks with Octave Convolution",
    ICCV 2019, sections 3.2 and 3.3.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    >>> [type(layer).__name__ for layer in OctaveConvolution().build(NetworkSpec(chain, (4, 8, 8)))]
    ['Octave', 'Octaves', 'Octave']
    """

    alpha: float = 0.5

    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected 0 < alpha < 1, got {self.alpha}")

    def build(self, spec: NetworkSpec) -> nn.Sequential:
        """An untrained network whose standard convolutions are octave convolutions.

        Parameters
        ----------
        spec : NetworkSpec
            Its network is a chain.

        Raises
        ------
        TypeError
            If it is no chain, or a layer between two standard convolutions cannot work on two resolutions; the message
            says which.
        ValueError
            If it has fewer than two standard convolutions, or one that changes the size of maps.
        """
        layers = links(spec.network)
        places = [place for place, layer in enumerate(layers) if is_standard(layer)]
        if len(places) < 2:
            raise ValueError(f"network: expected at least two standard convolutions in a chain, got {len(places)}")
        built: list[nn.Module] = []
        for place, layer in enumerate(layers):
            if place in places:
                assert isinstance(layer, nn.Conv2d)
                low_in = 0 if place == places[0] else self._low(layer.in_channels)
                low_out = 0 if place == places[-1] else self._low(layer.out_channels)
                built.append(Octave(ConvSpec.of(layer), low_in, low_out))
            elif places[0] < place < places[-1]:
                built.append(self._between(layer, place))
            else:
                built.append(copy.deepcopy(layer))
        return nn.Sequential(*built)

    def _low(self, channels: int) -> int:
        return min(channels - 1, max(1, round(self.alpha * channels)))

    def _between(self, layer: nn.Module, place: int) -> Octaves:
        if type(layer) is nn.BatchNorm2d:
            low = self._low(layer.num_features)
            return Octaves(nn.BatchNorm2d(layer.num_features - low), nn.BatchNorm2d(low))
        if not isinstance(layer, BETWEEN):
            raise TypeError(
                f"network: layer {place}, a {type(layer).__name__}, stands between two standard convolutions and cannot"
                " work on two resolutions"
            )
        return Octaves(copy.deepcopy(layer), copy.deepcopy(layer))
