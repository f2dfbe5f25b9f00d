"""Influences and responses of generations whose truth can be counted."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from croupier.offline.feature_influence import influences, responses, usable_requests
from croupier.offline.interactions import LoggedRequest
from croupier.policy.events import Action
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.oracle import SklearnConfig, SklearnOracle, TrainingRow

CITIES = ("Bern", "Biel")
PRICES = (1, 3)


def learned() -> Generation:
    """Takes a0 in Bern and a1 in Biel, whatever the rest of the request is; floors are 0.1."""
    rows = [
        TrainingRow(
            context={"user": {"city": city}, "hour": hour},
            actions=actions(),
            chosen=chosen,
            propensity=1.0,
            reward=float(chosen == CITIES.index(city)),
        )
        for city, hour, chosen in itertools.product(CITIES, range(4), range(2))
    ]
    oracle = SklearnOracle(SklearnConfig(params={"alpha": 1e-6})).fit(rows)
    return Generation("shop", 1, EpsilonGreedy(epsilon=0.2), oracle, None)


def actions() -> list[Action]:
    return [Action(f"a{place}", {"price": price}) for place, price in enumerate(PRICES)]


def panel(count: int, seed: int = 0) -> list[LoggedRequest]:
    rng = np.random.default_rng(seed)
    return [
        LoggedRequest(
            context={"user": {"city": CITIES[int(rng.random() < 0.3)]}, "hour": int(hour)},
            actions=actions(),
            eligible=None,
            chosen=0,
        )
        for hour in rng.integers(0, 24, count)
    ]


def test_influence_is_the_share_of_play_that_a_feature_decides() -> None:
    requests = panel(400)
    found = {
        (each.generation, each.feature): each
        for each in influences(requests, [cold_start("shop"), learned()])
    }
    assert {feature for _, feature in found} == {"user.city", "hour", "action.price"}
    # The cold start plays the same whatever is asked.
    for feature in ("user.city", "hour", "action.price"):
        assert found[0, feature].total_variation == 0.0
        assert found[0, feature].score_shift is None
    assert found[1, "hour"].total_variation == 0.0
    city = found[1, "user.city"]
    # Two requests of different cities are played 0.8 apart; 2 p (1 - p) of the exchanges are such.
    cities = Counter(each.context["user"]["city"] for each in requests)
    p = cities["Biel"] / len(requests)
    assert city.total_variation == pytest.approx(0.8 * 2 * p * (1 - p), abs=4 * city.error)
    assert city.error == pytest.approx(
        0.8 * np.sqrt(2 * p * (1 - p) * (1 - 2 * p * (1 - p)) / len(requests)), rel=0.1
    )
    assert city.requests == 400
    assert city.score_shift is not None
    assert city.score_shift > 0.2


def test_responses_are_means_of_the_pmfs() -> None:
    requests, policy = panel(200), learned()
    found = [each for each in responses(requests, [policy]) if each.generation == 1]
    by_city = {(each.value, each.action): each for each in found if each.feature == "user.city"}
    counts = Counter(each.context["user"]["city"] for each in requests)
    for city, action in itertools.product(CITIES, ("a0", "a1")):
        told = by_city[city, action]
        best = CITIES.index(city) == int(action[1])
        assert told.mass == pytest.approx(0.9 if best else 0.1)
        assert told.requests == counts[city]
        assert told.score == pytest.approx(float(best), abs=0.15)
    hours = [each for each in found if each.feature == "hour" and each.action == "a0"]
    assert [each.place for each in hours] == [0, 1, 2, 3]
    assert sum(each.requests for each in hours) == 200
    # Quarters hold every hour once: their mean is that of all pmfs.
    overall = np.mean([policy.pmf(each.context, each.actions)[0][0] for each in requests])
    weighted = sum(each.mass * each.requests for each in hours) / 200
    assert weighted == pytest.approx(overall)
    prices = [each for each in found if each.feature == "action.price"]
    assert [(each.value, each.action, each.requests) for each in prices] == [
        ("1", None, 200),
        ("3", None, 200),
    ]
    assert sum(each.mass for each in prices) == pytest.approx(1.0)


def test_what_is_missing_is_a_value_and_rare_words_are_taken_together() -> None:
    words = "abcdefghij"
    requests = [
        LoggedRequest({"word": words[n % 10]} if n % 3 else {}, actions(), None, 0)
        for n in range(90)
    ]
    found = responses(requests, [cold_start("shop")])
    values = {each.value: each.requests for each in found if each.feature == "word"}
    assert sum(values.values()) == 90
    assert values["(none)"] == 30
    assert values["(others)"] == 24
    assert len(values) == 8


def test_a_request_that_one_generation_cannot_answer_is_left_out() -> None:
    both = [cold_start("shop"), learned()]
    barred = LoggedRequest({"hour": float("inf")}, actions(), None, 0)
    assert usable_requests([*panel(3), barred], both) == panel(3)
