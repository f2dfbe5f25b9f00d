"""The audit: sound logs pass, and a single row that isn't is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.audit import PropensityAudit, audit_propensities, draws_test
from croupier.offline.lake import SCHEMAS
from croupier.offline.sink import decision_row
from croupier.policy.decision import Circumstances, decide_baseline
from croupier.policy.exploration import EpsilonGreedy, SquareCB
from croupier.policy.generation import cold_start
from croupier.policy.sampling import draw_key
from tests.offline.logs import EPOCH_US
from tests.offline.shapes import SHAPES, log_of
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from collections.abc import Callable

ROW = 17


@pytest.fixture(scope="module")
def world() -> World:
    return World(random_world(3, 4, seed=1).rewards, excluded=(None, 1, None))


@pytest.fixture(scope="module")
def log(world: World) -> pl.DataFrame:
    """Decisions of three generations and of the baseline."""
    policies = [
        cold_start("shop"),
        world.generation(1, EpsilonGreedy(epsilon=0.3)),
        world.generation(2, SquareCB(gamma_scale=30.0)),
    ]
    logs = [world.log(policy, 300, seed) for seed, policy in enumerate(policies)]
    baseline = [
        decide_baseline(
            world.request(0), Circumstances(f"b{number}", EPOCH_US), loop="shop", generation=2
        )
        for number in range(20)
    ]
    rows = pl.DataFrame(
        [decision_row(each, 1000 + number) for number, each in enumerate(baseline)],
        schema=SCHEMAS["decisions"],
    )
    return pl.concat([*(each.select(SCHEMAS["decisions"].names()) for each in logs), rows])


def is_sound(found: PropensityAudit) -> bool:
    assert found.violations is not None
    return found.violations.rows == 0 and found.replay_mismatches == 0


def altered(log: pl.DataFrame, **values: Any) -> pl.DataFrame:
    """The log with other values in one row."""
    rows = log.to_dicts()
    rows[ROW] |= values
    return pl.DataFrame(rows, schema=log.schema)


def test_a_clean_log_is_sound(log: pl.DataFrame) -> None:
    """The chi-square tests' false alarm: 1e-3 each, with seeds that are fixed."""
    steps: list[tuple[int, int]] = []
    found = audit_propensities(log, lambda done, total: steps.append((done, total)))
    assert is_sound(found)
    assert found.decisions == found.replayed == 920
    assert found.without_pmf == 0
    assert found.test is not None
    assert found.test.n == 920
    assert min(found.test.p_value, found.test.bin_p_value) > 1e-3
    assert [each.generation for each in found.test.generations] == [0, 1, 2]
    assert steps[-1] == (920, 920)


ALTERATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "pmf entry": lambda row: {"pmf": [row["pmf"][0] + 1e-6, *row["pmf"][1:]]},
    "pmf order": lambda row: {"pmf": row["pmf"][1:] + row["pmf"][:1]},
    "pmf not finite": lambda row: {"pmf": [float("nan"), *row["pmf"][1:]]},
    "pmf negative": lambda _: {"pmf": [-0.5, 1.5, 0.0, 0.0]},
    "pmf of zeros": lambda _: {"pmf": [0.0] * 4},
    "pmf too short": lambda row: {"pmf": row["pmf"][:-1]},
    "pmf too short but a distribution": lambda _: {"pmf": [0.2, 0.3, 0.5]},
    "pmf empty": lambda _: {"pmf": []},
    "propensity": lambda row: {"propensity": row["propensity"] * (1 + 1e-6)},
    "propensity of zero": lambda _: {"propensity": 0.0},
    "chosen": lambda row: {"chosen": (row["chosen"] + 1) % 4},
    "chosen, with its propensity": lambda row: {
        "chosen": (row["chosen"] + 1) % 4,
        "propensity": row["pmf"][(row["chosen"] + 1) % 4],
    },
    "chosen out of range": lambda _: {"chosen": 4},
    "chosen negative": lambda _: {"chosen": -1},
    "draw key": lambda _: {"draw_key": "not a key"},
}


@pytest.mark.parametrize("which", ALTERATIONS)
@pytest.mark.parametrize("greedy", [False, True])
def test_one_altered_row_is_found(log: pl.DataFrame, which: str, *, greedy: bool) -> None:
    """In a uniform row, and in one with four different probabilities; the audit itself goes on."""
    log = log[600:] if greedy else log
    row = log.row(ROW, named=True)
    found = audit_propensities(altered(log, **ALTERATIONS[which](row)))
    if which == "pmf order" and not greedy:
        # Equal probabilities in another order are the same pmf.
        assert is_sound(found)
        return
    assert not is_sound(found)
    assert found.test is not None
    assert found.test.n >= len(log) - 1


def test_a_key_that_was_exchanged_is_found(log: pl.DataFrame) -> None:
    """Of a uniform choice among four, an exchange is seen with the key of another action."""
    row = log.row(ROW, named=True)
    mismatches = [
        audit_propensities(
            altered(log, draw_key=draw_key("shop", 0, f"other {number}"))
        ).replay_mismatches
        for number in range(12)
    ]
    assert set(mismatches) == {0, 1}
    assert row["draw_key"] == draw_key("shop", 0, row["decision_id"])


def test_an_imported_log_can_t_be_audited(log: pl.DataFrame) -> None:
    imported = log.with_columns(pmf=pl.lit(None, dtype=pl.List(pl.Float64)), draw_key=pl.lit(""))
    found = audit_propensities(imported)
    assert (found.decisions, found.without_pmf, found.replayed) == (920, 920, 0)
    assert found.violations is None
    assert found.test is None
    mixed = audit_propensities(pl.concat([imported, log]))
    assert (mixed.decisions, mixed.without_pmf, mixed.replayed) == (1840, 920, 920)
    assert is_sound(mixed)


def test_a_log_without_decisions_is_no_error(log: pl.DataFrame) -> None:
    found = audit_propensities(log.clear())
    assert (found.decisions, found.without_pmf, found.test) == (0, 0, None)


def test_a_log_of_nothing_but_damage_is_no_error(log: pl.DataFrame) -> None:
    found = audit_propensities(log.with_columns(pmf=pl.lit([0.5, 0.0, 0.0, 0.0])))
    assert found.violations is not None
    assert found.violations.bad_sum == 920
    assert found.test is not None
    assert found.test.n == 0


def test_the_draws_test_doesn_t_depend_on_the_order_of_actions(log: pl.DataFrame) -> None:
    """Actions are told apart by their ids, wherever they stand in the request."""
    turned = log.with_columns(
        pmf=pl.col("pmf").list.reverse(),
        action_ids=pl.col("action_ids").list.reverse(),
        chosen=pl.col("pmf").list.len().cast(pl.Int64) - 1 - pl.col("chosen"),
    )
    one, two = draws_test(log), draws_test(turned)
    assert one.statistic == pytest.approx(two.statistic)
    assert one.dof == two.dof


@pytest.fixture(scope="module")
def shapes(world: World) -> pl.DataFrame:
    """Rankings, slots and slates of 2 and 3, drawn; slates of the baseline."""
    policy = world.generation(1, EpsilonGreedy(epsilon=0.4))
    drawn = [log_of(world, policy, shape, 200, seed=7) for shape in SHAPES]
    larger = log_of(world, policy, "slate", 200, seed=8, size=3)
    baseline = log_of(world, policy, "slate", 50, seed=9, mode="apprentice")
    return pl.concat([*drawn, larger, baseline])


def test_every_shape_is_audited(shapes: pl.DataFrame) -> None:
    """All rows are replayed; of a slate one place is tested. False alarm: 1e-3 a test."""
    found = audit_propensities(shapes)
    assert is_sound(found)
    assert found.decisions == found.replayed == len(shapes) == 4 * 400 + 200 + 100
    assert found.test is not None
    assert found.test.n == 400 + 400 + 200 + 200 + 100
    assert min(found.test.p_value, found.test.bin_p_value) > 1e-3


@pytest.mark.parametrize(
    "changed",
    [
        {"slot": "1"},
        {"slot": "2"},
        {"slot": "top"},
        {"slot": None},
        {"slate_size": None},
        {"slate_size": 3},
        {"slate_size": 5},
        {"draw_key": "not a key"},
        {"draw_key": draw_key("shop", 1, "another")},
        {"draw_key": "f" * 17},
        {"pmf": [0.7, 0.1, 0.1, 0.1]},
        {"pmf": [0.5, 0.5, 0.0, 0.0]},
        {"chosen": 3},
    ],
    ids=str,
)
def test_one_altered_place_of_a_slate_is_found(
    shapes: pl.DataFrame, changed: dict[str, Any]
) -> None:
    """Of a first place, in which another action than the last was put."""
    slates = shapes.filter((pl.col("slate_size") == 2) & (pl.col("context").str.contains("x0")))
    first = slates.with_row_index().filter(
        (pl.col("slot") == "0") & (pl.col("chosen") == 2) & (pl.col("index") > ROW)
    )
    found = slates[first["index"][0] - ROW :]
    row = found.row(ROW, named=True)
    assert (row["slot"], row["chosen"]) == ("0", 2)
    assert is_sound(audit_propensities(found))
    assert not is_sound(audit_propensities(altered(found, **changed)))


def p_values(world: World, *, all_places: bool) -> list[float]:
    """Of the draws tests of 60 small logs of slates of 2 from 4, of two policies."""
    found = []
    for seed in range(60):
        policy = world.generation(1, EpsilonGreedy(epsilon=0.8))
        slates = log_of(world, policy, "slate", 150, seed)
        if all_places:
            slates = slates.with_columns(slate_size=pl.lit(None, dtype=pl.Int64))
        found.append(draws_test(slates).p_value)
    return found


def test_the_draws_test_of_slates_is_calibrated(world: World) -> None:
    """P-values are even if one place of a slate is tested, and would not be with both.

    False alarm: 1e-3, with seeds that are fixed.
    """
    assert stats.kstest(p_values(world, all_places=False), "uniform").pvalue > 1e-3
    assert stats.kstest(p_values(world, all_places=True), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_from_another_pmf_than_the_logged_one_are_found(world: World, shape: Any) -> None:
    """The logged pmf is mixed with the even one over what it can draw, by a half."""
    policy = world.generation(1, EpsilonGreedy(epsilon=0.2))
    log = log_of(world, policy, shape, 600, seed=3)
    pmfs = [np.array(each) for each in log["pmf"].to_list()]
    mixed = [0.5 * each + 0.5 * (each > 0.0) / np.count_nonzero(each) for each in pmfs]
    wrong = log.with_columns(pmf=pl.Series([each.tolist() for each in mixed]))
    assert draws_test(wrong).combined_p_value < 1e-6
    assert draws_test(log).combined_p_value > 1e-3
