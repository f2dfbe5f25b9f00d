"""Drawn against logged: does every policy take actions with the probabilities that it logs?

Run with ``python -m benchmarks.draws`` (``--draws`` to change how many, ``--json`` for programs).
Oracles learn from 2,000 uniform decisions on scikit-learn's digits; then every policy, and every
shape of decision, decides on images of the other half until so many draws are logged, and
``croupier audit``'s own test is put to the log: a chi-square by action and one by level of
probability, and the replay of every draw from its key.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import polars as pl
import sklearn.datasets

from croupier.cli.output import Output
from croupier.offline.audit import audit_propensities
from croupier.offline.lake import SCHEMAS
from croupier.offline.sink import decision_row
from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.events import Action, Decision
from croupier.policy.exploration import (
    Bagging,
    Conservative,
    Cover,
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    RegCB,
    Softmax,
    SquareCB,
    Thompson,
    Uniform,
)
from croupier.policy.generation import Generation, Provenance
from croupier.policy.oracle import (
    BootstrapConfig,
    CoverConfig,
    OracleConfig,
    RidgeConfig,
    TrainingRow,
    VowpalWabbitConfig,
    make_oracle,
)
from croupier.policy.ranking import RankRequest, rank, scored_once
from croupier.policy.slates import SlateRequest, decide_slate
from croupier.policy.slots import Slot, SlotsRequest, fill_slots
from croupier.policy.traffic import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWS, TRAINED = 100_000, 2000
_ROWS_AT_ONCE = 5000
_SECRET = b"a secret of the benchmark's own!"
_DIGITS = [Action(str(digit)) for digit in range(10)]

Ask: TypeAlias = "Callable[[dict[str, list[float]], Plan, Circumstances], list[Decision]]"


@dataclass(frozen=True, slots=True)
class _Case:
    """A policy to draw from.

    Attributes
    ----------
    name
        As the table shows it.
    exploration, oracle
        Of the generation.
    ask
        How a decision is asked for, and with it its shape.
    canary_share, uniform
        Of a second generation, which is greedier, and of uniform play.
    """

    name: str
    exploration: Exploration
    oracle: OracleConfig
    ask: Ask
    canary_share: float = 0.0
    uniform: float = 0.0


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit found in one policy's log.

    Attributes
    ----------
    policy
        Its name.
    draws
        Rows of the log.
    statistic, dof, p_value
        Chi-square by action, of drawn against logged.
    p_value_by_level
        The same by level of probability.
    replayed_differently
        Draws that came out otherwise from the logged pmf and key.
    """

    policy: str
    draws: int
    statistic: float
    dof: int
    p_value: float
    p_value_by_level: float
    replayed_differently: int


def measure(draws: int = DRAWS, *, workers: int | None = None) -> list[Drawn]:
    """Audit as many draws of every policy."""
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(partial(_measure_one, draws=draws), range(len(_cases()))))


def _measure_one(index: int, draws: int) -> Drawn:
    case = _cases()[index]
    plan = _plan(case)
    _, test = _images()
    parts: list[pl.DataFrame] = []
    rows: list[dict[str, Any]] = []
    logged = number = 0
    while logged < draws:
        circumstances = Circumstances(
            f"{case.name}/{number}", number, uniform=case.uniform, secret=_SECRET
        )
        context = {"pixels": test[number % len(test)][0]}
        drawn = [decision_row(each, number) for each in case.ask(context, plan, circumstances)]
        rows += drawn
        logged += len(drawn)
        number += 1
        # Rows as frames take a tenth of the room.
        if len(rows) >= _ROWS_AT_ONCE or logged >= draws:
            parts.append(pl.DataFrame(rows, schema=SCHEMAS["decisions"]))
            rows.clear()
    found = audit_propensities(pl.concat(parts))
    assert found.test is not None, "every draw has a pmf"
    assert found.violations is not None, "likewise"
    assert found.violations.rows == 0, "every pmf is a distribution"
    return Drawn(
        policy=case.name,
        draws=logged,
        statistic=found.test.statistic,
        dof=found.test.dof,
        p_value=found.test.p_value,
        p_value_by_level=found.test.bin_p_value,
        replayed_differently=found.replay_mismatches,
    )


def _cases() -> list[_Case]:
    table, ridge = VowpalWabbitConfig(), RidgeConfig()
    singles: list[tuple[Exploration, OracleConfig]] = [
        (Uniform(), table),
        (EpsilonGreedy(epsilon=0.1), table),
        (Softmax(temperature=0.1), table),
        (SquareCB(gamma_scale=2.0), table),
        (SquareCB(gamma_scale=20.0, floor=0.01), table),
        (SquareCB(gamma_scale=20.0, floor=0.01, floor_method="mix"), table),
        (SquareCB(gamma_scale=20.0, optimism=0.01), ridge),
        (Falcon(), table),
        (FastCB(), table),
        (RegCB(), ridge),
        (RegCB(variant="optimistic", floor=0.01), ridge),
        (Bagging(), BootstrapConfig(base=table)),
        (Cover(), CoverConfig()),
        (Thompson(correlated=False), ridge),
        (Thompson(), ridge),
        (Conservative(inner=SquareCB(gamma_scale=2.0)), table),
    ]
    cases = [_Case(each.describe(), each, oracle, _single) for each, oracle in singles]
    square = SquareCB(gamma_scale=2.0)
    return [
        *cases,
        _Case("canary 20 %, uniform 10 %", square, table, _single, 0.2, 0.1),
        _Case("ranking, depth 3", square, table, _ranking),
        _Case("three slots", square, table, _slots),
        _Case("slate of 3", square, table, _slate),
    ]


def _single(
    context: dict[str, list[float]], plan: Plan, circumstances: Circumstances
) -> list[Decision]:
    return [decide(DecisionRequest(actions=_DIGITS, context=context), plan, circumstances)]


def _ranking(
    context: dict[str, list[float]], plan: Plan, circumstances: Circumstances
) -> list[Decision]:
    choose = partial(decide, plan=scored_once(plan), circumstances=circumstances)
    return rank(RankRequest(actions=_DIGITS, context=context, depth=3), choose).decisions


def _slots(
    context: dict[str, list[float]], plan: Plan, circumstances: Circumstances
) -> list[Decision]:
    slots = [Slot(id="top", features={"size": 2}), Slot(id="left"), Slot(id="right")]
    request = SlotsRequest(actions=_DIGITS, context=context, slots=slots)
    return fill_slots(request, partial(decide, plan=plan, circumstances=circumstances))


def _slate(
    context: dict[str, list[float]], plan: Plan, circumstances: Circumstances
) -> list[Decision]:
    return decide_slate(SlateRequest(actions=_DIGITS, context=context, size=3), plan, circumstances)


def _plan(case: _Case) -> Plan:
    train, _ = _images()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(TRAINED):
        pixels, label = train[number % len(train)]
        chosen = int(rng.integers(10))
        rows.append(
            TrainingRow(
                context={"pixels": pixels},
                actions=_DIGITS,
                chosen=chosen,
                propensity=0.1,
                reward=float(chosen == label),
            )
        )
    oracle = make_oracle(case.oracle).fit(rows)
    champion = Generation("digits", 2, case.exploration, oracle, _provenance(TRAINED))
    canary = Generation("digits", 3, SquareCB(gamma_scale=20.0), oracle, _provenance(TRAINED))
    return Plan(champion, canary if case.canary_share else None, case.canary_share)


def _provenance(rows: int) -> Provenance:
    return Provenance(
        parent=0,
        lake_version=0,
        code_version="",
        loop_config="",
        seed=0,
        training_rows=rows,
        created_us=0,
    )


@cache
def _images() -> tuple[list[tuple[list[float], int]], list[tuple[list[float], int]]]:
    """Images to learn from, and images to decide on."""
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = list(zip((pixels / 16.0).tolist(), labels.tolist(), strict=True))
    return images[: len(images) // 2], images[len(images) // 2 :]


def main() -> None:
    """Draw, audit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    output = Output(json=given.json)
    found = measure(given.draws, workers=given.workers)
    output.result(
        found,
        lambda: output.table(
            "Drawn against logged",
            ["policy", "draws", "chi-square", "dof", "p by action", "p by level", "misreplayed"],
            [
                [
                    each.policy,
                    each.draws,
                    round(each.statistic, 1),
                    each.dof,
                    f"{each.p_value:.3f}",
                    f"{each.p_value_by_level:.3f}",
                    each.replayed_differently,
                ]
                for each in found
            ],
        ),
    )


if __name__ == "__main__":
    main()
