"""Mixture of experts: many feedforward parts side by side, of which each step runs the few that a gate chooses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.sequence_models.attention import continues_text

__all__ = [
    "FeedforwardSpec", "MixtureOfExperts", "SparseMixture", "balance_loss", "expert_loads", "perplexity_of",
    "top_gates",
]  # fmt: skip


def top_gates(scores: Tensor, count: int) -> Tensor:
    r"""Softmax over the `count` largest scores, zero for the others.

    .. math:: G(x) = \mathrm{softmax}(\mathrm{KeepTopK}(x W_g, k))

    where KeepTopK puts minus infinity in the place of all but the k largest.

    Parameters
    ----------
    scores : Tensor of shape (..., experts)
    count : int
        k.

    Source
    ------
    Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017,
    equations 3 and 5.

    Examples
    --------
    >>> top_gates(torch.tensor([1.0, 3.0, 3.0, 0.0]), 2)
    tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    chosen = scores.topk(count, dim=-1)
    return torch.zeros_like(scores).scatter(-1, chosen.indices, chosen.values.softmax(-1))


def balance_loss(scores: Tensor, gates: Tensor) -> Tensor:
    r"""What keeps the gate from sending all steps to the same experts.

    .. math:: N \sum_{i=1}^{N} f_i P_i, \qquad f_i = \text{share of choices that fell on } i, \quad
              P_i = \text{mean of } \mathrm{softmax}(x W_g)_i

    One if all experts are chosen alike, N / k if always the same.

    Parameters
    ----------
    scores, gates : Tensor of shape (steps, experts)

    Source
    ------
    Fedus, Zoph and Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient
    Sparsity", 2021, equations 4 to 6; with more than one choice a step, f is the share of all choices.

    Examples
    --------
    >>> scores = torch.zeros(4, 2)
    >>> float(balance_loss(scores, torch.eye(2).repeat(2, 1)))
    1.0
    """
    chosen = (gates > 0).to(scores.dtype)
    return scores.shape[-1] * (chosen.sum(0) / chosen.sum() * scores.softmax(-1).mean(0)).sum()


class _WithLoss(torch.autograd.Function):
    """Hands its first argument on; going back, the second receives the gradient of a term of the loss."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, torch.ones((), dtype=gradient.dtype, device=gradient.device)


class SparseMixture(nn.Module):
    """Experts, and the gate that chooses among them for each step.

    In training the balance loss joins the network's on the way back, whatever that is.

    Parameters
    ----------
    spec : FeedforwardSpec
    block : MixtureOfExperts
    """

    def __init__(self, spec: FeedforwardSpec, block: MixtureOfExperts) -> None:
        super().__init__()
        self.block, hidden = block, block.hidden or spec.hidden // block.chosen
        self.gate = nn.Linear(spec.width, block.experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(spec.width, hidden), nn.ReLU(), nn.Linear(hidden, spec.width))
            for _ in range(block.experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        steps = x.flatten(0, -2)
        scores = self.gate(steps)
        gates = top_gates(scores, self.block.chosen)
        out = torch.zeros_like(steps)
        for i, expert in enumerate(self.experts):
            here = gates[:, i].nonzero()[:, 0]
            if len(here):
                out = out.index_add(0, here, gates[here, i, None] * expert(steps[here]))
        if self.training and self.block.balance:
            out = _WithLoss.apply(out, self.block.balance * balance_loss(scores, gates))
        return out.view_as(x)

    def load(self, x: Tensor) -> Tensor:
        """Share of the choices that fall on each expert, (experts,)."""
        with torch.no_grad():
            chosen = top_gates(self.gate(x.flatten(0, -2)), self.block.chosen) > 0
        return chosen.double().mean(0) / self.block.chosen


@dataclass(frozen=True)
class FeedforwardSpec:
    """The feedforward part that a block stands in for: two linear layers, from `width` to `hidden` and back."""

    width: int
    hidden: int

    @classmethod
    def of(cls, part: nn.Sequential) -> FeedforwardSpec:
        """The specification of a part, linear, activation, linear."""
        return cls(part[0].in_features, part[0].out_features)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MixtureOfExperts:
    r"""Put several experts in place of each feedforward part, and run `chosen` of them for each step.

    .. math:: y = \sum_{i} G(x)_i \, E_i(x), \qquad G(x) = \mathrm{softmax}(\mathrm{KeepTopK}(x W_g, k))

    Parameters grow with the experts, products only with those that are chosen.

    Parameters
    ----------
    experts, chosen : int
        N and k.
    hidden : int
        Width inside an expert; 0 for that of the part it stands in for over `chosen`, so that the products stay.
    balance : float
        Weight of the loss that spreads the choices.

    Source
    ------
    Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017, section 2,
    without noise; the balance: Fedus, Zoph and Shazeer, "Switch Transformers", 2021, section 2.2.

    Examples
    --------
    >>> from kernels.counting import macs, parameters
    >>> block, spec = MixtureOfExperts(experts=4, chosen=1), FeedforwardSpec(64, 256)
    >>> mixture, x = block.build(spec), torch.zeros(1, 10, 64)
    >>> macs(mixture, x) - 10 * 64 * 4, parameters(mixture)  # products of one expert of 256, parameters of four
    (327680, 132608)
    """

    experts: int = 4
    chosen: int = 1
    hidden: int = 0
    balance: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.experts:
            raise ValueError(f"chosen: expected 1 to {self.experts}, the experts, got {self.chosen}")
        if self.hidden < 0 or self.balance < 0:
            raise ValueError(f"hidden, balance: expected none or positive numbers, got {self.hidden}, {self.balance}")

    def build(self, spec: FeedforwardSpec) -> nn.Module:
        """An untrained mixture with the input and output shapes of the part."""
        return SparseMixture(spec, self)

    def within(self, network: nn.Module) -> nn.Module:
        """A copy of `network` whose layers' feedforward parts are mixtures, untrained.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, none that continues text, or a layer's part is not linear, activation, linear;
            the message names the layer.
        """
        mixed = copy.deepcopy(continues_text(network))
        for i, layer in enumerate(mixed.layers):
            part = layer.feedforward
            if not (isinstance(part, nn.Sequential) and [type(x) for x in [*part][::2]] == [nn.Linear, nn.Linear]):
                name = f"layers.{i}.feedforward"
                raise ValueError(f"{name}: expected linear, activation, linear, got {type(part).__name__}")
            layer.feedforward = self.build(FeedforwardSpec.of(part))
        return mixed


def expert_loads(network: Any, x: Tensor) -> list[Tensor]:
    """Share of the choices of each expert, layer by layer, on windows of text."""
    loads: list[Tensor] = []
    hooks = [
        layer.feedforward.register_forward_pre_hook(lambda part, args: loads.append(part.load(args[0])))
        for layer in network.layers
    ]
    with torch.no_grad():
        network.every(x)
    for hook in hooks:
        hook.remove()
    return loads


def perplexity_of(load: Tensor) -> float:
    """How many experts a load amounts to: e to its entropy.

    Examples
    --------
    >>> round(perplexity_of(torch.tensor([0.5, 0.5, 0.0])), 6)
    2.0
    """
    return float(torch.special.entr(load).sum().exp())
