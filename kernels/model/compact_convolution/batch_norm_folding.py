"""Batch norm folding: a scale and a shift of each channel become part of the layer before."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from kernels.model.compact_convolution.branches import folded

__all__ = ["BatchNormFolding"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class BatchNormFolding:
    r"""Put every batch norm into the weights and the bias of the layer whose result it normalizes.

    .. math:: \mathrm{BN}(w * x + b) = w' * x + b', \qquad w' = \frac{\gamma}{\sigma}\, w, \quad
              b' = \beta + \frac{\gamma}{\sigma}\,(b - \mu), \quad \sigma = \sqrt{v + \epsilon}

    In inference mean and variance are constants, so a norm is a linear function of each channel, and of two linear
    functions one is made. The result differs by the rounding of products alone. What the norm read and wrote, all the
    numbers of a map, is neither read nor written any more.

    Source
    ------
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018, section 3.2, equation 14; Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 2.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> folded = BatchNormFolding().apply(network)
    >>> [type(layer).__name__ for layer in folded], folded[0].bias is not None
    (['Conv2d', 'Identity', 'ReLU'], True)
    >>> import torch
    >>> x = torch.randn(2, 1, 8, 8)
    >>> torch.allclose(folded(x), network(x), atol=1e-6)
    True
    """

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network`, in evaluation mode, without batch norms.

        Parameters
        ----------
        network : nn.Module
            Trained. It keeps its form: in a norm's place stands `nn.Identity`.
        data : optional
            Not needed: mean and variance are what the norms have kept.

        Raises
        ------
        TypeError
            If `network` is no module.
        ValueError
            If torch.fx cannot trace it, if it has no batch norm, or if one cannot be folded: the message names it and
            says why.
        """
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        network = copy.deepcopy(network).eval()
        try:
            graph = fx.symbolic_trace(network).graph
        except Exception as error:  # whatever a network's own forward raises
            raise ValueError(f"network: torch.fx cannot trace {type(network).__name__}: {error}") from error
        modules: dict[str, nn.Module] = dict(network.named_modules())
        calls = [node for node in graph.nodes if node.op == "call_module"]
        norms = [node for node in calls if isinstance(modules[str(node.target)], NORMS)]
        if not norms:
            raise ValueError(f"network: expected a batch norm; {type(network).__name__} has none")
        pairs = [(_absorbing(node, calls, modules), str(node.target)) for node in norms]
        for layer, norm in pairs:
            absorb(modules[layer], modules[norm])
            network.set_submodule(norm, nn.Identity())
        return network


def absorb(layer: nn.Module, norm: nn.Module) -> None:
    """Make a layer compute what it and the batch norm behind it computed."""
    weight, bias = folded(layer.weight, norm)  # type: ignore[arg-type]
    if layer.bias is not None:  # it passes the norm too: (gamma / sigma) b
        scaled, _ = folded(layer.bias, norm)  # type: ignore[arg-type]
        bias = bias + scaled
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)  # type: ignore[arg-type]
    layer.bias = nn.Parameter(bias)


def _absorbing(norm: fx.Node, calls: list[fx.Node], modules: dict[str, nn.Module]) -> str:
    """The path of the layer that can take a norm in; or why there is none."""
    name, module = str(norm.target), modules[str(norm.target)]

    def refuse(reason: str) -> ValueError:
        return ValueError(f"network: batch norm {name!r} cannot be folded: {reason}")

    if module.running_mean is None:
        raise refuse("it keeps no mean and variance, and takes those of each batch")
    source = norm.all_input_nodes[0]
    if source.op != "call_module":
        raise refuse(f"its input is {source.name!r}, not the result of a layer")
    layer = str(source.target)
    if not isinstance(modules[layer], LAYERS):
        raise refuse(
            f"its input comes from {layer!r}, a {type(modules[layer]).__name__}, which has no weights to fold into"
        )
    if len(source.users) > 1:
        raise refuse(f"the result of {layer!r} is used elsewhere too")
    if sum(str(node.target) == layer for node in calls) > 1:
        raise refuse(f"{layer!r} is called more than once")
    if sum(str(node.target) == name for node in calls) > 1:
        raise refuse("it is called more than once")
    return layer
