"""What needs attention first: the scorer's own troubles, then what the night has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from croupier.offline.scrapes import Live, Scrape

__all__ = ("Trouble", "of_nights", "of_scorer")

Weight: TypeAlias = Literal["critical", "warning"]

_QUEUED: Final = 10_000
_LAGGING: Final = 10_000
_LATE_NIGHT_S: Final = 36 * 3600.0


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody should look at.

    Attributes
    ----------
    weight
        How bad it is.
    title, told
        What it is, in a few words and in a sentence.
    page
        Where more is to be seen, and where it is: name and address; None if nowhere.
    """

    weight: Weight
    title: str
    told: str
    page: tuple[str, str] | None = None


def of_scorer(loop: str, scrape: Scrape, now: Live, *, slow_s: float) -> list[Trouble]:
    """What is wrong with the scorer, as a loop sees it; the worst first.

    Parameters
    ----------
    loop
        Whose.
    scrape, now
        The latest reading, and what went on up to it.
    slow_s
        99th percentile of the latency, in seconds, above which it is pointed out.
    """
    found = list(_of_readiness(loop, scrape))
    gauges = scrape.gauges
    if gauges.get("croupier_log_spilling", 0.0) > 0:
        records = gauges.get("croupier_log_spilled_records", 0.0)
        found.append(
            Trouble(
                weight="critical",
                title="The log is away",
                told=f"{records:,.0f} records wait on the scorer's disk until it is back.",
            )
        )
    if gauges.get("croupier_log_queue_depth", 0.0) > _QUEUED:
        found.append(
            Trouble(
                weight="warning",
                title="The log is slow",
                told=f"{gauges['croupier_log_queue_depth']:,.0f} records wait to be written.",
            )
        )
    if gauges.get("croupier_stream_lag", 0.0) > _LAGGING:
        found.append(
            Trouble(
                weight="warning",
                title="Requests wait in Kafka",
                told=f"{gauges['croupier_stream_lag']:,.0f} have no answer yet.",
            )
        )
    if now.p99_s is not None and now.p99_s > slow_s:
        found.append(
            Trouble(
                weight="warning",
                title="Decisions are slow",
                told=f"One in a hundred takes more than {1e3 * now.p99_s:,.0f} ms.",
            )
        )
    return sorted(found, key=lambda each: each.weight)


def _of_readiness(loop: str, scrape: Scrape) -> list[Trouble]:
    found = []
    ready = scrape.readiness
    if ready.log != "ok":
        found.append(Trouble(weight="critical", title="The log can't be written", told=ready.log))
    if ready.registry != "ok":
        found.append(
            Trouble(
                weight="warning",
                title="The registry is away",
                told=f"{ready.registry}. The last good generation decides.",
            )
        )
    if ready.stream not in {None, "ok"}:
        found.append(
            Trouble(weight="critical", title="The stream is broken", told=str(ready.stream))
        )
    served = ready.loops.get(loop)
    if served is not None and served.killed is not None:
        found.append(
            Trouble(
                weight="critical",
                title="The kill switch is on",
                told=f"Only the baseline is played: {served.killed}",
            )
        )
    if served is not None and served.error is not None:
        found.append(
            Trouble(weight="warning", title="Not served as it should be", told=served.error)
        )
    return found


def of_nights(nights: Sequence[dict[str, Any]], now: datetime) -> list[Trouble]:
    """What is wrong with a loop's nights.

    Parameters
    ----------
    nights
        Rows of the small table, by time.
    now
        The present moment.
    """
    if not nights:
        return []
    last = nights[-1]
    found = []
    if last["failed"]:
        found.append(
            Trouble(
                weight="critical",
                title="The last night broke off",
                told=str(last["failed"]),
                page=("Data quality", "data-quality"),
            )
        )
    started = last["started"]
    age = (now - started).total_seconds()
    if age > _LATE_NIGHT_S:
        found.append(
            Trouble(
                weight="warning",
                title="No night for a while",
                told=f"The last one began {age / 3600:,.0f} hours ago.",
                page=("Data quality", "data-quality"),
            )
        )
    return found
