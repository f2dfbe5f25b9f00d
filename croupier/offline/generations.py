"""The generations table: one row per generation, with what was promised and what then happened."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from croupier.offline.champions import Rollback
from croupier.offline.lake import SCHEMAS
from croupier.offline.realised import realised
from croupier.offline.realised_swings import latest_swings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from croupier.offline.evaluate import EstimatorName, Evaluation
    from croupier.offline.harm import GuardrailValue
    from croupier.offline.imitation import Imitation
    from croupier.offline.lake import Lake
    from croupier.offline.promotion_report import Judged
    from croupier.offline.realised import Moments, Realised
    from croupier.policy.generation import Generation

__all__ = (
    "RECURRENT",
    "evaluation_row",
    "generation_rows",
    "imitation_row",
    "judged_row",
    "published_row",
    "record_generation",
    "record_promotion",
    "record_rollback",
    "record_violations",
    "refresh_realised",
    "rollback_of",
    "rollback_row",
)

RECURRENT = "recurrent"
"""What stands in the column `oracle` of generations that have a recurrent policy in its place."""


def generation_rows(lake: Lake, loop: str) -> dict[int, dict[str, Any]]:
    """A loop's rows, by generation."""
    table = lake.scan("generations", loop).sort("generation").collect()
    return {row["generation"]: row for row in table.iter_rows(named=True)}


def record_generation(lake: Lake, row: Mapping[str, Any]) -> None:
    """Add a generation, or put other values into the row it has.

    Parameters
    ----------
    lake
        To write to; hold its lock.
    row
        Values by column; `loop` and `generation` name the row, columns left out stay as they are.
    """
    _put(lake, [row])


def record_promotion(
    lake: Lake, loop: str, number: int, *, now_us: int, override_reason: str | None = None
) -> None:
    """Note a new champion, and that the one before has retired.

    An override that was recorded of this generation earlier stays on record.
    """
    champions = lake.scan("generations", loop).filter(pl.col("status") == "champion").collect()
    promoted: dict[str, Any] = {
        "loop": loop,
        "generation": number,
        "status": "champion",
        "promoted": datetime.fromtimestamp(now_us / 1e6, tz=UTC),
    }
    if override_reason is not None:
        promoted["override_reason"] = override_reason
    retired = [
        {"loop": loop, "generation": former, "status": "retired"}
        for former in champions["generation"]
        if former != number
    ]
    _put(lake, [*retired, promoted])


def record_rollback(lake: Lake, loop: str, *, left: int, restored: int, now_us: int) -> None:
    """Note that a champion was rolled back, and which generation is champion again."""
    time = datetime.fromtimestamp(now_us / 1e6, tz=UTC)
    back = {"loop": loop, "generation": left, "status": "rolled_back"}
    again = {"loop": loop, "generation": restored, "status": "champion", "restored": time}
    _put(lake, [back, again])


def refresh_realised(lake: Lake, loop: str, *, confidence: float = 0.95) -> None:
    """Put what really happened beside what was promised, for every generation that was served.

    Realised values are means over all decisions that a generation made, estimated from those that
    were kept in the log (each counts ``1 / keep_prob`` times), with a normal interval; the
    propensity test says whether its draws happened with the probabilities that were logged. Only
    what has come since the last time is read, see :func:`~croupier.offline.realised.realised`.

    The row of the last generation that served says too whether the latest 15 oscillate, by their
    realised values; those that made fewer than 30 decisions don't count.
    """
    rows: list[dict[str, Any]] = []
    all_realised = realised(lake, loop)
    for number, found in all_realised.items():
        lower, upper = found.moments.interval(confidence)
        rows.append(
            {
                "loop": loop,
                "generation": number,
                "decisions": found.moments.rows,
                "decisions_made": found.moments.weight,
                "realised_mean": found.moments.mean,
                "realised_lower": lower,
                "realised_upper": upper,
                "propensity_p_value": found.propensity_p_value,
                "realised_guardrails": [
                    _earned(name, moments, confidence)
                    for name, moments in sorted(found.guardrails.items())
                ]
                or None,
            }
        )
    if rows:
        last = max(rows, key=lambda row: row["generation"])
        last |= _swinging(all_realised)
    _put(lake, rows)


def record_violations(lake: Lake, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put violation rates into the rows of generations that have one; hold the lake's lock.

    Parameters
    ----------
    lake
        To write to.
    rows
        As :func:`~croupier.offline.fairness.individual_gate.violation_rows` gives them.
    """
    _put(lake, rows)


def _swinging(found: Mapping[int, Realised]) -> dict[str, Any]:
    """Whether what the latest generations earned goes up and down, if there are enough of them."""
    test = latest_swings(found)
    if test is None:
        return {}
    return {
        "spread_p_value": test.p_values.spread,
        "alternation_p_value": test.p_values.alternation,
        "oscillates": test.oscillates,
    }


def published_row(
    generation: Generation, run_id: str, *, exploration: str, oracle: str, judge_share: float | None
) -> dict[str, Any]:
    """The row of a generation that was published, before anybody has judged it.

    Parameters
    ----------
    generation
        With its provenance.
    run_id
        Of MLflow.
    exploration, oracle
        In words, and its kind.
    judge_share
        Share of the decisions that it was not to learn from; None if another lake had them.
    """
    origin = generation.provenance
    assert origin is not None, "the cold start is never published"
    told = {
        name: value
        for name, value in msgspec.structs.asdict(origin).items()
        if value is not None and name in SCHEMAS["generations"]
    }
    return told | {
        "loop": generation.loop,
        "generation": generation.number,
        "created": datetime.fromtimestamp(origin.created_us / 1e6, tz=UTC),
        "status": "challenger",
        "exploration": exploration,
        "oracle": oracle,
        "run_id": run_id,
        "judge_share": judge_share,
    }


def judged_row(loop: str, number: int, judged: Judged) -> dict[str, Any]:
    """What a row tells of a judgement; its generation is then a challenger, or rejected."""
    shown: dict[str, Any] = {}
    if judged.evaluation is not None:
        shown |= evaluation_row(judged.evaluation, judged.gate.estimator)
    if judged.imitation is not None:
        shown |= imitation_row(judged.imitation)
    if judged.calibration is not None:
        shown["calibration_p_value"] = judged.calibration.smallest_p_value
    return shown | {
        "loop": loop,
        "generation": number,
        "status": "challenger" if judged.verdict.promote else "rejected",
        "verdict": "; ".join(judged.verdict.reasons),
        "judged": datetime.fromtimestamp(judged.ts / 1e6, tz=UTC),
        "judged_against": judged.against,
    }


def rollback_row(done: Rollback, now_us: int) -> dict[str, Any]:
    """What the row of the champion tells that is about to be rolled back."""
    return {
        "loop": done.loop,
        "generation": done.left,
        "rolled_back": datetime.fromtimestamp(now_us / 1e6, tz=UTC),
        "rolled_back_by": done.by,
        "rolled_back_to": done.restored,
        "rollback_reason": done.reason,
    }


def rollback_of(row: Mapping[str, Any]) -> Rollback:
    """The rollback that a row tells of."""
    return Rollback(
        loop=row["loop"],
        left=row["generation"],
        restored=row["rolled_back_to"],
        by=row["rolled_back_by"],
        reason=row["rollback_reason"],
    )


def evaluation_row(evaluation: Evaluation, kind: EstimatorName) -> dict[str, Any]:
    """What a row tells of an evaluation against the champion."""
    champion, judged = evaluation.policies
    estimate, difference = judged.estimates[kind], evaluation.differences[kind]
    stability = evaluation.stability
    apart = (
        {}
        if stability is None
        else {
            name: getattr(stability, name).value
            for name in ("total_variation", "js_distance", "flip_rate")
        }
    )
    return apart | {
        "judged_rows": evaluation.rows,
        "estimator": kind,
        "estimate": estimate.value,
        "lower": estimate.lower,
        "upper": estimate.upper,
        "ess": estimate.ess,
        "max_weight": estimate.max_weight,
        "champion_estimate": champion.estimates[kind].value,
        "difference": difference.value,
        "difference_lower": difference.lower,
        "difference_upper": difference.upper,
        "guardrails": [_guardrail(each) for each in evaluation.guardrails] or None,
    }


def imitation_row(imitation: Imitation) -> dict[str, Any]:
    """What a row tells of an apprentice that was judged by how it imitates the baseline."""
    match = imitation.challenger
    return {
        "judged_rows": match.rows,
        "match_rate": match.value,
        "match_lower": match.lower,
        "match_upper": match.upper,
    }


def _earned(name: str, moments: Moments, confidence: float) -> dict[str, Any]:
    lower, upper = moments.interval(confidence)
    told = {"name": name, "decisions": moments.rows, "mean": moments.mean}
    return told | {"lower": lower, "upper": upper}


def _guardrail(value: GuardrailValue) -> dict[str, Any]:
    """What a row tells of a guardrail; of one that too few interactions have, only how many do."""
    told: dict[str, Any] = {"name": value.name, "rows": value.rows}
    found = value.estimates
    return told | {
        "estimate": None if found is None else found.challenger.value,
        "champion_estimate": None if found is None else found.champion.value,
        "difference": None if found is None else found.difference.value,
        "difference_lower": None if found is None else found.difference.lower,
        "difference_upper": None if found is None else found.difference.upper,
    }


def _put(lake: Lake, rows: Sequence[Mapping[str, Any]]) -> None:
    """Merge rows into the table, in one commit: readers see all of them or none."""
    if not rows:
        return
    table = lake.scan("generations").collect()
    merged = {(row["loop"], row["generation"]): row for row in table.iter_rows(named=True)}
    empty = dict.fromkeys(SCHEMAS["generations"].names())
    for row in rows:
        name = row["loop"], row["generation"]
        merged[name] = merged.get(name, empty) | dict(row)
    if list(merged.values()) == table.to_dicts():
        return
    fresh = pl.DataFrame(list(merged.values()), schema=SCHEMAS["generations"])
    lake.replace("generations", fresh.sort("loop", "generation"))
