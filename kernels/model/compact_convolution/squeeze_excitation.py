"""Squeeze and excitation: channels are weighed by what the whole image holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import Tensor, nn

from kernels.model.block import ConvSpec

__all__ = ["Gate", "SqueezeExcitation"]


class Gate(nn.Module):
    r"""Multiply each channel by a number between 0 and 1 that depends on the means of all channels.

    .. math:: \tilde x_c = s_c x_c, \qquad s = \sigma(W_2\, \mathrm{ReLU}(W_1 z)), \qquad
              z_c = \frac{1}{HW} \sum_{ij} x_{cij}

    Parameters
    ----------
    channels : int
    inside : int
        Numbers between W_1 and W_2.
    """

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.reduce, self.restore = nn.Linear(channels, inside), nn.Linear(inside, channels)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.sigmoid(self.restore(self.relu(self.reduce(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


@dataclass(frozen=True)
class SqueezeExcitation:
    """A standard convolution and its batch norm, then a gate on the channels.

    The convolution looks at k x k pixels, the gate at the whole map: two matrix products for an image, 2 N² / r of
    them, little beside the convolution's, which are as many for each pixel.

    Parameters
    ----------
    reduction : int
        r: how many times fewer numbers the gate has inside.

    Source
    ------
    Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018, section 3, equations 2 to 4.

    Examples
    --------
    >>> from kernels.counting import parameters
    >>> block = SqueezeExcitation(reduction=4).build(ConvSpec(16, 32, 3, bias=False))
    >>> parameters(block[2]) == 2 * 32 * 8 + 8 + 32
    True
    """

    reduction: int = 4

    takes_over: ClassVar[tuple[type[nn.Module], ...]] = (nn.BatchNorm2d,)

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction: expected a positive integer, got {self.reduction}")

    def build(self, spec: ConvSpec) -> nn.Sequential:
        """An untrained block; its ReLU is the one behind the convolution.

        Parameters
        ----------
        spec : ConvSpec

        Returns
        -------
        nn.Sequential
            Convolution, batch norm, `Gate`.
        """
        n = spec.out_channels
        return nn.Sequential(nn.Conv2d(**asdict(spec)), nn.BatchNorm2d(n), Gate(n, max(1, n // self.reduction)))
