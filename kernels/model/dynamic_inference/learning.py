"""How networks that adapt are taught their part: a trained network goes on learning, with what decides in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["learn"]

BATCH = 64
RATE = 0.005


def learn(
    network: nn.Module, data: Any, loss: Callable[[Tensor, Tensor], Tensor], steps: int, seed: int = 0
) -> list[float]:
    """Minimise a loss over shuffled batches of ``data.train`` by AdamW, its rate falling as a cosine to zero.

    Parameters
    ----------
    network : nn.Module
        Trained in place; left in evaluation mode, without gradients.
    data : datasets.Data
    loss : callable of (x, y)
        The scalar to be minimised on a batch.
    steps : int
        Updates.
    seed : int
        Of the order of the items, and of whatever the loss draws.

    Returns
    -------
    list of float
        The loss of each update.

    Examples
    --------
    >>> import datasets
    >>> network, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), datasets.load("digits")
    >>> losses = learn(network, data, lambda x, y: nn.functional.cross_entropy(network(x), y), steps=40)
    >>> losses[-1] < losses[0]
    True
    """
    x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=RATE)
    losses: list[float] = []
    network.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        while len(losses) < steps:
            for items in torch.randperm(len(y)).split(BATCH)[: steps - len(losses)]:
                for group in optimizer.param_groups:
                    group["lr"] = RATE * (1 + math.cos(math.pi * len(losses) / steps)) / 2
                optimizer.zero_grad()
                value = loss(x[items], y[items])
                value.backward()
                optimizer.step()
                losses.append(value.item())
    network.zero_grad(set_to_none=True)
    network.eval()
    return losses
