"""Head pruning: whole heads of attention, and whole layers, are taken out of a transformer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.sequence_models.attention import (
    CausalAttention,
    attentions,
    continues_text,
    next_token_loss,
    standard,
)

__all__ = ["HeadPruning", "RandomHeadPruning", "every_other", "head_importance", "keep_heads"]


def head_importance(network: nn.Module, x: Tensor, y: Tensor, normalise: bool = True) -> dict[str, Tensor]:
    r"""How much the loss depends on each head, to first order: the slope along a gate on what the head gives.

    .. math:: I_h = \mathbb E_x \left| \frac{\partial L(x)}{\partial \xi_h} \right|
              = \mathbb E_x \left| A_h(x)^\top \frac{\partial L(x)}{\partial A_h(x)} \right|

    with gates \xi_h = 1 on the outputs A_h of the heads.

    Parameters
    ----------
    network : Transformer
        Left as it is.
    x, y : Tensor
        Items to take the mean over.
    normalise : bool
        Divide by the root of the sum of squares of each layer's, so that layers compare.

    Returns
    -------
    dict of str to Tensor of shape (heads,)
        By the attention's name.

    Source
    ------
    Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019, section 4.1.
    """
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            outputs[name] = args[0]
            args[0].retain_grad()

        return keep

    network = copy.deepcopy(network).eval()
    for name, attention in attentions(network):
        attention.o.register_forward_pre_hook(watch(name))
    with torch.enable_grad():
        (next_token_loss(network, x, y) * len(x)).backward()  # the sum of the items' losses: each has its own slope
    found = {}
    for name, attention in attentions(network):
        out = outputs[name]
        assert out.grad is not None
        slopes = (out * out.grad).unflatten(-1, (attention.heads, -1)).sum((1, 3))
        found[name] = slopes.detach().abs().mean(0)
        if normalise:
            found[name] = found[name] / found[name].norm().clamp_min(torch.finfo(x.dtype).tiny)
    return found


def keep_heads(attention: Any, heads: Sequence[int]) -> CausalAttention:
    """A copy of an attention module that has only some of its heads, their rows and columns of the four layers.

    Examples
    --------
    >>> small = keep_heads(CausalAttention(64, heads=4, head_width=16), [0, 3])
    >>> small.heads, small.q.weight.shape, small.o.weight.shape
    (2, torch.Size([32, 64]), torch.Size([64, 32]))
    """
    kept = CausalAttention(attention.o.out_features, len(heads), attention.head_width)
    places = torch.tensor([head * attention.head_width + i for head in heads for i in range(attention.head_width)])
    for name in ("q", "k", "v"):
        getattr(kept, name).weight = nn.Parameter(getattr(attention, name).weight.detach()[places].clone())
    kept.o.weight = nn.Parameter(attention.o.weight.detach()[:, places].clone())
    kept.o.bias = nn.Parameter(attention.o.bias.detach().clone())
    return kept


def every_other(layers: int, keep: int) -> list[int]:
    """Which layers stay, so that those left out lie evenly between them.

    Source: Fan, Grave and Joulin, "Reducing Transformer Depth on Demand with Structured Dropout", 2019,
    the strategy "every other".

    Examples
    --------
    >>> every_other(6, 3), every_other(6, 4), every_other(2, 1)
    ([0, 2, 4], [0, 1, 3, 4], [0])
    """
    return [i * layers // keep for i in range(keep)]


@dataclass(frozen=True)
class HeadPruning:
    r"""Keep the share `keep` of all heads, those on which the loss depends most, and as many layers as `layers` says.

    .. math:: I_h = \mathbb E_x \left| A_h(x)^\top \frac{\partial L(x)}{\partial A_h(x)} \right|

    All layers' heads compete, but each layer keeps one. What is left out is gone: rows of the layers for queries, keys
    and values, columns of the one behind them, and what decoding keeps. Fine-tune what remains.

    Parameters
    ----------
    keep : float
        Share of the heads, 0 < keep <= 1; at least one a layer stays.
    layers : int
        How many layers stay, evenly spaced; 0 for all. Chosen before heads are.
    items : int
        Training windows that importance is the mean over.

    Source
    ------
    Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019, section 4; layers: Fan, Grave and
    Joulin, "Reducing Transformer Depth on Demand with Structured Dropout", 2019.

    Examples
    --------
    >>> import datasets
    >>> workload = datasets.workload("shakespeare-transformer")
    >>> pruned = HeadPruning(keep=0.5).apply(workload.trained(), workload.data())
    >>> sum(attention.heads for _, attention in attentions(pruned))
    4
    """

    keep: float = 0.5
    layers: int = 0
    items: int = 256

    def __post_init__(self) -> None:
        _check(self.keep, self.layers)
        if self.items < 1:
            raise ValueError(f"items: expected at least one, got {self.items}")

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A smaller copy of `network`; fine-tune it to regain accuracy.

        Parameters
        ----------
        network : Transformer
            Trained; left as it is.
        data : datasets.Data
            Its first training windows tell what heads are worth.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, has no attention or one that is not standard, or fewer layers than asked for.
        """
        few = data.train[: self.items]

        def importance(network: nn.Module) -> Mapping[str, Tensor]:
            return head_importance(network, torch.tensor(few.x), torch.tensor(few.y))

        return _pruned(network, self.keep, lambda count: every_other(count, self.layers or count), importance)

    def at_random(self, seed: int) -> RandomHeadPruning:
        """Pruning of the same strength that chooses blindly."""
        return RandomHeadPruning(self.keep, self.layers, seed)


@dataclass(frozen=True)
class RandomHeadPruning:
    """Keep heads, and layers, drawn at random; parameters as for `HeadPruning`."""

    keep: float = 0.5
    layers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.keep, self.layers)

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A smaller copy of `network`."""
        random = torch.Generator().manual_seed(self.seed)

        def which(count: int) -> list[int]:
            return sorted(torch.randperm(count, generator=random)[: self.layers or count].tolist())

        def importance(network: nn.Module) -> Mapping[str, Tensor]:
            return {name: torch.rand(attention.heads, generator=random) for name, attention in attentions(network)}

        return _pruned(network, self.keep, which, importance)


def _pruned(network: nn.Module, keep: float, which: Any, importance: Any) -> nn.Module:
    standard(continues_text(network))
    network = copy.deepcopy(network)
    layers: Any = network.layers
    places = which(len(layers))
    if len(places) > len(layers):
        raise ValueError(f"layers: expected at most {len(layers)}, got {len(places)}")
    network.layers = nn.Sequential(*(layers[place] for place in places))
    worth = importance(network)
    ranked = sorted(((float(w), name, head) for name, all in worth.items() for head, w in enumerate(all)), reverse=True)
    count = max(len(worth), round(keep * len(ranked)))
    kept = {name: [max(range(len(all)), key=lambda head: float(all[head]))] for name, all in worth.items()}
    for _, name, head in ranked:
        if head not in kept[name] and sum(map(len, kept.values())) < count:
            kept[name].append(head)
    for name, heads in kept.items():
        network.set_submodule(name, keep_heads(network.get_submodule(name), sorted(heads)))  # type: ignore[arg-type]
    return network


def _check(keep: float, layers: int) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep: expected 0 < keep <= 1, got {keep}")
    if layers < 0:
        raise ValueError(f"layers: expected none or a positive number, got {layers}")
