"""``croupier evaluate --sessions``: what policies are worth over whole sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from croupier.cli.options import Session
from croupier.cli.output import interval, write_json
from croupier.offline.delays import settled_interactions
from croupier.offline.ope import SESSION_ESTIMATORS
from croupier.offline.policies import named_policies
from croupier.offline.session_gate import sessions_since
from croupier.offline.session_values import SessionComparison, compare_over_sessions
from croupier.offline.sessions import logged_sessions
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl


__all__ = ("evaluate_sessions",)


def evaluate_sessions(
    session: Session,
    policies: Sequence[str],
    loop: str | None,
    *,
    estimators: Sequence[str],
    confidence: float,
    output: Path | None,
) -> None:
    """Compare policies over the sessions of a loop, or of all that have some.

    Raises
    ------
    InvalidInputError
        If a loop has no sessions configured, or something asked for doesn't exist.
    NotEnoughDataError
        If there are too few sessions.
    """
    configured = [name for name, each in session.config.loops.items() if each.sessions is not None]
    names = configured if loop is None else [loop]
    if not names:
        raise InvalidInputError("loop", "expected one with a section sessions, none has one")
    found = {name: _compare_in(session, policies, name, estimators, confidence) for name in names}
    if output is not None:
        write_json(output, found)

    def show() -> None:
        for name, each in found.items():
            _show(session, name, each)

    session.output.result(found, show)


def _compare_in(
    session: Session, policies: Sequence[str], name: str, estimators: Sequence[str], level: float
) -> SessionComparison:
    config = session.config.loop(name)
    if config.sessions is None:
        raise InvalidInputError("loop", f"expected one with a section sessions, got {name!r}")
    rows = settled_interactions(session.lake, name, config).collect()

    def learner_rows() -> pl.DataFrame:
        raise InvalidInputError("policy", "expected no best-fixed with --sessions")

    asked = named_policies(policies, session.registry, name, config, learner_rows)
    sessions = sessions_since(logged_sessions(rows, config.sessions), asked.values())
    with session.output.progress(f"{name}: evaluate sessions") as progress:
        return compare_over_sessions(
            sessions,
            asked,
            discount=config.sessions.discount,
            estimators=estimators or tuple(SESSION_ESTIMATORS),
            confidence=level,
            seed=session.config.nightly.seed,
            progress=progress,
        )


def _show(session: Session, name: str, found: SessionComparison) -> None:
    session.output.table(
        f"{name}: {found.sessions:,} sessions, {found.decisions:,} decisions, at most "
        f"{found.horizon} steps, discount {found.discount:g}",
        ["policy", "estimator", "value of a session", "interval", "ess", "mean weight", "doubts"],
        [
            [
                policy.name,
                each.estimator,
                round(each.value, 4),
                interval(each.lower, each.upper),
                round(each.ess, 1),
                round(each.mean_weight, 3),
                ", ".join(each.doubts),
            ]
            for policy in found.policies
            for each in policy.estimates
        ],
    )
    for policy in found.policies:
        if policy.left_out:
            session.output.remark(
                f"{name}: {policy.left_out:,} sessions say nothing about {policy.name}: it may do "
                f"there what could not have been drawn"
            )
