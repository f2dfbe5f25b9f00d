"""Violation rates of generations, their rise, and the section that the gate hears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.fairness.individual_gate import (
    generation_rate,
    individual_section,
    violation_rows,
)
from croupier.offline.fairness.individuals import Individuals, judged_table, panel_of
from croupier.offline.fairness.pair_audit import audit_pairs, proposed_pairs
from croupier.offline.generations import generation_rows, record_violations
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.fairness.config import (
    AlikeIfSame,
    IndividualFairness,
    LearnedDistance,
    Person,
    WeightedDistance,
)
from tests.offline.fairness.lakes import LOOP, TRUTH, loan_lake

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.finding import Section
    from croupier.offline.lake import Lake
    from croupier.policy.events import Action, Features

FEATURES = ("income", "debt", "city")
GIVEN = IndividualFairness(
    auditors={"scale": WeightedDistance(weights=TRUTH)}, action="approve", alpha=0.1
)
LEARNED = IndividualFairness(
    auditors={"board": LearnedDistance(features=FEATURES)}, action="approve", alpha=0.1
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Fair for three generations, and then not."""
    directory = tmp_path_factory.mktemp("loans")
    return loan_lake(directory, by_city=(0.0, 0.0, 0.0, 0.6), judgements=40)


class Approves:
    """A policy like a generation: with a probability that depends on the city, or not."""

    def __init__(self, by_city: float) -> None:
        self.by_city = by_city

    def pmf(
        self,
        context: Features,
        actions: list[Action],
        eligible: object = None,
        baseline: object = None,
    ) -> tuple[np.ndarray, None]:
        del actions, eligible, baseline
        p = 0.5 + (self.by_city if context["city"] == "north" else -self.by_city)
        return np.array([p, 1.0 - p]), None


def section(lake: Lake, config: IndividualFairness | None, by_city: float) -> Section:
    rows = lake.scan("decisions", LOOP).collect()
    judged = judged_table(lake, LOOP)
    return individual_section(
        config,
        rows,
        judged,
        Approves(0.0),  # type: ignore[arg-type]  # as much of a generation as is asked
        Approves(by_city),  # type: ignore[arg-type]
        confidence=0.95,
    )


def test_rates_are_of_a_generations_own_decisions_and_rise(lake: Lake) -> None:
    rows = {row["generation"]: row for row in violation_rows(lake, LOOP, GIVEN)}

    assert rows[0]["violation_rate"] == 0.0
    assert rows[3]["violation_upper"] < rows[4]["violation_lower"]
    assert rows[4]["violations_rise"]
    assert rows[4]["violation_p_value"] < 0.01
    assert "violations_rise" not in rows[3]


def test_rates_are_kept_with_the_generations(lake: Lake, tmp_path: Path) -> None:
    del tmp_path
    with lake.lock():
        record_violations(lake, violation_rows(lake, LOOP, GIVEN))

    row = generation_rows(lake, LOOP)[4]
    assert row["violations_rise"] is True
    assert 0.0 < row["violation_lower"] < row["violation_rate"] < row["violation_upper"] < 1.0


def test_fair_generations_raise_no_alarm(tmp_path: Path) -> None:
    steady = loan_lake(tmp_path, by_city=(0.3, 0.3, 0.3))
    last = violation_rows(steady, LOOP, GIVEN)[-1]

    assert last["violation_rate"] > 0.0
    assert not last["violations_rise"]


def test_a_distance_is_learned_from_what_people_have_judged(lake: Lake) -> None:
    rows = lake.scan("decisions", LOOP).collect()
    individuals = Individuals.of(rows, LEARNED)
    panel = panel_of(LEARNED, individuals, judged_table(lake, LOOP))

    weights = panel.learned["board"].weights
    assert weights["income"] == pytest.approx(TRUTH["income"], abs=0.06)
    assert weights["debt"] == pytest.approx(TRUTH["debt"], abs=0.06)
    assert weights["city"] < 0.15
    error = panel.learned["board"].held_out_error
    assert error is not None
    assert error < 0.08


def test_a_challenger_has_to_be_shown_to_be_fair(lake: Lake) -> None:
    limited = msgspec.structs.replace(LEARNED, max_violation_rate=0.05)

    fair, unfair = section(lake, limited, 0.0), section(lake, limited, 0.3)

    assert [each.objection for each in fair.findings] == [None] * len(fair.findings)
    first = unfair.findings[0]
    assert (first.name, first.limit) == ("violation rate", 0.05)
    assert first.lower is not None
    assert first.lower > 0.05
    assert first.objection is not None
    assert "not shown to be at most 0.05" in first.objection
    assert [each.name for each in unfair.findings[1:]] == ["champion's violation rate"]


def test_people_alone_judge_their_own_pairs(lake: Lake) -> None:
    people = IndividualFairness(
        auditors={"ada": Person(name="ada")},
        action="approve",
        alpha=0.1,
        max_violation_rate=0.3,
    )

    fair, unfair = section(lake, people, 0.0), section(lake, people, 0.45)

    (told,) = fair.findings
    assert (told.name, told.value, told.objection) == ("violation rate of judged pairs", 0.0, None)
    assert unfair.findings[0].objection is not None


def test_a_limit_that_nothing_can_be_held_to_is_not_kept(tmp_path: Path) -> None:
    unjudged = loan_lake(tmp_path, by_city=(0.3,))
    limited = msgspec.structs.replace(LEARNED, max_violation_rate=0.05)

    told, held = section(unjudged, LEARNED, 0.0), section(unjudged, limited, 0.0)

    assert not told.measured
    assert "too few judgements" in told.note
    assert held.findings[0].objection is not None
    assert "was not measured" in held.findings[0].objection
    assert not section(unjudged, None, 0.0).measured


def test_an_audit_tells_who_judges_what_violates_and_what_to_judge(lake: Lake) -> None:
    found = audit_pairs(lake, LOOP, LEARNED, shown=3, proposals=4)

    (board,) = found.auditors
    assert (board.kind, board.abstains) == ("learned", False)
    assert board.judgements is not None
    assert found.exact
    assert found.settled == 1.0
    assert found.rises
    assert len(found.worst) == 3
    assert all(each.excess > 0.0 for each in found.worst)
    assert 4 in {found.worst[0].first.generation, found.worst[0].second.generation}
    for pair in found.worst:
        shown = abs(pair.first.treatment["approve"] - pair.second.treatment["approve"])
        assert pair.gap == pytest.approx(shown)
    assert len(found.proposed) == 4


def test_pairs_are_proposed_before_anybody_has_judged(tmp_path: Path) -> None:
    unjudged = loan_lake(tmp_path, by_city=(0.6,))

    assert len(proposed_pairs(unjudged, LOOP, LEARNED, count=5)) == 5
    found = audit_pairs(unjudged, LOOP, LEARNED, proposals=5)
    assert (found.violators, found.settled, len(found.proposed)) == (0, 0.0, 5)
    assert found.auditors[0].abstains


def test_who_does_not_offer_the_action_is_left_out(lake: Lake) -> None:
    rows = lake.scan("decisions", LOOP).collect()
    barred = pl.Series([["approve"]] * 5 + [[]] * (len(rows) - 5), dtype=pl.List(pl.String))
    individuals = Individuals.of(rows.with_columns(excluded=barred), GIVEN)

    assert (len(individuals), individuals.left_out) == (len(rows) - 5, 5)
    refunds = msgspec.structs.replace(GIVEN, action="refund")
    with pytest.raises(NotEnoughDataError, match="that offer 'refund'"):
        Individuals.of(rows, refunds)


def test_all_actions_are_the_treatment_unless_one_is_named(lake: Lake) -> None:
    rows = lake.scan("decisions", LOOP).head(20).collect()
    individuals = Individuals.of(rows, msgspec.structs.replace(GIVEN, action=None))

    assert individuals.actions == ("approve", "decline")
    np.testing.assert_allclose(individuals.treatments.sum(axis=1), 1.0)


def test_alike_if_same_is_a_rule(lake: Lake) -> None:
    rule = IndividualFairness(
        auditors={"city": AlikeIfSame(features=("city",))}, action="approve", alpha=0.05
    )
    rows = lake.scan("decisions", LOOP).filter(pl.col("generation") == 4).collect()
    individuals = Individuals.of(rows, rule)
    panel = panel_of(rule, individuals, judged_table(lake, LOOP)).panel
    cities = [msgspec.json.decode(each)["city"] for each in rows["context"]]

    first, second = np.random.default_rng(0).integers(len(rows), size=(2, 300))
    same = np.array([cities[one] == cities[two] for one, two in zip(first, second, strict=True)])
    np.testing.assert_allclose(panel.distances(first, second), np.where(same, 0.0, 1.0))


def test_a_generation_of_which_nobody_judged_a_pair_has_no_rate(lake: Lake) -> None:
    people = IndividualFairness(auditors={"anybody": Person()}, action="approve")
    judged = judged_table(lake, LOOP)

    assert generation_rate(lake, LOOP, 4, people, judged).pairs > 30
    with pytest.raises(NotEnoughDataError):
        generation_rate(lake, LOOP, 2, people, judged)
