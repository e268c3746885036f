"""The convolution theorem, by scipy; and how many multiplications it takes."""

import numpy as np
from scipy.signal import correlate2d

from kernels.implementation.convolution.fft_convolution import FFTConvolution, plain_fft


def test_the_plain_statement_is_scipys_correlation():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((11, 9)), rng.standard_normal((4, 3))
    assert np.allclose(plain_fft(x, w), correlate2d(x, w, "valid"))
    assert np.allclose(FFTConvolution(8).conv2d(x[None, None], w[None, None])[0, 0], plain_fft(x, w), atol=1e-4)


def test_products_do_not_grow_with_the_kernel():
    operator = FFTConvolution(16)
    few, many = (operator.effective_macs(1, 1, (k, k), (64, 64)) / (64 * 64 * k * k) for k in (3, 7))
    assert many < few / 2 and few < 0.45  # 4 * 16 * 9 real multiplications for 14 x 14 results of 9 each
