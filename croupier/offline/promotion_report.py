"""The promotion report: all that was found about one generation, and what then became of it.

There is one for every generation that was judged, whatever the verdict, and for every one that a
person made champion or took back. It is kept with the generation's MLflow run, as JSON for programs
and as a page for people. The judgement in it is the last one; every earlier one, and every
promotion, override and rollback, is an event of it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from croupier.offline.evaluate import Evaluation
from croupier.offline.fairness.candidate_audit import CandidateAudit
from croupier.offline.gate import GateConfig, Verdict
from croupier.offline.imitation import Imitation
from croupier.offline.log_calibration import LogCalibration
from croupier.offline.report_page import page
from croupier.policy.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from croupier.offline.registry import Registry

__all__ = (
    "REPORT_JSON",
    "REPORT_PAGE",
    "EventKind",
    "Judged",
    "PromotionReport",
    "ReportEvent",
    "keep_judgement",
    "note_event",
    "read_report",
    "report_json",
)

REPORT_JSON, REPORT_PAGE = "promotion/report.json", "promotion/report.html"
"""Where the report stands among the artifacts of the generation's run."""

_FORMAT = 1
_log = logging.getLogger(__name__)

EventKind: TypeAlias = Literal[
    "judged", "promoted", "overridden", "rolled back", "restored", "reset"
]


class ReportEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a generation.

    Attributes
    ----------
    ts
        When, in microseconds since the Unix epoch.
    kind
        What.
    told
        The verdict, or the reason that was given.
    by
        Who did it; empty for the gate.
    """

    ts: int
    kind: EventKind
    told: str
    by: str = ""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A judgement, with all that it rests on.

    Attributes
    ----------
    ts
        When, in microseconds since the Unix epoch.
    against
        Number of the champion.
    gate
        What was asked.
    verdict
        With its sections.
    since
        Only decisions after this moment counted, in microseconds since the epoch, because of a
        rollback; None if all did.
    evaluation, calibration
        The estimates, and the test of the log that they were made from; None of an apprentice.
    fairness
        What the two do to groups; None where no attribute is configured, or nothing could be told.
    imitation
        How an apprentice was judged; None of any other.
    """

    ts: int
    against: int
    gate: GateConfig
    verdict: Verdict
    since: int | None = None
    evaluation: Evaluation | None = None
    calibration: LogCalibration | None = None
    fairness: CandidateAudit | None = None
    imitation: Imitation | None = None


class PromotionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One generation's report.

    Attributes
    ----------
    format
        Of these fields.
    loop, generation
        Whose.
    parent, created, training_rows, exploration, oracle
        Where it comes from; `created` in microseconds since the epoch. None where the table doesn't
        tell.
    judged
        The last judgement; None if there was none.
    events
        In the order in which they happened.
    """

    format: int = _FORMAT
    loop: str
    generation: int
    parent: int | None = None
    created: int | None = None
    training_rows: int | None = None
    exploration: str | None = None
    oracle: str | None = None
    judged: Judged | None = None
    events: tuple[ReportEvent, ...] = ()


def keep_judgement(registry: Registry, row: Mapping[str, Any], judged: Judged) -> PromotionReport:
    """Put a judgement into a generation's report, in the place of the one before.

    Parameters
    ----------
    registry
        That has the generation.
    row
        Of the generations table.
    judged
        The judgement.
    """
    told = "; ".join(judged.verdict.reasons)
    event = ReportEvent(ts=judged.ts, kind="judged", told=told)
    try:
        present = read_report(registry, row["loop"], row["generation"])
    except GenerationError as error:
        _log.warning("loop %s: a report is written anew: %s", row["loop"], error)
        present = None
    report = _with_event(present or _report_of(row), event)
    report = msgspec.structs.replace(report, judged=judged)
    _write(registry, report)
    return report


def note_event(registry: Registry, row: Mapping[str, Any], event: ReportEvent) -> None:
    """Add an event to a generation's report, once; the cold start has none.

    Parameters
    ----------
    registry
        That has the generation.
    row
        Of the generations table.
    event
        What happened.
    """
    loop, generation = row["loop"], row["generation"]
    if generation == 0:
        return
    try:
        present = read_report(registry, loop, generation)
    except GenerationError as error:
        # What a later version wrote is more than this one could write anew.
        _log.warning("loop %s: %r is not noted in the report: %s", loop, event.kind, error)
        return
    report = _with_event(present or _report_of(row), event)
    if report != present:
        _write(registry, report)


def read_report(registry: Registry, loop: str, generation: int) -> PromotionReport | None:
    """A generation's report; None if there is none.

    Raises
    ------
    GenerationError
        If the registry doesn't have the generation, or its report can't be read.
    """
    text = registry.attached(loop, generation, REPORT_JSON)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=PromotionReport, strict=False)
    except msgspec.MsgspecError as error:
        raise GenerationError(
            f"the report of generation {generation} of loop {loop!r} can't be read: {error}"
        ) from error


def report_json(report: PromotionReport) -> str:
    """The report for programs; what is not finite stands there as "inf", "-inf" or "nan"."""
    encoded = msgspec.json.encode(_finite(msgspec.to_builtins(report)))
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def _write(registry: Registry, report: PromotionReport) -> None:
    texts = {REPORT_PAGE: page(report), REPORT_JSON: report_json(report)}
    registry.attach(report.loop, report.generation, texts)


def _with_event(report: PromotionReport, event: ReportEvent) -> PromotionReport:
    last = report.events[-1:]
    # A process that died has noted it, and another one has put right the rest.
    if any((each.kind, each.told, each.by) == (event.kind, event.told, event.by) for each in last):
        return report
    events = sorted([*report.events, event], key=lambda each: each.ts)
    return msgspec.structs.replace(report, events=tuple(events))


def _report_of(row: Mapping[str, Any]) -> PromotionReport:
    created = row.get("created")
    return PromotionReport(
        loop=row["loop"],
        generation=row["generation"],
        parent=row.get("parent"),
        created=None if created is None else round(created.timestamp() * 1e6),
        training_rows=row.get("training_rows"),
        exploration=row.get("exploration"),
        oracle=row.get("oracle"),
    )


def _finite(value: Any) -> Any:
    """The same with text in the place of numbers that JSON doesn't have."""
    match value:
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
