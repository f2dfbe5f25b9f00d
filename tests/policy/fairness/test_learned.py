"""A learned distance against a planted one, and against an independent solver."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.fairness.learned import DistanceLearner

WEIGHTS = np.array([0.35, 0.2, 0.0, 0.0, 0.1])
SCALES = np.full(5, 2.0**0.5)


def planted(pairs: int, seed: int, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    squares = (rng.normal(size=(pairs, 5)) - rng.normal(size=(pairs, 5))) ** 2
    distances = np.sqrt(squares @ WEIGHTS**2) + noise * rng.normal(size=pairs)
    return squares, np.clip(distances, 0.0, 1.0)


def test_a_planted_distance_is_found() -> None:
    squares, distances = planted(300, 1)
    learner = DistanceLearner(penalty=1e-3).fit(squares, distances, SCALES)
    new, truth = planted(500, 2)

    np.testing.assert_allclose(learner.weights_, WEIGHTS, atol=0.02)
    assert np.abs(learner.predict(new) - truth).max() < 0.01


def test_it_is_the_non_negative_least_squares_of_what_is_not_cut_off() -> None:
    squares, distances = planted(200, 3, noise=0.05)
    below = distances < 1.0
    # SciPy's active-set method, on the penalised rows stacked beneath.
    penalty = 0.1
    unit = squares[below] / SCALES**2
    rows = np.vstack([unit, np.sqrt(penalty) * np.eye(5)])
    right = np.concatenate([distances[below] ** 2, np.sqrt(penalty) * np.full(5, 0.1)])
    expected, _ = scipy.optimize.nnls(rows, right)

    learner = DistanceLearner(penalty=penalty).fit(squares[below], distances[below], SCALES)

    np.testing.assert_allclose(learner.weights_**2 * SCALES**2, expected, atol=1e-4)


def test_a_judgement_of_one_says_only_that_the_two_are_far() -> None:
    far = np.array([[9.0, 0.0, 0.0, 0.0, 0.0]])
    squares, distances = planted(100, 4)
    without = DistanceLearner().fit(squares, distances, SCALES)

    held = DistanceLearner().fit(np.vstack([squares, far]), [*distances, 1.0], SCALES)

    # 9 · 0.35² is more than 1 already.
    np.testing.assert_allclose(held.weights_, without.weights_, atol=1e-3)


def test_without_judgements_it_is_the_prior() -> None:
    learner = DistanceLearner(prior=0.2).fit(np.zeros((0, 5)), [], SCALES)

    np.testing.assert_allclose(learner.weights_**2 * SCALES**2, 0.2)


def test_verdicts_of_alike_and_not_alike_are_enough() -> None:
    squares, distances = planted(400, 5)
    learner = DistanceLearner().fit(squares, np.where(distances < 0.5, 0.0, 1.0), SCALES)
    new, truth = planted(1000, 6)
    clear = np.abs(truth - 0.5) > 0.2

    said = learner.predict(new)[clear] >= np.median(learner.predict(new))
    assert np.mean(said == (truth[clear] >= 0.5)) > 0.85


def test_uncertainty_is_that_of_repeated_fits() -> None:
    new, _ = planted(40, 7)
    fits = [
        DistanceLearner(penalty=1e-2).fit(*planted(80, seed, noise=0.05), SCALES)
        for seed in range(100, 200)
    ]
    inner = np.sqrt(new @ WEIGHTS**2)
    clear = (inner > 0.3) & (inner < 0.9)

    observed = np.std([each.predict(new[clear]) for each in fits], axis=0)
    said = np.mean([each.uncertainty(new[clear]) for each in fits], axis=0)

    # The noise on d² grows with d, which least squares on d² doesn't know.
    ratio = float(np.median(said / observed))
    assert 0.5 < ratio < 2.5


def test_the_held_out_error_is_that_on_new_pairs() -> None:
    squares, distances = planted(200, 8, noise=0.1)
    rng = np.random.default_rng(0)
    told = DistanceLearner().held_out_error(squares, distances, SCALES, rng)
    new, truth = planted(3000, 9, noise=0.1)
    fitted = DistanceLearner().fit(squares, distances, SCALES)

    assert told == pytest.approx(np.abs(fitted.predict(new) - truth).mean(), rel=0.25)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="penalty"):
        DistanceLearner(penalty=0.0)
    with pytest.raises(InvalidInputError, match="prior"):
        DistanceLearner(prior=-1.0)
    with pytest.raises(InvalidInputError, match="squares"):
        DistanceLearner().fit(np.zeros((2, 5)), [0.1], SCALES)
    with pytest.raises(InvalidInputError, match="distances"):
        DistanceLearner().fit(np.zeros((1, 5)), [1.1], SCALES)
    with pytest.raises(NotEnoughDataError, match="5 judgements"):
        DistanceLearner().held_out_error(
            np.zeros((4, 5)), np.zeros(4), SCALES, np.random.default_rng(0)
        )
