"""The closed form of a fold is what registers do: every array up to 8 x 8, every product up to 12 x 12 x 12."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from kernels.implementation.dataflow.simulate import _still_operand, _still_output, simulate
from kernels.implementation.dataflow.systolic_array import DATAFLOWS

ARRAYS, EXTENTS = 8, 12


@njit(cache=True)
def _all_cycles(a, b, flow, rows, columns, out):
    """Cycles of every product of leading parts of a and b on one array; -1 where what comes out is no product."""
    for m in range(1, out.shape[0] + 1):
        for n in range(1, out.shape[1] + 1):
            for k in range(1, out.shape[2] + 1):
                x, y = np.ascontiguousarray(a[:m, :k]), np.ascontiguousarray(b[:k, :n])
                if flow == 0:
                    product, cycles = _still_operand(y, x, rows, columns)
                elif flow == 1:
                    product, cycles = _still_output(x, y, rows, columns)
                else:
                    xt, yt = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)
                    turned, cycles = _still_operand(xt, yt, rows, columns)
                    product = np.ascontiguousarray(turned.T)
                right = True
                for i in range(m):
                    for j in range(n):
                        total = 0
                        for p in range(k):
                            total += x[i, p] * y[p, j]
                        right &= total == product[i, j]
                out[m - 1, n - 1, k - 1] = cycles if right else -1


@pytest.mark.parametrize("flow", ["weight", "output", "input"])
@pytest.mark.parametrize("rows", range(1, ARRAYS + 1))
def test_the_closed_form_on_every_array_and_product(flow, rows):
    rng = np.random.default_rng(rows)
    a, b = (rng.integers(-9, 10, (EXTENTS, EXTENTS)) for _ in range(2))
    m, n, k = np.meshgrid(*[np.arange(1, EXTENTS + 1)] * 3, indexing="ij")
    on_rows, on_columns, stream = {"weight": (k, n, m), "output": (m, n, k), "input": (k, m, n)}[flow]
    for columns in range(1, ARRAYS + 1):
        found = np.zeros((EXTENTS,) * 3, np.int64)
        _all_cycles(a, b, ("weight", "output", "input").index(flow), rows, columns, found)
        folds = -(-on_rows // rows) * -(-on_columns // columns)
        assert np.array_equal(found, folds * (2 * rows + columns + stream - 2))
        model = DATAFLOWS[flow](rows=rows, columns=columns)
        for shape in ((1, 1, 1), (5, 12, 7), (12, 3, 11)):
            assert model.cost_gemm(*shape).cycles == found[shape[0] - 1, shape[1] - 1, shape[2] - 1]


def test_unknown_dataflow_is_named():
    with pytest.raises(ValueError, match="dataflow: expected weight, output or input, got 'row'"):
        simulate(np.ones((1, 1)), np.ones((1, 1)), 1, 1, "row")
