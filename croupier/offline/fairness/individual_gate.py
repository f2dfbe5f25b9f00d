"""Individual fairness before the gate, and night by night: violation rates of generations."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from croupier.offline.fairness.individuals import (
    REQUEST,
    Individuals,
    comparable,
    judged_table,
    panel_of,
    sampled_decisions,
)
from croupier.offline.fairness.rises import rise_test
from croupier.offline.fairness.violation_rate import pairs_rate, violation_rate
from croupier.offline.finding import Finding, Section
from croupier.offline.interactions import logged_requests
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.fairness.auditors import JudgedPairs, Panel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from croupier.offline.fairness.individuals import JudgedTable
    from croupier.offline.fairness.violation_rate import ViolationRate
    from croupier.offline.interactions import LoggedRequest
    from croupier.offline.lake import Lake
    from croupier.policy.fairness.auditors import FloatArray
    from croupier.policy.fairness.config import IndividualFairness
    from croupier.policy.generation import Generation

__all__ = (
    "generation_policy",
    "generation_rate",
    "individual_section",
    "treated_by",
    "violation_rows",
)

_SAMPLE = 2000
_LOOKED_BACK = 15
# Of fewer decisions no rate is worth a place in the series.
_SERVED = 30
_SEED = 0


def individual_section(
    config: IndividualFairness | None,
    interactions: pl.DataFrame,
    judged: JudgedTable | None,
    champion: Generation | None,
    challenger: Generation,
    *,
    confidence: float,
) -> Section:
    """The section of a report: how often the challenger treats alike people differently.

    Both policies are asked what they would do with the requests that judge, or with 2,000 of them,
    and with the decisions of the pairs that people have judged. The limit is kept if the interval's
    upper end is: the challenger has to be shown to be fair enough. Where all auditors are people,
    it is the rate among the pairs that they have judged. A limit that nothing can be held to is not
    kept.

    Parameters
    ----------
    config
        Of the loop; None if it has no auditors.
    interactions
        That judge, which neither has learned from.
    judged
        What people have judged.
    champion
        To compare with; None if there is none.
    challenger
        That is judged.
    confidence
        Of the intervals, in (0, 1).
    """
    if config is None or judged is None:
        return Section.unmeasured("individual_fairness")
    policies = [("violation rate", challenger, config.max_violation_rate)]
    if champion is not None:
        policies.append(("champion's violation rate", champion, None))
    try:
        findings = _findings(config, interactions, judged, policies, confidence)
    except (NotEnoughDataError, InvalidInputError) as error:
        if config.max_violation_rate is None:
            return Section.unmeasured("individual_fairness", str(error))
        objection = (
            f"violation rate is to be at most {config.max_violation_rate:g} and was not measured: "
            f"{error}"
        )
        unknown = Finding(name="pairs that are judged", value=0.0, objection=objection)
        findings = (unknown,)
    names = ", ".join(config.auditors)
    note = (
        f"Share of pairs of decisions that violate, α = {config.alpha:g}, γ = {config.gamma:g}, "
        f"by {names}."
    )
    return Section(name="individual_fairness", measured=True, note=note, findings=findings)


def generation_rate(
    lake: Lake,
    loop: str,
    generation: int | None,
    config: IndividualFairness,
    judged: JudgedTable,
    *,
    sample: int = _SAMPLE,
    confidence: float = 0.95,
) -> ViolationRate:
    """The violation rate of a generation's own decisions, as it played them.

    Parameters
    ----------
    lake, loop
        Where its decisions are.
    generation
        Whose; all decisions if None.
    config, judged
        Of the loop.
    sample
        How many of its decisions are compared at most.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    NotEnoughDataError
        If there are too few decisions, or judgements.
    """
    rows = sampled_decisions(lake, loop, generation, size=sample, seed=_SEED)
    if not _judges_everywhere(config):
        made = judged.decisions
        if generation is not None:
            made = made.filter(pl.col("generation") == generation)
        individuals = Individuals.of(made, config)
        return _people_rate(config, individuals, judged, confidence)
    individuals = Individuals.of(rows, config)
    panel = panel_of(config, individuals, judged).panel
    return violation_rate(
        panel,
        individuals.treatments,
        individuals.weights,
        alpha=config.alpha,
        gap=config.gap,
        confidence=confidence,
    )


def violation_rows(
    lake: Lake, loop: str, config: IndividualFairness, *, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Rows for the generations table: violation rates, and whether they rise.

    Of the latest 15 generations that have made at least 30 decisions, all by the auditors as they
    are now. The last of them says whether the rates rise; the cold start is not compared with,
    since who treats everybody alike can only be less fair afterwards.

    Parameters
    ----------
    lake, loop, config
        Whose.
    confidence
        Of the intervals, in (0, 1).
    """
    served = (
        lake.scan("decisions", loop)
        .group_by("generation")
        .len()
        .filter(pl.col("generation").is_not_null(), pl.col("len") >= _SERVED)
        .sort("generation")
        .collect()["generation"]
        .to_list()
    )
    judged = judged_table(lake, loop)
    found: dict[int, ViolationRate] = {}
    for number in served[-_LOOKED_BACK:]:
        try:
            found[number] = generation_rate(
                lake, loop, number, config, judged, confidence=confidence
            )
        except (NotEnoughDataError, InvalidInputError):
            # A generation that was asked other things, or of which nobody has judged a pair.
            continue
    rows = [
        {
            "loop": loop,
            "generation": number,
            "violation_rate": rate.value,
            "violation_lower": rate.lower,
            "violation_upper": rate.upper,
            "violation_pairs": rate.effective_pairs,
        }
        for number, rate in found.items()
    ]
    learned = [rate for number, rate in found.items() if number > 0]
    try:
        test = rise_test(
            [each.value for each in learned], [each.effective_pairs for each in learned]
        )
    except NotEnoughDataError:
        return rows
    rows[-1] |= {"violation_p_value": test.p_value, "violations_rise": test.rises}
    return rows


def treated_by(
    policy: Callable[[LoggedRequest], NDArray[np.float64] | None],
    rows: pl.DataFrame,
    actions: tuple[str, ...],
) -> FloatArray:
    """How a policy would treat some decisions: probabilities of actions, shape (n, K).

    Parameters
    ----------
    policy
        Gives the probability of every action of a request, or None where it would take none.
    rows
        Of the decisions or the interactions table, with :data:`~.individuals.REQUEST`.
    actions
        Ids of the K actions.

    Raises
    ------
    InvalidInputError
        If a request can't be encoded.
    NotEnoughDataError
        If the policy would take no action.
    """
    place = {action: index for index, action in enumerate(actions)}
    treatments = np.zeros((len(rows), len(actions)))
    for row, request in enumerate(logged_requests(rows)):
        pmf = policy(request)
        if pmf is None:
            raise NotEnoughDataError("a policy has no answer to some of the requests")
        for action, probability in zip(request.actions, pmf.tolist(), strict=True):
            if action.id in place:
                treatments[row, place[action.id]] = probability
    return treatments


def generation_policy(
    generation: Generation,
) -> Callable[[LoggedRequest], NDArray[np.float64]]:
    """What :func:`treated_by` asks of a generation."""

    def policy(request: LoggedRequest) -> NDArray[np.float64]:
        asked = (request.context, request.actions, request.eligible, request.baseline)
        return generation.pmf(*asked)[0]

    return policy


def _findings(
    config: IndividualFairness,
    interactions: pl.DataFrame,
    judged: JudgedTable,
    policies: Sequence[tuple[str, Generation, float | None]],
    confidence: float,
) -> tuple[Finding, ...]:
    findings: list[Finding] = []
    _, challenger, limit = policies[0]
    if _judges_everywhere(config):
        rows = comparable(interactions.select(REQUEST), config)
        rows = rows.sample(min(_SAMPLE, len(rows)), seed=_SEED)
        individuals = Individuals.of(rows, config)
        panel = panel_of(config, individuals, judged).panel
        for name, generation, held in policies:
            treatments = treated_by(generation_policy(generation), rows, individuals.actions)
            rate = violation_rate(
                panel,
                treatments,
                individuals.weights,
                alpha=config.alpha,
                gap=config.gap,
                confidence=confidence,
            )
            findings.append(_held(name, rate, held))
        limit = None
    rows = comparable(judged.decisions, config)
    if len(rows) >= 2:
        individuals = Individuals.of(rows, config)
        treatments = treated_by(generation_policy(challenger), rows, individuals.actions)
        with suppress(NotEnoughDataError):
            rate = _people_rate(config, individuals.treated(treatments), judged, confidence)
            findings.append(_held("violation rate of judged pairs", rate, limit))
    if not findings:
        raise NotEnoughDataError("people have judged no pair of decisions that are in the lake")
    return tuple(findings)


def _people_rate(
    config: IndividualFairness, individuals: Individuals, judged: JudgedTable, confidence: float
) -> ViolationRate:
    """Among the pairs that people have judged, by these people alone."""
    people = [
        each
        for each in panel_of(config, individuals, judged).panel.auditors
        if isinstance(each, JudgedPairs)
    ]
    if not people:
        raise NotEnoughDataError("people have judged no pair of these decisions")
    pairs = np.unique(np.concatenate([np.stack(each.pairs, axis=1) for each in people]), axis=0)
    return pairs_rate(
        Panel(people, config.gamma),
        individuals.treatments,
        pairs[:, 0],
        pairs[:, 1],
        alpha=config.alpha,
        gap=config.gap,
        confidence=confidence,
    )


def _judges_everywhere(config: IndividualFairness) -> bool:
    """Whether an auditor is no person, so that random pairs are judged."""
    return any(each.__struct_config__.tag != "person" for each in config.auditors.values())


def _held(name: str, rate: ViolationRate, limit: float | None) -> Finding:
    objection = None
    if limit is not None and rate.upper > limit:
        objection = (
            f"{name} of the challenger is {rate.value:.4f}, {100 * rate.confidence:g} % interval "
            f"[{rate.lower:.4f}, {rate.upper:.4f}]: not shown to be at most {limit:g}"
        )
    return Finding(
        name=name,
        value=rate.value,
        lower=rate.lower,
        upper=rate.upper,
        limit=limit,
        objection=objection,
    )
