"""Which pairs a person should judge next: those whose judgement could change most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import scipy

from croupier.policy.fairness.auditors import gap_of
from croupier.policy.fairness.learned import DistanceLearner

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from croupier.offline.fairness.finder import Found
    from croupier.policy.fairness.auditors import FloatArray, NamedGap
    from croupier.policy.fairness.features import FeatureTable

__all__ = ("ProposedPair", "propose_pairs")

_POOL = 4000
_WEIGHED = 500
_TINY = 1e-12


class ProposedPair(msgspec.Struct, frozen=True, kw_only=True):
    """A pair to be judged.

    Attributes
    ----------
    first, second
        Rows of the two.
    gap
        How differently they are treated.
    distance
        How far apart they seem to be by what was judged so far.
    uncertainty
        Standard error of that distance.
    chance
        Chance that a judgement would decide otherwise whether the pair violates than that distance
        does, in [0, 1/2].
    """

    first: int
    second: int
    gap: float
    distance: float
    uncertainty: float
    chance: float


def propose_pairs(
    table: FeatureTable,
    treatments: FloatArray,
    learner: DistanceLearner | None,
    *,
    alpha: float,
    count: int,
    gap: NamedGap = "any",
    found: Found | None = None,
    judged: Collection[tuple[int, int]] = (),
    random_state: int = 0,
) -> list[ProposedPair]:
    """Choose pairs whose judgement is worth most to a learned distance.

    A pair can only violate if its gap g is above α, and does if its distance is below g - α. With
    the distance known as ``d ± σ``, a judgement decides otherwise than d does with a chance of
    ``Φ(-|d - (g - α)| / σ)``. What counts is how many pairs would be decided wrongly, and not only
    the one that is judged. So pairs are taken one by one by how much each lessens the variance of
    all distances, those at the boundary before all: with C the covariance of the weights and Δ the
    squares of a pair, by ``P(d_i < 1) / (noise² + Δ_i' C Δ_i)`` times
    ``Σ_j φ(z_j) / σ_j (Δ_j' C Δ_i)² / (4 d_j²)``, where ``z = (d - (g - α)) / σ``; a judgement that
    two are a distance of 1 apart or more teaches nothing. After each, C is what it will be once it
    is judged, which doesn't depend on the judgement (Bayesian least squares), so that the next one
    is another kind of pair. (Variance reduction, after Cohn, Ghahramani and Jordan, "Active
    Learning with Statistical Models", 1996.)

    Parameters
    ----------
    table
        Features of n individuals that distances may depend on.
    treatments
        Probabilities of K actions, shape (n, K).
    learner
        Fitted to what was judged so far, on the same features; None if nothing was.
    alpha
        Slack ≥ 0.
    count
        How many pairs, at least 1; fewer if there are no more.
    gap
        How treatments are compared.
    found
        Pairs that violate by the present panel, which are considered too.
    judged
        Pairs of rows that are not proposed again.
    random_state
        Seed of the pairs that are considered.
    """
    if learner is None:
        none = np.zeros((0, len(table.paths)))
        learner = DistanceLearner().fit(none, [], list(table.scales().values()))
    first, second = _pool(len(treatments), found, np.random.default_rng(random_state))
    gaps = gap_of(gap)(treatments[first], treatments[second])
    known = {(min(pair), max(pair)) for pair in judged}
    open_ = np.array(
        [(one, two) not in known for one, two in zip(first.tolist(), second.tolist(), strict=True)],
        dtype=np.bool_,
    )
    kept = open_ & (gaps > alpha)
    first, second, gaps = first[kept], second[kept], gaps[kept]
    squares = table.squares(first, second)
    distance = np.sqrt(np.maximum(squares @ learner.weights_**2, 0.0))
    covariance, noise = learner.covariance_.copy(), learner.noise_**2
    proposed: list[ProposedPair] = []
    left = np.ones(len(first), dtype=np.bool_)
    while len(proposed) < count and left.any():
        spread = squares @ covariance
        deviation = np.sqrt(np.einsum("ij,ij->i", spread, squares) + _TINY)
        error = deviation / (2.0 * np.maximum(distance, np.sqrt(deviation)))
        off = (distance - (gaps - alpha)) / error
        # On as many of them as are enough to tell.
        near = scipy.stats.norm.pdf(off[:_WEIGHED]) / error[:_WEIGHED]
        slope = error[:_WEIGHED] / deviation[:_WEIGHED]
        lessened = (near * slope**2) @ (squares[:_WEIGHED] @ spread.T) ** 2
        teaches = scipy.stats.norm.cdf((1.0 - distance) / error)
        worth = teaches * lessened / (noise + deviation**2)
        best = int(np.where(left, worth, -1.0).argmax())
        proposed.append(
            ProposedPair(
                first=int(first[best]),
                second=int(second[best]),
                gap=float(gaps[best]),
                distance=float(min(distance[best], 1.0)),
                uncertainty=float(error[best]),
                chance=float(scipy.stats.norm.cdf(-abs(off[best]))),
            )
        )
        left[best] = False
        towards = covariance @ squares[best]
        covariance -= np.outer(towards, towards) / (noise + squares[best] @ towards)
    return proposed


def _pool(
    n: int, found: Found | None, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random pairs and the worst that were found, each once, with the smaller row first."""
    drawn = rng.integers(n, size=(_POOL, 2))
    worst = [] if found is None else [[one, two] for one, two, _ in found.worst(_POOL // 4)]
    pairs = np.concatenate([drawn, np.array(worst, dtype=np.int64).reshape(-1, 2)])
    pairs = rng.permutation(np.unique(np.sort(pairs, axis=1), axis=0))
    apart = pairs[:, 0] != pairs[:, 1]
    return pairs[apart, 0], pairs[apart, 1]
