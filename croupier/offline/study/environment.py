"""What a study needs of an environment: requests, when answers are known, and the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from croupier.policy.requests import DecisionRequest

__all__ = ("StudyEnvironment", "Traffic")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests in the order of time, with what is true of them.

    Attributes
    ----------
    requests
        n of them, whose actions can all be chosen.
    segments
        A group that each belongs to, n names.
    ts_us
        When each is made, in microseconds since the epoch, shape (n,).
    known_us
        When its reward is known, shape (n,).
    expected
        Per request, the probability of a reward of 1 (rather than 0) for each of its actions.
    """

    requests: Sequence[DecisionRequest]
    segments: Sequence[str]
    ts_us: NDArray[np.int64]
    known_us: NDArray[np.int64]
    expected: Sequence[NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.requests)


class StudyEnvironment(Protocol):
    """Gives the traffic of generations that follow each other, each as long as the others."""

    def traffic(self, generation: int) -> Traffic:
        """What comes while a generation serves; `generation` counts from 0."""

    def panel(self, generation: int) -> Traffic:
        """The same requests whatever the generation, as they are rewarded in its middle."""

    def end_us(self, generation: int) -> int:
        """When its time is over, and the next one is trained."""
