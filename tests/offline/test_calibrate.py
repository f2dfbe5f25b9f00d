"""Fitting curves and measuring oracles, against what is known of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from croupier.offline.calibrate import HeldOut, asked, fit_curve, measure, reliability
from croupier.policy.calibration import IsotonicCurve, PlattCurve
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.oracle import SklearnConfig, SklearnOracle, TrainingRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.policy.training import Calibration


def true_chance(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """What scores are really worth: an oracle that is far too sure of itself."""
    return np.asarray(1.0 / (1.0 + np.exp(-(0.4 * np.log(scores / (1.0 - scores)) - 1.0))))


def rows(n: int, seed: int = 0, weights: NDArray[np.float64] | None = None) -> HeldOut:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.01, 0.99, n)
    rewards = (rng.random(n) < true_chance(scores)).astype(np.float64)
    return HeldOut(
        scores=scores, rewards=rewards, weights=np.ones(n) if weights is None else weights
    )


@pytest.mark.parametrize(("kind", "most"), [("isotonic", 0.02), ("platt", 0.01)])
def test_curves_come_near_the_truth(kind: Calibration, most: float) -> None:
    """20,000 rows: a tenth of them has a mean with a standard error of 0.01."""
    curve = fit_curve(kind, rows(20_000))
    assert curve is not None
    scores = np.linspace(0.05, 0.95, 50)
    assert np.abs(curve.apply(scores) - true_chance(scores)).mean() < most
    assert np.abs(scores - true_chance(scores)).max() > 0.3


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_held_out_rows_are_calibrated_afterwards(kind: Calibration) -> None:
    """The expected error of 15 bins of 1,333 calibrated rows is about 0.01."""
    curve = fit_curve(kind, rows(20_000))
    assert curve is not None
    fresh = rows(20_000, seed=1)
    before, after = measure(fresh), measure(fresh.after([curve]))
    assert before["ece"] > 0.1
    assert after["ece"] < 0.025
    assert after["log_loss"] < before["log_loss"]
    assert after["mse"] < before["mse"]
    assert after["auc"] == pytest.approx(before["auc"], abs=2e-3)


def test_platt_s_curve_is_scikit_learn_s_regression() -> None:
    weights = np.random.default_rng(2).uniform(0.5, 2.0, 5000)
    given = rows(5000, weights=weights)
    curve = fit_curve("platt", given)
    assert isinstance(curve, PlattCurve)
    assert curve.log_odds
    inputs = np.log(given.scores / (1.0 - given.scores))[:, None]
    theirs = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(
        inputs, given.rewards, sample_weight=weights
    )
    assert curve.slope == pytest.approx(theirs.coef_[0, 0], abs=2e-3)
    assert curve.intercept == pytest.approx(theirs.intercept_[0], abs=2e-3)


def test_platt_s_curve_of_scores_that_are_no_probabilities() -> None:
    given = rows(5000)
    shifted = HeldOut(scores=3.0 * given.scores - 1.0, rewards=given.rewards, weights=given.weights)
    curve = fit_curve("platt", shifted)
    assert isinstance(curve, PlattCurve)
    assert not curve.log_odds
    means = np.average(curve.apply(shifted.scores))
    assert means == pytest.approx(given.rewards.mean(), abs=1e-3)


def test_separated_rows_have_a_curve_too() -> None:
    scores = np.linspace(0.0, 1.0, 100)
    given = HeldOut(scores=scores, rewards=(scores > 0.5).astype(float), weights=np.ones(100))
    curve = fit_curve("platt", given)
    assert curve is not None
    applied = curve.apply(scores)
    assert np.isfinite(applied).all()
    assert applied[0] < 0.1
    assert applied[-1] > 0.9


def test_isotonic_centres_are_those_of_scikit_learn_s_blocks() -> None:
    weights = np.random.default_rng(2).uniform(0.5, 2.0, 500)
    given = rows(500, weights=weights)
    curve = fit_curve("isotonic", given)
    assert isinstance(curve, IsotonicCurve)
    theirs = IsotonicRegression().fit(given.scores, given.rewards, sample_weight=weights)
    levels = np.unique(theirs.predict(given.scores))
    np.testing.assert_allclose(curve.rewards, levels, atol=1e-9)
    assert np.all(np.diff(curve.scores) > 0)
    # Within its block, the curve says the block's mean reward at its mean score.
    assert np.average(curve.apply(given.scores), weights=weights) == pytest.approx(
        np.average(given.rewards, weights=weights), abs=0.02
    )


def test_equal_scores_are_one_point() -> None:
    given = HeldOut(
        scores=np.repeat([0.2, 0.8], 50),
        rewards=np.concatenate([np.repeat([0.0, 1.0], 25), np.ones(50)]),
        weights=np.ones(100),
    )
    assert fit_curve("isotonic", given) == IsotonicCurve(scores=[0.2, 0.8], rewards=[0.5, 1.0])


def test_too_few_rows_make_no_curve() -> None:
    with pytest.raises(NotEnoughDataError, match="at least 50 rows held out for it, got 49"):
        fit_curve("platt", rows(49))
    assert fit_curve("none", rows(3)) is None


def test_measures_are_scikit_learn_s() -> None:
    weights = np.random.default_rng(2).uniform(0.5, 2.0, 400)
    given = rows(400, weights=weights)
    given = HeldOut(
        scores=np.round(given.scores, 1).clip(0.05, 0.95), rewards=given.rewards, weights=weights
    )
    found = measure(given)
    assert found["auc"] == pytest.approx(
        roc_auc_score(given.rewards, given.scores, sample_weight=weights), rel=1e-9
    )
    assert found["log_loss"] == pytest.approx(
        log_loss(given.rewards, given.scores, sample_weight=weights), rel=1e-6
    )
    assert found["mse"] == pytest.approx(
        np.average((given.scores - given.rewards) ** 2, weights=weights), rel=1e-12
    )
    assert found["rows"] == 400.0


def test_rewards_that_are_no_probabilities_have_fewer_measures() -> None:
    base = rows(100)
    numbers = HeldOut(scores=base.scores, rewards=5.0 * base.scores, weights=base.weights)
    assert set(measure(numbers)) == {"rows", "mse", "ece"}
    within = HeldOut(scores=base.scores, rewards=base.scores, weights=base.weights)
    found = measure(within)
    assert set(found) == {"rows", "mse", "ece", "log_loss"}
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)


def test_bins_hold_all_rows() -> None:
    weights = np.random.default_rng(2).uniform(0.5, 2.0, 101)
    given = rows(101, weights=weights)
    bins = reliability(given)
    assert len(bins.scores) == 15
    assert sum(bins.weights) == pytest.approx(weights.sum())
    assert np.dot(bins.weights, bins.rewards) == pytest.approx(weights @ given.rewards)
    assert len(reliability(rows(3)).scores) == 3


def test_held_out_rows_are_gone_through_once() -> None:
    """Decoding them takes most of the time; what can't be encoded is left out on the way."""
    known = [
        TrainingRow(
            context={"x": value},
            actions=[Action("a"), Action("b")],
            chosen=number % 2,
            propensity=0.5,
            reward=float(number),
            weight=2.0,
        )
        for number, value in enumerate(["u", "v", 1.0, "w", 10.0**300, "u"])
    ]
    oracle = SklearnOracle(SklearnConfig()).fit(known[:2])
    found = asked(oracle, iter(known))
    assert found.rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 5.0]
    assert found.weights.tolist() == [2.0] * 5
    each = [oracle.score(known[n].context, [known[n].actions[n % 2]])[0] for n in (0, 1, 2, 3, 5)]
    assert found.scores.tolist() == each
    assert asked(oracle, iter([])).scores.shape == (0,)
