"""The tables that a night's work is kept in, beside those that are sums over the lake.

Judgements and changes of the plan are read from the registry, which no page does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from croupier.offline.drift import drift
from croupier.offline.interactions import current_interactions
from croupier.offline.oscillation import Swings
from croupier.offline.promotion_report import read_report
from croupier.offline.realised_swings import swings_so_far
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS
from croupier.offline.weight_histogram import WEIGHT_EDGES
from croupier.policy.errors import GenerationError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from croupier.offline.evaluate import Evaluation
    from croupier.offline.fairness.frontier import FrontierPoint
    from croupier.offline.lake import Lake
    from croupier.offline.night import LoopNight
    from croupier.offline.ope import Estimate
    from croupier.offline.promotion_report import Judged
    from croupier.offline.realised import Realised
    from croupier.offline.registry import Registry
    from croupier.offline.sink import SinkReport

__all__ = (
    "changes_of",
    "drift_of",
    "estimates_of",
    "frontier_rows",
    "night_row",
    "swings_of",
    "with_night",
)

_NIGHTS: Final = 1000
_REPORTS: Final = 30
"""Latest generations whose judgements are kept."""

_SWINGS: Final = 60
"""Latest generations up to which oscillation is told."""

_ROWS: Final = 20_000
"""Interactions of a generation that drift is looked for in, about."""

_DRIFT: Final = (
    *("decision_id", "generation", "context", "action_ids", "excluded", "propensity"),
    *("keep_prob", "reward", "fold"),
)


def night_row(night: LoopNight, sunk: SinkReport, *, started_us: int) -> dict[str, Any]:
    """What a night brought for a loop, as a row of `nights`; what was sunk is of all loops."""
    joined = night.join
    return {
        "started": _moment(started_us),
        "sunk_decisions": sunk.decisions,
        "sunk_outcomes": sunk.outcomes,
        "duplicates": sunk.duplicates,
        "set_aside": sunk.set_aside,
        "missed": sunk.missed,
        "joined": joined.joined,
        "observed": joined.observed,
        "defaulted": joined.defaulted,
        "open": joined.open,
        "late": joined.late,
        "orphans": joined.orphans,
        "revised": joined.revised,
        "champion": night.champion,
        "challenger": night.challenger,
        "promoted": night.verdict is not None and night.verdict.promote,
        "skipped": night.skipped,
        "failed": night.failed,
        "overridden": night.overridden,
    }


def with_night(nights: pl.DataFrame, row: dict[str, Any]) -> pl.DataFrame:
    """The table of nights with one more, the latest ones."""
    fresh = pl.DataFrame([row], schema=SUMMARY_SCHEMAS["nights"])
    return pl.concat([nights, fresh]).sort("started").tail(_NIGHTS)


def estimates_of(
    registry: Registry, loop: str, known: pl.DataFrame, judged: pl.DataFrame
) -> pl.DataFrame:
    """What the judgements of a loop's latest generations rest on.

    Parameters
    ----------
    registry
        Where reports are.
    loop
        Whose.
    known
        The table as it was.
    judged
        ``generation`` and ``judged`` (when) of all generations that were judged.
    """
    latest = judged.drop_nulls("judged").sort("generation").tail(_REPORTS)
    there = latest.join(known, on=["generation", "judged"], how="semi")
    kept = known.join(there, on=["generation", "judged"], how="semi")
    rows = []
    for number in latest["generation"].to_list():
        if number in there["generation"]:
            continue
        try:
            report = read_report(registry, loop, number)
        except GenerationError:
            # Pruned from the registry: nothing is known of it any more.
            continue
        if report is not None and report.judged is not None:
            rows += list(_estimates(number, report.judged))
    fresh = pl.DataFrame(rows, schema=SUMMARY_SCHEMAS["estimates"])
    return pl.concat([kept, fresh]).sort("generation", maintain_order=True)


def _estimates(number: int, judged: Judged) -> Iterator[dict[str, Any]]:
    if judged.evaluation is None:
        return
    common = {"generation": number, "judged": _moment(judged.ts), "against": judged.against}
    yield from (common | row for row in _of_evaluation(judged.evaluation))


def _of_evaluation(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for policy in evaluation.policies:
        weights = {
            "deficient": policy.support.deficient,
            "weight_bins": list(WEIGHT_EDGES),
            "weight_counts": [policy.weights.zero, *policy.weights.counts],
        }
        for name, estimate in policy.estimates.items():
            yield {"policy": policy.name} | _of_estimate(name, estimate) | weights
    without = dict.fromkeys(("deficient", "weight_bins", "weight_counts"))
    for name, estimate in evaluation.differences.items():
        yield {"policy": "difference"} | _of_estimate(name, estimate) | without


def _of_estimate(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        "estimator": name,
        "value": estimate.value,
        "lower": estimate.lower,
        "upper": estimate.upper,
        "confidence": estimate.confidence,
        "rows": estimate.n,
        "nonzero_rewards": estimate.nonzero_rewards,
        "ess": estimate.ess,
        "mean_weight": estimate.mean_weight,
        "max_weight": estimate.max_weight,
    }


def changes_of(registry: Registry, loop: str) -> pl.DataFrame:
    """Who changed a loop's plan, when and why: all changes but promotions."""
    rows = [
        {"ts": _moment(each.ts), "what": each.what, "by": each.by, "reason": each.reason}
        for each in registry.changes(loop)
    ]
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMAS["changes"]).sort("ts")


def drift_of(lake: Lake, loop: str, hours: pl.DataFrame) -> pl.DataFrame:
    """Whether the two latest generations with interactions met the same world.

    Parameters
    ----------
    lake
        To read about 20,000 interactions of each from.
    loop
        Whose.
    hours
        The table of hours.
    """
    schema = SUMMARY_SCHEMAS["drift"]
    joined = (
        hours.drop_nulls("generation")
        .group_by("generation")
        .agg(pl.col("joined").sum(), since=pl.col("date").min())
        .filter(pl.col("joined") > 0)
        .sort("generation")
        .tail(2)
    )
    if len(joined) < 2:
        return schema.to_frame()
    since, numbers = joined["since"].min(), joined["generation"]
    rows = current_interactions(lake, loop, since=since).filter(  # type: ignore[arg-type]
        pl.any_horizontal(
            (pl.col("generation") == number) & (pl.col("fold") < max(1, 1000 * _ROWS // count))
            for number, count in joined.select("generation", "joined").iter_rows()
        )
    )
    try:
        found = drift(rows.select(_DRIFT).collect())
    except NotEnoughDataError:
        return schema.to_frame()
    before, after = numbers.to_list()
    of_rewards = [
        {
            "what": "reward of the uniform policy",
            "kind": "reward",
            "distance": abs(each.uniform_after - each.uniform_before),
            "p_value": each.p_value,
            "significant": each.significant,
        }
        for each in found.rewards
    ]
    of_features = [
        {
            "what": each.feature,
            "kind": each.kind,
            "distance": each.distance,
            "p_value": each.p_value,
            "significant": each.significant,
        }
        for each in found.features
    ]
    rows_told = [{"before": before, "after": after} | row for row in of_rewards + of_features]
    return pl.DataFrame(rows_told, schema=schema)


def swings_of(found: Mapping[int, Realised]) -> pl.DataFrame:
    """How what generations earned goes up and down, beside what noise alone would show.

    The last generation's is the test that the night's signal is of.

    Parameters
    ----------
    found
        What every generation has come to.
    """
    rows = []
    for number, test in swings_so_far(found, latest=_SWINGS).items():
        for statistic in Swings.__struct_fields__:
            told = {
                name: getattr(getattr(test, name), statistic)
                for name in ("seen", "expected", "lower", "upper")
            }
            rows.append(
                told
                | {
                    "generation": number,
                    "statistic": statistic,
                    "generations": test.generations,
                    "p_value": getattr(test.p_values, statistic),
                    "level": test.level,
                    "oscillates": test.oscillates,
                }
            )
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMAS["swings"])


def frontier_rows(points: tuple[FrontierPoint, ...], rows: int) -> pl.DataFrame:
    """A frontier, point by point."""
    names = [name for name in SUMMARY_SCHEMAS["frontier"].names() if name != "rows"]
    told = [{name: getattr(each, name) for name in names} | {"rows": rows} for each in points]
    return pl.DataFrame(told, schema=SUMMARY_SCHEMAS["frontier"])


def _moment(ts_us: int) -> datetime:
    return datetime.fromtimestamp(ts_us / 1e6, tz=UTC)
