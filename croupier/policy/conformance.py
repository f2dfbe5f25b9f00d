"""The conformance checker: what every exploration must do, ours or a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.errors import ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("Finding", "HasPmf", "check_exploration")

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

_SUM_TOLERANCE = 1e-9
_EQUAL_TOLERANCE = 1e-12
_ROUNDS = 200
_TRAINING_ROWS = (0, 1, 1000)


class HasPmf(Protocol):
    """What the checker asks of an exploration; ``floor``, if there is one, is checked too."""

    def pmf(
        self, scores: FloatArray, eligible: BoolArray | None = None, *, training_rows: int = 0
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
    """One call: scores, eligibility and training rows."""

    scores: FloatArray
    eligible: BoolArray
    training_rows: int

    def __str__(self) -> str:
        shown = np.array2string(self.scores, threshold=12, precision=6)
        excluded = np.flatnonzero(~self.eligible)
        without = f", excluded {excluded[:12].tolist()}" if excluded.size else ""
        return f"scores {shown}{without}, training_rows={self.training_rows}"


def check_exploration(exploration: HasPmf, *, seed: int = 0) -> list[Finding]:
    """Put an exploration through a few hundred cases and report property by property.

    Checked are: entries are finite and not negative; they sum to 1 within 1e-9; excluded actions
    get 0; every eligible action gets the floor, where one is declared; the pmf is float64 of shape
    (K,); reordering the actions reorders the pmf; actions with equal scores get equal
    probabilities; a higher score never gets a lower probability; the same call gives the same pmf;
    the scores are not written to; scores that are NaN or infinite, and no eligible action at all,
    raise ScoringError instead of giving a pmf (an exploration with ``needs_scores = False`` may
    ignore scores). Cases range from one action to 10,000, with ties and extreme magnitudes.

    Parameters
    ----------
    exploration
        Anything with :meth:`HasPmf.pmf`.
    seed
        Of the random cases.
    """
    cases = list(_cases(np.random.default_rng(seed)))
    findings = [_over_cases(name, check, exploration, cases) for name, check in _CHECKS.items()]
    if getattr(exploration, "needs_scores", True):
        findings.append(_refuses("refuses NaN and infinite scores", exploration, _bad_scores()))
    nobody = [_Case(np.zeros(3), np.zeros(3, dtype=bool), 0)]
    findings.append(_refuses("refuses to choose among no actions", exploration, nobody))
    return findings


def _cases(rng: np.random.Generator) -> Iterator[_Case]:
    for round_ in range(_ROUNDS):
        k = int(rng.integers(1, 12))
        scores = rng.random(k) if round_ % 2 else rng.integers(0, 3, k) / 2.0
        eligible = rng.random(k) < 0.7
        eligible[rng.integers(k)] = True
        yield _Case(scores, eligible, _TRAINING_ROWS[round_ % 3])
    for scores in (
        np.zeros(1),
        np.array([1e300, -1e300, 0.0]),
        np.array([1e-300, 2e-300, 0.0]),
        np.array([0.5, np.nextafter(0.5, 1.0)]),
        np.full(5, -3.0),
        rng.random(10_000),
        np.repeat(rng.random(10), 1000),
    ):
        yield _Case(scores, np.ones(scores.size, dtype=bool), 1000)


def _bad_scores() -> list[_Case]:
    everyone = np.ones(3, dtype=bool)
    return [_Case(np.array([0.1, bad, 0.3]), everyone, 10) for bad in (np.nan, np.inf, -np.inf)]


def _over_cases(
    name: str,
    check: Callable[[HasPmf, _Case], bool],
    exploration: HasPmf,
    cases: list[_Case],
) -> Finding:
    for case in cases:
        try:
            passed = check(exploration, case)
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            return Finding(
                check=name, passed=False, counterexample=f"{case}: {type(error).__name__}: {error}"
            )
        if not passed:
            pmf = np.array2string(np.asarray(_ask(exploration, case)), threshold=12)
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


def _ask(exploration: HasPmf, case: _Case) -> FloatArray:
    # A copy, so that one that writes to its scores doesn't spoil the cases of other checks.
    scores, eligible = case.scores.copy(), case.eligible.copy()
    return exploration.pmf(scores, eligible, training_rows=case.training_rows)


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
    moved = _Case(case.scores[order], case.eligible[order], case.training_rows)
    return bool(np.allclose(_ask(exploration, moved), _ask(exploration, case)[order], atol=1e-12))


def _is_monotone(exploration: HasPmf, case: _Case) -> bool:
    pmf, scores = _ask(exploration, case)[case.eligible], case.scores[case.eligible]
    levels, group = np.unique(scores, return_inverse=True)
    least, most = np.full(levels.size, np.inf), np.zeros(levels.size)
    np.minimum.at(least, group, pmf)
    np.maximum.at(most, group, pmf)
    return bool((least[1:] >= most[:-1] - _EQUAL_TOLERANCE).all())


def _shares_ties(exploration: HasPmf, case: _Case) -> bool:
    pmf, scores = _ask(exploration, case)[case.eligible], case.scores[case.eligible]
    order = np.argsort(scores, kind="stable")
    tied = np.diff(scores[order]) == 0.0
    return bool((np.abs(np.diff(pmf[order]))[tied] <= _EQUAL_TOLERANCE).all())


def _is_repeatable(exploration: HasPmf, case: _Case) -> bool:
    return bool(np.array_equal(_ask(exploration, case), _ask(exploration, case)))


def _leaves_scores(exploration: HasPmf, case: _Case) -> bool:
    scores, eligible = case.scores.copy(), case.eligible.copy()
    exploration.pmf(scores, eligible, training_rows=case.training_rows)
    return np.array_equal(scores, case.scores) and np.array_equal(eligible, case.eligible)


_CHECKS: dict[str, Callable[[HasPmf, _Case], bool]] = {
    "gives a float64 array with an entry per action": _has_shape,
    "entries are finite and not negative": _is_distribution,
    "sums to 1 within 1e-9": _sums_to_one,
    "gives excluded actions 0": _excludes,
    "keeps the floor": _keeps_floor,
    "reorders with the actions": _is_equivariant,
    "shares ties evenly": _shares_ties,
    "never gives a higher score less": _is_monotone,
    "gives the same pmf again": _is_repeatable,
    "leaves the scores alone": _leaves_scores,
}
