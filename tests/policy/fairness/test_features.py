"""What auditors see of decisions: blocks of columns, in the one encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.features import FeatureTable

CONTEXTS: list[dict[str, Any]] = [
    {"income": 1.5, "home": {"city": "north"}, "tags": ["a", "b"]},
    {"income": 3, "home": {"city": "south"}, "tags": ["b"]},
    {"home.city": "north"},
]


def squares(path: str, *, audits: list[dict[str, Any]] | None = None) -> list[float]:
    """Of the first decision to the second and the third."""
    table = FeatureTable.of([path], CONTEXTS, audits)
    found: list[float] = table.squares(np.array([0, 0]), np.array([1, 2]))[:, 0].tolist()
    return found


def test_a_number_differs_by_its_square_and_is_zero_where_it_is_missing() -> None:
    assert squares("income") == pytest.approx([2.25, 2.25])


def test_two_words_differ_by_one_however_the_path_is_spelt() -> None:
    assert squares("home.city") == pytest.approx([1.0, 0.0])


def test_a_missing_word_is_a_word_of_its_own() -> None:
    assert squares("audit.sex", audits=[{"sex": "f"}, {"sex": "m"}, {}]) == pytest.approx([1, 1])


def test_words_of_a_list_are_a_set() -> None:
    assert squares("tags") == pytest.approx([0.5, 1.5])


def test_a_metric_weighs_paths_and_leaves_out_what_has_no_weight() -> None:
    table = FeatureTable.of(["income", "home.city"], CONTEXTS)
    pair = np.array([0]), np.array([1])

    assert table.metric({"income": 0.2, "home.city": 0.4}).distances(*pair) == pytest.approx([0.5])
    assert table.metric({"home.city": 0.4}).distances(*pair) == pytest.approx([0.4])
    assert table.metric({}).distances(*pair).tolist() == [0.0]


def test_scales_are_those_of_random_pairs() -> None:
    rng = np.random.default_rng(0)
    contexts = [{"x": float(each)} for each in rng.normal(scale=3.0, size=4000)]
    table = FeatureTable.of(["x"], contexts)
    first, second = rng.integers(4000, size=(2, 20_000))

    observed = float(np.sqrt(table.squares(first, second).mean()))

    assert table.scales()["x"] == pytest.approx(observed, rel=0.03)


def test_a_feature_that_nobody_has_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"features\.icnome: expected a feature"):
        FeatureTable.of(["icnome"], CONTEXTS)


def test_names_are_no_feature_to_compare_by() -> None:
    with pytest.raises(InvalidInputError, match="at most 200 different words"):
        FeatureTable.of(["name"], [{"name": f"n{each}"} for each in range(201)])
