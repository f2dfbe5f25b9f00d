"""Groups: what is made of attributes, and that no number of a small group can be worked out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.fairness.groups import Cell, code_rows, shown_groups, suppressed
from croupier.policy.errors import InvalidInputError

ROWS = pl.DataFrame(
    {
        "context": ['{"user":{"country":"de"}}', "{}", '{"user":{"country":7}}', "{}"],
        "audit": ['{"gender":"f","age":30}', '{"gender":"m"}', None, '{"gender":null}'],
    }
)


def test_a_missing_value_is_a_group_of_its_own() -> None:
    coded = code_rows(ROWS, "gender")
    assert [coded.cells[code] for code in coded.codes] == [("f",), ("m",), ("(none)",), ("(none)",)]
    assert code_rows(ROWS, "audit.gender").cells == coded.cells
    of_context = code_rows(ROWS, "context.user.country")
    assert [of_context.cells[code] for code in of_context.codes] == [
        ("de",),
        ("(none)",),
        ("7",),
        ("(none)",),
    ]


def test_attributes_are_crossed() -> None:
    coded = code_rows(ROWS, "gender * age")
    assert [coded.cells[code] for code in coded.codes] == [
        ("f", "30"),
        ("m", "(none)"),
        ("(none)", "(none)"),
        ("(none)", "(none)"),
    ]


def test_what_is_no_category_is_refused() -> None:
    many = pl.DataFrame({"audit": [f'{{"id":{n}}}' for n in range(300)], "context": ["{}"] * 300})
    with pytest.raises(InvalidInputError, match="at most 200 values"):
        code_rows(many, "id")
    lists = pl.DataFrame({"audit": ['{"tags":[1]}'], "context": ["{}"]})
    with pytest.raises(InvalidInputError, match="expected one value"):
        code_rows(lists, "tags")


def test_a_small_group_takes_another_with_it() -> None:
    """Or it would be the total less the others."""
    counts: dict[Cell, int] = {("a",): 100, ("b",): 50, ("c",): 30, ("d",): 3}
    assert suppressed(counts, 20) == {("c",), ("d",)}
    # Two that are small together would be a small group too.
    counts = {("a",): 100, ("b",): 50, ("c",): 3, ("d",): 3}
    assert suppressed(counts, 20) == {("b",), ("c",), ("d",)}
    assert suppressed({("a",): 100, ("b",): 20}, 20) == set()
    assert suppressed({("a",): 3}, 20) == {("a",)}


def solvable(counts: dict[tuple[str, ...], int], hidden: set[tuple[str, ...]]) -> set[int]:
    """Hidden cells whose number follows from the shown ones and the totals of every line."""
    cells = sorted(counts)
    unknown = [cell for cell in cells if cell in hidden]
    lines = sorted({(axis, c[:axis] + c[axis + 1 :]) for c in cells for axis in range(len(c))})
    matrix = np.array(
        [[float(c[:axis] + c[axis + 1 :] == rest) for c in unknown] for axis, rest in lines]
    )
    if not unknown:
        return set()
    # A cell is known if its unit vector is a combination of the equations.
    rank = np.linalg.matrix_rank(matrix)
    return {
        place
        for place in range(len(unknown))
        if np.linalg.matrix_rank(np.vstack([matrix, np.eye(len(unknown))[place]])) == rank
    }


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=9))
def test_no_hidden_group_follows_from_the_total(sizes: list[int]) -> None:
    counts: dict[Cell, int] = {(f"g{place}",): size for place, size in enumerate(sizes)}
    hidden = suppressed(counts, 20)
    assert {cell for cell, size in counts.items() if size < 20} <= hidden
    alone = len(hidden) == 1 and len(counts) > 1
    assert not alone
    if hidden and len(hidden) < len(counts):
        assert sum(counts[cell] for cell in hidden) >= 20
        assert solvable(counts, hidden) == set()


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=12, max_size=12))
def test_no_line_of_a_crossed_table_gives_a_hidden_group_away(sizes: list[int]) -> None:
    counts: dict[Cell, int] = {
        (f"r{place // 4}", f"c{place % 4}"): size for place, size in enumerate(sizes) if size
    }
    hidden = suppressed(counts, 20)
    for axis in range(2):
        for name in {cell[axis] for cell in counts}:
            line = [cell for cell in counts if cell[axis] == name]
            inside = [cell for cell in line if cell in hidden]
            whole = len(inside) == len(line)
            assert not inside or whole or sum(counts[cell] for cell in inside) >= 20
            assert len(inside) != 1 or whole


def test_large_groups_are_shown_by_themselves_and_others_together() -> None:
    counts: dict[Cell, int] = {
        (name,): size for name, size in zip("abcdefg", range(100, 30, -10), strict=True)
    }
    shown = shown_groups(counts, least=20, most=3)
    assert list(shown.groups) == ["a", "b", "c", "(4 others)"]
    assert shown.groups["(4 others)"] == (("d",), ("e",), ("f",), ("g",))
    # One alone needs no company.
    assert list(shown_groups(counts, least=20, most=6).groups) == list("abcdefg")
    crossed = shown_groups({("f", "old"): 30, ("m", "old"): 40}, least=20, most=3)
    assert list(crossed.groups) == ["m × old", "f × old"]
