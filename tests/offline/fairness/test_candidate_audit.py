"""A candidate's audit from the log alone: what is true of groups is in the intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.fairness.candidate_audit import (
    CandidateAudit,
    audit_candidate,
)
from croupier.offline.ope.diagnostics import SupportLimits
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from tests.offline.fairness.populations import interactions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest

GROUPS = ("f", "m", "x")
SHARES = (0.5, 0.35, 0.15)
CONFIG = LoopConfig(oracle=SklearnConfig(), fairness=FairnessConfig(attributes=("gender",)))


@dataclass(frozen=True, eq=False)
class People:
    """Contexts are three kinds of people, whose share depends on their group.

    Attributes
    ----------
    kinds
        Share of every kind in every group, shape (3, 3).
    rewards
        Expected reward by kind and action, shape (3, 3).
    champion, candidate
        Probabilities by kind, shape (3, 3).
    """

    kinds: NDArray[np.float64]
    rewards: NDArray[np.float64]
    champion: NDArray[np.float64]
    candidate: NDArray[np.float64]

    def log(self, rows: int, seed: int) -> pl.DataFrame:
        """Uniform draws."""
        rng = np.random.default_rng(seed)
        group = rng.choice(3, rows, p=SHARES)
        kind = (rng.random((rows, 1)) > np.cumsum(self.kinds[group], axis=1)).sum(axis=1)
        kind = kind.clip(max=2)
        return interactions(
            {"gender": [GROUPS[each] for each in group]},
            np.full((rows, 3), 1.0 / 3.0),
            self.rewards[kind],
            rng,
            context=[f'{{"kind":"k{each}"}}' for each in kind],
        )

    def audit(self, rows: int, seed: int, config: LoopConfig = CONFIG) -> CandidateAudit:
        policies = {"champion": _by_kind(self.champion), "candidate": _by_kind(self.candidate)}
        limits = SupportLimits(min_ess=10.0)
        return audit_candidate(self.log(rows, seed), policies, config, limits=limits, seed=seed)

    def values(self, pmf: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a policy is worth to every group, shape (3,)."""
        return np.asarray(self.kinds @ (pmf * self.rewards).sum(axis=1))

    def best(self) -> NDArray[np.float64]:
        """What the best actions are worth to every group, shape (3,)."""
        return np.asarray(self.kinds @ self.rewards.max(axis=1))


class _by_kind:  # noqa: N801 - a policy, called as a function is
    def __init__(self, pmf: NDArray[np.float64]) -> None:
        self.pmf = pmf

    def __call__(self, request: LoggedRequest) -> NDArray[np.float64]:
        return np.asarray(self.pmf[int(request.context["kind"][1:])])


def people(scale: float = 1.0) -> People:
    rewards = scale * np.array([[0.8, 0.3, 0.2], [0.2, 0.7, 0.3], [0.3, 0.1, 0.5]])
    return People(
        kinds=np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]),
        rewards=rewards,
        champion=np.full((3, 3), 1.0 / 3.0),
        candidate=np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]),
    )


def test_what_is_told_of_every_group() -> None:
    world = people()
    audit = world.audit(6000, seed=1)
    assert audit.rows == 6000
    assert audit.left_out == 0
    assert audit.model == "sklearn oracles, fitted crosswise"
    (found,) = audit.attributes
    assert [each.group for each in found.groups] == list(GROUPS)
    candidate, champion = world.values(world.candidate), world.values(world.champion)
    for each, a, b in zip(found.groups, champion, candidate, strict=True):
        assert each.why_none is None
        assert each.champion is not None
        assert each.champion.value == pytest.approx(a, abs=0.05)
        assert each.candidate is not None
        assert each.candidate.value == pytest.approx(b, abs=0.05)
        assert each.change is not None
        assert each.change.value == pytest.approx(each.candidate.value - each.champion.value)
    (gap,) = [g for g in found.gaps if (g.measure, g.policy) == ("value", "candidate")]
    assert (gap.highest, gap.lowest) == ("f", "x")
    assert gap.difference.lower > 0.1
    assert gap.difference.lower <= candidate[0] - candidate[2] <= gap.difference.upper


def test_exposures_are_those_of_the_pmfs_to_the_last_digit() -> None:
    world = people()
    log = world.log(2000, seed=2)
    (found,) = world.audit(2000, seed=2).attributes
    kind = log["context"].str.json_path_match("$.kind").str.slice(1).cast(pl.Int64).to_numpy()
    gender = log["audit"].str.json_path_match("$.gender").to_numpy()
    assert len(found.exposures) == 9
    for each in found.exposures:
        rows = gender == each.group
        expected = world.candidate[kind[rows], int(each.action[1:])].mean()
        assert each.candidate.value == pytest.approx(expected, abs=1e-12)
        assert each.champion.value == pytest.approx(1.0 / 3.0, abs=1e-12)
    (gap,) = [g for g in found.gaps if g.policy == "candidate" and g.action == "a2"]
    assert gap.ratio is not None
    by_group = {e.group: e.candidate.value for e in found.exposures if e.action == "a2"}
    assert gap.difference.value == pytest.approx(max(by_group.values()) - min(by_group.values()))
    assert gap.ratio.value == pytest.approx(min(by_group.values()) / max(by_group.values()))


def coverage(world: People, *, rows: int, runs: int, first: int = 0) -> dict[str, float]:
    """How often all intervals of a measure hold at once, by measure."""
    truth = [world.values(each) for each in (world.champion, world.candidate)]
    regrets = [world.best() - each for each in truth]
    exposures = [world.kinds @ each for each in (world.champion, world.candidate)]
    held: dict[str, list[bool]] = {}
    for seed in range(first, first + runs):
        (found,) = world.audit(rows, seed).attributes
        order = [GROUPS.index(each.group) for each in found.groups]
        for name, values in (
            ("champion", truth[0]),
            ("candidate", truth[1]),
            ("change", truth[1] - truth[0]),
            ("candidate_regret", regrets[1]),
        ):
            all_hold = all(
                (interval := getattr(each, name)) is None
                or interval.lower <= values[group] <= interval.upper
                for each, group in zip(found.groups, order, strict=True)
            )
            held.setdefault(name, []).append(all_hold)
        for gap in found.gaps:
            side = ("champion", "candidate").index(gap.policy)
            values = {"value": truth[side], "regret": regrets[side]}.get(
                gap.measure, exposures[side][:, int((gap.action or "a0")[1:])]
            )
            # The differences of a policy's exposures are one family.
            key = f"{gap.measure} gap of {gap.policy}, run {seed}"
            right = gap.difference.lower - 1e-12 <= np.ptp(values) <= gap.difference.upper + 1e-12
            held.setdefault(key, []).append(bool(right))
    found_: dict[str, list[bool]] = {}
    for key, each in held.items():
        name, _, run = key.partition(", run")
        found_.setdefault(name, []).extend([all(each)] if run else each)
    return {name: float(np.mean(each)) for name, each in found_.items()}


def require_coverage(found: dict[str, float], runs: int) -> None:
    """At 95 % nominal, fewer than this happen once in a thousand times, by the binomial law."""
    least = 0.95 - 3.1 * (0.95 * 0.05 / runs) ** 0.5
    assert all(share >= least for share in found.values()), found


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_simultaneous_intervals_cover(scale: float) -> None:
    require_coverage(coverage(people(scale), rows=400, runs=20), 20)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("rows", [300, 1500])
def test_simultaneous_intervals_cover_in_many_runs(scale: float, rows: int) -> None:
    found = coverage(people(scale), rows=rows, runs=400)
    print(scale, rows, {name: round(each, 4) for name, each in found.items()})
    require_coverage(found, 400)


def test_regret_is_never_overstated_but_for_noise() -> None:
    """Over many logs its mean is at most the true one: the model's best is no better than that."""
    world = people()
    found: dict[str, list[float]] = {}
    for seed in range(12):
        for each in world.audit(500, seed).attributes[0].groups:
            if each.candidate_regret is not None:
                found.setdefault(each.group, []).append(each.candidate_regret.value)
    true = world.best() - world.values(world.candidate)
    for group, values in found.items():
        mean, error = np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5
        expected = true[GROUPS.index(group)]
        assert mean <= expected + 3.3 * error
        # And the model, poor as it is with so few rows, doesn't miss all of it.
        assert mean >= expected / 2.0 - 3.3 * error
    assert len(found) == 3


def test_small_groups_are_not_shown_and_what_the_log_can_t_tell_is_said() -> None:
    world = people()
    log = world.log(300, seed=3)
    few = pl.when(pl.int_range(pl.len()) < 5).then(pl.lit('{"gender":"z"}')).otherwise("audit")
    log = log.with_columns(audit=few)
    policies = {"champion": _by_kind(world.champion), "candidate": _by_kind(world.candidate)}
    (found,) = audit_candidate(log, policies, CONFIG).attributes
    # The smallest of the others goes with it, or its numbers would follow from the total.
    assert found.hidden == ("x", "z")
    assert [each.group for each in found.groups] == ["f", "m"]
    strict = msgspec.structs.replace(
        CONFIG, fairness=FairnessConfig(attributes=("gender",), min_cell=2)
    )
    (found,) = audit_candidate(log, policies, strict).attributes
    by_group = {each.group: each for each in found.groups}
    assert by_group["z"].why_none is not None
    assert by_group["z"].candidate is None
    assert by_group["f"].why_none is None


def test_what_can_t_be_audited_is_refused() -> None:
    world = people()
    log = world.log(100, seed=4)
    policies = {"champion": None, "candidate": _by_kind(world.candidate)}
    with pytest.raises(InvalidInputError, match="attribute"):
        audit_candidate(log, policies, LoopConfig())
    with pytest.raises(InvalidInputError, match="policies"):
        audit_candidate(log, {"champion": None}, CONFIG)
    with pytest.raises(NotEnoughDataError):
        audit_candidate(log.clear(), policies, CONFIG)
    names = msgspec.structs.replace(CONFIG, fairness=FairnessConfig(attributes=("context.id",)))
    numbers = pl.int_range(pl.len()).cast(pl.String)
    many = pl.concat([log] * 3).with_columns(
        context=pl.concat_str(pl.lit('{"id":"'), numbers, pl.lit('"}'))
    )
    with pytest.raises(InvalidInputError, match="at most 200"):
        audit_candidate(many, policies, names)
