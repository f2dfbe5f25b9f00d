"""Damping: a generation goes from the champion's estimates towards its own only so far.

Where estimates set the propensities, and these what is learned from next, a policy can jump to and
fro between generations. The damped oracle's scores are ``(1 - s) f_champion + s f_challenger``, on
the scale that the oracle is linear on, with the largest step s in [0, 1] that keeps the mean total
variation between the two policies within a limit. For softmax that is the step regularised by the
relative entropy to the champion: its policy is proportional to ``champion^(1-s) · challenger^s``.
Inverse gap weights jump where the best action becomes another one, so that they can end short of
the limit, but not beyond it.

References
----------
Mei, Xiao, Szepesvári and Schuurmans, "On the Global Convergence Rates of Softmax Policy Gradient
Methods", ICML 2020, and Geist, Scherrer and Pietquin, "A Theory of Regularized Markov Decision
Processes", ICML 2019 (mirror descent: the regularised step is the geometric mixture).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from croupier.offline.interactions import logged_requests
from croupier.offline.stability import distances
from croupier.policy.oracle import Dampable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.exploration import Exploration
    from croupier.policy.generation import Generation

__all__ = ("damped",)

_log = logging.getLogger(__name__)

_REQUESTS = 1000
_HALVINGS = 12


def damped(
    champion: Generation,
    oracle: Dampable,
    exploration: Exploration,
    learned: pl.DataFrame,
    *,
    limit: float,
    training_rows: int,
    seed: int,
) -> tuple[Dampable, float]:
    """The oracle that goes as far from the champion as the limit allows.

    Parameters
    ----------
    champion
        That serves now. Nothing is damped where it is a cold start, or its oracle is of another
        kind or configuration, or one that chooses by size has become another kind, which is logged.
    oracle
        What was learned.
    exploration
        Of the new generation.
    learned
        Interactions, of whose requests up to 1000 are asked about; at least one.
    limit
        Of the mean total variation, in (0, 1]. Where the two policies are farther apart than that
        already with the champion's estimates, because exploration has changed, what exploration
        alone does is the limit.
    training_rows
        Behind the new generation.
    seed
        Of the choice of requests.

    Returns
    -------
    oracle
        To be served.
    step
        How far it goes, in [0, 1].
    """
    before = champion.oracle
    if before is None:
        return oracle, 1.0
    if not (isinstance(before, Dampable) and before.goes_with(oracle)):
        _log.warning(
            "generation %d isn't damped from: its oracle is of another kind", champion.number
        )
        return oracle, 1.0
    panel = _Panel(champion, exploration, _requests(learned, seed), training_rows)
    allowed = max(limit, panel.distance(before))
    if panel.distance(oracle) <= allowed:
        return oracle, 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        near = panel.distance(before.towards(oracle, middle)) <= allowed
        low, high = (middle, high) if near else (low, middle)
    return before.towards(oracle, low), low


def _requests(learned: pl.DataFrame, seed: int) -> list[LoggedRequest]:
    some = learned.sample(min(_REQUESTS, len(learned)), seed=seed)
    return list(logged_requests(some))


class _Panel:
    """The requests on which policies are compared with the champion."""

    def __init__(
        self,
        champion: Generation,
        exploration: Exploration,
        requests: Sequence[LoggedRequest],
        training_rows: int,
    ) -> None:
        self._exploration = exploration
        self._requests = requests
        self._rows = training_rows
        self._champion = [
            champion.pmf(each.context, each.actions, each.eligible, each.baseline)[0]
            for each in requests
        ]

    def distance(self, oracle: Dampable) -> float:
        """Mean total variation to the champion if an oracle were served."""
        return float(
            distances(self._champion, [self._pmf(oracle, x) for x in self._requests])[0].mean()
        )

    def _pmf(self, oracle: Dampable, request: LoggedRequest) -> NDArray[np.float64]:
        estimates = oracle.estimate(request.context, request.actions, self._exploration.wants)
        return self._exploration.pmf(
            estimates,
            request.eligible,
            training_rows=self._rows,
            baseline=request.baseline,
        )
