"""Reward models recalibrated on the log with the policies' probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from croupier.offline.ope import DR, CrossFitted, LoggedBatch, folds_of, recalibrate
from croupier.policy.errors import InvalidInputError

ACTIONS = 4


def log(n: int, seed: int) -> tuple[CrossFitted, dict[str, np.ndarray], float]:
    """One action in four is right; the policies mostly know it, and the model knows nothing."""
    rng = np.random.default_rng(seed)
    right = rng.integers(ACTIONS, size=n)
    rows = np.arange(n)
    pmfs = []
    for correct, share in ((0.6, 0.4), (0.8, 0.9)):
        known = rng.random(n) < correct
        guess = np.where(known, right, rng.integers(ACTIONS, size=n))
        pmf = np.full((n, ACTIONS), (1.0 - share) / ACTIONS)
        pmf[rows, guess] += share
        pmfs.append(pmf)
    logging, target = pmfs
    action = (logging.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    reward = (action == right).astype(np.float64)
    fitted = CrossFitted(rng.uniform(0.2, 0.3, (n, ACTIONS)), folds_of(n, 3, rng))
    given = {"action": action, "reward": reward, "logging": logging, "target": target}
    return fitted, given, float(target[rows, right].mean())


def value(fitted: CrossFitted, given: dict[str, np.ndarray]) -> float:
    rows, action = np.arange(len(given["action"])), given["action"]
    q_logged, q_target = fitted.of(action, given["target"])
    batch = LoggedBatch(
        reward=given["reward"],
        propensity=given["logging"][rows, action],
        target_probability=given["target"][rows, action],
        q_logged=q_logged,
        q_target=q_target,
    )
    return DR().point(DR().columns(batch).mean(axis=0))[0]


def test_it_is_a_regression_of_the_other_folds() -> None:
    fitted, given, _ = log(90, 1)
    found = recalibrate(fitted, **given)
    rows = np.arange(90)
    for part in range(3):
        held = fitted.fold == part
        regressors = np.stack((fitted.q, given["target"], given["logging"]), axis=-1)
        model = LinearRegression().fit(
            regressors[rows, given["action"]][~held], given["reward"][~held]
        )
        for k in range(ACTIONS):
            expected = np.clip(model.predict(regressors[held, k]), 0.0, 1.0)
            np.testing.assert_allclose(found.q[held, k], expected, rtol=1e-9, atol=1e-12)


def test_a_row_does_not_predict_itself() -> None:
    fitted, given, _ = log(90, 2)
    changed = given | {"reward": given["reward"].copy()}
    changed["reward"][:5] = 1.0 - changed["reward"][:5]
    before, after = recalibrate(fitted, **given).q, recalibrate(fitted, **changed).q
    for part in np.unique(fitted.fold):
        held = fitted.fold == part
        moved = not np.array_equal(before[held], after[held])
        assert moved == bool((~held[:5]).any())


def test_a_weak_model_is_made_a_good_one_and_dr_stays_unbiased() -> None:
    errors = []
    for seed in range(150):
        fitted, given, truth = log(800, seed)
        errors.append(
            [value(each, given) - truth for each in (fitted, recalibrate(fitted, **given))]
        )
    plain, recalibrated = np.array(errors).T
    assert (recalibrated**2).mean() < 0.6 * (plain**2).mean()
    # A z-test at one in a million.
    assert abs(recalibrated.mean()) < 4.9 * recalibrated.std() / math.sqrt(150)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"action": np.full(9, ACTIONS)}, "action"),
        ({"action": np.zeros(8, dtype=int)}, "action"),
        ({"reward": np.full(9, np.inf)}, "reward"),
        ({"logging": np.full((9, 3), 1 / 3)}, "logging"),
        ({"target": np.full(9, 1.0)}, "target"),
    ],
)
def test_what_recalibration_refuses(changes: dict[str, Any], field: str) -> None:
    fitted, given, _ = log(9, 3)
    with pytest.raises(InvalidInputError) as error:
        recalibrate(fitted, **(given | changes))
    assert error.value.field == field


def test_one_fold_is_refused() -> None:
    fitted, given, _ = log(9, 4)
    with pytest.raises(InvalidInputError, match="fold"):
        recalibrate(CrossFitted(fitted.q, np.zeros(9, dtype=np.intp)), **given)
