"""Whether a log can be believed at all: what is asked before any estimate is made of it.

Draws must have happened with the probabilities that were logged (chi-square test), must come out
the same when they are made again from the pmf and the draw key, and rows must not contradict
themselves. Each is asked of the whole log, of every generation in it, and of groups of requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from croupier.offline.audit import PropensityAudit, audit_propensities, draws_test
from croupier.offline.drift import drift
from croupier.offline.grouped import GENERATION, Grouping
from croupier.offline.multiplicity import holm_p_values
from croupier.offline.quality import Coverage, coverage
from croupier.policy.errors import NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from croupier.offline.propensity import PropensityTest

__all__ = ("CALIBRATION_LEVEL", "Drifted", "LogHealth", "PartHealth", "log_health")

CALIBRATION_LEVEL = 0.001
"""How often, at most, a log whose propensities are right is refused for its draws."""

WHOLE = "all"


class PartHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a part of a log.

    Attributes
    ----------
    part
        ``all``, a generation, or a group.
    rows, without_pmf
        Interactions, and those of them that no test can be made of.
    contradictions
        Rows whose pmf, choice and propensity contradict each other, or whose `keep_prob` is none.
    replayed, replay_mismatches
        Draws that were made again, and those that came out differently.
    p_value
        That the draws happened with the logged probabilities; None if there were none to test.
    corrected_p_value
        The same, corrected for the number of parts (Holm).
    coverage
        Of states and actions, see :mod:`croupier.offline.quality`.
    """

    part: str
    rows: int
    without_pmf: int
    contradictions: int
    replayed: int
    replay_mismatches: int
    p_value: float | None
    corrected_p_value: float | None = None
    coverage: Coverage

    def objections(self, level: float) -> list[str]:
        """What speaks against using these rows, one sentence each."""
        where = "the log" if self.part == WHOLE else self.part
        against = []
        if self.contradictions:
            against.append(
                f"{self.contradictions:,} rows of {where} contradict themselves: pmf, choice, "
                f"propensity or keep_prob"
            )
        if self.replay_mismatches:
            against.append(
                f"{self.replay_mismatches:,} of {self.replayed:,} draws of {where} come out "
                f"differently when they are made again from the logged pmf and draw key"
            )
        if self.corrected_p_value is not None and self.corrected_p_value < level:
            against.append(
                f"the draws of {where} did not happen with the logged propensities "
                f"(p = {self.corrected_p_value:.2g}, below {level:g})"
            )
        return against


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the log's generations met the same world; ``croupier drift`` tells more.

    Attributes
    ----------
    level
        Chance, at most, of anything being found where nothing has changed.
    rewards, features
        Comparisons of consecutive generations in which rewards and features of the context have
        changed.
    """

    level: float
    rewards: int
    features: int


class LogHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a log.

    Attributes
    ----------
    parts
        The whole log, its generations, then its groups if any were asked for.
    drifted
        None of a log without two generations that have 50 interactions each.
    level
        How often, at most, a right log is objected to for its draws.
    """

    parts: tuple[PartHealth, ...]
    drifted: Drifted | None
    level: float

    @property
    def objections(self) -> list[str]:
        """What speaks against the log, one sentence each; the parts where it is a part's fault."""
        whole, *others = self.parts
        of_parts = [each for part in others for each in part.objections(self.level)]
        return of_parts or whole.objections(self.level)


def log_health(
    interactions: pl.DataFrame,
    states: NDArray[np.int64],
    groupings: Sequence[Grouping] = (),
    *,
    level: float = CALIBRATION_LEVEL,
    progress: Callable[[int, int], None] | None = None,
) -> LogHealth:
    """Ask everything of a log.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    states
        States of the requests, shape (n,), see :func:`~croupier.offline.quality.request_states`.
    groupings
        Whose groups are asked as well.
    level
        How often, at most, a right log is to be objected to for its draws, in (0, 1).
    progress
        Called with rows replayed and in all.
    """
    parts: list[PartHealth] = []
    done, n = 0, len(interactions)
    numbers = interactions["generation"]
    for number in numbers.unique().sort().to_list():
        own = numbers.is_null() if number is None else (numbers == number).fill_null(value=False)
        name = "an imported log" if number is None else f"generation {number}"
        rows = interactions.filter(own)
        parts.append(_part(name, audit_propensities(rows), rows, states[own.to_numpy()]))
        done += len(rows)
        if progress is not None:
            progress(done, n)
    whole = _sum(parts, _whole_test(interactions), coverage(interactions, states))
    # One generation is the whole log already.
    asked = [whole, *parts] if len(parts) > 1 else [msgspec.structs.replace(parts[0], part=WHOLE)]
    for grouping in groupings:
        if grouping.by != GENERATION:
            asked.extend(_groups(interactions, states, grouping))
    return LogHealth(parts=_corrected(asked), drifted=_drifted(interactions), level=level)


def _groups(
    interactions: pl.DataFrame, states: NDArray[np.int64], grouping: Grouping
) -> Iterator[PartHealth]:
    for key, own in grouping.parts():
        rows = interactions.filter(pl.Series(own))
        yield _part(f"{grouping.by} {key}", audit_propensities(rows), rows, states[own])


def _part(
    name: str, found: PropensityAudit, rows: pl.DataFrame, states: NDArray[np.int64]
) -> PartHealth:
    violations = 0 if found.violations is None else found.violations.rows
    return PartHealth(
        part=name,
        rows=len(rows),
        without_pmf=found.without_pmf,
        contradictions=violations + found.bad_keep_prob,
        replayed=found.replayed,
        replay_mismatches=found.replay_mismatches,
        p_value=_tested(found.test),
        coverage=coverage(rows, states),
    )


def _sum(parts: Sequence[PartHealth], test: PropensityTest | None, covered: Coverage) -> PartHealth:
    """The whole log: replaying it again would bring nothing new."""
    counts = ("rows", "without_pmf", "contradictions", "replayed", "replay_mismatches")
    sums = {name: sum(getattr(part, name) for part in parts) for name in counts}
    return PartHealth(part=WHOLE, p_value=_tested(test), coverage=covered, **sums)


def _whole_test(interactions: pl.DataFrame) -> PropensityTest | None:
    own = interactions.filter(pl.col("pmf").is_not_null(), pl.col("generation").is_not_null())
    return None if own.is_empty() else draws_test(own)


def _tested(test: PropensityTest | None) -> float | None:
    return None if test is None else test.combined_p_value


def _corrected(parts: Sequence[PartHealth]) -> tuple[PartHealth, ...]:
    tested = [part.p_value for part in parts if part.p_value is not None]
    corrected = iter(holm_p_values(tested).tolist())
    return tuple(
        part
        if part.p_value is None
        else msgspec.structs.replace(part, corrected_p_value=next(corrected))
        for part in parts
    )


def _drifted(interactions: pl.DataFrame) -> Drifted | None:
    try:
        found = drift(interactions.filter(pl.col("generation").is_not_null()))
    except NotEnoughDataError:
        return None
    return Drifted(
        level=found.level,
        rewards=sum(each.significant for each in found.rewards),
        features=sum(each.significant for each in found.features),
    )
