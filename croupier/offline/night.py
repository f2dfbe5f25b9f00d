"""A night: what it brings for every loop, and how its progress is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from croupier.offline.evaluate import Evaluation
from croupier.offline.gate import Verdict
from croupier.offline.imitation import Imitation
from croupier.offline.join import JoinReport
from croupier.offline.retention import RetentionReport
from croupier.offline.simulator_gap import GenerationGap
from croupier.offline.sink import SinkReport
from croupier.policy.oracle import Became, Fidelity

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ("LoopNight", "NightlyReport", "Steps")


class LoopNight(msgspec.Struct, frozen=True, kw_only=True):
    """What the night brought for one loop.

    Attributes
    ----------
    loop, join
        The loop and its join.
    champion
        Number of the generation that is champion afterwards.
    challenger, evaluation, verdict
        What was trained and how it was judged; None where there was too little data, or nothing
        that hadn't been there before.
    imitation
        How an apprentice was judged, instead of by an evaluation.
    report
        Where the page of the challenger's promotion report is; None where nothing was judged.
    fidelity
        How well the challenger's table stands for the oracle it was distilled from; None of any
        other kind.
    became
        What the challenger's oracle has become, if it is one that chooses by size; None of any
        other kind.
    resumed
        Whether the challenger was trained by an earlier night, which did not come to judge it.
    disparities
        Disparities between groups that have risen up to the latest generation, in sentences.
    unaudited
        Why groups were not audited although attributes are configured; None if they were.
    gaps
        What simulators of the users say of the generations that served, beside what was earned;
        empty where there are none, or nothing has come since.
    unsimulated
        Why that was not measured although a section `simulators` asks for it; None if it was.
    overridden
        What was done of a champion that a person had asked for, or why it could not be; None if
        nobody had.
    skipped
        Why nothing was trained, or why what was trained was not judged; None if all was done.
    failed
        Why training or judging broke off; None unless it did. Other loops go on.
    """

    loop: str
    join: JoinReport
    champion: int
    challenger: int | None = None
    resumed: bool = False
    disparities: tuple[str, ...] = ()
    unaudited: str | None = None
    evaluation: Evaluation | None = None
    verdict: Verdict | None = None
    imitation: Imitation | None = None
    report: str | None = None
    fidelity: Fidelity | None = None
    became: Became | None = None
    gaps: tuple[GenerationGap, ...] = ()
    unsimulated: str | None = None
    overridden: str | None = None
    skipped: str | None = None
    failed: str | None = None


class NightlyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a night brought."""

    sink: SinkReport
    loops: list[LoopNight]
    retention: RetentionReport


class Steps(Protocol):
    """Shows the progress of a named step."""

    def __call__(self, label: str, /) -> AbstractContextManager[Callable[[int, int], None]]:
        """Progress of one step: a context manager that gives a function of (done, in all)."""
        ...
