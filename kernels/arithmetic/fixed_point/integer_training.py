r"""Training on integers: every operand of the three products of a layer has eight bits or fewer, and a scale.

**WAGE** (Wu et al. 2018) rounds weights, activations, gradients and errors to multiples of σ(k) = 2^(1 - k) in [-1, 1],

    Q(x, k) = clip(σ(k) round(x / σ(k)), -1 + σ(k), 1 - σ(k)),          shift(x) = 2^round(log₂ x)

    weights       Q(w, k_W), drawn from U(-L, L) with L = max(√(6 / n_in), 1.5 σ(k_W))
    activations   Q(a / α, k_A),   α = max(shift(1.5 σ(k_W) / √(6 / n_in)), 1)
    errors        Q(e / shift(max |e|), k_E)
    updates       Δw = σ(k_G) sgn(s) (⌊|s|⌋ + Bernoulli(|s| - ⌊|s|⌋)),   s = η g / shift(max |g|)
    stored        w ← clip(w - Δw, -1 + σ(k_G), 1 - σ(k_G))

so all scales are shifts, stored weights are integers of k_G bits, and there is neither batch norm nor momentum.

**Banner** et al. (2018) keep FP32 weights, optimizer and batch norm's place. The operands of the products are 8-bit
integers with a scale and a zero point from each tensor's own range (GEMMLOWP's scheme); the error exists twice, in 8
bits to be propagated and in 16 for the gradient of the weights (*bifurcation*); and batch norm divides by the range,

    x̂ = (x - μ) / (C(n) range(x)),           C(n) = 1 / √(2 ln n),

which for normal numbers is about twice the deviation (the scale after it makes up for that), and sums no squares.

Sources: S. Wu et al., "Training and Inference with Integers in Deep Neural Networks", ICLR 2018, sections 3.2 and 3.3;
R. Banner et al., "Scalable Methods for 8-bit Training of Neural Networks", NeurIPS 2018, sections 3 to 5.

Examples
--------
>>> wage_round(torch.tensor([0.3, -0.8, 2.0]), 2)
tensor([ 0.5000, -0.5000,  0.5000])
>>> shift(torch.tensor(0.3))
tensor(0.2500)
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from kernels.arithmetic.fixed_point.fixed_point import FixedPoint
from kernels.arithmetic.mixed_precision.low_precision import LowPrecisionTraining, Precision

__all__ = [
    "IntegerTraining", "Naive", "RangeBatchNorm", "WageSGD", "affine_round", "shift", "step_of", "wage_round",
]  # fmt: skip

BITS = 8
"""k_A, k_G and k_E, and of both of Banner's operands."""
WIDE = 16
"""Bits of the error from which the gradient of the weights is computed, in Banner's scheme."""
LOGITS = 8.0
"""What the last layer's outputs, within a few units of zero, are shifted by before the softmax."""
Trace = list[dict[str, Any]]


# --- the equations ----------------------------------------------------------------------------------------------------


def step_of(bits: int) -> float:
    """σ(k) = 2^(1 - k), the distance of neighbours.

    Examples
    --------
    >>> step_of(2), step_of(8)
    (0.5, 0.0078125)
    """
    return 2.0 ** (1 - bits)


def wage_round(x: Tensor, bits: int) -> Tensor:
    """Q(x, k): the nearest multiple of σ(k), ties to the even one, within [-1 + σ(k), 1 - σ(k)] (Wu et al., eq. 5)."""
    step = step_of(bits)
    return (torch.round(x / step) * step).clamp(-1 + step, 1 - step)


def shift(x: Tensor) -> Tensor:
    """The power of two whose exponent is nearest to that of x > 0 (eq. 6); one where x is zero."""
    return torch.where(x > 0, torch.exp2(torch.round(torch.log2(x))), 1.0)


def affine_round(x: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """To 2^k equal steps over the range of x, zero among them: an integer, a zero point and a scale (GEMMLOWP).

    Parameters
    ----------
    x : Tensor
    bits : int
        k.
    noise : Tensor of the shape of x, optional
        Uniform in [0, 1): rounds up by chance, right on average. Without it, to the nearest.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> affine_round(torch.tensor([-1.0, 0.0, 0.1, 2.0]), 2)
    tensor([-1.,  0.,  0.,  2.])
    """
    if not x.numel():
        return x
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = (high - low) / (2**bits - 1)
    if not scale > 0:
        return x.clone()
    zero = torch.round(-low / scale)
    q = x / scale
    q = torch.round(q) if noise is None else torch.floor(q + noise)
    return ((q + zero).clamp(0, 2**bits - 1) - zero) * scale


# --- WAGE -------------------------------------------------------------------------------------------------------------


class _Straight(torch.autograd.Function):
    """Q(w, k) forward, the gradient as it is backward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, bits: int) -> Tensor:
        return wage_round(w, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Activation(torch.autograd.Function):
    """Q(a, k) forward; backward the gradient where nothing was clipped."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(a.abs() <= 1 - step_of(bits))
        return wage_round(a, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.saved_tensors[0], None


class _Error(torch.autograd.Function):
    """Nothing forward; backward the error brought to the size of one by a shift, and rounded."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        e = gradients[0]
        return wage_round(e / shift(e.abs().max()), ctx.bits), None


class _Layer(nn.Module):
    """A convolution or linear layer without bias whose operands are rounded by a scheme."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.options: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            options = ("stride", "padding", "dilation", "groups")
            self.options = {name: getattr(layer, name) for name in options}

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        return functional.linear(x, w) if self.options is None else functional.conv2d(x, w, **self.options)


class WageLayer(_Layer):
    """z = x Q(w) / α, its error rounded on the way back; a first layer rounds its input, a last one shifts its output.

    Parameters
    ----------
    layer : nn.Conv2d or nn.Linear
    bits : int
        k_W.
    largest : float, optional
        Of a first layer: a power of two that no input exceeds.
    last : bool
    """

    def __init__(self, layer: Any, bits: int, largest: float | None = None, last: bool = False) -> None:
        super().__init__(layer)
        self.bits, self.largest, self.last = bits, largest, last
        limit, least = math.sqrt(6 / self.weight[0].numel()), 1.5 * step_of(bits)
        self.alpha = max(float(shift(torch.tensor(least / limit))), 1.0)
        with torch.no_grad():
            self.weight.uniform_(-max(limit, least), max(limit, least))
            self.weight.copy_(wage_round(self.weight, BITS))

    def forward(self, x: Tensor) -> Tensor:
        if self.largest is not None:
            x = wage_round(x / self.largest, BITS)
        z = _Error.apply(self.product(x, _Straight.apply(self.weight, self.bits)) / self.alpha, BITS)
        return z * LOGITS if self.last else z


class _WageReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Activation.apply(functional.relu(x), BITS)


class WageSGD(torch.optim.Optimizer):
    """Δw = σ(k_G) sgn(s) (⌊|s|⌋ + Bernoulli(|s| - ⌊|s|⌋)) with s = η g / shift(max |g|): stored weights stay integers.

    Parameters
    ----------
    parameters : iterable of Tensor
    rate : float
        η of the first two thirds of the steps, a power of two; an eighth of it up to five sixths, then a 64th, as in
        the paper.
    steps : int
    seed : int

    Examples
    --------
    >>> w = nn.Parameter(torch.tensor([0.5, 0.5, 0.5]))
    >>> w.grad = torch.tensor([8.0, 0.0, -4.0])
    >>> WageSGD([w], rate=2.0, steps=1, seed=0).step()
    >>> (w.detach() - 0.5) / step_of(8)
    tensor([-2.,  0.,  1.])
    """

    def __init__(self, parameters: Any, rate: float, steps: int, seed: int) -> None:
        self.rate, self.steps, self.count = rate, steps, 0
        self.generator = torch.Generator().manual_seed(seed)
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        part = self.count / max(1, self.steps)
        rate = self.rate / (1 if part < 2 / 3 else 8 if part < 5 / 6 else 64)
        self.count += 1
        step = step_of(BITS)
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                s = rate * w.grad / shift(w.grad.abs().max())
                whole = s.abs().floor()
                drawn = torch.rand(s.shape, generator=self.generator) < s.abs() - whole
                w.sub_(step * s.sign() * (whole + drawn)).clamp_(-1 + step, 1 - step)
        return loss


# --- Banner -----------------------------------------------------------------------------------------------------------


def _hashed(*numbers: int) -> int:
    return zlib.crc32(repr(numbers).encode())


class _Noise:
    """Random numbers of its own, so that the order of a recipe's items stays what it is.

    Seeds go through a hash: those that follow each other must not share numbers with other layers of each other.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.count = seed, 0

    def like(self, x: Tensor) -> Tensor:
        self.count += 1
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(_hashed(self.seed, self.count)))


class _Bifurcated(torch.autograd.Function):
    """A layer's product of 8-bit operands; backward the error in 8 bits for the inputs, in 16 for the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, layer: BannerLayer) -> Tensor:
        x, w = affine_round(x, BITS), affine_round(w, BITS)
        ctx.save_for_backward(x, w)
        ctx.layer = layer
        return layer.product(x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x, w), layer, e = ctx.saved_tensors, ctx.layer, gradients[0]
        narrow, wide = (affine_round(e, bits, layer.noise.like(e)) for bits in (BITS, WIDE))
        if layer.options is None:
            return narrow @ w if ctx.needs_input_grad[0] else None, wide.T @ x, None
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = conv2d_input(x.shape, w, narrow, **layer.options)
        return gradient, conv2d_weight(x, w.shape, wide, **layer.options), None


class BannerLayer(_Layer):
    """A layer whose products take 8-bit operands; its bias, where it has one, is added in FP32."""

    def __init__(self, layer: Any, seed: int) -> None:
        super().__init__(layer)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.noise = _Noise(seed)

    def forward(self, x: Tensor) -> Tensor:
        z = _Bifurcated.apply(x, self.weight, self)
        if self.bias is None:
            return z
        return z + (self.bias if self.options is None else self.bias[:, None, None])


class _AffineStraight(torch.autograd.Function):
    """Eight bits both ways, straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: _Noise) -> Tensor:
        ctx.noise = noise
        return affine_round(x, BITS)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return affine_round(gradients[0], BITS, ctx.noise.like(gradients[0])), None


class RangeBatchNorm(nn.Module):
    """Batch norm by the range: x̂ = (x - μ) / (C(n) (max x - min x)), C(n) = 1 / √(2 ln n), of inputs of eight bits.

    Parameters
    ----------
    norm : nn.BatchNorm2d
        Gives weight, bias, momentum; its place is taken.
    seed : int

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(64, 3, 8, 8)
    >>> bool((RangeBatchNorm(nn.BatchNorm2d(3))(x).std((0, 2, 3)) - 0.5).abs().max() < 0.15)
    True
    """

    def __init__(self, norm: nn.BatchNorm2d, seed: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(p.detach().clone()) for p in (norm.weight, norm.bias))
        self.momentum, self.eps, self.noise = norm.momentum or 0.1, norm.eps, _Noise(seed)
        self.register_buffer("mean", torch.zeros_like(norm.weight))
        self.register_buffer("size", torch.ones_like(norm.weight))

    def forward(self, x: Tensor) -> Tensor:
        x = _AffineStraight.apply(x, self.noise)
        if self.training:
            channels = x.transpose(0, 1).flatten(1)
            mean = channels.mean(1)
            c = 1 / math.sqrt(2 * math.log(max(2, channels.shape[1])))
            size = c * (channels.amax(1) - channels.amin(1))
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)  # type: ignore[operator]
                self.size.lerp_(size, self.momentum)  # type: ignore[operator]
        else:
            mean, size = self.mean, self.size  # type: ignore[assignment]
        factor = self.weight / (size + self.eps)
        return (x - mean[:, None, None]) * factor[:, None, None] + self.bias[:, None, None]


# --- the technique ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntegerTraining:
    r"""Train with integers for weights, activations, gradients and errors.

    .. math:: Q(x, k) = \mathrm{clip}\Big(\sigma \Big\lfloor \frac{x}{\sigma} \Big\rceil, -1 + \sigma, 1 - \sigma\Big),
       \quad \sigma = 2^{1-k}, \qquad \Delta w = \sigma\, \mathrm{sgn}(s) \big(\lfloor |s| \rfloor
       + \mathrm{Bernoulli}(|s| - \lfloor |s| \rfloor)\big), \quad s = \frac{\eta\, g}{\mathrm{shift}(\max |g|)}

    Parameters
    ----------
    scheme : {"banner", "wage"}
        Banner et al.'s 8-bit products around FP32 weights, or WAGE, in which nothing is kept in FP32.
    weights : int
        k_W of WAGE; the paper has 2. Banner's weights have 8 bits.
    rate : float
        η of WAGE at the start, a power of two; Banner's scheme learns by the recipe's own optimizer.

    Notes
    -----
    Adapted. WAGE: the loss is cross-entropy of the outputs shifted by three bits, where the paper has a sum of squares
    for small tasks and a softmax for ImageNet; the softmax itself is computed in FP32. Biases and batch norm are left
    out, as in the paper, so the network has fewer parameters than the recipe's. The recipe says epochs, batches and
    their order; its optimizer, learning rate and weight decay have no part. Banner: the scale is each tensor's own
    range in each step; biases, batch norm's scale and shift, and AdamW are FP32.

    Networks are made of Conv2d, Linear, BatchNorm2d, ReLU, pooling and Flatten.

    Source: Wu et al. 2018, sections 3.2 and 3.3 (with 3.3.4's shifts for scales); Banner et al. 2018, sections 3 to 5.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> technique = IntegerTraining("wage", weights=8, rate=4.0)
    >>> network, trace = technique.train(digits.network(), digits.data(), datasets.Recipe(epochs=2))
    >>> weight = network[1].weight / step_of(8)                  # integers of eight bits, at the end as at all times
    >>> bool((weight == weight.round()).all() and weight.abs().max() < 128)
    True
    """

    scheme: str = "banner"
    weights: int = 8
    rate: float = 4.0

    def __post_init__(self) -> None:
        if self.scheme not in ("banner", "wage"):
            raise ValueError(f"scheme: expected banner or wage, got {self.scheme!r}")
        if not (isinstance(self.weights, int) and 2 <= self.weights <= BITS):
            raise ValueError(f"weights: expected 2 to {BITS} bits, got {self.weights!r}")
        if self.scheme == "banner" and self.weights != BITS:
            raise ValueError(f"weights: expected {BITS} bits in Banner's scheme, got {self.weights}")
        if not (self.rate > 0 and math.frexp(self.rate)[0] == 0.5):
            raise ValueError(f"rate: expected a power of two, got {self.rate!r}")

    def convert(self, network: nn.Module, largest: float = 1.0, seed: int = 0) -> nn.Module:
        """A copy of the network whose layers compute with integers; of WAGE, with weights drawn anew.

        Parameters
        ----------
        network : nn.Module
        largest : float
            A power of two that no input exceeds.
        seed : int

        Raises
        ------
        TypeError
            If it has layers that neither scheme knows.
        """
        network = copy.deepcopy(network)
        known = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Identity)
        places = [
            (parent, name, child)
            for parent in network.modules()
            for name, child in parent.named_children()
            if not list(child.children())
        ]
        products = [child for *_, child in places if isinstance(child, nn.Conv2d | nn.Linear)]
        if other := [child for *_, child in places if not isinstance(child, known)]:
            raise TypeError(f"network: expected layers of {_names(known)}, got {type(other[0]).__name__}")
        if not products:
            raise TypeError(f"network: expected layers with products in it, got {type(network).__name__}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for place, (parent, name, child) in enumerate(places):
                parent._modules[name] = self._converted(child, products, largest, _hashed(seed, place))
        return network

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` on the recipe's batches.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The network computes with integers when it is evaluated, too.
        """
        seed = recipe.seed if seed is None else seed
        largest = float(max(abs(data.train.x.min()), abs(data.train.x.max())))
        power = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 1.0
        integers = self.convert(network, power, seed)
        if self.scheme == "wage":
            recipe = replace(recipe, optimizer=lambda w, **_: WageSGD(w, self.rate, recipe.steps(data), seed))
        return integers, recipe.train(integers, data, seed=seed)

    def without(self) -> Naive:
        """The same widths without the scheme: fixed-point numbers, each to the nearest."""
        return Naive()

    def cost_bits(self) -> dict[str, int]:
        """Bits of an element: as operands, and as kept from update to update (WAGE has no optimizer state)."""
        if self.scheme == "wage":
            return {"weights": self.weights, "activations": 8, "gradients": 8, "stored": 8, "state": 0}
        return {"weights": 8, "activations": 8, "gradients": 8, "stored": 32, "state": 32}

    @property
    def mac_format(self) -> str:
        """What energy is that of: the cited table knows products of 8-bit integers, and no narrower or mixed ones."""
        if self.scheme == "banner":
            return "int8 by int16"
        return "int8" if self.weights == 8 else f"int{self.weights} by int8"

    format = mac_format

    def _converted(self, child: nn.Module, products: Sequence[nn.Module], largest: float, seed: int) -> nn.Module:
        banner = self.scheme == "banner"
        if isinstance(child, nn.BatchNorm2d):
            return RangeBatchNorm(child, seed) if banner else nn.Identity()
        if isinstance(child, nn.ReLU):
            return child if banner else _WageReLU()
        if isinstance(child, nn.Conv2d | nn.Linear):
            if banner:
                return BannerLayer(child, seed)
            return WageLayer(child, self.weights, largest if child is products[0] else None, child is products[-1])
        return child


@dataclass(frozen=True)
class Naive(LowPrecisionTraining):
    """Eight-bit fixed point for weights, activations and gradients, to the nearest, stored weights too: no scheme.

    Source: what Wu et al. 2018 and Banner et al. 2018 set out to repair.

    Examples
    --------
    >>> Naive().precision.weights
    FixedPoint(integer_bits=1, fraction_bits=7, rounding='nearest-even', seed=0)
    """

    @property
    def precision(self) -> Precision:
        """Weights and gradients within one, activations within four."""
        small, large = FixedPoint(1, BITS - 1), FixedPoint(3, BITS - 3)
        return Precision(small, large, small, small)

    def cost_bits(self) -> dict[str, int]:
        """As `IntegerTraining.cost_bits`, with AdamW's moments in FP32."""
        return {**self.precision.bits(), "state": 32}

    mac_format = format = "int8"


def _names(types: tuple[type, ...]) -> str:
    return ", ".join(t.__name__ for t in types)
