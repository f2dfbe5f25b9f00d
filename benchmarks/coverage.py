"""Coverage and width of all intervals, in simulated logs whose value is known.

``python -m benchmarks.coverage`` draws 2,000 logs for each of 27 problems (n = 1,000, 2,000 and
10,000 rows; a reward rate of .02, .2 and .8; a largest weight of 5, 15 and 50) and asks every
interval of :mod:`croupier.offline.ope` for 95%. ``--quick`` draws 200.

A problem has five actions and no context, so a log is a table of counts (action by reward), and
so are its Poisson replicates; the sums that an estimator keeps are made from the counts. Confidence
sequences, which depend on the order of rows, see those of every fourth log in a random one, and are
also judged at every time at once: how often any row's interval misses.

Two intervals that know the truth stand beside them. ``fixed`` is the estimate, more or less the
95% quantile of its own error in this very problem. ``score`` is Wilson's interval for a ratio
whose variance at every value is known, ``|v' - v| <= z sqrt(E[w^2] v (1 - v) / n)``, with z
calibrated in this very problem to cover in 95% of the logs.
"""

from __future__ import annotations

import argparse
import copy
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from croupier.cli.output import Output
from croupier.offline.ope import (
    IPS,
    SNIPS,
    ClippedIPS,
    ConfidenceSequence,
    Estimator,
    LoggedBatch,
)
from croupier.offline.ope.accumulators import Tally
from croupier.offline.ope.intervals import Moments
from croupier.offline.ope.sequences import log_wealth
from croupier.policy.errors import NoIntervalError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ("DEFAULT", "GRID", "Figures", "Problem", "study")

CONFIDENCE = 0.95
LOGS, QUICK_LOGS = 2_000, 200
REPLICATES = 500
_AT_ONCE = 200
_EVERY = 4
DEFAULT = "empirical likelihood"
_TARGET = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
_LOGGING = np.array([0.6, 0.2, 0.1, 0.07])


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Five actions of one reward rate; the last one has the largest weight.

    Attributes
    ----------
    n
        Rows of a log.
    rate
        Probability of reward 1 in place of 0.
    largest
        Largest importance weight, more than 1.
    """

    n: int
    rate: float
    largest: float

    @property
    def logging(self) -> FloatArray:
        """Probabilities of the logging policy, shape (5,)."""
        rare = float(_TARGET[-1]) / self.largest
        return np.append(_LOGGING / _LOGGING.sum() * (1.0 - rare), rare)

    @property
    def cells(self) -> LoggedBatch:
        """The ten kinds of rows: every action with reward 0, then with reward 1."""
        return LoggedBatch(
            reward=np.repeat((0.0, 1.0), 5),
            propensity=np.tile(self.logging, 2),
            target_probability=np.tile(_TARGET, 2),
        )

    @property
    def chances(self) -> FloatArray:
        """Probabilities of the kinds, shape (10,)."""
        return np.outer((1.0 - self.rate, self.rate), self.logging).ravel()

    @property
    def weight_range(self) -> tuple[float, float]:
        """Smallest and largest weight, the former as one would declare it."""
        return (0.0, float(self.cells.weight.max()))


GRID = tuple(
    Problem(n=n, rate=rate, largest=largest)
    for n in (1_000, 2_000, 10_000)
    for rate in (0.02, 0.2, 0.8)
    for largest in (5.0, 15.0, 50.0)
)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One interval in one problem.

    Attributes
    ----------
    problem, interval
        Which.
    logs
        How many were drawn.
    refused
        Share of them that the interval gave no answer for, with a reason.
    coverage
        Share of the answers that hold the value; None if there are none, as for the widths.
    width
        Their mean width.
    to_fixed, to_score
        Width over that of the two intervals that know the truth.
    at_any_time
        Of a confidence sequence, share of the logs on which all rows' intervals hold the value.
    """

    problem: Problem
    interval: str
    logs: int
    refused: float
    coverage: float | None
    width: float | None
    to_fixed: float | None
    to_score: float | None
    at_any_time: float | None = None


def study(problem: Problem, logs: int, seed: int) -> list[Figures]:
    """Judge all intervals on the same simulated logs.

    Parameters
    ----------
    problem
        Where.
    logs
        How many.
    seed
        Of all draws.
    """
    rng = np.random.default_rng([seed, problem.n, round(1000 * problem.rate), int(problem.largest)])
    counts = rng.multinomial(problem.n, problem.chances, size=logs)
    found: dict[str, tuple[FloatArray, FloatArray]] = {}
    for name, estimator in _estimators(problem).items():
        found[name] = _intervals(estimator, problem, counts)
    found |= _bootstraps(problem, counts, rng)
    sequences, held = _sequences(problem, counts[::_EVERY], rng)
    oracles = _oracles(problem, counts)
    return [
        _figures(problem, name, ends, oracles, held.get(name))
        for name, ends in (found | sequences).items()
    ]


def _estimators(problem: Problem) -> dict[str, Estimator]:
    known: dict[str, Any] = {"weight_range": problem.weight_range}
    return {
        DEFAULT: SNIPS(**known),
        "empirical likelihood, weights unbounded": SNIPS(),
        "normal (IPS)": IPS(interval="normal", **known),
        "delta (SNIPS)": SNIPS(interval="delta", **known),
        "outer (IPS clipped at 10)": ClippedIPS(10.0, interval="outer", **known),
        "empirical Bernstein": IPS(interval="empirical-bernstein", **known),
        "Clopper-Pearson": IPS(interval="clopper-pearson", **known),
    }


def _tallies(estimator: Estimator, problem: Problem, counts: NDArray[np.int64]) -> Iterator[Tally]:
    """What `estimator` would have kept of every log, made from its counts."""
    cells, n = problem.cells, problem.n
    columns = estimator.columns(cells)
    means = counts @ columns / n
    squares = np.einsum("lc,ci,cj->lij", counts, columns, columns)
    scatters = squares - n * means[:, :, None] * means[:, None, :]
    zeros = np.zeros(len(cells))
    tracked = np.column_stack((np.ones(len(cells)), zeros, zeros, cells.weight))
    for log, mean, scatter in zip(counts, means, scatters, strict=True):
        seen = tracked[log > 0]
        rewards = int(log[cells.reward * cells.weight > 0.0].sum())
        yield Tally(Moments(n, mean, scatter), seen.min(axis=0), seen.max(axis=0), rewards)


def _intervals(
    estimator: Estimator, problem: Problem, counts: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """Ends of every log's interval, shape (logs,); NaN where it is refused."""
    ends = np.full((2, len(counts)), math.nan)
    reader = copy.copy(estimator)
    for log, tally in enumerate(_tallies(estimator, problem, counts)):
        reader.tally_ = tally
        try:
            estimate = reader.result(CONFIDENCE)
        except (NoIntervalError, NotEnoughDataError):
            continue
        ends[:, log] = estimate.lower, estimate.upper
    return ends[0], ends[1]


def _bootstraps(
    problem: Problem, counts: NDArray[np.int64], rng: np.random.Generator
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Percentile intervals; the sum of c draws of Poisson(1) is one of Poisson(c)."""
    tails = ((1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0)
    cells = problem.cells
    sums = np.column_stack((np.ones(len(cells)), cells.weight, cells.weight * cells.reward))
    parts: list[FloatArray] = []
    for start in range(0, len(counts), _AT_ONCE):
        some = counts[start : start + _AT_ONCE, None, :]
        replicates = rng.poisson(some, size=(len(some), REPLICATES, len(cells))) @ sums
        ratios = replicates[:, :, 2:] / replicates[:, :, :2]
        parts.append(np.quantile(ratios, tails, axis=1))
    ends = np.concatenate(parts, axis=1)
    return {
        name: (ends[0, :, column], ends[1, :, column])
        for column, name in enumerate(("bootstrap (IPS)", "bootstrap (SNIPS)"))
    }


def _sequences(
    problem: Problem, counts: NDArray[np.int64], rng: np.random.Generator
) -> tuple[dict[str, tuple[FloatArray, FloatArray]], dict[str, FloatArray]]:
    """Ends after the last row, and whether the intervals of all rows hold the value."""
    made = {
        "confidence sequence": IPS(weight_range=problem.weight_range),
        "confidence sequence, weights unbounded": IPS(),
    }
    cells, kinds = problem.cells, np.arange(len(problem.chances))
    ends = {name: np.full((2, len(counts)), math.nan) for name in made}
    held = {name: np.ones(len(counts)) for name in made}
    for log, table in enumerate(counts):
        order = rng.permutation(np.repeat(kinds, table))
        batch = LoggedBatch(
            reward=cells.reward[order],
            propensity=cells.propensity[order],
            target_probability=cells.target_probability[order],
        )
        for name, estimator in made.items():
            sequence = ConfidenceSequence(estimator)
            for (x, time, variance), mean in zip(
                sequence.path(batch).sides, (problem.rate, -problem.rate), strict=True
            ):
                total = np.cumsum(x) - mean * np.cumsum(time)
                missed = _ever_above(total, np.cumsum(variance), sequence.rho)
                held[name][log] *= 1.0 - missed
            estimate = sequence.add(batch).result(CONFIDENCE)
            ends[name][:, log] = estimate.lower, estimate.upper
    return {name: (each[0], each[1]) for name, each in ends.items()}, held


def _ever_above(total: FloatArray, variance: FloatArray, rho: float) -> bool:
    """Whether a side rules the truth out at any row.

    A mixture is nowhere above its best part, whose log is ``v (u - log(1 + u))`` with u = s / v;
    only rows where that is large enough need the mixture itself.
    """
    threshold = math.log(2.0 / (1.0 - CONFIDENCE))
    share = np.maximum(total, 0.0) / np.maximum(variance, 1e-300)
    near = variance * (share - np.log1p(share)) > threshold
    return bool((log_wealth(total[near], variance[near], rho) > threshold).any())


def _oracles(problem: Problem, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Mean widths of the two intervals that know the truth."""
    cells, n, value = problem.cells, problem.n, problem.rate
    payoffs = counts @ (cells.weight * cells.reward)
    estimates = payoffs / np.maximum(counts @ cells.weight, 1e-300)
    fixed = 2.0 * min(
        float(np.quantile(np.abs(each - value), CONFIDENCE)) for each in (payoffs / n, estimates)
    )
    # One row of weight w tells as much as that share of a row of weight 1.
    rows = n / float(_TARGET @ (_TARGET / problem.logging))
    z = float(np.quantile(np.abs(estimates - value), CONFIDENCE, method="higher"))
    z /= math.sqrt(value * (1.0 - value) / rows)
    root = np.sqrt(estimates * (1.0 - estimates) / rows + z**2 / (4.0 * rows**2))
    return fixed, float(np.mean(2.0 * z * root / (1.0 + z**2 / rows)))


def _figures(
    problem: Problem,
    name: str,
    ends: tuple[FloatArray, FloatArray],
    oracles: tuple[float, float],
    held: FloatArray | None,
) -> Figures:
    answered = np.isfinite(ends[0])
    lower, upper = ends[0][answered], ends[1][answered]
    covered = (lower - 1e-12 <= problem.rate) & (problem.rate <= upper + 1e-12)
    width = float(np.mean(upper - lower)) if len(lower) else None
    return Figures(
        problem=problem,
        interval=name,
        logs=len(answered),
        refused=1.0 - float(answered.mean()),
        coverage=float(covered.mean()) if len(lower) else None,
        width=width,
        to_fixed=None if width is None else width / oracles[0],
        to_score=None if width is None else width / oracles[1],
        at_any_time=None if held is None else float(held.mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LOGS} logs a problem")
    parser.add_argument("--logs", type=int, default=None, help=f"logs a problem, {LOGS:,}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="one row for every problem")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logs = given.logs or (QUICK_LOGS if given.quick else LOGS)
    output = Output(json=given.json)
    found: list[Figures] = []
    with output.progress("problems") as progress:
        for done, problem in enumerate(GRID, start=1):
            found += study(problem, logs, given.seed)
            progress(done, len(GRID))
    output.result(found, lambda: _show(output, found, every=given.all))


def _show(output: Output, found: list[Figures], *, every: bool) -> None:
    names = list(dict.fromkeys(each.interval for each in found))
    output.table(
        f"Intervals of 95% over {len(GRID)} problems of {found[0].logs:,} logs",
        [
            "interval",
            "refused",
            "least coverage",
            "mean coverage",
            "width to score: mean",
            "largest",
            "width to fixed: mean",
            "largest",
            "at any time, least",
        ],
        [_summary(name, [each for each in found if each.interval == name]) for name in names],
    )
    for name in names if every else (DEFAULT,):
        output.table(
            name,
            ["n", "rate", "largest weight", "coverage", "width", "to score", "to fixed"],
            [
                [
                    each.problem.n,
                    each.problem.rate,
                    each.problem.largest,
                    _rounded(each.coverage, 4),
                    _rounded(each.width, 4),
                    _rounded(each.to_score, 2),
                    _rounded(each.to_fixed, 2),
                ]
                for each in found
                if each.interval == name
            ],
        )


def _summary(name: str, figures: list[Figures]) -> list[object]:
    refused = round(float(np.mean([each.refused for each in figures])), 3)
    coverages = [each.coverage for each in figures if each.coverage is not None]
    scores = [each.to_score for each in figures if each.to_score is not None]
    fixed = [each.to_fixed for each in figures if each.to_fixed is not None]
    if not coverages:
        return [name, refused, *([None] * 7)]
    times = [each.at_any_time for each in figures if each.at_any_time is not None]
    return [
        name,
        refused,
        round(min(coverages), 4),
        round(float(np.mean(coverages)), 4),
        round(float(np.mean(scores)), 2),
        round(max(scores), 2),
        round(float(np.mean(fixed)), 2),
        round(max(fixed), 2),
        round(min(times), 4) if times else None,
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


if __name__ == "__main__":
    main()
