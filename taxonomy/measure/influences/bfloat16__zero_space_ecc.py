"""Check bits in the spare bits of bfloat16 weights."""

from __future__ import annotations

from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
from taxonomy.measure.influences.faults import Faults

RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)

protocol = Faults("bfloat16--zero-space-ecc", ZeroSpaceEcc("bfloat16"), RATES)
