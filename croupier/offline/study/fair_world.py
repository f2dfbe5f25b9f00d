"""Worlds of the fairness study: who comes, with which labels, and what auditors think of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.auditors import Metric, panel_distance, required_votes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("WORLDS", "FairWorld", "mortgages_world", "planted_world")

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

_AUDITORS = 7
_PANEL = 5
_GAMMA = 0.4
_ALPHA = 0.1


@dataclass(frozen=True, slots=True)
class FairWorld:
    """A finite set of contexts from which people come, with replacement.

    Attributes
    ----------
    contexts
        The first column all ones, shape (N, d).
    group
        Column that group parity is about.
    person_context, person_label
        Context and label of everybody there is, shape (P,); None of the label where it is drawn
        anew each time someone comes.
    positive
        Chance of a label of 1 in each context, shape (N,).
    panels
        What each possible panel allows each ordered pair of contexts to differ, shape (p, N, N).
    strictest
        The least that any of them does, shape (N, N).
    alpha
        Slack of the audit.
    """

    contexts: FloatArray
    group: int
    person_context: IntArray
    person_label: FloatArray | None
    positive: FloatArray
    panels: NDArray[np.float32]
    strictest: FloatArray
    alpha: float = _ALPHA

    def come(self, count: int, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Contexts, by their rows, and labels of the next people, shape (count,) each."""
        people = rng.integers(self.person_context.size, size=count)
        who = self.person_context[people]
        if self.person_label is None:
            return who, (rng.random(count) < self.positive[who]).astype(np.float64)
        return who, self.person_label[people]


def planted_world(seed: int, *, size: int = 300) -> FairWorld:
    """Two merits, a trait and a group all predict the label; the auditors know of the merits alone.

    Parameters
    ----------
    seed
        Of all that is random in it.
    size
        N, at least 20.
    """
    if size < 20:
        raise InvalidInputError("size", f"expected at least 20 contexts, got {size}")
    rng = np.random.default_rng((seed, 1))
    merits = rng.normal(size=(size, 2))
    group = (rng.random(size) < 0.4).astype(np.float64)
    trait = rng.normal(size=size) - group
    logit = 2.0 * merits[:, 0] + merits[:, 1] + trait + 0.3
    panels, strictest = _panels(merits, np.array([0.35, 0.2]), rng)
    return FairWorld(
        np.column_stack([np.ones(size), merits, trait, group]),
        4,
        np.arange(size),
        None,
        1.0 / (1.0 + np.exp(-logit)),
        panels,
        strictest,
    )


def mortgages_world(seed: int) -> FairWorld:
    """Who owned a home in 1960, of 214,144 men of the United States' census (Fetter, 2013).

    Contexts are the 88 combinations that occur of cohort (of 7 quarters), service, race and birth
    in the South; the auditors know of cohort and service alone. Everybody comes with the label he
    has.

    Parameters
    ----------
    seed
        Of the auditors.

    Raises
    ------
    InvalidInputError
        If the package causaldata, which holds the data, isn't installed.
    """
    try:
        from causaldata import mortgages  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise InvalidInputError(
            "world", "expected the package causaldata to be installed for mortgages"
        ) from error
    men = pl.from_pandas(mortgages.load_pandas().data).select(
        cohort=((pl.col("qob_minus_kw") - pl.col("qob_minus_kw").min()) / 7.0).floor() / 11.0,
        served=pl.col("vet_wwko").cast(pl.Float64),
        south=pl.col("bpl").is_in(_SOUTH).cast(pl.Float64),
        nonwhite=pl.col("nonwhite").cast(pl.Float64),
        owns=pl.col("home_ownership").cast(pl.Float64),
    )
    features = ["cohort", "served", "south", "nonwhite"]
    cells = men.group_by(features).agg(pl.col("owns").mean()).sort(features)
    numbered = men.join(cells.drop("owns").with_row_index("cell"), on=features)
    contexts = np.column_stack([np.ones(len(cells)), cells.select(features).to_numpy()])
    rng = np.random.default_rng((seed, 2))
    panels, strictest = _panels(contexts[:, 1:3], np.array([1.0, 0.3]), rng)
    return FairWorld(
        contexts,
        4,
        numbered["cell"].to_numpy().astype(np.int64),
        numbered["owns"].to_numpy(),
        cells["owns"].to_numpy(),
        panels,
        strictest,
    )


WORLDS: dict[str, Callable[[int], FairWorld]] = {
    "planted": planted_world,
    "mortgages": mortgages_world,
}
"""By name; each is made from a seed."""

_SOUTH = [
    "Alabama",
    "Arkansas",
    "Delaware",
    "Florida",
    "Georgia",
    "Kentucky",
    "Louisiana",
    "Maryland",
    "Mississippi",
    "Oklahoma",
    "Tennessee",
    "Texas",
    "Virginia",
    "North Carolina",
    "South Carolina",
    "West Virginia",
    "District of Columbia",
]


def _panels(
    places: FloatArray, weights: FloatArray, rng: np.random.Generator
) -> tuple[NDArray[np.float32], FloatArray]:
    """What every panel of five of seven auditors allows, and the least that any of them does.

    The k-th smallest distance of a panel is never below the k-th smallest of all auditors, and that
    of a panel with the k strictest among them is just that.
    """
    first, second = np.indices((len(places), len(places))).reshape(2, -1)
    distances = np.stack(
        [
            Metric(places * weights * rng.uniform(0.7, 1.4, weights.size)).distances(first, second)
            for _ in range(_AUDITORS)
        ]
    ).reshape(_AUDITORS, len(places), -1)
    panels = [
        panel_distance(distances[list(members)], _GAMMA).astype(np.float32)
        for members in combinations(range(_AUDITORS), _PANEL)
    ]
    strictest = np.sort(distances, axis=0)[required_votes(_GAMMA, _PANEL) - 1]
    return np.stack(panels), strictest
