"""What generations make of each feature, on a fixed panel of requests.

A feature's influence on a generation is how much otherwise it would play if the feature had another
request's value: the mean over the panel of the total variation ``Σ_a |p(a | x) - p(a | x')| / 2``,
where x' is x with the feature's value of a request drawn from the panel without replacement
(permutation importance, Breiman, "Random Forests", Machine Learning 2001, of the pmf in the place
of a loss). It is 0 for what a generation doesn't look at, and it says nothing of whether looking at
it pays.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np

from croupier.offline.grouped import NOTHING
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from croupier.policy.paths import MISSING, value_along

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.events import Features
    from croupier.policy.generation import Generation

__all__ = ("Influence", "Response", "influences", "responses", "usable_requests")

_FEATURES: Final = 20
_VALUES: Final = 6
_ACTIONS: Final = 8
_OTHERS: Final = "(others)"
_ROUNDING: Final = 1e-9


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """How much a generation's play depends on a feature.

    Attributes
    ----------
    generation, feature
        Which; a path in the context such as ``user.age``, or ``action.price``.
    requests
        Of the panel.
    total_variation
        Mean total variation by the feature's exchange, in [0, 1].
    error
        Its standard error over requests, at least 0.
    score_shift
        Mean absolute change of the scores of actions that could be drawn, in the reward's unit;
        None of a generation without scores.
    """

    generation: int
    feature: str
    requests: int
    total_variation: float
    error: float
    score_shift: float | None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """How a generation plays where a feature has a value.

    Attributes
    ----------
    generation, feature, value
        Which; numbers of many values are divided into quarters.
    place
        Of the value among the feature's.
    requests
        Of the panel that have it; of a feature of actions, pairs of a request and an action.
    action
        None for all actions but the most probable ones together, and for a feature of actions,
        where all that have the value are meant.
    mass
        Mean probability, in [0, 1].
    score
        Mean score where the action could be drawn; None if it never could, or there are no scores.
    """

    generation: int
    feature: str
    value: str
    place: int
    requests: int
    action: str | None
    mass: float
    score: float | None


def usable_requests(
    requests: Sequence[LoggedRequest], generations: Sequence[Generation]
) -> list[LoggedRequest]:
    """Those requests that all generations can answer."""
    return [each for each in requests if all(_answers(policy, each) for policy in generations)]


def influences(
    panel: Sequence[LoggedRequest], generations: Sequence[Generation], *, seed: int = 0
) -> list[Influence]:
    """Of every generation and feature of which the panel has several values.

    Parameters
    ----------
    panel
        Requests that all generations can answer, see :func:`usable_requests`.
    generations
        None of them recurrent.
    seed
        Of the exchange, which is the same for all generations.
    """
    found = []
    plain = {policy.number: _ask(policy, panel) for policy in generations}
    for number, feature in enumerate(_features(panel)):
        rng = np.random.default_rng([seed, number])
        exchanged = _exchanged(panel, feature, rng)
        for policy in generations:
            moved = _moves(plain[policy.number], _ask(policy, exchanged))
            shifts = [shift for _, shift in moved if shift is not None]
            apart = np.array([distance for distance, _ in moved])
            n = len(apart)
            found.append(
                Influence(
                    generation=policy.number,
                    feature=feature.name,
                    requests=n,
                    total_variation=float(apart.mean()),
                    error=float(apart.std(ddof=1)) / math.sqrt(n),
                    score_shift=float(np.mean(shifts)) if len(shifts) == n else None,
                )
            )
    return found


def responses(panel: Sequence[LoggedRequest], generations: Sequence[Generation]) -> list[Response]:
    """How every generation plays by the value of every feature; parameters as above."""
    asked = {policy.number: _ask(policy, panel) for policy in generations}
    named = _probable(panel, asked)
    return [
        response
        for feature in _features(panel)
        for response in (
            _of_actions(panel, feature, asked)
            if feature.of_actions
            else _of_contexts(panel, feature, asked, named)
        )
    ]


_Answer: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64] | None]"


def _answers(policy: Generation, request: LoggedRequest) -> bool:
    try:
        _ask(policy, [request])
    except InvalidInputError:
        return False
    return True


def _ask(policy: Generation, panel: Sequence[LoggedRequest]) -> list[_Answer]:
    return [policy.pmf(each.context, each.actions, each.eligible, each.baseline) for each in panel]


def _moves(before: Sequence[_Answer], after: Sequence[_Answer]) -> list[tuple[float, float | None]]:
    """For every request, the total variation of two pmfs and the mean change of scores."""
    found: list[tuple[float, float | None]] = []
    for (pmf, scores), (other, moved) in zip(before, after, strict=True):
        shift = None
        if scores is not None and moved is not None:
            shift = float(np.abs(scores - moved)[(pmf > 0.0) | (other > 0.0)].mean())
        found.append((float(np.abs(pmf - other).sum()) / 2.0, shift))
    return found


@dataclass(frozen=True, slots=True)
class _Feature:
    """Where a feature stands: names from the outermost on, in an action or in the context."""

    of_actions: bool
    path: tuple[str, ...]

    @property
    def name(self) -> str:
        return ".".join((("action",) if self.of_actions else ()) + self.path)

    def values(self, panel: Sequence[LoggedRequest]) -> list[Any]:
        """Of every request, or of every action of every request; MISSING where there is none."""
        if self.of_actions:
            return [
                value_along(action.features, self.path) for each in panel for action in each.actions
            ]
        return [value_along(each.context, self.path) for each in panel]


def _features(panel: Sequence[LoggedRequest]) -> list[_Feature]:
    """Features with several values, those that most requests have first."""
    seen: dict[_Feature, Counter[str]] = defaultdict(Counter)
    for request in panel:
        for path, value in _leaves((), request.context):
            seen[_Feature(of_actions=False, path=path)][_word(value)] += 1
        for action in request.actions:
            for path, value in _leaves((), action.features):
                seen[_Feature(of_actions=True, path=path)][_word(value)] += 1
    pairs = sum(len(each.actions) for each in panel)
    varied = [
        feature
        for feature, words in seen.items()
        if len(words) > 1 or words.total() < (pairs if feature.of_actions else len(panel))
    ]
    varied.sort(key=lambda each: (each.of_actions, -seen[each].total(), each.name))
    return varied[:_FEATURES]


def _leaves(path: tuple[str, ...], features: Features) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What a feature is: whatever isn't an object; a list is one value."""
    for name, value in features.items():
        if isinstance(value, dict):
            yield from _leaves((*path, name), value)
        elif value is not None:
            yield (*path, name), value


def _exchanged(
    panel: Sequence[LoggedRequest], feature: _Feature, rng: np.random.Generator
) -> list[LoggedRequest]:
    """The panel, with the feature's values exchanged among its requests or actions."""
    held = feature.values(panel)
    others = iter([held[place] for place in rng.permutation(len(held))])
    if not feature.of_actions:
        return [
            replace(each, context=_with(each.context, feature.path, next(others))) for each in panel
        ]
    return [
        replace(
            each,
            actions=[
                Action(action.id, _with(action.features, feature.path, next(others)))
                for action in each.actions
            ],
        )
        for each in panel
    ]


def _with(features: Features, path: tuple[str, ...], value: Any) -> Features:
    """A copy that has a value at a path, or nothing there."""
    name, *rest = path
    copy = dict(features)
    if rest:
        inner = copy.get(name)
        copy[name] = _with(inner if isinstance(inner, dict) else {}, tuple(rest), value)
    elif value is MISSING:
        copy.pop(name, None)
    else:
        copy[name] = value
    return copy


def _probable(panel: Sequence[LoggedRequest], asked: dict[int, list[_Answer]]) -> list[str]:
    """Ids of the actions with the largest probability over all generations."""
    mass: dict[str, float] = {}
    for answers in asked.values():
        for request, (pmf, _) in zip(panel, answers, strict=True):
            for action, p in zip(request.actions, pmf.tolist(), strict=True):
                mass[action.id] = mass.get(action.id, 0.0) + p
    return sorted(mass, key=lambda each: (-mass[each], each))[:_ACTIONS]


def _of_contexts(
    panel: Sequence[LoggedRequest],
    feature: _Feature,
    asked: dict[int, list[_Answer]],
    named: Sequence[str],
) -> Iterator[Response]:
    labels, codes = _coded(feature.values(panel))
    for generation, answers in asked.items():
        for place, label in enumerate(labels):
            mine = [row for row, code in enumerate(codes) if code == place]
            common = Response(
                generation=generation,
                feature=feature.name,
                value=label,
                place=place,
                requests=len(mine),
                action=None,
                mass=0.0,
                score=None,
            )
            told = _by_action([panel[row] for row in mine], [answers[row] for row in mine], named)
            for action, mass, score in told:
                yield msgspec.structs.replace(common, action=action, mass=mass, score=score)


def _by_action(
    requests: Sequence[LoggedRequest], answers: Sequence[_Answer], named: Sequence[str]
) -> list[tuple[str | None, float, float | None]]:
    """Mean probability and score of every named action, and of all others together."""
    mass = dict.fromkeys(named, 0.0)
    scores: dict[str, list[float]] = {each: [] for each in named}
    for request, (pmf, scored) in zip(requests, answers, strict=True):
        for place, action in enumerate(request.actions):
            if action.id not in mass:
                continue
            mass[action.id] += float(pmf[place]) / len(requests)
            if scored is not None and pmf[place] > 0.0:
                scores[action.id].append(float(scored[place]))
    told: list[tuple[str | None, float, float | None]] = [
        (each, mass[each], float(np.mean(scores[each])) if scores[each] else None) for each in named
    ]
    rest = 1.0 - sum(mass.values())
    return [*told, (None, rest, None)] if rest > _ROUNDING else told


def _of_actions(
    panel: Sequence[LoggedRequest], feature: _Feature, asked: dict[int, list[_Answer]]
) -> Iterator[Response]:
    labels, codes = _coded(feature.values(panel))
    for generation, answers in asked.items():
        mass = np.concatenate([pmf for pmf, _ in answers])
        scored = [scores for _, scores in answers if scores is not None]
        scores = np.concatenate(scored) if len(scored) == len(answers) else None
        for place, label in enumerate(labels):
            mine = codes == place
            drawn = mine & (mass > 0.0)
            yield Response(
                generation=generation,
                feature=feature.name,
                value=label,
                place=place,
                requests=int(mine.sum()),
                action=None,
                mass=float(mass[mine].mean()),
                score=float(scores[drawn].mean()) if scores is not None and drawn.any() else None,
            )


def _coded(values: Sequence[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """What values are called, in order, and which of these each one is; every one is some value's.

    Numbers of more than six values are divided into quarters; of words the commonest six are told.
    """
    there = [each for each in values if each is not MISSING and each is not None]
    words = Counter(map(_word, there))
    numbers = all(map(_is_number, there))
    if numbers and len(words) > _VALUES:
        edges = np.unique(np.quantile(np.array(there, dtype=np.float64), (0, 0.25, 0.5, 0.75, 1)))
        labels = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    else:
        edges = np.array([])
        common = sorted(words, key=lambda each: (-words[each], each))[:_VALUES]
        labels = sorted(common, key=float) if numbers else common
        if len(words) > len(common):
            labels = [*labels, _OTHERS]
    if len(there) < len(values):
        labels = [*labels, NOTHING]
    places = {label: place for place, label in enumerate(labels)}

    def code(value: Any) -> int:
        if value is MISSING or value is None:
            return places[NOTHING]
        if len(edges):
            return int(np.searchsorted(edges[1:-1], float(value), side="left"))
        return places.get(_word(value), places.get(_OTHERS, 0))

    return labels, np.array([code(each) for each in values], dtype=np.int64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
