"""The search for partners: compiled and not, against all pairs, with pairs that were judged."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.fairness.box_tree import BoxTree
from croupier.offline.fairness.partner_search import COMPILED, PartnerSearch
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.auditors import Metric, Panel, gap_of, required_votes

ALPHA = 0.05


def world(
    n: int, seed: int, *, actions: int = 1, auditors: int = 1, gamma: float = 1.0, gap: str = "any"
) -> tuple[BoxTree, Panel, np.ndarray]:
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n, 2))
    places[rng.random(n) < 0.2] = 0.5
    treatments = rng.dirichlet(np.ones(actions + 1), size=n)[:, :actions]
    metrics = [Metric(places * rng.uniform(0.2, 1.0, size=2)) for _ in range(auditors)]
    tree = BoxTree.of(metrics, required_votes(gamma, auditors), treatments, gap)
    return tree, Panel(metrics, gamma), treatments


def excesses(panel: Panel, treatments: np.ndarray, gap: str) -> np.ndarray:
    n = len(treatments)
    over = gap_of(gap)(treatments[:, None, :], treatments[None, :, :])
    over = over - panel.block(np.arange(n)) - ALPHA
    over[np.arange(n), np.arange(n)] = -np.inf
    return over


def test_it_was_compiled_where_tests_are_run_for_good() -> None:
    if COMPILED is None:
        assert os.environ.get("CI") != "true", "the search for partners was not compiled"
        pytest.skip("the search for partners was not compiled")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gap", ["any", "total_variation"])
@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 90),
    seed=st.integers(0, 10_000),
    actions_and_auditors=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    gamma=st.sampled_from([0.1, 0.5, 0.75, 1.0]),
)
def test_the_worst_partner_is_that_of_all_pairs(
    compiled: bool,
    gap: str,
    *,
    n: int,
    seed: int,
    actions_and_auditors: tuple[int, int],
    gamma: float,
) -> None:
    actions, auditors = actions_and_auditors
    tree, panel, treatments = world(
        n, seed, actions=actions, auditors=auditors, gamma=gamma, gap=gap
    )
    over = excesses(panel, treatments, gap)
    search = PartnerSearch.of(
        tree, n, np.zeros(0, np.int64), alpha=ALPHA, most_visits=10**6, compiled=compiled
    )

    rows, floors = np.arange(n), np.zeros(n)
    worst = search.find(rows, floors, any_=False)
    any_ = search.find(rows, floors, any_=True)

    violates = over.max(axis=1) > 1e-12
    np.testing.assert_array_equal(worst.partner >= 0, violates)
    np.testing.assert_array_equal(any_.partner >= 0, violates)
    np.testing.assert_allclose(worst.over[violates], over.max(axis=1)[violates], atol=1e-12)
    picked = over[rows[violates], any_.partner[violates]]
    np.testing.assert_allclose(any_.over[violates], picked, atol=1e-12)
    assert not worst.given_up.any()


def test_what_is_compiled_looks_into_the_same_boxes() -> None:
    if COMPILED is None:
        pytest.skip("the search for partners was not compiled")
    n = 3000
    tree, _, _ = world(n, 1, actions=2, auditors=3, gamma=0.5)
    rows = np.arange(n)
    for most_visits, any_ in ((5, True), (40, False), (10_000, True), (10_000, False)):
        one, two = (
            PartnerSearch.of(
                tree, n, np.array([3]), alpha=0.2, most_visits=most_visits, compiled=compiled
            ).find(rows, np.full(n, 0.01), any_=any_)
            for compiled in (False, True)
        )
        assert one.compared == two.compared
        np.testing.assert_array_equal(one.partner, two.partner)
        np.testing.assert_array_equal(one.given_up, two.given_up)
        np.testing.assert_allclose(one.over, two.over, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pair_that_was_judged_is_passed_over(compiled: bool) -> None:
    n = 60
    tree, panel, treatments = world(n, 4)
    over = excesses(panel, treatments, "any")
    first, second = np.divmod(int(over.argmax()), n)
    judged = np.array([min(first, second) * n + max(first, second)])
    over[first, second] = over[second, first] = -np.inf
    search = PartnerSearch.of(tree, n, judged, alpha=ALPHA, most_visits=10**6, compiled=compiled)

    found = search.find(np.array([first, second]), np.zeros(2), any_=False)

    np.testing.assert_allclose(found.over, over[[first, second]].max(axis=1), atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_search_that_is_given_up_says_so(compiled: bool) -> None:
    tree, _, _ = world(500, 2)
    empty = np.zeros(0, np.int64)
    search = PartnerSearch.of(tree, 500, empty, alpha=ALPHA, most_visits=1, compiled=compiled)

    found = search.find(np.arange(500), np.zeros(500), any_=True)

    assert found.given_up.all()
    assert (found.partner == -1).all()


def test_another_gap_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="gap"):
        BoxTree.of([Metric(np.zeros((3, 1)))], 1, np.zeros((3, 1)), "largest")


def test_arrays_that_are_of_no_tree_are_refused() -> None:
    if COMPILED is None:
        pytest.skip("the search for partners was not compiled")
    tree, _, _ = world(50, 3)
    search = PartnerSearch.of(tree, 50, np.zeros(0, np.int64), alpha=ALPHA, most_visits=10)
    search.places[7] = tree.rows.size

    with pytest.raises(ValueError, match="of a tree"):
        search.find(np.arange(50), np.zeros(50), any_=True)
