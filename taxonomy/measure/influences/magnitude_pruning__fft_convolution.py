"""Are a pruned filter's zeros still there in frequency?"""

from __future__ import annotations

import numpy as np

from taxonomy.measure.influences.transformed_zeros import TransformedZeros


def transformed(w: np.ndarray, tile: int) -> np.ndarray:
    """The spectrum of every filter on a tile."""
    return np.fft.rfft2(w.astype(np.float64), (tile, tile))


protocol = TransformedZeros("magnitude-pruning--fft-convolution", ({"tile": 8}, {"tile": 16}), transformed)
