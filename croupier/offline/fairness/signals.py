"""Fairness from generation to generation: figures that are kept, and a signal when a gap rises.

A disparity rises if a group is further from the rest in the latest generation than it was in the
earlier ones together, by more than `min_rise` and more than noise makes it. The rise is tested for
every group, for rewards and for every action's exposure, and all these tests of a loop are one
family (Holm): without any rise, a night signals one with the probability alpha at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import scipy

from croupier.offline.fairness.group_audit import audit_groups
from croupier.offline.fairness.groups import TOGETHER
from croupier.offline.generations import generation_rows, record_generation
from croupier.offline.lake import SCHEMAS
from croupier.offline.multiplicity import holm_p_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

    from croupier.offline.fairness.disparities import Interval
    from croupier.offline.fairness.group_audit import GenerationAudit, GroupAudit
    from croupier.offline.lake import Lake
    from croupier.policy.loop import LoopConfig

__all__ = ("Rise", "fairness_rows", "refresh_fairness", "rises", "stored_rises")

_LOOKED_BACK = 15


class Rise(msgspec.Struct, frozen=True, kw_only=True):
    """A group that is treated more differently than before.

    Attributes
    ----------
    attribute, group, measure, action
        Who, and in what: its ``reward``, or the ``exposure`` of an action.
    generation
        The latest that served.
    before, now
        Difference to the rest, over the earlier generations and in the latest.
    p_value
        Corrected for all that was tested.
    """

    attribute: str
    group: str
    measure: str
    action: str | None
    generation: int
    before: float
    now: float
    p_value: float

    def told(self) -> str:
        """In a sentence."""
        what = "reward" if self.action is None else f"exposure of {self.action}"
        return (
            f"{self.attribute} {self.group}: {what} is {self.now:+.4f} against the rest in "
            f"generation {self.generation}, {self.before:+.4f} before, corrected p-value "
            f"{self.p_value:.2g}"
        )


def refresh_fairness(lake: Lake, loop: str, config: LoopConfig) -> list[Rise]:
    """Bring the table up to date, and tell which disparities rise.

    Figures are worked out anew of the generations whose decisions or rewards have changed since:
    those that serve, and those that outcomes still come for. The row of the latest generation says
    whether any disparity rises.

    Parameters
    ----------
    lake
        With realised values that are up to date, see
        :func:`~croupier.offline.generations.refresh_realised`; hold its lock.
    loop, config
        Whose.

    Raises
    ------
    InvalidInputError
        If an attribute is not a category.
    """
    if not config.fairness.attributes:
        return []
    served = {
        number: row
        for number, row in generation_rows(lake, loop).items()
        if row["decisions"] is not None
    }
    table = lake.scan("fairness").collect()
    attributes = pl.col("attribute").is_in(list(config.fairness.attributes))
    mine = table.filter((pl.col("loop") == loop) & attributes)
    stale = _stale(mine, served, config)
    if stale:
        audit = audit_groups(lake, loop, config, generations=stale, since=_since(stale, served))
        kept = table.filter(
            ~((pl.col("loop") == loop) & (pl.col("generation").is_in(stale) | ~attributes))
        )
        fresh = fairness_rows(audit, served)
        table = pl.concat([kept, fresh]).sort(
            "loop", "generation", "attribute", "measure", "action", "group"
        )
        lake.replace("fairness", table)
        mine = table.filter(pl.col("loop") == loop)
    if not served:
        return []
    found = rises(mine, config)
    last = max(served)
    tested = [each.p_value for each in found]
    record_generation(
        lake,
        {
            "loop": loop,
            "generation": last,
            "disparity_p_value": min(tested, default=None),
            "disparity_rises": None if not tested else min(tested) <= config.fairness.alpha,
        },
    )
    return [each for each in found if each.p_value <= config.fairness.alpha]


def fairness_rows(audit: GroupAudit, served: Mapping[int, Mapping[str, Any]]) -> pl.DataFrame:
    """Rows of the fairness table.

    Parameters
    ----------
    audit
        Of some generations.
    served
        Their rows in the generations table: what figures are of.
    """
    rows = [
        row | {"loop": audit.loop, "generation": each.generation} | _state(served[each.generation])
        for each in audit.generations
        if each.generation in served
        for row in _rows(each)
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["fairness"])


def rises(table: pl.DataFrame, config: LoopConfig) -> list[Rise]:
    """Every test of a disparity's rise, with its corrected p-value; those that are largest last.

    A group's difference to the rest is d, with standard error s. With e and u the mean of the
    earlier generations' (weighted by ``1 / s²``) and its standard error, the statistic is
    ``z = (sign(d) (d - e) - min_rise) / sqrt(s² + u²)`` with the two-sided p-value, as the sign is
    chosen by what was seen. Of a generation that hasn't the group, or had it too small, nothing
    counts.

    Parameters
    ----------
    table
        A loop's rows of the fairness table.
    config
        Of the loop.
    """
    # What is taken together need not be the same groups every time.
    alone = ~pl.col("group").str.contains(TOGETHER)
    compared = alone & pl.col("difference_error").is_not_null()
    contrasts = table.filter(compared).sort("generation")
    if contrasts.is_empty():
        return []
    last = contrasts["generation"].max()
    tested: list[tuple[Rise, float]] = []
    keys = ("attribute", "group", "measure", "action")
    for _, rows in contrasts.group_by(keys, maintain_order=True):
        series = [_Point(**each) for each in rows.select(_POINT).iter_rows(named=True)]
        *earlier, latest = series[-_LOOKED_BACK:]
        if latest.generation != last or not earlier:
            continue
        before, error = _pooled(earlier)
        exposure = rows["measure"][0] == "exposure"
        least = config.fairness.min_rise
        least *= 1.0 if exposure else config.reward_max - config.reward_min
        rise = math.copysign(1.0, latest.difference) * (latest.difference - before) - least
        spread = math.hypot(latest.difference_error, error)
        p_value = _two_sided(rise, spread)
        found = Rise(
            **{name: rows[name][0] for name in keys},
            generation=latest.generation,
            before=before,
            now=latest.difference,
            p_value=p_value,
        )
        tested.append((found, p_value))
    corrected = holm_p_values(p for _, p in tested).tolist()
    found_all = [
        msgspec.structs.replace(each, p_value=p)
        for (each, _), p in zip(tested, corrected, strict=True)
    ]
    return sorted(found_all, key=lambda each: -each.p_value)


def stored_rises(lake: Lake, loop: str, config: LoopConfig) -> list[Rise]:
    """What the table tells of rises that are significant, without reading interactions."""
    table = lake.scan("fairness", loop).collect()
    wanted = pl.col("attribute").is_in(list(config.fairness.attributes))
    found = rises(table.filter(wanted), config)
    return [each for each in found if each.p_value <= config.fairness.alpha]


_POINT = ("generation", "difference", "difference_error")


@dataclass(frozen=True, slots=True)
class _Point:
    generation: int
    difference: float
    difference_error: float


def _two_sided(rise: float, spread: float) -> float:
    if rise <= 0.0:
        return 1.0
    return 0.0 if spread <= 0.0 else 2.0 * float(scipy.special.ndtr(-rise / spread))


def _pooled(points: Sequence[_Point]) -> tuple[float, float]:
    """Mean of the earlier differences, weighted by how well they are known, and its error."""
    exact = [each.difference for each in points if each.difference_error <= 0.0]
    if exact:
        return sum(exact) / len(exact), 0.0
    weights = [each.difference_error**-2 for each in points]
    total = sum(weights)
    mean = sum(w * each.difference for w, each in zip(weights, points, strict=True)) / total
    return mean, total**-0.5


def _stale(
    table: pl.DataFrame, served: Mapping[int, Mapping[str, Any]], config: LoopConfig
) -> list[int]:
    """Generations whose figures are of other decisions or rewards than there are now."""
    wanted = set(config.fairness.attributes)
    found = []
    for number, row in served.items():
        own = table.filter(pl.col("generation") == number)
        known = own.select("of_decisions", "of_mean").unique().rows()
        current = [tuple(_state(row).values())]
        if known != current or set(own["attribute"].to_list()) != wanted:
            found.append(number)
    return found


def _since(stale: Iterable[int], served: Mapping[int, Mapping[str, Any]]) -> date | None:
    """No decision of these generations is older than this day."""
    created = [served[number]["created"] for number in stale]
    return None if None in created else min(created).date()


def _state(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"of_decisions": row["decisions"], "of_mean": row["realised_mean"]}


def _rows(audit: GenerationAudit) -> list[dict[str, Any]]:
    """A row for every group and measure; of hidden groups only that they are."""
    found: list[dict[str, Any]] = []
    for part in audit.attributes:
        told: dict[tuple[str, str | None, str], dict[str, Any]] = {}
        for group in part.groups:
            told["reward", None, group.group] = _figure(group.reward)
        for each in part.exposures:
            told["exposure", each.action, each.group] = _figure(each.exposure) | {
                "chosen": each.chosen,
                "propensity": each.propensity,
            }
        for disparity in part.disparities:
            gap = {"gap": disparity.gap.difference, "ratio": disparity.gap.ratio}
            for name in (each.group for each in part.groups):
                told[disparity.measure, disparity.action, name] |= gap
            for one in disparity.contrasts:
                told[disparity.measure, disparity.action, one.group] |= {
                    "difference": one.against.difference.value,
                    "difference_error": one.against.standard_error,
                    "p_value": one.corrected_p_value,
                }
        sizes = {each.group: each.decisions for each in part.groups}
        known = {"attribute": part.attribute, "hidden": False}
        found += [
            known
            | {"measure": measure, "action": action, "group": name, "decisions": sizes[name]}
            | figures
            for (measure, action, name), figures in told.items()
        ]
        found += [
            {"attribute": part.attribute, "group": name, "measure": "reward", "hidden": True}
            for name in part.hidden
        ]
    return found


def _figure(found: Interval) -> dict[str, Any]:
    return {"value": found.value, "lower": found.lower, "upper": found.upper}
