r"""Post-training quantization: a trained network in integers of a few bits, after a look at a few items.

Weights and the inputs of layers are put on uniform grids (`uniform_grid`), the former with a scale for each output, the
latter with one for a layer. Four things decide what is left of the network:

*Where the grid ends* (`limits`). The extremes clip nothing and leave coarse steps; between tighter limits steps are
finer and the largest numbers are clipped. The least squared error is between them.

*Equalization.* Between two layers with ReLU between them, a channel may be divided by s > 0 at the one and multiplied
by it at the other. With ranges r1 and r2 of the channel's weights,

    s_i = sqrt(r1_i r2_i) / r2_i     makes both sqrt(r1_i r2_i)

so that one scale for a whole tensor fits all channels. ReLU6 ends at 6 / s_i instead, channel by channel.

*Bias correction.* An error D of the weights moves the mean output by D E[x]; it is taken off the bias.

*Adaptive rounding.* To the nearest is best for a weight, not for a sum. Which weights go up, h, is learned from

    min over h of tr(D H D^T) + lambda sum (1 - |2 h - 1|^beta),     D = S (floor(w / S) + h - w / S)

with h in [0, 1] a stretched sigmoid, and beta falling so that every h ends at 0 or 1.

Source: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A whitepaper", 2018, section
3.1; M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, sections 4.1 and
4.2; M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, equations 21 to 24.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from kernels.model.batch_norm import fold
from kernels.model.calibration import as_matrix, calibration_rows, items_of, places, raw_inputs
from kernels.model.quantization.uniform_grid import LIMITS, Grid, fit_grid, keep_codes

__all__ = ["PostTrainingQuantization", "StochasticRounding", "adaptive_codes", "equalize"]

ROUNDINGS = ("nearest", "adaptive")
GAMMA, ZETA = -0.1, 1.1
"""The ends of the stretched sigmoid."""
SWEEPS = 20


@dataclass(frozen=True)
class PostTrainingQuantization:
    r"""Weights and inputs of a trained network's layers in integers, scales from a few items, nothing trained.

    .. math:: \tilde w = S \left( \mathrm{clip}\left( \left\lfloor \tfrac{w}{S} \right\rceil + Z,\; q_{\min}, q_{\max}
       \right) - Z \right)

    Parameters
    ----------
    bits : int
        Of a weight, 2 to 8.
    inputs : int
        Bits of a layer's inputs, 2 to 8; 0 leaves them in FP32.
    granularity : {"channel", "tensor"}
        One scale for each output of a layer, or one for the layer.
    limits : {"min-max", "percentile", "mse"}
        Where the grids end, of weights and of inputs; see `fit_grid`.
    equalize : bool
        Whether the ranges of channels are made equal between layers first.
    correct_bias : bool
        Whether the shift of the mean outputs is taken off the biases.
    rounding : {"nearest", "adaptive"}
    items : int
        Training items to calibrate on, their labels unseen.

    Notes
    -----
    Batch norm is folded; biases and sums stay FP32, and so do the states of recurrent layers. Adapted: adaptive
    rounding sees the inputs of the FP32 network and no activation function (equation 21 of its paper, not 25), each
    layer's squared error is measured in that of rounding to nearest, and a rounding that ends worse than to nearest is
    not taken.

    Source: Krishnamoorthi 2018, section 3.1; Nagel et al. 2019, section 4; Nagel et al. 2020, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network = PostTrainingQuantization(bits=4).apply(digits.trained(), digits.data())
    >>> len(network[1].weight[0].unique()) <= 15, network[1].parametrizations.weight.original.numel()
    (True, 0)
    """

    bits: int = 8
    inputs: int = 8
    granularity: str = "channel"
    limits: str = "min-max"
    equalize: bool = False
    correct_bias: bool = False
    rounding: str = "nearest"
    items: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: expected 2 to 8, got {self.bits!r}")
        if self.inputs != 0 and not 2 <= self.inputs <= 8:
            raise ValueError(f"inputs: expected 2 to 8 bits, or 0 for FP32, got {self.inputs!r}")
        if self.items < 1:
            raise ValueError(f"items: expected at least 1, got {self.items!r}")
        for name, known in (
            ("granularity", ("channel", "tensor")), ("limits", LIMITS), ("rounding", ROUNDINGS)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A quantized copy of `network`.

        Parameters
        ----------
        network : nn.Module
            Trained; left as it is.
        data : datasets.Data
            Its first training items are what is calibrated on.

        Returns
        -------
        nn.Module
            In evaluation mode, weights as packed codes (`PackedCodes`), each layer with its `input_bits`.

        Raises
        ------
        TypeError, ValueError
            If there is no layer to quantize, or one that is not handled: the message has its path.
        """
        places(network)  # refuses before anything is done
        return self._apply(network, data, None)

    def rivals(self, seed: int) -> dict[str, StochasticRounding]:
        """The same grids, rounded by chance: what adaptive rounding has to beat."""
        return {"stochastic": StochasticRounding(self, seed)} if self.rounding == "adaptive" else {}

    def _apply(self, network: nn.Module, data: Any, chance: torch.Generator | None) -> nn.Module:
        items = items_of(data, self.items)
        network = fold(network)
        if self.equalize:
            network = equalize(network)
        needs_rows = self.correct_bias or (self.rounding == "adaptive" and chance is None)
        rows = calibration_rows(network, items) if needs_rows else {}
        inputs = raw_inputs(network, items) if self.inputs else {}
        for path, layer, name in places(network):
            weight = getattr(layer, name).detach()
            matrix = weight.reshape(len(weight), -1)
            grid = self._grid(matrix)
            if chance is not None:
                codes = stochastic_codes(matrix, grid, chance)
            elif self.rounding == "adaptive":
                codes = adaptive_codes(as_matrix(layer, weight), grid, rows[path, name].moment)
            else:
                codes = grid.encode(matrix)
            if self.correct_bias:
                difference = as_matrix(layer, (grid.decode(codes) - matrix).reshape(weight.shape)).double()
                shift = (difference @ rows[path, name].mean[..., None]).flatten()
                _add_to_bias(path, layer, name, -shift.float())
            keep_codes(layer, name, codes, grid)
        for path, x in inputs.items():
            _round_inputs(network.get_submodule(path), fit_grid(x[None], self.inputs, self.limits, symmetric=False))
        return network

    def _grid(self, matrix: Tensor) -> Grid:
        if self.granularity == "channel":
            return fit_grid(matrix, self.bits, self.limits, symmetric=True)
        whole = fit_grid(matrix.reshape(1, -1), self.bits, self.limits, symmetric=True)
        return Grid(self.bits, whole.scale, whole.zero, matrix.shape[1], True)


@dataclass(frozen=True)
class StochasticRounding:
    """The grids of a post-training quantization; each weight goes up with the chance of its distance from below."""

    method: PostTrainingQuantization
    seed: int = 0

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A quantized copy of `network`."""
        return self.method._apply(network, data, torch.Generator().manual_seed(self.seed))


def stochastic_codes(matrix: Tensor, grid: Grid, chance: torch.Generator) -> Tensor:
    """Codes of the grid, up or down by chance, unbiased between the ends."""
    scale, zero = grid.steps(matrix.shape[1])
    return (torch.floor(matrix / scale + torch.rand(matrix.shape, generator=chance)) + zero).clamp(grid.low, grid.high)


def adaptive_codes(
    weight: Tensor, grid: Grid, moment: Tensor, *, steps: int = 400, rate: float = 0.1, weight_of_choice: float = 20.0
) -> Tensor:
    """Codes of the grid, each the one above or below, so that the outputs change little.

    Parameters
    ----------
    weight : Tensor of shape (groups, outputs, k)
    grid : Grid
        Of the rows (groups times outputs, k).
    moment : Tensor of shape (groups, k, k)
        H.
    steps, rate : int, float
        Of Adam; beta falls from 20 to 2 after the first fifth, in which the choice is not pressed.
    weight_of_choice : float
        lambda, for the mean over the weights, where rounding to nearest has an error of 1.

    Returns
    -------
    Tensor of shape (groups times outputs, k)

    Examples
    --------
    Two inputs that are always equal: one weight rounded up, the other down, leaves the sum as it was.

    >>> weight, moment = torch.tensor([[[0.4, 0.4]]]), torch.ones(1, 2, 2)
    >>> grid = Grid(4, torch.tensor([[1.0]]), torch.tensor([[8.0]]), group=2, symmetric=True)
    >>> sorted((adaptive_codes(weight, grid, moment) - 8).flatten().tolist()), grid.round(weight[0]).tolist()
    ([0.0, 1.0], [[0.0, 0.0]])
    """
    matrix = weight.reshape(-1, weight.shape[-1])
    scale, zero = grid.steps(matrix.shape[1])
    moment = moment.to(matrix.dtype)
    nearest = grid.encode(matrix)

    def error(codes: Tensor) -> Tensor:
        difference = ((codes - zero) * scale - matrix).reshape(weight.shape)
        return ((difference @ moment) * difference).sum()

    at_nearest = error(nearest).clamp(min=torch.finfo(matrix.dtype).tiny)
    below = torch.floor(matrix / scale) + zero
    rest = (matrix / scale - torch.floor(matrix / scale)).clamp(0.01, 0.99)
    # equal weights would be learned equally: an even pattern, far below the size of a choice, tells them apart
    tilt = 1e-3 * torch.cos(torch.arange(matrix.numel(), dtype=matrix.dtype)).reshape(matrix.shape)
    v = (torch.logit((rest - GAMMA) / (ZETA - GAMMA)) + tilt).requires_grad_()
    adam = torch.optim.Adam([v], lr=rate)
    with torch.enable_grad():
        for step in range(steps):
            h = (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
            loss = error((below + h).clamp(grid.low, grid.high)) / at_nearest
            if step >= steps // 5:
                beta = 20 - 18 * (step - steps // 5) / max(1, steps - steps // 5 - 1)
                loss = loss + weight_of_choice * (1 - (2 * h - 1).abs() ** beta).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    chosen = (below + (v.detach() >= 0)).clamp(grid.low, grid.high)
    return chosen if error(chosen) < error(nearest) else nearest


def _add_to_bias(path: str, layer: Any, name: str, shift: Tensor) -> None:
    if isinstance(layer, nn.RNNBase):
        if not layer.bias:
            raise ValueError(f"layer '{path}': expected a recurrent layer with biases to correct, got one without")
        getattr(layer, name.replace("weight", "bias")).data.add_(shift)
    elif layer.bias is None:
        layer.bias = nn.Parameter(shift, requires_grad=False)
    else:
        layer.bias.data.add_(shift)


def _round_inputs(layer: Any, grid: Grid) -> None:
    layer.input_bits = grid.bits
    layer.register_forward_pre_hook(
        lambda layer, args: (grid.round(args[0].reshape(-1, 1)).reshape(args[0].shape), *args[1:])
    )


class ClippedPerChannel(nn.Module):
    """min(max(x, 0), end) with an end for each channel: a ReLU6 whose channels were divided by s."""

    end: Tensor

    def __init__(self, end: Tensor) -> None:
        super().__init__()
        self.register_buffer("end", end)

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x.relu(), self.end.reshape(-1, *[1] * (x.ndim - 2)))


def equalize(network: nn.Module) -> nn.Module:
    """A copy that computes the same, the ranges of each channel's weights equal on both sides of it.

    A layer whose channels are not what they were says by what they were divided: `output_divisor`, `input_divisor`.

    Parameters
    ----------
    network : nn.Module
        Batch norm folded. Equalized are pairs of convolution or linear layers that only ReLU, ReLU6, pooling, padding
        with zeros, dropout or flattening lies between, and nothing else reads, as far as torch.fx can trace them.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> equal, x = equalize(network), torch.randn(5, 4)
    >>> torch.allclose(equal(x), network(x), atol=1e-6)
    True
    >>> torch.allclose(equal.get_submodule("0").weight.abs().amax(1), equal.get_submodule("2").weight.abs().amax(0))
    True
    """
    network = copy.deepcopy(network).eval()
    pairs = [pair for root, graph in _graphs(network) for pair in _pairs(root, graph)]
    scales = {second: torch.ones(first.weight.shape[0]) for first, _, second in pairs}
    with torch.no_grad():
        for _ in range(SWEEPS):
            furthest = 0.0
            for first, _, second in pairs:
                s = _between(first, second)
                first.weight.div_(s.reshape(-1, *[1] * (first.weight.ndim - 1)))
                if first.bias is not None:
                    first.bias.div_(s)
                _times_inputs(second, s)
                scales[second] *= s
                furthest = max(furthest, float((s - 1).abs().max()))
            if furthest < 1e-4:
                break
        for first, capped, second in pairs:
            first.output_divisor = scales[second]
            second.input_divisor = _by_column(second, scales[second])
            for parent, child in capped:
                setattr(parent, child, ClippedPerChannel(6 / scales[second]))
    return network


def _graphs(module: nn.Module) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """The module's graph of operations, or those of its parts where torch.fx cannot trace the whole."""
    try:
        graph = module.graph if isinstance(module, fx.GraphModule) else fx.Tracer().trace(module)
    except Exception:  # whatever the module's own code raises when it is given no numbers
        for child in module.children():
            yield from _graphs(child)
    else:
        yield module, graph


PASSES = (nn.ReLU, nn.ReLU6, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
          nn.AdaptiveAvgPool2d, nn.ZeroPad2d, nn.Dropout, nn.Identity, nn.Flatten)  # fmt: skip
"""What a positive factor of a channel passes through, ReLU6 with its end moved."""


def _pairs(root: nn.Module, graph: fx.Graph) -> Iterator[tuple[Any, list[tuple[nn.Module, str]], Any]]:
    """Layers that follow each other, and each ReLU6 between them as its parent and its name there."""
    modules = dict(root.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def module_of(node: fx.Node) -> nn.Module | None:
        once = node.op == "call_module" and calls[node.target] == 1
        return modules.get(str(node.target)) if once else None

    for node in graph.nodes:
        first: Any = module_of(node)
        if not isinstance(first, nn.Conv1d | nn.Conv2d | nn.Linear):
            continue
        capped: list[tuple[nn.Module, str]] = []
        flat = isinstance(first, nn.Linear)
        while len(node.users) == 1:
            node = next(iter(node.users))
            module = module_of(node)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                if flat == isinstance(module, nn.Linear):
                    yield first, capped, module
                break
            if not isinstance(module, PASSES) or (isinstance(module, nn.Flatten) and module.start_dim != 1):
                break
            if isinstance(module, nn.ReLU6):
                parent, _, child = str(node.target).rpartition(".")
                capped.append((root.get_submodule(parent), child))
            flat = flat or isinstance(module, nn.Flatten)


def _by_input(layer: Any, channels: int) -> Tensor:
    """A view of the weight with the input channel first: (channels, ...)."""
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        return weight.reshape(len(weight), channels, -1).movedim(1, 0)
    grouped = weight.reshape(layer.groups, len(weight) // layer.groups, channels // layer.groups, -1)
    return grouped.movedim(2, 1).flatten(0, 1)


def _between(first: Any, second: Any) -> Tensor:
    """s of each channel: sqrt(r1 r2) / r2; 1 where a side has no weight other than zero."""
    r1 = first.weight.flatten(1).abs().amax(1)
    r2 = _by_input(second, len(r1)).flatten(1).abs().amax(1)
    return torch.where(
        (r1 > 0) & (r2 > 0), (r1 * r2).sqrt() / r2.where(r2 > 0, torch.ones_like(r2)), torch.ones_like(r1)
    )


def _by_column(layer: Any, s: Tensor) -> Tensor:
    """The factors of a layer's inputs: of a linear layer behind a flattened image each stands for its places."""
    return s.repeat_interleave(layer.in_features // len(s)) if isinstance(layer, nn.Linear) else s


def _times_inputs(layer: Any, s: Tensor) -> None:
    if isinstance(layer, nn.Linear):
        layer.weight.mul_(_by_column(layer, s))
        return
    inside = len(s) // layer.groups
    by_group = s.reshape(layer.groups, 1, inside).expand(-1, len(layer.weight) // layer.groups, -1)
    layer.weight.mul_(by_group.reshape(len(layer.weight), inside, *[1] * (layer.weight.ndim - 2)))
