"""Are a pruned filter's zeros still there after Winograd's transform?"""

from __future__ import annotations

import numpy as np

from kernels.implementation.convolution.winograd import Winograd
from taxonomy.measure.influences.transformed_zeros import TransformedZeros


def transformed(w: np.ndarray, tile: int) -> np.ndarray:
    """G g Gᵀ of every filter."""
    return Winograd(tile).transformed(w)


protocol = TransformedZeros("magnitude-pruning--winograd", ({"tile": 2}, {"tile": 4}), transformed)
