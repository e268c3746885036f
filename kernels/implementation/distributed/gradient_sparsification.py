"""Gradient sparsification: workers send the few largest numbers of a gradient, and keep the rest for later."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.implementation.distributed.exchange import Exchange, checked
from kernels.implementation.distributed.packing import pack, packed_bytes, unpack

__all__ = ["GradientSparsification", "largest"]


def largest(v: np.ndarray, k: int) -> np.ndarray:
    """Places of the k numbers of largest magnitude, ascending; of equals the first: the plain statement.

    Examples
    --------
    >>> largest(np.array([1.0, -3.0, 2.0, -2.0]), 2)
    array([1, 2])
    """
    return np.sort(np.argsort(-np.abs(v), kind="stable")[:k])


def _largest(v: np.ndarray, k: int) -> np.ndarray:
    """The same without sorting all."""
    size = np.abs(v)
    if k >= v.size:
        return np.arange(v.size)
    least = np.partition(size, v.size - k)[v.size - k]
    above = np.flatnonzero(size > least)
    equal = np.flatnonzero(size == least)[: k - above.size]
    return np.sort(np.concatenate([above, equal]))


@dataclass(frozen=True)
class GradientSparsification(Exchange):
    r"""Send the share d of a gradient that is largest, as places and values, and add the rest to the next gradient.

    .. math:: v_t = g_t + r_{t-1}, \quad m_t = \mathrm{top}_k(v_t), \quad r_t = v_t - m_t, \quad k = \lceil d n \rceil .

    So nothing is lost, only late. A message holds k places and k values of 32 bits. The places are numbers of base n,
    or a bit for each of the n where that is shorter.

    Parameters
    ----------
    density : float
        d, above 0, at most 1.
    residual : bool
        Whether what is not sent is kept; without, it is lost.
    workers, seed : int

    Source: Aji and Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017, algorithm 1, with a
    threshold for each parameter; Lin et al., "Deep Gradient Compression", ICLR 2018, whose momentum correction and
    warm-up are left out.

    Examples
    --------
    >>> top = GradientSparsification(density=0.5)
    >>> message = top.encode(np.float32([1.0, -3.0, 2.0, 0.5]))
    >>> len(message), top.decode(message, (4,))
    (9, array([ 0., -3.,  2.,  0.], dtype=float32))
    """

    density: float = 0.01
    residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"density: expected a share above 0, at most 1, got {self.density!r}")

    @property
    def keeps_residual(self) -> bool:
        return self.residual

    def count(self, n: int) -> int:
        """How many of n numbers are sent: at least one, if there is one."""
        return min(n, math.ceil(round(self.density * n, 6)))

    def message_bytes(self, n: int) -> int:
        """Bytes of a message of n numbers.

        Examples
        --------
        >>> [GradientSparsification(density).message_bytes(10000) for density in (0.001, 0.01, 0.1, 1.0)]
        [60, 600, 5250, 41250]
        """
        k = self.count(n)
        return 4 * k + min(packed_bytes(k, max(2, n)), packed_bytes(n, 2))

    def encode(self, gradient: np.ndarray, key: int = 0) -> bytes:
        """The message of a gradient."""
        v = checked(gradient).reshape(-1)
        places = _largest(v, self.count(v.size))
        if self._as_bits(v.size):
            bits = np.zeros(v.size, np.int64)
            bits[places] = 1
            return v[places].tobytes() + pack(bits, 2)
        return v[places].tobytes() + pack(places, max(2, v.size))

    def decode(self, message: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The gradient of a message, float32, with zeros where nothing was sent.

        Raises
        ------
        ValueError
            If the message has not the bytes of that shape.
        """
        n = int(np.prod(shape))
        k = self.count(n)
        if len(message) != self.message_bytes(n):
            raise ValueError(f"message: expected {self.message_bytes(n)} bytes for shape {shape}, got {len(message)}")
        values, rest = np.frombuffer(message[: 4 * k], np.float32), message[4 * k :]
        places = np.flatnonzero(unpack(rest, 2, n)) if self._as_bits(n) else unpack(rest, max(2, n), k)
        v = np.zeros(n, np.float32)
        v[places] = values
        return v.reshape(shape)

    def _as_bits(self, n: int) -> bool:
        """Whether a bit for each number is shorter than the places."""
        return packed_bytes(n, 2) < packed_bytes(self.count(n), max(2, n))
