"""What the gate hears of generations that decide from what came before: whole sessions.

Such a generation has no pmf for a decision by itself, and what it does now changes what it meets
later. So both it and the other are followed along the logged sessions, and what they would have
earned in a session is estimated (:mod:`croupier.offline.ope.sessions`). A row of such an evaluation
is a session and a value is what one is worth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
import polars as pl

from croupier.offline.delays import settled_interactions
from croupier.offline.evaluate import MIN_ROWS, Evaluation, PolicyValue
from croupier.offline.finding import Section
from croupier.offline.gate import judge_challenger
from croupier.offline.harm import GuardrailValue
from croupier.offline.log_calibration import calibrate_log
from croupier.offline.ope import SessionEstimator
from croupier.offline.ope.diagnostics import WeightMonitor
from croupier.offline.ope.session_differences import PairedSessions, SessionDifference
from croupier.offline.session_values import pmfs_along, session_batch
from croupier.offline.sessions import LoggedSessions, logged_sessions
from croupier.offline.stability import Stability, distances
from croupier.offline.weight_histogram import WeightHistogram
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from croupier.offline.evaluate import EstimatorName
    from croupier.offline.finding import SectionName
    from croupier.offline.gate import GateConfig, Verdict
    from croupier.offline.lake import Lake
    from croupier.offline.log_calibration import LogCalibration
    from croupier.offline.ope import SessionBatch
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = (
    "SESSION_KINDS",
    "JudgedOverSessions",
    "evaluate_over_sessions",
    "judge_over_sessions",
    "sessions_since",
)

SESSION_KINDS: Final[dict[EstimatorName, str]] = {"ips": "pdis", "snips": "wpdis", "dr": "wdr"}
"""What stands for the estimators of single decisions, see
:class:`~croupier.offline.ope.SessionEstimator`."""


def sessions_since(
    sessions: LoggedSessions, generations: Iterable[Generation | object]
) -> LoggedSessions:
    """Sessions that began after every one of some generations was made: none has seen them.

    Raises
    ------
    NotEnoughDataError
        If there are none.
    """
    origins = (getattr(each, "provenance", None) for each in generations)
    made = [each.created_us for each in origins if each is not None]
    if not made:
        return sessions
    begun = sessions.interactions["ts"].cast(pl.Int64).to_numpy()[sessions.row[:, 0]]
    try:
        return sessions.only(np.asarray(begun > max(made)))
    except NotEnoughDataError as error:
        raise NotEnoughDataError(
            "expected sessions that began after the latest generation was made, got none"
        ) from error


def evaluate_over_sessions(
    interactions: pl.DataFrame,
    champion: Generation,
    challenger: Generation,
    config: LoopConfig,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Estimate what two generations would have earned in a session, and the difference.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop; sessions that began before both were made are
        left alone.
    champion, challenger
        Of which at least one decides from what came before.
    config
        Of the loop. Its guardrails are not estimated over sessions; each of them is given without
        estimates, so that whoever asks for them is not told that all is well.
    confidence
        Of all intervals, in (0, 1).
    seed
        Of the critics' folds and trees.
    progress
        Called with policies asked and in all.

    Raises
    ------
    InvalidInputError
        If the loop has no sessions.
    NotEnoughDataError
        If fewer than 20 sessions tell of both.
    """
    if config.sessions is None:
        raise InvalidInputError("loop", "expected one with a section sessions")
    both = (champion, challenger)
    sessions = sessions_since(logged_sessions(interactions, config.sessions), both)
    names = tuple(f"generation {each.number}" for each in both)
    pmfs, tells = [], []
    for done, each in enumerate(both):
        if progress is not None:
            progress(done, len(both))
        found, of_it = pmfs_along(sessions, each)
        pmfs.append(found)
        tells.append(of_it)
    if progress is not None:
        progress(len(both), len(both))
    told = np.logical_and(*tells)
    if told.sum() < MIN_ROWS:
        raise NotEnoughDataError(
            f"an evaluation over sessions needs at least {MIN_ROWS} of which every step tells of "
            f"both generations, got {int(told.sum())} of {len(sessions)}"
        )
    kept = sessions.only(told)
    horizon, discount = sessions.row.shape[1], config.sessions.discount
    estimators = {
        kind: SessionEstimator.named(name, horizon=horizon, discount=discount)
        for kind, name in SESSION_KINDS.items()
    }
    batches = [
        session_batch(kept, sessions.of_rows(found)[told], list(estimators.values()), seed)
        for found in pmfs
    ]
    paired = PairedSessions(*batches)
    first, second = (
        _value(name, batch, estimators, confidence)
        for name, batch in zip(names, batches, strict=True)
    )
    live = sessions.row[told]
    rows = live[live >= 0]
    apart = distances(*([found[row] for row in rows] for found in pmfs))
    return Evaluation(
        loop=challenger.loop,
        unit="session",
        rows=len(kept),
        left_out=len(sessions) - len(kept),
        nonzero_rewards=int(np.count_nonzero(np.abs(kept.reward).sum(axis=1))),
        policies=(first, second),
        differences={
            kind: SessionDifference(each).add(paired).result(confidence)
            for kind, each in estimators.items()
        },
        stability=Stability.of(apart, np.ones(len(rows)), confidence),
        guardrails=tuple(
            GuardrailValue(name=name, rule=rule, rows=0, estimates=None)
            for name, rule in sorted(config.guardrails.items())
        ),
    )


class JudgedOverSessions(NamedTuple):
    """What was found about a challenger, and what the gate says to it."""

    evaluation: Evaluation
    calibration: LogCalibration
    verdict: Verdict


def judge_over_sessions(
    lake: Lake,
    config: LoopConfig,
    gate: GateConfig,
    generations: tuple[Generation, Generation],
    *,
    since: datetime | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> JudgedOverSessions:
    """Judge a challenger of which, or of whose champion, nothing but whole sessions can tell.

    What a loop asks of fairness and guardrails is not measured over sessions. A challenger of such
    a loop doesn't pass; a person may override that.

    Parameters
    ----------
    lake
        With the log.
    config, gate
        Of the loop, and what is asked.
    generations
        Champion and challenger.
    since
        Only decisions after this moment count; all if None.
    seed
        Of critics.
    progress
        As of :func:`evaluate_over_sessions`.

    Raises
    ------
    InvalidInputError
        If the loop has no sessions.
    NotEnoughDataError
        If too few sessions tell of both.
    """
    champion, challenger = generations
    loop = challenger.loop
    rows = settled_interactions(lake, loop, config).sort("offset", "decision_id").collect()
    rows = rows if since is None else rows.filter(pl.col("ts") > since)
    evaluation = evaluate_over_sessions(
        rows,
        champion,
        challenger,
        config,
        confidence=gate.confidence,
        seed=seed,
        progress=progress,
    )
    calibration = calibrate_log(lake, loop, rows, level=gate.calibration_level)
    unjudged: dict[SectionName, bool] = {
        "fairness": config.fairness.limits.asked > 0,
        "individual_fairness": config.individual_fairness is not None,
    }
    why = "it is not measured over whole sessions"
    missing = [Section.unmeasured(name, why) for name, asked in unjudged.items() if asked]
    verdict = judge_challenger(gate, evaluation, [calibration.section(), *missing])
    if missing:
        against = [f"{each.title} is asked for: {why}" for each in missing]
        reasons = against if verdict.promote else [*verdict.reasons, *against]
        verdict = msgspec.structs.replace(verdict, promote=False, reasons=reasons)
    return JudgedOverSessions(evaluation, calibration, verdict)


def _value(
    name: str,
    batch: SessionBatch,
    estimators: dict[EstimatorName, SessionEstimator],
    confidence: float,
) -> PolicyValue:
    """One policy's value of a session; its weights are those of whole sessions."""
    weight = batch.weights("cumulative", batch.reward.shape[1])[:, -1]
    return PolicyValue(
        name=name,
        estimates={
            kind: type(each)(
                weights=each.weights,
                normalised=each.normalised,
                control=each.control,
                horizon=each.horizon,
                discount=each.discount,
            )
            .add(batch)
            .result(confidence)
            for kind, each in estimators.items()
        },
        support=WeightMonitor().add(weight).result(),
        largest_weight=None,
        weights=WeightHistogram.of(weight, np.ones(len(weight))),
    )
