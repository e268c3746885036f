r"""Iterative refinement: factor a matrix in low precision, and correct the solution with residuals in high precision.

With L U the factors of a matrix A in low precision, x₀ = U⁻¹ L⁻¹ b, and then

    rᵢ = b - A xᵢ                in FP64
    L U dᵢ = rᵢ                  in low precision
    xᵢ₊₁ = xᵢ + dᵢ               in FP64

until ‖rᵢ‖ ≤ √n u ‖A‖ ‖xᵢ‖. The n³/3 multiply-adds of the factorisation are cheap, only 2 n² of each step are not, and
each step takes the error times about κ(A) u_low: it converges where the condition number κ(A) is below 1 / u_low.

Sources: A. Haidar et al., "Harnessing GPU Tensor Cores for Fast FP16 Arithmetic to Speed up Mixed-Precision Iterative
Refinement Solvers", SC 2018; E. Carson and N. Higham, "Accelerating the Solution of Linear Systems by Iterative
Refinement in Three Precisions", 2017; J. Lee et al., "AIR: Iterative refinement acceleration using arbitrary dynamic
precision", 2020, for widths that grow from step to step.

Examples
--------
>>> import numpy as np
>>> a, b = np.array([[4.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
>>> IterativeRefinement().solve(a, b) * 11
array([1., 7.])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numba import njit
from scipy.linalg import lapack, solve_triangular

from kernels.arrays import as_array, describe, is_tensor, like

__all__ = ["Factored", "IterativeRefinement", "Solution", "lu", "refined"]

UNIT = 2.0**-53
"""Unit roundoff of FP64."""
BLOCK = 32
"""Columns that are eliminated before what they leave behind is updated."""
MOST = 30
"""Corrections after which refinement gives up, as LAPACK's dsgesv has it."""
INNER = 50
"""Steps of GMRES in one correction at the most."""
GUARD = 8
"""Bits of a narrow residual that are to survive cancellation, beside those that the next step will gain."""
FAR = 300
"""Exponents beyond which a system is brought to the size of one, so that no product of its numbers overflows."""
WIDTHS = {"fp32": 32, "tensor-core": 16, "fp16": 16, "bfloat16": 16}
SIGNIFICANDS = {"fp32": 24, "tensor-core": 11, "fp16": 11, "bfloat16": 8}
DTYPES = {"fp16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def lu(a: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The plain statement: factors P A = L U by elimination, every product, quotient and difference rounded to `dtype`.

    Parameters
    ----------
    a : ndarray of shape (n, n)
    dtype : dtype
        Of which numpy knows the arithmetic: float16, ml_dtypes.bfloat16, float32, float64.

    Returns
    -------
    factors : ndarray of shape (n, n) and this dtype
        U above and on the diagonal, L below it; the ones on its diagonal are not stored.
    pivots : ndarray of n int32
        Row i was exchanged with row ``pivots[i]``, one after the other.

    Examples
    --------
    >>> factors, pivots = lu(np.array([[1.0, 2.0], [3.0, 4.0]]), np.float16)
    >>> factors
    array([[3.    , 4.    ],
           [0.3333, 0.667 ]], dtype=float16)
    """
    w, n = np.array(a, dtype), len(a)
    pivots = np.arange(n, dtype=np.int32)
    for k in range(n):
        pivots[k] = k + np.argmax(np.abs(w[k:, k]).astype(np.float64))
        w[[k, pivots[k]]] = w[[pivots[k], k]]
        w[k + 1 :, k] /= w[k, k]
        w[k + 1 :, k + 1 :] -= w[k + 1 :, k, None] * w[k, k + 1 :]
    return w, pivots


def refined(a: np.ndarray, b: np.ndarray, dtype: Any, steps: int) -> np.ndarray:
    """The plain statement of the whole: so many steps of refinement, b one vector, the factors in `dtype`.

    Examples
    --------
    >>> a, b = np.array([[3.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    >>> [f"{abs(refined(a, b, np.float16, steps) * 8 - [1, 5]).max():.0e}" for steps in range(4)]
    ['1e-03', '4e-07', '9e-11', '2e-14']
    """
    factors, pivots = lu(a, dtype)
    low = factors.astype(np.float32)

    def solved(r: np.ndarray) -> np.ndarray:
        d = r.astype(np.float32)
        for i, pivot in enumerate(pivots):
            d[[i, pivot]] = d[[pivot, i]]
        d = solve_triangular(low, d, lower=True, unit_diagonal=True, check_finite=False)
        return solve_triangular(low, d, check_finite=False).astype(np.float64)

    x = solved(b)
    for _ in range(steps):
        x = x + solved(b - a @ x)
    return x


@dataclass(frozen=True, eq=False)
class Factored:
    """A matrix beside its factors in low precision.

    Attributes
    ----------
    matrix : ndarray of float64 of shape (n, n)
        Times 2^-exponent.
    factors : ndarray of float32 of shape (n, n)
        Of the transposed matrix where `transposed`, each times `scale`.
    pivots : ndarray of int32
    scale : float
        A power of two that brought the matrix into the range of the low precision.
    exponent : int
        Not zero where the matrix was too large or too small to be computed with.
    """

    matrix: np.ndarray
    factors: np.ndarray
    pivots: np.ndarray
    scale: float
    transposed: bool
    operator: IterativeRefinement
    exponent: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    @property
    def nbytes(self) -> int:
        """The matrix, its factors and their order."""
        return self.matrix.nbytes + self.factors.nbytes + self.pivots.nbytes

    def apply(self, r: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
        """U⁻¹ L⁻¹ r, each column of r brought to the size of one before and back afterwards, as float64."""
        size = np.abs(r).max(0)
        size = np.where(size > 0, size, 1.0)
        solve = lapack.sgetrs if dtype == np.float32 else lapack.dgetrs
        d, _ = solve(self.factors, self.pivots, (r / size).astype(dtype), trans=int(self.transposed))
        return d.astype(np.float64) * (size * self.scale)


@dataclass(frozen=True, eq=False)
class Solution:
    """What refinement came to.

    Attributes
    ----------
    x : ndarray of float64
    iterations : int
        Corrections; with GMRES, its steps.
    converged : bool
        Whether refinement reached the backward error of an FP64 solver; without it, x is that of an FP64 factorisation.
    backward_error : float
        ‖b - A x‖ / (‖A‖ ‖x‖ + ‖b‖), infinity norms, the worst column.
    widths : tuple of int
        Bits of the significand in which each residual was computed.
    macs : dict of int to int
        Multiply-adds by the width in bits of their operands.
    """

    x: np.ndarray
    iterations: int
    converged: bool
    backward_error: float
    widths: tuple[int, ...] = ()
    macs: dict[int, int] = field(default_factory=dict)

    @property
    def bit_operations(self) -> int:
        """Multiply-adds, each times the widths of its two operands."""
        return sum(count * width**2 for width, count in self.macs.items())


@dataclass(frozen=True)
class IterativeRefinement:
    r"""Solve A x = b by factors of low precision and residuals of high precision.

    .. math:: r_i = b - A x_i, \qquad L U d_i = r_i, \qquad x_{i+1} = x_i + d_i

    Parameters
    ----------
    factor : {"fp32", "tensor-core", "fp16", "bfloat16"}
        The precision of L and U. "fp32" is LAPACK's own factorisation. "tensor-core" eliminates blocks of columns in
        FP32 and updates the rest of the matrix by products of FP16 operands that are summed in FP32, as Haidar et al.
        do on tensor cores. In the last two every result is rounded (emulated).
    correction : {"solve", "gmres"}
        Solve L U d = r; or A d = r by GMRES in FP64 with L U as its preconditioner, which bears a larger condition.
    residual : {"fp64", "dynamic"}
        FP64 throughout; or, after AIR, of as many bits as the cancellation of the last residual leads to expect.

    Notes
    -----
    A matrix that refinement does not master is factored in FP64 after all, as LAPACK's dsgesv does; `refine` says so.
    Refinement ends without success when a residual is more than half of the one before it (the rule of LAPACK's
    xGERFS). L and U are applied in FP32 (by GMRES in FP64), whatever they were rounded to.

    A narrow residual of p bits has its operands, products and sums rounded to p bits. Where the last residual was 2^-c
    of ‖A‖ ‖x‖, c bits were cancelled; if the last step gained g bits, the next residual will cancel about c + g, and
    to gain g again, g of what is left must be right: p = c + 2 g and `GUARD` bits more. The rule is ours in detail;
    AIR's idea is to count cancelled bits. Only a residual of 53 bits can end the refinement. It is emulated.

    Source: Haidar et al. 2018, algorithms 1 and 2; Carson and Higham 2017; Lee et al. 2020.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((50, 50)), rng.standard_normal(50)
    >>> for operator in (IterativeRefinement(), IterativeRefinement("tensor-core")):
    ...     solution = operator.refine(a, b)
    ...     print(solution.converged, solution.iterations, np.allclose(solution.x, np.linalg.solve(a, b), atol=0))
    True 2 True
    True 5 True
    """

    factor: str = "fp32"
    correction: str = "solve"
    residual: str = "fp64"

    def __post_init__(self) -> None:
        for name, allowed in {
            "factor": tuple(WIDTHS),
            "correction": ("solve", "gmres"),
            "residual": ("fp64", "dynamic"),
        }.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}: expected {' or '.join(allowed)}, got {value!r}")

    def prepare(self, a: Any) -> Factored:
        """Factor a matrix once, to solve with it again and again.

        Parameters
        ----------
        a : array_like or torch.Tensor of shape (n, n)
            Converted to float64 where it is not.

        Raises
        ------
        ValueError
            If it is not square, or holds infinities or NaN.
        """
        matrix = np.ascontiguousarray(as_array(a, "a", ndim=2, dtype=np.float64))
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a: expected a square matrix, got {describe(a)}")
        if not np.isfinite(matrix).all():
            raise ValueError(f"a: expected finite numbers, got some that are not in {describe(a)}")
        matrix, exponent = _near_one(matrix)
        scale = 2.0 ** -_exponent(matrix)
        if self.factor == "fp32":
            low = np.empty(matrix.shape, np.float32)
            np.multiply(matrix, scale, out=low, casting="same_kind")
            factors, pivots = _lapack_lu(low.T)  # the transpose lies in LAPACK's order already
        elif self.factor == "tensor-core":
            factors, pivots = _blocked_lu((matrix * scale).astype(np.float32))
        else:
            with np.errstate(all="ignore"):
                narrow, pivots = lu(matrix * scale, DTYPES[self.factor])
            factors = narrow.astype(np.float32)
        return Factored(matrix, factors, pivots, scale, self.factor == "fp32", self, exponent)

    def solve(self, a: Any, b: Any) -> Any:
        """x of A x = b in FP64.

        Parameters
        ----------
        a : array_like or torch.Tensor of shape (n, n), or what `prepare` made of it
        b : array_like or torch.Tensor of shape (n,) or (n, k)

        Returns
        -------
        ndarray or torch.Tensor of float64, of the shape of `b`

        Raises
        ------
        ValueError
            If shapes do not fit, or operands hold infinities or NaN.
        numpy.linalg.LinAlgError
            If A is singular in FP64.

        Examples
        --------
        >>> IterativeRefinement().solve([[2.0, 0.0], [0.0, 4.0]], [1.0, 1.0])
        array([0.5 , 0.25])
        """
        return like(self.refine(a, b).x, next((x for x in (a, b) if is_tensor(x)), None))

    def refine(self, a: Any, b: Any) -> Solution:
        """x and how it came about; arguments and errors as for `solve`."""
        if isinstance(a, Factored) and a.operator != self:
            raise ValueError(f"a: a matrix of shape {a.shape} was prepared by {a.operator}, not by {self}")
        system = a if isinstance(a, Factored) else self.prepare(a)
        given = as_array(b, "b", ndim=(1, 2), dtype=np.float64)
        n = len(system.matrix)
        if len(given) != n:
            raise ValueError(f"b: expected {n} rows, as many as a of shape {(n, n)} has, got {describe(b)}")
        if not np.isfinite(given).all():
            raise ValueError(f"b: expected finite numbers, got some that are not in {describe(b)}")
        if not given.size:
            return Solution(given.copy(), 0, True, 0.0)
        columns, exponent = _near_one(given.reshape(n, -1))
        run = _Run(system, columns, self)
        with np.errstate(all="ignore"):  # factors of a matrix that is too hard may be anything
            x = run.refine()
        if x is None:
            x = run.direct()
        _, error = run.errors(x)
        if exponent != system.exponent:
            with np.errstate(over="ignore", under="ignore"):
                x = np.ldexp(x, exponent - system.exponent)
        return Solution(x.reshape(given.shape), run.iterations, run.converged, error, tuple(run.widths), dict(run.macs))

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer runs here: none does, a layer is no system of equations."""
        return False


class _Run:
    """One refinement: what it does, and what it costs."""

    def __init__(self, system: Factored, b: np.ndarray, operator: IterativeRefinement) -> None:
        self.system, self.b, self.operator = system, b, operator
        self.a, self.n, self.k = system.matrix, *b.shape
        self.norm = np.abs(self.a).sum(1).max()
        self.iterations, self.converged = 0, False
        self.widths: list[int] = []
        self.macs: dict[int, int] = {}
        self._factoring()

    def refine(self) -> np.ndarray | None:
        """x, or None where refinement does not get there."""
        low = SIGNIFICANDS[self.operator.factor]
        dynamic = self.operator.residual == "dynamic"
        x = self._corrected(self.b)
        bits, last, cancelled, corrections = low + GUARD if dynamic else 53, np.inf, 0.0, 0
        while np.isfinite(x).all():
            r = self._residual(x, bits)
            size = float(np.max(np.abs(r).max(0) / (self.norm * np.abs(x).max(0) + TINY)))
            if size <= UNIT * np.sqrt(self.n):
                if bits == 53:
                    self.converged = True
                    return x
                bits, last = 53, np.inf  # small, but too narrow to tell
                continue
            if size > last / 2 or corrections == MOST:
                if bits == 53:
                    return None
                bits, last = 53, np.inf  # perhaps only the width was too small
                continue
            if dynamic:
                now = -np.log2(size)
                gained = max(1.0, now - cancelled) if cancelled else low / 2
                cancelled = now
                bits = min(53, max(bits, int(np.ceil(now + 2 * gained)) + GUARD))
            last, corrections = size, corrections + 1
            x = x + (self._gmres(r) if self.operator.correction == "gmres" else self._corrected(r, step=True))
        return None

    def direct(self) -> np.ndarray:
        """By FP64 factors."""
        self._count(64, self.n**3 // 3 + self.n**2 * self.k)
        return np.linalg.solve(self.a, self.b)

    def errors(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """The residual, and the normwise backward error of the worst column."""
        r = self.b - self.a @ x
        scale = self.norm * np.abs(x).max(0) + np.abs(self.b).max(0)
        return r, float(np.max(np.abs(r).max(0) / np.where(scale > 0, scale, 1.0)))

    def _corrected(self, r: np.ndarray, step: bool = False) -> np.ndarray:
        self._count(32, self.n**2 * self.k)
        self.iterations += step
        return self.system.apply(r)

    def _residual(self, x: np.ndarray, bits: int) -> np.ndarray:
        self.widths.append(bits)
        self._count(bits + 11, self.n**2 * self.k)  # a sign, eleven bits of exponent as FP64 has, one bit not stored
        if bits == 53:
            return self.b - self.a @ x
        r = np.empty_like(self.b)
        for column in range(self.k):
            _narrow_residual(self.a, np.ascontiguousarray(x[:, column]), self.b[:, column], bits, r[:, column])
        return r

    def _gmres(self, r: np.ndarray) -> np.ndarray:
        """A d = r to four digits, column by column."""
        double = Factored(
            self.a, self.system.factors.astype(np.float64), self.system.pivots, self.system.scale,
            self.system.transposed, self.operator,
        )  # fmt: skip
        d = np.zeros_like(r)
        for column in range(self.k):
            d[:, column], steps = _gmres(
                lambda v: double.apply(self.a @ v, np.float64),
                double.apply(r[:, column], np.float64),
                1e-4,
                min(INNER, self.n),
            )
            self.iterations += steps
            self._count(64, 2 * self.n**2 * steps + self.n**2 + self.n * steps * (steps + 1))
        return d

    def _factoring(self) -> None:
        n, width = self.n, WIDTHS[self.operator.factor]
        all_ = n**3 // 3
        if self.operator.factor == "tensor-core":  # what is left of each block is updated; the blocks are FP32
            updates = sum((n - k) ** 2 * BLOCK for k in range(BLOCK, n, BLOCK))
            self._count(16, updates)
            self._count(32, all_ - updates)
        else:
            self._count(width, all_)

    def _count(self, width: int, macs: int) -> None:
        self.macs[width] = self.macs.get(width, 0) + macs


TINY = np.finfo(np.float64).tiny


def _exponent(x: np.ndarray) -> int:
    return int(np.frexp(np.abs(x).max(initial=0.0))[1])


def _near_one(x: np.ndarray) -> tuple[np.ndarray, int]:
    """x 2^-e and e: zero, and x itself, unless it is far from the size of one."""
    exponent = _exponent(x)
    if abs(exponent) <= FAR:
        return x, 0
    with np.errstate(under="ignore"):
        return np.ldexp(x, -exponent), exponent


def _lapack_lu(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not a.size:
        return np.asfortranarray(a), np.empty(0, np.int32)
    factors, pivots, _ = lapack.sgetrf(a, overwrite_a=True)
    return factors, pivots


def _blocked_lu(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors in FP32 storage; products that update what is left of a block have FP16 operands and FP32 sums."""
    n = len(w)
    pivots = np.arange(n, dtype=np.int32)
    for k in range(0, n, BLOCK):
        end = min(k + BLOCK, n)
        panel, local, _ = lapack.sgetrf(np.asfortranarray(w[k:, k:end]))
        for i, pivot in enumerate(local):
            if i != pivot:
                w[[k + i, k + pivot]] = w[[k + pivot, k + i]]
        pivots[k:end] = local + k
        w[k:, k:end] = panel
        if end < n:
            right = solve_triangular(
                panel[: end - k], w[k:end, end:], lower=True, unit_diagonal=True, check_finite=False
            )
            w[k:end, end:] = right
            w[end:, end:] -= _half(panel[end - k :]) @ _half(right)
    return np.asfortranarray(w), pivots


def _half(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def _gmres(product: Any, b: np.ndarray, tolerance: float, most: int) -> tuple[np.ndarray, int]:
    """GMRES without restart, from zero, orthogonal by modified Gram-Schmidt: x and the number of its steps."""
    n, size = len(b), float(np.linalg.norm(b))
    if size == 0 or not np.isfinite(size):
        return np.full(n, size), 0
    basis, hessenberg = [b / size], np.zeros((most + 1, most))
    y: Any = ()
    for j in range(most):
        w = product(basis[j])
        for i in range(j + 1):
            hessenberg[i, j] = basis[i] @ w
            w = w - hessenberg[i, j] * basis[i]
        hessenberg[j + 1, j] = np.linalg.norm(w)
        target = np.zeros(j + 2)
        target[0] = size
        h = hessenberg[: j + 2, : j + 1]
        if not np.isfinite(h).all():
            return np.full(n, np.nan), j + 1
        y = np.linalg.lstsq(h, target)[0]
        if hessenberg[j + 1, j] <= UNIT * size or np.linalg.norm(target - h @ y) <= tolerance * size:
            break
        basis.append(w / hessenberg[j + 1, j])
    return np.stack(basis[: len(y)], 1) @ y, len(y)


@njit(cache=True, nogil=True, inline="always")
def _chopped(x, factor):
    """x to the nearest number of p bits, factor = 2^(53 - p) + 1 (Veltkamp's splitting); |x| below 2^900."""
    c = factor * x
    return c - (c - x)


@njit(cache=True, nogil=True)
def _narrow_residual(a, x, b, bits, r):
    factor = 2.0 ** (53 - bits) + 1.0
    narrow = np.empty_like(x)
    for j in range(x.size):
        narrow[j] = _chopped(x[j], factor)
    for i in range(b.size):
        left = _chopped(b[i], factor)
        for j in range(x.size):
            product = _chopped(_chopped(a[i, j], factor) * narrow[j], factor)
            left = _chopped(left - product, factor)
        r[i] = left
