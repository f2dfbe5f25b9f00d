"""What several policies would have earned, against values that are known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from croupier.offline.counterfactual import (
    PolicyOnLog,
    baseline_policy,
    judge_policies,
    random_policy,
)
from croupier.offline.evaluate import evaluate
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import EpsilonGreedy, Greedy
from croupier.policy.loop import LoopConfig
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.generation import Generation

WORLD = World(random_world(3, 4, seed=3).rewards, excluded=(None, 2, None))
LOGGER = WORLD.generation(1, EpsilonGreedy(epsilon=0.5), WORLD.rewards[:, ::-1])
GREEDY = WORLD.generation(2, Greedy())
MINUTE = 60_000_000
REPEATS, ROWS = 40, 300


def policy(generation: Generation) -> Policy:
    def pmf(request: LoggedRequest) -> NDArray[np.float64]:
        return generation.pmf(request.context, request.actions, request.eligible, request.baseline)[
            0
        ]

    return pmf


POLICIES: dict[str, Policy | None] = {
    "logged": None,
    "baseline": baseline_policy,
    "random": random_policy,
    "greedy": policy(GREEDY),
}


def judged(rows: pl.DataFrame, window_us: int = MINUTE) -> dict[str, PolicyOnLog]:
    return judge_policies(rows, POLICIES, LoopConfig(), window_us=window_us)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    even = [0.25 if barred is None else 1 / 3 for barred in WORLD.excluded]
    eligible = np.ones_like(WORLD.rewards)
    eligible[1, 2] = 0.0
    truth = {
        "logged": WORLD.value(LOGGER),
        "baseline": float(WORLD.rewards[:, 0].mean()),
        "random": float((WORLD.rewards * eligible * np.array(even)[:, None]).sum(axis=1).mean()),
        "greedy": WORLD.value(GREEDY),
    }
    held = dict.fromkeys(truth, 0)
    values: dict[str, list[float]] = {name: [] for name in truth}
    for seed in range(REPEATS):
        for name, found in judged(WORLD.log(LOGGER, ROWS, seed)).items():
            assert found.left_out == 0
            total = found.total
            assert total.lower is not None
            assert total.upper is not None
            held[name] += total.lower <= truth[name] <= total.upper
            values[name].append(total.value)
    for name, value in truth.items():
        error = float(np.std(values[name])) / REPEATS**0.5
        assert abs(float(np.mean(values[name])) - value) < 4 * error, name
        # Of 40 at 95 %, fewer than 33 would happen once in some thousand times.
        assert held[name] >= 33, name


def test_it_is_the_estimate_of_the_gate() -> None:
    rows = WORLD.log(LOGGER, ROWS, 1)
    evaluation = evaluate(rows, None, GREEDY, LoopConfig())
    logged, greedy = evaluation.policies
    found = judged(rows)
    for name, other in (("logged", logged), ("greedy", greedy)):
        estimate, total = other.estimates["ips"], found[name].total
        assert (total.value, total.lower, total.upper) == pytest.approx(
            (estimate.value, estimate.lower, estimate.upper)
        )


def test_windows_add_up_to_the_total() -> None:
    rows = WORLD.log(LOGGER, ROWS, 2)
    times = rows["ts"].dt.epoch("s").to_numpy()
    found = judged(rows)
    for each in found.values():
        assert len(each.windows) == pytest.approx(np.ptp(times) / 60, abs=1.5)
        starts = [window.start_us for window in each.windows]
        assert starts == sorted(starts)
        assert all(start % MINUTE == 0 for start in starts)
        for field in ("rows", "weighted_rewards", "weights", "squares", "taken"):
            total = getattr(each.total, field)
            assert sum(getattr(window, field) for window in each.windows) == pytest.approx(total)
    first = found["greedy"].windows[0]
    part = rows.filter(pl.col("ts").dt.epoch("us") < first.start_us + MINUTE)
    assert first.rows == len(part)
    assert found["logged"].windows[0].weights == pytest.approx(len(part))


def test_rows_that_were_kept_with_a_probability_count_for_more() -> None:
    rows = WORLD.log(LOGGER, ROWS, 3).with_columns(keep_prob=pl.lit(0.25))
    whole, kept = judged(WORLD.log(LOGGER, ROWS, 3)), judged(rows)
    assert kept["greedy"].total.rows == 4 * ROWS
    assert kept["greedy"].total.value == pytest.approx(whole["greedy"].total.value)


def test_rows_that_say_nothing_of_a_policy_are_left_out_for_it_alone() -> None:
    """An apprentice's log has the baseline alone: nothing can be said of anybody else."""
    rows = WORLD.log(LOGGER, 50, 4)
    alone = pl.Series([[1.0, 0.0, 0.0, 0.0]] * 50)
    rows = rows.with_columns(pmf=alone, chosen=pl.lit(0), propensity=pl.lit(1.0))
    found = judged(rows)
    assert (found["baseline"].left_out, found["baseline"].total.rows) == (0, 50)
    assert (found["random"].left_out, found["random"].total.rows) == (50, 0)
    assert found["random"].windows == []
    assert (found["random"].total.value, found["random"].total.lower) == (0.0, None)


def test_requests_that_cannot_be_encoded_or_have_no_baseline_are_left_out() -> None:
    def refusing(request: LoggedRequest) -> NDArray[np.float64]:
        if request.context["x"] == "x0":
            raise InvalidInputError("context", "expected something else")
        return random_policy(request)

    rows = WORLD.log(LOGGER, 60, 5).with_columns(baseline=pl.lit(None, dtype=pl.Int64))
    found = judge_policies(
        rows,
        {"refusing": refusing, "baseline": baseline_policy},
        LoopConfig(),
        window_us=MINUTE,
    )
    of_x0 = rows.filter(pl.col("context").str.contains("x0"))
    assert found["refusing"].left_out == len(of_x0)
    assert found["baseline"].left_out == 60


def test_there_must_be_something_to_judge_on() -> None:
    with pytest.raises(NotEnoughDataError, match="at least 2 interactions, got 1"):
        judged(WORLD.log(LOGGER, 1, 6))
    done: list[tuple[int, int]] = []
    judge_policies(
        WORLD.log(LOGGER, 600, 7),
        {"random": random_policy},
        LoopConfig(),
        window_us=MINUTE,
        progress=lambda *counts: done.append(counts),
    )
    assert done == [(500, 600), (600, 600)]
