"""Traffic: which policies share a loop's decisions, and the mixture that they make together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.events import MixComponent, Shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from croupier.policy.events import Action, Features
    from croupier.policy.generation import Generation

    OnFailure: TypeAlias = Callable[[Generation, Exception], None]

__all__ = (
    "CANARY",
    "CHAMPION",
    "KILLED_TAG",
    "SHADOW",
    "SHARE_TAG",
    "Answer",
    "Plan",
    "Shown",
    "Split",
    "UniformSlice",
    "canary_share",
    "check_share",
    "shadow_of",
    "uniform_share",
    "whole",
)

CHAMPION, CANARY, SHADOW = "champion", "canary", "shadow"
"""Aliases under which the registry holds the generations of a plan."""

SHARE_TAG, KILLED_TAG = "croupier.canary_share", "croupier.killed"
"""Tags of a registered model: the canary's share, and why the kill switch is on."""

_T = TypeVar("_T")

Day: TypeAlias = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00", re.ASCII)


class UniformSlice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of the traffic that is played uniformly, always or at certain hours.

    Uniform data is what any later policy can be learned and evaluated from, and an unbiased sample
    to check everything else against. A slice mixes the uniform distribution into every decision's
    pmf while it is on; no decision is uniform as a whole, and the propensity is the mixture's.

    Attributes
    ----------
    share
        Of the decisions while the slice is on, in (0, 1].
    start, end
        Times of day, ``HH:MM`` in UTC; an end before the start is on the next day.
    days
        Days of the week on which it starts.
    """

    share: float
    start: str = "00:00"
    end: str = "24:00"
    days: tuple[Day, ...] = _DAYS

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {self.share!r}")
        for name in ("start", "end"):
            if _TIME.fullmatch(getattr(self, name)) is None:
                raise ValueError(f"{name} must be a time HH:MM, got {getattr(self, name)!r}")
        if self.start == self.end:
            raise ValueError(f"end must differ from start, got {self.end!r} twice")
        if not self.days:
            raise ValueError("days must name at least one day")

    @property
    def is_always_on(self) -> bool:
        """Whether the slice is on at every time of every day."""
        whole = (self.start, self.end) in {("00:00", "24:00"), ("24:00", "00:00")}
        return whole and set(self.days) == set(_DAYS)

    def is_on(self, ts: int) -> bool:
        """Whether the slice is on at a time in microseconds since the Unix epoch."""
        now = datetime.fromtimestamp(ts // 1_000_000, tz=UTC)
        minute, start, end = 60 * now.hour + now.minute, _minutes(self.start), _minutes(self.end)
        today, yesterday = _DAYS[now.weekday()], _DAYS[now.weekday() - 1]
        if start < end:
            return today in self.days and start <= minute < end
        return (today in self.days and minute >= start) or (yesterday in self.days and minute < end)


@lru_cache(maxsize=1024)
def whole(generation: int) -> MixComponent:
    """The mixture's only part, where a generation draws alone."""
    return MixComponent(f"generation:{generation}", 1.0)


def _minutes(time: str) -> int:
    return 60 * int(time[:2]) + int(time[3:])


def uniform_share(slices: Sequence[UniformSlice], ts: int) -> float:
    """Share of uniform play at a time; slices that are on together add up, to 1 at most."""
    return min(sum(each.share for each in slices if each.is_on(ts)), 1.0)


class Answer(msgspec.Struct, frozen=True):
    """What a plan says to one request.

    Attributes
    ----------
    pmf
        Of the mixture, shape (K,).
    scores
        The champion's reward estimates, shape (K,); None if it has no oracle.
    mix
        The mixture's parts, their weights summing to 1.
    shadow
        What the shadow would have done; None without one.
    """

    pmf: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    mix: list[MixComponent]
    shadow: Shadow | None

    def shown(self) -> Shown:
        """The same in plain numbers."""
        scores = None if self.scores is None else self.scores.tolist()
        return Shown(self.pmf.tolist(), scores, self.mix, self.shadow)


class Shown(NamedTuple):
    """An :class:`Answer` as it is logged."""

    pmf: list[float]
    scores: list[float] | None
    mix: list[MixComponent]
    shadow: Shadow | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which generations a loop serves, each with its share.

    Attributes
    ----------
    champion
        Gets what nobody else gets; decisions carry its number.
    canary
        A challenger that is tried on some of the traffic; None without one.
    canary_share
        Its share, in [0, 1], of what the uniform slices leave.
    shadow
        A generation that is asked and logged, and never played; None without one.
    killed
        Why the baseline is played instead of everything else; None unless the kill switch is on.
    """

    champion: Generation
    canary: Generation | None = None
    canary_share: float = 0.0
    shadow: Generation | None = None
    killed: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the champion alone is asked."""
        return self.canary is None and self.shadow is None

    @property
    def remembers(self) -> bool:
        """Whether any of its generations decides from what came before in a session."""
        champion, canary, shadow = self.champion, self.canary, self.shadow
        return (
            champion.recurrent is not None
            or (canary is not None and canary.recurrent is not None)
            or (shadow is not None and shadow.recurrent is not None)
        )

    def answer(
        self,
        context: Features,
        actions: Sequence[Action],
        eligible: NDArray[np.bool_] | None,
        baseline: int,
        *,
        uniform: float = 0.0,
        on_failure: OnFailure | None = None,
    ) -> Answer:
        """The mixture's pmf, ``u·uniform + (1 - u)·(c·canary + (1 - c)·champion)``.

        Parameters
        ----------
        context, actions, eligible
            The request; `eligible` has shape (K,), None if all actions are.
        baseline
            Index of the application's own choice.
        uniform
            u, in [0, 1].
        on_failure
            Called with a canary or a shadow that can't answer, and with why. The champion takes the
            share of the canary.

        Raises
        ------
        ScoringError
            If the champion can't answer.
        """
        asked = (context, actions, eligible, baseline)
        pmf, scores = self.champion.pmf(*asked)
        if self.is_whole and uniform <= 0.0:
            return Answer(pmf, scores, [whole(self.champion.number)], None)
        mix = [(f"generation:{self.champion.number}", pmf, 1.0)]
        if self.canary is not None and self.canary_share > 0.0:
            tried = _attempt(self.canary, lambda each: each.pmf(*asked)[0], on_failure)
            if tried is not None:
                share = self.canary_share
                mix[0] = (*mix[0][:2], 1.0 - share)
                mix.append((f"generation:{self.canary.number}", tried, share))
        if uniform > 0.0:
            mix = [(source, part, weight * (1.0 - uniform)) for source, part, weight in mix]
            mix.append(("uniform", _even(pmf, eligible), uniform))
        mix = [part for part in mix if part[2] > 0.0]
        # One part alone is its own pmf to the last bit, also where it is not the champion.
        pmf = mix[0][1] if len(mix) == 1 else np.asarray(sum(w * part for _, part, w in mix))
        shadow = None
        if self.shadow is not None:
            shadow = _attempt(self.shadow, lambda each: shadow_of(each, *asked), on_failure)
        parts = [MixComponent(source, weight) for source, _, weight in mix]
        return Answer(pmf, scores, parts, shadow)


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A plan by the numbers of its generations: what the registry says, and what scorers follow.

    Attributes
    ----------
    generation
        Number of the champion; 0 is the cold start.
    canary, shadow
        Numbers of the others; None without one.
    canary_share
        Share of the canary, in (0, 1); 0 without one.
    killed
        Why only the baseline is played; None unless the kill switch is on.
    """

    generation: int
    canary: int | None = None
    canary_share: float = 0.0
    shadow: int | None = None
    killed: str | None = None

    def __post_init__(self) -> None:
        if self.canary is not None:
            check_share(self.canary_share)


def check_share(share: float) -> None:
    """Check a canary's share; what gets all of the traffic is a champion, and needs evidence.

    Raises
    ------
    ValueError
        If it is not in (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"expected a share in (0, 1), got {share:g}")


def canary_share(tags: Mapping[str, str]) -> float:
    """The canary's share by the tags of its registered model.

    Raises
    ------
    ValueError
        If there is none, or it isn't one.
    """
    text = tags.get(SHARE_TAG)
    if text is None:
        raise ValueError(f"expected its share in the tag {SHARE_TAG}, which is missing")
    try:
        share = float(text)
        check_share(share)
    except ValueError:
        raise ValueError(f"expected a share in (0, 1) in the tag {SHARE_TAG}, got {text!r}") from (
            None
        )
    return share


def shadow_of(
    generation: Generation,
    context: Features,
    actions: Sequence[Action],
    eligible: NDArray[np.bool_] | None,
    baseline: int,
) -> Shadow:
    """What a generation would have done with a request.

    Raises
    ------
    ScoringError
        If it can't answer.
    """
    pmf, _ = generation.pmf(context, actions, eligible, baseline)
    return Shadow(generation.number, pmf.tolist())


def _attempt(
    generation: Generation, ask: Callable[[Generation], _T], on_failure: OnFailure | None
) -> _T | None:
    """Ask a generation that the answer doesn't hang on; whatever its oracle does, None."""
    try:
        return ask(generation)
    except Exception as error:  # noqa: BLE001
        if on_failure is not None:
            on_failure(generation, error)
        return None


def _even(pmf: NDArray[np.float64], eligible: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    if eligible is None:
        return np.full(pmf.size, 1.0 / pmf.size)
    return np.asarray(eligible / np.count_nonzero(eligible), dtype=np.float64)
