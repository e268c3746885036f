r"""Channels rescaled before rounding, by what layers are given: AWQ for weights alone, SmoothQuant for both operands.

A product does not change if a channel of its inputs is divided by s and its column of weights multiplied by it,

    W x = (W diag(s)) (diag(s)^-1 x)

but rounding does. *AWQ* keeps inputs in FP32 and multiplies the columns whose inputs are large, so that these weights
fall on relatively finer steps; too large a factor makes the steps of all others coarser. It takes

    s = m^alpha / sqrt(max m^alpha min m^alpha),     m_j = mean |x_j|

and searches alpha in [0, 1] for the least squared error of the outputs, tr(D H D^T), D = Q(W diag(s)) diag(s)^-1 - W.

*SmoothQuant* rounds the inputs, too, with one scale for all of their channels, which a channel of outliers spoils. It
moves a share of the difference between channels into the weights, which have a scale for each output:

    s_j = (max |x_j|)^alpha / (max |w_j|)^(1 - alpha)

Source: J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023, section
3.2; G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022,
section 4, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.batch_norm import fold
from kernels.model.calibration import as_matrix, calibration_rows, channel_inputs, items_of, output_error, places
from kernels.model.quantization.uniform_grid import LIMITS, Grid, GridCodes, PackedCodes, fit_grid
from kernels.model.transform import constrain

__all__ = ["ActivationAwareQuantization", "Unscaled", "searched_factors", "smoothing_factors"]

METHODS = ("awq", "smoothquant")
ALPHAS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class ActivationAwareQuantization:
    r"""Weights, and with SmoothQuant inputs, of few bits; channels are rescaled first by what they are given.

    .. math:: W x = (W \mathrm{diag}(s)) (\mathrm{diag}(s)^{-1} x), \qquad
       s_j \propto (\mathrm{mean} |x_j|)^\alpha \quad\text{or}\quad
       s_j = \frac{\max |x_j|^\alpha}{\max |w_j|^{1 - \alpha}}

    Parameters
    ----------
    method : {"awq", "smoothquant"}
    bits : int
        Of a weight, 2 to 8.
    inputs : int
        Bits of a layer's inputs under SmoothQuant, 2 to 8; AWQ leaves them in FP32 and expects 0.
    alpha : float
        Of SmoothQuant: the share of the difference that goes into the weights. AWQ searches its own.
    granularity : {"channel", "tensor"}
        One scale for each output of a layer, or one for the layer.
    limits : {"min-max", "percentile", "mse"}
        Where the grids end, see `fit_grid`.
    items : int
        Training items to calibrate on, their labels unseen.

    Notes
    -----
    Batch norm is folded. A channel of a convolution has one factor for all entries of its kernel. Adapted: the papers
    leave the division to the layer before, where there is one that can take it. Here the factors are kept with the
    layer and counted, 32 bits a channel: AWQ's weights are divided as they are decoded, SmoothQuant's inputs before
    they are rounded. AWQ's search for limits is that of `limits`. States of recurrent layers are not smoothed.

    Source: Lin et al. 2023, section 3.2; Xiao et al. 2022, section 4.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network = ActivationAwareQuantization(bits=3).apply(digits.trained(), digits.data())
    >>> network[3].parametrizations.weight[0].factors.shape
    torch.Size([1, 64])
    """

    method: str = "awq"
    bits: int = 4
    inputs: int = 0
    alpha: float = 0.5
    granularity: str = "channel"
    limits: str = "min-max"
    items: int = 256

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("granularity", ("channel", "tensor")), ("limits", LIMITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: expected 2 to 8, got {self.bits!r}")
        if (self.inputs != 0) if self.method == "awq" else not 2 <= self.inputs <= 8:
            expected = "0, AWQ leaves inputs in FP32" if self.method == "awq" else "2 to 8 bits for SmoothQuant"
            raise ValueError(f"inputs: expected {expected}, got {self.inputs!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected 0 to 1, got {self.alpha!r}")
        if self.items < 1:
            raise ValueError(f"items: expected at least 1, got {self.items!r}")

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A copy of `network` with weights as packed codes, and the factors of its channels.

        Parameters
        ----------
        network : nn.Module
            Trained; left as it is.
        data : datasets.Data
            Its first training items are what is calibrated on.

        Raises
        ------
        TypeError, ValueError
            If there is no layer to quantize, or one that is not handled: the message has its path.
        """
        places(network)  # refuses before anything is done
        return self._apply(network, data, rescale=True)

    def rivals(self, seed: int) -> dict[str, Unscaled]:
        """The same grids without factors."""
        return {"unscaled": Unscaled(self)}

    def _apply(self, network: nn.Module, data: Any, rescale: bool) -> nn.Module:
        items, network = items_of(data, self.items), fold(network)
        smooth = self.method == "smoothquant"
        rows = calibration_rows(network, items) if rescale and not smooth else {}
        inputs = channel_inputs(network, items) if smooth else {}
        for path, layer, name in places(network):
            weight = getattr(layer, name).detach()
            matrix = as_matrix(layer, weight)
            entries = matrix.shape[2] // weight.shape[1]  # of a kernel, for each channel
            factors = torch.ones(matrix.shape[0], matrix.shape[2] // entries)
            of_inputs = smooth and "weight_hh" not in name
            if rescale and not smooth:
                row = rows[path, name]
                factors = searched_factors(matrix, row.magnitude, row.moment, entries, self._grid)
            elif rescale and of_inputs:
                factors = smoothing_factors(matrix, inputs[path].abs().amax(1), entries, self.alpha)
            scaled = (matrix * factors.repeat_interleave(entries, 1)[:, None]).flatten(0, 1)
            grid = self._grid(scaled)
            layer.requires_grad_(False)
            constrain(layer, name, ScaledCodes(grid.encode(scaled), grid, weight.shape, factors, not smooth, rescale))
            if of_inputs:
                _divide_and_round(layer, factors.flatten(), inputs[path], self.inputs, self.limits)
        return network

    def _grid(self, matrix: Tensor) -> Grid:
        """AWQ's grids are affine, those of integer products symmetric."""
        symmetric = self.method == "smoothquant"
        if self.granularity == "channel":
            return fit_grid(matrix, self.bits, self.limits, symmetric=symmetric)
        whole = fit_grid(matrix.reshape(1, -1), self.bits, self.limits, symmetric=symmetric)
        return Grid(self.bits, whole.scale, whole.zero, matrix.shape[1], symmetric)


@dataclass(frozen=True)
class Unscaled:
    """The grids of an activation-aware quantization, no channel rescaled."""

    method: ActivationAwareQuantization

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A quantized copy of `network`."""
        return self.method._apply(network, data, rescale=False)


class ScaledCodes(PackedCodes):
    """Packed codes of weights whose channels were multiplied by factors; divided again as they are read, if asked to.

    Parameters
    ----------
    codes, grid, shape
        As for `PackedCodes`.
    factors : Tensor of shape (groups, channels of a group)
    divides : bool
        Whether the weights are divided here; else the inputs are, elsewhere.
    kept : bool
        Whether the factors are stored: where nothing was rescaled there are none.
    """

    factors: Tensor

    def __init__(
        self, codes: Tensor, grid: Grid, shape: torch.Size, factors: Tensor, divides: bool, kept: bool = True
    ) -> None:
        super().__init__(codes, grid, shape)
        self.register_buffer("factors", factors.float(), persistent=kept)
        self.divides, self.kept = divides, kept

    def forward(self, original: Tensor) -> Tensor:
        weight = super().forward(original)
        if not self.divides:
            return weight
        groups, channels = self.factors.shape
        by_channel = weight.reshape(groups, len(weight) // groups, channels, -1)
        return (by_channel / self.factors[:, None, :, None]).reshape(self.shape)

    def stored_bits(self, weight: Tensor) -> int:
        """Codes, scales, zero points that are not fixed, and factors."""
        return super().stored_bits(weight) + (32 * self.factors.numel() if self.kept else 0)

    def encoded(self, weight: Tensor) -> GridCodes:
        """Codes, scales and zero points; and the factors, where the weight is divided by them."""
        return GridCodes.of(self.codes(), self.own_grid(), self.factors if self.kept and self.divides else None)


def searched_factors(weight: Tensor, magnitude: Tensor, moment: Tensor, entries: int, grid_of: Any) -> Tensor:
    """AWQ's factors: powers of the mean magnitudes, the power that leaves the least squared error of the outputs.

    Parameters
    ----------
    weight : Tensor of shape (groups, outputs, k)
    magnitude : Tensor of shape (groups, k)
        The mean of |x|.
    moment : Tensor of shape (groups, k, k)
        H.
    entries : int
        Columns that belong to one channel, next to each other.
    grid_of : callable
        Gives a grid for a matrix (rows, k).

    Returns
    -------
    Tensor of shape (groups, k / entries)
        All ones where no power is better.

    Examples
    --------
    >>> from functools import partial
    >>> weight, rows = torch.tensor([[[0.4, 1.0]]]), torch.tensor([[[100.0, 1.0]]]).double()
    >>> grid_of = partial(fit_grid, bits=2, symmetric=True)        # only -1, 0 and 1 times the scale
    >>> factors = searched_factors(weight, rows[0].abs(), rows.mT @ rows, 1, grid_of)
    >>> scaled = (weight * factors)[0]
    >>> weight[0], grid_of(weight[0]).round(weight[0]), (grid_of(scaled).round(scaled) / factors)
    (tensor([[0.4000, 1.0000]]), tensor([[0., 1.]]), tensor([[0.4000, 1.0048]]))
    """
    mean = magnitude.unflatten(1, (-1, entries)).mean(2).float()
    mean = torch.where(mean > 0, mean, mean[mean > 0].min() if (mean > 0).any() else torch.ones_like(mean))
    best, least = torch.ones_like(mean), torch.inf
    for alpha in ALPHAS:
        power = mean**alpha
        factors = power / (power.amax() * power.amin()).sqrt()
        columns = factors.repeat_interleave(entries, 1)[:, None]
        scaled = (weight * columns).flatten(0, 1)
        rounded = grid_of(scaled).round(scaled).reshape(weight.shape) / columns
        error = float(output_error(rounded - weight, moment).sum())
        if error < least:
            best, least = factors, error
    return best


def smoothing_factors(weight: Tensor, largest: Tensor, entries: int, alpha: float) -> Tensor:
    """SmoothQuant's factors: the largest input of each channel to the power alpha, over its largest weight's.

    Parameters
    ----------
    weight : Tensor of shape (groups, outputs, k)
    largest : Tensor of shape (groups * k / entries,)
        The largest |x| of each channel.
    entries : int
        Columns that belong to one channel, next to each other.
    alpha : float

    Returns
    -------
    Tensor of shape (groups, k / entries)
        1 where a channel has no input or no weight other than zero.

    Examples
    --------
    >>> smoothing_factors(torch.tensor([[[1.0, 4.0], [0.5, 2.0]]]), torch.tensor([100.0, 1.0]), 1, alpha=0.5)
    tensor([[10.0000,  0.5000]])
    """
    of_weights = weight.abs().amax(1).unflatten(1, (-1, entries)).amax(2)
    of_inputs = largest.reshape(of_weights.shape).to(of_weights.dtype)
    alive = (of_weights > 0) & (of_inputs > 0)
    one = torch.ones_like(of_weights)
    return torch.where(alive, of_inputs**alpha / torch.where(alive, of_weights, one) ** (1 - alpha), one)


def _divide_and_round(layer: Any, factors: Tensor, inputs: Tensor, bits: int, limits: str) -> None:
    grid = fit_grid((inputs / factors[:, None]).reshape(1, -1), bits, limits, symmetric=False)
    last = isinstance(layer, nn.Linear | nn.RNNBase)

    def divided(x: Tensor) -> Tensor:
        x = x / (factors if last else factors.reshape(-1, *[1] * (x.ndim - 2)))
        return grid.round(x.reshape(-1, 1)).reshape(x.shape)

    layer.input_bits = bits
    layer.register_forward_pre_hook(lambda layer, args: (divided(args[0]), *args[1:]))
