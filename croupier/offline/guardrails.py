"""Guardrails as they stand in tables: JSON in outcomes, names and rewards in interactions.

In between, every guardrail has a column of its own, in which null says that nobody told of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from croupier.offline.lake import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ("GUARDRAILS", "column_of", "guardrail_reward", "packed", "told", "unpacked")

GUARDRAILS = "guardrails"
"""The column of outcomes and of interactions."""


def column_of(name: str) -> str:
    """The column that a guardrail has of its own."""
    return f"guardrail_{name}"


def told(names: Sequence[str]) -> list[pl.Expr]:
    """What outcomes say of some guardrails, a column each; null where they don't."""
    if not names:
        return []
    said = pl.col(GUARDRAILS)
    # Most outcomes name none, and those are not read.
    fields = pl.Struct(dict.fromkeys(names, pl.Float64))
    read = pl.when(said != "{}").then(said).str.json_decode(fields)
    return [read.struct.field(name).alias(column_of(name)) for name in names]


def guardrail_reward(name: str) -> pl.Expr:
    """What interactions hold of a guardrail; null where it was not joined."""
    each = pl.element()
    named = each.filter(each.struct.field("name") == name).struct.field("reward")
    return pl.col(GUARDRAILS).list.eval(named).list.first()


def unpacked(names: Iterable[str]) -> list[pl.Expr]:
    """What interactions hold of some guardrails, a column each."""
    return [guardrail_reward(name).alias(column_of(name)) for name in names]


def packed(names: Sequence[str]) -> pl.Expr:
    """The column of interactions, of columns that have no nulls."""
    kind = SCHEMAS["interactions"][GUARDRAILS]
    if not names:
        return pl.lit(None, dtype=kind).alias(GUARDRAILS)
    each = [pl.struct(name=pl.lit(name), reward=column_of(name)) for name in names]
    # Through an array: a list of structs takes fifty times as long to make.
    return pl.concat_arr(each).arr.to_list().alias(GUARDRAILS)
