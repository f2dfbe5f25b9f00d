"""The command that learns online: train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from croupier.cli.config import with_settings
from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, LoopOption, Session
from croupier.cli.stopping import stop_on_signals
from croupier.offline.follow import FollowingLearner, LoopRound
from croupier.offline.nightly import Nightly
from croupier.offline.sink import sink
from croupier.policy.errors import CroupierError, InvalidInputError
from croupier.policy.loop import parse_duration
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.cli.stopping import Stop

__all__ = ("register",)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(train)


def train(
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on learning until told to stop.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Do a single round.")] = False,
    every: Annotated[
        str, typer.Option(help="How long after a round the next one begins.")
    ] = "10 s",
    loop: LoopOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Learn online: sink, join, learn what was joined, and publish when it is due.

    What is published goes through the same gate as the night's challenger.
    """
    if not (follow or once):
        raise InvalidInputError("follow", "expected --follow, or --once for a single round")
    pause_s = _pause_s(every)
    session = Session.open(config, data_dir, json=json)
    rounds = _Rounds(session, session.loops(loop))
    session.warn()
    if once:
        found = rounds.next()
        session.output.result(found, lambda: _show(session, found))
        raise typer.Exit(1 if any(each.failed is not None for each in found) else 0)
    with stop_on_signals() as stop:
        _follow(session, rounds.next, pause_s, stop)


class _Rounds:
    """Rounds of learning, by the loops' settings as they are at the time.

    Parameters
    ----------
    session, names
        Configuration, and the loops to learn from.

    Raises
    ------
    ConfigError
        If one of them has an oracle that can't learn online.
    """

    def __init__(self, session: Session, names: list[str]) -> None:
        self._session = session
        self._names = names
        self._loops = session.config.loops
        self._learner = FollowingLearner(session.nightly, names)

    def next(self) -> list[LoopRound]:
        """Do a round; raises LakeLockedError if another process is writing to the lake."""
        session = self._session
        loops = with_settings(session.configured, session.paths).loops
        if loops != self._loops:
            nightly = Nightly(session.lake, session.registry, loops, session.config.nightly)
            self._learner, self._loops = FollowingLearner(nightly, self._names), loops
        with session.log() as log, session.lake.lock():
            sink(log, session.lake)
            return self._learner.round(now_us=now_us())


def _follow(
    session: Session, next_round: Callable[[], list[LoopRound]], pause_s: float, stop: Stop
) -> None:
    """Do rounds until SIGTERM or SIGINT; what goes wrong may be right the next time."""
    session.output.remark("learning; stop with SIGTERM or SIGINT")
    said = ""
    while not stop.requested:
        try:
            found = next_round()
        except CroupierError as error:
            # The lake is in use, or the log or the registry away. Not to be said every time.
            if str(error) != said:
                session.output.warn(f"this round is left out: {error}")
            said = str(error)
        else:
            said = ""
            _show_round(session, found)
        stop.wait(pause_s)


def _show_round(session: Session, found: list[LoopRound]) -> None:
    """Print what is new: a line of JSON for every loop, or of text."""
    for each in found:
        if session.output.json:
            session.output.result(each, lambda: None)
        elif each.learned or each.published is not None or each.failed is not None:
            _show(session, [each])


def _show(session: Session, found: list[LoopRound]) -> None:
    for each in found:
        joined = each.join
        session.output.remark(
            f"{each.loop}: {joined.joined:,} interactions joined ({joined.observed:,} observed), "
            f"{each.learned:,} learned, {each.lessons:,} in all; champion is generation "
            f"{each.champion}"
        )
        if each.published is not None:
            session.output.remark(f"{each.loop}: published generation {each.published}")
        if each.verdict is not None:
            gate = "let it through" if each.verdict.promote else "held it back"
            session.output.remark(
                f"{each.loop}: the gate {gate}: {'; '.join(each.verdict.reasons)}"
            )
        if each.report is not None:
            session.output.remark(f"{each.loop}: promotion report at {each.report}")
        if each.waiting is not None:
            session.output.remark(f"{each.loop}: {each.waiting}")
        if each.failed is not None:
            session.output.remark(f"{each.loop}: failed: {each.failed}")


def _pause_s(every: str) -> float:
    try:
        pause_s = parse_duration(every) / 1e6
    except ValueError as error:
        raise InvalidInputError("every", str(error)) from error
    if pause_s <= 0:
        raise InvalidInputError("every", f"expected a positive duration, got {every!r}")
    return pause_s
