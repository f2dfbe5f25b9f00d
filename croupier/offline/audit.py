"""Auditing a log: do the propensities hold, and can every draw be replayed?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.offline.draw_sums import Draws, DrawSums
from croupier.offline.join import fold_of
from croupier.offline.propensity import (
    PmfViolations,
    PropensityTest,
    pmf_violations,
    propensity_test,
)
from croupier.policy.sampling import draw
from croupier.policy.slates import replay_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = (
    "PropensityAudit",
    "audit_propensities",
    "contradictions",
    "draws_of",
    "draws_test",
    "replayed_differently",
)

_SUM_TOLERANCE = 1e-6


class PropensityAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a log.

    Attributes
    ----------
    decisions
        Rows looked at.
    without_pmf
        Imported rows that have a propensity but no pmf; they can't be audited.
    violations
        Rows that contradict themselves.
    bad_keep_prob
        Rows whose keep_prob is not a probability above 0; nobody knows what they stand for.
    replayed, replay_mismatches
        Draws made again from pmf and draw key, and those that came out differently.
    test
        Whether draws happened with the probabilities that were logged; None without any.
    """

    decisions: int
    without_pmf: int
    violations: PmfViolations | None
    bad_keep_prob: int
    replayed: int
    replay_mismatches: int
    test: PropensityTest | None


def audit_propensities(
    decisions: pl.DataFrame, progress: Callable[[int, int], None] | None = None
) -> PropensityAudit:
    """Audit rows of the decisions or the interactions table."""
    logged = decisions.filter(pl.col("pmf").is_not_null())
    keep = pl.col("keep_prob")
    fine = (keep > 0.0) & (keep <= 1.0)
    bad_keep_prob = len(decisions) - decisions.filter(fine).height
    if logged.is_empty():
        return PropensityAudit(
            decisions=len(decisions),
            without_pmf=len(decisions),
            violations=None,
            bad_keep_prob=bad_keep_prob,
            replayed=0,
            replay_mismatches=0,
            test=None,
        )
    drawn = logged.filter(pl.col("draw_key") != "")
    # Another system's draws are nothing that a generation of ours is accountable for.
    own = logged.filter(pl.col("generation").is_not_null())
    return PropensityAudit(
        decisions=len(decisions),
        without_pmf=len(decisions) - len(logged),
        violations=contradictions(logged),
        bad_keep_prob=bad_keep_prob,
        replayed=len(drawn),
        replay_mismatches=int(replayed_differently(drawn, progress).sum()),
        test=None if own.is_empty() else draws_test(own),
    )


def contradictions(decisions: pl.DataFrame) -> PmfViolations:
    """Count the rows that contradict themselves; all of them must have a pmf."""
    flat, offsets = _flat(decisions["pmf"])
    # Whose pmf has another length than the actions has chosen nothing that the two agree on.
    chosen = decisions.select(pl.when(_fits()).then("chosen").otherwise(-1)).to_series()
    return pmf_violations(
        flat, chosen.to_numpy(), decisions["propensity"].to_numpy(), offsets=offsets
    )


def replayed_differently(
    drawn: pl.DataFrame, progress: Callable[[int, int], None] | None = None
) -> pl.Series:
    """Whether another action comes of a row's pmf and draw key than was logged; of every row.

    Parameters
    ----------
    drawn
        Rows of the decisions or the interactions table, with a pmf and a draw key.
    progress
        Called with rows done and in all.
    """
    n = len(drawn)
    differently = []
    rows = drawn.select("pmf", "draw_key", "slot", "slate_size", "chosen").iter_rows()
    for row, (pmf, key, slot, size, chosen) in enumerate(rows, start=1):
        differently.append(_replayed(pmf, key, slot, size) != chosen)
        if progress is not None and (row % 1000 == 0 or row == n):
            progress(row, n)
    return pl.Series(differently, dtype=pl.Boolean)


def draws_test(decisions: pl.DataFrame) -> PropensityTest:
    """Test that actions were drawn with the logged probabilities; rows must have a pmf.

    Rows that contradict themselves are passed over: :func:`audit_propensities` counts them, and no
    draw can be expected of a pmf that is none.

    The test adds up the covariances of single draws, so that draws must be uncorrelated. Those of a
    ranking and of slots are: each has the pmf that it had given all before it, and what it differs
    from that by has mean 0 whatever came before (a martingale difference). The places of a slate
    exclude each other without saying so in their pmfs, which are marginal ones; one of them is
    tested, picked by a hash of the decision's id that the draw doesn't depend on.

    Rows of a subsampled log have no weights here, as none are needed: whether a decision is kept is
    decided by a hash of its own, so that those that were kept were drawn with the logged
    probabilities too, each of them.
    """
    decisions = _tested(decisions)
    draws, actions, _ = _entries(decisions)
    return propensity_test(
        draws.pmf,
        draws.chosen,
        offsets=draws.offsets,
        actions=actions,
        generations=decisions["generation"].to_numpy(),
    )


def draws_of(decisions: pl.DataFrame) -> tuple[list[str], DrawSums]:
    """What :func:`draws_test` tests of one generation's rows, as sums of actions, and these.

    Parameters
    ----------
    decisions
        Rows of the decisions or the interactions table, of one generation.

    Returns
    -------
    list of str, DrawSums
        Ids of the actions, in ascending order, which are the cells of the sums.
    """
    draws, actions, ids = _entries(_tested(decisions))
    return ids, DrawSums.of(draws, actions, len(ids))


def _tested(decisions: pl.DataFrame) -> pl.DataFrame:
    return _without_other_places(decisions.filter(_consistent()))


def _entries(decisions: pl.DataFrame) -> tuple[Draws, NDArray[np.int64], list[str]]:
    """Flat draws, and the action of every entry as its place among the ids of all, in order."""
    flat, offsets = _flat(decisions["pmf"])
    actions = decisions["action_ids"].explode()
    ids = actions.unique().sort()
    place = actions.cast(pl.Enum(ids)).to_physical().to_numpy().astype(np.int64)
    chosen = decisions["chosen"].to_numpy().astype(np.int64)
    return Draws(flat.astype(np.float64), offsets, chosen), place, ids.to_list()


def _fits() -> pl.Expr:
    """Whether there is a probability for every action."""
    return pl.col("pmf").list.len() == pl.col("action_ids").list.len()


def _consistent() -> pl.Expr:
    """Whether a row's pmf is a distribution over its actions, and an action of it was chosen."""
    pmf, chosen = pl.col("pmf"), pl.col("chosen")
    return (
        _fits()
        & (pmf.list.min() >= 0.0)
        & ((pmf.list.sum() - 1.0).abs() <= _SUM_TOLERANCE)
        & (chosen >= 0)
        & (chosen < pmf.list.len())
    )


def _without_other_places(decisions: pl.DataFrame) -> pl.DataFrame:
    """All rows but those of slates, and one place of each of these."""
    rows = decisions.select("decision_id", "slot", "slate_size").iter_rows()
    tested = [
        size is None or slot == str(fold_of(decision_id) % size) for decision_id, slot, size in rows
    ]
    return decisions.filter(pl.Series(tested, dtype=pl.Boolean))


def _flat(lists: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All entries one after the other, and where each row's begin."""
    lengths = lists.list.len().to_numpy().astype(np.int64)
    return lists.explode().to_numpy(), np.concatenate([[0], np.cumsum(lengths)])


def _replayed(pmf: list[float], key: str, slot: str | None, size: int | None) -> int | None:
    """What the key draws from the pmf; None if it doesn't draw anything."""
    try:
        if size is None:
            return draw(np.array(pmf), key)
        return replay_place(np.array(pmf), size, slot or "", key)
    except (IndexError, OverflowError, ValueError):
        return None
