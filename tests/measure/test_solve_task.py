"""The task of solving: matrices have their condition, the exact solution is exact, figures are those of a call."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.arithmetic.mixed_precision.iterative_refinement import IterativeRefinement
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.operator import protocol
from taxonomy.measure.tasks import task_of


@pytest.mark.parametrize("condition", [10, 10**6, 10**11])
def test_the_condition_is_that_of_the_setting(condition):
    task = task_of({"n": 40, "condition": condition}, seed=1)
    assert task.name == "solve" and np.linalg.cond(task.constant) == pytest.approx(condition, rel=1e-3)


def test_the_exact_solution_solves_the_equations_in_rationals():
    task = task_of({"n": 8, "condition": 10**9}, seed=0)
    x = [Fraction(float(v)) for v in task.exact()]
    for row, b in zip(task.constant, task.varying, strict=True):
        terms = [Fraction(float(a)) * v for a, v in zip(row, x, strict=True)]
        assert abs(sum(terms) - Fraction(float(b))) <= 2 * sum(map(abs, terms)) * Fraction(1, 2**53)


def quality(operator, condition):
    technique = SimpleNamespace(settings={}, runs="native", baseline="fp64", peers=("scipy", "torch"))
    case = Case(technique, {}, operator, None, {"n": 64, "condition": condition}, 0)
    return protocol.quality(case), protocol.contest(case)


def test_refinement_beside_fp64_solvers():
    values, contest = quality(IterativeRefinement(), 1000)
    own, plain = values["self"], values["baseline"]
    assert own["iterations"] <= 3 and own["bit_operations"] < plain["bit_operations"]
    assert own["max_error"] < 1e-12 > plain["max_error"]
    assert own["backward_error"] < 1e-15 > plain["backward_error"]
    assert own["memory_access"] == plain["memory_access"] == 8 * (64 * 64 + 2 * 64)
    assert isinstance(own["energy"], Missing)
    assert set(contest.contestants) == {"self", "baseline", "scipy", "torch"}
    results = [np.asarray(call()) for call in contest.contestants.values()]
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=1e-8)


def test_giving_up_is_no_number_of_iterations():
    own = quality(IterativeRefinement("tensor-core"), 10**8)[0]["self"]
    assert own["iterations"] == Missing("refinement did not converge; FP64 factors gave the solution")
    assert own["backward_error"] < 1e-15
