"""im2col's plain statement is scipy's correlation, and the operator is the plain statement."""

import numpy as np
from scipy.signal import correlate2d

from kernels.implementation.convolution.im2col import Im2col, plain_im2col
from kernels.implementation.convolution.lowered import Geometry, unfold


def test_the_plain_statement_is_scipys_correlation():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 8, 9)), rng.standard_normal((2, 3, 3, 3))
    expected = [sum(correlate2d(x[c], w[o, c], "valid") for c in range(3)) for o in range(2)]
    assert np.allclose(plain_im2col(x, w), expected)
    strided = plain_im2col(x, w, stride=2, padding=1)
    assert np.allclose(strided, plain_im2col(x, w, padding=1)[:, ::2, ::2])
    assert np.allclose(Im2col().conv2d(x[None], w, stride=2, padding=1)[0], strided, atol=1e-4)


def test_patches_take_as_much_memory_as_the_kernel_has_places():
    x = np.ones((4, 16, 16), np.float32)
    assert unfold(x, Geometry((3, 3), (1, 1), (1, 1), (1, 1), (16, 16))).nbytes == 9 * x.nbytes
