r"""Error compensation: keep what an addition rounds away, and give it back.

The error of a floating-point addition is itself a number of the format, and a few more operations of the same precision
find it (for any a and b, whichever is larger):

    x = fl(a + b),   z = fl(x - a),   y = fl(fl(a - fl(x - z)) + fl(b - z)),        x + y = a + b exactly (TwoSum).

The error of a product is one too, fl(a b) - a b, found by one fused multiply-add. What is done with the errors:

    Kahan       y = fl(t - c), s' = fl(s + y), c = fl(fl(s' - s) - y)               c goes into the next addition
    Neumaier    c = fl(c + error of fl(s + t))                                      c is added to the sum at the end
    Dot2        c = fl(c + fl(error of fl(s + t) + error of fl(a b)))               the same, products corrected too

The result of Dot2 is as good as one computed in twice the precision and rounded once, as long as c loses no terms of
its own: in eight bits a long sum of errors is swamped as well, where Kahan's, spent at once, stays small. The same c
beside a weight keeps updates that are too small to change it, until together they do: `update`, which makes it possible
to train with weights of 16 bits only.

Source: W. Kahan, "Further remarks on reducing truncation errors", CACM 1965; T. Ogita, S. M. Rump and S. Oishi,
"Accurate Sum and Dot Product", SIAM Journal on Scientific Computing 26(6), 2005, algorithms 3.1, 4.4 and 5.3 (with a
fused multiply-add); P. Zamirai et al., "Revisiting BFloat16 Training", 2020, the optimizer step with Kahan summation.

Examples
--------
>>> small = np.r_[1.0, np.full(2000, 2.0**-9)].astype(np.float32)           # each half of bfloat16's step at one
>>> [float(ErrorCompensation(method, "bfloat16").sum(small)) for method in ("plain", "kahan", "neumaier")]
[1.0, 4.90625, 1.5]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from kernels.arithmetic.bits import as_float, as_pattern
from kernels.arithmetic.floating_point.grid import nearest
from kernels.arithmetic.mixed_precision.rounded_operands import RoundedOperands, grid_of
from kernels.arrays import as_array, describe, like

__all__ = ["METHODS", "ErrorCompensation", "plain_sum", "two_sum"]

METHODS = ("dot2", "kahan", "neumaier", "plain")
FORMATS = ("fp32", "fp16", "bfloat16")
BLOCK = 1024
"""Sums that are carried along side by side; they and their errors stay in the nearest cache."""


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded sum and its error, six operations in the precision of the arguments (Knuth).

    Examples
    --------
    >>> total, error = two_sum(np.float32(1), np.float32(2**-30))
    >>> total == 1, error == 2**-30
    (np.True_, np.True_)
    """
    x = a + b
    z = x - a
    return x, (a - (x - z)) + (b - z)


def plain_sum(terms: np.ndarray, method: str) -> Any:
    """The equations, in the precision of the terms.

    Parameters
    ----------
    terms : ndarray of shape (n, ...)
        Of any float type whose additions round once: float16, float32, float64, bfloat16 of ml_dtypes.
    method : {"kahan", "neumaier", "plain"}

    Returns
    -------
    ndarray of shape (...), of the type of the terms
    """
    s = c = np.zeros_like(terms[0]) if len(terms) else terms.sum(0)
    for t in terms:
        if method == "kahan":
            y = t - c
            larger = s + y
            s, c = larger, (larger - s) - y
        elif method == "neumaier":
            s, error = two_sum(s, t)
            c = c + error
        else:
            s = s + t
    return s + c if method == "neumaier" else s


@dataclass(frozen=True)
class ErrorCompensation(RoundedOperands):
    """Sums, products of matrices and updates of weights in one format throughout, their rounding errors carried along.

    Parameters
    ----------
    method : {"dot2", "kahan", "neumaier", "plain"}
        "plain" carries nothing: what the others are to be compared with.
    format : {"fp32", "fp16", "bfloat16"}
        Of operands, products, sums and errors: every operation rounds to it, to nearest, ties to even.

    Notes
    -----
    In FP32 these are the machine's own operations, side by side in vectors, and their time is the technique's. The
    other formats are emulated, bit for bit.

    Source: Kahan 1965; Ogita, Rump and Oishi 2005; Zamirai et al. 2020.

    Examples
    --------
    >>> a = np.float32([1e8, 1, -1e8, 1])
    >>> {method: float(ErrorCompensation(method).dot(a, np.ones(4))) for method in METHODS}
    {'dot2': 2.0, 'kahan': 1.0, 'neumaier': 2.0, 'plain': 1.0}
    """

    method: str = "dot2"
    format: str = "fp32"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected {', '.join(METHODS)}, got {self.method!r}")
        if self.format not in FORMATS:
            raise ValueError(f"format: expected {', '.join(FORMATS)}, got {self.format!r}")

    @property
    def _operands(self) -> str:
        return self.format

    def energy(self, macs: int, moved: int) -> float:
        """None is modelled: the table has coefficients for a multiply-add, not for the extra additions of one."""
        raise KeyError("no cited energy for a compensated multiply-add")

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer in a number format runs here as that format: linear layers in FP32.

        Parameters
        ----------
        layer : torch.nn.Module
        format : str or NumberFormat, optional
            FP32 if absent.
        """
        import torch

        name = "fp32" if format is None else format if isinstance(format, str) else type(format).__name__
        return self.format == "fp32" == name.lower() and isinstance(layer, torch.nn.Linear)

    def sum(self, x: Any) -> np.float32:
        """The sum of a vector, from the first number to the last.

        Raises
        ------
        ValueError
            If it is no vector.
        """
        x = as_array(x, "x", ndim=1)
        return self.matmul(np.ones((1, x.size), np.float32), x[:, None])[0, 0]

    def _product(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, turned: bool) -> None:
        sums = {"dot2": _dot2, "kahan": _kahan, "neumaier": _neumaier, "plain": _plain}[self.method]
        sums(a, b, c, grid_of(self.format))

    def update(self, weight: Any, compensation: Any, change: Any) -> tuple[Any, Any]:
        """Add a change to weights stored in the format, with the errors of the updates before: one optimizer step.

        Parameters
        ----------
        weight, compensation, change : array_like or Tensor of one shape
            At the start of a training the compensation is zero. The change is rounded to the format first.

        Returns
        -------
        weight, compensation : ndarray or Tensor of float32
            In the format.

        Raises
        ------
        ValueError
            If the shapes differ, or the method keeps no error that is used again ("neumaier", "dot2").

        Examples
        --------
        >>> kahan, w, c = ErrorCompensation("kahan", "bfloat16"), np.float32([1.0]), np.float32([0.0])
        >>> for _ in range(1000):
        ...     w, c = kahan.update(w, c, np.float32([0.001]))
        >>> float(w[0])
        2.0
        """
        if self.method not in ("kahan", "plain"):
            raise ValueError(f"method: an update is compensated by 'kahan', got {self.method!r}")
        named = {"weight": weight, "compensation": compensation, "change": change}
        w, c, d = (self._rounded(as_array(x, name)) for name, x in named.items())
        for name, x in (("compensation", c), ("change", d)):
            if x.shape != w.shape:
                raise ValueError(f"{name}: expected the shape of weight, {w.shape}, got {describe(x)}")
        new_w, new_c = np.empty_like(w), np.zeros_like(w)
        if self.method == "kahan":
            _update(
                w.reshape(-1), c.reshape(-1), d.reshape(-1), new_w.reshape(-1), new_c.reshape(-1), grid_of(self.format)
            )
        else:
            _add(w.reshape(-1), d.reshape(-1), new_w.reshape(-1), grid_of(self.format))
        return like(new_w, weight), like(new_c, weight)


@intrinsic
def _fma(typingctx, a, b, c):
    """a b + c of float32, rounded once."""
    signature = types.float32(types.float32, types.float32, types.float32)
    return signature, lambda context, builder, sig, args: builder.fma(*args)


# Float32 holds the product of two numbers of 11 bits, and a sum of such numbers rounded to its 24 bits and then to 11
# is the sum rounded once. So each operation is that of float32, rounded again where there is a grid.


@njit(cache=True, nogil=True)
def _fl(x, grid):
    if grid is None:
        return x
    return as_float(nearest(as_pattern(x), grid))


@njit(cache=True, nogil=True)
def _two_sum_error(a, b, x, grid):
    z = _fl(x - a, grid)
    return _fl(_fl(a - _fl(x - z, grid), grid) + _fl(b - z, grid), grid)


# A step adds one product to a sum s whose error so far is e.


@njit(cache=True, nogil=True, inline="always")
def _plain_step(s, e, x, y, grid):
    return _fl(s + _fl(x * y, grid), grid), e


@njit(cache=True, nogil=True, inline="always")
def _kahan_step(s, e, x, y, grid):
    term = _fl(_fl(x * y, grid) - e, grid)
    total = _fl(s + term, grid)
    return total, _fl(_fl(total - s, grid) - term, grid)


@njit(cache=True, nogil=True, inline="always")
def _neumaier_step(s, e, x, y, grid):
    term = _fl(x * y, grid)
    total = _fl(s + term, grid)
    return total, _fl(e + _two_sum_error(s, term, total, grid), grid)


@njit(cache=True, nogil=True, inline="always")
def _dot2_step(s, e, x, y, grid):
    term = _fl(x * y, grid)
    lost = _fl(_fma(x, y, -term), grid)
    total = _fl(s + term, grid)
    return total, _fl(e + _fl(_two_sum_error(s, term, total, grid) + lost, grid), grid)


def _loops(step, finish):
    """The product by one kind of step: sums side by side, one term after the other."""

    def product(a, b, c, grid):
        (m, k), n = a.shape, b.shape[1]
        sums, errors = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        for i in range(m):
            for j in range(0, n, BLOCK):
                size = min(BLOCK, n - j)
                sums[:] = 0
                errors[:] = 0
                first = 0
                if grid is None:  # four terms each time that a sum is loaded; longer steps would not become vectors
                    first = k - k % 4
                    for p in range(0, first, 4):
                        x0, x1, x2, x3 = a[i, p], a[i, p + 1], a[i, p + 2], a[i, p + 3]
                        y0, y1 = b[p, j : j + size], b[p + 1, j : j + size]
                        y2, y3 = b[p + 2, j : j + size], b[p + 3, j : j + size]
                        for t in range(size):
                            s, e = step(sums[t], errors[t], x0, y0[t], grid)
                            s, e = step(s, e, x1, y1[t], grid)
                            s, e = step(s, e, x2, y2[t], grid)
                            sums[t], errors[t] = step(s, e, x3, y3[t], grid)
                for p in range(first, k):
                    x, y = a[i, p], b[p, j : j + size]
                    for t in range(size):
                        sums[t], errors[t] = step(sums[t], errors[t], x, y[t], grid)
                for t in range(size):
                    c[i, j + t] = _fl(sums[t] + errors[t], grid) if finish else sums[t]

    return product


_plain = njit(cache=True, nogil=True)(_loops(_plain_step, False))
_kahan = njit(cache=True, nogil=True)(_loops(_kahan_step, False))
_neumaier = njit(cache=True, nogil=True)(_loops(_neumaier_step, True))
_dot2 = njit(cache=True, nogil=True)(_loops(_dot2_step, True))


@njit(cache=True, nogil=True)
def _update(w, c, change, new_w, new_c, grid):
    for i in range(w.size):
        term = _fl(change[i] - c[i], grid)
        total = _fl(w[i] + term, grid)
        new_c[i] = _fl(_fl(total - w[i], grid) - term, grid)
        new_w[i] = total


@njit(cache=True, nogil=True)
def _add(w, change, new_w, grid):
    for i in range(w.size):
        new_w[i] = _fl(w[i] + change[i], grid)
