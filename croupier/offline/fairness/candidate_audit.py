"""The audit of a candidate before anybody has served it, from the log alone.

By group: what champion and candidate are worth, by doubly robust estimates; how often either gives
each action, from their pmfs on the logged requests; and how much either leaves on the table. All
intervals of one measure hold at once: of an attribute by the max-t procedure, of several attributes
by Bonferroni. A single interval is one of empirical likelihood (values, regrets), which also holds
where rewards are rare; the difference of two groups is put together from theirs, which are
independent (square-and-add, Zou & Donner, "Construction of Confidence Limits about Effect
Measures", Statistics in Medicine 2008).

A policy's regret is the value of taking what the reward model thinks best, less its own. The model
has not learned from these rows, and the value of its choices is estimated from the logged rewards
as any policy's is, so nothing here is too good by having been chosen. What the model itself misses
of the truly best is missing: a regret is too small by that much, and never too large but for noise.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np
import polars as pl

from croupier.offline.answers import BEST, ask_policies
from croupier.offline.common_rows import CommonRows
from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import reward_range_of
from croupier.offline.fairness.disparities import Interval, contrast, interval_of, max_t
from croupier.offline.fairness.groups import code_rows, label, shown_groups
from croupier.offline.interactions import keep_weights
from croupier.offline.multiplicity import bonferroni
from croupier.offline.ope import DR, Difference, PairedBatch
from croupier.offline.ope.diagnostics import SupportLimits
from croupier.offline.realised import Moments
from croupier.offline.reward_model import RewardModel
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.engine import Engine
    from croupier.offline.ope import Estimate
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

    FloatArray: TypeAlias = NDArray[np.float64]
    BoolArray: TypeAlias = NDArray[np.bool_]
    _Measured: TypeAlias = "DR | Difference"

__all__ = (
    "CandidateAudit",
    "CandidateGroup",
    "CandidateOnAttribute",
    "GroupExposure",
    "GroupGap",
    "audit_candidate",
)

GapMeasure: TypeAlias = Literal["value", "regret", "exposure"]

_CHAMPION, _CANDIDATE, _BEST = range(3)


class CandidateGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What two policies are worth to a group.

    Attributes
    ----------
    group
        What it is called.
    decisions
        Its interactions that tell about both policies.
    why_none
        Why the log can't tell what they are worth to it, if it can't.
    champion, candidate
        The values.
    change
        Candidate less champion, from paired rows.
    champion_regret, candidate_regret
        What taking the model's best would be worth more; None where the log can't tell.
    """

    group: str
    decisions: int
    why_none: str | None = None
    champion: Interval | None = None
    candidate: Interval | None = None
    change: Interval | None = None
    champion_regret: Interval | None = None
    candidate_regret: Interval | None = None


class GroupExposure(msgspec.Struct, frozen=True, kw_only=True):
    """How often two policies give a group an action: mean probabilities, with intervals."""

    group: str
    action: str
    champion: Interval
    candidate: Interval


class GroupGap(msgspec.Struct, frozen=True, kw_only=True):
    """The largest difference between two groups under a policy.

    Attributes
    ----------
    measure, action
        Of what; the action of an exposure.
    policy
        Whose.
    highest, lowest
        The two groups.
    difference
        Largest less smallest. The interval is for whichever groups are truly the farthest apart.
    ratio
        Of exposures, smallest over largest; None where the largest is 0.
    """

    measure: GapMeasure
    policy: str
    highest: str
    lowest: str
    difference: Interval
    action: str | None = None
    ratio: Interval | None = None


class CandidateOnAttribute(msgspec.Struct, frozen=True, kw_only=True):
    """Champion and candidate on the groups of an attribute.

    Attributes
    ----------
    attribute
        What groups were made of.
    groups
        Those that are shown, large ones first.
    hidden
        Groups that are too small to be shown, or that would give those away.
    exposures
        Of the actions that are most probable under either policy.
    gaps
        Of both policies; none where fewer than two groups can be told.
    """

    attribute: str
    groups: tuple[CandidateGroup, ...]
    hidden: tuple[str, ...]
    exposures: tuple[GroupExposure, ...]
    gaps: tuple[GroupGap, ...]


class CandidateAudit(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate against the champion, group by group.

    Attributes
    ----------
    champion, candidate
        What they are called.
    rows, left_out
        Interactions that tell about both, and those that don't.
    model
        Which reward model was asked.
    confidence
        With which all intervals of a measure hold at once.
    attributes
        As configured.
    """

    champion: str
    candidate: str
    rows: int
    left_out: int
    model: str
    confidence: float
    attributes: tuple[CandidateOnAttribute, ...]


def audit_candidate(
    interactions: pl.DataFrame,
    policies: Mapping[str, Generation | Policy | None],
    config: LoopConfig,
    *,
    confidence: float | None = None,
    limits: SupportLimits | None = None,
    crosswise: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> CandidateAudit:
    """Audit a candidate by the groups of a loop's attributes.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop, that neither policy has learned from.
    policies
        Champion and candidate by name; None is whatever made the log.
    config
        Of the loop: its reward's range, kind of oracle and :attr:`fairness`.
    confidence
        Of all intervals of a measure together; ``1 - fairness.alpha`` if None.
    limits
        From when on the log says too little about a policy in a group.
    crosswise
        Fit the reward model to these rows crosswise, instead of taking the candidate's oracle.
    seed
        Of a reward model that is fitted here.
    progress
        Called with rows done and in all.
    engine
        Asks the policies, part by part.

    Raises
    ------
    InvalidInputError
        If there are not two policies, no attribute, or one that is not a category.
    NotEnoughDataError
        If there are no rows, or no reward model could be had.
    """
    fairness = config.fairness
    if len(policies) != 2:
        raise InvalidInputError("policies", f"expected champion and candidate, got {len(policies)}")
    if not fairness.attributes:
        raise InvalidInputError("fairness.attributes", "expected at least one attribute")
    if interactions.is_empty():
        raise NotEnoughDataError("an audit needs interactions, got none")
    coded = {name: code_rows(interactions, name) for name in fairness.attributes}
    model = RewardModel.of(interactions, {} if crosswise else policies, config, seed=seed)
    if model.name is None:
        raise NotEnoughDataError(model.why_none or "there is no reward model")
    actions = _candidates(interactions)
    reward_range = reward_range_of(interactions, config)
    answers = ask_policies(
        interactions,
        [*policies.values(), BEST],
        reward_range,
        model=model.asked,
        actions=actions,
        progress=progress,
        engine=engine,
    )
    answers.usable[:, ~model.encodable] = False
    limits = SupportLimits() if limits is None else limits
    logged = [each is None for each in policies.values()]
    both = CommonRows(
        interactions, list(policies), logged, answers, reward_range=reward_range, limits=limits
    )
    best = CommonRows(
        interactions,
        [*policies, BEST],
        [*logged, False],
        answers,
        reward_range=reward_range,
        limits=limits,
    )
    shown = _most_probable(answers.exposure, both.common, actions, fairness.max_actions)
    wanted = tuple(
        actions.index(each) for each in fairness.limits.exposure_actions if each in actions
    )
    plan = _Plan(
        both,
        best,
        keep_weights(interactions),
        actions,
        list(dict.fromkeys([*shown, *wanted])),
        bonferroni(
            1.0 - fairness.alpha if confidence is None else confidence, len(fairness.attributes)
        ),
    )
    attributes = []
    for name, each in coded.items():
        counts = dict(
            zip(
                each.cells, np.bincount(each.codes, minlength=len(each.cells)).tolist(), strict=True
            )
        )
        groups = shown_groups(counts, least=fairness.min_cell, most=fairness.max_groups)
        place = {cell: code for code, cell in enumerate(each.cells)}
        rows = {
            group: np.isin(each.codes, [place[cell] for cell in cells])
            for group, cells in groups.groups.items()
        }
        attributes.append(plan.audit(name, rows, tuple(map(label, groups.hidden))))
    used = int(both.common.sum())
    champion, candidate = policies
    return CandidateAudit(
        champion=champion,
        candidate=candidate,
        rows=used,
        left_out=len(interactions) - used,
        model=model.name,
        confidence=1.0 - fairness.alpha if confidence is None else confidence,
        attributes=tuple(attributes),
    )


def _candidates(interactions: pl.DataFrame, most: int = 100) -> list[str]:
    """Ids of the actions that are offered most often."""
    offered = interactions.select(pl.col("action_ids").explode()).to_series().value_counts()
    ordered = offered.sort(["count", "action_ids"], descending=[True, False])
    return ordered["action_ids"].head(most).to_list()


def _most_probable(
    exposure: FloatArray, common: BoolArray, actions: Sequence[str], most: int
) -> list[int]:
    """Places of the actions that are most probable under champion or candidate."""
    if not common.any():
        return []
    means = exposure[:_BEST, :, common].mean(axis=2).max(axis=0)
    ordered = sorted(range(len(actions)), key=lambda a: (-means[a], actions[a]))
    return ordered[:most]


@dataclass(slots=True)
class _GroupRows:
    """A group's measures that have counted their rows.

    Attributes
    ----------
    rows
        Its interactions that tell about both policies, shape (n,).
    values, change, regrets
        Of champion and candidate; None where the log can't tell.
    why_none
        Why it can't.
    """

    rows: BoolArray
    why_none: str | None = None
    values: list[DR] = field(default_factory=list)
    change: Difference | None = None
    regrets: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How every attribute is audited."""

    both: CommonRows
    best: CommonRows
    keep: FloatArray
    actions: list[str]
    shown: list[int]
    confidence: float

    def audit(
        self, attribute: str, parts: Mapping[str, BoolArray], hidden: tuple[str, ...]
    ) -> CandidateOnAttribute:
        """Both policies on the groups of an attribute."""
        groups = {name: self._group(rows) for name, rows in parts.items()}
        told = [name for name, each in groups.items() if each.why_none is None]
        regretted = [name for name in told if groups[name].regrets]
        tellable = {name: groups[name].rows for name in parts if groups[name].rows.sum() >= 2}
        return CandidateOnAttribute(
            attribute=attribute,
            groups=self._figures(groups, told, regretted),
            hidden=hidden,
            exposures=self._exposures(tellable),
            gaps=(
                *self._gaps("value", {name: groups[name].values for name in told}),
                *self._gaps("regret", {name: groups[name].regrets for name in regretted}),
                *self._exposure_gaps(tellable),
            ),
        )

    def _group(self, rows: BoolArray) -> _GroupRows:
        """Count a group's rows, if they can tell what the policies are worth to it."""
        both, best = self.both, self.best
        found = _GroupRows(rows & both.common)
        against = [
            reason
            for policy in (_CHAMPION, _CANDIDATE)
            if not both.logged[policy]
            for reason in both.objections(policy, both.support(policy, rows), rows)
        ]
        if against:
            found.why_none = against[0]
            return found
        try:
            found.values = [self._value(both, policy, found.rows) for policy in range(2)]
            found.change = self._difference(both, _CHAMPION, _CANDIDATE, found.rows)
        except NotEnoughDataError as error:
            found.why_none = str(error)
            return found
        if not best.objections(_BEST, best.support(_BEST, rows), rows):
            known = rows & best.common
            found.regrets = [self._difference(best, policy, _BEST, known) for policy in range(2)]
        return found

    def _value(self, log: CommonRows, policy: int, rows: BoolArray) -> DR:
        found = self._estimator(log, policy).add(log.batch(policy, rows))
        found.result(self.confidence)
        return found

    def _difference(self, log: CommonRows, a: int, b: int, rows: BoolArray) -> Difference:
        pair = PairedBatch(a=log.batch(a, rows), b=log.batch(b, rows))
        found = Difference(self._estimator(log, a), self._estimator(log, b)).add(pair)
        found.result(self.confidence)
        return found

    def _estimator(self, log: CommonRows, policy: int) -> DR:
        return DR(reward_range=log.reward_range, weight_range=log.weight_range(policy))

    def _figures(
        self, groups: Mapping[str, _GroupRows], told: Sequence[str], regretted: Sequence[str]
    ) -> tuple[CandidateGroup, ...]:
        # Each of the five is read by itself, group by group; groups are independent (Sidak).
        level = self.confidence ** (1.0 / max(len(told), 1))
        of_regret = self.confidence ** (1.0 / max(len(regretted), 1))
        return tuple(_figures_of(name, each, level, of_regret) for name, each in groups.items())

    def _gaps(
        self, measure: GapMeasure, measures: Mapping[str, Sequence[_Measured]]
    ) -> list[GroupGap]:
        """The largest difference of each policy, over all pairs of groups."""
        names = list(measures)
        if len(names) < 2:
            return []
        pairs = list(itertools.combinations(range(len(names)), 2))
        found = []
        for policy in (_CHAMPION, _CANDIDATE):
            own = [measures[name][policy] for name in names]
            errors = [np.array([[_standard_error(each) ** 2]]) for each in own]
            level = max_t(errors, pairs, self.confidence)
            ends = [_interval(each.result(level)) for each in own]
            differences = [_square_and_add(ends[i], ends[j]) for i, j in pairs]
            found.append(
                _gap(
                    *(measure, self.both.names[policy], names, [each.value for each in ends]),
                    differences,
                )
            )
        return found

    def _moments(self, rows: BoolArray, policy: int, action: int) -> Moments:
        return Moments.of(self.both.answers.exposure[policy, action, rows], self.keep[rows])

    def _covariance(self, rows: BoolArray, policy: int) -> FloatArray:
        """Of a group's mean exposures, shape (A, A)."""
        found = self.both.answers.exposure[policy][self.shown][:, rows]
        weight = self.keep[rows] / self.keep[rows].sum()
        off = (found - (found @ weight)[:, None]) * weight
        return np.asarray(off @ off.T)

    def _exposures(self, parts: Mapping[str, BoolArray]) -> tuple[GroupExposure, ...]:
        if not parts or not self.shown:
            return ()
        levels = [
            max_t(
                [self._covariance(rows, policy) for rows in parts.values()], None, self.confidence
            )
            for policy in (_CHAMPION, _CANDIDATE)
        ]
        return tuple(
            GroupExposure(
                group=name,
                action=self.actions[action],
                **{
                    side: interval_of(
                        self._moments(rows, policy, action), (0.0, 1.0), levels[policy]
                    )
                    for policy, side in enumerate(("champion", "candidate"))
                },
            )
            for action in self.shown
            for name, rows in parts.items()
        )

    def _exposure_gaps(self, parts: Mapping[str, BoolArray]) -> list[GroupGap]:
        names = list(parts)
        if len(names) < 2 or not self.shown:
            return []
        pairs = list(itertools.combinations(range(len(names)), 2))
        found = []
        for policy in (_CHAMPION, _CANDIDATE):
            covariances = [self._covariance(rows, policy) for rows in parts.values()]
            level = max_t(covariances, pairs, self.confidence)
            single = max_t(covariances, None, self.confidence)
            for action in self.shown:
                moments = [self._moments(rows, policy, action) for rows in parts.values()]
                differences = [
                    contrast(moments[i], moments[j], (0.0, 1.0), level).difference for i, j in pairs
                ]
                gap = _gap(
                    "exposure",
                    self.both.names[policy],
                    names,
                    [each.mean for each in moments],
                    differences,
                )
                ratio = _smallest_ratio([interval_of(each, (0.0, 1.0), single) for each in moments])
                found.append(msgspec.structs.replace(gap, action=self.actions[action], ratio=ratio))
        return found


def _figures_of(name: str, rows: _GroupRows, level: float, of_regret: float) -> CandidateGroup:
    shown = CandidateGroup(group=name, decisions=int(rows.rows.sum()), why_none=rows.why_none)
    if rows.why_none is not None or rows.change is None:
        return shown
    champion, candidate = (_interval(each.result(level)) for each in rows.values)
    shown = msgspec.structs.replace(
        shown,
        champion=champion,
        candidate=candidate,
        change=_interval(rows.change.result(level)),
    )
    if not rows.regrets:
        return shown
    regrets = [_interval(each.result(of_regret)) for each in rows.regrets]
    return msgspec.structs.replace(
        shown, champion_regret=regrets[_CHAMPION], candidate_regret=regrets[_CANDIDATE]
    )


def _gap(
    measure: GapMeasure,
    policy: str,
    names: Sequence[str],
    values: Sequence[float],
    differences: Sequence[Interval],
) -> GroupGap:
    """The largest difference, given all pairs' with intervals that hold at once.

    Each true difference is in its interval, so the largest one is at least the largest lower end,
    and at most the largest upper end, of either sign.
    """
    high, low = int(np.argmax(values)), int(np.argmin(values))
    value = values[high] - values[low]
    lower = max(0.0, *(max(each.lower, -each.upper) for each in differences))
    upper = max(max(each.upper, -each.lower) for each in differences)
    return GroupGap(
        measure=measure,
        policy=policy,
        highest=names[high],
        lowest=names[low],
        difference=Interval(value=value, lower=min(lower, value), upper=max(upper, value)),
    )


def _smallest_ratio(exposures: Sequence[Interval]) -> Interval | None:
    """Smallest over largest of non-negative numbers whose intervals hold at once."""
    largest = max(each.value for each in exposures)
    if largest <= 0.0:
        return None
    value = min(each.value for each in exposures) / largest
    pairs = list(itertools.permutations(exposures, 2))
    lower = min(a.lower / b.upper if b.upper > 0.0 else 0.0 for a, b in pairs)
    upper = min(1.0, *(a.upper / b.lower if b.lower > 0.0 else 1.0 for a, b in pairs))
    return Interval(value=value, lower=min(max(lower, 0.0), value), upper=max(upper, value))


def _square_and_add(a: Interval, b: Interval) -> Interval:
    """Difference of two independent estimates from the intervals of both."""
    value = a.value - b.value
    return Interval(
        value=value,
        lower=value - math.hypot(a.value - a.lower, b.upper - b.value),
        upper=value + math.hypot(a.upper - a.value, b.value - b.lower),
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, lower=estimate.lower, upper=estimate.upper)


def _standard_error(measured: _Measured) -> float:
    """By the delta method."""
    tally = measured.tally_
    assert tally is not None, "rows were counted"
    _, gradient = measured.point(tally.moments.mean)
    return tally.moments.standard_error(gradient)
