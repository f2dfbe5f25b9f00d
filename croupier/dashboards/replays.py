"""What another exploration would have earned: replayed on the sample that the night has left.

The oracle's scores are those that were logged with each decision, before its reward was known, so
that nothing is estimated from what it was learned from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import polars as pl

from croupier.offline.ope import DR, IPS, SNIPS, Estimate, LoggedBatch
from croupier.policy.errors import NotEnoughDataError, ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from croupier.offline.ope import Estimator
    from croupier.policy.exploration import Exploration

__all__ = ("MOST_ROWS", "Replay", "replay")

MOST_ROWS: Final = 4000
"""Of the sample that are replayed, for an answer within a second."""

_ESTIMATORS: Final[dict[str, Callable[[], Estimator]]] = {"dr": DR, "snips": SNIPS, "ips": IPS}


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is worth on the sample.

    Attributes
    ----------
    rows
        Replayed; those without scores, or where an action could not have been drawn, are left out.
    left_out
        How many those are.
    estimates
        By estimator.
    logged
        What the log's own policy earned on the same rows.
    entropy, logged_entropy
        Mean entropy of the pmf, in nats, and of the logged one.
    greedy
        Mean probability of the action with the largest score.
    """

    rows: int
    left_out: int
    estimates: dict[str, Estimate]
    logged: Estimate
    entropy: float
    logged_entropy: float
    greedy: float


def replay(
    sample: pl.DataFrame, exploration: Exploration, *, training_rows: int, confidence: float = 0.95
) -> Replay:
    """Ask an exploration what it would have done with the scores of a sample.

    Parameters
    ----------
    sample
        Rows of the small table ``sample``.
    exploration
        To be asked.
    training_rows
        Interactions behind the oracle, for explorations that depend on it.
    confidence
        Of the intervals, in (0, 1).

    Raises
    ------
    NotEnoughDataError
        If there are too few rows to tell.
    """
    rows = sample.sort("place").head(MOST_ROWS)
    fits = pl.col("scores").list.len() == pl.col("pmf").list.len()
    usable = rows.filter(fits & pl.col("baseline").is_not_null())
    kept, (target, expected, entropy, greedy) = _asked(usable, exploration, training_rows)
    found = usable.filter(pl.Series(kept))
    if len(found) < 20:
        raise NotEnoughDataError(f"at least 20 decisions with scores are needed, got {len(found)}")
    scores = found["scores"].list.get(found["chosen"]).to_numpy()
    common = {
        "reward": found["reward"].to_numpy(),
        "propensity": found["propensity"].to_numpy(),
        "keep_prob": found["keep_prob"].to_numpy(),
    }
    batch = LoggedBatch(
        **common, target_probability=target[kept], q_logged=scores, q_target=expected[kept]
    )
    logged = LoggedBatch(**common, target_probability=common["propensity"])
    element = pl.element()
    surprise = pl.when(element > 0.0).then(-element * element.log()).otherwise(0.0)
    spread = found.select(pl.col("pmf").list.eval(surprise).list.sum().mean()).item()
    return Replay(
        rows=len(found),
        left_out=len(rows) - len(found),
        estimates={
            name: make().add(batch).result(confidence) for name, make in _ESTIMATORS.items()
        },
        logged=SNIPS().add(logged).result(confidence),
        entropy=float(entropy[kept].mean()),
        logged_entropy=float(spread),
        greedy=float(greedy[kept].mean()),
    )


def _asked(
    rows: pl.DataFrame, exploration: Exploration, training_rows: int
) -> tuple[NDArray[np.bool_], tuple[NDArray[np.float64], ...]]:
    """Which rows the log can tell of, and what the policy does with each."""
    n = len(rows)
    kept = np.zeros(n, dtype=np.bool_)
    target, expected, entropy, greedy = (np.zeros(n) for _ in range(4))
    columns = ("scores", "pmf", "eligible", "chosen", "baseline")
    for row, (scores, logged, could, chosen, baseline) in enumerate(
        rows.select(columns).iter_rows()
    ):
        values, eligible = np.array(scores), np.array(could)
        try:
            pmf = exploration.pmf(values, eligible, training_rows=training_rows, baseline=baseline)
        except ScoringError:
            continue
        # What could not have been drawn, the log tells nothing of.
        if (pmf[np.array(logged) == 0.0] > 0.0).any():
            continue
        played = pmf > 0.0
        kept[row], target[row] = True, pmf[chosen]
        expected[row] = float(pmf[played] @ values[played])
        entropy[row] = float(-(pmf[played] @ np.log(pmf[played])))
        best = int(np.argmax(np.where(eligible, values, -np.inf)))
        greedy[row] = pmf[best]
    return kept, (target, expected, entropy, greedy)
