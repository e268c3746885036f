"""Low-precision kernels: many narrow operands in one register, or in one multiplier."""
