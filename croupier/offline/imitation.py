"""Imitation: what an apprentice learns from the baseline's choices, and how its skill is judged.

A loop in mode ``apprentice`` plays the application's own choice. That choice is full information of
what is to be imitated, the right action and all the wrong ones, so nothing has to be explored and
no propensity to be divided by. The rewards that are learned here, 1 for the baseline's action and 0
for another, are made up while training and kept nowhere: real rewards never mix with them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
from scipy import stats

from croupier.offline.gate import Verdict
from croupier.offline.interactions import keep_weights, learning_weights, logged_requests
from croupier.offline.shares import effective_rows, wilson_interval
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import Conservative
from croupier.policy.exploration.base import share_of_best
from croupier.policy.oracle import TrainingRow
from croupier.policy.sampling import draw, draw_key, uniform_of_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.generation import Generation

__all__ = (
    "Imitation",
    "MatchRate",
    "imitation_lessons",
    "judge_imitation",
    "match_rate",
    "served_match_rate",
    "sign_test",
)

MIN_ROWS = 20


class MatchRate(msgspec.Struct, frozen=True, kw_only=True):
    """How often a generation's most probable action is the baseline's.

    Attributes
    ----------
    rows
        Decisions judged on.
    value
        Share of them in [0, 1]; a decision where n actions tie and one is the baseline counts 1/n.
        In a subsampled log it is the share of all decisions, each row counting ``1 / keep_prob``
        times.
    lower, upper
        Wilson interval, for the effective sample size.
    confidence
        Of the interval, in (0, 1).
    """

    rows: int
    value: float
    lower: float
    upper: float
    confidence: float


class Imitation(msgspec.Struct, frozen=True, kw_only=True):
    """A champion and a challenger as imitators, on decisions that neither learned from.

    Attributes
    ----------
    champion, challenger
        Their match rates.
    wins, losses
        Decisions where only the challenger matches, and where only the champion does.
    p_value
        Of the sign test that the challenger matches no more often (one-sided): exact where all rows
        were kept in the log with the same probability, else see :func:`sign_test`.
    left_out
        Decisions without a known baseline or a choice, or that can't be encoded.
    served
        Match rate of what was logged while apprentices were served, over all of the log; None
        where nothing was.
    """

    champion: MatchRate
    challenger: MatchRate
    wins: int
    losses: int
    p_value: float
    left_out: int
    served: MatchRate | None = None


def imitation_lessons(
    interactions: pl.DataFrame, weights: NDArray[np.float64] | None = None
) -> Iterator[list[TrainingRow]]:
    """Make of every interaction what teaches to choose as the baseline does.

    The baseline's action gets reward 1; one of the other eligible ones, drawn by a hash of the
    decision's id, gets reward 0 and weight K - 1, so that it stands for all of them:
    ``E Σ weight·loss = Σ_a loss(a)``. Both have propensity 1, as both rewards are known. An
    interaction with an unknown baseline or a single eligible action teaches nothing.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    weights
        Importance of every row, shape (n,); `learning_weights` if None.
    """
    each = (learning_weights(interactions) if weights is None else weights).tolist()
    for (request, key), importance in zip(_requests(interactions), each, strict=True):
        if request.baseline is None or not _is_a_choice(request):
            continue
        others = _others(request)
        other = draw(others / np.count_nonzero(others), key)
        shares = ((request.baseline, 1.0, 1.0), (other, 0.0, float(np.count_nonzero(others))))
        yield [
            TrainingRow(
                context=request.context,
                actions=request.actions,
                chosen=chosen,
                propensity=1.0,
                reward=reward,
                weight=weight * importance,
            )
            for chosen, reward, weight in shares
        ]


def judge_imitation(
    interactions: pl.DataFrame,
    champion: Generation,
    challenger: Generation,
    *,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Imitation, Verdict]:
    """Compare two generations by how often they would choose as the baseline does.

    The challenger has to match significantly more often by McNemar's exact test, the sign test of
    the decisions where one matches and the other doesn't. Where actions tie, whether the tie hits
    the baseline is drawn for the test with the tie's share, by one number for both generations, so
    that the expected difference of wins and losses is that of the match rates.

    Parameters
    ----------
    interactions
        Rows of the interactions table that neither learned from, of one loop.
    champion, challenger
        The generations. Of a conservative one the inner exploration is judged, as its mixture
        plays the baseline whatever it has learned.
    confidence
        Of the intervals; the test is made at level ``(1 - confidence) / 2``, one-sided, as an
        interval's lower end would be.
    progress
        Called with rows done and in all.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 rows to judge on.
    """
    n = len(interactions)
    stands_for = keep_weights(interactions)
    judged, matches, hits = [], [], []
    for row, (request, key) in enumerate(_requests(interactions)):
        if progress is not None and (row % 500 == 499 or row + 1 == n):
            progress(row + 1, n)
        pair = _pair(champion, challenger, request)
        if pair is not None:
            judged.append(row)
            matches.append(pair)
            hits.append([uniform_of_key(key) < each for each in pair])
    if len(matches) < MIN_ROWS:
        raise NotEnoughDataError(
            f"imitation is judged on at least {MIN_ROWS} decisions with a known baseline and a "
            f"choice, got {len(matches)}"
        )
    shares, hit, weights = np.array(matches), np.array(hits), stands_for[judged]
    won, lost = hit[:, 1] & ~hit[:, 0], hit[:, 0] & ~hit[:, 1]
    imitation = Imitation(
        champion=match_rate(shares[:, 0], confidence, weights),
        challenger=match_rate(shares[:, 1], confidence, weights),
        wins=int(won.sum()),
        losses=int(lost.sum()),
        p_value=sign_test(weights[won], weights[lost]),
        left_out=n - len(matches),
    )
    return imitation, _verdict(imitation, champion.number, challenger.number, confidence)


def served_match_rate(interactions: pl.DataFrame, *, confidence: float = 0.95) -> MatchRate | None:
    """Match rate of the apprentices that were served, from the shadows that were logged.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    confidence
        Of the interval, in (0, 1).
    """
    if "shadow" not in interactions.columns:
        return None
    shadowed = interactions.filter(
        pl.col("learning_mode") == "apprentice",
        pl.col("shadow").is_not_null(),
        pl.col("baseline").is_not_null(),
    )
    if shadowed.is_empty():
        return None
    shares = [
        float(share_of_best(np.array(shadow["pmf"]))[baseline])
        for baseline, shadow in shadowed.select("baseline", "shadow").iter_rows()
    ]
    return match_rate(np.array(shares), confidence, keep_weights(shadowed))


def match_rate(
    shares: NDArray[np.float64], confidence: float, weights: NDArray[np.float64] | None = None
) -> MatchRate:
    """Mean of matches with its Wilson interval.

    Shares of ties vary less than the zeros and ones that the interval is made for, so it covers
    them too. With weights it is that of the weighted mean, for the effective sample size.

    Parameters
    ----------
    shares
        Of the baseline in every decision's most probable actions, shape (n,), n ≥ 1, in [0, 1].
    confidence
        In (0, 1).
    weights
        How many decisions each stands for, shape (n,), positive; the same for all if None.
    """
    counted = np.ones(shares.size) if weights is None else weights / weights.min()
    p = float((counted * shares).sum() / counted.sum())
    lower, upper = wilson_interval(p, effective_rows(counted), confidence)
    return MatchRate(rows=shares.size, value=p, lower=lower, upper=upper, confidence=confidence)


def sign_test(won: NDArray[np.float64], lost: NDArray[np.float64]) -> float:
    """P-value of the one-sided sign test that no more is won than lost in all decisions.

    With equal weights it is the exact binomial one. With others ``D = Σ_won c - Σ_lost c``
    estimates wins less losses of all decisions, with a variance of at most ``Σ c²`` (reached where
    every decision is won as easily as lost), and ``(D - max c) / sqrt(Σ c²)`` is compared with the
    normal distribution: the continuity correction takes off as much as the largest row weighs.

    Parameters
    ----------
    won, lost
        How many decisions each row stands for that only one side has won, or lost.
    """
    weights = np.concatenate([won, lost])
    if not weights.size or weights.min() == weights.max():
        return float(stats.binom.sf(won.size - 1, weights.size, 0.5))
    lead = float(won.sum() - lost.sum()) - float(weights.max())
    return float(stats.norm.sf(lead / math.sqrt(float(weights @ weights))))


def _requests(interactions: pl.DataFrame) -> Iterator[tuple[LoggedRequest, str]]:
    """Requests, each with a key for the draws that are made of it."""
    names = interactions.select("loop", "decision_id", "slot").iter_rows()
    for request, (loop, decision_id, slot) in zip(
        logged_requests(interactions), names, strict=True
    ):
        yield request, draw_key(loop, 0, f"imitation/{decision_id}", slot)


def _is_a_choice(request: LoggedRequest) -> bool:
    """Whether the baseline is known and chose one of several; a place of a slate is no choice."""
    known = request.baseline is not None and request.slate_size is None
    return known and bool(_others(request).any())


def _others(request: LoggedRequest) -> NDArray[np.bool_]:
    """Eligible actions but the baseline's, shape (K,)."""
    others = np.ones(len(request.actions), dtype=np.bool_)
    if request.eligible is not None:
        others &= request.eligible
    if request.baseline is not None:
        others[request.baseline] = False
    return others


def _pair(
    champion: Generation, challenger: Generation, request: LoggedRequest
) -> tuple[float, float] | None:
    """Shares of the baseline among both generations' most probable actions."""
    if not _is_a_choice(request):
        return None
    try:
        return _match(champion, request), _match(challenger, request)
    except InvalidInputError:
        return None


def _match(generation: Generation, request: LoggedRequest) -> float:
    if isinstance(generation.exploration, Conservative):
        generation = replace(generation, exploration=generation.exploration.inner)
    pmf, _ = generation.pmf(request.context, request.actions, request.eligible, request.baseline)
    assert request.baseline is not None, "it is a choice"
    return float(share_of_best(pmf)[request.baseline])


def _verdict(imitation: Imitation, champion: int, challenger: int, confidence: float) -> Verdict:
    shown = (
        f"generation {challenger} chooses as the baseline does in "
        f"{100 * imitation.challenger.value:.1f} % of {imitation.challenger.rows:,} decisions, "
        f"generation {champion} in {100 * imitation.champion.value:.1f} %"
    )
    level = (1.0 - confidence) / 2.0
    promote = imitation.p_value < level
    sign = "<" if promote else "≥"
    tested = f"p-value {imitation.p_value:.3g} {sign} {level:g}"
    return Verdict(promote=promote, reasons=[f"{shown}: {tested}"])
