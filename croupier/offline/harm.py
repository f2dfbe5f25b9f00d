"""What a challenger does to the guardrails: by how much, with intervals, and whether it may."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from croupier.offline.finding import Finding, Section
from croupier.offline.guardrails import guardrail_reward
from croupier.offline.ope import SNIPS, Difference, Estimate, LoggedBatch, PairedBatch
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.guardrails import Guardrail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

__all__ = (
    "GuardrailEstimates",
    "GuardrailValue",
    "guardrail_section",
    "guardrail_values",
    "harm_shown",
)


class GuardrailEstimates(msgspec.Struct, frozen=True, kw_only=True):
    """Mean of a guardrail under both policies, and challenger less champion from paired rows."""

    champion: Estimate
    challenger: Estimate
    difference: Estimate


class GuardrailValue(msgspec.Struct, frozen=True, kw_only=True):
    """What two policies do to a guardrail.

    Attributes
    ----------
    name
        Of the guardrail.
    rule
        What is asked for.
    rows
        Judged interactions that have it: those that were joined since it was configured.
    estimates
        By SNIPS; None where these rows are too few for them, as fewer than 20 are.
    """

    name: str
    rule: Guardrail
    rows: int
    estimates: GuardrailEstimates | None


def guardrail_values(
    interactions: pl.DataFrame,
    batches: tuple[LoggedBatch, LoggedBatch],
    weight_ranges: tuple[tuple[float, float], tuple[float, float]],
    guardrails: Mapping[str, Guardrail],
    *,
    confidence: float,
    least: int,
) -> tuple[GuardrailValue, ...]:
    """Estimate what two policies do to every guardrail, on rows that they were asked about.

    There is no reward model of a guardrail, so the estimator is SNIPS, with its interval by
    empirical likelihood. A guardrail that refuses on a proof of harm is one chance more of a false
    alarm, so k of these have intervals of confidence ``1 - (1 - confidence) / k`` (Bonferroni; of
    whether anything at all is refused, Holm's procedure says the same). A challenger has to pass
    all of those that ask for a proof of no harm, and is wrongly let through by one only if it is by
    every other one too, so these have intervals of the confidence itself (Berger, 1982,
    "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24).

    Parameters
    ----------
    interactions
        The rows.
    batches, weight_ranges
        What champion and challenger would have done with them, and between what their weights lie.
    guardrails
        By name.
    confidence
        In (0, 1).
    least
        How many rows there must be.
    """
    several = sum(rule.evidence == "no_proof_of_harm" for rule in guardrails.values())
    found = []
    for name, rule in sorted(guardrails.items()):
        rewards = interactions.select(guardrail_reward(name)).to_series()
        known = rewards.is_not_null().to_numpy()
        rows, estimates = int(known.sum()), None
        if rows >= least:
            level = (1.0 - confidence) / (several if rule.evidence == "no_proof_of_harm" else 1)
            told = rewards.drop_nulls().to_numpy()
            champion, challenger = (_of(batch, known, told) for batch in batches)
            # Some rows may be too few, since the challenger takes none of their actions.
            with suppress(NotEnoughDataError):
                estimates = _estimates(
                    champion, challenger, weight_ranges, rule, confidence=1.0 - level
                )
        found.append(GuardrailValue(name=name, rule=rule, rows=rows, estimates=estimates))
    return tuple(found)


def harm_shown(value: GuardrailValue, *, min_ess: float = 0.0) -> tuple[bool, str]:
    """Whether a guardrail speaks against the challenger, and why or why not, in a sentence.

    Parameters
    ----------
    value
        As an evaluation has it.
    min_ess
        Effective sample size, of the rows that have it, below which nobody is let through.
    """
    rule, estimates = value.rule, value.estimates
    few = f"guardrail {value.name}: only {value.rows:,} of the judged interactions have it"
    if estimates is None:
        return True, f"{few}, too few to say whether it is harmed"
    if estimates.challenger.ess < min_ess:
        ess = estimates.challenger.ess
        return True, f"{few}, an effective sample size of {ess:.0f}, below {min_ess:g}"
    difference = estimates.difference
    shown = (
        f"guardrail {value.name}: challenger - champion is {difference.value:+.4f}, "
        f"{100 * difference.confidence:.4g} % interval "
        f"[{difference.lower:+.4f}, {difference.upper:+.4f}]"
    )
    # By how much it is better, whichever way that is.
    higher = rule.direction == "higher"
    worst, best = (
        (difference.lower, difference.upper) if higher else (-difference.upper, -difference.lower)
    )
    fall = f"{'lower' if higher else 'higher'} by more than {rule.max_fall:g}"
    if rule.evidence == "no_proof_of_harm":
        harmed = best < -rule.max_fall
        return harmed, f"{shown}: {'' if harmed else 'not '}shown to be {fall}"
    harmless = worst > -rule.max_fall
    return not harmless, f"{shown}: {'' if harmless else 'not '}shown not to be {fall}"


def guardrail_section(values: Sequence[GuardrailValue], *, min_ess: float = 0.0) -> Section:
    """The section of a report, with what speaks against the challenger; see :func:`harm_shown`."""
    if not values:
        return Section.unmeasured("guardrails")
    note = "Challenger less champion, by SNIPS on the judged interactions that have the guardrail."
    findings = tuple(_finding(each, min_ess) for each in values)
    return Section(name="guardrails", measured=True, note=note, findings=findings)


def _finding(value: GuardrailValue, min_ess: float) -> Finding:
    harmed, reason = harm_shown(value, min_ess=min_ess)
    objection = reason if harmed else None
    if value.estimates is None:
        return Finding(
            name=f"interactions with {value.name}", value=float(value.rows), objection=objection
        )
    difference, higher = value.estimates.difference, value.rule.direction == "higher"
    return Finding(
        name=value.name,
        value=difference.value,
        lower=difference.lower,
        upper=difference.upper,
        limit=-value.rule.max_fall if higher else value.rule.max_fall,
        bound="at least" if higher else "at most",
        objection=objection,
    )


def _of(batch: LoggedBatch, known: NDArray[np.bool_], rewards: NDArray[np.float64]) -> LoggedBatch:
    """The rows that have a guardrail, with it for their reward."""
    return LoggedBatch(
        reward=rewards,
        propensity=batch.propensity[known],
        target_probability=batch.target_probability[known],
        keep_prob=None if batch.keep_prob is None else batch.keep_prob[known],
    )


def _estimates(
    champion: LoggedBatch,
    challenger: LoggedBatch,
    weight_ranges: tuple[tuple[float, float], tuple[float, float]],
    rule: Guardrail,
    *,
    confidence: float,
) -> GuardrailEstimates:
    # What is summed, or was sent under another configuration, may lie outside.
    ends = [rule.reward_min, rule.reward_max, champion.reward.min(), champion.reward.max()]
    reward_range = float(min(ends)), float(max(ends))
    a, b = (SNIPS(reward_range=reward_range, weight_range=each) for each in weight_ranges)
    return GuardrailEstimates(
        champion=a.add(champion).result(confidence),
        challenger=b.add(challenger).result(confidence),
        difference=Difference(a, b).add(PairedBatch(a=champion, b=challenger)).result(confidence),
    )
