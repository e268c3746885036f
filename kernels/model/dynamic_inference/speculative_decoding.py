"""Speculative decoding: a small model drafts several characters, the large one verifies them in one pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from kernels import counting
from kernels.model.sequence_models.attention import attentions, cache_numbers, continues_text, next_token_loss
from kernels.model.sequence_models.decoding import Cache, advance

__all__ = ["NGram", "SpeculativeDecoder", "SpeculativeDecoding", "accepted", "correction", "expected_tokens"]

DRAFTS = ("n-gram", "network")


def accepted(p: Tensor, q: Tensor, drafts: Tensor, uniforms: Tensor) -> Tensor:
    r"""How many drafted tokens stand, counted up to the first that falls.

    .. math:: n = \min\left(\left\{ i - 1 : r_i > \frac{p_i(x_i)}{q_i(x_i)} \right\} \cup \{\gamma\}\right)

    Parameters
    ----------
    p, q : Tensor of shape (..., gamma, classes)
        Distributions of the large and of the small model at each place.
    drafts : Tensor of shape (..., gamma), int64
        x, drawn from q.
    uniforms : Tensor of shape (..., gamma)
        r, drawn from 0 to 1.

    Returns
    -------
    Tensor of shape (...), int64

    Source
    ------
    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, algorithm 1.

    Examples
    --------
    >>> p, q = torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([[0.5, 0.5], [0.8, 0.2]])
    >>> accepted(p, q, torch.tensor([0, 0]), torch.tensor([0.9, 0.2]))  # 0.5 / 0.5, then 0.1 / 0.8
    tensor(1)
    """
    ratio = (p.gather(-1, drafts[..., None]) / q.gather(-1, drafts[..., None]))[..., 0]
    return (uniforms <= ratio).long().cumprod(-1).sum(-1)


def correction(p: Tensor, q: Tensor) -> Tensor:
    r"""What the token after the last that stands is drawn from, where a draft fell.

    .. math:: p'(x) = \frac{\max(0, p(x) - q(x))}{\sum_y \max(0, p(y) - q(y))}

    so that what is drafted and stands, min(p, q), and what is drawn instead add up to p exactly.

    Source: Leviathan et al. 2023, section 2.3 and appendix A.1.

    Examples
    --------
    >>> correction(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.2, 0.1]))
    tensor([0.0000, 0.5000, 0.5000])
    """
    left = (p - q).clamp_min(0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp_min(torch.finfo(p.dtype).tiny), p)


def expected_tokens(acceptance: float, gamma: int) -> float:
    r"""Tokens of one pass of the large model, if each draft stands with the same probability by itself.

    .. math:: \frac{1 - \alpha^{\gamma + 1}}{1 - \alpha}

    Source: Leviathan et al. 2023, equation 1.

    Examples
    --------
    >>> expected_tokens(0.5, 3)
    1.875
    """
    return gamma + 1.0 if acceptance == 1 else (1 - acceptance ** (gamma + 1)) / (1 - acceptance)


class NGram(nn.Module):
    """Probabilities of a character after the last few, from counts; shorter contexts smooth longer ones.

    Parameters
    ----------
    text : Tensor of int64
        Codes.
    classes, order : int
        Characters, and how many of them a probability sees, itself included.
    smoothing : float
        How many counts the shorter context weighs as much as.

    Examples
    --------
    >>> draft = NGram(torch.tensor([0, 1, 0, 1, 0, 1]), classes=2, order=2)
    >>> draft(torch.tensor([[1, 0]])).argmax()
    tensor(1)
    """

    def __init__(self, text: Tensor, classes: int, order: int = 3, smoothing: float = 2.0) -> None:
        super().__init__()
        self.order, self.classes = order, classes
        table = torch.full((1, classes), 1 / classes)
        for known in range(order):
            rows = classes**known
            here = torch.zeros(len(text) - known, dtype=torch.long)
            for place in range(known):
                here = here * classes + text[place : len(text) - known + place]
            counts = torch.bincount(here * classes + text[known:], minlength=rows * classes).view(rows, classes)
            shorter = table.repeat(rows // len(table), 1)  # the oldest character of the context comes first
            table = (counts + smoothing * shorter) / (counts.sum(1, keepdim=True) + smoothing)
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, text: Tensor) -> Tensor:
        """Probabilities of what follows texts of shape (batch, steps), (batch, classes)."""
        row = torch.zeros(len(text), dtype=torch.long)
        for place in range(self.order - 1):
            row = row * self.classes + text[:, text.shape[1] - self.order + 1 + place].long()
        return self.table[row]


class SpeculativeDecoder(nn.Module):
    """A large network and what drafts for it.

    Parameters
    ----------
    network : Transformer
    draft : nn.Module
        An `NGram`, or a smaller `Transformer`.
    gamma, seed : int
    """

    def __init__(self, network: Any, draft: Any, gamma: int, seed: int) -> None:
        super().__init__()
        self.network, self.draft, self.gamma, self.seed = network, draft, gamma, seed
        self.tokens = self.steps = 0

    def drafted(self, text: Tensor) -> Tensor:
        """The draft's probabilities of what follows texts, (batch, classes)."""
        return self.draft(text) if isinstance(self.draft, NGram) else self.draft(text).softmax(-1)

    def round(self, x: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draft, verify, correct, once for each of several texts.

        Parameters
        ----------
        x : Tensor of shape (batch, steps)
        random : torch.Generator

        Returns
        -------
        tokens : Tensor of shape (batch, gamma + 1), int64
            New tokens; the first `count` of each row stand.
        count : Tensor of shape (batch,), int64
        """
        text, q = x.long(), []
        for _ in range(self.gamma):
            q.append(self.drafted(text))
            text = torch.cat([text, torch.multinomial(q[-1], 1, generator=random)], 1)
        p = self.network.every(text)[:, -self.gamma - 1 :].softmax(-1)
        return _corrected(p, torch.stack(q, 1), text[:, -self.gamma :], random)

    def generate(self, x: Tensor, steps: int) -> Tensor:
        """Continue one text, (1, length), by so many tokens, with caches; the new tokens alone, (1, steps)."""
        random = torch.Generator().manual_seed(self.seed)
        caches = [Cache() for _ in self.network.layers]
        own = [] if isinstance(self.draft, NGram) else [Cache() for _ in self.draft.layers]
        text = x.long()
        with torch.no_grad():
            while text.shape[1] < x.shape[1] + steps:
                known, q = text.shape[1], []
                for _ in range(self.gamma):
                    if own:
                        q.append(advance(self.draft, text[:, len(own[0]) :], own)[:, -1].softmax(-1))
                    else:
                        q.append(self.draft(text))
                    text = torch.cat([text, torch.multinomial(q[-1], 1, generator=random)], 1)
                p = advance(self.network, text[:, len(caches[0]) :], caches)[:, -self.gamma - 1 :].softmax(-1)
                tokens, count = _corrected(p, torch.stack(q, 1), text[:, known:], random)
                text = torch.cat([text[:, :known], tokens[:, : int(count)]], 1)
                for cache in (*caches, *own):
                    cache.truncate(text.shape[1] - 1)
        return text[:, x.shape[1] : x.shape[1] + steps]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of what follows, those of the large network; and what a token cost in a round from there.

        A round begins gamma + 1 steps into the window, so that no more steps are seen than in training. Its cost is
        shared by all tokens that the batch got, (batch,).
        """
        random = torch.Generator().manual_seed(self.seed)
        context = x[:, self.gamma + 1 :]
        with torch.no_grad():
            _, count = self.round(context, random)
        self.tokens, self.steps = float(count.double().mean()), context.shape[1]  # type: ignore[assignment]
        return self.network(x), torch.full((len(x),), self.macs()["self"] / self.tokens)

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of a round, and (baseline) of one step of the large network, each with full caches."""
        large = _products(self.network, self.steps, self.gamma + 1)
        if not isinstance(self.draft, NGram):  # the first step reads the last token of the round before as well
            large += self.gamma * _products(self.draft, self.steps, 1)
        return {"self": large, "baseline": _products(self.network, self.steps, 1)}

    def figures(self) -> dict[str, dict[str, float]]:
        """Of one token, of the rounds that `forward` last ran, and of plain decoding.

        Read are in a round the large network's parameters and cache once, the draft's once a drafted token; of an
        n-gram one row of probabilities.
        """
        large = 4 * (counting.parameters(self.network) + cache_numbers(self.network, self.steps))
        if not isinstance(self.draft, NGram):
            small = 4 * (counting.parameters(self.draft) + cache_numbers(self.draft, self.steps))
        else:
            small = 4 * self.draft.classes
        return {
            "self": {
                "memory_access": (large + self.gamma * small) / self.tokens,
                "passes_per_token": 1 / self.tokens,
            },
            "baseline": {"macs": self.macs()["baseline"], "memory_access": large, "passes_per_token": 1.0},
        }


def _corrected(p: Tensor, q: Tensor, drafts: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drafts (batch, gamma) of which the first stand, and the token after them; how many tokens that makes."""
    gamma, batch = drafts.shape[1], torch.arange(len(drafts))
    count = accepted(p[:, :gamma], q, drafts, torch.rand(drafts.shape, generator=random))
    after = torch.cat([correction(p[:, :gamma], q), p[:, gamma:]], 1)[batch, count]
    tokens = torch.cat([drafts, drafts[:, :1]], 1)
    tokens[batch, count] = torch.multinomial(after, 1, generator=random)[:, 0]
    return tokens, count + 1


class _Step(nn.Module):
    """Reading new tokens after so many others."""

    def __init__(self, network: Any, steps: int) -> None:
        super().__init__()
        self.network, self.caches = network, [Cache() for _ in network.layers]
        for (_, attention), cache in zip(attentions(network), self.caches, strict=True):
            sizes = (attention.k.out_features, attention.v.out_features)
            cache.append(*(torch.zeros(1, size // attention.head_width, steps, attention.head_width) for size in sizes))

    def forward(self, x: Tensor) -> Tensor:
        return advance(self.network, x, self.caches)


def _products(network: Any, steps: int, new: int) -> int:
    return counting.macs(_Step(network, steps), torch.zeros(1, new))


@lru_cache(maxsize=16)
def _trained(network: Any, data: Any, width: int, seed: int) -> nn.Module:
    """A network of the same class with one narrow layer, after four passes through the training windows.

    Remembered, because drafts of all lengths share it; not to be changed.
    """
    x, y, epochs, batch = torch.tensor(data.train.x), torch.tensor(data.train.y), 4, 16
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        draft = network(data.classes, width=width, layers=1, heads=2, hidden=4 * width)
        optimizer = torch.optim.AdamW(draft.parameters(), weight_decay=0.01)
        steps = epochs * -(-len(y) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.005, steps, pct_start=0.2)
        for _ in range(epochs):
            for items in torch.randperm(len(y)).split(batch):
                optimizer.zero_grad()
                next_token_loss(draft, x[items], y[items]).backward()
                optimizer.step()
                schedule.step()
    return draft


@dataclass(frozen=True)
class SpeculativeDecoding:
    r"""Let a cheap draft run ahead by `gamma` tokens, and keep what the large network would have drawn as well.

    .. math:: P(\text{keep } x) = \min\left(1, \frac{p(x)}{q(x)}\right), \qquad
              \text{else draw from } \frac{\max(0, p - q)}{\sum \max(0, p - q)}

    Whatever the draft q, what comes out is distributed as the large network's p. A good draft makes it faster: one
    pass over gamma + 1 tokens reads the network's weights once, where gamma + 1 steps read them as often.

    Parameters
    ----------
    gamma : int
        Tokens drafted before each verification.
    draft : {"n-gram", "network"}
        Counts of the training text, or a transformer of one narrow layer that is trained on it.
    order : int
        Of the n-gram: tokens that a probability sees, itself included; 1 knows only how frequent each is.
    width : int
        Of the network that drafts, a multiple of four: two heads, and pairs of numbers in each.
    seed : int
        Of what is drawn, and of the network that drafts.

    Source
    ------
    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, algorithm 1;
    n-grams as drafts: section 3.6.

    Examples
    --------
    >>> import datasets
    >>> from datasets.text import decode, encode
    >>> workload = datasets.workload("shakespeare-transformer")
    >>> decoder = SpeculativeDecoding(gamma=3).apply(workload.trained(), workload.data())
    >>> len(decode(decoder.generate(torch.tensor(encode("To be, or not to "))[None], steps=20)[0]))
    20
    """

    gamma: int = 3
    draft: str = "n-gram"
    order: int = 3
    width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draft not in DRAFTS:
            raise ValueError(f"draft: expected one of {', '.join(DRAFTS)}, got {self.draft!r}")
        for name in ("gamma", "order"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, got {getattr(self, name)}")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width: expected a positive multiple of 4, got {self.width}")

    def apply(self, network: nn.Module, data: Any) -> SpeculativeDecoder:
        """The network with its draft, which is made from ``data.train``.

        Parameters
        ----------
        network : Transformer
            Copied, and left as it is.
        data : datasets.Data
            Windows that lie side by side.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, or none that continues text.
        """
        continues_text(network)
        if self.draft == "n-gram":
            text = torch.cat([torch.tensor(data.train.x).flatten().long(), torch.tensor(data.train.y[-1:])])
            draft: nn.Module = NGram(text, data.classes, self.order)
        else:
            kind: Any = type(network)
            draft = copy.deepcopy(_trained(kind, data, self.width, self.seed))
        return SpeculativeDecoder(copy.deepcopy(network), draft, self.gamma, self.seed).eval()
