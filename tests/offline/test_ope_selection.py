"""Selection by dealing a log: the best split, parts that are what they say, and the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from croupier.offline.ope import (
    DM,
    DR,
    IPS,
    SNIPS,
    AdjustedDR,
    DRos,
    PolicyLog,
    deal,
    select,
)
from croupier.policy.errors import InvalidInputError

LOGGING = np.array([0.9, 0.06, 0.04])
RATES = np.array([0.3, 0.5, 0.4])
FAR = np.array([0.1, 0.3, 0.6])


def log(n: int, seed: int, model: np.ndarray, target: np.ndarray = FAR) -> PolicyLog:
    rng = np.random.default_rng(seed)
    action = rng.choice(3, n, p=LOGGING)
    every = np.ones((n, 1))
    return PolicyLog(
        action=action,
        reward=(rng.random(n) < RATES[action]).astype(np.float64),
        logging=every * LOGGING,
        target=every * target,
        q=every * model,
    )


def pmfs(n: int, actions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logging = rng.dirichlet(np.full(actions, 0.7), n)
    return logging, rng.dirichlet(np.full(actions, 0.5), n)


# --- dealing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_both_parts_are_logs_of_pmfs_and_each_context_keeps_the_share(share: float) -> None:
    logging, target = pmfs(200, 6, seed=1)
    dealt = deal(logging, target, share)
    assert ((dealt.chance > 0.0) & (dealt.chance < 1.0)).all()
    np.testing.assert_allclose((logging * dealt.chance).sum(axis=1), share, rtol=1e-9)
    for part, chance in ((dealt.evaluated, dealt.chance), (dealt.logging, 1.0 - dealt.chance)):
        np.testing.assert_allclose(part.sum(axis=1), 1.0, rtol=1e-12)
        expected = logging * chance
        np.testing.assert_allclose(
            part, expected / expected.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("seed", range(5))
def test_no_other_split_is_closer_to_the_weights(seed: int) -> None:
    """Against a general solver of the constrained problem."""
    logging, target = pmfs(1, 4, seed)
    logging = 0.05 + 0.8 * logging
    share = 0.25
    times = share / (1.0 - share)
    weight = target[0] / logging[0]

    def distance(chance: np.ndarray) -> float:
        return float(logging[0] @ (chance / (1.0 - chance) / times - weight) ** 2)

    found = optimize.minimize(
        distance,
        np.full(4, share),
        bounds=[(1e-9, 1.0 - 1e-6)] * 4,
        constraints=optimize.LinearConstraint(logging, share, share),
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    dealt = deal(logging, target, share)
    assert dealt.distance == pytest.approx(distance(dealt.chance[0]), rel=1e-9)
    assert dealt.distance <= found.fun * (1.0 + 1e-6) + 1e-12
    np.testing.assert_allclose(dealt.chance[0], found.x, atol=2e-3)


def test_a_small_share_gives_the_policies_own_weights() -> None:
    logging, target = pmfs(50, 5, seed=2)
    logging = 0.1 + 0.5 * logging
    distances = [deal(logging, target, share).distance for share in (0.4, 0.1, 0.01, 0.001)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


def test_the_same_policy_is_dealt_by_a_coin() -> None:
    logging, _ = pmfs(20, 4, seed=3)
    dealt = deal(logging, logging, 0.3)
    np.testing.assert_allclose(dealt.chance, 0.3, rtol=1e-9)
    assert dealt.distance == pytest.approx(0.0, abs=1e-12)


def test_dealt_rows_follow_the_parts_policies() -> None:
    rng = np.random.default_rng(14)
    n = 40_000
    rows = log(n, 4, RATES)
    dealt = deal(rows.logging[:1], rows.target[:1], 0.2)
    first = rng.random(n) < dealt.chance[0, rows.action]
    assert stats.binomtest(int(first.sum()), n, 0.2).pvalue > 1e-6
    for part, pmf in ((first, dealt.evaluated[0]), (~first, dealt.logging[0])):
        counts = np.bincount(rows.action[part], minlength=3)
        assert stats.chisquare(counts, pmf * counts.sum()).pvalue > 1e-6


# --- choosing -------------------------------------------------------------------------------------


def test_the_error_is_that_of_a_fresh_log_of_the_parts() -> None:
    """Mean over logs of what is estimated, against simulation of the two parts as two logs."""
    n, share = 600, 0.25
    estimators = (DM(), IPS(), DR(), AdjustedDR())
    estimated = np.array(
        [
            [
                each.mean_squared_error
                for each in select(
                    log(n, seed, 1.0 - RATES),
                    estimators,
                    rng=np.random.default_rng(seed),
                    share=share,
                    rounds=40,
                )
            ]
            for seed in range(60)
        ]
    )
    one = log(2, 0, 1.0 - RATES)
    dealt = deal(one.logging, one.target, share)
    rng = np.random.default_rng(5)
    true: list[list[float]] = []
    for _ in range(2000):
        m = rng.binomial(n, share)
        truth = (rng.random(m) < RATES[rng.choice(3, m, p=dealt.evaluated[0])]).mean()
        action = rng.choice(3, n - m, p=dealt.logging[0])
        reward = (rng.random(n - m) < RATES[action]).astype(np.float64)
        weight = (dealt.evaluated[0] / dealt.logging[0])[action]
        model = 1.0 - RATES
        direct = float(dealt.evaluated[0] @ model)
        dr = direct + (weight * (reward - model[action])).mean()
        controls = np.column_stack((np.ones(n - m), weight - 1.0, weight * model[action] - direct))
        payoff = direct + weight * (reward - model[action])
        coefficients, *_ = np.linalg.lstsq(controls, payoff, rcond=None)
        true.append(
            [
                (value - truth) ** 2
                for value in (direct, (weight * reward).mean(), dr, coefficients[0])
            ]
        )
    expected, noise = np.mean(true, axis=0), np.std(true, axis=0) / np.sqrt(2000)
    spread = estimated.std(axis=0, ddof=1) / np.sqrt(60)
    # The bootstrap's variance is that of a log to first order: 8%; the rest is a z-test.
    gap = np.abs(estimated.mean(axis=0) - expected)
    assert (gap < 0.08 * expected + 4.9 * np.hypot(noise, spread)).all(), (gap / expected, spread)


def chosen(rows: PolicyLog, seed: int, **changes: Any) -> str:
    trials = select(rows, (DM(), IPS(), SNIPS(), DR()), rng=np.random.default_rng(seed), **changes)
    return next(each.estimator for each in trials if each.chosen)


def test_a_good_model_is_believed_and_a_bad_one_is_not() -> None:
    good = [chosen(log(600, seed, RATES + 0.01), seed, rounds=30) for seed in range(25)]
    bad = [chosen(log(600, seed, 1.0 - RATES), seed, rounds=30) for seed in range(25)]
    # By a coin of four sides either would be met in fewer than 13 with a chance of 0.997.
    assert good.count("dm") >= 13
    assert bad.count("dm") == 0


def test_it_is_the_policy_that_decides() -> None:
    """The model knows the first action and not the others: it depends who takes these."""
    model = np.array([RATES[0], 0.0, 1.0])
    near, far = np.array([0.98, 0.01, 0.01]), np.array([0.02, 0.03, 0.95])
    for_near = [chosen(log(1500, seed, model, near), seed, rounds=30) for seed in range(15)]
    for_far = [chosen(log(1500, seed, model, far), seed, rounds=30) for seed in range(15)]
    assert for_near.count("dm") + for_near.count("dr") >= 8
    assert for_far.count("dm") == 0


def test_a_seed_gives_the_same_trials() -> None:
    rows = log(200, 1, RATES)
    made = (DM(), DRos(10.0))
    first, again = (select(rows, made, rng=np.random.default_rng(7), rounds=5) for _ in range(2))
    assert first == again
    assert [each.estimator for each in first] == ["dm", "dros(10)"]
    assert sum(each.chosen for each in first) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"action": np.array([0, 3])}, "action"),
        ({"action": np.array([0, 1, 1])}, "action"),
        ({"reward": np.array([0.0, np.nan])}, "reward"),
        ({"logging": np.array([[0.5, 0.4, 0.0], [0.5, 0.4, 0.1]])}, "logging"),
        ({"target": np.full((2, 2), 0.5)}, "target"),
        ({"q": np.full((2, 2), 0.5)}, "q"),
        (
            {
                "logging": np.array([[0.5, 0.5, 0.0]] * 2),
                "target": np.array([[0.5, 0.0, 0.5]] * 2),
                "action": np.array([0, 1]),
            },
            "target",
        ),
        ({"logging": np.array([[0.5, 0.5, 0.0]] * 2), "action": np.array([0, 2])}, "action"),
    ],
)
def test_a_log_names_the_field_that_is_wrong(changes: dict[str, Any], field: str) -> None:
    rows = replace(log(2, 1, RATES), action=np.array([0, 1]))
    with pytest.raises(InvalidInputError) as error:
        replace(rows, **changes)
    assert error.value.field == field


def test_what_selection_refuses() -> None:
    rows = log(50, 1, RATES)
    rng = np.random.default_rng(1)
    with pytest.raises(InvalidInputError, match="share"):
        select(rows, (DM(), DR()), rng=rng, share=1.0)
    with pytest.raises(InvalidInputError, match="share"):
        select(rows, (DM(), DR()), rng=rng, share=1e-9)
    with pytest.raises(InvalidInputError, match="rounds"):
        select(rows, (DM(), DR()), rng=rng, rounds=1)
    with pytest.raises(InvalidInputError, match="estimators"):
        select(rows, (DM(),), rng=rng)
    with pytest.raises(InvalidInputError, match="q_logged"):
        select(replace(rows, q=None), (IPS(), DR()), rng=rng)
