"""Logs for the tests of estimators: four fixed rows, any rows, all logs of a tiny problem."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import strategies as st

from croupier.offline.ope import LoggedBatch, PairedBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

REWARD = np.array([1.0, 0.0, 0.5, 1.0])
PROPENSITY = np.array([0.5, 0.25, 0.8, 0.1])
TARGET = np.array([0.25, 0.5, 0.8, 0.3])
KEEP = np.array([1.0, 0.5, 1.0, 0.25])
Q_LOGGED = np.array([0.6, 0.2, 0.5, 0.7])
Q_TARGET = np.array([0.5, 0.4, 0.4, 0.3])


def batch(**changes: Any) -> LoggedBatch:
    values: dict[str, Any] = {
        "reward": REWARD,
        "propensity": PROPENSITY,
        "target_probability": TARGET,
        "q_logged": Q_LOGGED,
        "q_target": Q_TARGET,
    }
    return LoggedBatch(**(values | changes))


@st.composite
def batches(draw: st.DrawFn, *, least: int = 4, keep: bool = True) -> LoggedBatch:
    n = draw(st.integers(least, 20))

    def column(low: float, high: float) -> NDArray[np.float64]:
        return np.array(draw(st.lists(st.floats(low, high), min_size=n, max_size=n)), dtype=float)

    return LoggedBatch(
        reward=column(0.0, 1.0),
        propensity=column(0.05, 1.0),
        target_probability=column(0.01, 1.0),
        keep_prob=column(0.1, 1.0) if keep else None,
        q_logged=column(0.0, 1.0),
        q_target=column(0.0, 1.0),
    )


def paired(rows: LoggedBatch) -> PairedBatch:
    """The rows against a policy that takes the logged action with a rotated probability."""
    assert rows.q_target is not None
    other = replace(
        rows,
        target_probability=np.roll(rows.target_probability, 1),
        q_target=np.roll(rows.q_target, 1),
    )
    return PairedBatch(a=other, b=rows)


def rows_of(rows: LoggedBatch, index: Any) -> LoggedBatch:
    columns: dict[str, Any] = {
        field.name: getattr(rows, field.name)
        for field in fields(rows)
        if getattr(rows, field.name) is not None
    }
    return LoggedBatch(**{name: values[index] for name, values in columns.items()})


def same(left: Any, right: Any) -> None:
    """Two accumulators hold the same sums, to 1e-12 of the size of what was summed."""
    one, other = left.tally_, right.tally_
    assert one.moments.n == other.moments.n
    assert one.nonzero_rewards == other.nonzero_rewards
    scale = 1.0 + float(np.abs(one.highest).max()) ** 4
    np.testing.assert_allclose(one.moments.mean, other.moments.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        one.moments.scatter, other.moments.scatter, rtol=1e-12, atol=1e-12 * scale
    )
    np.testing.assert_array_equal(one.lowest, other.lowest)
    np.testing.assert_array_equal(one.highest, other.highest)
    assert left.result().value == pytest.approx(right.result().value, rel=1e-12, abs=1e-12)


def enumerate_logs(n: int) -> list[tuple[float, LoggedBatch]]:
    """Every log of n rows of a tiny problem, with its probability; value .4*.74 + .6*.44 = .56."""
    contexts = np.array([0.4, 0.6])
    mu = np.array([[0.7, 0.3], [0.2, 0.8]])
    pi = np.array([[0.1, 0.9], [0.6, 0.4]])
    q = np.array([[0.2, 0.8], [0.6, 0.2]])
    model = np.array([[0.5, 0.1], [0.3, 0.9]])
    rows = [
        (
            float(contexts[x] * mu[x, a] * (q[x, a] if r else 1.0 - q[x, a])),
            (float(r), mu[x, a], pi[x, a], model[x, a], float(pi[x] @ model[x])),
        )
        for x, a, r in itertools.product((0, 1), (0, 1), (0, 1))
    ]
    logs = []
    for log in itertools.product(rows, repeat=n):
        reward, propensity, target, q_logged, q_target = np.array([values for _, values in log]).T
        logs.append(
            (
                math.prod(probability for probability, _ in log),
                LoggedBatch(
                    reward=reward,
                    propensity=propensity,
                    target_probability=target,
                    q_logged=q_logged,
                    q_target=q_target,
                ),
            )
        )
    return logs


TINY_VALUE = 0.4 * (0.1 * 0.2 + 0.9 * 0.8) + 0.6 * (0.6 * 0.6 + 0.4 * 0.2)
