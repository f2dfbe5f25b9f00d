"""An audit of pairs, as the command line and dashboards show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from croupier.offline.fairness.finder import EXACT_UP_TO, worst_partners
from croupier.offline.fairness.individual_gate import violation_rows
from croupier.offline.fairness.individuals import (
    Individuals,
    judged_table,
    panel_of,
    sampled_decisions,
)
from croupier.offline.fairness.proposals import propose_pairs
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.fairness.auditors import gap_of
from croupier.policy.fairness.config import LearnedDistance
from croupier.policy.fairness.features import FeatureTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

    from croupier.offline.fairness.finder import Found
    from croupier.offline.fairness.individuals import JudgedTable, LearnedAuditor, PanelOf
    from croupier.offline.lake import Lake
    from croupier.policy.fairness.config import IndividualFairness

__all__ = (
    "AuditedPair",
    "AuditorTold",
    "GenerationRate",
    "PairAudit",
    "Side",
    "audit_pairs",
    "pair_sides",
    "proposed_pairs",
    "rows_beside",
)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two decisions of a pair.

    Attributes
    ----------
    decision_id, generation
        Which, and who made it.
    context, audit
        What was known of it.
    treatment
        Probability of every action that counts as treatment, by id.
    """

    decision_id: str
    generation: int | None
    context: dict[str, Any]
    audit: dict[str, Any]
    treatment: dict[str, float]


class AuditedPair(msgspec.Struct, frozen=True, kw_only=True):
    """A pair that violates, or that is proposed to be judged.

    Attributes
    ----------
    first, second
        The two.
    gap
        How differently they are treated.
    distance
        How differently they may be: the panel's, or for a proposal what was learned of it so far.
    excess
        ``gap - distance - α``: above 0 for a violation.
    uncertainty, chance
        Of a proposal, see :class:`~croupier.offline.fairness.proposals.ProposedPair`; None of a
        violation.
    """

    first: Side
    second: Side
    gap: float
    distance: float
    excess: float
    uncertainty: float | None = None
    chance: float | None = None


class AuditorTold(msgspec.Struct, frozen=True, kw_only=True):
    """An auditor of the panel.

    Attributes
    ----------
    name, kind
        As configured.
    judgements
        Pairs that were learned from, or judged by a person; None of what needs none.
    weights
        Of a distance, by path.
    held_out_error
        Mean absolute error of a learned distance on judgements that weren't learned from.
    abstains
        Whether there are too few judgements for the auditor to say anything.
    """

    name: str
    kind: str
    judgements: int | None = None
    weights: dict[str, float] = {}
    held_out_error: float | None = None
    abstains: bool = False


class GenerationRate(msgspec.Struct, frozen=True, kw_only=True):
    """A generation's violation rate; see the columns of the generations table."""

    generation: int
    violation_rate: float
    violation_lower: float
    violation_upper: float
    violation_pairs: float
    violation_p_value: float | None = None
    violations_rise: bool | None = None


class PairAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a loop.

    Attributes
    ----------
    loop, alpha, gamma
        Whose, and what a violation is.
    auditors
        The panel.
    decisions, left_out
        Decisions that were looked through for violations, and those that can't be compared.
    violators
        Of these, decisions that have a partner with whom they violate.
    settled
        Share of the decisions of which it is certain whether they have one; 0 if nobody can judge.
    exact
        Whether all pairs were compared.
    generations
        Violation rates.
    worst
        The worst pairs that were found.
    proposed
        Pairs whose judgement would be worth most.
    """

    loop: str
    alpha: float
    gamma: float
    auditors: tuple[AuditorTold, ...]
    decisions: int
    left_out: int
    violators: int
    settled: float
    exact: bool
    generations: tuple[GenerationRate, ...]
    worst: tuple[AuditedPair, ...]
    proposed: tuple[AuditedPair, ...]

    @property
    def rises(self) -> bool:
        """Whether the violation rate rises across generations."""
        return any(each.violations_rise for each in self.generations)


def audit_pairs(
    lake: Lake,
    loop: str,
    config: IndividualFairness,
    *,
    most: int = 1_000_000,
    shown: int = 10,
    proposals: int = 10,
    exact_up_to: int = EXACT_UP_TO,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PairAudit:
    """Look through a loop's decisions for pairs that violate, and propose pairs to be judged.

    Parameters
    ----------
    lake, loop
        Whose decisions; only read.
    config
        Who judges.
    most
        How many decisions are looked through at most.
    shown, proposals
        How many violating pairs are told, and how many are proposed.
    exact_up_to
        Of how many decisions all pairs are compared.
    seed
        Of samples.
    progress
        Called with steps done and in all.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than two decisions.
    InvalidInputError
        If a feature of the auditors' is in none of the decisions.
    """
    judged = judged_table(lake, loop)
    rows = sampled_decisions(lake, loop, None, size=most, seed=seed)
    individuals = Individuals.of(rows, config)
    panel = _panel(config, individuals, judged)
    found = None
    if panel is not None:
        found = worst_partners(
            panel.panel,
            individuals.treatments,
            alpha=config.alpha,
            gap=config.gap,
            exact_up_to=exact_up_to,
            progress=progress,
        )
    worst = [] if found is None else found.worst(shown)
    columns = GenerationRate.__struct_fields__
    rates = [
        GenerationRate(**{name: row[name] for name in columns if name in row})
        for row in violation_rows(lake, loop, config)
    ]
    return PairAudit(
        loop=loop,
        alpha=config.alpha,
        gamma=config.gamma,
        auditors=_told(config, panel, judged),
        decisions=len(individuals),
        left_out=individuals.left_out,
        violators=0 if found is None else found.violators,
        settled=0.0 if found is None else float(found.settled.mean()),
        exact=found is not None and found.exact,
        generations=tuple(rates),
        worst=tuple(
            _pair(individuals, one, two, config, excess=excess) for one, two, excess in worst
        ),
        proposed=tuple(
            _proposed(config, individuals, panel, judged, found=found, count=proposals, seed=seed)
        ),
    )


def proposed_pairs(
    lake: Lake,
    loop: str,
    config: IndividualFairness,
    *,
    count: int,
    most: int = 5000,
    seed: int = 0,
) -> list[AuditedPair]:
    """Pairs whose judgement would be worth most, by what is in the lake now.

    Parameters
    ----------
    lake, loop, config
        Whose; only read.
    count
        How many.
    most
        Of how many decisions, drawn at random.
    seed
        Another one draws others.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than two decisions.
    InvalidInputError
        If a feature of the auditors' is in none of the decisions, or they have none.
    """
    judged = judged_table(lake, loop)
    rows = sampled_decisions(lake, loop, None, size=most, seed=seed)
    individuals = Individuals.of(rows, config)
    panel = _panel(config, individuals, judged)
    return _proposed(config, individuals, panel, judged, found=None, count=count, seed=seed)


def rows_beside(one: Side, two: Side) -> list[tuple[str, Any, Any]]:
    """What a person looks at to judge a pair: name, and what each of the two has; None for nothing.

    The generation, context and audit attributes path by path, and the treatment.
    """
    return [
        ("generation", one.generation, two.generation),
        *_beside(one.context, two.context),
        *((f"audit.{path}", *values) for path, *values in _beside(one.audit, two.audit)),
        *(
            (f"probability of {action}", *values)
            for action, *values in _beside(one.treatment, two.treatment, 0.0)
        ),
    ]


def _beside(
    one: dict[str, Any], two: dict[str, Any], missing: Any = None
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*one, *two]):
        left, right = one.get(key, missing), two.get(key, missing)
        if isinstance(left, dict) and isinstance(right, dict):
            for below, *values in _beside(left, right):
                yield f"{key}.{below}", values[0], values[1]
        else:
            yield key, left, right


def pair_sides(decisions: pl.DataFrame, config: IndividualFairness) -> list[Side]:
    """What there is to be seen of some decisions, in the order of their rows.

    Parameters
    ----------
    decisions
        With :data:`~croupier.offline.fairness.individuals.COLUMNS`.
    config
        Of the loop: which actions are the treatment.
    """
    sides = []
    for row in decisions.iter_rows(named=True):
        pmf = zip(row["action_ids"], row["pmf"] or (), strict=False)
        sides.append(
            Side(
                decision_id=row["decision_id"],
                generation=row["generation"],
                context=msgspec.json.decode(row["context"]),
                audit=msgspec.json.decode(row["audit"] or "{}"),
                treatment={
                    action: probability
                    for action, probability in pmf
                    if config.action in {None, action}
                },
            )
        )
    return sides


def _panel(
    config: IndividualFairness, individuals: Individuals, judged: JudgedTable
) -> PanelOf | None:
    """The panel; None if nobody can judge yet, which is what proposals are for."""
    try:
        return panel_of(config, individuals, judged)
    except NotEnoughDataError:
        return None


def _pair(
    individuals: Individuals,
    first: int,
    second: int,
    config: IndividualFairness,
    *,
    excess: float | None = None,
    distance: float | None = None,
    uncertainty: float | None = None,
    chance: float | None = None,
) -> AuditedPair:
    one, two = pair_sides(individuals.decisions[[first, second]], config)
    measure = gap_of(config.gap)
    gap = float(measure(individuals.treatments[first], individuals.treatments[second]))
    if distance is None:
        assert excess is not None
        distance = gap - excess - config.alpha
    return AuditedPair(
        first=one,
        second=two,
        gap=gap,
        distance=distance,
        excess=gap - distance - config.alpha,
        uncertainty=uncertainty,
        chance=chance,
    )


def _proposed(
    config: IndividualFairness,
    individuals: Individuals,
    panel: PanelOf | None,
    judged: JudgedTable,
    *,
    found: Found | None,
    count: int,
    seed: int,
) -> list[AuditedPair]:
    if not count:
        return []
    name = next(
        (name for name, each in config.auditors.items() if isinstance(each, LearnedDistance)), None
    )
    learned: LearnedAuditor | None = None
    table = individuals.table
    if name is not None:
        auditor = config.auditors[name]
        assert isinstance(auditor, LearnedDistance)
        blocks = dict(zip(table.paths, table.blocks, strict=True))
        paths = tuple(dict.fromkeys(auditor.features))
        table = FeatureTable(paths, [blocks[path] for path in paths])
        learned = None if panel is None else panel.learned.get(name)
    if not table.paths:
        raise InvalidInputError(
            "auditors", "expected one with features, by which pairs can be proposed"
        )
    row = {name: place for place, name in enumerate(individuals.decisions["decision_id"])}
    ids = judged.judgements.select("decision_id", "other_decision_id").iter_rows()
    known = [(row[one], row[two]) for one, two in ids if one in row and two in row]
    pairs = propose_pairs(
        table,
        individuals.treatments,
        None if learned is None else learned.learner,
        alpha=config.alpha,
        count=count,
        gap=config.gap,
        found=found,
        judged=known,
        random_state=seed,
    )
    return [
        _pair(
            individuals,
            each.first,
            each.second,
            config,
            distance=each.distance,
            uncertainty=each.uncertainty,
            chance=each.chance,
        )
        for each in pairs
    ]


def _told(
    config: IndividualFairness, panel: PanelOf | None, judged: JudgedTable
) -> tuple[AuditorTold, ...]:
    told = []
    by = judged.judgements.group_by("auditor").len()
    counts = dict(by.iter_rows())
    for name, auditor in config.auditors.items():
        kind = str(auditor.__struct_config__.tag)
        found = None if panel is None else panel.learned.get(name)
        if isinstance(auditor, LearnedDistance) and found is None:
            told.append(AuditorTold(name=name, kind=kind, judgements=None, abstains=True))
        elif found is not None:
            told.append(
                AuditorTold(
                    name=name,
                    kind=kind,
                    judgements=found.judgements,
                    weights=found.weights,
                    held_out_error=found.held_out_error,
                    abstains=found.learner is None,
                )
            )
        elif kind == "person":
            person = getattr(auditor, "name", None)
            many = sum(counts.values()) if person is None else counts.get(person, 0)
            told.append(AuditorTold(name=name, kind=kind, judgements=many, abstains=not many))
        else:
            told.append(AuditorTold(name=name, kind=kind, weights=getattr(auditor, "weights", {})))
    return tuple(told)
