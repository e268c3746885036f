"""Fast downsampling: shrink the maps in the first layers, and spend what that saves on channels later."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from torch import nn

from kernels.chain import links
from kernels.model.block import ConvSpec, NetworkSpec
from kernels.model.compact_convolution.fitted import fitted

__all__ = ["FastDownsampling"]


@dataclass(frozen=True)
class FastDownsampling:
    r"""Move steps that halve the maps to the front: the first convolutions take their stride, poolings behind go.

    .. math:: \sum_l k^2 M_l N_l \frac{HW}{4^{s_l}}, \qquad s_l \to s_l + 1 \text{ for every layer between}

    where s counts the halvings before or in layer l. Each layer between the old place of a halving and its new one
    costs a quarter. Wider layers behind the moved halvings can be had for part of it.

    Parameters
    ----------
    early : int
        How many halvings move: the first `early` convolutions get their stride doubled, and the second to the
        (`early` + 1)-th poolings are left out.
    width : float
        Times as many channels in the convolutions behind the first.

    Source
    ------
    Qin et al., "FD-MobileNet: Improved MobileNet with a Fast Downsampling Strategy", ICIP 2018, section 3; on a network
    that halves by pooling, where the paper's has strides.

    Examples
    --------
    >>> network = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2))
    >>> [layer.stride for layer in FastDownsampling().build(NetworkSpec(network, (1, 8, 8)))]
    [(2, 2), 2, (1, 1)]
    """

    early: int = 1
    width: float = 1.0

    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.early < 1:
            raise ValueError(f"early: expected a positive integer, got {self.early}")
        if not self.width > 0:
            raise ValueError(f"width: expected a positive factor, got {self.width}")

    def build(self, spec: NetworkSpec) -> nn.Sequential:
        """An untrained network that shrinks its maps earlier.

        Parameters
        ----------
        spec : NetworkSpec
            Its network is a chain.

        Raises
        ------
        TypeError
            If it is no chain, or has a layer that cannot be built anew; the message says which.
        ValueError
            If it has too few convolutions or poolings.
        """
        layers = links(spec.network)
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)]
        if len(pools) <= self.early or len(convolutions) <= self.early:
            raise ValueError(
                f"network: expected more than early={self.early} convolutions and poolings, got {len(convolutions)}"
                f" and {len(pools)}"
            )
        dropped, strided = pools[1 : self.early + 1], convolutions[: self.early]
        kept = [layer for layer in layers if not any(layer is pool for pool in dropped)]
        wide = {
            place: round(self.width * layer.out_channels)
            for place, layer in enumerate(kept)
            if isinstance(layer, nn.Conv2d) and layer is not convolutions[0]
        }
        return fitted(
            [_strided(layer) if any(layer is s for s in strided) else layer for layer in kept], spec.shape, wide
        )


def _strided(layer: nn.Module) -> nn.Conv2d:
    """A pattern of the convolution with twice the stride; its weights are not looked at."""
    assert isinstance(layer, nn.Conv2d)
    return nn.Conv2d(**asdict(replace(ConvSpec.of(layer), stride=tuple(2 * step for step in layer.stride))))
