"""The rows of a log that tell about all of some policies, as each of them sees the rows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from croupier.offline.evaluate import MIN_ROWS
from croupier.offline.ope import LoggedBatch
from croupier.offline.ope.diagnostics import (
    SupportLimits,
    WeightDiagnostics,
    WeightMonitor,
    objections,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from croupier.offline.answers import Answers

    BoolArray: TypeAlias = NDArray[np.bool_]

__all__ = ("CommonRows",)


class CommonRows:
    """What is known of a log's rows, and of policies on them.

    Parameters
    ----------
    interactions
        Rows of the interactions table, n of them.
    names
        Of the policies, in the order of the answers; others may have been asked after them.
    logged
        Which of them is whatever made the log.
    answers
        Of the policies.
    reward_range
        Smallest and largest possible reward.
    limits
        From when on the log says too little about a policy.

    Attributes
    ----------
    common
        Which rows tell about all of the policies, shape (n,).
    reward, propensity, keep_prob, row_id
        Of all rows, shape (n,).
    """

    def __init__(
        self,
        interactions: pl.DataFrame,
        names: Sequence[str],
        logged: Sequence[bool],
        answers: Answers,
        *,
        reward_range: tuple[float, float],
        limits: SupportLimits,
    ) -> None:
        self.names = tuple(names)
        self.logged = tuple(logged)
        self.answers = answers
        self.reward_range = reward_range
        self.limits = limits
        self.common: BoolArray = np.all(answers.usable[: len(self.names)], axis=0)
        self.reward = interactions["reward"].to_numpy()
        self.propensity = interactions["propensity"].to_numpy()
        self.keep_prob = interactions["keep_prob"].to_numpy()
        self.row_id = _row_ids(interactions)

    def batch(self, policy: int, rows: BoolArray) -> LoggedBatch:
        """Some rows as a policy sees them."""
        answers = self.answers
        return LoggedBatch(
            reward=self.reward[rows],
            propensity=self.propensity[rows],
            target_probability=answers.probability[policy, rows],
            keep_prob=self.keep_prob[rows],
            q_logged=answers.q_logged[rows],
            q_target=answers.q_target[policy, rows],
            row_id=self.row_id[rows],
        )

    def weight_range(self, policy: int) -> tuple[float, float]:
        """Within which every weight lies that the rows could have given."""
        if self.logged[policy]:
            return (1.0, 1.0)
        largest = self.answers.largest[policy, self.common]
        return (0.0, float(largest.max(initial=1.0)))

    def support(self, policy: int, rows: BoolArray) -> WeightDiagnostics | None:
        """What the weights of some rows say, and those of them that are left out."""
        used = rows & self.common
        if np.count_nonzero(used) < 2:
            return None
        weight = self.answers.probability[policy, used] / self.propensity[used]
        found = WeightMonitor().add(weight, keep_prob=self.keep_prob[used]).result()
        return msgspec.structs.replace(found, deficient=self.deficient(policy, rows))

    def deficient(self, policy: int, rows: BoolArray) -> float:
        """Share of its choices that could not have been drawn where the log explored."""
        explored = rows & self.answers.explored
        keep = 1.0 / self.keep_prob[explored]
        unseen = self.answers.unseen[policy, explored]
        return float(keep @ unseen / keep.sum()) if len(keep) else 0.0

    def objections(
        self, policy: int, support: WeightDiagnostics | None, rows: BoolArray
    ) -> list[str]:
        """What speaks against believing a policy's values on some rows."""
        name, used = self.names[policy], rows & self.common
        count = int(np.count_nonzero(used))
        if support is None or count < MIN_ROWS:
            left_out = int(np.count_nonzero(rows)) - count
            deficient = self.deficient(policy, rows)
            reason = (
                f"{count:,} interactions tell about all policies, fewer than {MIN_ROWS}: "
                f"{left_out:,} others don't, and {100 * deficient:.2g} % of the choices of {name} "
                f"could never have been logged"
            )
            return [reason]
        keep = 1.0 / self.keep_prob[used]
        largest = self.weight_range(policy)[1] * float(keep.max() / keep.mean())
        return objections(name, support, self.limits, largest=largest)


def _row_ids(interactions: pl.DataFrame) -> NDArray[np.uint64]:
    """What tells the rows apart to a bootstrap, for ever the same, shape (n,)."""
    found = np.empty(len(interactions), dtype=np.uint64)
    for row, (decision_id, slot) in enumerate(
        interactions.select("decision_id", "slot").iter_rows()
    ):
        name = decision_id if slot is None else f"{decision_id}\x00{slot}"
        digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"croupier-boot-1")
        found[row] = int.from_bytes(digest.digest(), "big")
    return found
