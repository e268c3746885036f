"""Federated averaging: clients train on data that stay with them, and a server averages their weights now and then."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.arithmetic.fixed_point.fixed_point import FixedPoint
from kernels.arithmetic.number_format import Encoded
from kernels.implementation.distributed.exchange import checked
from kernels.implementation.distributed.packing import pack, packed_bytes, unpack

__all__ = ["FederatedAveraging", "shares"]


def shares(labels: np.ndarray, clients: int, concentration: float | None, seed: int = 0) -> list[np.ndarray]:
    """Which items each client holds: every item one client's, in uneven shares and classes.

    Parameters
    ----------
    labels : ndarray of integers, shape (items,)
    clients : int
    concentration : float, optional
        Of each class, clients hold shares drawn from a symmetric Dirichlet distribution with this parameter: the
        smaller, the fewer classes a client sees. None deals the items out evenly, whatever their class.
    seed : int

    Returns
    -------
    list of ndarray of int64
        Places of each client's items, ascending; there may be none.

    Examples
    --------
    >>> [len(items) for items in shares(np.arange(100) % 2, 4, concentration=0.3)]
    [43, 29, 9, 19]
    >>> [len(items) for items in shares(np.arange(100) % 2, 4, concentration=None)]
    [25, 25, 25, 25]
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    if concentration is None:
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        items = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet(np.full(clients, concentration)))[:-1]
        for part, some in zip(parts, np.split(items, np.rint(ends * len(items)).astype(int)), strict=True):
            part.append(some)
    return [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]


@dataclass(frozen=True)
class FederatedAveraging:
    r"""In a round every client trains a copy of the weights w on its data, and the server averages what they learnt.

    .. math:: w_{t+1} = w_t + \sum_k \frac{n_k}{n}\, Q\!\left(w_{t+1}^{(k)} - w_t\right)

    n_k of the n items are client k's. With one step on all of a client's items and no Q it is a step of gradient
    descent on all items. A client starts its optimizer anew in each round. With fewer than 32 bits, Q rounds the update
    of each parameter by chance to fixed point, whose point is where the largest number of the update just fits: an
    exponent of one byte, and the codes. Statistics of batch norm are averaged like weights, and sent in FP32.

    Parameters
    ----------
    clients : int
    local_epochs : int
        Passes through a client's data in a round. Rounds are the recipe's epochs over this, rounded up.
    concentration : float, optional
        How clients differ, as in `shares`.
    bits : int
        Of a number of an update, 2 to 16, or 32 for FP32.
    seed : int
        Of who holds what, and of the rounding.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1 with all clients in every round; Q: Reisizadeh et al., "FedPAQ", AISTATS 2020, algorithm 1.

    Examples
    --------
    >>> federated = FederatedAveraging(bits=4)
    >>> message = federated.encode(np.float32([0.5, -1.0, 0.25, 0.0]))
    >>> len(message), federated.decode(message, (4,))
    (3, array([ 0.5 , -1.  ,  0.25,  0.  ], dtype=float32))
    """

    clients: int = 10
    local_epochs: int = 1
    concentration: float | None = 1.0
    bits: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clients", "local_epochs"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if self.concentration is not None and not self.concentration > 0:
            raise ValueError(f"concentration: expected a positive number or None, got {self.concentration!r}")
        if self.bits not in (*range(2, 17), 32):
            raise ValueError(f"bits: expected 2 to 16, or 32, got {self.bits!r}")

    def encode(self, update: np.ndarray, key: int = 0) -> bytes:
        """The message of a parameter's update.

        Parameters
        ----------
        update : ndarray of finite floats
        key : int
            Together with the seed it decides what is drawn.
        """
        update = checked(update)
        if self.bits == 32:
            return update.tobytes()
        exponent = self._exponent(float(np.abs(update).max(initial=0)))
        codes = self._format(exponent, key).encode(update.reshape(-1)).codes
        return np.int8(exponent).tobytes() + pack(codes.astype(np.int64), 2**self.bits)

    def decode(self, message: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The update of a message: float32."""
        count = math.prod(shape)
        if len(message) != self.message_bytes(count):
            raise ValueError(f"message: expected {self.message_bytes(count)} bytes for {shape}, got {len(message)}")
        if self.bits == 32:
            return np.frombuffer(message, np.float32).reshape(shape)
        codes = unpack(message[1:], 2**self.bits, count).astype(np.uint8 if self.bits <= 8 else np.uint16)
        form = self._format(int(np.frombuffer(message[:1], np.int8)[0]), 0)
        return np.asarray(form.decode(Encoded(codes, None, (count,))), np.float32).reshape(shape)

    def message_bytes(self, count: int) -> int:
        """Bytes of a message of so many numbers.

        Examples
        --------
        >>> [FederatedAveraging(bits=bits).message_bytes(1000) for bits in (32, 8, 4, 2)]
        [4000, 1001, 501, 251]
        """
        return 4 * count if self.bits == 32 else 1 + packed_bytes(count, 2**self.bits)

    def _exponent(self, largest: float) -> int:
        """The fraction bits with which the largest magnitude is still below the largest code; at most 60."""
        top = 2 ** (self.bits - 1) - 1
        exponent = 60 if largest == 0 else min(60, math.floor(math.log2(top / largest)))
        return exponent - 1 if largest * 2.0**exponent > top else exponent

    def _format(self, exponent: int, key: int) -> FixedPoint:
        seed = (self.seed + 0x9E3779B9 * key) & 0x7FFFFFFF
        return FixedPoint(self.bits - exponent, exponent, rounding="stochastic", seed=seed)

    def rounds(
        self, recipe: Any, network: nn.Module, data: Any, parts: Sequence[np.ndarray] | None = None
    ) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        """Round by round, the server's network and what the round was: see `run`.

        Parameters
        ----------
        recipe : datasets.Recipe
            Its batch, loss and optimizer are each client's; its rate falls from round to round as a cosine, unless its
            schedule is constant.
        network : nn.Module
            Trained in place, and yielded.
        data : datasets.Data
        parts : sequence of ndarray, optional
            The places of each client's items; by default those of `shares`.
        """
        if parts is None:
            parts = shares(data.train.y, self.clients, self.concentration, self.seed)
        parts = [part for part in parts if len(part)]
        items, count = sum(len(part) for part in parts), -(-recipe.epochs // self.local_epochs)
        for turn in range(count):
            share = 1.0 if recipe.schedule == "constant" else (1 + math.cos(math.pi * turn / count)) / 2
            before = _state(network)
            after = {name: tensor.astype(np.float64) for name, tensor in before.items()}
            sent, steps, losses = 0, 0, []
            for client, part in enumerate(parts):
                own, key = copy.deepcopy(network), turn * len(parts) + client
                local = replace(
                    recipe, epochs=self.local_epochs, schedule="constant", learning_rate=recipe.learning_rate * share,
                    seed=recipe.seed * 1_000_003 + key,
                )  # fmt: skip
                trace = local.train(own, replace(data, train=data.train[part]))
                steps += len(trace)
                losses.append(trace[-1]["loss"])
                for place, (name, tensor) in enumerate(_state(own).items()):
                    learned = self if name in dict(network.named_parameters()) else PLAIN
                    message = learned.encode(tensor - before[name], key * len(before) + place)
                    sent += len(message)
                    after[name] += len(part) / items * learned.decode(message, tensor.shape)
            state = network.state_dict()
            for name, tensor in after.items():
                state[name].copy_(torch.from_numpy(tensor))
            network.train(False)
            yield network, {
                "round": turn, "loss": float(np.mean(losses)),
                "bytes_sent": sent / len(parts), "steps": steps / len(parts),
            }  # fmt: skip

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe, on data that stay with the clients.

        Returns
        -------
        network : nn.Module
            The trained copy.
        trace : list of dict
            Of each round: the clients' mean loss, and the mean over clients of the bytes that one sends to the server
            and of the steps that it takes.
        """
        network = copy.deepcopy(network)
        trace = [row for _, row in self.rounds(recipe, network, data)]
        return network.train(False), trace


PLAIN = FederatedAveraging()


def _state(network: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all floats that the network keeps, parameters and buffers."""
    return {
        name: tensor.detach().numpy().copy()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }
