"""Gradient quantization: workers send each number of a gradient as one of a few levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from kernels.arithmetic.rounding import random_bits
from kernels.implementation.distributed.exchange import Exchange, checked
from kernels.implementation.distributed.packing import pack, packed_bytes, unpack

__all__ = ["GradientQuantization", "quantized", "signs"]

SCHEMES = ("qsgd", "ternary", "sign")


def quantized(v: np.ndarray, scale: float, levels: int, draws: np.ndarray) -> np.ndarray:
    """A bucket rounded by chance to multiples of scale / levels: the plain statement of QSGD and TernGrad.

    Parameters
    ----------
    v : ndarray of floats
        One bucket.
    scale : float
        Its Euclidean norm (QSGD) or its largest magnitude (TernGrad).
    levels : int
        s; 1 gives -scale, 0 and scale.
    draws : ndarray of floats from 0 up to 1, of the shape of `v`

    Returns
    -------
    ndarray of float64
        On average over draws, `v`.

    Examples
    --------
    >>> quantized(np.array([3.0, -4.0, 0.0]), scale=5.0, levels=1, draws=np.array([0.5, 0.1, 0.9]))
    array([ 5., -0.,  0.])
    """
    if scale == 0:
        return np.zeros(v.shape)
    return scale / levels * np.sign(v) * np.floor(np.abs(v) / scale * levels + draws)


def signs(v: np.ndarray) -> np.ndarray:
    """A bucket as its signs times its mean magnitude; zero counts as positive.

    Examples
    --------
    >>> signs(np.array([3.0, -1.0, 0.0, -4.0]))
    array([ 2., -2.,  2., -2.])
    """
    return np.abs(v).mean() * np.where(v < 0, -1.0, 1.0)


@njit(cache=True, nogil=True)
def _quantize(v, bucket, scales, levels, seed, digits):
    for part in range(scales.size):
        scale = scales[part]
        for i in range(part * bucket, min(v.size, (part + 1) * bucket)):
            if scale > 0:
                draw = np.float64(random_bits(i, seed)) * 2.0**-32
                level = min(np.int64(abs(np.float64(v[i])) / scale * levels + draw), levels)
                digits[i] = levels + (level if v[i] > 0 else -level)
            else:
                digits[i] = levels


@njit(cache=True, nogil=True)
def _dequantize(digits, bucket, scales, zero, step, v):
    for part in range(scales.size):
        for i in range(part * bucket, min(v.size, (part + 1) * bucket)):
            v[i] = scales[part] * (np.float32(digits[i] - zero) / step)


@dataclass(frozen=True)
class GradientQuantization(Exchange):
    r"""Send b-bit gradients: a level for each number, a scale for each bucket.

    With s levels and the bucket's norm, QSGD sends

    .. math:: Q_s(v_i) = \|v\|_2\, \mathrm{sgn}(v_i)\, \frac{1}{s}
              \left\lfloor \frac{s |v_i|}{\|v\|_2} + u_i \right\rfloor, \quad u_i \sim U(0, 1),

    so E[Q(v)] = v and E‖Q(v) − v‖² ≤ min(n / s², √n / s) ‖v‖². TernGrad takes the largest magnitude in place of the
    norm, and one level; its clipping is left out. Signs, times the mean magnitude, are one bit each, and not right on
    average. A message holds a scale of 32 bits for each bucket, then the levels as digits of base 2 s + 1.

    Parameters
    ----------
    scheme : {"qsgd", "ternary", "sign"}
    levels : int
        s of QSGD.
    bucket : int
        Numbers that share a scale.
    workers, seed : int

    Source: Alistarh et al., "QSGD", NeurIPS 2017, section 3.1 and lemma 3.1; Wen et al., "TernGrad", NeurIPS 2017,
    section 3; signs: Seide et al., Interspeech 2014, and Bernstein et al., "signSGD", ICML 2018.

    Examples
    --------
    >>> message = GradientQuantization("ternary").encode(np.float32([2.0, -2.0, 0.0, 0.0, 0.0]))
    >>> len(message), GradientQuantization("ternary").decode(message, (5,))
    (5, array([ 2., -2.,  0.,  0.,  0.], dtype=float32))
    """

    scheme: str = "qsgd"
    levels: int = 7
    bucket: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if not (isinstance(self.levels, int) and 1 <= self.levels <= 2**15):
            raise ValueError(f"levels: expected an integer from 1 to 32768, got {self.levels!r}")
        if not (isinstance(self.bucket, int) and self.bucket >= 1):
            raise ValueError(f"bucket: expected a positive integer, got {self.bucket!r}")

    @property
    def steps(self) -> int:
        """Levels above zero: s, or 1 of TernGrad."""
        return self.levels if self.scheme == "qsgd" else 1

    @property
    def base(self) -> int:
        """How many different levels there are, of both signs."""
        return 2 if self.scheme == "sign" else 2 * self.steps + 1

    def message_bytes(self, count: int) -> int:
        """Bytes of a message of so many numbers.

        Examples
        --------
        >>> [GradientQuantization(scheme).message_bytes(1024) for scheme in ("qsgd", "ternary", "sign")]
        [520, 213, 136]
        """
        return 4 * -(-count // self.bucket) + packed_bytes(count, self.base)

    def scales(self, v: np.ndarray) -> np.ndarray:
        """The scale of each bucket of a flat gradient, float32."""
        whole = v.size // self.bucket * self.bucket
        parts = [v[:whole].reshape(-1, self.bucket)]
        if whole < v.size:
            parts.append(v[None, whole:])
        return np.concatenate([self._scales(part.astype(np.float64)) for part in parts]).astype(np.float32)

    def _scales(self, rows: np.ndarray) -> np.ndarray:
        if self.scheme == "sign":
            return np.abs(rows).mean(1)
        if self.scheme == "ternary":
            return np.abs(rows).max(1)
        return np.sqrt((rows * rows).sum(1))

    def encode(self, gradient: np.ndarray, key: int = 0) -> bytes:
        """The message of a gradient."""
        v = checked(gradient).reshape(-1)
        scales = self.scales(v)
        if self.scheme == "sign":
            digits = (v >= 0).astype(np.int64)
        else:
            digits = np.empty(v.size, np.int64)
            _quantize(v, self.bucket, scales, self.steps, (self.seed + 0x9E3779B9 * key) & 0xFFFFFFFF, digits)
        return scales.tobytes() + pack(digits, self.base)

    def decode(self, message: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The gradient of a message, float32.

        Raises
        ------
        ValueError
            If the message has not the bytes of that shape.
        """
        count = int(np.prod(shape))
        if len(message) != self.message_bytes(count):
            raise ValueError(
                f"message: expected {self.message_bytes(count)} bytes for shape {tuple(shape)}, got {len(message)}"
            )
        buckets = -(-count // self.bucket)
        scales = np.frombuffer(message[: 4 * buckets], np.float32)
        digits, v = unpack(message[4 * buckets :], self.base, count), np.empty(count, np.float32)
        if self.scheme == "sign":
            digits, zero, step = 2 * digits, 1, 1
        else:
            zero = step = self.steps
        _dequantize(digits, self.bucket, scales, zero, np.float32(step), v)
        return v.reshape(shape)
