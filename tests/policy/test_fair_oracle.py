"""The fair oracle: what it learns from a log of approvals, and what is served of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import Bagging, SquareCB
from croupier.policy.fairness.config import (
    AlikeIfSame,
    IndividualFairness,
    Person,
    WeightedDistance,
)
from croupier.policy.fairness.lagrangian import Penalty
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import FairConfig, FairOracle, TrainingRow, load_oracle, make_oracle
from croupier.policy.traffic import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ACTIONS = [Action(id="decline"), Action(id="approve")]
FAIR = IndividualFairness(
    auditors={"merit": WeightedDistance(weights={"merit": 0.4})}, alpha=0.1, action="approve"
)
LEARNERS = ("exp2", "ftpl")


def context(merit: float, group: str) -> dict[str, Any]:
    return {"merit": merit, "group": group, "constant": 7.0}


def good(merit: float, group: str) -> float:
    return float(1.0 / (1.0 + np.exp(-(1.5 * merit - 2.0 * (group == "b") + 0.8))))


def log(size: int, *, seed: int = 0, floor: float = 0.3) -> list[TrainingRow]:
    """Decisions of a policy that looks at the merit, and the rewards of its approvals."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        merit, group = float(rng.normal()), "ab"[int(rng.integers(2))]
        approval = floor + (1.0 - 2.0 * floor) * (merit > 0.0)
        approved = bool(rng.random() < approval)
        reward = float(rng.random() < good(merit, group)) if approved else 0.5
        rows.append(
            TrainingRow(
                context=context(merit, group),
                actions=ACTIONS,
                chosen=int(approved),
                propensity=approval if approved else 1.0 - approval,
                reward=reward,
            )
        )
    return rows


def generation(config: FairConfig, rows: list[TrainingRow], floor: float = 0.0) -> Generation:
    oracle = make_oracle(config, random_state=3).fit(rows)
    return Generation("credit", 1, Bagging(floor=floor), oracle, None)


def chance(served: Generation, merit: float, group: str) -> float:
    pmf, _ = served.pmf(context(merit, group), ACTIONS)
    assert pmf.sum() == pytest.approx(1.0, abs=1e-9)
    return float(pmf[1])


GRID = np.linspace(-2.0, 2.0, 21)


def worst(served: Generation) -> float:
    """How far the chances of any two of the grid are beyond d + α."""
    people = [(float(merit), group) for merit in GRID for group in "ab"]
    chances = {each: chance(served, *each) for each in people}
    return max(
        abs(chances[one] - chances[two]) - min(1.0, 0.4 * abs(one[0] - two[0])) - FAIR.alpha
        for one, two in itertools.combinations(people, 2)
    )


@pytest.mark.parametrize("learner", LEARNERS)
def test_it_approves_whom_it_should_and_not_by_group(learner: Any) -> None:
    rows = log(20_000)
    fair = generation(FairConfig(fairness=FAIR, learner=learner), rows)
    free = FairConfig(fairness=FAIR, learner=learner, price=Penalty(scale=0.0))
    heedless = generation(free, rows)
    assert worst(heedless) > 0.4
    assert worst(fair) < 0.12
    # The better have better chances, and those are worth more than anybody's.
    assert chance(fair, 2.0, "a") > chance(fair, -2.0, "a") + 0.3
    people = [(merit, group) for merit in GRID.tolist() for group in "ab"]
    gain = [good(*each) - 0.5 for each in people]
    value = float(np.mean([g * chance(fair, *each) for g, each in zip(gain, people, strict=True)]))
    assert value > max(0.0, float(np.mean(gain))) + 0.03


@pytest.mark.parametrize("learner", LEARNERS)
def test_any_policys_log_teaches_the_same(learner: Any) -> None:
    """Labels of the approved count one over their propensity: who was approved doesn't matter."""
    config = FairConfig(fairness=FAIR, learner=learner, price=Penalty(scale=0.0))
    one, two = (generation(config, log(20_000, floor=floor)) for floor in (0.2, 0.5))
    people = [(merit, group) for merit in GRID[::4].tolist() for group in "ab"]
    apart = [abs(chance(one, *each) - chance(two, *each)) for each in people]
    assert np.mean(apart) < 0.1


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_was_saved_plays_the_same(tmp_path: Path, learner: Any) -> None:
    config = FairConfig(fairness=FAIR, learner=learner)
    rows = log(2000)
    made = generation(config, rows)
    made.save(tmp_path / "generation")
    loaded = Generation.load(tmp_path / "generation")
    again = generation(config, rows)
    for merit, group in ((-1.0, "a"), (0.3, "b"), (2.0, "a")):
        expected = chance(made, merit, group)
        assert chance(loaded, merit, group) == expected == chance(again, merit, group)
    oracle = load_oracle(tmp_path / "generation" / "oracle")
    assert isinstance(oracle, FairOracle)
    assert oracle.config == config


def test_the_served_chance_is_the_share_of_members_and_what_is_drawn() -> None:
    """10,000 draws: off by more than 5 standard errors once in 1.7 million."""
    made = generation(FairConfig(fairness=FAIR), log(2000), floor=0.05)
    oracle = made.oracle
    assert isinstance(oracle, FairOracle)
    asked = context(0.4, "a")
    members = oracle.estimate(asked, ACTIONS, frozenset({"members"})).members
    assert members is not None
    assert members.shape == (200, 2)
    votes = members[:, 1].mean()
    expected = min(max(votes, 0.05), 0.95)
    plan, request = Plan(made), DecisionRequest(context=asked, actions=ACTIONS)
    decisions = [decide(request, plan, Circumstances(str(i), 0)) for i in range(10_000)]
    for each in decisions[:10]:
        assert each.pmf[1] == pytest.approx(expected)
        assert each.propensity == each.pmf[each.chosen]
    share = np.mean([each.chosen for each in decisions])
    assert abs(share - expected) < 5.0 * np.sqrt(expected * (1.0 - expected) / 10_000)


def test_the_scores_are_rewards() -> None:
    oracle = make_oracle(FairConfig(fairness=FAIR)).fit(log(20_000))
    for merit, group in ((-0.5, "a"), (0.5, "a"), (0.5, "b")):
        approve = oracle.score(context(merit, group), ACTIONS)
        # A straight line through a logistic curve.
        assert abs(approve[1] - good(merit, group)) < 0.12
        assert approve[0] == 0.5
    # Whoever is asked for one action alone is answered, and all that isn't approval is alike.
    others = [Action(id="decline"), Action(id="refer"), Action(id="approve")]
    np.testing.assert_array_equal(
        oracle.score(context(0.5, "a"), others)[[0, 2]], oracle.score(context(0.5, "a"), ACTIONS)
    )
    assert oracle.score(context(0.5, "a"), ACTIONS[1:]).shape == (1,)


def test_rows_of_a_subsampled_log_count_for_more() -> None:
    """A log without half of the approvals of group b, whose rows count twice, teaches the same."""
    config = FairConfig(fairness=FAIR, price=Penalty(scale=0.0))
    rows, rng = log(20_000), np.random.default_rng(0)
    kept = [
        msgspec.structs.replace(row, weight=2.0) if row.context["group"] == "b" else row
        for row in rows
        if row.context["group"] == "a" or rng.random() < 0.5
    ]
    whole, sampled = generation(config, rows), generation(config, kept)
    people = [(merit, group) for merit in GRID[::4].tolist() for group in "ab"]
    apart = [abs(chance(whole, *each) - chance(sampled, *each)) for each in people]
    assert np.mean(apart) < 0.1


def test_a_rule_that_two_are_alike_if_they_are_the_same_holds_them_together() -> None:
    rule = IndividualFairness(
        auditors={"rule": AlikeIfSame(features=("group",))}, alpha=0.1, action="approve"
    )
    made = generation(FairConfig(fairness=rule), log(20_000))
    for group in "ab":
        chances = [chance(made, float(merit), group) for merit in GRID]
        assert np.ptp(chances) < 0.25


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hypotheses": 3}, r"hypotheses must be in \[10, 5000\], got 3"),
        ({"members": 1}, r"members must be in \[10, 1000\], got 1"),
        ({"encoder": {"action_id": False}}, "encoder.action_id must be true"),
        ({"fairness": {"auditors": {"a": {"type": "alike_if_same", "features": ["g"]}}}}, "action"),
        (
            {
                "fairness": msgspec.to_builtins(
                    IndividualFairness(auditors={"she": Person()}, action="approve")
                )
            },
            "fairness.auditors.she must be of kind distance or alike_if_same",
        ),
        (
            {
                "fairness": msgspec.to_builtins(
                    IndividualFairness(
                        auditors={"x": WeightedDistance(weights={"audit.age": 1.0})},
                        action="approve",
                    )
                )
            },
            "fairness.auditors.x must be of kind .* on features of the context",
        ),
    ],
)
def test_a_configuration_that_can_not_be_is_refused(fields: dict[str, Any], said: str) -> None:
    given = {"kind": "fair", "fairness": msgspec.to_builtins(FAIR)} | fields
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(given, FairConfig)


def test_nothing_else_plays_it() -> None:
    LoopConfig(oracle=FairConfig(fairness=FAIR), exploration=Bagging(floor=0.02))
    with pytest.raises(ValueError, match="oracle fair needs exploration bagging, got squarecb"):
        LoopConfig(oracle=FairConfig(fairness=FAIR), exploration=SquareCB())


def test_a_log_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    oracle, rows = make_oracle(FairConfig(fairness=FAIR)), log(50)
    with pytest.raises(GenerationError, match="not fitted"):
        oracle.save(tmp_path)
    with pytest.raises(NotEnoughDataError, match="nobody was given 'approve'"):
        oracle.fit([row for row in rows if row.chosen == 0])
    odd = [*rows, msgspec.structs.replace(rows[0], reward=1.5)]
    with pytest.raises(
        InvalidInputError, match=r"rows\[50\].reward: expected a number in \[0, 1\]"
    ):
        oracle.fit(odd)


@pytest.mark.parametrize(
    "damage",
    [
        {"thresholds": np.zeros((5, 2))},
        {"columns": np.array([3, 2, 1])},
        {"reward": np.array([np.nan] * 5)},
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: dict[str, NDArray[Any]]) -> None:
    oracle = make_oracle(FairConfig(fairness=FAIR)).fit(log(200))
    oracle.save(tmp_path)
    with np.load(tmp_path / "thresholds.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    assert arrays["thresholds"].shape == (200, 5)
    np.savez(tmp_path / "thresholds.npz", **(arrays | damage))
    with pytest.raises(GenerationError):
        load_oracle(tmp_path)
