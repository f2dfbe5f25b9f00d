"""How a loop's oracle is trained: on which rows, how they count, and what is done afterwards."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec

__all__ = ("Calibration", "Corrective", "TrainingConfig", "Weighting")

Weighting: TypeAlias = Literal["none", "ips", "mtr", "trajectory", "advantage"]
Calibration: TypeAlias = Literal["none", "isotonic", "platt"]


class Corrective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a generation is tilted towards actions of which the log has too few.

    See :func:`~croupier.offline.corrective.corrective_tilt`.

    Attributes
    ----------
    kl
        What a nat of relative entropy to the plain policy costs, λ in [0.01, 100]: the smaller, the
        further it is tilted. A share that is off by d in the log is off by about ``-d / kl`` in
        what comes next, so ``kl`` is at its best near the size of that, relative to the log. No
        action becomes more than ``1 + 1 / kl`` times as probable relative to one that keeps its
        weight.
    clip
        ε in (0, 1): a logged action is made less probable only as long as it keeps at least
        ``1 - clip`` of its probability.
    max_kl
        Most of the mean relative entropy, in nats, positive.
    """

    kl: float = 0.3
    clip: float = 0.3
    max_kl: float = 0.05

    def __post_init__(self) -> None:
        ranges = {
            "kl": (0.01 <= self.kl <= 100.0, "in [0.01, 100]"),
            "clip": (0.0 < self.clip < 1.0, "in (0, 1)"),
            "max_kl": (0.0 < self.max_kl < math.inf, "positive and finite"),
        }
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is particular to a loop's training, beside its oracle.

    Attributes
    ----------
    weighting
        How rows count, see :func:`~croupier.offline.weighting.training_weights`: ``none``;
        ``ips``, by ``min(1 / propensity, largest_weight)``; ``mtr``, by ``1 / propensity`` over the
        mean number of actions, as Vowpal Wabbit's regression of that name does; ``trajectory`` and
        ``advantage``, the more the better a request turned out. All but ``none`` are multiplied by
        what a row of a subsampled log counts for.
    largest_weight
        Where ``ips`` is clipped, at least 1.
    temperature
        Of ``trajectory`` and ``advantage``, positive: the best row counts ``exp(1 / temperature)``
        times as much as the worst.
    class_weight
        ``balanced`` lets rewards of 1 count as much in sum as those of 0. The estimates are
        corrected for it.
    calibration
        A monotone curve from estimates to rewards, fitted on rows held out for it: ``isotonic``, or
        ``platt`` for rewards within [0, 1].
    calibration_share
        Share of the learner's rows, in (0, 0.5], that the curve is fitted on.
    holdout
        Share of the learner's rows, in [0, 0.5], that only measure what was learned, where there
        are 1000 or more.
    window
        How far back from the latest interaction rows are learned from: a duration; None for all.
    window_generations
        Under how many of the latest generations that have served; None for all.
    start
        ``fresh`` learns from all rows of the window; ``champion`` teaches the champion's oracle
        what has been joined since it was trained, where it can be taught and learned from the same
        folds.
    max_total_variation
        How far, in (0, 1], the mean total variation lets a generation go from the champion, see
        :func:`~croupier.offline.damping.damped`; None to go all the way. Needs an oracle that is
        linear in its weights (``auto``, ``ridge``, ``sklearn``, ``vowpal_wabbit``), a fresh start,
        and neither class weights nor calibration.
    memory
        ``window`` lets all rows of the window count the same, ``adaptive`` the older ones less, as
        fast as is measured to be right, see :mod:`croupier.offline.memory`. Needs a fresh start.
    learn_from_slices
        Whether decisions within a uniform slice are learned from. Where they are not, they judge,
        all of them.
    corrective
        Plays actions more often of which the log has fewer than the generation itself would have
        drawn; None to play as exploration says. Needs a memory of more than one generation, and
        can't be had with `max_total_variation`.
    """

    weighting: Weighting = "none"
    largest_weight: float = 100.0
    temperature: float = 0.1
    class_weight: Literal["none", "balanced"] = "none"
    calibration: Calibration = "none"
    calibration_share: float = 0.2
    holdout: float = 0.1
    window: str | None = None
    window_generations: int | None = None
    start: Literal["fresh", "champion"] = "fresh"
    max_total_variation: float | None = None
    corrective: Corrective | None = None
    memory: Literal["window", "adaptive"] = "window"
    learn_from_slices: bool = True

    def __post_init__(self) -> None:
        ranges = {
            "largest_weight": (1.0 <= self.largest_weight < math.inf, "at least 1"),
            "temperature": (0.01 <= self.temperature < math.inf, "at least 0.01"),
            "calibration_share": (0.0 < self.calibration_share <= 0.5, "in (0, 0.5]"),
            "holdout": (0.0 <= self.holdout <= 0.5, "in [0, 0.5]"),
            "window_generations": (
                self.window_generations is None or self.window_generations >= 1,
                "at least 1",
            ),
            "max_total_variation": (
                self.max_total_variation is None or 0.0 < self.max_total_variation <= 1.0,
                "in (0, 1]",
            ),
        }
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")
        bounded = self.window is not None or self.window_generations is not None
        forgets = bounded or self.memory != "window"
        if self.start == "champion" and (forgets or self.class_weight != "none"):
            raise ValueError(
                'start must be "fresh" with a window, an adaptive memory or class weights: what '
                "the champion has learned already can't be forgotten or weighted anew"
            )
        other = (
            self.start == "champion" or self.class_weight != "none" or self.calibration != "none"
        )
        if self.max_total_variation is not None and other:
            raise ValueError(
                'max_total_variation needs start "fresh" and neither class weights nor a '
                "calibration: what lies between two oracles has learned nothing that could be gone "
                "on from, and estimates that went through different curves have nothing between"
            )
        if self.corrective is not None and self.window_generations == 1:
            raise ValueError(
                "corrective needs window_generations to be at least 2 or none: what is logged next "
                "makes up for nothing where everything before is forgotten"
            )
        if self.corrective is not None and self.max_total_variation is not None:
            raise ValueError(
                "corrective must be none with max_total_variation: a tilt goes further from the "
                "champion than damping lets a generation go"
            )

    @property
    def needs_champion(self) -> bool:
        """Whether training looks at the champion's oracle."""
        return self.start == "champion" or self.max_total_variation is not None
