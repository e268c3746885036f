r"""Cross-layer sharing: one block of layers, applied many times one after another.

A stack of T residual blocks has T sets of weights. A tied one has a single set, and depth becomes time:

    y_{t+1} = y_t + f(y_t; w),   t = 0 .. T - 1,      against      y_{t+1} = y_t + f(y_t; w_t)

Both compute the same number of products; the tied one stores 1/T of the weights. The gradient of the shared weights is
the sum over all applications, as it is over time in a recurrent network:

    dL/dw = sum over t of dL/dw_t,   at w_t = w

In a transformer f is a whole layer, attention and feedforward part with their norms, as in the paper. In a network of
convolutions it is batch norm, a rectifier, and a 3 x 3 (or any other) convolution. Batch norm is each application's
own: what it normalises has other statistics after every application, and it has few numbers.

Source: Z. Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations", ICLR 2020,
section 3.1, which shares all parameters of a transformer's layers, or those of one part. Adapted: convolutions, norms
not shared.

Examples
--------
>>> import torch
>>> block = CrossLayerSharing(steps=3).build(ConvSpec(8, 16, 3, padding=1))
>>> block(torch.zeros(2, 8, 5, 5)).shape
torch.Size([2, 16, 5, 5])
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kernels.model.block import ConvSpec, replace

__all__ = ["CrossLayerSharing", "RepeatedConvolution", "redrawn", "stacked"]

SHARED = ("all", "attention", "feedforward")


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


def redrawn(layer: nn.Module, shared: nn.Module | None = None) -> nn.Module:
    """A copy of a layer with weights drawn anew, but for those of its part `shared`, which both have from now on.

    Raises
    ------
    ValueError
        If a part of the layer does not say how it is drawn; the message names it.

    Examples
    --------
    >>> layer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> other = redrawn(layer, layer[0])
    >>> other[0].weight is layer[0].weight, bool((other[1].weight == layer[1].weight).any())
    (True, False)
    """
    common = {} if shared is None else {id(weight): weight for weight in shared.parameters()}
    drawn = copy.deepcopy(layer, dict(common))  # what a copy is told that it has copied already, it shares
    for name, part in drawn.named_modules():
        own = list(part.parameters(recurse=False))
        if own and not any(id(weight) in common for weight in own):
            if not hasattr(part, "reset_parameters"):
                raise ValueError(f"{name}: expected a part with reset_parameters, got {type(part).__name__}")
            part.reset_parameters()  # type: ignore[operator]
    return drawn


def stacked(network: Any, steps: int, shared: str | None) -> nn.Module:
    """A copy of a transformer, untrained, with `steps` layers which share what `shared` says; None shares nothing."""
    network = copy.deepcopy(network)
    first: Any = redrawn(network.layers[0])
    common = {"all": first, "attention": first.attention, "feedforward": first.feedforward}.get(shared or "")
    network.layers = nn.Sequential(first, *(redrawn(first, common) for _ in range(steps - 1)))
    return network


@dataclass(frozen=True)
class CrossLayerSharing:
    r"""Make a network deeper by residual steps that all use one set of weights.

    .. math:: y_{t+1} = y_t + f(y_t; w), \qquad
       \frac{\partial L}{\partial w} = \sum_{t=0}^{T-1} \left. \frac{\partial L}{\partial w_t} \right|_{w_t = w}

    Parameters
    ----------
    steps : int
        T, at least 1: the layers of a transformer; of a network of convolutions the residual steps behind each.
    tied : bool
        Whether the steps share their weights; else the stack that they are compared with.
    shared : {"all", "attention", "feedforward"}
        What of a transformer's layers is shared; norms only where all is.

    Source: Lan et al. 2020, section 3.1 and table 4.

    Examples
    --------
    >>> spec = ConvSpec(32, 32, 3, padding=1, bias=False)
    >>> tied, untied = CrossLayerSharing(steps=4), CrossLayerSharing(steps=4).untied()
    >>> [sum(p.numel() for p in block.build(spec).parameters()) for block in (tied, untied)]
    [18688, 46336]

    >>> import datasets
    >>> network = datasets.workload("shakespeare-transformer").network()
    >>> [sum(p.numel() for p in block.within(network).parameters()) for block in (tied, untied, tied.shallow())]
    [58563, 207939, 58563]
    """

    steps: int = 4
    tied: bool = True
    shared: str = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected an integer of at least 1, got {self.steps!r}")
        if self.shared not in SHARED:
            raise ValueError(f"shared: expected one of {', '.join(SHARED)}, got {self.shared!r}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution.

        Raises
        ------
        ValueError
            If anything but all is to be shared: a convolution has no such parts.
        """
        if self.shared != "all":
            raise ValueError(f"shared: a convolution has no {self.shared}, expected 'all'")
        return RepeatedConvolution(spec, self.steps, self.tied)

    def within(self, network: nn.Module) -> nn.Module:
        """A copy of `network`, untrained where it is changed: a transformer's layers, else its standard convolutions.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, or has neither.
        """
        layers = getattr(network, "layers", None)
        if isinstance(layers, nn.Sequential) and all(hasattr(layer, part) for layer in layers for part in SHARED[1:]):
            return stacked(network, self.steps, self.shared if self.tied else None)
        return replace(network, self)

    def untied(self) -> CrossLayerSharing:
        """The stack of equal compute in which every step has weights of its own."""
        return changed(self, tied=False, shared="all")

    def shallow(self) -> CrossLayerSharing:
        """The block of as many weights that applies them once."""
        return changed(self, steps=1, shared="all")
