"""Fire module: squeeze the channels before the expensive filters see them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import centred, pointwise

__all__ = ["Expand", "FireModule"]


class Expand(nn.Module):
    """Small and large filters of the same maps, side by side."""

    def __init__(self, small: nn.Module, large: nn.Module) -> None:
        super().__init__()
        self.small, self.large = small, large

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.small(x), self.large(x)], dim=1)


@dataclass(frozen=True)
class FireModule:
    r"""SqueezeNet's module: 1 x 1 filters squeeze M channels into s, then 1 x 1 and k x k filters expand them.

    .. math:: z = \mathrm{ReLU}(q * x), \qquad y = [\, p * z, \; w * z \,]

    With e of the N filters behind of size 1 x 1 it takes s (M + e + k² (N - e)) products a pixel instead of k² M N. Two
    savings in one: fewer channels in front of the large filters, and fewer large filters.

    Parameters
    ----------
    squeeze : float
        s / N, the squeeze ratio.
    small : float
        e / N, the share of 1 x 1 filters behind.

    Source
    ------
    Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size", 2016,
    sections 3.1 and 3.2.

    Examples
    --------
    >>> from kernels.counting import parameters
    >>> block = FireModule(squeeze=0.25).build(ConvSpec(16, 32, 3, padding=1, bias=False))
    >>> parameters(block) == 8 * 16 + 8 + 8 * 16 + 8 * 16 * 9    # the squeeze has a bias
    True
    """

    squeeze: float = 0.25
    small: float = 0.5

    def __post_init__(self) -> None:
        for name in ("squeeze", "small"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share between 0 and 1, got {getattr(self, name)}")

    def build(self, spec: ConvSpec) -> nn.Sequential:
        """An untrained module with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec
            With an odd kernel and at least two outputs.

        Returns
        -------
        nn.Sequential
            The squeezing convolution, ReLU, `Expand`.

        Raises
        ------
        ValueError
            If a share leaves no channel.
        """
        inside, small = max(1, round(self.squeeze * spec.out_channels)), round(self.small * spec.out_channels)
        if not 0 < small < spec.out_channels:
            raise ValueError(
                f"out_channels: expected filters of both sizes at small={self.small}, got {spec.out_channels}"
            )
        large = asdict(spec) | {"in_channels": inside, "out_channels": spec.out_channels - small}
        expand = Expand(centred(spec, (1, 1), inside, small, bias=spec.bias), nn.Conv2d(**large))
        return nn.Sequential(pointwise(spec.in_channels, inside, bias=True), nn.ReLU(), expand)
