"""What a loop's latest generations make of features and segments, for two to be held side by side.

All of them are asked about the same interactions of the latest days, which none has learned from.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import polars as pl

from croupier.offline.answers import ask_policies
from croupier.offline.delays import settling
from croupier.offline.evaluate import MIN_ROWS, reward_range_of
from croupier.offline.fairness.groups import code_rows, label
from croupier.offline.feature_influence import influences, responses, usable_requests
from croupier.offline.folds import is_judged, unseen_by
from croupier.offline.interactions import current_interactions, logged_requests
from croupier.offline.ope import DR, SNIPS, LoggedBatch
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS
from croupier.policy.errors import GenerationError, InvalidInputError, ScoringError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from croupier.offline.answers import Answers
    from croupier.offline.nightly import Nightly
    from croupier.offline.summaries.tables import SummaryName
    from croupier.policy.generation import Generation

__all__ = ("compared_tables",)

_GENERATIONS: Final = 4
"""Latest generations that are compared, beside the champion."""

_DAYS: Final = 14
_ROWS: Final = 4000
"""Interactions that segments are estimated on, about."""

_PANEL: Final = 200
"""Requests of the panel, about."""

_SEED: Final = 20_261_127
_Tables = dict["SummaryName", pl.DataFrame]


def compared_tables(nightly: Nightly, loop: str, hours: pl.DataFrame) -> _Tables:
    """The tables `segments`, `influences` and `responses` of a loop; empty where nothing can be.

    A recurrent generation can't be asked without its session, and is left out.

    Parameters
    ----------
    nightly
        The batch side.
    loop
        Whose.
    hours
        The table of hours.

    Raises
    ------
    RegistryError
        If MLflow can't be reached.
    """
    names: tuple[SummaryName, ...] = ("segments", "influences", "responses")
    nothing: _Tables = {name: SUMMARY_SCHEMAS[name].to_frame() for name in names}
    try:
        return nothing | _tables(nightly, loop, hours)
    except ScoringError:
        # Scorers fall back from what can't score; a page doesn't have to show it.
        return nothing


def _tables(nightly: Nightly, loop: str, hours: pl.DataFrame) -> _Tables:
    policies = _compared(nightly, loop)
    rows = _unseen_rows(nightly, loop, policies, hours)
    if not policies or len(rows) < MIN_ROWS:
        return {}
    confidence = nightly.config.gate.confidence
    config = nightly.loops[loop]
    cuts = tuple(
        dict.fromkeys([*config.fairness.attributes, *nightly.config.segments.get(loop, ())])
    )
    segments = _segment_rows(rows, policies, cuts, reward_range_of(rows, config), confidence)
    requests = list(
        islice(logged_requests(rows.unique("decision_id", maintain_order=True)), _PANEL)
    )
    panel = usable_requests(requests, policies)
    if len(panel) < MIN_ROWS:
        return {"segments": _frame("segments", segments)}
    told = [msgspec.structs.asdict(each) for each in influences(panel, policies, seed=_SEED)]
    answers = [msgspec.structs.asdict(each) for each in responses(panel, policies)]
    return {
        "segments": _frame("segments", segments),
        "influences": _frame("influences", told),
        "responses": _frame("responses", answers),
    }


def _compared(nightly: Nightly, loop: str) -> list[Generation]:
    """The champion and the latest generations, in order."""
    known = nightly.registry.numbers(loop)
    numbers = sorted({nightly.registry.champion(loop), *known[-_GENERATIONS:]})
    found = []
    for number in numbers:
        try:
            policy = nightly.generation(loop, number)
        except GenerationError:
            # Not in order in the registry: nobody can serve it either.
            continue
        if policy.recurrent is None:
            found.append(policy)
    return found


def _unseen_rows(
    nightly: Nightly, loop: str, policies: Sequence[Generation], hours: pl.DataFrame
) -> pl.DataFrame:
    """Interactions of the latest days on the judge's folds, in the order of a hash of their ids."""
    config, share = nightly.loops[loop], nightly.config.judge_share
    joined = hours.drop_nulls("date").group_by("date").agg(pl.col("joined").sum())
    latest = joined.filter(pl.col("joined") > 0).sort("date").tail(_DAYS)
    since = latest["date"].min()
    if since is None:
        return pl.DataFrame()
    settle = settling(nightly.lake, loop, config)
    expected = int(latest["joined"].sum()) * share
    place = pl.col("decision_id").hash(_SEED)
    kept = min(1.0, _ROWS / max(expected, 1.0))
    rows = settle(current_interactions(nightly.lake, loop, since=since))  # type: ignore[arg-type]
    return (
        rows.filter(is_judged(share, config.training), *map(unseen_by, policies))
        .filter(place <= int(kept * (2**64 - 1)))
        .sort(place, "offset")
        .collect()
    )


def _segment_rows(
    rows: pl.DataFrame,
    policies: Sequence[Generation],
    cuts: Sequence[str],
    reward_range: tuple[float, float],
    confidence: float,
) -> list[dict[str, object]]:
    """What every generation is worth in every segment, on rows that tell about all of them."""
    model = next((each for each in reversed(policies) if each.oracle is not None), None)
    answers = ask_policies(rows, policies, reward_range, model=model)
    common = answers.usable.all(axis=0)
    found: list[dict[str, object]] = []
    for by, segment, within in _parts(rows, cuts):
        mine = within & common
        if np.count_nonzero(mine) < MIN_ROWS:
            continue
        for place, policy in enumerate(policies):
            batch = _batch(rows, answers, place, mine)
            largest = max(1.0, float(answers.largest[place, mine].max()))
            kind = SNIPS if model is None else DR
            estimate = (
                kind(reward_range=reward_range, weight_range=(0.0, largest))
                .add(batch)
                .result(confidence)
            )
            found.append(
                {
                    "generation": policy.number,
                    "by": by,
                    "segment": segment,
                    "estimator": kind.kind,
                    "rows": len(batch.reward),
                    "value": estimate.value,
                    "lower": estimate.lower,
                    "upper": estimate.upper,
                    "confidence": confidence,
                    "ess": estimate.ess,
                }
            )
    return found


def _parts(
    rows: pl.DataFrame, cuts: Sequence[str]
) -> Iterator[tuple[str | None, str | None, np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    """All rows, then those of every segment; what is no category is no segment."""
    yield None, None, np.ones(len(rows), dtype=np.bool_)
    for by in cuts:
        try:
            coded = code_rows(rows, by)
        except InvalidInputError:
            # The sums over days say so, by name.
            continue
        for code, cell in enumerate(coded.cells):
            yield by, label(cell), coded.codes == code


def _batch(
    rows: pl.DataFrame,
    answers: Answers,
    place: int,
    mine: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> LoggedBatch:
    return LoggedBatch(
        reward=rows["reward"].to_numpy()[mine],
        propensity=rows["propensity"].to_numpy()[mine],
        target_probability=answers.probability[place, mine],
        keep_prob=rows["keep_prob"].to_numpy()[mine],
        q_logged=answers.q_logged[mine],
        q_target=answers.q_target[place, mine],
    )


def _frame(name: SummaryName, rows: Sequence[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMAS[name])
