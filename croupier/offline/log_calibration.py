"""Whether the log that judges a challenger can be believed: were draws those that were logged?

Of every generation that made any of the judged rows, all draws from the first judged day on are
tested against the logged probabilities, from the sums that nights keep; the judged rows themselves
are looked through for contradictions, and their draws are made again from pmf and draw key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.offline.audit import contradictions, replayed_differently
from croupier.offline.finding import Finding, Section
from croupier.offline.propensity import BinCheck
from croupier.offline.realised import draws_checks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.offline.lake import Lake
    from croupier.offline.realised import DrawsCheck

__all__ = ("GenerationCalibration", "LogCalibration", "WorstCell", "calibrate_log")


class WorstCell(msgspec.Struct, frozen=True, kw_only=True):
    """Where draws are furthest from what was promised.

    Attributes
    ----------
    name
        An action of the generation, or a range of probabilities.
    expected, observed, z
        How often it should have been drawn, how often it was, and the difference in standard
        deviations.
    """

    name: str
    expected: float
    observed: int
    z: float


class GenerationCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """One generation's part in the log.

    Attributes
    ----------
    generation
        Its number.
    judged
        Rows of it that judge.
    contradictions
        Of these, rows whose pmf, choice and propensity contradict each other.
    replayed, mismatches
        Of these, draws that were made again, and those that came out differently.
    first_mismatch
        Id of the first decision among the latter.
    tested
        Draws that were tested: all from the first judged day on that were joined.
    impossible
        Of these, choices whose probability was 0.
    p_value
        Of the propensity test, both statistics together.
    adjusted_p_value
        Times the number of generations that are tested at once (Bonferroni), at most 1.
    worst
        Where the deviation is largest; None where nothing is random.
    bins
        Expected and observed counts by level of probability.
    """

    generation: int
    judged: int
    contradictions: int
    replayed: int
    mismatches: int
    first_mismatch: str | None
    tested: int
    impossible: int
    p_value: float
    adjusted_p_value: float
    worst: WorstCell | None
    bins: tuple[BinCheck, ...]

    def objections(self, level: float) -> Iterator[str]:
        """What speaks against believing the generation's rows, in sentences."""
        if self.adjusted_p_value < level:
            yield (
                f"the draws of generation {self.generation} don't fit the logged probabilities: "
                f"p-value {self.adjusted_p_value:.2g} (for all generations of the log at once) is "
                f"below {level:g}{self._where()}"
            )
        if self.contradictions:
            yield (
                f"{self.contradictions:,} of {self.judged:,} judged rows of generation "
                f"{self.generation} have a pmf, a choice and a propensity that contradict each "
                "other"
            )
        if self.mismatches:
            yield (
                f"{self.mismatches:,} of {self.replayed:,} draws of generation {self.generation} "
                f"come out differently when they are replayed, first that of decision "
                f"{self.first_mismatch!r}"
            )

    def _where(self) -> str:
        if self.impossible:
            return f"; {self.impossible:,} choices had probability 0"
        if self.worst is None:
            return ""
        cell = self.worst
        return (
            f"; {cell.name} was drawn {cell.observed:,} times where {cell.expected:,.1f} were "
            f"expected ({cell.z:+.1f} standard deviations)"
        )


class LogCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """Every generation's part in the log, and what is nobody's.

    Attributes
    ----------
    level
        How often, at most, a log with right propensities is to be refused: in one judgement, over
        all its generations (asymptotically, as the test's p-values are).
    generations
        In the order of their numbers.
    foreign
        Judged rows that no generation of ours made, or without a pmf; nothing is tested of them.
    """

    level: float
    generations: tuple[GenerationCalibration, ...]
    foreign: int

    @property
    def smallest_p_value(self) -> float | None:
        """For all generations at once; None without any."""
        return min((each.adjusted_p_value for each in self.generations), default=None)

    def section(self) -> Section:
        """The section of a report, with what speaks against believing the log."""
        if not self.generations:
            return Section.unmeasured(
                "calibration", "no judged row was drawn by a generation of this loop"
            )
        foreign = ""
        if self.foreign:
            foreign = f" {self.foreign:,} judged rows were made elsewhere, and can't be tested."
        return Section(
            name="calibration",
            measured=True,
            note="Propensity test of every generation that made a judged row, p-values for all of "
            f"them at once; a log with right propensities is refused in at most {self.level:g} of "
            f"the judgements. Contradictions and replays are those of judged rows.{foreign}",
            findings=tuple(self._findings()),
        )

    def _findings(self) -> Iterator[Finding]:
        for each in self.generations:
            told = list(each.objections(self.level))
            yield Finding(
                name=f"draws of generation {each.generation}: p-value",
                value=each.adjusted_p_value,
                limit=self.level,
                bound="at least",
                objection=told.pop(0) if each.adjusted_p_value < self.level else None,
            )
            for name, count in (
                ("rows that contradict themselves", each.contradictions),
                ("draws replayed differently", each.mismatches),
            ):
                yield Finding(
                    name=f"{name}, generation {each.generation}",
                    value=float(count),
                    limit=0.0,
                    objection=told.pop(0) if count else None,
                )


def calibrate_log(lake: Lake, loop: str, judged: pl.DataFrame, *, level: float) -> LogCalibration:
    """Test the generations of a log, and look through the rows that judge.

    Parameters
    ----------
    lake, loop
        Where all draws of these generations are; only what no night has added up yet is read.
    judged
        Rows of the interactions table that judge.
    level
        See :class:`LogCalibration`, in (0, 1).
    """
    own = judged.filter(pl.col("generation").is_not_null(), pl.col("pmf").is_not_null())
    parts = {int(number): rows for (number,), rows in own.group_by("generation")}
    # No day is read on which nothing judges.
    first = own.select(pl.col("date").min()).item()
    checks = draws_checks(lake, loop, parts.keys(), since=first)
    found = [
        _generation(number, parts[number], check, among=len(checks))
        for number, check in sorted(checks.items())
    ]
    return LogCalibration(level=level, generations=tuple(found), foreign=len(judged) - len(own))


def _generation(
    number: int, rows: pl.DataFrame, check: DrawsCheck, *, among: int
) -> GenerationCalibration:
    drawn = rows.filter(pl.col("draw_key") != "").sort("offset", "decision_id")
    different = drawn.filter(replayed_differently(drawn))
    test = check.test
    return GenerationCalibration(
        generation=number,
        judged=len(rows),
        contradictions=contradictions(rows).rows,
        replayed=len(drawn),
        mismatches=len(different),
        first_mismatch=None if different.is_empty() else different["decision_id"][0],
        tested=test.n,
        impossible=test.impossible,
        p_value=test.combined_p_value,
        adjusted_p_value=min(1.0, among * test.combined_p_value),
        worst=_worst(check),
        bins=test.bins,
    )


def _worst(check: DrawsCheck) -> WorstCell | None:
    """The cell or bin furthest from its expectation."""
    test = check.test
    cells = [
        WorstCell(
            name="its rare actions together"
            if each.action is None
            else f"action {check.actions[each.action]!r}",
            expected=each.expected,
            observed=each.observed,
            z=each.z,
        )
        for each in test.cells
    ]
    bins = [
        WorstCell(
            name=f"what had a probability in ({each.low:g}, {each.high:g}]",
            expected=each.expected,
            observed=each.observed,
            z=each.z,
        )
        for each in test.bins
    ]
    found = max([*cells, *bins], key=lambda each: abs(each.z), default=None)
    return None if found is None or not np.isfinite(found.z) or found.z == 0.0 else found
