"""The implicit product never holds more patches than its block."""

import tracemalloc

import numpy as np

from kernels.implementation.convolution.im2col import Im2col
from kernels.implementation.convolution.implicit_gemm import ImplicitGEMM


def peak(operator, x, w):
    prepared = operator.prepare(w)
    operator.conv2d(x, prepared, padding=1)
    tracemalloc.start()
    operator.conv2d(x, prepared, padding=1)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_is_that_of_a_block_and_answers_are_im2cols():
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal((1, 32, 64, 64)).astype(np.float32),
        rng.standard_normal((8, 32, 3, 3)).astype(np.float32),
    )
    small, large = peak(ImplicitGEMM(block=64), x, w), peak(Im2col(), x, w)
    patches = 9 * x.nbytes
    assert small < patches / 3 < patches < large
    assert np.allclose(ImplicitGEMM().conv2d(x, w, padding=1), Im2col().conv2d(x, w, padding=1), atol=1e-3)
