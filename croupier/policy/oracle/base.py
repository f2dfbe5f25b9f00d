"""What every oracle learns from, offers and is configured by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action, Features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.encoding import EncoderConfig
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = (
    "Dampable",
    "OnlineOracle",
    "Oracle",
    "OracleConfigBase",
    "TrainingRow",
    "check_rows",
    "checked",
    "not_online",
    "require",
)


class TrainingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One interaction, as much of it as an oracle learns from.

    Attributes
    ----------
    context, actions
        The request.
    chosen
        Index of the action that was drawn.
    propensity
        The probability with which it was drawn, in (0, 1].
    reward
        What came of it.
    weight
        Importance of the row, positive: how many rows like it it counts for. In a subsampled log
        it is proportional to ``1 / keep_prob``.
    """

    context: Features
    actions: list[Action]
    chosen: int
    propensity: float
    reward: float
    weight: float = 1.0


class Oracle(Protocol):
    """A regression model of the reward; scikit-learn's conventions, on decisions."""

    def fit(self, rows: Sequence[TrainingRow]) -> Oracle:
        """Learn from interactions and return self."""
        ...

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        """Reward estimate of every action, shape (K,)."""
        ...

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        """Reward estimates with as much of their uncertainty as an exploration needs."""
        ...

    def save(self, directory: Path) -> None:
        """Write everything that :func:`load_oracle` needs into an existing directory."""
        ...


class OnlineOracle(Oracle, Protocol):
    """An oracle that can be taught one interaction after the other.

    One that knows nothing yet comes from :func:`make_online_oracle`, or from ``partial_fit([])``:
    every weight is 0 until there are rows, and so is every estimate, or 1/2 of a classifier.
    """

    def partial_fit(self, rows: Sequence[TrainingRow]) -> OnlineOracle:
        """Learn from further interactions, perhaps none, and return self."""
        ...


@runtime_checkable
class Dampable(Oracle, Protocol):
    """An oracle from which there is a way to another one of its kind."""

    def goes_with(self, other: Any) -> bool:
        """Whether both are fitted and of one kind and configuration, so that there is a way."""
        ...

    def towards(self, other: Any, step: float) -> Dampable:
        """The oracle on the way from this one to another, before any calibration.

        Parameters
        ----------
        other
            That :meth:`goes_with` this one.
        step
            How far to go, in [0, 1]; means are linear in it, before any link, and errors those of
            the other one.

        Returns
        -------
        between
            That can be served and is not to be taught further.
        """
        ...


class OracleConfigBase(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What the configurations of all oracles tell of them."""

    @property
    def offers(self) -> Uncertainty:
        """Fields of :class:`Estimates` that the oracle fills in beside the mean."""
        return frozenset()

    @property
    def learns_online(self) -> bool:
        """Whether the oracle has a ``partial_fit``."""
        return False

    @property
    def weighs_propensities(self) -> bool:
        """Whether learning corrects for the propensities by itself."""
        return False

    @property
    def can_be_damped(self) -> bool:
        """Whether the oracle is :class:`Dampable`."""
        return False

    @property
    def played_by(self) -> str | None:
        """Kind of the one exploration that plays what the oracle has learned; None if any does."""
        return None

    @property
    def encoder(self) -> EncoderConfig:
        """How features become indices."""
        raise NotImplementedError


def require(name: str, fine: bool, expected: str, value: float) -> None:  # noqa: FBT001
    """Refuse a parameter of a configuration, naming it and what was expected."""
    if not fine:
        raise ValueError(f"{name} must be {expected}, got {value}")


def check_rows(rows: Sequence[TrainingRow], *, some: bool = True) -> None:
    """Refuse what Vowpal Wabbit would learn nothing from without a word.

    Parameters
    ----------
    rows
        To be learned from.
    some
        Whether there must be at least one.

    Raises
    ------
    NotEnoughDataError
        If there are no rows.
    InvalidInputError
        If a row's chosen index, propensity, reward or weight can't be.
    """
    for _ in checked(rows, some=some):
        pass


def checked(rows: Sequence[TrainingRow], *, some: bool = True) -> Iterator[TrainingRow]:
    """The rows, each after it was checked as :func:`check_rows` does."""
    if some and not rows:
        raise NotEnoughDataError("there are no interactions to learn from")
    for position, row in enumerate(rows):
        # Rounding may take a propensity as far above 1 as a pmf's sum.
        if not (
            0 <= row.chosen < len(row.actions)
            and 0.0 < row.propensity <= 1.0 + 1e-9
            and math.isfinite(row.reward)
            and 0.0 < row.weight < math.inf
        ):
            raise _refusal(position, row)
        yield row


def not_online(why: str) -> GenerationError:
    """The error for an oracle that can't learn any further."""
    return GenerationError(f"the oracle can't learn online: {why}; fit it anew")


def _refusal(position: int, row: TrainingRow) -> InvalidInputError:
    """The error for a row that can't be, about the first field that is wrong."""
    checks = {
        "chosen": (0 <= row.chosen < len(row.actions), "the index of an action"),
        "propensity": (0.0 < row.propensity <= 1.0 + 1e-9, "a number in (0, 1]"),
        "reward": (math.isfinite(row.reward), "a finite number"),
        "weight": (0.0 < row.weight < math.inf, "a positive, finite number"),
    }
    name, expected = next((name, text) for name, (fine, text) in checks.items() if not fine)
    return InvalidInputError(
        f"rows[{position}].{name}", f"expected {expected}, got {getattr(row, name)!r}"
    )
