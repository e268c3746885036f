"""Strassen's product: seven products of blocks in place of eight, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array
from kernels.implementation.loops import loop_tiling

__all__ = ["Strassen", "StrassenWeights", "plain_strassen"]

LEFT = ((1, 0, 0, 1), (0, 0, 1, 1), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 0, 0), (-1, 0, 1, 0), (0, 1, 0, -1))
RIGHT = ((1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, -1), (-1, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1))
RESULT = ((1, 0, 0, 1, -1, 0, 1), (0, 0, 1, 0, 1, 0, 0), (0, 1, 0, 1, 0, 0, 0), (1, -1, 1, 0, 0, 1, 0))
"""Which blocks (11, 12, 21, 22) of A and B are added for each of seven products, and which products make a block."""


def plain_strassen(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One level for matrices of even sizes: the equations, with numpy's product for the blocks.

    Examples
    --------
    >>> plain_strassen(np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]]))
    array([[19, 22],
           [43, 50]])
    """
    products = [_mixed(left, _blocks(a)) @ _mixed(right, _blocks(b)) for left, right in zip(LEFT, RIGHT, strict=True)]
    c = [_mixed(signs, products) for signs in RESULT]
    return np.block([[c[0], c[1]], [c[2], c[3]]])


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    m, n = x.shape[0] // 2, x.shape[1] // 2
    return [x[:m, :n], x[:m, n:], x[m:, :n], x[m:, n:]]


def _mixed(signs: Any, blocks: list[np.ndarray]) -> np.ndarray:
    """The blocks added with these signs; a single one is itself."""
    total: Any = None
    for sign, block in zip(signs, blocks, strict=True):
        if sign:
            total = (block if sign > 0 else -block) if total is None else (total + block if sign > 0 else total - block)
    return total


@dataclass(frozen=True, eq=False)
class StrassenWeights(Prepared):
    """The constant operand's 7^levels sums of blocks, each packed for the leaf product."""

    leaves: tuple[Any, ...]
    padded: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed sums."""
        return sum(leaf.nbytes for leaf in self.leaves)


@dataclass(frozen=True)
class Strassen(PreparedProduct):
    r"""A matrix product with 7^L leaf products in place of 8^L.

    .. math::
        M_1 &= (A_{11} + A_{22})(B_{11} + B_{22}), & M_2 &= (A_{21} + A_{22}) B_{11}, & M_3 &= A_{11} (B_{12} -
        B_{22}), \\ M_4 &= A_{22} (B_{21} - B_{11}), & M_5 &= (A_{11} + A_{12}) B_{22}, \\ M_6 &= (A_{21} -
        A_{11})(B_{11} + B_{12}), & M_7 &= (A_{12} - A_{22})(B_{21} + B_{22})

    and the four blocks of the result are sums of them. Each level saves an eighth of the multiplications and adds
    fifteen additions of blocks (those of the constant operand are made once), so it pays only for blocks large enough
    that a product takes much longer than passing over them. Sizes that are not divisible are padded with zeros.

    Additions mix numbers of different magnitude: the error grows by about a factor of three a level beside that of
    the plain product, and is bounded for the whole matrix, not for each entry.

    Parameters
    ----------
    levels : int
        L, 0 for the leaf product alone.

    Source: Strassen, "Gaussian elimination is not optimal", Numerische Mathematik 13, 1969; for networks, Cong and
    Xiao, "Minimizing computation in convolutional neural networks", 2014.

    Examples
    --------
    >>> a, b = np.random.default_rng(0).integers(-5, 6, (2, 20, 20))
    >>> np.array_equal(Strassen(levels=2).matmul(a, b), a @ b)
    True
    """

    levels: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.levels, int) and 0 <= self.levels <= 6):
            raise ValueError(f"levels: expected an integer from 0 to 6, got {self.levels!r}")

    def prepare(self, w: Any) -> StrassenWeights:
        """Take the sums of blocks of a constant right operand, and pack them, once.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (k, n)

        Raises
        ------
        TypeError, ValueError
            If `w` is not a matrix of real numbers.
        """
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        padded = self._whole(matrix)
        parts = [padded]
        for _ in range(self.levels):
            parts = [_mixed(signs, _blocks(part)) for part in parts for signs in RIGHT]
        leaf = loop_tiling.LoopTiling()
        leaves = tuple(leaf.prepare(np.ascontiguousarray(part)) for part in parts)
        return StrassenWeights(self, (matrix.shape[0], matrix.shape[1]), leaves, padded.shape)  # type: ignore[arg-type]

    def multiplications(self, m: int, n: int, k: int) -> int:
        """Real multiplications of a product, padding included.

        Examples
        --------
        >>> Strassen(2).multiplications(1024, 1024, 1024) / 1024**3
        0.765625
        """
        unit = 2**self.levels
        return 7**self.levels * -(-m // unit) * -(-n // unit) * -(-k // unit)

    def effective_macs(self, x: np.ndarray, w: np.ndarray) -> int:
        """Multiplications of the product of two matrices."""
        return self.multiplications(len(x), w.shape[1], w.shape[0])

    def _whole(self, x: np.ndarray) -> np.ndarray:
        unit = 2**self.levels
        more = [(0, -size % unit) for size in x.shape]
        return np.pad(x, more) if any(pad for _, pad in more) else x

    def _times(self, x: np.ndarray, w: StrassenWeights) -> np.ndarray:
        m, n = len(x), w.shape[1]
        if not (m and n):
            return np.zeros((m, n), np.float32)
        left = self._whole(x.astype(np.float32, copy=False))
        return np.ascontiguousarray(self._level(left, w.leaves)[:m, :n])

    def _level(self, a: np.ndarray, leaves: tuple[Any, ...]) -> np.ndarray:
        if len(leaves) == 1:
            return loop_tiling.LoopTiling().matmul(a, leaves[0])
        each, blocks = len(leaves) // 7, _blocks(a)
        products = [
            self._level(_mixed(signs, blocks), leaves[i * each : (i + 1) * each]) for i, signs in enumerate(LEFT)
        ]
        m, n = products[0].shape
        c = np.empty((2 * m, 2 * n), np.float32)
        for place, signs in zip(_blocks(c), RESULT, strict=True):
            first = True
            for sign, product in zip(signs, products, strict=True):
                if sign and first:
                    np.multiply(product, np.float32(sign), out=place)
                    first = False
                elif sign:
                    (np.add if sign > 0 else np.subtract)(place, product, out=place)
        return c
