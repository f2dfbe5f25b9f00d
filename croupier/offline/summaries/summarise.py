"""The last step of a night: the small tables of a loop, all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from croupier.offline.alerts import found_alerts, with_alerts
from croupier.offline.fairness.exploring import explore_frontier
from croupier.offline.generations import generation_rows
from croupier.offline.judged import judged_interactions
from croupier.offline.lake import SCHEMAS
from croupier.offline.realised import realised
from croupier.offline.summaries.compared import compared_tables
from croupier.offline.summaries.nights import (
    changes_of,
    drift_of,
    estimates_of,
    frontier_rows,
    night_row,
    swings_of,
    with_night,
)
from croupier.offline.summaries.refresh import refresh_summaries
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS, summaries_of
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from croupier.offline.night import LoopNight
    from croupier.offline.nightly import Nightly
    from croupier.offline.sink import SinkReport

__all__ = ("FRONTIER_ALPHAS", "FRONTIER_GAMMAS", "summarise_night")

FRONTIER_ALPHAS: Final = tuple(round(0.05 * step, 2) for step in range(11))
"""Slacks that the frontier is worked out for."""

FRONTIER_GAMMAS: Final = tuple(round(0.1 * step, 1) for step in range(1, 11))
"""Shares of the auditors, likewise."""

_UNIFORM: Final = (0.25, 0.5, 0.75, 1.0)


def summarise_night(
    nightly: Nightly, night: LoopNight, sunk: SinkReport, *, started_us: int
) -> None:
    """Bring a loop's tables up to date at the end of a night.

    Parameters
    ----------
    nightly
        The batch side; its lake is locked.
    night, sunk
        What the night brought for the loop, and what was sunk.
    started_us
        When it began, in microseconds since the epoch.

    Raises
    ------
    RegistryError
        If MLflow can't be reached.
    """
    lake, registry, loop = nightly.lake, nightly.registry, night.loop
    summaries = summaries_of(lake)
    refresh_summaries(
        lake,
        loop,
        nightly.loops[loop],
        now_us=started_us,
        segments=nightly.config.segments.get(loop, ()),
    )
    generations = generation_rows(lake, loop)
    judged = pl.DataFrame(
        {
            "generation": list(generations),
            "judged": [row["judged"] for row in generations.values()],
        },
        schema={name: SCHEMAS["generations"][name] for name in ("generation", "judged")},
    )
    hours, days = summaries.read(loop, "hours"), summaries.read(loop, "days")
    row = night_row(night, sunk, started_us=started_us)
    nights = with_night(summaries.read(loop, "nights"), row)
    found = found_alerts(nightly.config.alerts, generations, days, nights)
    alerts = with_alerts(summaries.read(loop, "alerts"), found, loop=loop, now_us=started_us)
    state = summaries.state(loop)
    assert state is not None, "written a moment ago"
    summaries.write(
        loop,
        {
            "nights": nights,
            "alerts": alerts,
            "changes": changes_of(registry, loop),
            "estimates": estimates_of(registry, loop, summaries.read(loop, "estimates"), judged),
            "drift": drift_of(lake, loop, hours),
            "frontier": _frontier(nightly, loop),
            "swings": swings_of(realised(lake, loop)),
            **compared_tables(nightly, loop, hours),
        },
        state,
    )


def _frontier(nightly: Nightly, loop: str) -> pl.DataFrame:
    """What fairness would cost, for a grid of its meanings; empty where nobody judges."""
    config = nightly.loops[loop]
    fairness = config.individual_fairness
    nothing = SUMMARY_SCHEMAS["frontier"].to_frame()
    if fairness is None:
        return nothing
    known = nightly.registry.numbers(loop)
    numbers = sorted({nightly.registry.champion(loop), *known[-1:]})
    policies = {f"generation {each}": nightly.generation(loop, each) for each in numbers}
    rows = judged_interactions(
        nightly.lake,
        loop,
        config,
        policies.values(),
        judge_share=nightly.config.judge_share,
        judge_window=nightly.config.judge_window,
    )
    try:
        found = explore_frontier(
            nightly.lake,
            rows,
            policies,
            config,
            fairness,
            alphas=FRONTIER_ALPHAS,
            gammas=FRONTIER_GAMMAS,
            uniform_shares=_UNIFORM,
            confidence=nightly.config.gate.confidence,
        )
    except (NotEnoughDataError, InvalidInputError):
        # As for the gate: there is nothing to look at yet, or nobody to judge it.
        return nothing
    return frontier_rows(found.points, found.rows)
