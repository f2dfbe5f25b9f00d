"""What importance weights say about a log: against closed forms, scipy, and simulated logs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from croupier.offline.ope.diagnostics import (
    SupportLimits,
    WeightDiagnostics,
    WeightMonitor,
    objections,
    tail_index,
)
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

weights = st.lists(st.floats(0.0, 1e4), min_size=2, max_size=60)


def diagnostics(weight: object, **more: object) -> WeightDiagnostics:
    return WeightMonitor().add(weight, **more).result()  # type: ignore[arg-type]


def logged_weights(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Weights of a policy on a log with four actions and right propensities."""
    logged, target = rng.dirichlet(np.full(4, 2.0), n), rng.dirichlet(np.full(4, 2.0), n)
    logged = 0.2 / 4 + 0.8 * logged
    chosen = (logged.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    rows = np.arange(n)
    weight: NDArray[np.float64] = target[rows, chosen] / logged[rows, chosen]
    return weight


def test_closed_forms() -> None:
    found = diagnostics([0.0, 1.0, 3.0, 0.0], deficient=[0.0, 0.5, 0.0, 0.1])
    assert found.n == 4
    assert found.ess == pytest.approx(16 / 10)
    assert found.mean_weight == pytest.approx(1.0)
    assert found.mean_weight_error == pytest.approx(math.sqrt(2.0 / 4))
    assert found.max_weight == 3.0
    assert found.tail_index is None
    assert found.deficient == pytest.approx(0.15)


def test_of_a_subsampled_log_every_row_stands_for_several() -> None:
    weight, keep = np.array([0.5, 2.0, 1.0]), np.array([0.5, 0.25, 1.0])
    found = diagnostics(weight, keep_prob=keep, deficient=[0.0, 0.7, 0.0])
    c = 1 / keep
    assert found.mean_weight == pytest.approx((c @ weight) / c.sum())
    assert found.ess == pytest.approx((c @ weight) ** 2 / ((c * weight) @ (c * weight)))
    assert found.deficient == pytest.approx(0.7 * 4 / 7)
    # Every row standing for as many changes nothing.
    plain, thinned = diagnostics(weight), diagnostics(weight, keep_prob=np.full(3, 0.1))
    assert thinned.ess == pytest.approx(plain.ess)
    assert thinned.mean_weight_error == pytest.approx(plain.mean_weight_error)


@given(weights, st.integers(0, 60))
def test_parts_come_to_the_whole(values: list[float], cut: int) -> None:
    whole = diagnostics(values)
    first = WeightMonitor().add(values[:cut])
    merged = first.merge(WeightMonitor().add(values[cut:])).result()
    assert (merged.n, merged.max_weight) == (whole.n, whole.max_weight)
    assert merged.ess == pytest.approx(whole.ess, rel=1e-9)
    assert merged.mean_weight == pytest.approx(whole.mean_weight, rel=1e-9)
    assert merged.tail_index == whole.tail_index


@given(weights)
def test_an_effective_sample_is_no_larger_than_the_log(values: list[float]) -> None:
    found = diagnostics(values)
    assert 0.0 <= found.ess <= found.n * (1 + 1e-9)
    assert found.mean_weight_error >= 0.0


def test_right_propensities_are_seldom_objected_to() -> None:
    """2,000 logs at level .01: 20 objections at most are expected, more than 38 once in 10,000."""
    rng = np.random.default_rng(11)
    limits, largest = SupportLimits(mean_weight_level=0.01), 1.0 / 0.05
    found = [diagnostics(logged_weights(rng, 500)) for _ in range(2000)]
    assert sum(bool(objections("b", each, limits, largest=largest)) for each in found) <= 38


def test_large_weights_that_were_not_drawn_yet_are_no_evidence() -> None:
    """One row in 4,000 has a weight of 200; without it the mean is .95 and hardly varies."""
    rng = np.random.default_rng(18)
    weight = rng.choice([1.0, 0.0, 200.0], p=[0.95, 0.0498, 0.0002], size=1000)
    assert weight.max() == 1.0
    found = diagnostics(weight)
    assert abs(found.mean_weight - 1.0) > 4 * found.mean_weight_error
    assert objections("b", found, SupportLimits(), largest=200.0) == []


def test_propensities_that_are_wrong_by_a_tenth_are_found() -> None:
    rng = np.random.default_rng(12)
    found = diagnostics(1.1 * logged_weights(rng, 20_000), deficient=np.zeros(20_000))
    (said,) = objections("generation 2", found, SupportLimits(), largest=22.0)
    assert "propensities are wrong" in said


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3, 0.7, 1.2])
def test_tail_index_finds_the_shape_of_a_pareto_tail(shape: float) -> None:
    """Within 4 standard errors, and as near as scipy's maximum likelihood."""
    rng = np.random.default_rng(13)
    n, logs = 2000, 20
    found, peers = [], []
    for _ in range(logs):
        x = stats.genpareto.rvs(shape, scale=3.0, size=n, random_state=rng)
        found.append(tail_index(x))
        peers.append(stats.genpareto.fit(x, floc=0.0)[0])
    # The prior of ten observations at 1/2 draws the estimate by as much.
    expected = (n * shape + 5) / (n + 10)
    error = (1 + shape) / math.sqrt(n * logs) if shape > -0.5 else 0.05
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)
    assert np.mean(found) == pytest.approx(np.mean(peers), abs=0.02)


def test_tail_index_knows_no_scale() -> None:
    x = np.random.default_rng(14).pareto(2.0, 500)
    assert tail_index(x) == pytest.approx(tail_index(1e6 * x), rel=1e-9)


def test_a_tail_that_is_too_heavy_is_objected_to() -> None:
    """Weights whose mean exists, and whose variance does not."""
    rng = np.random.default_rng(15)
    weight = rng.pareto(1.1, 20_000)
    found = diagnostics(weight / weight.mean())
    assert found.tail_index is not None
    assert found.tail_index == pytest.approx(1 / 1.1, abs=0.15)
    (said,) = objections("b", found, SupportLimits(max_tail_index=0.7, min_ess=1.0))
    assert "tail of index" in said
    assert objections("b", found, SupportLimits(min_ess=1.0)) == []


def test_bounded_weights_have_no_heavy_tail() -> None:
    found = diagnostics(logged_weights(np.random.default_rng(16), 20_000))
    assert found.tail_index is not None
    assert found.tail_index < 0.5
    assert objections("b", found, SupportLimits()) == []
    assert diagnostics(np.ones(1000)).tail_index is None


def test_what_could_never_be_logged_is_objected_to() -> None:
    weight = np.random.default_rng(17).choice([0.0, 2.0], 400)
    found = diagnostics(weight, deficient=np.full(400, 0.2))
    (said,) = objections("generation 3", found, SupportLimits())
    assert said.startswith("20 % of the choices of generation 3 could never have been logged")
    assert objections("generation 3", found, SupportLimits(max_deficient=0.5)) == []
    few = diagnostics(weight[:40])
    assert "effective sample size" in objections("generation 3", few, SupportLimits())[0]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("weight", ([1.0, -1.0],)),
        ("weight", ([[1.0], [1.0]],)),
        ("weight", ([1.0, math.nan],)),
    ],
)
def test_wrong_weights_are_named(field: str, arguments: tuple[object]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        WeightMonitor().add(*arguments)  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("keep_prob", {"keep_prob": [1.0, 0.0]}),
        ("keep_prob", {"keep_prob": [1.0]}),
        ("deficient", {"deficient": [0.0, 1.5]}),
    ],
)
def test_wrong_companions_are_named(field: str, more: dict[str, list[float]]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        WeightMonitor().add([1.0, 1.0], **more)
    assert refused.value.field == field


def test_too_little_to_say_anything() -> None:
    with pytest.raises(NotEnoughDataError):
        WeightMonitor().add([1.0]).result()
    with pytest.raises(InvalidInputError, match="exceedances"):
        tail_index([1.0, 2.0])
    with pytest.raises(ValueError, match="min_ess"):
        SupportLimits(min_ess=0.0)
