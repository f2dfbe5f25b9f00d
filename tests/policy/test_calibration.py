"""Calibration curves: monotone, saved with the oracle, and applied to whatever it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.calibration import (
    CalibrationStep,
    IsotonicCurve,
    PlattCurve,
    PriorCorrection,
    calibrated,
    require_finite,
)
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError
from croupier.policy.oracle import BootstrapConfig, SklearnConfig, load_oracle, make_oracle
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from pathlib import Path

ENCODER = EncoderConfig(bits=10)
ISOTONIC = IsotonicCurve(scores=[-0.5, 0.2, 0.9], rewards=[0.1, 0.2, 0.7])
STEPS: list[CalibrationStep] = [
    PriorCorrection(ratio=9.0),
    PriorCorrection(ratio=0.2),
    ISOTONIC,
    PlattCurve(slope=2.0, intercept=-0.3, log_odds=False),
    PlattCurve(slope=0.7, intercept=0.4, log_odds=True),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@given(scores=st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=8).map(sorted))
@settings(deadline=None, max_examples=50)
def test_curves_keep_the_order(step: CalibrationStep, scores: list[float]) -> None:
    applied = step.apply(np.array(scores))
    assert np.isfinite(applied).all()
    assert (np.diff(applied) >= -1e-12).all()


@given(chance=st.floats(0.001, 0.999), ratio=st.floats(0.01, 100.0))
def test_a_prior_correction_undoes_the_weights(chance: float, ratio: float) -> None:
    """Where 1 counts `ratio` times as much, the weighted mean of rewards of 0 and 1 is this."""
    weighted = ratio * chance / (ratio * chance + 1.0 - chance)
    corrected = PriorCorrection(ratio=ratio).apply(np.array([weighted]))
    assert corrected[0] == pytest.approx(chance, rel=1e-9)


def test_a_prior_correction_tells_scores_beyond_probabilities_apart() -> None:
    applied = PriorCorrection(ratio=4.0).apply(np.array([-0.2, 0.0, 0.5, 1.0, 1.1]))
    np.testing.assert_allclose(applied, [-0.05, 0.0, 0.2, 1.0, 1.4])


def test_an_isotonic_curve_goes_through_its_centres() -> None:
    applied = ISOTONIC.apply(np.array([-9.0, -0.5, -0.15, 0.2, 0.55, 9.0]))
    np.testing.assert_allclose(applied, [0.1, 0.1, 0.15, 0.2, 0.45, 0.7])


def test_platt_s_curve_of_log_odds_can_be_the_identity() -> None:
    same = PlattCurve(slope=1.0, intercept=0.0, log_odds=True)
    scores = np.array([0.01, 0.3, 0.99])
    np.testing.assert_allclose(same.apply(scores), scores, rtol=1e-12)


def test_oracles_keep_and_apply_them(tmp_path: Path) -> None:
    oracle = make_oracle(SklearnConfig(encoder=ENCODER)).fit(random_rows(60))
    request = random_request(np.random.default_rng(0))
    raw = oracle.score(*request)
    oracle.calibration_ = (STEPS[0], STEPS[2])
    oracle.save(tmp_path)
    loaded = load_oracle(tmp_path)
    assert loaded.calibration_ == oracle.calibration_
    expected = calibrated(oracle.calibration_, raw)
    assert not np.array_equal(expected, raw)
    for each in (oracle, loaded):
        assert each.score(*request).tobytes() == expected.tobytes()
        assert each.estimate(*request).mean.tobytes() == expected.tobytes()


def test_calibrated_oracles_offer_no_errors() -> None:
    """What a curve does to them is not known: to offer the raw ones would be wrong in silence."""
    config = BootstrapConfig(members=2, base=SklearnConfig(encoder=ENCODER))
    oracle = make_oracle(config).fit(random_rows(60))
    oracle.calibration_ = (ISOTONIC,)
    estimates = oracle.estimate(*random_request(np.random.default_rng(0)), config.offers)
    assert estimates.deviation is None
    assert estimates.members is None


@pytest.mark.parametrize(
    "step",
    [
        PriorCorrection(ratio=0.0),
        PriorCorrection(ratio=float("inf")),
        IsotonicCurve(scores=[], rewards=[]),
        IsotonicCurve(scores=[0.0, 1.0], rewards=[0.5]),
        IsotonicCurve(scores=[1.0, 0.0], rewards=[0.5, 0.6]),
        PlattCurve(slope=float("nan"), intercept=0.0, log_odds=False),
    ],
    ids=str,
)
def test_what_can_not_be_applied_is_not_loaded(tmp_path: Path, step: CalibrationStep) -> None:
    with pytest.raises(GenerationError, match="calibration that can't be applied"):
        require_finite([step])
    oracle = make_oracle(SklearnConfig(encoder=ENCODER)).fit(random_rows(60))
    oracle.save(tmp_path)
    saved = msgspec.json.decode((tmp_path / "oracle.json").read_bytes())
    saved["calibration"] = [msgspec.to_builtins(step)]
    (tmp_path / "oracle.json").write_bytes(msgspec.json.encode(saved))
    with pytest.raises(GenerationError):
        load_oracle(tmp_path)
