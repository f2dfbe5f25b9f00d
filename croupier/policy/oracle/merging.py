"""Merging what learners have learned apart from each other, from a common start.

Vowpal Wabbit's own rule, that of its model deltas: every weight moves by the mean of the learners'
moves, each counted by the squared gradients that the learner has added to that weight, so that who
has seen a feature decides, and who hasn't has no say. With w0 and g0 a weight and its sum of
squared gradients at the start, and d_i = w_i - w0 and a_i = g_i - g0 those of learner i,
``w = w0 + Σ a_i d_i / Σ a_i``; the sums of squared gradients themselves, and the scales that
features are normalized by, are merged in the same way.

It is done on the numbers themselves: ``vowpal_wabbit_next``'s ``merge_deltas`` and ``apply_delta``
come to the same, but refuse tables of any size other than 2**18.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.oracle.vowpal_wabbit import (
    BanditLearner,
    RegressionExample,
    lesson_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from croupier.policy.encoding import FeatureEncoder
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("merged", "teach")

_SQUARES = 1


def teach(learner: BanditLearner, encoder: FeatureEncoder, rows: Iterable[TrainingRow]) -> None:
    """Have a learner learn from interactions, in their order.

    Raises
    ------
    InvalidInputError
        If a row's chosen index, propensity, reward or weight can't be.
    """
    slate = RegressionExample()
    for row in rows:
        learner.learn(lesson_of(learner.config, encoder, row, slate), row.weight)


def merged(start: BanditLearner, learned: Sequence[BanditLearner]) -> BanditLearner:
    """One learner for several, as if it had learned what all of them have.

    It is the one that has learned most, with other numbers: what Vowpal Wabbit keeps besides those
    of the weights, such as the range of the costs and the mean scale of all features, is that
    learner's, as nobody else can set it. It matters to what is learned from there on alone.

    Parameters
    ----------
    start
        Where all of them have begun; stays as it is.
    learned
        At least one; they must not be used any more.
    """
    before = start.numbers().astype(np.float64)
    moves, squares = np.zeros_like(before), np.zeros(len(before))
    for each in learned:
        change = each.numbers() - before
        moves += change * change[:, _SQUARES, None]
        squares += change[:, _SQUARES]
    moved = squares > 0.0
    before[moved] += moves[moved] / squares[moved, None]
    counts = np.sum([np.subtract(each.counts, start.counts) for each in learned], axis=0)
    most = max(learned, key=lambda each: each.counts)
    most.numbers()[:] = before
    most.counts = (start.counts[0] + int(counts[0]), start.counts[1] + int(counts[1]))
    return most
