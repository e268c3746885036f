"""Check bits in the spare bit of small INT8 weights: the same symmetric codes, with and without."""

from __future__ import annotations

from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
from taxonomy.measure.influences.faults import Faults

protocol = Faults("int8--zero-space-ecc", ZeroSpaceEcc("int8"), (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
