"""Guardrails in evaluations and in the gate: how often it errs, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.evaluate import Evaluation, evaluate
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.offline.generations import evaluation_row
from croupier.offline.guardrails import GUARDRAILS, column_of, packed
from croupier.offline.harm import guardrail_values, harm_shown
from croupier.offline.lake import SCHEMAS
from croupier.offline.ope import LoggedBatch
from croupier.policy.exploration import EpsilonGreedy, Greedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.guardrails import Guardrail
from croupier.policy.loop import LoopConfig
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOGS, FEWER, ROWS = 200, 80, 1000
UNIFORM = np.full(4, 0.25)
CHAMPION, CHALLENGER = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.1, 0.1, 0.1, 0.7])
WEIGHTS = (0.0, 2.8)
FALSE_ALARM = 1e-4


def refusals(
    rules: dict[str, Guardrail], means: dict[str, list[float]], seed: int, logs: int = LOGS
) -> int:
    """Of how many logs a guardrail refuses the challenger, where every guardrail is 0 or 1.

    Its mean by action; the log's policy is uniform over four of them.
    """
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(logs):
        actions = rng.integers(4, size=ROWS)
        told = {
            column_of(name): (rng.random(ROWS) < np.array(each)[actions]).astype(np.float64)
            for name, each in means.items()
        }
        found = guardrail_values(
            pl.DataFrame(told).select(packed(sorted(means))),
            (seen(CHAMPION, actions), seen(CHALLENGER, actions)),
            (WEIGHTS, WEIGHTS),
            rules,
            confidence=0.95,
            least=20,
        )
        refused += any(harm_shown(each)[0] for each in found)
    return refused


def seen(policy: NDArray[np.float64], actions: NDArray[np.int64]) -> LoggedBatch:
    return LoggedBatch(
        reward=np.zeros(len(actions)),
        propensity=UNIFORM[actions],
        target_probability=policy[actions],
    )


def most(rate: float, logs: int = LOGS) -> int:
    """As many as there may be at that rate; false alarm: 1e-4."""
    return int(stats.binom.isf(FALSE_ALARM, logs, rate))


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_harmless_challengers_are_seldom_refused(direction: Any) -> None:
    """In 2.5 % at most, of five guardrails together, that are as much worse as they may be.

    Uncorrected intervals of 95 % would refuse in five times as many.
    """
    worse = -0.06 if direction == "higher" else 0.06
    rules = {f"g{n}": Guardrail(direction=direction, max_fall=0.036) for n in range(5)}
    # Champion and challenger differ in 0.6 of the decisions: 0.6 * 0.06 is allowed.
    means = {name: [0.2, 0.5, 0.1, 0.2 + worse] for name in rules}
    assert refusals(rules, means, 1) <= most(0.025)


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_harmful_challengers_are_seldom_promoted_without_proof(direction: Any) -> None:
    """In 2.5 % at most, where all that are asked for a proof are as bad as is not allowed."""
    worse = -0.06 if direction == "higher" else 0.06
    rule = Guardrail(direction=direction, max_fall=0.036, evidence="proof_of_no_harm")
    assert LOGS - refusals({"g": rule}, {"g": [0.2, 0.5, 0.1, 0.2 + worse]}, 2) <= most(0.025)


def test_both_rules_tell_what_there_is_to_tell() -> None:
    """A fall of 0.18 is shown, and a rise is a proof of no harm; four standard errors and more."""
    falls, rises = {"g": [0.5, 0.3, 0.3, 0.2]}, {"g": [0.2, 0.3, 0.3, 0.5]}
    careful = Guardrail(max_fall=0.02, evidence="proof_of_no_harm")
    few = most(0.02, FEWER)
    assert refusals({"g": Guardrail()}, falls, 3, FEWER) >= FEWER - few
    assert refusals({"g": careful}, rises, 4, FEWER) <= few
    # The other way round where lower is better.
    assert refusals({"g": Guardrail(direction="lower")}, rises, 5, FEWER) >= FEWER - few
    # Where nothing changes, the one rule has nothing to say, and the other has no proof.
    same = {"g": [0.3, 0.3, 0.3, 0.3]}
    assert refusals({"g": Guardrail()}, same, 6, FEWER) <= few
    assert refusals({"g": careful}, same, 7, FEWER) > FEWER // 2


# In an evaluation, and in the gate.

WORLD = random_world(3, 4, seed=3)
CONFIG = LoopConfig(
    guardrails={
        "calm": Guardrail(),
        "refund": Guardrail(direction="lower", max_fall=0.01, reward_max=2.0),
    }
)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """A uniform log, of the first 500 rows of which no guardrail was joined.

    What is rewarded brings refunds; what keeps people calm has nothing to do with the action.
    """
    rows = WORLD.log(cold_start("shop"), 2500, seed=1)
    rng = np.random.default_rng(1)
    told = rows.select(
        pl.Series(column_of("calm"), rng.integers(2, size=len(rows)).astype(np.float64)),
        pl.col("reward").alias(column_of("refund")) * 2.0,
    ).select(packed(["calm", "refund"]))
    rows = rows.with_columns(told).with_row_index("n")
    nothing = pl.lit(None, dtype=SCHEMAS["interactions"][GUARDRAILS])
    joined = pl.when(pl.col("n") >= 500).then(GUARDRAILS).otherwise(nothing)
    return rows.with_columns(joined.alias(GUARDRAILS)).drop("n")


@pytest.fixture(scope="module")
def better() -> Generation:
    return WORLD.generation(1, EpsilonGreedy(epsilon=0.1))


@pytest.fixture(scope="module")
def evaluation(log: pl.DataFrame, better: Generation) -> Evaluation:
    return evaluate(log, cold_start("shop"), better, CONFIG)


def test_a_guardrail_is_estimated_from_the_rows_that_have_it(
    log: pl.DataFrame, better: Generation, evaluation: Evaluation
) -> None:
    """By SNIPS, in plain NumPy, with the probabilities of the two policies."""
    calm, refund = evaluation.guardrails
    assert [(each.name, each.rows) for each in (calm, refund)] == [("calm", 2000), ("refund", 2000)]
    assert evaluation.rows == 2500
    having = log[500:]
    contexts = [int(each[7]) for each in having["context"]]
    weights = np.array(
        [
            WORLD.pmf(better, context)[chosen] / 0.25
            for context, chosen in zip(contexts, having["chosen"], strict=True)
        ]
    )
    rewards = 2.0 * having["reward"].to_numpy()
    assert refund.estimates is not None
    assert refund.estimates.champion.value == pytest.approx(rewards.mean())
    expected = weights @ rewards / weights.sum()
    assert refund.estimates.challenger.value == pytest.approx(expected)
    difference = refund.estimates.difference
    assert difference.value == pytest.approx(expected - rewards.mean())
    assert difference.lower < 2.0 * (WORLD.value(better) - WORLD.value(cold_start("shop")))
    # Two of them, each of which refuses on a proof.
    assert difference.confidence == pytest.approx(0.975)


def test_the_gate_refuses_harm_and_says_of_what(evaluation: Evaluation) -> None:
    """However much better the challenger is."""
    calm, refund = evaluation.guardrails
    assert evaluation.differences["dr"].lower > 0.1
    verdict = judge_challenger(GateConfig(), evaluation)
    assert not verdict.promote
    assert refund.estimates is not None
    found = refund.estimates.difference
    (reason,) = verdict.reasons
    assert reason == (
        f"guardrail refund: challenger - champion is {found.value:+.4f}, 97.5 % interval "
        f"[{found.lower:+.4f}, {found.upper:+.4f}]: shown to be higher by more than 0.01"
    )
    harmless = msgspec.structs.replace(evaluation, guardrails=(calm,))
    verdict = judge_challenger(GateConfig(), harmless)
    assert verdict.promote
    assert len(verdict.reasons) == 2
    assert verdict.reasons[1].startswith("guardrail calm: ")
    assert verdict.reasons[1].endswith(": not shown to be lower by more than 0")
    # The row of the generation says the same in figures.
    told = evaluation_row(evaluation, "dr")["guardrails"]
    row = pl.DataFrame(
        {"guardrails": [told]}, schema={"guardrails": SCHEMAS["generations"]["guardrails"]}
    )["guardrails"].to_list()[0]
    assert [each["name"] for each in row] == ["calm", "refund"]
    assert (row[1]["rows"], row[1]["difference"]) == (2000, found.value)
    assert (row[1]["difference_lower"], row[1]["difference_upper"]) == (found.lower, found.upper)


@pytest.mark.parametrize("evidence", ["no_proof_of_harm", "proof_of_no_harm"])
def test_a_guardrail_that_hardly_any_row_has_is_waited_for(
    log: pl.DataFrame, better: Generation, evidence: Any
) -> None:
    config = LoopConfig(guardrails={"calm": Guardrail(max_fall=1.0, evidence=evidence)})
    few = evaluate(log[:519], cold_start("shop"), better, config)
    (reason,) = judge_challenger(GateConfig(), few).reasons
    assert reason == (
        "guardrail calm: only 19 of the judged interactions have it, too few to say whether it is "
        "harmed"
    )
    more = evaluate(log[:560], cold_start("shop"), better, config)
    estimates = more.guardrails[0].estimates
    assert estimates is not None
    ess = estimates.challenger.ess
    assert 5.0 < ess < 50.0
    (reason,) = judge_challenger(GateConfig(), more).reasons
    assert reason == (
        f"guardrail calm: only 60 of the judged interactions have it, an effective sample size of "
        f"{ess:.0f}, below 50"
    )
    assert not judge_challenger(GateConfig(), more).promote
    assert judge_challenger(GateConfig(min_ess=ess), more).promote


def test_a_challenger_that_takes_none_of_the_actions_that_have_it(log: pl.DataFrame) -> None:
    """Is no trouble for the rest of the evaluation."""
    sure = WORLD.generation(1, Greedy())
    picked = log[500:].filter(
        pl.Series(
            [
                WORLD.pmf(sure, int(each[7]))[chosen] == 0.0
                for each, chosen in log[500:].select("context", "chosen").iter_rows()
            ]
        )
    )
    evaluation = evaluate(pl.concat([log[:500], picked]), cold_start("shop"), sure, CONFIG)
    assert [(each.rows, each.estimates) for each in evaluation.guardrails] == [
        (len(picked), None),
        (len(picked), None),
    ]
    assert not judge_challenger(GateConfig(), evaluation).promote


def test_loops_without_guardrails_are_judged_as_ever(log: pl.DataFrame, better: Generation) -> None:
    plain = evaluate(log, cold_start("shop"), better, LoopConfig())
    assert plain.guardrails == ()
    assert evaluation_row(plain, "dr")["guardrails"] is None
    assert len(judge_challenger(GateConfig(), plain).reasons) == 1
