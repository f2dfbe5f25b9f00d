"""The fairness study's parts: its worlds, the best fair mixture, growth, and whom it compares."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from croupier.offline.study.fair_comparator import FairComparator
from croupier.offline.study.fair_learners import FAIR_ARMS, GreedyApproval, GroupParity
from croupier.offline.study.fair_runs import FAIR_RUNS_SCHEMA
from croupier.offline.study.fair_series import FAIR_SERIES_SCHEMA, checkpoints, run_fair_series
from croupier.offline.study.fair_world import mortgages_world, planted_world
from croupier.offline.study.fairness import growth_of, summarise_fair
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.protocol import Feedback, Play

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

CHOSEN = ("exp2", "exp2, all labels", "epsilon greedy", "group parity")


def test_no_panel_allows_less_than_the_strictest_and_one_allows_no_more() -> None:
    world = planted_world(0, size=30)
    assert world.panels.shape == (21, 30, 30)
    np.testing.assert_allclose(world.panels.min(axis=0), world.strictest, atol=1e-6)
    assert (world.strictest == world.strictest.T).all()
    assert len(list(combinations(range(7), 5))) == 21


def test_people_come_as_the_world_says() -> None:
    """Share of labels in 200,000 people, within 5 standard errors (false alarm 6e-7)."""
    world = planted_world(1)
    who, labels = world.come(200_000, np.random.default_rng(0))
    expected = world.positive[who].mean()
    assert abs(labels.mean() - expected) < 5.0 * 0.5 / np.sqrt(200_000)
    with pytest.raises(InvalidInputError, match="size: expected at least 20 contexts, got 3"):
        planted_world(0, size=3)


def test_the_mortgages_are_those_of_the_census() -> None:
    world = mortgages_world(0)
    assert world.contexts.shape == (88, 5)
    assert world.person_label is not None
    assert world.person_context.size == 214_144
    assert world.person_label.mean() == pytest.approx(0.400240, abs=1e-6)
    for cell in (0, 40, 87):
        own = world.person_label[world.person_context == cell]
        assert own.mean() == pytest.approx(world.positive[cell])
    # Of men of the same cohort and service, race and birthplace make no difference to auditors.
    alike = (world.contexts[:, None, 1:3] == world.contexts[:, 1:3]).all(axis=2)
    assert (world.strictest[alike] == 0.0).all()


def test_the_comparator_is_the_best_of_all_fair_mixtures() -> None:
    """Against a program that has all constraints from the start."""
    from scipy.optimize import linprog  # noqa: PLC0415

    rng = np.random.default_rng(5)
    decisions = (rng.random((12, 8)) < 0.5).astype(np.float32)
    decisions[0] = 1.0
    limits = rng.random((8, 8)) * 0.4
    comparator = FairComparator(decisions, limits)
    for _ in range(3):
        errors = rng.random(12) * 100.0
        mixture = comparator.best(errors)
        chances = mixture @ decisions
        assert mixture.sum() == pytest.approx(1.0)
        assert (chances[:, None] - chances - limits).max() < 1e-6
        first, second = np.indices((8, 8)).reshape(2, -1)
        whole = linprog(
            errors,
            A_ub=(decisions[:, first] - decisions[:, second]).T,
            b_ub=limits.ravel(),
            A_eq=np.ones((1, 12)),
            b_eq=[1.0],
            method="highs",
        )
        assert mixture @ errors == pytest.approx(whole.fun, abs=1e-5)
    with pytest.raises(InvalidInputError, match="limits: expected one of at least 0"):
        FairComparator(decisions, limits - 1.0)


def test_growth_is_that_of_the_curve() -> None:
    """Intervals hold the exponent of noisy power laws about as often as they say.

    Of 100 intervals from 20 seeds each, fewer than 85 would hold it once in 10,000 if 95 % did.
    """
    times = np.exp2(np.arange(4.0, 11.0))
    exact = growth_of(times, np.array([3.0 * times**0.75, 5.0 * times**0.75]))
    assert exact is not None
    assert exact.exponent == pytest.approx(0.75)
    assert exact.is_sublinear
    rng = np.random.default_rng(0)
    holds = 0
    for _ in range(100):
        noise = 1.0 + 0.3 * rng.normal(size=(20, len(times)))
        found = growth_of(times, noise * times**0.6, random_state=1)
        assert found is not None
        holds += found.lower <= 0.6 <= found.upper
    assert holds >= 85
    assert growth_of(times, np.array([times, -3.0 * times])) is None


def test_greedy_approval_learns_from_the_approved_alone() -> None:
    rng = np.random.default_rng(0)
    contexts = np.column_stack([np.ones(400), rng.normal(size=400)])
    learner = GreedyApproval(2, epsilon=0.1)
    play = learner.act(contexts, rng)
    assert play.approved.all()
    learner.learn(play, Feedback((contexts[:, 1] > 0.0).astype(np.float64), None))
    later = learner.act(contexts, rng)
    assert set(later.chances.tolist()) == {0.1, 1.0}
    assert ((later.chances == 1.0) == (contexts[:, 1] > 0.0)).mean() > 0.9


def test_group_parity_approves_the_same_share_of_both_groups() -> None:
    rng = np.random.default_rng(0)
    learner = GroupParity(2, epsilon=0.05)

    def batch() -> tuple[FloatArray, FloatArray]:
        group = (rng.random(200) < 0.5).astype(np.float64)
        merit = rng.normal(size=200) - group
        good = rng.random(200) < 1.0 / (1.0 + np.exp(-2.0 * merit))
        return np.column_stack([np.ones(200), merit, group]), good.astype(np.float64)

    play: Play | None = None
    for _ in range(64):
        contexts, labels = batch()
        play = learner.act(contexts, rng)
        learner.learn(play, Feedback(np.where(play.approved, labels, np.nan), None))
    assert play is not None
    plays = [learner.act(batch()[0], rng) for _ in range(40)]
    chances = np.concatenate([each.chances for each in plays])
    group = np.concatenate([each.contexts[:, 2] for each in plays])
    # What it was fitted on were approvals, most of them of its own choice: near, and no more.
    assert abs(chances[group == 1.0].mean() - chances[group == 0.0].mean()) < 0.2
    assert len(set(chances.tolist())) > 1


def test_a_series_says_what_the_arms_did_and_the_summary_what_it_means() -> None:
    world = planted_world(0, size=40)
    arms = [each for each in FAIR_ARMS if each.name in CHOSEN]
    frames = []
    for seed in range(3):
        series = run_fair_series(world, arms, rounds=128, instances=10, seed=seed)
        assert series.schema == FAIR_SERIES_SCHEMA
        assert series["arm"].unique(maintain_order=True).to_list() == list(CHOSEN)
        # The same people came to all of them.
        assert series.group_by("rounds").agg(pl.col("fair_error").n_unique())[
            "fair_error"
        ].to_list() == [1] * len(checkpoints(128))
        assert (series["best_error"] <= series["fair_error"] + 1e-6).all()
        frames.append(
            series.with_columns(
                world=pl.lit("planted"),
                seed=pl.lit(seed, dtype=pl.Int64),
                horizon=pl.lit(128, dtype=pl.Int64),
                instances=pl.lit(10, dtype=pl.Int64),
            ).select(FAIR_RUNS_SCHEMA.names())
        )
    again = run_fair_series(world, arms[:1], rounds=128, instances=10, seed=2)
    assert again.equals(series.filter(arm="exp2"))
    study = summarise_fair(pl.concat(frames))
    found = {each.arm: each for each in study.arms}
    assert (study.rounds, study.instances, study.fitted_from) == (128, 10, 4)
    assert found["exp2"].violations.value < 0.8 < found["epsilon greedy"].violations.value
    assert found["epsilon greedy"].error.value < found["exp2"].error.value
    assert found["exp2"].regret_growth is not None
    (sidedness,) = study.sidedness
    apart = found["exp2"].regret.value - found["exp2, all labels"].regret.value
    assert sidedness.regret.value == pytest.approx(apart)
    with pytest.raises(InvalidInputError, match="runs: expected at least one series"):
        summarise_fair(pl.DataFrame(schema=FAIR_RUNS_SCHEMA))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["exp2", "ftpl", "ftpl, least squares"])
def test_regret_and_violations_grow_sublinearly(name: str) -> None:
    """Six seeds of 4,000 rounds of 100; growth is fitted from round 125 on."""
    arms = [each for each in FAIR_ARMS if each.name == name]
    series = [
        run_fair_series(planted_world(seed), arms, rounds=4000, instances=100, seed=seed)
        for seed in range(6)
    ]
    times = series[0]["rounds"].to_numpy().astype(np.float64)
    fitted = times >= 125
    for column in (pl.col("error") - pl.col("fair_error"), pl.col("violations")):
        curves = np.stack([each.select(column).to_series().to_numpy() for each in series])
        growth = growth_of(times[fitted], curves[:, fitted].astype(np.float64))
        assert growth is not None
        assert growth.is_sublinear, growth
