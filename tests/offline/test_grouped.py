"""Which group a row is in."""

from __future__ import annotations

import polars as pl
import pytest

from croupier.offline.grouped import MOST_LEVELS, group_by
from croupier.policy.errors import InvalidInputError
from croupier.policy.generation import cold_start
from tests.offline.worlds import random_world


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    rows = random_world(3, 4, seed=3).log(cold_start("shop"), 300, seed=5)
    contexts = [
        f'{{"x":"x{row % 3}","user":{{"age":{row % 5},"tags":[1]}},"n":{row}}}'
        for row in range(300)
    ]
    audits = ["{}" if row % 4 == 0 else f'{{"sex":"{row % 2}"}}' for row in range(300)]
    return rows.with_columns(context=pl.Series(contexts), audit=pl.Series(audits))


def test_categories_by_their_number_of_rows(log: pl.DataFrame) -> None:
    uneven = log.filter(~((pl.int_range(pl.len()) % 3 == 2) & (pl.int_range(pl.len()) > 99)))
    found = group_by(uneven, "x")
    assert found.keys == ("x0", "x1", "x2")
    assert [int(rows.sum()) for _, rows in found.parts()] == [100, 100, 33]
    assert group_by(log, "context.user.age").keys == ("0", "1", "2", "3", "4")


def test_an_audit_attribute_and_those_who_have_none(log: pl.DataFrame) -> None:
    found = group_by(log, "audit.sex")
    assert {key: int(rows.sum()) for key, rows in found.parts()} == {
        "1": 150,
        "(none)": 75,
        "0": 75,
    }
    # No context has it, so it is looked for in the audit.
    assert group_by(log, "sex").codes.tolist() == found.codes.tolist()


def test_the_rest_is_taken_together(log: pl.DataFrame) -> None:
    found = group_by(log, "user.age", most=2)
    assert found.keys == ("0", "1", "(3 others)")
    assert [int(rows.sum()) for _, rows in found.parts()] == [60, 60, 180]


def test_days_and_generations(log: pl.DataFrame) -> None:
    found = group_by(log, "day")
    assert found.keys == tuple(sorted(str(each) for each in log["date"].unique()))
    assert group_by(log, "generation").keys == ("0",)
    unknown = group_by(log.with_columns(generation=pl.lit(None, dtype=pl.Int64)), "generation")
    assert unknown.keys == ("(none)",)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("y", "by: expected day, generation, or what some context or audit has, got 'y'"),
        ("user.tags", "by: expected one value at 'user.tags', got a list"),
        ("user", "by: expected one value at 'user', got an object"),
        ("n", f"by: expected at most {MOST_LEVELS} values of 'n', got 300"),
    ],
)
def test_what_is_no_category_is_refused(log: pl.DataFrame, by: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        group_by(log, by)
    assert str(refused.value) == said
