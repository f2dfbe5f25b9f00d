"""Searching for a better configuration on the log: what each would have earned, all at once.

Of many configurations the best looks better than it is, because the luckiest is picked. So every
interval is widened for the number of configurations: all differences from the loop's own hold at
once with the confidence that is asked for, and with them that of the one which is picked.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import polars as pl

from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import evaluate, logged_value
from croupier.offline.learner_log import LearnerLog
from croupier.offline.ope import Estimate
from croupier.offline.retrain import retrain
from croupier.offline.rewards import FOLDS
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import Conservative
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from croupier.offline.engine import Engine
    from croupier.offline.lake import Lake

__all__ = ("CORRECTION", "Trial", "TuneReport", "combinations", "parse_grid", "tune")

CORRECTION = "Bonferroni (Dunn, Multiple Comparisons among Means, 1961)"
MOST_CANDIDATES = 1000
# Sections of a loop that can be searched: those that make the generation, and don't change what
# is measured.
SEARCHED = ("oracle", "exploration", "training")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration, and what it would have earned.

    Attributes
    ----------
    changes
        What it has other than the loop's own, by dotted name; nothing for the loop's own itself.
    value, difference
        Its doubly robust estimate, and that of how much better it is than the loop's own, with
        intervals that are corrected; None where it could not be trained or judged.
    failed
        Why it couldn't.
    """

    changes: dict[str, Any]
    value: Estimate | None = None
    difference: Estimate | None = None
    failed: str | None = None


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found.

    Attributes
    ----------
    loop
        That was searched for.
    trained_rows, judged_rows
        On how many interactions every configuration was trained, and on how many judged. None of
        them is the gate's.
    confidence, corrected_confidence
        With which all differences hold at once, and that of each interval alone.
    compared
        Number of intervals that the correction is for.
    correction
        Its name and source.
    logged
        What the policies that made the log earned, on the same rows.
    trials
        The loop's own configuration first, the others by their estimates, failed ones last.
    better
        The best other one, if it is better than the loop's own with the confidence asked for.
    """

    loop: str
    trained_rows: int
    judged_rows: int
    confidence: float
    corrected_confidence: float
    compared: int
    correction: str
    logged: Estimate
    trials: list[Trial]
    better: Trial | None


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Values by dotted name, of texts such as ``oracle.learning_rate=[0.1, 0.5]`` (TOML).

    Raises
    ------
    InvalidInputError
        If one isn't such.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            read = tomllib.loads(f"values = {values}")["values"]
        except tomllib.TOMLDecodeError as error:
            raise InvalidInputError("grid", f"expected name=[values], got {text!r}") from error
        section = name.strip().partition(".")[0]
        if section not in SEARCHED or not isinstance(read, list) or not read:
            raise InvalidInputError(
                "grid",
                f"expected a list of values for a field of {', '.join(SEARCHED)}, got {text!r}",
            )
        grid[name.strip()] = read
    return grid


def combinations(
    config: LoopConfig, grid: Mapping[str, Sequence[Any]]
) -> list[tuple[dict[str, Any], LoopConfig]]:
    """Every combination of a grid's values with the loop's own configuration, which comes first.

    Raises
    ------
    InvalidInputError
        If one is not a configuration, naming what is wrong; or there are more than 1000.
    """
    names = list(grid)
    found: list[tuple[dict[str, Any], LoopConfig]] = [({}, config)]
    for values in itertools.product(*grid.values()):
        changes = dict(zip(names, values, strict=True))
        changed = _changed(config, changes)
        if all(changed != known for _, known in found):
            found.append((changes, changed))
        if len(found) > MOST_CANDIDATES:
            raise InvalidInputError("grid", f"expected at most {MOST_CANDIDATES} combinations")
    return found


def tune(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    grid: Mapping[str, Sequence[Any]],
    *,
    judge_share: float,
    seed: int,
    created_us: int,
    tuning_share: float = 0.3,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> TuneReport:
    """Train every combination of a grid on the log, and estimate what it would have earned.

    The learner's folds are divided once more: what is trained on the larger part is judged on the
    rest by the doubly robust estimator, and against the loop's own configuration row by row. The
    gate's folds are not touched, so that what is picked here still has to prove itself there.

    With m configurations beside the loop's own, every interval is one of confidence ``1 - α / m``
    (Bonferroni): however they hang together, all m differences hold at once with ``1 - α``; and so,
    by themselves, do the m values.

    Parameters
    ----------
    lake, loop, config
        Whose log, and the configuration to change.
    grid
        Lists of values by dotted name, such as ``exploration.gamma_scale``. A name that is a whole
        section (``oracle``) takes tables.
    judge_share
        Share of the folds that are the gate's.
    seed, created_us
        As :func:`~croupier.offline.retrain.retrain` takes them.
    tuning_share
        Share of the learner's folds, in (0, 1), that judge here.
    confidence
        With which all differences are to hold at once, in (0, 1).
    progress
        Called with configurations done and in all.
    engine
        Trains and judges them, those that share an oracle together.

    Raises
    ------
    InvalidInputError
        If a combination is no configuration.
    NotEnoughDataError
        If there is too little to train the loop's own configuration, or to judge it.
    """
    candidates = combinations(config, grid)
    compared = max(len(candidates) - 1, 1)
    each = 1.0 - (1.0 - confidence) / compared
    first = round(judge_share * FOLDS)
    judged_to = first + round(tuning_share * (FOLDS - first))
    version = lake.version("interactions")
    if version < 0:
        raise NotEnoughDataError(f"loop {loop!r} has no interactions yet; run the join first")
    log = LearnerLog(lake, loop, config, judge_share, version=version)
    rows = log.rows(pl.col("fold") < judged_to)

    search = _Search(lake, loop, rows, judged_to / FOLDS, seed, created_us, version, each)
    own = search.trained(0, config)
    evaluation = evaluate(rows, None, own, config, confidence=each, engine=engine)
    trials = [Trial(changes={}, value=evaluation.policies[1].estimates["dr"])]
    alike: dict[bytes, list[_Candidate]] = {}
    for number, (changes, asked) in enumerate(candidates[1:], 1):
        alike.setdefault(_trained_by(asked), []).append(_Candidate(number, changes, asked))
    found: dict[int, Trial] = {}
    for tried in engine.map(_try, alike.values(), (search, config, own)):
        found |= tried
        if progress is not None:
            progress(len(found), len(candidates) - 1)
    trials += [trial for _, trial in sorted(found.items())]
    others = sorted(trials[1:], key=_merit, reverse=True)
    proven = [trial for trial in others if trial.difference and trial.difference.lower > 0.0]
    assert own.provenance is not None, "it was trained"
    return TuneReport(
        loop=loop,
        trained_rows=own.provenance.training_rows,
        judged_rows=evaluation.rows,
        confidence=confidence,
        corrected_confidence=each,
        compared=compared,
        correction=CORRECTION,
        logged=logged_value(rows, config, confidence=confidence),
        trials=[trials[0], *others],
        better=proven[0] if proven else None,
    )


class _Candidate(NamedTuple):
    """A configuration: its number, what it has other than the loop's own, and all of it."""

    number: int
    changes: dict[str, Any]
    config: LoopConfig


@dataclass(frozen=True, slots=True)
class _Search:
    """What all configurations are trained and judged on."""

    lake: Lake
    loop: str
    rows: pl.DataFrame
    judge_share: float
    seed: int
    created_us: int
    version: int
    confidence: float

    def trained(self, number: int, config: LoopConfig) -> Generation:
        return retrain(
            self.lake,
            self.loop,
            config,
            number=number,
            parent=0,
            judge_share=self.judge_share,
            seed=self.seed,
            created_us=self.created_us,
            lake_version=self.version,
        )


def _try(
    given: tuple[_Search, LoopConfig, Generation], candidates: list[_Candidate]
) -> dict[int, Trial]:
    """Train and judge configurations that differ in the exploration alone, and share an oracle."""
    search, config, own = given
    first = candidates[0]
    known = own if _trained_by(first.config) == _trained_by(config) else None
    tried = {}
    for number, changes, asked in candidates:
        try:
            known = known or search.trained(number, asked)
            made = Generation(
                search.loop,
                number,
                asked.exploration,
                known.oracle,
                known.provenance,
                known.tilt,
            )
            evaluation = evaluate(search.rows, own, made, config, confidence=search.confidence)
        except (GenerationError, NotEnoughDataError) as error:
            # It is told, and the search goes on.
            tried[number] = Trial(changes=changes, failed=str(error))
            continue
        tried[number] = Trial(
            changes=changes,
            value=evaluation.policies[1].estimates["dr"],
            difference=evaluation.differences["dr"],
        )
    return tried


def _trained_by(config: LoopConfig) -> bytes:
    """What an oracle depends on: configurations with the same share one."""
    # The safety budget of a conservative exploration is its own, and so is what is tilted.
    own = isinstance(config.exploration, Conservative) or config.training.corrective is not None
    shared = [config.oracle, config.training, config.exploration if own else None]
    return msgspec.json.encode(shared, order="deterministic")


def _merit(trial: Trial) -> float:
    return float("-inf") if trial.difference is None else trial.difference.value


def _changed(config: LoopConfig, changes: Mapping[str, Any]) -> LoopConfig:
    values: dict[str, Any] = msgspec.to_builtins(config)
    for name, value in changes.items():
        *path, last = name.split(".")
        node = values
        for step in path:
            node = node.get(step, {})
            if not isinstance(node, dict):
                raise InvalidInputError("grid", f"{name} is not a field of the loop")
        node[last] = value
    try:
        return msgspec.convert(values, LoopConfig)
    except msgspec.ValidationError as error:
        shown = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
        raise InvalidInputError("grid", f"{shown}: {error}") from error
