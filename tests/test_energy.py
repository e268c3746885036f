"""The table of energies: its order, and what it refuses."""

from __future__ import annotations

import pytest

from kernels.energy import DRAM_ENERGY, MULTIPLY_ENERGY, OPERAND_BYTES, mac_energy, sram_energy


def test_order_that_every_restatement_of_the_table_keeps():
    assert mac_energy("int8") < mac_energy("fp16") < mac_energy("int32") < mac_energy("fp32")
    assert mac_energy("fp32") < 4 * sram_energy(8) < 4 * sram_energy(32) < 4 * sram_energy(1024) < 4 * DRAM_ENERGY
    assert pytest.approx(640e-12, rel=0.02) == 4 * DRAM_ENERGY  # a word, as it is often restated
    assert MULTIPLY_ENERGY.keys() == OPERAND_BYTES.keys()


@pytest.mark.parametrize("format", ["bfloat16", "posit", ""])
def test_no_coefficient(format):
    with pytest.raises(KeyError, match="no cited energy"):
        mac_energy(format)


def test_memory_beyond_the_table():
    with pytest.raises(KeyError, match="1025"):
        sram_energy(1025)
