"""The propensity test: its null distribution, its power, its tables, and malformed logs.

Seeds are fixed. Bounds state how often a fresh seed would trip them on correct code.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from croupier.offline.propensity import (
    PmfViolations,
    PropensityTest,
    pmf_violations,
    propensity_test,
)
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]


def draw(rng: np.random.Generator, pmf: FloatArray) -> IntArray:
    """One choice per row of a pmf of shape (n, K)."""
    below = (np.cumsum(pmf, axis=1) < rng.random((len(pmf), 1))).sum(axis=1)
    return np.asarray(np.minimum(below, pmf.shape[1] - 1), dtype=np.int64)


def epsilon_greedy(rng: np.random.Generator, n: int, k: int, epsilon: float) -> FloatArray:
    pmf = np.full((n, k), epsilon / k)
    pmf[np.arange(n), rng.integers(k, size=n)] += 1.0 - epsilon
    return pmf


def dirichlet(rng: np.random.Generator, n: int, k: int, concentration: float) -> FloatArray:
    return rng.dirichlet(np.full(k, concentration), n)


LOGS: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "epsilon greedy": lambda rng, n: epsilon_greedy(rng, n, 10, 0.1),
    "dirichlet": lambda rng, n: dirichlet(rng, n, 5, 0.5),
    "skewed": lambda rng, n: dirichlet(rng, n, 20, 0.05),
}


def adaptive_log(rng: np.random.Generator, n: int) -> tuple[FloatArray, IntArray, IntArray]:
    """Five generations, each greedy for what the one before happened to choose most."""
    pmfs, choices = [], []
    pmf = np.full(6, 1.0 / 6.0)
    for _ in range(5):
        rows = np.tile(pmf, (n // 5, 1))
        chosen = draw(rng, rows)
        counts = np.bincount(chosen, minlength=6)
        pmf = 0.05 + 0.7 * (counts == counts.max()) / np.count_nonzero(counts == counts.max())
        pmfs.append(rows)
        choices.append(chosen)
    return np.vstack(pmfs), np.concatenate(choices), np.repeat(np.arange(5), n // 5)


def uniformity(p_values: list[float]) -> float:
    return float(stats.kstest(p_values, "uniform").pvalue)


# --- the null -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_p_values_are_uniform_for_correct_propensities(name: str) -> None:
    """A fresh seed fails once in 1,000."""
    rng = np.random.default_rng(61)
    tests = []
    for _ in range(300):
        pmf = LOGS[name](rng, 1200)
        tests.append(propensity_test(pmf, draw(rng, pmf)))
    assert uniformity([test.p_value for test in tests]) > 1e-3
    # At most 1 % of 300 are to be rejected; 12 or more come by chance once in 10,000.
    assert sum(test.rejects(0.01) for test in tests) < 12


def test_p_values_are_uniform_where_pmfs_depend_on_earlier_draws() -> None:
    """A fresh seed fails once in 1,000."""
    rng = np.random.default_rng(62)
    p_values = []
    for _ in range(200):
        pmf, chosen, generations = adaptive_log(rng, 2000)
        p_values.append(propensity_test(pmf, chosen, generations=generations).p_value)
    assert uniformity(p_values) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGS)
def test_the_level_holds_far_out(name: str) -> None:
    """Share of false alarms at .05, .01 and .001 over 2,000 logs, each within 4.5 sd above."""
    rng = np.random.default_rng(63)
    p_values = []
    for _ in range(2000):
        pmf = LOGS[name](rng, 1000)
        generations = np.arange(1000) // 250
        p_values.append(propensity_test(pmf, draw(rng, pmf), generations=generations).p_value)
    for level in (0.05, 0.01, 0.001):
        limit = level + 4.5 * np.sqrt(level * (1.0 - level) / 2000)
        assert np.mean(np.array(p_values) <= level) < limit, level


def test_small_logs_do_not_raise_false_alarms() -> None:
    """Few rows, many actions: next to nothing is left to test, and that is what dof says."""
    rng = np.random.default_rng(64)
    alarms = 0
    for _ in range(300):
        pmf = epsilon_greedy(rng, 60, 30, 0.2)
        test = propensity_test(pmf, draw(rng, pmf))
        assert test.dof <= 3
        alarms += test.p_value < 0.01
    assert alarms <= stats.binom.isf(1e-4, 300, 0.015)


# --- power ----------------------------------------------------------------------------------------


def wrong_draws(pmf: FloatArray) -> FloatArray:
    """What is really drawn from: the logged pmf with 2 % of uniform traffic."""
    return np.asarray(0.98 * pmf + 0.02 / pmf.shape[1], dtype=np.float64)


def overstated(pmf: FloatArray) -> FloatArray:
    """What is logged: the greedy action's probability times 1.05, the others' less."""
    rows = np.arange(len(pmf))
    greedy = pmf.argmax(axis=1)
    before = pmf[rows, greedy]
    after = np.minimum(1.05 * before, 0.999)
    logged: FloatArray = pmf * ((1.0 - after) / np.maximum(1.0 - before, 1e-12))[:, None]
    logged[rows, greedy] = after
    return logged


@pytest.mark.parametrize("name", ["epsilon greedy", "dirichlet"])
def test_two_percent_of_uniform_traffic_is_found(name: str) -> None:
    """Rejected in 20 of 20 logs of 20,000 rows at .01."""
    rng = np.random.default_rng(65)
    for _ in range(20):
        pmf = LOGS[name](rng, 20_000)
        assert propensity_test(pmf, draw(rng, wrong_draws(pmf))).p_value < 0.01


@pytest.mark.parametrize("epsilon", [0.1, 0.3, 0.5])
def test_a_propensity_wrong_by_a_twentieth_is_found(epsilon: float) -> None:
    """Rejected in 20 of 20 logs of 20,000 rows at .01, whichever action is the greedy one."""
    rng = np.random.default_rng(66)
    for _ in range(20):
        pmf = epsilon_greedy(rng, 20_000, 10, epsilon)
        assert propensity_test(overstated(pmf), draw(rng, pmf)).p_value < 0.01


def test_an_error_that_is_alike_everywhere_is_found_among_many_cells() -> None:
    """Fifty generations of ten actions: the bins find in 10 of 10 what 450 cells would hide."""
    rng = np.random.default_rng(74)
    generations = np.repeat(np.arange(50), 400)
    hidden = 0
    for _ in range(10):
        pmf = epsilon_greedy(rng, 20_000, 10, 0.5)
        test = propensity_test(overstated(pmf), draw(rng, pmf), generations=generations)
        assert test.rejects(0.01)
        assert test.bin_dof < 5
        hidden += test.p_value > 0.01
    assert hidden >= 5


def test_the_tables_say_where_it_is() -> None:
    """One generation of four and one action of five draws too often."""
    rng = np.random.default_rng(67)
    pmf = dirichlet(rng, 20_000, 5, 5.0)
    generations = np.repeat([3, 5, 7, 9], 5000)
    truth = pmf.copy()
    truth[generations == 7, 2] *= 1.5
    truth /= truth.sum(axis=1, keepdims=True)
    test = propensity_test(pmf, draw(rng, truth), generations=generations)
    assert test.p_value < 1e-6
    worst = max(test.cells, key=lambda cell: cell.z)
    assert (worst.generation, worst.action) == (7, 2)
    assert worst.observed - worst.expected > 200
    by_generation = {check.generation: check for check in test.generations}
    assert [by_generation[number].n for number in (3, 5, 7, 9)] == [5000] * 4
    assert by_generation[7].p_value < 1e-6
    assert all(by_generation[number].p_value > 1e-3 for number in (3, 5, 9))


def test_the_bins_are_a_calibration_table() -> None:
    rng = np.random.default_rng(68)
    pmf = epsilon_greedy(rng, 20_000, 4, 0.4)
    test = propensity_test(overstated(pmf), draw(rng, pmf))
    assert test.bins[0].low == 0.0
    assert test.bins[-1].high == 1.0
    assert all(
        left.high == right.low for left, right in zip(test.bins, test.bins[1:], strict=False)
    )
    assert sum(each.expected for each in test.bins) == pytest.approx(20_000)
    assert sum(each.observed for each in test.bins) == 20_000
    assert test.bins[-1].z < -4.0 < 4.0 < test.bins[0].z


# --- the statistic --------------------------------------------------------------------------------


def test_two_actions_and_one_pmf_give_the_binomial_z() -> None:
    """With the same pmf in every row there is one direction, z squared."""
    chosen = np.repeat([0, 1], [330, 670])
    test = propensity_test(np.tile([0.3, 0.7], (1000, 1)), chosen)
    z = (330 - 300) / np.sqrt(1000 * 0.3 * 0.7)
    assert test.statistic == pytest.approx(z**2)
    assert test.dof == 1
    assert test.p_value == pytest.approx(stats.chi2.sf(z**2, 1))
    assert test.cells[0].z == pytest.approx(z)
    assert test.bins[0].z == pytest.approx(z)


def test_one_pmf_gives_pearsons_statistic() -> None:
    pmf = np.array([0.5, 0.3, 0.15, 0.05])
    counts = np.array([480, 310, 140, 70])
    test = propensity_test(np.tile(pmf, (1000, 1)), np.repeat(np.arange(4), counts))
    pearson = stats.chisquare(counts, 1000 * pmf)
    assert test.statistic == pytest.approx(float(pearson.statistic))
    assert test.dof == 3
    assert test.p_value == pytest.approx(float(pearson.pvalue))


def test_the_statistic_is_the_quadratic_form_of_its_definition() -> None:
    """Row by row, with dense matrices and a pseudo-inverse, two generations and no rare cell."""
    rng = np.random.default_rng(69)
    pmf = dirichlet(rng, 600, 3, 1.0)
    generations = np.repeat([0, 1], 300)
    chosen = draw(rng, pmf)
    test = propensity_test(pmf, chosen, generations=generations)
    edges = [bin_.high for bin_ in test.bins]
    deviation = np.zeros(6 + len(edges))
    covariance = np.zeros((len(deviation), len(deviation)))
    for row, generation, choice in zip(pmf, generations, chosen, strict=True):
        features = np.zeros((3, len(deviation)))
        features[np.arange(3), 3 * generation + np.arange(3)] = 1.0
        features[np.arange(3), 6 + np.searchsorted(edges, row)] = 1.0
        mean = row @ features
        deviation += features[choice] - mean
        covariance += features.T @ np.diag(row) @ features - np.outer(mean, mean)
    expected = deviation @ np.linalg.pinv(covariance, rcond=1e-10) @ deviation
    assert test.dof == np.linalg.matrix_rank(covariance, tol=1e-6)
    assert test.statistic == pytest.approx(float(expected))


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_neither_the_order_of_rows_nor_of_actions_matters(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(2, 6))
    pmf = dirichlet(rng, 200, k, 1.0)
    chosen = draw(rng, pmf)
    actions = np.tile(np.arange(k), (200, 1))
    rows, columns = rng.permutation(200), rng.permutation(k)
    first = propensity_test(pmf, chosen, actions=actions)
    second = propensity_test(
        pmf[rows][:, columns],
        np.argsort(columns)[chosen[rows]],
        actions=actions[rows][:, columns],
    )
    assert second.dof == first.dof
    assert second.statistic == pytest.approx(first.statistic, rel=1e-6, abs=1e-9)


def ragged(
    rng: np.random.Generator, n: int
) -> tuple[FloatArray, IntArray, IntArray, IntArray, FloatArray]:
    """Rows with 1 to 6 of 40 actions: flat pmf, chosen, offsets, actions, propensity."""
    sizes = rng.integers(1, 7, size=n)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    pmfs = [rng.dirichlet(np.ones(size)) for size in sizes]
    chosen = np.array([rng.choice(len(pmf), p=pmf) for pmf in pmfs])
    actions = np.concatenate([rng.choice(40, size, replace=False) for size in sizes])
    propensity = np.array([pmf[index] for pmf, index in zip(pmfs, chosen, strict=True)])
    return np.concatenate(pmfs), chosen, offsets, actions, propensity


def test_ragged_action_sets() -> None:
    pmf, chosen, offsets, actions, propensity = ragged(np.random.default_rng(70), 5000)
    # Codes may be anything: they are names.
    codes = 10**12 * actions - 7
    test = propensity_test(pmf, chosen, offsets=offsets, actions=codes)
    assert test.p_value > 1e-3
    assert {cell.action for cell in test.cells} == set(codes.tolist())
    assert sum(cell.observed for cell in test.cells) == test.n == 5000
    assert pmf_violations(pmf, chosen, propensity, offsets=offsets).rows == 0
    wrong = (chosen + 1) % np.diff(offsets)
    assert propensity_test(pmf, wrong, offsets=offsets, actions=codes).p_value < 1e-6


def test_flat_and_square_are_the_same() -> None:
    rng = np.random.default_rng(71)
    pmf = dirichlet(rng, 500, 4, 1.0)
    chosen = draw(rng, pmf)
    flat = propensity_test(pmf.ravel(), chosen, offsets=4 * np.arange(501))
    assert flat == propensity_test(pmf, chosen)


def test_the_arguments_stay_as_they_were() -> None:
    rng = np.random.default_rng(72)
    pmf = dirichlet(rng, 500, 4, 1.0)
    chosen, before = draw(rng, pmf), pmf.copy()
    propensity_test(pmf, chosen, actions=np.zeros((500, 4), dtype=np.int64))
    np.testing.assert_array_equal(pmf, before)


def test_rare_actions_are_taken_together() -> None:
    pmf = np.tile(np.concatenate(([0.98], np.full(20, 0.001))), (1000, 1))
    test = propensity_test(pmf, np.zeros(1000, dtype=np.int64))
    assert [cell.action for cell in test.cells] == [None, 0]
    assert test.cells[0].expected == pytest.approx(20.0)
    assert test.dof == 1
    # Rarer still, and they take the common one with them: nothing is left to test.
    alone = propensity_test(pmf[:100], np.zeros(100, dtype=np.int64))
    assert [cell.action for cell in alone.cells] == [None]
    assert (alone.dof, alone.p_value) == (0, 1.0)


def test_without_randomness_there_is_nothing_to_test() -> None:
    pmf = np.tile([1.0, 0.0], (100, 1))
    test = propensity_test(pmf, np.zeros(100, dtype=np.int64))
    assert (test.statistic, test.dof, test.p_value, test.impossible) == (0.0, 0, 1.0, 0)


def test_an_impossible_choice_refutes_the_log() -> None:
    pmf = np.tile([0.5, 0.5, 0.0], (1000, 1))
    chosen = np.arange(1000) % 2
    assert propensity_test(pmf, chosen).p_value > 0.5
    chosen[7] = 2
    test = propensity_test(pmf, chosen)
    assert (test.impossible, test.statistic, test.p_value) == (1, np.inf, 0.0)
    assert test.rejects(1e-9)


def test_an_empty_log_passes() -> None:
    test = propensity_test(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    assert isinstance(test, PropensityTest)
    assert (test.n, test.dof, test.p_value, test.cells) == (0, 0, 1.0, ())


@pytest.mark.slow
def test_a_million_rows_take_seconds() -> None:
    """About 3 s on 2 cores; the bound is generous because machines differ."""
    rng = np.random.default_rng(73)
    pmf = dirichlet(rng, 1_000_000, 10, 1.0)
    chosen = draw(rng, pmf)
    start = time.perf_counter()
    test = propensity_test(pmf, chosen, generations=np.arange(1_000_000) // 40_000)
    assert time.perf_counter() - start < 30.0
    assert test.dof > 200
    assert test.p_value > 1e-4


# --- malformed logs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"pmfs": [[0.5, 0.6]], "chosen": [0]}, "pmfs"),
        ({"pmfs": [[-0.5, 1.5]], "chosen": [0]}, "pmfs"),
        ({"pmfs": [[np.nan, 1.0]], "chosen": [0]}, "pmfs"),
        ({"pmfs": [0.5, 0.5], "chosen": [0]}, "pmfs"),
        ({"pmfs": [["a", "b"]], "chosen": [0]}, "pmfs"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [0], "offsets": [0, 2]}, "pmfs"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [2]}, "chosen"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [-1]}, "chosen"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [0.0]}, "chosen"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [[0]]}, "chosen"),
        ({"pmfs": [0.5, 0.5], "chosen": [0], "offsets": [0, 1]}, "offsets"),
        ({"pmfs": [0.5, 0.5], "chosen": [0], "offsets": [0, 1, 2]}, "offsets"),
        ({"pmfs": [1.0, 1.0], "chosen": [0, 0], "offsets": [0, 3, 2]}, "offsets"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [0], "actions": [1]}, "actions"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [0], "generations": [1, 2]}, "generations"),
        ({"pmfs": [[0.5, 0.5]], "chosen": [0], "min_expected": 0.0}, "min_expected"),
    ],
)
def test_the_argument_that_is_wrong_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        propensity_test(**arguments)
    assert caught.value.field == field


def test_violations_are_counted_row_by_row() -> None:
    pmfs = np.array(
        [
            [0.5, 0.5],
            [0.5, 0.5 + 5e-10],
            [0.5, 0.5 + 2e-9],
            [-0.5, 1.5],
            [np.nan, 1.0],
            [0.5, 0.5],
            [0.5, 0.5],
            [1.0, 0.0],
        ]
    )
    chosen = np.array([0, 1, 0, 1, 1, 2, 0, 1])
    propensity = np.array([0.5, 0.5, 0.5, 1.5, 1.0, 0.5, 0.6, 0.0])
    assert pmf_violations(pmfs, chosen, propensity) == PmfViolations(
        n=8,
        rows=6,
        bad_entry=2,
        bad_sum=2,
        bad_chosen=1,
        bad_propensity=4,
        examples=(2, 3, 4, 5, 6, 7),
    )
    assert pmf_violations(pmfs, chosen, propensity, tolerance=1e-8).bad_sum == 1


def test_a_row_without_actions_is_a_violation() -> None:
    found = pmf_violations([1.0], [0, 0], [1.0, 1.0], offsets=[0, 0, 1])
    assert (found.rows, found.bad_sum, found.bad_chosen, found.examples) == (1, 1, 1, (0,))


def test_violations_check_shapes() -> None:
    with pytest.raises(InvalidInputError, match="propensity"):
        pmf_violations([[0.5, 0.5]], [0], [0.5, 0.5])
