"""Layers without multipliers: maps that are moved, distances instead of products, or powers of two as weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import geometry
from kernels.model.transform import constrain

__all__ = ["Adder", "MultiplierFreeLayers", "PowersOfTwo", "SpatialShift", "spatial_shift"]

FORMS = ("shift", "adder", "deepshift")


def spatial_shift(x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Move each channel by one step of the kernel's window, the channels divided evenly among the steps.

    .. math:: y_{c,i,j} = x_{c,\, i + \alpha_c,\, j + \beta_c}

    Zeros come in at the border. It is the depthwise convolution whose filters are 1 in one place and 0 elsewhere, and
    takes no product. Channels that cannot be divided evenly stay where they are.

    Parameters
    ----------
    x : Tensor of shape (batch, channels, height, width)
    kernel, dilation : pair of int
        Odd; the window of steps.

    Examples
    --------
    >>> spatial_shift(torch.arange(9.0).view(1, 1, 3, 3).repeat(1, 9, 1, 1), (3, 3))[0, 0]
    tensor([[0., 0., 0.],
            [0., 0., 1.],
            [0., 3., 4.]])
    """
    (k, l), (d, e) = kernel, dilation  # noqa: E741
    steps = [(i * d, j * e) for i in range(k) for j in range(l)]
    middle, each = (k // 2 * d, l // 2 * e), x.shape[1] // (k * l)
    padded = functional.pad(x, (middle[1], middle[1], middle[0], middle[0]))
    height, width = x.shape[2:]
    places = [s for s in steps for _ in range(each)] + [middle] * (x.shape[1] - each * k * l)
    groups: list[tuple[int, tuple[int, int]]] = [(c, p) for c, p in enumerate(places) if c == 0 or places[c - 1] != p]
    ends = [c for c, _ in groups[1:]] + [x.shape[1]]
    return torch.cat(
        [padded[:, c:end, i : i + height, j : j + width] for (c, (i, j)), end in zip(groups, ends, strict=True)], dim=1
    )


class SpatialShift(nn.Module):
    """`spatial_shift` as a layer."""

    def __init__(self, kernel: tuple[int, int], dilation: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation

    def forward(self, x: Tensor) -> Tensor:
        return spatial_shift(x, self.kernel, self.dilation)


class _Distance(torch.autograd.Function):
    """-|x - w| summed; of rows of x and rows of w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eta: float) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.eta = eta
        return -torch.cdist(x, w, p=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = gradients
        x, w = ctx.saved_tensors
        full = g.T @ x - g.sum(0)[:, None] * w  # the sum over rows of g (x - w)
        of_w = full * (ctx.eta * sqrt(w.numel()) / full.norm().clamp_min(1e-12))
        of_x = torch.zeros_like(x)
        for n in range(len(w)):
            of_x += g[:, n : n + 1] * (w[n] - x).clamp(-1, 1)
        return of_x, of_w, None


class Adder(nn.Module):
    r"""A layer of AdderNet: the filter that is nearest answers most.

    .. math:: y_n = -\sum_{mij} |x_{mij} - w_{nmij}|, \qquad
              \frac{\partial y}{\partial w} := x - w, \quad
              \frac{\partial y}{\partial x} := \mathrm{HT}(w - x), \quad
              \Delta w \propto \frac{\eta \sqrt{k}}{\lVert \Delta \rVert_2} \Delta

    The true gradients are signs, which carry too little: the paper takes the difference itself for the weights, clipped
    to [-1, 1] (HT) for what is handed back, and scales each layer's gradient to a length of its own, k being the number
    of its weights.

    Parameters
    ----------
    spec : ConvSpec
    eta : float
        Length of the gradient of one weight, in the root mean square.
    """

    def __init__(self, spec: ConvSpec, eta: float = 0.1) -> None:
        super().__init__()
        self.geometry, self.eta = geometry(spec), eta
        self.weight = nn.Parameter(torch.randn(spec.out_channels, spec.in_channels, *self.geometry.kernel))
        self.bias = nn.Parameter(torch.zeros(spec.out_channels)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        g = self.geometry
        columns = functional.unfold(x, g.kernel, g.dilation, g.padding, g.stride)  # (batch, M k k, pixels)
        rows = columns.transpose(1, 2).flatten(0, 1)
        y = _Distance.apply(rows, self.weight.flatten(1), self.eta)
        sides = zip(x.shape[2:], g.kernel, g.stride, g.padding, g.dilation, strict=True)
        size = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides]
        y = y.view(x.shape[0], prod(size), -1).transpose(1, 2).unflatten(2, size)
        return y if self.bias is None else y + self.bias[:, None, None]


class PowersOfTwo(nn.Module):
    r"""A weight as DeepShift-Q rounds it, in every forward pass: a sign and a power of two.

    .. math:: \tilde w = \mathrm{sign}(w)\, 2^{p}, \qquad
              p = \mathrm{clip}\big(\mathrm{round}(\log_2 |w|),\, 2 - 2^{b-1},\, 0\big)

    The gradient of the rounded weight is handed to the weight as it is (straight through). Zero stays zero, which takes
    one of the codes.

    Parameters
    ----------
    bits : int
        b, with the sign.
    """

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        power = torch.log2(weight.detach().abs()).round().clamp(2 - 2 ** (self.bits - 1), 0)
        rounded = weight.detach().sign() * torch.exp2(power)
        return weight + (rounded - weight).detach()

    def stored_bits(self, weight: Tensor) -> int:
        """Bits of its codes; a power of two needs no scale."""
        return self.bits * weight.numel()


@dataclass(frozen=True)
class MultiplierFreeLayers:
    """A block that multiplies less, or not at all.

    - `shift`: the spatial filter is replaced by moving the channels (`spatial_shift`), and a 1 x 1 convolution mixes
      them: M N products a pixel instead of k² M N, and no weight for space.
    - `adder`: the sum of absolute differences instead of that of products (`Adder`); no product at all, additions
      twice as many.
    - `deepshift`: a standard convolution whose weights are powers of two (`PowersOfTwo`): multiplying is shifting.

    PyTorch has kernels for none of them; what they would save in hardware is counted, not timed.

    Parameters
    ----------
    form : {"shift", "adder", "deepshift"}
    bits : int
        Of a weight of `deepshift`.

    Source
    ------
    Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions", CVPR 2018, section 3; Chen et
    al., "AdderNet: Do We Really Need Multiplications in Deep Learning?", CVPR 2020, section 3, equations 2 and 5 to 13;
    Elhoushi et al., "DeepShift: Towards Multiplication-Less Neural Networks", 2019, DeepShift-Q.

    Examples
    --------
    >>> from kernels.counting import macs
    >>> spec, x = ConvSpec(18, 32, 3, padding=1, bias=False), torch.zeros(1, 18, 4, 4)
    >>> {form: macs(MultiplierFreeLayers(form).build(spec), x) // 16 for form in ("shift", "adder")}
    {'shift': 576, 'adder': 0}
    """

    form: str = "shift"
    bits: int = 5

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {self.form!r}")
        if self.bits < 2:
            raise ValueError(f"bits: expected a sign and at least one bit, got {self.bits}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec
            For a shift with an odd kernel, and maps padded so that they keep their size but for the stride.

        Raises
        ------
        ValueError
            If a shift cannot stand in for it.
        """
        if self.form == "adder":
            return Adder(spec)
        if self.form == "deepshift":
            layer = nn.Conv2d(**asdict(spec))
            constrain(layer, "weight", PowersOfTwo(self.bits))
            return layer
        g = geometry(spec)
        if any(k % 2 == 0 or 2 * p != d * (k - 1) for k, p, d in zip(g.kernel, g.padding, g.dilation, strict=True)):
            raise ValueError(f"padding: expected half of an odd kernel for a shift, got {spec}")
        mix = nn.Conv2d(spec.in_channels, spec.out_channels, 1, g.stride, bias=spec.bias)
        return nn.Sequential(SpatialShift(g.kernel, g.dilation), mix)
