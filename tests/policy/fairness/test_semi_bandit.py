"""The reduction's identities, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.lagrangian import Penalty, lagrangian
from croupier.policy.fairness.protocol import Feedback, Play, Violation, audit, play_round
from croupier.policy.fairness.semi_bandit import estimated_losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

SEEDS = st.integers(0, 2**32 - 1)


def random_round(seed: int) -> tuple[np.random.Generator, FloatArray, FloatArray, Violation | None]:
    rng = np.random.default_rng(seed)
    instances = int(rng.integers(2, 9))
    decisions = (rng.random((6, instances)) < 0.5).astype(np.float64)
    labels = rng.integers(0, 2, instances).astype(np.float64)
    over, under = rng.choice(instances, 2, replace=False).tolist()
    return rng, decisions, labels, Violation(over, under, 0.1) if rng.random() < 0.7 else None


def seen_by_all(labels: FloatArray) -> Play:
    ones = np.ones(labels.size)
    return Play(np.zeros((labels.size, 1)), ones, ones > 0.0, ones)


@given(SEEDS, st.floats(0.0, 50.0))
def test_differences_of_losses_are_half_of_those_of_the_lagrangian(seed: int, price: float) -> None:
    _, decisions, labels, pair = random_round(seed)
    losses = estimated_losses(seen_by_all(labels), Feedback(labels, pair), price).of(decisions)
    whole = np.array([lagrangian(each, labels, pair, price) for each in decisions])
    np.testing.assert_allclose(
        2.0 * (losses[:, None] - losses), whole[:, None] - whole, atol=1e-9 * (1.0 + price)
    )


@given(SEEDS, st.floats(0.0, 50.0))
def test_the_loss_of_what_is_chosen_is_that_of_the_paper(seed: int, price: float) -> None:
    _, decisions, labels, pair = random_round(seed)
    losses = estimated_losses(seen_by_all(labels), Feedback(labels, pair), price).of(decisions)
    expected = ((decisions != labels) - labels + 1.0).sum(axis=1) / 2.0
    if pair is not None:
        expected += price / 2.0 * (decisions[:, pair.over] + 1.0 - decisions[:, pair.under])
    np.testing.assert_allclose(losses, expected, atol=1e-9 * (1.0 + price))


@given(SEEDS)
def test_what_is_estimated_from_approvals_alone_is_unbiased(seed: int) -> None:
    """By going through all hypotheses that could be drawn, not by drawing."""
    rng, decisions, labels, pair = random_round(seed)
    # Everybody is approved now and then, as by an open door.
    decisions = np.vstack([decisions, np.ones(labels.size)])
    chances = rng.dirichlet(np.ones(len(decisions)))
    approval = chances @ decisions
    expected = np.zeros(len(decisions))
    for chance, drawn in zip(chances, decisions, strict=True):
        play = Play(np.zeros((labels.size, 1)), approval, drawn > 0.5, 1.0 / approval)
        hidden = np.where(play.approved, labels, np.nan)
        expected += chance * estimated_losses(play, Feedback(hidden, pair), 3.0).of(decisions)
    full = estimated_losses(seen_by_all(labels), Feedback(labels, pair), 3.0).of(decisions)
    np.testing.assert_allclose(expected, full, rtol=1e-9)


@given(SEEDS)
def test_a_hypothesis_takes_one_of_two_coordinates_of_each_instance(seed: int) -> None:
    _, _, labels, pair = random_round(seed)
    losses = estimated_losses(seen_by_all(labels), Feedback(labels, pair), 2.0)
    taken = labels.size if pair is None else labels.size + 2
    assert losses.approve.shape == losses.decline.shape == losses.places.shape == (taken,)
    # At the price of 2 all losses are in [0, 1].
    for each in (losses.approve, losses.decline):
        assert each.min() >= 0.0
        assert each.max() <= 1.0


@given(SEEDS, st.floats(0.0, 0.5))
@settings(max_examples=50)
def test_the_audit_reports_the_worst_pair_and_nothing_that_is_allowed(
    seed: int, alpha: float
) -> None:
    rng = np.random.default_rng(seed)
    chances, allowed = rng.random(7), rng.random((7, 7)) * rng.random()
    worst = (-np.inf, 0, 0)
    for over in range(7):
        for under in range(7):
            beyond = chances[over] - chances[under] - allowed[over, under] - alpha
            worst = max(worst, (beyond, over, under))
    found = audit(chances, allowed, alpha)
    if worst[0] <= 1e-9:
        assert found is None
    else:
        assert found is not None
        assert (found.over, found.under) == worst[1:]
        assert found.excess == pytest.approx(worst[0])


def test_an_audit_needs_a_distance_for_every_pair() -> None:
    with pytest.raises(InvalidInputError, match=r"allowed: expected shape \(3, 3\), got \(2, 3\)"):
        audit(np.zeros(3), np.zeros((2, 3)), 0.1)


def nobody_objects(_: Play) -> Violation | None:
    return None


class _Recorder:
    """Approves the first instance alone, and remembers what it was told."""

    told: tuple[Play, Feedback]

    def act(self, contexts: FloatArray, rng: np.random.Generator) -> Play:
        approved = np.arange(len(contexts)) == 0
        chances = np.where(approved, 0.75, 0.25)
        return Play(contexts, chances, approved, 1.0 / chances)

    def learn(self, play: Play, feedback: Feedback) -> None:
        self.told = play, feedback


def test_only_the_labels_of_those_who_were_approved_are_told() -> None:
    learner, labels = _Recorder(), np.array([1.0, 1.0, 0.0])
    rng = np.random.default_rng(0)
    outcome = play_round(learner, np.zeros((3, 1)), labels, nobody_objects, rng)
    np.testing.assert_array_equal(learner.told[1].labels, [1.0, np.nan, np.nan])
    assert outcome.error == pytest.approx(0.25 + 0.75 + 0.25)
    play_round(learner, np.zeros((3, 1)), labels, nobody_objects, rng, full_information=True)
    play, feedback = learner.told
    np.testing.assert_array_equal(feedback.labels, labels)
    np.testing.assert_array_equal(play.inverse, np.ones(3))
    assert play.approved.all()
    np.testing.assert_array_equal(play.chances, [0.75, 0.25, 0.25])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scale": -1.0}, "scale must be at least 0, got -1.0"),
        ({"scale": float("nan")}, "scale must be at least 0, got nan"),
        ({"exponent": 1.0}, r"exponent must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_price_has_a_scale_and_an_exponent(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Penalty(**fields)
    assert Penalty(scale=2.0).at(16, 10) == pytest.approx(40.0)
