r"""Cross-layer sharing: one block of layers, applied many times one after another.

A stack of T residual blocks has T sets of weights. A tied one has a single set, and depth becomes time:

    y_{t+1} = y_t + f(y_t; w),   t = 0 .. T - 1,      against      y_{t+1} = y_t + f(y_t; w_t)

Both compute the same number of products; the tied one stores 1/T of the weights. The gradient of the shared weights is
the sum over all applications, as it is over time in a recurrent network:

    dL/dw = sum over t of dL/dw_t,   at w_t = w

Here f is batch norm, a rectifier, and a 3 x 3 (or any other) convolution. Batch norm is each application's own: what it
normalises has other statistics after every application, and it has few numbers.

Source: Z. Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations", ICLR 2020, which
shares all parameters of a transformer's layers. Adapted: convolutions, norms not shared.

Examples
--------
>>> import torch
>>> block = CrossLayerSharing(steps=3).build(ConvSpec(8, 16, 3, padding=1))
>>> block(torch.zeros(2, 8, 5, 5)).shape
torch.Size([2, 16, 5, 5])
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional

from kernels.model.block import ConvSpec

__all__ = ["CrossLayerSharing", "RepeatedConvolution"]


class RepeatedConvolution(nn.Module):
    """A convolution to the right shape, then residual steps that share one convolution, or have one each.

    Parameters
    ----------
    spec : ConvSpec
        Of the convolution before the steps.
    steps : int
    tied : bool
    """

    def __init__(self, spec: ConvSpec, steps: int, tied: bool) -> None:
        super().__init__()
        channels, kernel = spec.out_channels, nn.Conv2d(1, 1, spec.kernel_size, device="meta").kernel_size  # type: ignore[arg-type]
        self.steps = steps
        self.first = nn.Conv2d(**spec.__dict__)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel, padding="same", bias=False)  # type: ignore[arg-type]
            for _ in range(1 if tied else steps)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for t, norm in enumerate(self.norms):
            convolution = self.convolutions[t % len(self.convolutions)]
            y = y + convolution(functional.relu(norm(y)))
        return y


@dataclass(frozen=True)
class CrossLayerSharing:
    r"""Make a convolution deeper by residual steps that all use one set of weights.

    .. math:: y_{t+1} = y_t + f(y_t; w), \qquad
       \frac{\partial L}{\partial w} = \sum_{t=0}^{T-1} \left. \frac{\partial L}{\partial w_t} \right|_{w_t = w}

    Parameters
    ----------
    steps : int
        T, at least 1.
    tied : bool
        Whether the steps share their weights; else the stack that they are compared with.

    Source: Lan et al. 2020.

    Examples
    --------
    >>> spec = ConvSpec(32, 32, 3, padding=1, bias=False)
    >>> tied, untied = CrossLayerSharing(steps=4), CrossLayerSharing(steps=4).untied()
    >>> [sum(p.numel() for p in block.build(spec).parameters()) for block in (tied, untied)]
    [18688, 46336]
    """

    steps: int = 4
    tied: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected an integer of at least 1, got {self.steps!r}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution."""
        return RepeatedConvolution(spec, self.steps, self.tied)

    def untied(self) -> CrossLayerSharing:
        """The stack of equal compute in which every step has weights of its own."""
        return replace(self, tied=False)

    def shallow(self) -> CrossLayerSharing:
        """The block of as many weights that applies them once."""
        return replace(self, steps=1)
