"""The promotion gate: a challenger becomes champion on evidence, or not at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from croupier.offline.evaluate import EstimatorName
from croupier.offline.harm import harm_shown
from croupier.offline.ope.diagnostics import SupportLimits

if TYPE_CHECKING:
    from croupier.offline.evaluate import Evaluation

__all__ = ("GateConfig", "Verdict", "judge_challenger")


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
    """

    estimator: EstimatorName = "dr"
    confidence: float = 0.95
    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"confidence must be in [0.5, 1), got {self.confidence}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be finite, got {self.margin}")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to promote, and why or why not, in sentences."""

    promote: bool
    reasons: list[str]


def judge_challenger(config: GateConfig, evaluation: Evaluation) -> Verdict:
    """Judge the second policy of an evaluation against the first; no guardrail may be harmed."""
    champion, challenger = evaluation.policies
    difference = evaluation.differences[config.estimator]
    shown = (
        f"{challenger.name} - {champion.name} is {difference.value:+.4f}, "
        f"{100 * config.confidence:g} % interval "
        f"[{difference.lower:+.4f}, {difference.upper:+.4f}]"
    )
    against = challenger.objections(config)
    if not difference.lower > config.margin:
        against.append(f"{shown}: not shown to be above {config.margin:+g}")
    guardrails = [harm_shown(each, min_ess=config.min_ess) for each in evaluation.guardrails]
    against += [reason for harmed, reason in guardrails if harmed]
    if against:
        return Verdict(promote=False, reasons=against)
    kept = [reason for _, reason in guardrails]
    return Verdict(promote=True, reasons=[f"{shown}, above {config.margin:+g}", *kept])
