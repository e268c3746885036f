"""Architecture search without training: networks are scored as they are drawn, and only the first few are trained."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.counting import parameters
from kernels.model.architecture_search.random_search import History, best, evaluated

__all__ = ["PROXIES", "TrainingFreeSearch", "gradient_norm", "jacobian_covariance", "naswot", "synaptic_flow"]


def naswot(network: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    r"""How differently an untrained network's rectifiers answer to different items.

    .. math:: s = \log |\det K_H|, \qquad (K_H)_{ij} = N_A - d_H(c_i, c_j)

    c_i the binary code of item i, a bit for each of N_A rectified units, set where it is active; d_H the Hamming
    distance.

    Parameters
    ----------
    network : nn.Module
        Its rectifiers are `nn.ReLU` modules; left as it is.
    x : Tensor of shape (batch, ...), float32
    y : ignored

    Returns
    -------
    float
        Minus infinity where two items have one code.

    Raises
    ------
    ValueError
        If the network has no rectifier.

    Source: Mellor et al., "Neural Architecture Search without Training", arXiv 2006.04647, equation 2.

    Examples
    --------
    Codes 10 and 01: a kernel of twos and zeros.

    >>> round(naswot(nn.ReLU(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), 6) == round(math.log(4), 6)
    True
    """
    codes: list[Tensor] = []
    copied = copy.deepcopy(network).train()
    for module in copied.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_forward_hook(lambda _, __, out: codes.append((out > 0).flatten(1)))
    with torch.no_grad():
        copied(x)
    if not codes:
        raise ValueError(f"network: expected rectifiers, nn.ReLU modules, got none in {type(network).__name__}")
    c = torch.cat(codes, 1).double()
    return float(torch.linalg.slogdet(c @ c.T + (1 - c) @ (1 - c).T).logabsdet)


def gradient_norm(network: nn.Module, x: Tensor, y: Tensor) -> float:
    r"""Euclidean norms of the loss's gradients with respect to the weights of one batch, summed over the weights.

    .. math:: s = \sum_l \left\| \partial L / \partial \theta_l \right\|_2

    Source: Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", arXiv 2101.08134, section 3.2.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)                        # both classes are as likely: the gradient is ±x/2
    >>> gradient_norm(layer, torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0.5 ** 0.5
    True
    """
    copied = copy.deepcopy(network).train()
    with torch.enable_grad():
        functional.cross_entropy(copied(x), y).backward()
    return float(sum(float(p.grad.double().norm()) for p in copied.parameters() if p.grad is not None and p.ndim > 1))


def synaptic_flow(network: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    r"""How much flows through the network if every weight were positive: the logarithm of the sum of all saliencies.

    .. math:: s = \log \sum_\theta \left| \theta \odot \frac{\partial R}{\partial \theta} \right|, \qquad
        R = \mathbb{1}^\top \Big( \prod_l |\theta_l| \Big) \mathbb{1}

    No item is looked at: the input is ones. Normalization is left out, biases are zero.

    Source: Abdelfattah et al., arXiv 2101.08134, section 3.2, after Tanaka et al. (2020); the logarithm keeps order.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> weights = float(layer.weight.detach().abs().sum())
    >>> math.isclose(math.exp(synaptic_flow(layer, torch.zeros(1, 3))), weights, rel_tol=1e-5)
    True
    """
    copied = copy.deepcopy(network).double().eval()
    for parent in list(copied.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if name.endswith("bias") else parameter.abs())
    with torch.enable_grad():
        copied(torch.ones_like(x[:1], dtype=torch.float64)).sum().backward()
    found = sum(float((p.detach() * p.grad).abs().sum()) for p in copied.parameters() if p.grad is not None)
    return math.log(found) if found > 0 else float("-inf")


def jacobian_covariance(network: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    r"""How uncorrelated the network's derivatives are at different items.

    .. math:: s = -\sum_i \left[ \log(\lambda_i + k) + (\lambda_i + k)^{-1} \right], \qquad k = 10^{-5}

    λ the eigenvalues of the correlation matrix of ∂(sum of outputs)/∂x, a row an item; most, minus the batch, where
    nothing is correlated.

    Source: Abdelfattah et al., arXiv 2101.08134, section 3.2, after the first version of Mellor et al., arXiv
    2006.04647.

    Examples
    --------
    >>> round(jacobian_covariance(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), torch.eye(8))) < -1e4   # all alike
    True
    """
    copied = copy.deepcopy(network).train()
    at = x.clone().requires_grad_(True)
    with torch.enable_grad():
        (jacobian,) = torch.autograd.grad(copied(at).sum(), at)
    correlation = torch.nan_to_num(torch.corrcoef(jacobian.flatten(1).double()))
    values = torch.linalg.eigvalsh(correlation) + 1e-5
    return -float((values.clamp_min(1e-5).log() + 1 / values.clamp_min(1e-5)).sum())


def _size(network: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    """Parameters: what every score should beat."""
    return float(parameters(network))


PROXIES: dict[str, Callable[[nn.Module, Tensor, Tensor], float]] = {
    "naswot": naswot, "gradient-norm": gradient_norm, "synaptic-flow": synaptic_flow,
    "jacobian-covariance": jacobian_covariance, "parameters": _size,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingFreeSearch:
    r"""Score every untrained network on one batch, and train those that score highest, as many as the budget pays for.

    .. math:: a^\ast = \arg\max_{a \in A_n} \mathrm{accuracy}(a), \qquad
        A_n = \text{the } n \text{ networks of highest } s(a)

    With a budget for one training nothing is chosen by training at all, and what is found is whatever scores highest.

    Parameters
    ----------
    proxy : {"naswot", "gradient-norm", "synaptic-flow", "jacobian-covariance", "parameters"}
        s. The last, the number of parameters, is no score of a paper but what each should beat.
    batch : int
        Training items that are looked at.

    Source: Mellor et al., "Neural Architecture Search without Training", arXiv 2006.04647, algorithm 1; Abdelfattah et
    al., "Zero-Cost Proxies for Lightweight NAS", arXiv 2101.08134.

    Examples
    --------
    >>> import datasets
    >>> table = datasets.workload("digits-search")
    >>> narrow = {**table.space, "first": ("identity", "residual"), "second": ("convolution",), "third": ("identity",)}
    >>> found, history = TrainingFreeSearch().search(narrow, table.task(0), budget=12, seed=0)
    >>> found["width"], len(history)
    (16, 1)
    """

    proxy: str = "naswot"
    batch: int = 64

    def __post_init__(self) -> None:
        if self.proxy not in PROXIES:
            raise ValueError(f"proxy: expected one of {', '.join(PROXIES)}, got {self.proxy!r}")
        if not (isinstance(self.batch, int) and self.batch >= 2):
            raise ValueError(f"batch: expected at least 2 items, got {self.batch!r}")

    def scores(self, space: Mapping[str, tuple[Any, ...]], task: Any, seed: int) -> list[float]:
        """s of every network of the space, its choices' values in lexical order; weights are drawn with the seed.

        Parameters
        ----------
        space : mapping of str to tuple
        task : object
            ``task.network(candidate, seed)`` gives an untrained network, ``task.data`` the items.
        seed : int
        """
        return list(_scores(self, tuple(space.items()), task, seed))

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Train in the order of the scores until the budget, or the space, is spent; arguments as of other searches.

        Raises
        ------
        ValueError
            If the budget does not pay for one evaluation.
        """
        every = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
        scores = self.scores(space, task, seed)
        history: History = []
        for at in sorted(range(len(every)), key=lambda at: -scores[at]):
            if not evaluated(task, every[at], budget, history):
                break
        return best(history, budget), history


@lru_cache(maxsize=32)
def _scores(
    search: TrainingFreeSearch, space: tuple[tuple[str, tuple[Any, ...]], ...], task: Any, seed: int
) -> tuple[float, ...]:
    choices = dict(space)
    generator = torch.Generator().manual_seed(seed)
    train = task.data.train
    items = torch.randperm(len(train), generator=generator)[: search.batch].numpy()
    x, y = torch.tensor(train.x[items]), torch.tensor(train.y[items])
    found = []
    for values in itertools.product(*choices.values()):
        network = task.network(dict(zip(choices, values, strict=True)), seed)
        found.append(PROXIES[search.proxy](network, x, y))
    return tuple(found)
