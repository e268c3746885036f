r"""Wide reduced precision: fewer bits for weights and inputs, and more filters to buy the accuracy back.

Weights are clipped to [-1, 1] and have a sign, inputs to [0, 1]; both are rounded to whole steps, straight through:

.. math:: w_q = \frac{1}{2^{k-1} - 1} \, \mathrm{round}\!\left( (2^{k-1} - 1)\, \mathrm{clip}(w, -1, 1) \right), \qquad
   x_q = \frac{1}{2^k - 1} \, \mathrm{round}\!\left( (2^k - 1)\, \mathrm{clip}(x, 0, 1) \right)

A layer between two others with f times as many filters has f^2 times the products; each is cheaper by the product of
its operands' widths:

    bit operations = f^2 * MACs * weight_bits * input_bits

Source: A. Mishra et al., "WRPN: Wide Reduced-Precision Networks", 2017.

Examples
--------
>>> ClippedWeights(3)(torch.tensor([-1.4, 0.1, 0.5]))
tensor([-1.0000,  0.0000,  0.6667])
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kernels.model.quantization.dorefa import UnitInputs
from kernels.model.quantization.quantizers import (
    CodedWeights,
    checked_bits,
    passed_through,
    product_layers,
    quantize_network,
    refuse_infinite,
)

__all__ = ["ClippedWeights", "WideReducedPrecision", "widened"]

Trace = list[dict[str, Any]]


class ClippedWeights(CodedWeights):
    """Weights clipped to -1 to 1, on whole steps of 1 / (2^(bits - 1) - 1).

    Parameters
    ----------
    bits : int
        At least 2: one is the sign.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        top = 2 ** (self.bits - 1) - 1
        return (top * w.clamp(-1, 1)).round(), torch.tensor(1 / top, dtype=w.dtype)

    def forward(self, w: Tensor) -> Tensor:
        refuse_infinite(w.detach())
        integers, scale = self.integers(w.detach())
        return passed_through(integers * scale, w.clamp(-1, 1))


def widened(network: nn.Module, factor: float) -> nn.Module:
    """A copy with `factor` times as many filters in every layer but the last, its weights drawn anew.

    Parameters
    ----------
    network : nn.Module
        Convolutions, linear layers and batch norms, and whatever else has no parameters; its layers follow one another
        in the order in which they are registered.
    factor : float

    Raises
    ------
    ValueError
        If the network holds other parameters, a convolution in groups, or a number of filters has no such multiple.

    Examples
    --------
    >>> wide = widened(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10)), 1.5)
    >>> wide[0].weight.shape[0], wide[1].num_features, wide[3].weight.shape
    (6, 6, torch.Size([10, 6]))
    """
    network = copy.deepcopy(network)
    layers = product_layers(network)
    places = {name: place for place, (name, _) in enumerate(layers)}

    def scaled(count: int, name: str) -> int:
        if (wide := count * factor) != int(wide):
            raise ValueError(f"{name}: expected a whole number of {factor} times {count} filters or inputs")
        return int(wide)

    for name, module in list(network.named_modules()):
        if name in places:
            if getattr(module, "groups", 1) != 1:
                raise ValueError(f"{name}: expected a convolution in one group, got {module}")
            into, out = (
                ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
            )
            if places[name] > 0:
                setattr(module, into, scaled(getattr(module, into), name))
            if places[name] < len(layers) - 1:
                setattr(module, out, scaled(getattr(module, out), name))
            shape = (getattr(module, out), getattr(module, into), *module.weight.shape[2:])
            if getattr(module, "transposed", False):
                raise ValueError(f"{name}: expected no transposed convolution")
            module.weight = nn.Parameter(torch.empty(shape))
            if module.bias is not None:
                module.bias = nn.Parameter(torch.empty(shape[0]))
            module.reset_parameters()  # type: ignore[operator]
        elif isinstance(module, _BatchNorm):
            fresh = type(module)(
                scaled(module.num_features, name), module.eps, module.momentum, module.affine,
                module.track_running_stats,
            )  # fmt: skip
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, fresh)
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"{name or type(module).__name__}: expected convolutions, linear layers and batch norms alone, got"
                f" {type(module).__name__}"
            )
    return network


def _stretch(w: Tensor) -> None:
    with torch.no_grad():
        w /= w.abs().max().clamp(min=1e-30)


@dataclass(frozen=True)
class WideReducedPrecision:
    r"""Train a wider network of few bits in place of the one given.

    .. math:: w_q = \frac{\mathrm{round}\left( (2^{k-1} - 1)\, \mathrm{clip}(w, -1, 1) \right)}{2^{k-1} - 1}, \qquad
       x_q = \frac{\mathrm{round}\left( (2^k - 1)\, \mathrm{clip}(x, 0, 1) \right)}{2^k - 1}, \qquad
       \text{filters} \leftarrow f \cdot \text{filters}

    Parameters
    ----------
    width : float
        f, at least 1.
    weight_bits : int, 2 to 8
    input_bits : int, 1 to 8
    ends : int, 2 to 8
        Bits of the first and the last layer.

    Notes
    -----
    The wide network is drawn by the seed of its training; the one that is given says its shape only. As many updates as
    the plain recipe's, each with about f^2 times the products. Adapted: the paper leaves the first and the last layer
    in FP32. Here they have eight bits, on a grid of least and largest value. And weights begin stretched so that the
    largest of a layer is 1: as they are drawn, all of them would be rounded to zero, and nothing would learn.

    Source: Mishra et al. 2017.

    Examples
    --------
    >>> import datasets
    >>> workload = datasets.workload("noisy-digits-cnn")
    >>> network, trace = WideReducedPrecision().train(workload.network(), workload.data(), datasets.Recipe(epochs=1))
    >>> network[3].weight.shape, network[3].weight.unique().detach()
    (torch.Size([64, 32, 3, 3]), tensor([-1.,  0.,  1.]))
    """

    width: float = 2
    weight_bits: int = 2
    input_bits: int = 2
    ends: int = 8

    def __post_init__(self) -> None:
        checked_bits(self.weight_bits, "weight_bits", 2)
        checked_bits(self.input_bits, "input_bits")
        checked_bits(self.ends, "ends", 2)
        if not 1 <= self.width < float("inf"):
            raise ValueError(f"width: expected a finite number of at least 1, got {self.width!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a wider copy of `network` by `recipe`, rounded in every pass.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own; of the wide network's weights, too.

        Returns
        -------
        network, trace
            The network still holds the FP32 weights below; `kernels.model.transform.bake` leaves the rounded ones.
        """
        if self.width != 1:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed if seed is None else seed)
                network = widened(network, self.width)
        network = self.constrain(network)
        layers: list[Any] = list(network.modules())
        for layer in layers:
            if isinstance(getattr(layer, "input_quantizer", None), UnitInputs):
                _stretch(layer.parametrizations.weight.original)
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network`, as wide as it is, that rounds from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, or none between the first and the last.
        """
        return quantize_network(
            network,
            lambda layer: ClippedWeights(self.weight_bits),
            lambda layer: UnitInputs(self.input_bits),
            self.ends,
        )

    def narrow(self) -> WideReducedPrecision:
        """The same bits in a network as wide as the one given."""
        return replace(self, width=1)
