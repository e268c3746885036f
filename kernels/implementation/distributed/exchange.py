"""Workers that share a batch and exchange messages in place of gradients; here all in one process, in step.

What a worker does with one gradient is a generator: it yields the bytes that it sends, is sent the messages of all
workers, its own among them, and returns the gradient that all go on with. Whoever drives it decides how bytes travel:
`in_step` hands them around within a process, `over` sends them to other processes. The numbers are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kernels.implementation.training_memory.gradient_checkpointing import lent_buffers

__all__ = ["Exchange", "Sharing", "Steps", "checked", "in_step", "mean", "over", "with_feedback"]

Steps = Generator[bytes, list[bytes], np.ndarray]
"""What one worker does with one gradient."""


def checked(gradient: np.ndarray) -> np.ndarray:
    """A gradient as contiguous float32.

    Raises
    ------
    TypeError, ValueError
        If it holds other things than floats, or an infinity or NaN, of which no message could be made.
    """
    gradient = np.asarray(gradient)
    if not np.issubdtype(gradient.dtype, np.floating):
        raise TypeError(f"gradient: expected floats, got shape {gradient.shape} of dtype {gradient.dtype}")
    gradient = np.ascontiguousarray(gradient, np.float32).reshape(gradient.shape)
    if not np.isfinite(gradient).all():
        raise ValueError(f"gradient: expected finite numbers, got an infinity or NaN in shape {gradient.shape}")
    return gradient


def mean(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of gradients, summed in the order of the workers, so that every worker gets the same to the last bit."""
    total = np.zeros_like(gradients[0])
    for gradient in gradients:
        total += gradient
    return total / np.float32(len(gradients))


def with_feedback(gradient: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
    """A gradient and what of the earlier ones was not sent, from ``memory["residual"]``."""
    return gradient + memory["residual"] if "residual" in memory else gradient


def in_step(workers: Sequence[Steps]) -> tuple[list[np.ndarray], list[int]]:
    """Let workers send and receive until each has its result.

    Returns
    -------
    results : list of ndarray
    sent : list of int
        Bytes of each worker's messages, each counted once.

    Examples
    --------
    >>> def worker(x):
    ...     messages = yield x.tobytes()
    ...     return mean([np.frombuffer(message, np.float32) for message in messages])
    >>> in_step([worker(np.float32([1])), worker(np.float32([3]))])
    ([array([2.], dtype=float32), array([2.], dtype=float32)], [4, 4])
    """
    sent = [0] * len(workers)
    messages: Any = None
    while True:
        said, results = [], []
        for i, worker in enumerate(workers):
            try:
                said.append(worker.send(messages))
                sent[i] += len(said[-1])
            except StopIteration as stop:
                results.append(stop.value)
        if results:
            return results, sent
        messages = said


def over(group: Any, steps: Steps) -> np.ndarray:
    """Let one worker send and receive among real processes, until it has its result.

    Parameters
    ----------
    group : kernels.implementation.distributed.workers.Group
    steps : generator
        What this worker does.
    """
    message = next(steps)
    while True:
        received = group.exchange(torch.from_numpy(np.frombuffer(message, np.uint8).copy()))
        try:
            message = steps.send([one.numpy().tobytes() for one in received])
        except StopIteration as stop:
            return stop.value


class _Apart(torch.autograd.Function):
    """A parameter, once for each worker; on the way back, the gradient that the workers agree on."""

    @staticmethod
    def forward(ctx: Any, sharing: Sharing, name: str, parameter: Tensor) -> Tensor:  # type: ignore[override]
        ctx.sharing, ctx.name = sharing, name
        return parameter.expand(sharing.workers, *parameter.shape)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:  # type: ignore[override]
        return None, None, ctx.sharing.agree(ctx.name, gradients)


class Sharing(nn.Module):
    """A network on workers that take equal parts of each batch; parameters are the network's own.

    The loss of a batch is a mean over its items. A worker's gradient is that of its own items' part of it, times the
    number of workers, so that the workers' mean is the batch's. Batch norm sees a worker's own items, and the running
    statistics are the first worker's, as data-parallel training has it.

    Parameters
    ----------
    network : nn.Module
    exchange : Exchange
        Says what the workers send.
    """

    def __init__(self, network: nn.Module, exchange: Exchange) -> None:
        super().__init__()
        self.network, self.exchange, self.workers = network, exchange, exchange.workers
        self.memories: dict[str, list[dict[str, Any]]] = {
            name: [{} for _ in range(self.workers)] for name, _ in network.named_parameters()
        }
        self.places = {name: place for place, name in enumerate(self.memories)}
        self.step = 0
        self.sent = [0] * self.workers

    @property
    def bytes_sent(self) -> float:
        """Bytes that a worker sent in the last step, its messages to each of the others; the mean over workers."""
        return sum(self.sent) * (self.workers - 1) / self.workers

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return self.network(x)
        self.step += 1
        self.sent = [0] * self.workers
        apart = {name: _Apart.apply(self, name, p) for name, p in self.network.named_parameters() if p.requires_grad}
        results = []
        for worker, items in enumerate(x.tensor_split(self.workers)):
            if len(items):
                own = {name: replicas[worker] for name, replicas in apart.items()}
                if worker:
                    with lent_buffers(self.network):
                        results.append(functional_call(self.network, own, (items,)))
                else:
                    results.append(functional_call(self.network, own, (items,)))
        return torch.cat(results)

    def agree(self, name: str, gradients: Tensor) -> Tensor:
        """The gradient that the workers agree on, of theirs: (workers, \\*shape) to (\\*shape)."""
        key = self.step * len(self.places) + self.places[name]
        shares = gradients.numpy() * np.float32(self.workers)
        steps = [
            self.exchange.average(share, memory, key * self.workers + worker)
            for worker, (share, memory) in enumerate(zip(shares, self.memories[name], strict=True))
        ]
        results, sent = in_step(steps)
        self.sent = [a + b for a, b in zip(self.sent, sent, strict=True)]
        return torch.from_numpy(results[0])


@dataclass(frozen=True)
class Exchange:
    """Data-parallel training whose workers send what `encode` makes of a gradient: here, the gradient itself.

    A technique says `encode` and `decode`; or `average`, where workers send more than once. Every worker's message goes
    to each of the others.

    Parameters
    ----------
    workers : int
    seed : int
        Of the draws.

    Examples
    --------
    >>> network = nn.Linear(3, 2)
    >>> shared = Exchange(workers=2).wrap(network)
    >>> shared(torch.ones(4, 3)).sum().backward()
    >>> shared.bytes_sent, network.bias.grad
    (32.0, tensor([4., 4.]))
    """

    workers: int = field(default=2, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not (isinstance(self.workers, int) and self.workers >= 1):
            raise ValueError(f"workers: expected a positive integer, got {self.workers!r}")

    @property
    def keeps_residual(self) -> bool:
        """Whether a worker adds to its gradient what it has not sent of the earlier ones."""
        return False

    def encode(self, gradient: np.ndarray, key: int = 0) -> bytes:
        """The message of a gradient.

        Parameters
        ----------
        gradient : ndarray of finite floats, any shape
        key : int
            Together with the seed it decides what is drawn.
        """
        return checked(gradient).tobytes()

    def decode(self, message: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The gradient of a message: float32, of the shape that the receiver knows."""
        return np.frombuffer(message, np.float32).reshape(shape)

    def average(self, gradient: np.ndarray, memory: dict[str, Any], key: int = 0) -> Steps:
        """What one worker does with its gradient; its memory is for nobody else.

        Parameters
        ----------
        gradient : ndarray of floats
        memory : dict
            Empty at first; what the worker keeps for the next gradient of this parameter.
        key : int
            Another one for each worker, parameter and step.
        """
        gradient = checked(gradient)
        wanted = with_feedback(gradient, memory)
        message = self.encode(wanted, key)
        messages = yield message
        if self.keeps_residual:
            memory["residual"] = wanted - self.decode(message, gradient.shape)
        return mean([self.decode(one, gradient.shape) for one in messages])

    def gathered_bytes(self, network: nn.Module) -> float:
        """Bytes that a worker sends in a step if gradients go to all others as they are, in FP32."""
        return 4.0 * (self.workers - 1) * sum(p.numel() for p in network.parameters() if p.requires_grad)

    def wrap(self, network: nn.Module) -> Sharing:
        """The network with its own parameters, on workers."""
        return Sharing(network, self)

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe, each batch shared among the workers.

        Parameters
        ----------
        recipe : datasets.Recipe
            Anything whose ``train(network, data)`` trains in place and gives a trace.
        network : nn.Module
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
            The trained copy.
        trace : list of dict
            What the recipe reports, and the bytes that a worker sent in each step.
        """
        network = copy.deepcopy(network)
        shared, sent = self.wrap(network), []
        trace = recipe.train(shared, data, on_step=lambda step, net: sent.append(shared.bytes_sent))
        network.train(False)
        return network, [{**step, "bytes_sent": count} for step, count in zip(trace, sent, strict=True)]
