"""From a round to a contextual combinatorial semi-bandit, whose losses are known or estimated.

Every instance has two coordinates, "approve" with loss ``1 - y``, seen exactly where it was
approved, and "decline" with loss 1/2, always known. A hypothesis takes one of the two for each
instance. Since ``1[h ≠ y] = y + h (1 - 2y)``, the loss of what it takes is
``(1[h(x) ≠ y] - y + 1) / 2``: differences of losses are half of those of errors. A reported pair
adds two instances, the one who is approved too often with loss C/2 on "approve" and the one who is
approved too rarely with loss C/2 on "decline": ``C/2 (h(x_over) + 1 - h(x_under))``, which is half
of the price but for a constant. So the regret of a learner is half of its Lagrangian regret,
whatever it is compared with. There are 2k + 4 coordinates, k + 2 of which a hypothesis takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.policy.fairness.protocol import Feedback, Play

    FloatArray = NDArray[np.float64]

__all__ = ("DECLINE_LOSS", "SemiBanditLosses", "estimated_losses")

DECLINE_LOSS = 0.5
"""Of the coordinate "decline", whatever the label is."""


@dataclass(frozen=True, slots=True)
class SemiBanditLosses:
    """Losses of a round's coordinates.

    Attributes
    ----------
    places
        Whom each pair of coordinates is about: places in the round, shape (n,), n = k or k + 2.
    approve, decline
        Losses of the two coordinates, shape (n,) each.
    """

    places: NDArray[np.int64]
    approve: FloatArray
    decline: FloatArray

    @property
    def differences(self) -> FloatArray:
        """What approving costs more than declining, shape (n,)."""
        return self.approve - self.decline

    def of(self, decisions: NDArray[np.floating] | NDArray[np.bool_]) -> FloatArray:
        """Losses of hypotheses.

        Parameters
        ----------
        decisions
            What each of them decides on the round's instances, or with which probability it
            approves, shape (H, k).

        Returns
        -------
        losses
            Shape (H,).
        """
        # Those of a reported pair are instances of the round: their coordinates add up.
        total = np.zeros(decisions.shape[1])
        np.add.at(total, self.places, self.differences)
        return np.asarray(decisions @ total + self.decline.sum(), dtype=np.float64)


def estimated_losses(play: Play, feedback: Feedback, price: float) -> SemiBanditLosses:
    """Losses of a round's coordinates, unbiased where they weren't seen.

    "Approve" of instance i is estimated by ``(1 - y_i) [h_t(x_i) = 1] / q_i``; all else is known.

    Parameters
    ----------
    play
        Whose `inverse` stands for 1/q.
    feedback
        Labels, how the instances count, and the reported pair.
    price
        C ≥ 0.
    """
    instances = play.chances.size
    lost = np.where(play.approved, 1.0 - feedback.labels, 0.0)
    approve = np.where(play.approved, lost * play.inverse, 0.0)
    decline = np.full(instances, DECLINE_LOSS)
    if feedback.weights is not None:
        approve, decline = approve * feedback.weights, decline * feedback.weights
    places = np.arange(instances)
    pair = feedback.violation
    if pair is None:
        return SemiBanditLosses(places, approve, decline)
    return SemiBanditLosses(
        np.append(places, [pair.over, pair.under]),
        np.append(approve, [price / 2.0, 0.0]),
        np.append(decline, [0.0, price / 2.0]),
    )
