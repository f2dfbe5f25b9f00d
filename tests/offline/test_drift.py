"""Drift between generations: found where it is, and seldom where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.drift import DriftReport, drift
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Context = Callable[[np.random.Generator], dict[str, Any]]


def shopper(rng: np.random.Generator) -> dict[str, Any]:
    """A context with numbers, words, lists and gaps."""
    context: dict[str, Any] = {
        "user": {"age": float(rng.normal(40, 10)), "country": str(rng.choice(["nl", "de", "fr"]))},
        "tags": [str(each) for each in rng.choice(["new", "sale", "top"], 2)],
        "member": bool(rng.random() < 0.3),
    }
    if rng.random() < 0.5:
        context["basket"] = float(rng.exponential(30))
    return context


def log(
    rng: np.random.Generator,
    generation: int,
    rows: int,
    *,
    context: Context = shopper,
    pmf: Sequence[float] = (0.5, 0.3, 0.2),
    rates: Sequence[float] = (0.2, 0.4, 0.6),
) -> pl.DataFrame:
    """Interactions of one generation, which chooses among three actions."""
    chosen = rng.choice(3, rows, p=pmf)
    return pl.DataFrame(
        {
            "generation": [generation] * rows,
            "decision_id": [f"{generation}-{number}" for number in range(rows)],
            "context": [msgspec.json.encode(context(rng)).decode() for _ in range(rows)],
            "action_ids": [["a", "b", "c", "d"]] * rows,
            "excluded": [["d"]] * rows,
            "propensity": np.array(pmf)[chosen],
            "keep_prob": np.ones(rows),
            "reward": (rng.random(rows) < np.array(rates)[chosen]).astype(float),
        }
    )


def significant(report: DriftReport) -> list[str]:
    features = [f"{each.feature} {each.kind}" for each in report.features if each.significant]
    return features + ["reward" for each in report.rewards if each.significant]


def test_nothing_changes_but_the_policy() -> None:
    """Its mean reward rises; that of the uniform policy does not."""
    rng = np.random.default_rng(1)
    logs = [log(rng, 3, 3000), log(rng, 4, 3000, pmf=(0.1, 0.1, 0.8))]
    report = drift(pl.concat(logs))
    assert significant(report) == []
    (reward,) = report.rewards
    assert (reward.before, reward.after) == (3, 4)
    assert reward.mean_before == pytest.approx(0.34, abs=0.04)
    assert reward.mean_after == pytest.approx(0.54, abs=0.04)
    assert reward.uniform_before == pytest.approx(0.4, abs=0.04)
    assert reward.uniform_after == pytest.approx(0.4, abs=0.06)
    assert {(each.feature, each.kind) for each in report.features} == {
        ("user.age", "number"),
        ("user.country", "category"),
        ("tags[]", "category"),
        ("member", "category"),
        ("basket", "number"),
        ("basket", "presence"),
    }


def test_a_world_that_pays_less_is_found() -> None:
    rng = np.random.default_rng(2)
    logs = [log(rng, 1, 2000), log(rng, 2, 2000, rates=(0.1, 0.3, 0.5)), log(rng, 3, 2000)]
    report = drift(pl.concat(reversed(logs)))
    assert [(each.before, each.after, each.significant) for each in report.rewards] == [
        (1, 2, True),
        (2, 3, True),
    ]


def test_other_people_are_found_by_what_is_other_about_them() -> None:
    def older(rng: np.random.Generator) -> dict[str, Any]:
        context = shopper(rng)
        context["user"]["age"] += 5.0
        return context

    def foreign(rng: np.random.Generator) -> dict[str, Any]:
        context = shopper(rng)
        if rng.random() < 0.2:
            context["user"]["country"] = "es"
        return context

    def without_basket(rng: np.random.Generator) -> dict[str, Any]:
        return {name: value for name, value in shopper(rng).items() if name != "basket"}

    rng = np.random.default_rng(3)
    for context, found in (
        (older, "user.age number"),
        (foreign, "user.country category"),
        (without_basket, "basket presence"),
    ):
        report = drift(pl.concat([log(rng, 1, 1500), log(rng, 2, 1500, context=context)]))
        assert significant(report) == [found]
    assert report.features[0].distance == pytest.approx(0.5, abs=0.05)


def test_false_alarms_are_as_seldom_as_said() -> None:
    """At level .1, 15 of 150 reports may have one; more than 30 would have once in 10,000."""
    rng = np.random.default_rng(4)
    alarms = sum(
        bool(significant(drift(pl.concat([log(rng, 1, 80), log(rng, 2, 80)]), level=0.1)))
        for _ in range(150)
    )
    assert stats.binom.sf(30, 150, 0.1) < 1e-4
    assert alarms <= 30


def test_distances_are_those_of_the_distributions() -> None:
    rng = np.random.default_rng(5)
    first = log(rng, 1, 500, context=lambda _: {"x": 1.0, "k": "a"})
    second = log(rng, 2, 500, context=lambda rng: {"x": 1.0, "k": str(rng.choice(["a", "b"]))})
    found = {each.feature: each for each in drift(pl.concat([first, second])).features}
    assert (found["x"].distance, found["x"].p_value) == (0.0, 1.0)
    assert found["k"].distance == pytest.approx(0.5, abs=0.07)
    assert found["k"].p_value < 1e-30


def test_a_request_counts_once_and_a_sample_is_enough() -> None:
    rng = np.random.default_rng(6)
    logs = pl.concat([log(rng, 1, 400), log(rng, 2, 400)])
    places = pl.concat([logs, logs, logs])
    assert drift(places).features == drift(logs).features
    sampled = drift(logs, sample=100, seed=1)
    assert sampled.features == drift(logs, sample=100, seed=1).features
    assert sampled.features != drift(logs, sample=100, seed=2).features


def test_too_little_and_too_much() -> None:
    rng = np.random.default_rng(7)
    logs = pl.concat([log(rng, 1, 400), log(rng, 2, 49)])
    with pytest.raises(NotEnoughDataError, match="two generations with 50"):
        drift(logs)
    with pytest.raises(InvalidInputError, match="level"):
        drift(logs, level=0.0)
