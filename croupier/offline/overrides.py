"""Acting on overrides that people have asked for where they may only ask: on the dashboard.

They come as events, through the service and the log, into the table `audits`. The batch side makes
the change, as ``croupier promote --override`` and ``croupier rollback`` do, and by the same means.
Of several the last one counts. One is void once another generation is champion than the one that
the person saw, or once anything has changed since: so none is acted on twice, also if the lake is
made anew from the log.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import polars as pl

from croupier.offline.generations import generation_rows
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.events import OverrideAction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from croupier.offline.lake import Lake
    from croupier.offline.succession import Succession

__all__ = ("AskedOverride", "OverrideState", "act_on_overrides", "asked_overrides", "state_of")

OverrideState: TypeAlias = Literal["waits", "done", "void"]

_CHANGES = ("promoted", "restored", "rolled_back")


class AskedOverride(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody has asked for; fields as of :class:`~croupier.policy.events.Override`."""

    override_id: str
    action: OverrideAction
    generation: int
    champion: int
    reason: str
    by: str
    ts: datetime


def asked_overrides(lake: Lake, loop: str) -> list[AskedOverride]:
    """All overrides of a loop that were ever asked for, by time."""
    rows = lake.scan("audits", loop).filter(pl.col("kind") == "override")
    told = rows.sort("ts", "judgement_id").select(
        "action",
        "generation",
        "champion",
        "reason",
        "ts",
        override_id="judgement_id",
        by="auditor",
    )
    return [AskedOverride(**row) for row in told.collect().iter_rows(named=True)]


def state_of(
    asked: AskedOverride,
    rows: Mapping[int, Mapping[str, Any]],
    champion: int,
    *,
    last: bool,
) -> OverrideState:
    """What has become of an override.

    Parameters
    ----------
    asked
        The override.
    rows
        Of the generations table, by number.
    champion
        Now.
    last
        Whether nobody has asked for another one since.

    Returns
    -------
    str
        ``waits`` for the batch side; ``done`` if it was acted on; ``void`` if nothing comes of it.
    """
    row = rows.get(asked.generation, {})
    acted = "promoted" if asked.action == "promote" else "restored"
    if acted == "promoted":
        by, reason = row.get("override_by"), row.get("override_reason")
    else:
        left = rows.get(asked.champion, {})
        by, reason = left.get("rolled_back_by"), left.get("rollback_reason")
    since = row.get(acted)
    if since is not None and since > asked.ts and (by, reason) == (asked.by, asked.reason):
        return "done"
    changed = any(
        row[name] is not None and row[name] > asked.ts for row in rows.values() for name in _CHANGES
    )
    return "waits" if last and not changed and champion == asked.champion else "void"


def act_on_overrides(succession: Succession, loop: str, *, now_us: int) -> str | None:
    """Make the change that was asked for last, if it still stands.

    Parameters
    ----------
    succession
        Makes it; hold the lake's lock, and have the champion on record.
    loop
        Whose champion.
    now_us
        In microseconds since the epoch.

    Returns
    -------
    str or None
        What was done, or why it could not be; None if nothing waits.
    """
    asked = asked_overrides(succession.lake, loop)
    if not asked:
        return None
    last, champion = asked[-1], succession.registry.champion(loop)
    rows = generation_rows(succession.lake, loop)
    if state_of(last, rows, champion, last=True) != "waits":
        return None
    now = max(now_us, _after(last.ts))
    try:
        if last.action == "promote":
            # What can't be read can't be served.
            succession.generation(loop, last.generation)
            succession.override(loop, last.generation, now_us=now, reason=last.reason, by=last.by)
            return f"generation {last.generation} promoted by override of {last.by}"
        succession.rollback(loop, now_us=now, reason=last.reason, by=last.by, to=last.generation)
    except (GenerationError, InvalidInputError) as error:
        return f"the override of {last.by} could not be done: {error}"
    return f"rolled back to generation {last.generation} by override of {last.by}"


def _after(ts: datetime) -> int:
    """A clock that lags behind the scorer's must not let an override be done twice."""
    return round((ts - datetime.fromtimestamp(0, tz=UTC)).total_seconds() * 1e6) + 1
