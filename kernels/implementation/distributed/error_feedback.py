"""Error feedback: what compression took from one gradient is added to the next; also of low-rank gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.implementation.distributed.exchange import Exchange, Steps, checked, mean, with_feedback
from kernels.implementation.distributed.gradient_quantization import GradientQuantization

__all__ = ["ErrorFeedback", "orthonormal"]

SIGN = GradientQuantization("sign", bucket=2**31)
"""The signs of a gradient, times its mean magnitude."""


def orthonormal(p: np.ndarray) -> np.ndarray:
    """Columns made orthogonal to those before them, and one long, by Gram and Schmidt; what is nothing stays nothing.

    Parameters
    ----------
    p : ndarray of floats, shape (n, r)

    Examples
    --------
    >>> orthonormal(np.float32([[3.0, 1.0], [4.0, 1.0]])).round(3)
    array([[ 0.6,  0.8],
           [ 0.8, -0.6]], dtype=float32)
    """
    q = np.array(p, np.float64)
    for column in range(q.shape[1]):
        before = np.linalg.norm(q[:, column])
        for _ in range(2):  # once more, or rounding leaves nearly equal columns far from orthogonal
            q[:, column] -= q[:, :column] @ (q[:, :column].T @ q[:, column])
        length = np.linalg.norm(q[:, column])
        q[:, column] = q[:, column] / length if length > 1e-7 * before else 0
    return q.astype(np.float32)


@dataclass(frozen=True)
class ErrorFeedback(Exchange):
    r"""Compress the gradient and the error of the last compression together.

    .. math:: v_t = g_t + e_{t-1}, \qquad m_t = C(v_t), \qquad e_t = v_t - m_t
              \quad\Rightarrow\quad \sum_{t \le T} m_t + e_T = \sum_{t \le T} g_t .

    C is the sign times the mean magnitude, ‖v‖₁ / n · sgn(v), one bit a number and one scale for each parameter; or a
    matrix of low rank: with M the gradient as a matrix, and Q what the last step left,

    .. math:: P = \overline{M Q}, \quad \hat P = \mathrm{orth}(P), \quad Q = \overline{M^\top \hat P}, \quad
              C(M) = \hat P Q^\top,

    where the bar is the mean over workers: they send P, then Q, r (rows + columns) numbers in FP32. The error that a
    worker keeps is against what all go on with. Vectors, and matrices no larger than their factors, are sent
    as they are.

    Parameters
    ----------
    compressor : {"sign", "low-rank"}
    rank : int
        r.
    feedback : bool
        Without it, e = 0: the errors are lost.
    workers, seed : int

    Source: Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019, algorithms 1 and 2; Vogels et al.,
    "PowerSGD", NeurIPS 2019, algorithms 1 and 2; the idea, Seide et al., Interspeech 2014.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> gradient = np.outer(rng.standard_normal(8), rng.standard_normal(8)).astype(np.float32)    # of rank one
    >>> from kernels.implementation.distributed.exchange import in_step
    >>> (found,), sent = in_step([ErrorFeedback("low-rank", rank=1).average(gradient, {})])
    >>> bool(np.allclose(found, gradient, atol=1e-5)), sent
    (True, [64])
    """

    compressor: str = "sign"
    rank: int = 1
    feedback: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compressor not in ("sign", "low-rank"):
            raise ValueError(f"compressor: expected sign or low-rank, got {self.compressor!r}")
        if not (isinstance(self.rank, int) and self.rank >= 1):
            raise ValueError(f"rank: expected a positive integer, got {self.rank!r}")

    def average(self, gradient: np.ndarray, memory: dict[str, Any], key: int = 0) -> Steps:
        """What one worker does with its gradient; its memory holds the error, and Q of the last step."""
        gradient = checked(gradient)
        wanted = with_feedback(gradient, memory)
        if self.compressor == "sign":
            message = SIGN.encode(wanted)
            messages = yield message
            result = mean([SIGN.decode(one, wanted.shape) for one in messages])
            left = wanted - SIGN.decode(message, wanted.shape)
        else:
            rows = wanted.shape[0] if wanted.ndim > 1 else 1
            matrix = wanted.reshape(rows, -1 if wanted.size else 0)
            if self.rank * sum(matrix.shape) >= matrix.size:
                messages = yield wanted.tobytes()
                return mean([_floats(one, wanted.shape) for one in messages])
            start = np.random.default_rng(self.seed).standard_normal((matrix.shape[1], self.rank), np.float32)
            messages = yield (matrix @ memory.get("q", start)).tobytes()
            p = orthonormal(mean([_floats(one, (rows, self.rank)) for one in messages]))
            messages = yield (matrix.T @ p).tobytes()
            q = mean([_floats(one, start.shape) for one in messages])
            result = (p @ q.T).reshape(wanted.shape)
            left = wanted - result
            memory["q"] = q if q.any() else start
        if self.feedback:
            memory["residual"] = left
        return result


def _floats(message: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(message, np.float32).reshape(shape)
