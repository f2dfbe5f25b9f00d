"""Interactions out of the lake, into files that other programs read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
from polars.io.plugins import register_io_source

from croupier.offline.guardrails import column_of, unpacked
from croupier.offline.interactions import current_frames
from croupier.offline.lake import SCHEMAS
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from croupier.offline.lake import Lake

__all__ = ("export_dsjson", "export_parquet", "interaction_frames")

_HELD = 50_000


def export_parquet(lake: Lake, loop: str, path: Path, *, guardrails: Sequence[str] = ()) -> int:
    """Write a loop's current interactions into one Parquet file, with the columns of the lake.

    Parameters
    ----------
    lake
        To read.
    loop
        Whose; gives the number of interactions.
    path
        To write to; what is there is replaced.
    guardrails
        Names of those that get a column ``guardrail_<name>`` each.
    """
    schema = SCHEMAS["interactions"] | {column_of(name): pl.Float64() for name in guardrails}

    def frames(*asked: object) -> Iterator[pl.DataFrame]:
        # Of a scan that is written as it is, polars asks for all columns and rows.
        assert asked[:3] == (None, None, None)
        found = interaction_frames(lake, loop)
        return (each.with_columns(unpacked(guardrails)) for each in found)

    # One after the other: a join of all of them would be held as a whole.
    rows = register_io_source(frames, schema=schema)
    rows.sink_parquet(path, compression="zstd", row_group_size=_HELD)
    count: int = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    return count


def export_dsjson(lake: Lake, loop: str, path: Path) -> int:
    """Write a loop's current interactions as Vowpal Wabbit's decision service logs them.

    One JSON object a line, as :func:`~croupier.control.dsjson.read_interactions` and
    ``vw --dsjson`` read it. The cost is the negative reward; `p` has the probabilities in the order
    of `a`, the chosen action first; ``pdrop`` is the share that the log left out.

    Parameters
    ----------
    lake, loop, path
        See above.

    Raises
    ------
    InvalidInputError
        If the log doesn't have the probabilities of all actions.
    """
    count = 0
    with path.open("wb") as file:
        for rows in interaction_frames(lake, loop):
            for row in rows.iter_rows(named=True):
                file.write(msgspec.json.encode(_line(row)) + b"\n")
            count += len(rows)
    return count


def interaction_frames(lake: Lake, loop: str, held: int = _HELD) -> Iterator[pl.DataFrame]:
    """A loop's current interactions, day by day, no more than `held` at once."""
    return current_frames(lake, lake.snapshot("interactions", loop).files, held=held)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    pmf, chosen = row["pmf"], row["chosen"]
    if pmf is None:
        raise InvalidInputError(
            "pmf", f"expected the probabilities of all actions of {row['decision_id']}"
        )
    order = [chosen, *(index for index in range(len(pmf)) if index != chosen)]
    actions = msgspec.json.decode(row["actions"])
    described = [{"_tag": each["id"]} | each.get("features", {}) for each in actions]
    known = row["reward_source"] != "default"
    observed = [{"v": row["reward"], "EventId": row["decision_id"]}] if known else []
    return {
        "_label_cost": -row["reward"],
        "_label_probability": pmf[chosen],
        "_label_Action": chosen + 1,
        "_labelIndex": chosen,
        "o": observed,
        "Timestamp": row["ts"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "Version": "1",
        "EventId": row["decision_id"],
        "a": [index + 1 for index in order],
        "c": msgspec.json.decode(row["context"]) | {"_multi": described},
        "p": [pmf[index] for index in order],
        "VWState": {"m": "croupier"},
        "pdrop": 1.0 - row["keep_prob"],
    }
