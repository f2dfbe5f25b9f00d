"""Who has earned more than whom in :mod:`benchmarks.learning_quality`.

Two learners that saw the same orders are compared, data set by data set, by the paired t test of
their rewards over the seeds, two-sided. Where all differences are the same there is nothing that
varies: no difference then has p 1, any other p 0. P-values are corrected by Holm over all that one
learner is compared with on a data set. A win, or a loss, is a difference with a corrected p below
:data:`ALPHA`; the plain one is there as well, since with few seeds a correction leaves little power
to see a loss.
"""

from __future__ import annotations

import msgspec
import numpy as np
from scipy import stats

__all__ = ("ALPHA", "Earned", "Record", "Standing", "Verdict", "records", "standings", "verdicts")

ALPHA = 0.05


class Earned(msgspec.Struct, frozen=True, kw_only=True):
    """One learner on one stream.

    Attributes
    ----------
    learner, data, seed
        Which.
    ours
        Whether it is Croupier's.
    most_rows
        At most how many rows of a data set were decided.
    rows
        How many there were.
    reward
        Progressive validation reward: the mean of the rewards from the first decision on; None if
        the learner failed.
    error
        What it failed by.
    seconds
        Of one worker.
    """

    learner: str
    data: str
    seed: int
    ours: bool
    most_rows: int
    rows: int
    reward: float | None
    error: str | None
    seconds: float


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One learner on one data set: its mean reward over the seeds, and the standard error."""

    learner: str
    data: str
    ours: bool
    reward: float
    error: float
    seeds: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One of ours beside another on one data set.

    Attributes
    ----------
    learner, other, data
        Who is compared, and where.
    difference
        Ours less the other's, per decision.
    p, p_holm
        Two-sided, plain and corrected.
    """

    learner: str
    other: str
    data: str
    difference: float
    p: float
    p_holm: float

    def won(self, *, corrected: bool = True) -> int:
        """1 for a win, -1 for a loss, 0 for neither."""
        p = self.p_holm if corrected else self.p
        return int(np.sign(self.difference)) if p < ALPHA else 0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Over all data sets: how one of ours did beside another.

    Attributes
    ----------
    other
        The other.
    difference
        Mean over data sets of ours less the other's.
    better, worse
        On how many data sets ours has earned more, or less, significantly or not.
    wins, losses
        Likewise, corrected by Holm.
    plain_wins, plain_losses
        Likewise, uncorrected.
    """

    other: str
    difference: float
    better: int
    worse: int
    wins: int
    losses: int
    plain_wins: int
    plain_losses: int


def standings(found: list[Earned]) -> list[Standing]:
    """Mean rewards, in the order in which learners and data sets were met."""
    told = []
    for (learner, data), rewards in _by_stream(found).items():
        values = np.array(list(rewards.values()))
        error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else float("nan")
        ours = next(each.ours for each in found if each.learner == learner)
        told.append(
            Standing(
                learner=learner,
                data=data,
                ours=ours,
                reward=float(values.mean()),
                error=float(error),
                seeds=values.size,
            )
        )
    return told


def verdicts(found: list[Earned], learner: str) -> list[Verdict]:
    """Compare one learner with all peers, where both have at least two seeds in common."""
    rewards = _by_stream(found)
    peers = list(dict.fromkeys(each.learner for each in found if not each.ours))
    told: list[Verdict] = []
    for data in dict.fromkeys(each.data for each in found):
        mine = rewards.get((learner, data), {})
        compared = []
        for other in peers:
            theirs = rewards.get((other, data), {})
            common = sorted(mine.keys() & theirs.keys())
            if len(common) >= 2:
                apart = np.array([mine[seed] - theirs[seed] for seed in common])
                compared.append((other, float(apart.mean()), _p_value(apart)))
        corrected = _holm([p for _, _, p in compared])
        told += [
            Verdict(learner=learner, other=other, data=data, difference=apart, p=p, p_holm=holm)
            for (other, apart, p), holm in zip(compared, corrected, strict=True)
        ]
    return told


def records(found: list[Verdict]) -> list[Record]:
    """Sum up over data sets, the strongest of the others first."""
    told = []
    for other in dict.fromkeys(each.other for each in found):
        own = [each for each in found if each.other == other]
        corrected = [each.won() for each in own]
        plain = [each.won(corrected=False) for each in own]
        apart = np.array([each.difference for each in own])
        told.append(
            Record(
                other=other,
                difference=float(apart.mean()),
                better=int((apart > 0).sum()),
                worse=int((apart < 0).sum()),
                wins=corrected.count(1),
                losses=corrected.count(-1),
                plain_wins=plain.count(1),
                plain_losses=plain.count(-1),
            )
        )
    return sorted(told, key=lambda each: each.difference)


def _by_stream(found: list[Earned]) -> dict[tuple[str, str], dict[int, float]]:
    """Rewards by learner and data set, then by seed; without those that failed."""
    told: dict[tuple[str, str], dict[int, float]] = {}
    for each in found:
        if each.reward is not None:
            told.setdefault((each.learner, each.data), {})[each.seed] = each.reward
    return told


def _p_value(apart: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    if (apart == apart[0]).all():
        return float(apart[0] == 0.0)
    return float(stats.ttest_1samp(apart, 0.0).pvalue)


def _holm(p_values: list[float]) -> list[float]:
    """Holm's correction (1979): ``max over i ≤ j of min(1, (m - i + 1) p_(i))``."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, p_values[index] * (len(order) - rank)))
        corrected[index] = floor
    return corrected
