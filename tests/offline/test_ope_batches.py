"""Logs that come as whole pmfs, and batches that are longer than what is counted at once."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from croupier.offline.ope import DR, IPS, Difference, LoggedBatch, PairedBatch
from croupier.policy.errors import InvalidInputError

ROWS, ACTIONS = 40_000, 4


def arrays(rows: int = ROWS, seed: int = 7) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    logging, target = (rng.dirichlet(np.full(ACTIONS, 2.0), rows) for _ in range(2))
    logging = 0.1 / ACTIONS + 0.9 * logging
    action = (logging.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return {
        "reward": (rng.random(rows) < 0.3).astype(float),
        "action": action,
        "logging": logging,
        "target": target,
        "q": rng.random((rows, ACTIONS)),
    }


def whole(log: dict[str, Any]) -> LoggedBatch:
    rows = np.arange(len(log["reward"]))
    return LoggedBatch(
        reward=log["reward"],
        propensity=log["logging"][rows, log["action"]],
        target_probability=log["target"][rows, log["action"]],
        q_logged=log["q"][rows, log["action"]],
        q_target=(log["target"] * log["q"]).sum(axis=1),
    )


def test_a_log_of_pmfs_is_read_in_parts_and_whole() -> None:
    log = arrays()
    parts = list(LoggedBatch.of_pmfs(**log))
    assert len(parts) > 1
    expected = whole(log)
    for name in ("reward", "propensity", "target_probability", "q_logged", "q_target"):
        read = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(read, getattr(expected, name), rtol=1e-13)


def test_without_a_model_there_are_no_predictions() -> None:
    log = arrays(10) | {"q": None}
    (part,) = LoggedBatch.of_pmfs(**log)
    assert (part.q_logged, part.q_target) == (None, None)
    assert list(LoggedBatch.of_pmfs(**{name: log[name][:0] for name in log if name != "q"})) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reward": np.zeros(9)}, "reward"),
        ({"reward": np.full(10, math.nan)}, "reward"),
        ({"action": np.zeros(9, dtype=int)}, "action"),
        ({"action": np.zeros(10)}, "action"),
        ({"action": np.full(10, ACTIONS)}, "action"),
        ({"action": np.full(10, -1)}, "action"),
        ({"logging": np.full((10, 3), 1 / 3)}, "target"),
        ({"target": np.full((10, ACTIONS), 0.3)}, "target"),
        ({"target": np.tile([1.5, -0.5, 0.0, 0.0], (10, 1))}, "target"),
        ({"logging": np.full((10, ACTIONS), math.nan)}, "logging"),
        ({"logging": np.tile([1.0, 0.0, 0.0, 0.0], (10, 1)), "action": np.ones(10, int)}, None),
        ({"logging": "no"}, "logging"),
        ({"logging": np.ones(10)}, "logging"),
        ({"q": np.ones((10, 3))}, "q"),
        ({"q": np.full((10, ACTIONS), math.inf)}, "q_logged"),
    ],
)
def test_a_log_of_pmfs_names_the_field_that_is_wrong(
    changes: dict[str, Any], field: str | None
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        list(LoggedBatch.of_pmfs(**(arrays(10) | changes)))
    assert caught.value.field == (field or "propensity")


def test_a_long_batch_counts_what_its_rows_do() -> None:
    log = arrays()
    rows = whole(log)
    weight, rest = rows.weight, rows.reward - log["q"][np.arange(ROWS), log["action"]]
    payoff = (log["target"] * log["q"]).sum(axis=1) + weight * rest
    estimate = DR(interval="normal").add(rows).result()
    error = payoff.std(ddof=1) / math.sqrt(ROWS)
    assert estimate.n == ROWS
    assert estimate.value == pytest.approx(payoff.mean(), rel=1e-12)
    assert estimate.upper - estimate.value == pytest.approx(1.959964 * error, rel=1e-6)
    assert estimate.ess == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-12)
    assert estimate.max_weight == weight.max()
    assert estimate.nonzero_rewards == np.count_nonzero(rows.reward * weight)


def test_of_a_long_batch_with_a_wrong_row_near_its_end_nothing_is_counted() -> None:
    rows = whole(arrays())
    rows.reward[-1] = 2.0
    estimator = IPS()
    with pytest.raises(InvalidInputError, match="reward"):
        estimator.add(rows)
    assert estimator.tally_ is None


def test_a_long_pair_counts_what_its_rows_do() -> None:
    log = arrays()
    a = whole(log)
    b = whole(log | {"target": log["logging"]})
    estimate = Difference(DR(interval="normal")).add(PairedBatch(a=a, b=b)).result()
    apart = DR().add(b).result().value - DR().add(a).result().value
    assert estimate.n == ROWS
    assert estimate.value == pytest.approx(apart, abs=1e-12)


def test_reading_pmfs_takes_no_memory_that_grows_with_the_log() -> None:
    def peak(rows: int) -> int:
        log = arrays(rows)
        tracemalloc.start()
        try:
            estimator = DR()
            for part in LoggedBatch.of_pmfs(**log):
                estimator.add(part)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(200_000) < 1.5 * peak(50_000)
