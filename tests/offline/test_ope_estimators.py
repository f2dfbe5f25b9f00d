"""Estimators: validation, closed forms, and properties that hold for every log."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.offline.ope import (
    DR,
    IPS,
    SNIPS,
    Difference,
    Estimate,
    Estimator,
    LoggedBatch,
    PairedBatch,
)
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from tests.offline.ope_logs import (
    KEEP,
    PROPENSITY,
    Q_LOGGED,
    Q_TARGET,
    REWARD,
    TARGET,
    TINY_VALUE,
    batch,
    batches,
    enumerate_logs,
    paired,
    rows_of,
    same,
)

if TYPE_CHECKING:
    from collections.abc import Callable


FACTORIES: tuple[Callable[[], Estimator], ...] = (
    IPS,
    SNIPS,
    DR,
    lambda: IPS(interval="normal"),
    lambda: SNIPS(interval="delta"),
    lambda: DR(interval="normal"),
    lambda: SNIPS(weight_range=(0.0, 25.0)),
)

# --- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reward": [1.0, math.nan, 0.0, 0.0]}, "reward"),
        ({"reward": [[1.0], [1.0], [1.0], [1.0]]}, "reward"),
        ({"reward": ["a", "b", "c", "d"]}, "reward"),
        ({"propensity": [0.5, 0.0, 0.5, 0.5]}, "propensity"),
        ({"propensity": [0.5, 1.1, 0.5, 0.5]}, "propensity"),
        ({"propensity": [0.5, 0.5]}, "propensity"),
        ({"target_probability": [0.5, -0.1, 0.5, 0.5]}, "target_probability"),
        ({"target_probability": [0.5, 1.1, 0.5, 0.5]}, "target_probability"),
        ({"keep_prob": [0.5, 0.0, 0.5, 0.5]}, "keep_prob"),
        ({"keep_prob": [0.5, 2.0, 0.5, 0.5]}, "keep_prob"),
        ({"q_logged": None}, "q_logged"),
        ({"q_target": None}, "q_target"),
        ({"q_target": [0.0, 0.0, math.inf, 0.0]}, "q_target"),
    ],
)
def test_a_batch_names_the_field_that_is_wrong(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        batch(**changes)
    assert caught.value.field == field


def test_a_batch_takes_lists_and_the_rounding_of_sums() -> None:
    rows = LoggedBatch(
        reward=[1, 0],  # type: ignore[arg-type]
        propensity=[1.0 + 1e-12, 0.5],  # type: ignore[arg-type]
        target_probability=[1.0 + 1e-12, 0.0],  # type: ignore[arg-type]
    )
    assert rows.reward.dtype == np.float64
    assert len(rows) == 2
    assert list(rows.keep_weight) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reward": REWARD[::-1]}, "b.reward"),
        ({"propensity": PROPENSITY[::-1]}, "b.propensity"),
        ({"keep_prob": KEEP}, "b.keep_prob"),
        ({"q_logged": Q_TARGET}, "b.q_logged"),
        ({"q_logged": None, "q_target": None}, "b.q_logged"),
    ],
)
def test_a_pair_must_be_the_same_rows(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PairedBatch(a=batch(), b=batch(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"interval": "bootstrap"}, "interval"),
        ({"interval": "delta"}, "interval"),
        ({"reward_range": (1.0, 0.0)}, "reward_range"),
        ({"reward_range": (0.0, math.inf)}, "reward_range"),
        ({"weight_range": (0.0, 0.5)}, "weight_range"),
        ({"weight_range": (-1.0, 2.0)}, "weight_range"),
        ({"weight_range": (math.nan, 2.0)}, "weight_range"),
    ],
)
def test_an_estimator_names_the_parameter_that_is_wrong(
    parameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        IPS(**parameters)
    assert caught.value.field == field


def test_the_ranges_bind_where_the_interval_relies_on_them() -> None:
    with pytest.raises(InvalidInputError, match="reward"):
        IPS(reward_range=(0.0, 0.9)).add(batch())
    with pytest.raises(InvalidInputError, match="weight"):
        IPS(weight_range=(0.0, 2.9)).add(batch())
    with pytest.raises(InvalidInputError, match="weight"):
        IPS(weight_range=(0.6, 9.0)).add(batch())
    free = IPS(interval="normal", reward_range=(0.0, 0.5), weight_range=(1.0, 1.0))
    assert free.add(batch()).result().n == 4


def test_a_refused_batch_leaves_no_trace() -> None:
    estimator = IPS(weight_range=(0.0, 3.5)).add(batch())
    before = estimator.result()
    with pytest.raises(InvalidInputError):
        estimator.add(batch(target_probability=np.ones(4)))
    assert estimator.result() == before


def test_dr_needs_a_reward_model() -> None:
    with pytest.raises(InvalidInputError, match="q_logged"):
        DR().add(batch(q_logged=None, q_target=None))


def test_unequal_accumulators_do_not_merge() -> None:
    with pytest.raises(InvalidInputError, match="other"):
        IPS().merge(IPS(interval="normal"))
    with pytest.raises(InvalidInputError, match="other"):
        IPS().merge(SNIPS())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="other"):
        Difference(IPS()).merge(Difference(SNIPS()))


@pytest.mark.parametrize("b", [SNIPS(), IPS(interval="normal"), IPS(reward_range=(0.0, 2.0))])
def test_a_difference_is_of_one_kind(b: Estimator) -> None:
    with pytest.raises(InvalidInputError, match="b"):
        Difference(IPS(), b)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, math.nan])
@pytest.mark.parametrize("interval", ["normal", "empirical-likelihood"])
def test_confidence_is_between_0_and_1(interval: Any, confidence: float) -> None:
    with pytest.raises(InvalidInputError, match="confidence"):
        IPS(interval=interval).add(batch()).result(confidence)


@pytest.mark.parametrize("factory", FACTORIES)
def test_too_few_rows_are_refused(factory: Callable[[], Estimator]) -> None:
    with pytest.raises(NotEnoughDataError):
        factory().result()
    with pytest.raises(NotEnoughDataError):
        factory().add(rows_of(batch(), slice(0))).result()
    with pytest.raises(NotEnoughDataError):
        factory().add(rows_of(batch(), slice(1))).result()
    with pytest.raises(NotEnoughDataError):
        Difference(factory()).add(paired(rows_of(batch(), slice(1)))).result()


def test_the_empirical_likelihood_interval_needs_a_residual() -> None:
    with pytest.raises(NotEnoughDataError, match="3 rows"):
        IPS().add(rows_of(batch(), slice(2))).result()
    with pytest.raises(NotEnoughDataError, match="4 rows"):
        Difference(IPS()).add(paired(rows_of(batch(), slice(3)))).result()


def test_snips_of_a_policy_that_takes_no_logged_action_is_refused() -> None:
    rows = batch(target_probability=np.zeros(4))
    assert IPS().add(rows).result().value == 0.0
    assert IPS().add(rows).result().ess == 0.0
    with pytest.raises(NotEnoughDataError, match="none of the logged actions"):
        SNIPS().add(rows).result()


# --- closed forms ---------------------------------------------------------------------------------


def test_values_and_diagnostics_in_closed_form() -> None:
    rows = batch(keep_prob=KEEP)
    c, w = 1.0 / KEEP, TARGET / PROPENSITY
    assert IPS().add(rows).result().value == pytest.approx((c * w * REWARD).sum() / c.sum())
    assert SNIPS().add(rows).result().value == pytest.approx((c * w * REWARD).sum() / (c * w).sum())
    terms = Q_TARGET + w * (REWARD - Q_LOGGED)
    estimate = DR().add(rows).result()
    assert estimate.value == pytest.approx((c * terms).sum() / c.sum())
    assert estimate.estimator == "dr"
    assert estimate.interval == "empirical-likelihood"
    assert estimate.confidence == 0.95
    assert estimate.n == 4
    assert estimate.ess == pytest.approx((c * w).sum() ** 2 / ((c * w) ** 2).sum())
    assert estimate.mean_weight == pytest.approx((c * w).sum() / c.sum())
    assert estimate.max_weight == pytest.approx(3.0)
    assert estimate.nonzero_rewards == 3


def test_the_normal_interval_of_ips_is_that_of_a_mean() -> None:
    x = REWARD * TARGET / PROPENSITY
    estimate = IPS(interval="normal").add(batch()).result(0.9)
    half = stats.norm.ppf(0.95) * x.std(ddof=1) / math.sqrt(len(x))
    assert estimate.lower == pytest.approx(x.mean() - half, rel=1e-12)
    assert estimate.upper == pytest.approx(x.mean() + half, rel=1e-12)


def test_the_delta_interval_of_snips_knows_that_its_denominator_is_random() -> None:
    """St-tech/zr-obp#187: dividing by mean(w) as if it were a constant is wrong."""
    w = TARGET / PROPENSITY
    value = (w * REWARD).sum() / w.sum()
    influence = w * (REWARD - value) / w.mean()
    half = stats.norm.ppf(0.975) * influence.std(ddof=1) / math.sqrt(4)
    estimate = SNIPS(interval="delta").add(batch()).result()
    assert estimate.upper - estimate.value == pytest.approx(half, rel=1e-12)
    constant = SNIPS(interval="delta").add(batch(reward=np.ones(4))).result()
    assert constant.lower == pytest.approx(1.0, abs=1e-7)
    assert constant.upper == pytest.approx(1.0, abs=1e-7)


def test_the_subsampled_interval_is_that_of_the_ratio() -> None:
    c, x = 1.0 / KEEP, REWARD * TARGET / PROPENSITY
    value = (c * x).sum() / c.sum()
    influence = c * (x - value) / c.mean()
    half = stats.norm.ppf(0.975) * influence.std(ddof=1) / math.sqrt(4)
    estimate = IPS(interval="normal").add(batch(keep_prob=KEEP)).result()
    assert estimate.upper - estimate.value == pytest.approx(half, rel=1e-12)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_constant_keep_probability_changes_nothing(factory: Callable[[], Estimator]) -> None:
    plain, thinned = (
        factory().add(rows).result() for rows in (batch(), batch(keep_prob=np.full(4, 0.3)))
    )
    for name in ("value", "lower", "upper", "ess", "mean_weight"):
        assert getattr(thinned, name) == pytest.approx(getattr(plain, name), rel=1e-9)


def test_the_paired_interval_holds_the_covariance() -> None:
    a, b = batch(target_probability=TARGET[::-1]), batch()
    wa, wb = a.weight, b.weight
    for kind, influences in (
        (IPS(interval="normal"), wb * REWARD - wa * REWARD),
        (
            SNIPS(interval="delta"),
            wb * (REWARD - (wb * REWARD).sum() / wb.sum()) / wb.mean()
            - wa * (REWARD - (wa * REWARD).sum() / wa.sum()) / wa.mean(),
        ),
        (DR(interval="normal"), (wb - wa) * (REWARD - Q_LOGGED)),
    ):
        estimate = Difference(kind).add(PairedBatch(a=a, b=b)).result()
        single = type(kind)(interval=kind.interval)
        values = [copy.deepcopy(single).add(rows).result().value for rows in (a, b)]
        assert estimate.value == pytest.approx(values[1] - values[0], rel=1e-12)
        half = stats.norm.ppf(0.975) * np.asarray(influences).std(ddof=1) / math.sqrt(4)
        assert estimate.upper - estimate.value == pytest.approx(half, rel=1e-9)
        assert estimate.estimator == f"{kind.kind}-difference"


def test_a_difference_reports_the_worse_support() -> None:
    a, b = batch(target_probability=PROPENSITY), batch()
    estimate = Difference(IPS()).add(PairedBatch(a=a, b=b)).result()
    alone = IPS().add(b).result()
    assert estimate.ess == pytest.approx(alone.ess)
    assert estimate.mean_weight == pytest.approx(alone.mean_weight)
    assert estimate.max_weight == alone.max_weight


def test_a_mean_far_from_0_keeps_its_variance() -> None:
    """Raw sums of squares would lose all digits of a variance of 1 at a mean of 1e8."""
    rng = np.random.default_rng(20)
    reward = 1e8 + rng.standard_normal(1000)
    ones = np.ones(1000)
    rows = LoggedBatch(reward=reward, propensity=ones, target_probability=ones)
    halves = [rows_of(rows, slice(0, 300)), rows_of(rows, slice(300, None))]
    left, right = (IPS(interval="normal").add(half) for half in halves)
    estimate = left.merge(right).result()
    half_width = stats.norm.ppf(0.975) * reward.std(ddof=1) / math.sqrt(1000)
    assert estimate.upper - estimate.value == pytest.approx(half_width, rel=1e-6)


# --- unbiasedness, by enumeration of every possible log -------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kind", [IPS, DR])
def test_ips_and_dr_are_unbiased(kind: type[Estimator], n: int) -> None:
    logs = enumerate_logs(n)
    total = sum(
        probability * kind(interval="normal").add(rows).result().value for probability, rows in logs
    )
    assert sum(probability for probability, _ in logs) == pytest.approx(1.0, abs=1e-12)
    assert total == pytest.approx(TINY_VALUE, abs=1e-12)


def test_the_bias_of_snips_falls_with_n() -> None:
    biases = [
        abs(
            sum(
                p * SNIPS(interval="delta").add(rows).result().value
                for p, rows in enumerate_logs(n)
            )
            - TINY_VALUE
        )
        for n in (2, 4)
    ]
    assert 0.0 < biases[1] < 0.6 * biases[0]


# --- properties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", FACTORIES)
@given(rows=batches(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_merging_is_adding(
    factory: Callable[[], Estimator], rows: LoggedBatch, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=2, max_size=2)))
    parts = [slice(0, cuts[0]), slice(cuts[0], cuts[1]), slice(cuts[1], None)]
    for make, whole in (
        (factory, rows),
        (lambda: Difference(factory()), paired(rows)),
    ):

        def part(index: int, make: Any = make, whole: Any = whole) -> Any:
            if isinstance(whole, PairedBatch):
                a, b = (rows_of(each, parts[index]) for each in (whole.a, whole.b))
                return make().add(PairedBatch(a=a, b=b))
            return make().add(rows_of(whole, parts[index]))

        one: Any = make().add(whole)  # type: ignore[arg-type]
        same(part(0).merge(part(1)).merge(part(2)), one)
        same(part(0).merge(part(1).merge(part(2))), one)
        same(part(2).merge(part(0)).merge(part(1)), one)
        same(make().merge(one), one)


@pytest.mark.parametrize("factory", FACTORIES)
@given(rows=batches(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_order_of_rows_does_not_matter(
    factory: Callable[[], Estimator], rows: LoggedBatch, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    same(factory().add(rows), factory().add(rows_of(rows, order)))


@pytest.mark.parametrize("factory", FACTORIES)
@given(rows=batches())
@settings(max_examples=50, deadline=None)
def test_an_estimate_lies_in_its_interval_and_confidence_widens_it(
    factory: Callable[[], Estimator], rows: LoggedBatch
) -> None:
    for made in (factory().add(rows), Difference(factory()).add(paired(rows))):
        narrow, wide = made.result(0.5), made.result(0.99)
        assert wide.lower <= narrow.lower <= narrow.value <= narrow.upper <= wide.upper
        assert 0.0 <= narrow.ess <= len(rows) * (1.0 + 1e-9)
        assert all(math.isfinite(getattr(wide, name)) for name in ("lower", "upper", "ess"))


@given(rows=batches())
@settings(max_examples=100, deadline=None)
def test_snips_stays_within_the_rewards(rows: LoggedBatch) -> None:
    estimate = SNIPS().add(rows).result()
    assert rows.reward.min() - 1e-12 <= estimate.value <= rows.reward.max() + 1e-12
    assert estimate.lower >= -1e-12
    assert estimate.upper <= 1.0 + 1e-12


@given(rows=batches(keep=False))
@settings(max_examples=50, deadline=None)
def test_dr_with_a_perfect_model_is_the_direct_method(rows: LoggedBatch) -> None:
    assert rows.q_target is not None
    assert rows.q_logged is not None
    perfect = replace(rows, reward=rows.q_logged)
    estimate = DR().add(perfect).result()
    assert estimate.value == pytest.approx(float(rows.q_target.mean()), abs=1e-12)


@given(rows=batches())
@settings(max_examples=50, deadline=None)
def test_the_logging_policy_is_worth_the_mean_reward(rows: LoggedBatch) -> None:
    logging = replace(rows, target_probability=rows.propensity)
    mean = float(np.average(rows.reward, weights=rows.keep_weight))
    for estimator in (IPS(), SNIPS(), IPS(weight_range=(1.0, 1.0))):
        estimate = estimator.add(logging).result()
        assert estimate.value == pytest.approx(mean, abs=1e-12)
        assert estimate.mean_weight == pytest.approx(1.0)
        assert estimate.max_weight == 1.0
    c = rows.keep_weight
    assert estimate.ess == pytest.approx(c.sum() ** 2 / (c * c).sum())


@given(rows=batches())
@settings(max_examples=50, deadline=None)
def test_a_policy_does_not_differ_from_itself(rows: LoggedBatch) -> None:
    for factory in FACTORIES:
        estimate = Difference(factory()).add(PairedBatch(a=rows, b=rows)).result()
        assert estimate.value == pytest.approx(0.0, abs=1e-12)


@given(rows=batches())
@settings(max_examples=50, deadline=None)
def test_swapping_the_policies_turns_the_sign(rows: LoggedBatch) -> None:
    pair = paired(rows)
    for factory in FACTORIES:
        there = Difference(factory()).add(pair).result()
        back = Difference(factory()).add(PairedBatch(a=pair.b, b=pair.a)).result()
        assert back.value == pytest.approx(-there.value, abs=1e-12)
        assert back.lower == pytest.approx(-there.upper, rel=1e-6, abs=1e-6)
        assert back.upper == pytest.approx(-there.lower, rel=1e-6, abs=1e-6)


@given(rows=batches(), shift=st.floats(-3.0, 3.0), scale=st.floats(0.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_the_empirical_likelihood_interval_moves_with_the_unit_of_the_reward(
    rows: LoggedBatch, shift: float, scale: float
) -> None:
    """Because the mean weight is known; IPS itself changes when a constant is added."""
    assume(np.ptp(rows.reward) > 1e-3)
    moved = replace(rows, reward=shift + scale * rows.reward)
    before = SNIPS(weight_range=(0.0, 25.0)).add(rows).result()
    after = (
        SNIPS(weight_range=(0.0, 25.0), reward_range=(shift - 1e-9, shift + scale + 1e-9))
        .add(moved)
        .result()
    )
    for name in ("value", "lower", "upper"):
        expected = shift + scale * getattr(before, name)
        assert getattr(after, name) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_accumulators_travel_between_processes() -> None:
    for accumulator in (SNIPS().add(batch()), Difference(DR()).add(paired(batch()))):
        copied = pickle.loads(pickle.dumps(accumulator))
        assert copied.result() == accumulator.result()
        assert isinstance(copied.result(), Estimate)
