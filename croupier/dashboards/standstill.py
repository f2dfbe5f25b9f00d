"""Why a loop's policy is what it was: each link of the chain from outcomes to a new champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from croupier.dashboards.formatting import count, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    import polars as pl

__all__ = ("Mark", "reasons")

Mark: TypeAlias = Literal["good", "open", "bad"]

_FEW_OBSERVED = 0.01
_MANY_OPEN = 0.5
_RECENT = 3


def reasons(
    generations: pl.DataFrame,
    nights: pl.DataFrame,
    days: pl.DataFrame,
    moment: Callable[[datetime | None], str],
) -> list[tuple[Mark, str]]:
    """What was joined, defaulted and late of the latest days, and when weights last moved.

    Parameters
    ----------
    generations
        One loop's rows of the generations table.
    nights, days
        Of the loop's small tables; the latest three days count.
    moment
        Writes a time.
    """
    found = list(_of_days(days.drop_nulls("date").sort("date").tail(_RECENT)))
    found += _of_nights(nights, moment)
    found += _of_generations(generations, moment)
    return found


def _of_days(days: pl.DataFrame) -> Iterator[tuple[Mark, str]]:
    decided, joined = int(days["decisions"].sum()), int(days["joined"].sum())
    if not decided:
        yield "bad", "Nothing was decided in the latest days: there is nothing to learn from."
        return
    dates = days["date"].to_list()
    span = f"{dates[0]} to {dates[-1]}"
    waiting = decided - joined
    yield (
        ("bad" if waiting > _MANY_OPEN * decided else "good"),
        f"**Joined:** {count(joined)} of {count(decided)} decisions of {span}"
        + (f"; {count(waiting)} wait for their window, or for a join." if waiting else "."),
    )
    if joined:
        with_outcome = joined - int(days["defaulted"].sum())
        yield (
            ("bad" if with_outcome < _FEW_OBSERVED * joined else "good"),
            (
                f"**Defaulted:** {share(1 - with_outcome / joined)} of them got the default "
                f"reward, {share(with_outcome / joined)} an outcome."
            ),
        )
        late = int(days["late"].sum()) + int(days["revised"].sum())
        yield (
            "good" if not late else "open",
            f"**Late:** {count(late)} got an outcome after their window.",
        )


def _of_nights(
    nights: pl.DataFrame, moment: Callable[[datetime | None], str]
) -> Iterator[tuple[Mark, str]]:
    if nights.is_empty():
        yield "bad", "**Training:** no night has been recorded."
        return
    last = nights.sort("started").row(-1, named=True)
    when = f"The last night was {moment(last['started'])}"
    if last["failed"]:
        yield "bad", f"**Training:** {when} and broke off: {last['failed']}."
    elif last["skipped"]:
        yield "open", f"**Training:** {when}. Nothing was trained or judged: {last['skipped']}."
    else:
        yield "good", f"**Training:** {when} and trained generation {last['challenger']}."


def _of_generations(
    generations: pl.DataFrame, moment: Callable[[datetime | None], str]
) -> Iterator[tuple[Mark, str]]:
    if generations.is_empty():
        return
    rows = generations.sort("generation").to_dicts()
    latest, judged = rows[-1], [row for row in rows if row["verdict"] is not None]
    if judged and judged[-1]["promoted"] is None:
        last = judged[-1]
        yield "open", f"**Gate:** generation {last['generation']} was held back: {last['verdict']}."
    moved = [row for row in rows if _moved(row) is not None]
    if not moved:
        yield "open", "**Weights:** no generation was ever promoted: the cold start decides."
        return
    last = max(moved, key=_moved)  # type: ignore[arg-type]
    how_far = last["total_variation"]
    far = "" if how_far is None else f" {share(how_far)} of the decisions must come out otherwise."
    mark: Mark = "good" if last["generation"] == latest["generation"] else "open"
    yield (
        mark,
        (
            f"**Weights last moved** {moment(_moved(last))}, with generation "
            f"{last['generation']}.{far}"
        ),
    )


def _moved(row: dict[str, Any]) -> datetime | None:
    times = [each for each in (row["promoted"], row["restored"]) if each is not None]
    return max(times, default=None)
