"""Sparse operands have the pattern and the density that a setting says, and every contestant computes their product."""

import numpy as np
import pytest

from kernels.implementation.sparsity.csr import Csr
from kernels.implementation.sparsity.zero_skipping import ZeroSkipping
from taxonomy.measure.tasks import task_of
from taxonomy.measure.tasks.sparse_product import block_of, sparse_mask

SHAPE = {"m": 64, "k": 48, "n": 5, "density": 0.25}


def test_without_a_pattern_the_operands_are_those_of_earlier_records():
    rng = np.random.default_rng(3)
    sparse = rng.standard_normal((64, 48), np.float32)
    sparse.flat[rng.permutation(64 * 48)[round(0.25 * 64 * 48) :]] = 0
    task = task_of(SHAPE, 3)
    assert np.array_equal(task.constant, sparse)
    assert np.array_equal(task.varying, rng.standard_normal((48, 5), np.float32))


def test_blocks_are_whole_or_zero():
    task = task_of({**SHAPE, "pattern": "16x4"}, 0)
    counts = np.count_nonzero(task.constant.reshape(4, 16, 12, 4), axis=(1, 3))
    assert set(counts.ravel().tolist()) == {0, 64} and np.mean(counts) / 64 == 0.25
    assert block_of({"pattern": "16x4"}) == (16, 4)


def test_two_of_any_four_neighbours():
    task = task_of({**SHAPE, "density": 0.5, "pattern": "2:4"}, 0)
    assert np.all(np.count_nonzero(task.constant.reshape(64, 12, 4), axis=-1) == 2)
    with pytest.raises(ValueError, match=r"two of four are 0.5, not 0.25"):
        task_of({**SHAPE, "pattern": "2:4"}, 0)


def test_skewed_rows_fall_like_one_over_their_rank():
    lengths = sparse_mask({"m": 512, "k": 512, "density": 0.05, "pattern": "skewed"}, np.random.default_rng(0)).sum(1)
    assert np.all(np.diff(lengths) <= 0) and lengths[0] == 512
    assert lengths.sum() == pytest.approx(0.05 * 512 * 512, rel=0.02)
    assert lengths[100] == pytest.approx(2 * lengths[201], abs=2)


def test_rectified_inputs_and_the_products_that_they_leave():
    task = task_of({**SHAPE, "input_density": 0.5}, 0)
    assert np.count_nonzero(task.varying) == 48 * 5 / 2
    assert task.figures(Csr(), None) == {}
    counted = task.figures(ZeroSkipping("both"), None)["effective_macs"]
    assert counted == (task.constant != 0).astype(int).sum(0) @ (task.varying != 0).astype(int).sum(1)


@pytest.mark.parametrize("pattern", [{}, {"pattern": "16x4"}, {"pattern": "skewed"}])
def test_every_contestant_that_takes_part_computes_the_product(pattern):
    task = task_of({**SHAPE, **pattern}, 1)
    for name, peer in task.peers.items():
        try:
            call = peer(task.constant, task.varying, task.shape)
        except (ImportError, ValueError) as error:
            assert name == "mkl" or "not one of blocks" in str(error)
            continue
        assert np.allclose(np.asarray(call()), task.exact(), atol=1e-4), name
