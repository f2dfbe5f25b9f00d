"""Any number of policies on one log: what each is worth, by how much they differ, and where.

The log is asked first whether it can be believed, and every policy whether the log can tell what it
is worth; what speaks against either stands in :attr:`Comparison.refusals`. Then policies are asked
once about every row, and all that follows is sums over rows: of the whole log, of days, of groups.

All policies are compared on the same rows: those that tell about every one of them. Which rows
those are doesn't depend on rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from croupier.offline.answers import ask_policies
from croupier.offline.common_rows import CommonRows
from croupier.offline.counterfactual import random_policy
from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import MIN_ROWS, reward_range_of
from croupier.offline.grouped import DAY, group_by
from croupier.offline.health import CALIBRATION_LEVEL, LogHealth, log_health
from croupier.offline.multiplicity import Correction, bonferroni, holm_p_values
from croupier.offline.ope import Difference, Estimator, LoggedBatch, PairedBatch
from croupier.offline.ope.choice import (
    EstimatorKind,
    IntervalKind,
    Measure,
    Reading,
    needs_model,
    tuned,
)
from croupier.offline.ope.diagnostics import (
    SupportLimits,
    WeightDiagnostics,
)
from croupier.offline.quality import Quality, quality, request_states
from croupier.offline.reward_model import RewardModel
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.engine import Engine
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

    BoolArray: TypeAlias = NDArray[np.bool_]

__all__ = ("DEFAULT_ESTIMATORS", "Compared", "Comparison", "PolicyOnRows", "compare")

DEFAULT_ESTIMATORS: tuple[EstimatorKind, ...] = ("snips", "ips", "dr")


class PolicyOnRows(msgspec.Struct, frozen=True, kw_only=True):
    """A policy on some rows of a log.

    Attributes
    ----------
    name
        Of the policy.
    values
        What it is worth, by estimator.
    differences
        By how much more than the first policy, from paired rows; empty for the first one.
    support
        What its weights say about the rows; None of fewer than two.
    objections
        What speaks against believing its values, one sentence each.
    """

    name: str
    values: dict[EstimatorKind, Reading]
    differences: dict[EstimatorKind, Reading]
    support: WeightDiagnostics | None
    objections: list[str]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """All policies on some rows of a log.

    Attributes
    ----------
    key
        Which rows: ``all``, a day, or a group.
    rows, nonzero_rewards
        Interactions that tell about all policies, and how many of them had a reward other than 0.
    left_out
        Interactions that don't.
    policies
        In the order in which they were asked for.
    """

    key: str
    rows: int
    nonzero_rewards: int
    left_out: int
    policies: tuple[PolicyOnRows, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Any number of policies on one log.

    Attributes
    ----------
    loop
        Whose log.
    refusals
        Why the figures are not to be believed, one sentence each; nothing if they are.
    health, quality
        What was found in the log, and what it is good for.
    model
        Which reward model the estimators that ask one were given; None if there was none.
    interval, confidence, correction
        Of all intervals; with a correction, those of a table hold together with that confidence.
        Values of a table are one family, and differences another.
    total
        On all rows.
    groups
        On days, by the first estimator unless asked for, and on every grouping that was.
    """

    loop: str
    refusals: list[str]
    health: LogHealth
    quality: Quality
    model: str | None
    interval: IntervalKind
    confidence: float
    correction: Correction
    total: Compared
    groups: dict[str, tuple[Compared, ...]]


def compare(
    interactions: pl.DataFrame,
    policies: Mapping[str, Generation | Policy | None],
    config: LoopConfig,
    *,
    estimators: Sequence[EstimatorKind] = DEFAULT_ESTIMATORS,
    interval: IntervalKind = "empirical-likelihood",
    confidence: float = 0.95,
    by: Sequence[str] = (),
    correction: Correction = "bonferroni",
    limits: SupportLimits | None = None,
    calibration_level: float = CALIBRATION_LEVEL,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> Comparison:
    """Estimate what policies are worth and by how much they differ from the first one.

    The reward model of estimators that ask one is the oracle of the last policy that has one, and
    must not have learned from these rows; where none has, oracles of the loop's kind are fitted
    crosswise. Groups are to be known before actions are drawn, as contexts and days are.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop; none that a policy has learned from.
    policies
        By name: generations, or what gives the pmf of a request; None is whatever made the log.
    config
        Of the loop: the range of its reward, which is widened to the rewards that are there, and
        its kind of oracle.
    estimators, interval, confidence
        What is estimated, and with which intervals.
    by
        What rows are grouped by, see :func:`~croupier.offline.grouped.group_by`.
    correction
        Of the intervals for their number.
    limits
        From when on the log says too little about a policy.
    calibration_level
        How often, at most, a right log is to be refused for its draws, in (0, 1).
    seed
        Of the bootstrap, of clusters, and of oracles that are fitted here.
    progress
        Called with steps done and in all: every row is replayed, and asked about.
    engine
        Asks the policies, part by part.

    Raises
    ------
    InvalidInputError
        If there is no policy or estimator, or rows can't be grouped so.
    NotEnoughDataError
        If there are no rows.
    """
    _require(interactions, policies, estimators)
    limits = SupportLimits() if limits is None else limits
    interactions = interactions.sort("ts", "decision_id", "slot", maintain_order=True)
    groupings = {name: group_by(interactions, name) for name in by}
    kind, states = request_states(interactions, seed=seed)
    steps = _Steps(progress, len(interactions))
    segments = list(groupings.values())
    health = log_health(
        interactions, states, segments, level=calibration_level, progress=steps.replayed
    )
    model = RewardModel.none(len(interactions))
    if any(map(needs_model, estimators)):
        model = RewardModel.of(interactions, policies, config, seed=seed)
    reward_range = reward_range_of(interactions, config)
    # The uniform policy is what the quality of a log is measured by, whoever else is asked.
    answers = ask_policies(
        interactions,
        [*policies.values(), random_policy],
        reward_range,
        model=model.asked,
        progress=steps.asked,
        engine=engine,
    )
    answers.usable[:, ~model.encodable] = False
    logged = [each is None for each in policies.values()]
    log = CommonRows(
        interactions, list(policies), logged, answers, reward_range=reward_range, limits=limits
    )
    fitted = _tuned(log, model.why_none, estimators)
    plan = _Plan(log, interval, confidence, correction, seed, fitted)
    total = plan.compared({"all": np.ones(len(interactions), dtype=np.bool_)}, estimators)[0]
    groups = {
        name: plan.compared(dict(grouping.parts()), estimators)
        for name, grouping in groupings.items()
    }
    if DAY not in groups:
        days = dict(group_by(interactions, DAY).parts())
        groups[DAY] = plan.compared(days, estimators[:1])
    against = [each for policy in total.policies for each in policy.objections]
    return Comparison(
        loop=interactions["loop"][0],
        refusals=[*health.objections, *against],
        health=health,
        quality=_quality(log, kind, health),
        model=model.name,
        interval=interval,
        confidence=confidence,
        correction=correction,
        total=total,
        groups=groups,
    )


def _require(
    interactions: pl.DataFrame,
    policies: Mapping[str, Generation | Policy | None],
    estimators: Sequence[EstimatorKind],
) -> None:
    if not policies:
        raise InvalidInputError("policies", "expected at least one")
    if not estimators:
        raise InvalidInputError("estimators", "expected at least one")
    if interactions.is_empty():
        raise NotEnoughDataError("a comparison needs interactions, got none")


@dataclass(frozen=True, slots=True)
class _Steps:
    """Every row is replayed, then asked about."""

    progress: Callable[[int, int], None] | None
    rows: int

    def replayed(self, done: int, _total: int) -> None:
        if self.progress is not None:
            self.progress(done, 2 * self.rows)

    def asked(self, done: int, _total: int) -> None:
        if self.progress is not None:
            self.progress(self.rows + done, 2 * self.rows)


_Tuned: TypeAlias = "dict[tuple[int, EstimatorKind], Estimator | str]"


def _tuned(log: CommonRows, no_model: str | None, estimators: Sequence[EstimatorKind]) -> _Tuned:
    """Estimators of every policy with parameters of the whole log, or why there is none."""
    found: _Tuned = {}
    for policy in range(len(log.names)):
        for kind in estimators:
            if needs_model(kind) and no_model is not None:
                found[policy, kind] = no_model
                continue
            try:
                found[policy, kind] = tuned(
                    kind,
                    log.batch(policy, log.common),
                    reward_range=log.reward_range,
                    weight_range=log.weight_range(policy),
                )
            except NotEnoughDataError as error:
                found[policy, kind] = str(error)
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows are counted: the same for all of them, and for days and groups."""

    log: CommonRows
    interval: IntervalKind
    confidence: float
    correction: Correction
    seed: int
    estimators: _Tuned

    def compared(
        self, parts: Mapping[str, BoolArray], kinds: Sequence[EstimatorKind]
    ) -> tuple[Compared, ...]:
        """All policies on every part; intervals are corrected for all of the parts together."""
        policies = range(len(self.log.names))
        values: dict[tuple[str, int, EstimatorKind], Reading] = {}
        differences: dict[tuple[str, int, EstimatorKind], Reading] = {}
        for kind in kinds:
            measured = {
                (key, policy, kind): self._value(policy, kind, rows & self.log.common)
                for key, rows in parts.items()
                for policy in policies
            }
            # Those of the whole log are read one by one: nobody looks for the odd one among them.
            values |= self._results(measured, correct=len(parts) > 1)
            compared = {
                (key, policy, kind): self._difference(policy, kind, rows & self.log.common)
                for key, rows in parts.items()
                for policy in policies[1:]
            }
            differences |= self._tested(compared, self._results(compared, correct=True))
        return tuple(
            self._part(key, rows, kinds, values, differences) for key, rows in parts.items()
        )

    def _value(
        self, policy: int, kind: EstimatorKind, rows: BoolArray
    ) -> Measure[LoggedBatch] | Reading:
        estimator = self.estimators[policy, kind]
        if isinstance(estimator, str):
            return Reading(estimator=kind, value=None, why_none=estimator)
        measure: Measure[LoggedBatch] = Measure(estimator, self.interval, seed=self.seed)
        return measure.add(self.log.batch(policy, rows))

    def _difference(
        self, policy: int, kind: EstimatorKind, rows: BoolArray
    ) -> Measure[PairedBatch] | Reading:
        first, second = self.estimators[0, kind], self.estimators[policy, kind]
        for each in (first, second):
            if isinstance(each, str):
                return Reading(estimator=f"{kind}-difference", value=None, why_none=each)
        assert isinstance(first, Estimator)
        assert isinstance(second, Estimator)
        pair = PairedBatch(a=self.log.batch(0, rows), b=self.log.batch(policy, rows))
        measure: Measure[PairedBatch] = Measure(
            Difference(first, second), self.interval, seed=self.seed
        )
        return measure.add(pair)

    def _results(
        self, measured: Mapping[_Name, _Measured], *, correct: bool
    ) -> dict[_Name, Reading]:
        corrects = correct and self.correction != "none"
        confidence = bonferroni(self.confidence, len(measured) if corrects else 1)
        return {
            name: each if isinstance(each, Reading) else each.result(confidence)
            for name, each in measured.items()
        }

    def _tested(
        self, measured: Mapping[_Name, _Measured], found: dict[_Name, Reading]
    ) -> dict[_Name, Reading]:
        """The differences with their p-values, if these are asked for."""
        if self.correction != "holm":
            return found
        tested = {}
        for name, each in measured.items():
            p = None if isinstance(each, Reading) else each.p_value()
            if p is not None:
                tested[name] = p
        corrected = dict(zip(tested, holm_p_values(tested.values()).tolist(), strict=True))
        return {
            name: msgspec.structs.replace(each, p_value=corrected.get(name))
            for name, each in found.items()
        }

    def _part(
        self,
        key: str,
        rows: BoolArray,
        kinds: Sequence[EstimatorKind],
        values: Mapping[_Name, Reading],
        differences: Mapping[_Name, Reading],
    ) -> Compared:
        log = self.log
        used = rows & log.common
        policies = []
        for policy, name in enumerate(log.names):
            support = log.support(policy, rows)
            policies.append(
                PolicyOnRows(
                    name=name,
                    values={kind: values[key, policy, kind] for kind in kinds},
                    differences={
                        kind: differences[key, policy, kind] for kind in kinds if policy > 0
                    },
                    support=support,
                    objections=log.objections(policy, support, rows),
                )
            )
        return Compared(
            key=key,
            rows=int(np.count_nonzero(used)),
            nonzero_rewards=int(np.count_nonzero(log.reward[used])),
            left_out=int(np.count_nonzero(rows & ~log.common)),
            policies=tuple(policies),
        )


_Name: TypeAlias = "tuple[str, int, EstimatorKind]"
_Measured: TypeAlias = "Measure[LoggedBatch] | Measure[PairedBatch] | Reading"


def _quality(log: CommonRows, kind: str, health: LogHealth) -> Quality:
    """What the log is good for, by the rows that tell about all policies and the uniform one."""
    uniform = len(log.names)
    rows = log.common & log.answers.usable[uniform]
    everything = np.ones(len(rows), dtype=np.bool_)
    enough = np.count_nonzero(rows) >= MIN_ROWS
    supported = log.deficient(uniform, everything) <= log.limits.max_deficient
    keep, reward = 1.0 / log.keep_prob[rows], log.reward[rows]
    values: dict[str, float] = {}
    found: float | None = None
    if enough and supported:
        values["logged"] = float(keep @ reward / keep.sum())
        for policy, name in enumerate((*log.names, "uniform")):
            weight = keep * log.answers.probability[policy, rows] / log.propensity[rows]
            if weight.any():
                values[name] = float(weight @ reward / weight.sum())
        found = values.pop("uniform", None) if "uniform" not in log.names else values["uniform"]
    return quality(kind, health.parts[0].coverage, int(np.count_nonzero(rows)), values, found)
