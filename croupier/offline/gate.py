"""The promotion gate: a challenger becomes champion on evidence, or not at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from croupier.offline.evaluate import EstimatorName
from croupier.offline.finding import (
    SECTIONS,
    Section,
    SectionName,
    all_sections,
    objections_of,
)
from croupier.offline.ope.diagnostics import SupportLimits
from croupier.offline.stability import stability_section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from croupier.offline.evaluate import Evaluation

__all__ = ("GateConfig", "Verdict", "judge_challenger", "with_sections")


class GateConfig(SupportLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a challenger has to show; of the log, see :class:`SupportLimits`.

    Attributes
    ----------
    estimator
        Whose word counts: ``ips``, ``snips`` or ``dr``.
    confidence
        Of the interval around the difference, in (0, 1).
    margin
        By how much the challenger must be better: the interval's lower end must exceed it. A
        negative margin lets through what is not worse by more than that.
    calibration_level
        In how many judgements, at most, a log with right propensities is to be refused because
        draws don't seem to fit them, in (0, 1); see :mod:`croupier.offline.log_calibration`.
    max_total_variation, max_flip_rate
        How far the challenger's pmf may be from the champion's on average, and in which share of
        the requests its most probable action may be another one, in [0, 1]; any if None. The
        interval's upper end must not exceed them.
    required
        Sections that have to be measured, see :mod:`croupier.offline.finding`; without them no
        challenger passes.
    """

    estimator: EstimatorName = "dr"
    confidence: float = 0.95
    margin: float = 0.0
    calibration_level: float = 0.001
    max_total_variation: float | None = None
    max_flip_rate: float | None = None
    required: tuple[SectionName, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"confidence must be in [0.5, 1), got {self.confidence}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be finite, got {self.margin}")
        if not 0.0 < self.calibration_level < 1.0:
            raise ValueError(f"calibration_level must be in (0, 1), got {self.calibration_level}")
        for name in ("max_total_variation", "max_flip_rate"):
            limit = getattr(self, name)
            if limit is not None and not 0.0 <= limit <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {limit}")
        unknown = sorted(set(self.required).difference(SECTIONS))
        if unknown:
            raise ValueError(f"required must name sections ({', '.join(SECTIONS)}), got {unknown}")


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether to promote, and why or why not, in sentences.

    Attributes
    ----------
    promote, reasons
        The verdict.
    sections
        What was measured beside the value, and what was not.
    """

    promote: bool
    reasons: list[str]
    sections: tuple[Section, ...] = ()


def judge_challenger(
    config: GateConfig, evaluation: Evaluation, measured: Iterable[Section] = ()
) -> Verdict:
    """Judge the second policy of an evaluation against the first.

    Parameters
    ----------
    config
        What is asked.
    evaluation
        Of both policies.
    measured
        Sections of what was measured elsewhere; stability is the evaluation's own.
    """
    champion, challenger = evaluation.policies
    difference = evaluation.differences[config.estimator]
    shown = (
        f"{challenger.name} - {champion.name} is {difference.value:+.4f}, "
        f"{100 * config.confidence:g} % interval "
        f"[{difference.lower:+.4f}, {difference.upper:+.4f}]"
    )
    stability = stability_section(
        evaluation.stability,
        max_total_variation=config.max_total_variation,
        max_flip_rate=config.max_flip_rate,
    )
    against = challenger.objections(config)
    if not difference.lower > config.margin:
        against.append(f"{shown}: not shown to be above {config.margin:+g}")
    reasons = against or [f"{shown}, above {config.margin:+g}"]
    return with_sections(
        Verdict(promote=not against, reasons=reasons), config, (stability, *measured)
    )


def with_sections(verdict: Verdict, config: GateConfig, measured: Iterable[Section]) -> Verdict:
    """A verdict that has heard what was measured besides, and what was required and was not."""
    sections = all_sections(measured)
    against = objections_of(sections, config.required)
    if not against:
        return msgspec.structs.replace(verdict, sections=sections)
    reasons = against if verdict.promote else [*verdict.reasons, *against]
    return Verdict(promote=False, reasons=reasons, sections=sections)
