"""Whether the world has changed between two generations: who asks, and what is earned.

An estimate speaks for the requests and rewards that were logged. If they have drifted since, it
says what a policy would have earned then. Here each generation's log is held against that of the
one before it. The mean reward alone would not do, as it changes with the policy; so what is
compared is what the uniform policy would have earned, which no generation has a part in.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np
import scipy

from croupier.offline.multiplicity import holm
from croupier.offline.ope.intervals import Moments
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.events import Features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

__all__ = ("DriftReport", "FeatureDrift", "RewardDrift", "drift")

_Kind: TypeAlias = Literal["number", "category", "presence"]

_ROWS = 50
_COMMONEST = 30
_EXPECTED = 5.0

_context_decoder = msgspec.json.Decoder(Features)


class RewardDrift(msgspec.Struct, frozen=True, kw_only=True):
    """What the uniform policy would have earned under two generations' logs.

    Attributes
    ----------
    before, after
        Numbers of the generations.
    mean_before, mean_after
        Mean of the rewards, whoever chose the actions.
    uniform_before, uniform_after
        Value of the uniform policy by SNIPS.
    p_value
        Of the two values' being the same, by the delta method.
    significant
        Whether it is too small for chance, among all tests of the report.
    """

    before: int
    after: int
    mean_before: float
    mean_after: float
    uniform_before: float
    uniform_after: float
    p_value: float
    significant: bool = False


class FeatureDrift(msgspec.Struct, frozen=True, kw_only=True):
    """How a feature of the context is distributed under two generations' logs.

    Attributes
    ----------
    before, after
        Numbers of the generations.
    feature
        Its path in the context, such as ``user.age``; ``tags[]`` for what is in a list.
    kind
        Whether it was compared as a ``number`` or as a ``category``; ``presence`` compares how
        often a number is there at all.
    distance
        Kolmogorov's distance of numbers, total variation of categories; in [0, 1].
    p_value, significant
        As of :class:`RewardDrift`.
    """

    before: int
    after: int
    feature: str
    kind: _Kind
    distance: float
    p_value: float
    significant: bool = False


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """All comparisons of consecutive generations.

    Attributes
    ----------
    level
        Chance, at most, that a log without any drift has a significant test (Holm 1979).
    rewards, features
        In the order of the generations; features from the smallest p-value on.
    """

    level: float
    rewards: list[RewardDrift]
    features: list[FeatureDrift]


def drift(
    interactions: pl.DataFrame, *, level: float = 0.01, sample: int = 20_000, seed: int = 0
) -> DriftReport:
    """Compare every generation's log with that of the one before it.

    Contexts are those of requests: of a ranking, slots or a slate the first row counts. Numbers are
    compared by the two-sample Kolmogorov-Smirnov test, categories by Pearson's chi-square of
    homogeneity, in which rare values are taken together.

    Parameters
    ----------
    interactions
        Current interactions of one loop, see
        :func:`~croupier.offline.interactions.current_interactions`.
    level
        Family-wise level of all tests, in (0, 1).
    sample
        Most requests of a generation whose contexts are looked at, drawn at random.
    seed
        Of the sample.

    Raises
    ------
    NotEnoughDataError
        If there aren't two generations with 50 interactions each.
    InvalidInputError
        If `level` is out of range.
    """
    if not 0.0 < level < 1.0:
        raise InvalidInputError("level", f"expected a number in (0, 1), got {level}")
    logs = [
        rows
        for _, rows in sorted(
            interactions.partition_by("generation", as_dict=True).items(), key=lambda each: each[0]
        )
        if len(rows) >= _ROWS
    ]
    if len(logs) < 2:
        raise NotEnoughDataError(
            f"drift needs two generations with {_ROWS} interactions each, got {len(logs)}"
        )
    rewards = [_rewards(before, after) for before, after in itertools.pairwise(logs)]
    contexts = [_contexts(rows, sample, seed) for rows in logs]
    numbers = [int(rows["generation"][0]) for rows in logs]
    features = [
        each
        for place, (before, after) in enumerate(itertools.pairwise(contexts))
        for each in _features(numbers[place], numbers[place + 1], before, after)
    ]
    p_values = [each.p_value for each in rewards] + [each.p_value for each in features]
    told = iter(holm(p_values, level).tolist())
    rewards = [msgspec.structs.replace(each, significant=next(told)) for each in rewards]
    features = [msgspec.structs.replace(each, significant=next(told)) for each in features]
    features.sort(key=lambda each: (each.before, each.p_value))
    return DriftReport(level=level, rewards=rewards, features=features)


def _rewards(before: pl.DataFrame, after: pl.DataFrame) -> RewardDrift:
    values, errors, means = [], [], []
    for rows in (before, after):
        value, error = _uniform(rows)
        values.append(value)
        errors.append(error)
        c = 1.0 / rows["keep_prob"].to_numpy()
        means.append(float(c @ rows["reward"].to_numpy() / c.sum()))
    error = math.hypot(*errors)
    difference = abs(values[1] - values[0])
    p_value = (
        float(2.0 * scipy.stats.norm.sf(difference / error)) if error else float(difference == 0.0)
    )
    return RewardDrift(
        before=int(before["generation"][0]),
        after=int(after["generation"][0]),
        mean_before=means[0],
        mean_after=means[1],
        uniform_before=values[0],
        uniform_after=values[1],
        p_value=p_value,
    )


def _uniform(rows: pl.DataFrame) -> tuple[float, float]:
    """Value of the uniform policy by SNIPS, ``sum c w r / sum c w``, and its standard error."""
    eligible = rows["action_ids"].list.len() - rows["excluded"].list.len().fill_null(0)
    weight = 1.0 / (
        eligible.to_numpy() * rows["propensity"].to_numpy() * rows["keep_prob"].to_numpy()
    )
    moments = Moments.of(np.column_stack([weight, weight * rows["reward"].to_numpy()]))
    value = float(moments.mean[1] / moments.mean[0])
    return value, moments.standard_error(np.array([-value, 1.0]) / moments.mean[0])


def _contexts(rows: pl.DataFrame, sample: int, seed: int) -> dict[str, list[Any]]:
    """Values of every feature by its path; None where a request has none."""
    requests = rows.unique("decision_id", keep="first", maintain_order=True)["context"]
    if len(requests) > sample:
        requests = requests.sample(sample, seed=seed)
    found: dict[str, list[Any]] = {}
    for number, context in enumerate(requests):
        for path, value in _leaves("", _context_decoder.decode(context)):
            found.setdefault(path, []).append((number, value))
    return {path: _with_gaps(values, len(requests)) for path, values in found.items()}


def _with_gaps(values: Sequence[tuple[int, Any]], requests: int) -> list[Any]:
    there = {number for number, _ in values}
    return [value for _, value in values] + [None] * (requests - len(there))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(f"{path}[]", inner)
    elif value is not None:
        yield path, value


def _features(
    before: int, after: int, first: dict[str, list[Any]], second: dict[str, list[Any]]
) -> Iterator[FeatureDrift]:
    requests = [max(map(len, each.values()), default=0) for each in (first, second)]

    def found(path: str, kind: _Kind, distance: float, p_value: float) -> FeatureDrift:
        return FeatureDrift(
            before=before,
            after=after,
            feature=path,
            kind=kind,
            distance=distance,
            p_value=p_value,
        )

    for path in sorted(first.keys() | second.keys()):
        pair = [
            each.get(path, [None] * count)
            for each, count in zip((first, second), requests, strict=True)
        ]
        there = [[value for value in values if value is not None] for values in pair]
        if not all(map(_is_number, itertools.chain(*there))):
            yield found(path, "category", *_categories(pair))
            continue
        if all(there):
            x, y = (np.array(values, dtype=np.float64) for values in there)
            ks = scipy.stats.ks_2samp(x, y, method="asymp")
            yield found(path, "number", float(ks.statistic), float(ks.pvalue))
        if any(None in values for values in pair):
            presence = [[value is not None for value in values] for values in pair]
            yield found(path, "presence", *_categories(presence))


def _categories(pair: Sequence[Sequence[Any]]) -> tuple[float, float]:
    """Total variation of two samples of categories, and the p-value of their being the same."""
    first, second = counts = [Counter(map(_word, values)) for values in pair]
    commonest = [name for name, _ in (first + second).most_common(_COMMONEST)]
    table = np.array([[each[name] for name in commonest] for each in counts], dtype=np.float64)
    rest = np.array([[each.total()] for each in counts]) - table.sum(axis=1, keepdims=True)
    table = np.hstack([table, rest])
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    rare = expected.min(axis=0) < _EXPECTED
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0.0]
    shares = table / table.sum(axis=1, keepdims=True)
    distance = float(np.abs(shares[1] - shares[0]).sum() / 2.0)
    if table.shape[1] < 2:
        return distance, 1.0
    return distance, float(scipy.stats.chi2_contingency(table, correction=False).pvalue)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(value: Any) -> str:
    return msgspec.json.encode(value).decode()
