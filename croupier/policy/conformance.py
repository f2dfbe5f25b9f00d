"""The conformance checker: what every exploration must do, ours or a user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import ScoringError
from croupier.policy.estimates import Estimates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from croupier.policy.estimates import Uncertainty

__all__ = ("Finding", "HasPmf", "check_exploration")

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

_SUM_TOLERANCE = 1e-9
_EQUAL_TOLERANCE = 1e-12
_ROUNDS = 200
_MEMBERS = 7
# Ten thousand actions have a covariance of 800 MB: no oracle estimates it.
_MOST_CORRELATED = 1000
_TRAINING_ROWS = (0, 1, 1000)


class HasPmf(Protocol):
    """What the checker asks of an exploration.

    ``floor``, if there is one, is checked too. One with ``needs`` or ``wants`` is given estimates
    with their uncertainty in the place of scores; one with ``uses_baseline`` is given a
    ``baseline``.
    """

    def pmf(
        self, scores: Any, eligible: BoolArray | None = None, *, training_rows: int = 0
    ) -> FloatArray:
        """Probability of every action, shape (K,)."""
        ...


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One property, whether it holds, and a case in which it doesn't."""

    check: str
    passed: bool
    counterexample: str | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """One call: estimates, eligibility and training rows; the first eligible is the baseline.

    Attributes
    ----------
    alike
        The same case with an oracle that is equally sure of all actions, so that nothing but the
        scores tells them apart.
    """

    estimates: Estimates
    eligible: BoolArray
    training_rows: int
    baseline: int
    alike: Estimates

    @property
    def scores(self) -> FloatArray:
        return self.estimates.mean

    def without(self, fields: Uncertainty) -> _Case:
        """The same case with an oracle that doesn't tell so much."""
        hidden = dict.fromkeys(fields)
        return replace(
            self,
            estimates=msgspec.structs.replace(self.estimates, **hidden),
            alike=msgspec.structs.replace(self.alike, **hidden),
        )

    def __str__(self) -> str:
        shown = np.array2string(self.scores, threshold=12, precision=6)
        excluded = np.flatnonzero(~self.eligible)
        without = f", excluded {excluded[:12].tolist()}" if excluded.size else ""
        return f"scores {shown}{without}, training_rows={self.training_rows}"


def check_exploration(exploration: HasPmf, *, seed: int = 0) -> list[Finding]:
    """Put an exploration through a few hundred cases and report property by property.

    Checked are: entries are finite and not negative; they sum to 1 within 1e-9; excluded actions
    get 0; every eligible action gets the floor, where one is declared; the pmf is float64 of shape
    (K,); reordering the actions reorders the pmf; among actions that the oracle is equally sure of,
    equal scores get equal probabilities and a higher score never a lower one (unless the baseline
    is a reason of its own); the same call gives the same pmf;
    the scores are not written to; scores that are NaN or infinite, and no eligible action at all,
    raise ScoringError instead of giving a pmf (an exploration with ``needs_scores = False`` may
    ignore scores). Cases range from one action to 10,000, with ties and extreme magnitudes; an
    exploration that wants more than it needs goes through all of them without it as well.

    Parameters
    ----------
    exploration
        Anything with :meth:`HasPmf.pmf`.
    seed
        Of the random cases.
    """
    rng = np.random.default_rng(seed)
    cases = list(_cases(rng))
    optional = _wants(exploration) - _needs(exploration)
    if optional:
        cases += [case.without(optional) for case in cases]
    checks = _CHECKS if getattr(exploration, "uses_baseline", False) else _CHECKS | _BY_SCORE
    findings = [_over_cases(name, check, exploration, cases) for name, check in checks.items()]
    if getattr(exploration, "needs_scores", True):
        findings.append(_refuses("refuses NaN and infinite scores", exploration, _bad_scores(rng)))
    nobody = [replace(_case(rng, np.zeros(3)), eligible=np.zeros(3, dtype=bool))]
    findings.append(_refuses("refuses to choose among no actions", exploration, nobody))
    return findings


def _cases(rng: np.random.Generator) -> Iterator[_Case]:
    for round_ in range(_ROUNDS):
        k = int(rng.integers(1, 12))
        scores = rng.random(k) if round_ % 2 else rng.integers(0, 3, k) / 2.0
        eligible = rng.random(k) < 0.7
        eligible[rng.integers(k)] = True
        yield _case(rng, scores, eligible, _TRAINING_ROWS[round_ % 3])
    for scores in (
        np.zeros(1),
        np.array([1e300, -1e300, 0.0]),
        np.array([1e-300, 2e-300, 0.0]),
        np.array([0.5, np.nextafter(0.5, 1.0)]),
        np.full(5, -3.0),
        rng.random(10_000),
        np.repeat(rng.random(10), 1000),
    ):
        yield _case(rng, scores)


def _bad_scores(rng: np.random.Generator) -> list[_Case]:
    return [_case(rng, np.array([0.1, bad, 0.3])) for bad in (np.nan, np.inf, -np.inf)]


def _case(
    rng: np.random.Generator,
    scores: FloatArray,
    eligible: BoolArray | None = None,
    training_rows: int = 1000,
) -> _Case:
    eligible = np.ones(scores.size, dtype=bool) if eligible is None else eligible
    deviation = 0.3 * rng.random(scores.size)
    votes = scores + rng.normal(size=(_MEMBERS, scores.size)) * deviation
    return _Case(
        Estimates(scores, deviation, _covariance(rng, deviation), votes),
        eligible,
        training_rows,
        int(np.flatnonzero(eligible)[0]),
        Estimates(
            scores,
            np.full(scores.size, 0.2),
            _covariance(None, np.full(scores.size, 0.2)),
            # Every member is off by an amount of its own, the same for all actions.
            scores + 0.2 * rng.normal(size=(_MEMBERS, 1)),
        ),
    )


def _covariance(rng: np.random.Generator | None, deviation: FloatArray) -> FloatArray | None:
    """Errors that are partly shared, or not at all without a generator; none for many actions."""
    if deviation.size > _MOST_CORRELATED:
        return None
    correlation = np.eye(deviation.size)
    if rng is not None:
        loading = rng.uniform(-0.9, 0.9, deviation.size)
        correlation += np.outer(loading, loading) - np.diag(loading**2)
    return np.asarray(correlation * np.outer(deviation, deviation))


def _over_cases(
    name: str,
    check: Callable[[HasPmf, _Case], bool],
    exploration: HasPmf,
    cases: list[_Case],
) -> Finding:
    for case in cases:
        if _is_beyond(exploration, case):
            continue
        try:
            passed = check(exploration, case)
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            return Finding(
                check=name, passed=False, counterexample=f"{case}: {type(error).__name__}: {error}"
            )
        if not passed:
            shown = case.alike if name in _BY_SCORE else case.estimates
            pmf = np.array2string(np.asarray(_ask(exploration, case, shown)), threshold=12)
            return Finding(check=name, passed=False, counterexample=f"{case} gives {pmf}")
    return Finding(check=name, passed=True)


def _refuses(name: str, exploration: HasPmf, cases: list[_Case]) -> Finding:
    for case in cases:
        try:
            pmf = _ask(exploration, case)
        except ScoringError:
            continue
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            found = f"raises {type(error).__name__} instead of ScoringError: {error}"
        else:
            found = f"gives {pmf}"
        return Finding(check=name, passed=False, counterexample=f"{case} {found}")
    return Finding(check=name, passed=True)


def _is_beyond(exploration: HasPmf, case: _Case) -> bool:
    """Whether a case has more actions than the uncertainty that is needed can be estimated for."""
    return case.estimates.covariance is None and "covariance" in _needs(exploration)


def _needs(exploration: HasPmf) -> Uncertainty:
    return frozenset(getattr(exploration, "needs", ()))


def _wants(exploration: HasPmf) -> Uncertainty:
    return _needs(exploration) | frozenset(getattr(exploration, "wants", ()))


def _ask(exploration: HasPmf, case: _Case, estimates: Estimates | None = None) -> FloatArray:
    # A copy, so that one that writes to its scores doesn't spoil the cases of other checks.
    given = (case.estimates if estimates is None else estimates).of(np.arange(case.scores.size))
    more: dict[str, Any] = {"training_rows": case.training_rows}
    if getattr(exploration, "uses_baseline", False):
        more["baseline"] = case.baseline
    scores = given if _wants(exploration) else given.mean
    return exploration.pmf(scores, case.eligible.copy(), **more)


def _has_shape(exploration: HasPmf, case: _Case) -> bool:
    # The annotation is a promise that a user's class may not keep.
    pmf: Any = _ask(exploration, case)
    return getattr(pmf, "dtype", None) == np.float64 and np.shape(pmf) == case.scores.shape


def _is_distribution(exploration: HasPmf, case: _Case) -> bool:
    pmf = _ask(exploration, case)
    return bool(np.isfinite(pmf).all() and (pmf >= 0.0).all())


def _sums_to_one(exploration: HasPmf, case: _Case) -> bool:
    return abs(float(_ask(exploration, case).sum()) - 1.0) <= _SUM_TOLERANCE


def _excludes(exploration: HasPmf, case: _Case) -> bool:
    return not _ask(exploration, case)[~case.eligible].any()


def _keeps_floor(exploration: HasPmf, case: _Case) -> bool:
    floor = min(float(getattr(exploration, "floor", 0.0)), 1.0 / np.count_nonzero(case.eligible))
    return bool((_ask(exploration, case)[case.eligible] >= floor - _EQUAL_TOLERANCE).all())


def _is_equivariant(exploration: HasPmf, case: _Case) -> bool:
    order = np.random.default_rng(case.scores.size).permutation(case.scores.size)
    moved = replace(
        case,
        estimates=case.estimates.of(order),
        eligible=case.eligible[order],
        baseline=int(np.flatnonzero(order == case.baseline)[0]),
    )
    return bool(np.allclose(_ask(exploration, moved), _ask(exploration, case)[order], atol=1e-12))


def _is_monotone(exploration: HasPmf, case: _Case) -> bool:
    pmf, scores = _ask(exploration, case, case.alike)[case.eligible], case.scores[case.eligible]
    levels, group = np.unique(scores, return_inverse=True)
    least, most = np.full(levels.size, np.inf), np.zeros(levels.size)
    np.minimum.at(least, group, pmf)
    np.maximum.at(most, group, pmf)
    return bool((least[1:] >= most[:-1] - _EQUAL_TOLERANCE).all())


def _shares_ties(exploration: HasPmf, case: _Case) -> bool:
    pmf, scores = _ask(exploration, case, case.alike)[case.eligible], case.scores[case.eligible]
    order = np.argsort(scores, kind="stable")
    tied = np.diff(scores[order]) == 0.0
    return bool((np.abs(np.diff(pmf[order]))[tied] <= _EQUAL_TOLERANCE).all())


def _is_repeatable(exploration: HasPmf, case: _Case) -> bool:
    return bool(np.array_equal(_ask(exploration, case), _ask(exploration, case)))


def _leaves_scores(exploration: HasPmf, case: _Case) -> bool:
    kept = case.estimates.of(np.arange(case.scores.size))
    given = kept if _wants(exploration) else kept.mean
    eligible = case.eligible.copy()
    more = {"baseline": case.baseline} if getattr(exploration, "uses_baseline", False) else {}
    exploration.pmf(given, eligible, training_rows=case.training_rows, **more)
    names = ("mean", "deviation", "covariance", "members")
    return np.array_equal(eligible, case.eligible) and all(
        getattr(case.estimates, name) is None
        or np.array_equal(getattr(kept, name), getattr(case.estimates, name))
        for name in names
    )


_CHECKS: dict[str, Callable[[HasPmf, _Case], bool]] = {
    "gives a float64 array with an entry per action": _has_shape,
    "entries are finite and not negative": _is_distribution,
    "sums to 1 within 1e-9": _sums_to_one,
    "gives excluded actions 0": _excludes,
    "keeps the floor": _keeps_floor,
    "reorders with the actions": _is_equivariant,
    "gives the same pmf again": _is_repeatable,
    "leaves the scores alone": _leaves_scores,
}

# Of explorations to which an action is no more than its score.
_BY_SCORE: dict[str, Callable[[HasPmf, _Case], bool]] = {
    "shares ties evenly": _shares_ties,
    "never gives a higher score less": _is_monotone,
}
