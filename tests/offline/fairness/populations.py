"""Interactions of people in groups, made in bulk: what is true of every group is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.offline.lake import SCHEMAS
from croupier.offline.rewards import fold_of
from tests.offline.logs import EPOCH_US

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ACTIONS = ("a0", "a1", "a2")


def interactions(
    audit: Mapping[str, Sequence[str | None]],
    pmf: NDArray[np.float64],
    reward: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    generation: int | NDArray[np.int64] = 1,
    context: Sequence[str] | None = None,
    keep_prob: NDArray[np.float64] | None = None,
    days: int = 1,
) -> pl.DataFrame:
    """Rows of the interactions table; the action is drawn from the pmf.

    Parameters
    ----------
    audit
        Attributes by name, n each; None leaves one out.
    pmf
        Shape (n, K).
    reward
        Expected reward of every action, shape (n, K), in [0, 1]; rewards are 0 or 1.
    rng
        Draws.
    generation
        Of all, or of each, shape (n,).
    context
        JSON; an empty object unless given.
    keep_prob
        Shape (n,).
    days
        Over which they are spread.
    """
    n, count = pmf.shape
    past = (rng.random((n, 1)) > np.cumsum(pmf, axis=1)).sum(axis=1)
    chosen = np.minimum(past, count - 1)
    names = [f"a{each}" for each in range(count)]
    each = np.arange(n)
    told = [
        msgspec.json.encode(
            {name: one[row] for name, one in audit.items() if one[row] is not None}
        ).decode()
        for row in range(n)
    ]
    ids = [f"d{rng.integers(1 << 40)}-{row}" for row in range(n)]
    ts = EPOCH_US + each * (days * 86_400_000_000 // max(n, 1))
    columns = {
        "loop": pl.Series(["shop"]).sample(n, with_replacement=True),
        "offset": pl.Series(each + 1),
        "decision_id": pl.Series(ids),
        "ts": pl.Series(ts).cast(pl.Datetime("us", "UTC")),
        "generation": pl.Series(np.broadcast_to(generation, n).astype(np.int64)),
        "context": pl.Series(["{}"] * n if context is None else list(context)),
        "actions": pl.Series(["[" + ",".join(f'{{"id":"{name}"}}' for name in names) + "]"] * n),
        "action_ids": pl.Series([names] * n),
        "excluded": pl.Series([[]] * n, dtype=pl.List(pl.String)),
        "pmf": pl.Series(pmf.tolist(), dtype=pl.List(pl.Float64)),
        "chosen": pl.Series(chosen),
        "action_id": pl.Series([names[place] for place in chosen]),
        "propensity": pl.Series(pmf[each, chosen]),
        "keep_prob": pl.Series(np.ones(n) if keep_prob is None else keep_prob),
        "audit": pl.Series(told),
        "draw_key": pl.Series([""] * n),
        "reward": pl.Series((rng.random(n) < reward[each, chosen]).astype(np.float64)),
        "fold": pl.Series([fold_of(one) for one in ids]),
    }
    frame = pl.DataFrame(columns).with_columns(date=pl.col("ts").dt.date())
    missing = [
        pl.lit(None, dtype=kind).alias(name)
        for name, kind in SCHEMAS["interactions"].items()
        if name not in frame.columns
    ]
    return (
        frame.with_columns(missing)
        .select(SCHEMAS["interactions"].names())
        .cast(
            dict(SCHEMAS["interactions"])  # type: ignore[arg-type]
        )
    )
