"""Relative errors of off-policy estimators in the published protocols, beside the tables.

``python -m benchmarks.ope_errors`` draws the Open Bandit Pipeline's protocols
(:mod:`benchmarks.ope_protocols`) as often as its tables do, 30 times the digits and 20 times the
synthetic logs, and estimates from each with every estimator of the tables, with Croupier's default
one, and with the parts of it: :func:`~croupier.offline.ope.tuned_dr`, whose candidates are
``adjusted-dr`` and ``dros``, with the tables' reward model and with the same one recalibrated on
the log, which is the default. ``--runs`` draws more, which is worth more than the tables' few;
``--first`` is the seed of the first, for logs that nobody has tuned on; ``--protocol`` takes one of
the two; ``--json`` is for programs.

The relative error of a run is ``|estimate / value - 1|``; a row has the mean over the runs and its
standard error. A published mean is within if it differs from ours by no more than the standard
error of the difference of two independent means, although draws have the same seeds: what differs
is the versions of scikit-learn, and what the table doesn't tell of. The last columns say by how
much the default's error is lower, on the same draws, and that difference's standard error.

``switch-dr`` and ``dros`` are tuned here by the rule, the parameters and the level of the
pipeline's tables: SLOPE with unpaired widths, one-sided at a level of 0.05, which was the default
in release 0.5.2. Run under scikit-learn 1.3, that release gives all seven synthetic figures to the
last digit; later ones, whose default is 0.1, don't.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
from scipy import stats

from benchmarks.ope_protocols import Draw, digits, synthetic
from croupier.cli.output import Output
from croupier.offline.ope import (
    DM,
    DR,
    IPS,
    SNDR,
    SNIPS,
    AdjustedDR,
    DRos,
    Estimator,
    Slope,
    SwitchDR,
    candidates,
    recalibrate,
    tuned_dr,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from croupier.offline.ope import LoggedBatch

__all__ = ("DEFAULT", "PROTOCOLS", "PUBLISHED", "Published", "Row", "study")

DEFAULT = "tuned-dr, recalibrated"
PROTOCOLS: dict[str, tuple[Callable[[int], Draw], int]] = {
    "digits": (digits, 30),
    "synthetic": (synthetic, 20),
}
"""How a run is drawn, and how many the published table has."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a published table.

    Attributes
    ----------
    protocol, estimator
        Which.
    mean, deviation
        Mean relative error, and the standard deviation over the runs.
    runs
        How many.
    """

    protocol: str
    estimator: str
    mean: float
    deviation: float
    runs: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.runs)


PUBLISHED = tuple(
    Published(protocol=protocol, estimator=name, mean=mean, deviation=deviation, runs=runs)
    for protocol, runs, rows in (
        (
            "digits",
            30,
            (
                ("dm", 0.436541, 0.017629),
                ("ips", 0.030288, 0.024506),
                ("snips", 0.022764, 0.017917),
                ("dr", 0.016156, 0.012679),
                ("sndr", 0.022082, 0.016865),
                ("switch-dr", 0.034657, 0.018575),
                ("dros", 0.015868, 0.012537),
            ),
        ),
        (
            "synthetic",
            20,
            (
                ("dm", 0.074390, 0.024525),
                ("ips", 0.009481, 0.006899),
                ("snips", 0.006665, 0.004541),
                ("dr", 0.006175, 0.004245),
                ("sndr", 0.006118, 0.003997),
                ("switch-dr", 0.006175, 0.004245),
                ("dros", 0.021951, 0.013337),
            ),
        ),
    )
    for name, mean, deviation in rows
)
"""The pipeline's tables: ``examples/multiclass/README.md`` and ``examples/synthetic/README.md``."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One estimator in one protocol.

    Attributes
    ----------
    protocol, estimator
        Which.
    runs
        How many logs were drawn.
    mean, error
        Mean relative error and its standard error.
    root_mean_square
        Of the relative errors.
    published, published_error
        The table's mean and its standard error; None if it has no such row.
    within
        Whether they differ by no more than the standard error of their difference.
    to_default
        Mean relative error less the default's, on the same draws: positive if the default is
        better.
    to_default_error
        Its standard error.
    """

    protocol: str
    estimator: str
    runs: int
    mean: float
    error: float
    root_mean_square: float
    published: float | None
    published_error: float | None
    within: bool | None
    to_default: float
    to_default_error: float


_Estimates: TypeAlias = "Callable[[Draw, LoggedBatch], float]"

# The tables' parameters of both, and level.
_PARAMETERS = (10.0, 50.0, 100.0, 500.0, 1_000.0, 5_000.0, 10_000.0, math.inf)
_LEVEL = 0.05


def study(
    protocol: str,
    runs: int,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
    *,
    first: int = 0,
) -> list[Row]:
    """Estimate from so many logs of a protocol by every estimator.

    Parameters
    ----------
    protocol
        A key of :data:`PROTOCOLS`.
    runs
        How many, at least 2.
    progress
        Called with (done, in all).
    first
        Seed of the first run; the next ones follow. Those of the tables begin at 0.
    """
    draw, _ = PROTOCOLS[protocol]
    estimates = _estimates()
    errors = np.empty((runs, len(estimates)))
    for run in range(runs):
        drawn = draw(first + run)
        rows = drawn.batch()
        errors[run] = [abs(each(drawn, rows) / drawn.value - 1.0) for each in estimates.values()]
        progress(run + 1, runs)
    default = errors[:, list(estimates).index(DEFAULT)]
    return [
        _row(protocol, name, errors[:, position], default)
        for position, name in enumerate(estimates)
    ]


def _row(protocol: str, name: str, errors: np.ndarray, default: np.ndarray) -> Row:
    mean, error = float(errors.mean()), _error(errors)
    found = next(
        (each for each in PUBLISHED if (each.protocol, each.estimator) == (protocol, name)), None
    )
    return Row(
        protocol=protocol,
        estimator=name,
        runs=len(errors),
        mean=mean,
        error=error,
        root_mean_square=float(np.sqrt(np.mean(errors**2))),
        published=None if found is None else found.mean,
        published_error=None if found is None else found.error,
        within=None if found is None else abs(mean - found.mean) <= math.hypot(error, found.error),
        to_default=float(np.mean(errors - default)),
        to_default_error=_error(errors - default),
    )


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _estimates() -> dict[str, _Estimates]:
    """Every estimator, as a function of a log."""
    plain: dict[str, Estimator] = {
        "dm": DM(),
        "ips": IPS(),
        "snips": SNIPS(),
        "dr": DR(),
        "sndr": SNDR(),
    }
    found: dict[str, _Estimates] = {name: _plainly(each) for name, each in plain.items()}
    found["switch-dr"] = lambda _, rows: _pipeline_slope(
        [SwitchDR(each) for each in _PARAMETERS], rows
    )
    found["dros"] = lambda _, rows: _pipeline_slope([DRos(each) for each in _PARAMETERS], rows)
    found["dros, paired SLOPE"] = lambda drawn, rows: _chosen(
        Slope(candidates(DRos(1.0), drawn.largest_weight)), rows
    )
    found["adjusted-dr"] = _plainly(AdjustedDR())
    found["tuned-dr"] = lambda drawn, rows: _chosen(tuned_dr(drawn.largest_weight), rows)
    found[DEFAULT] = _default
    return found


def _default(drawn: Draw, rows: LoggedBatch) -> float:
    del rows
    model = recalibrate(
        drawn.fitted,
        action=drawn.action,
        reward=drawn.reward,
        logging=drawn.logging,
        target=drawn.target,
    )
    return _chosen(tuned_dr(drawn.largest_weight), drawn.batch(model))


def _plainly(estimator: Estimator) -> _Estimates:
    return lambda _, rows: estimator.point(estimator.columns(rows).mean(axis=0))[0]


def _pipeline_slope(estimators: Sequence[Estimator], rows: LoggedBatch) -> float:
    """The pipeline's rule: unpaired widths from Student's t, one-sided."""
    errors = float(stats.t.ppf(1.0 - _LEVEL, len(rows) - 1))
    return _chosen(Slope(estimators, errors=errors, paired=False), rows)


def _chosen(slope: Slope, rows: LoggedBatch) -> float:
    return next(each.value for each in slope.add(rows).candidates() if each.chosen)


def main() -> None:
    """Draw, estimate, and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, help="logs per protocol; those of the tables if absent")
    parser.add_argument("--first", type=int, default=0, help="seed of the first log")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="one of the two")
    parser.add_argument("--json", action="store_true", help="write JSON")
    asked = parser.parse_args()
    if asked.runs is not None and asked.runs < 2:
        parser.error("--runs: expected at least 2")
    if not 0 <= asked.first < 2**31:
        parser.error("--first: expected a number in [0, 2^31)")
    output = Output(json=asked.json)
    found: list[Row] = []
    for name in PROTOCOLS if asked.protocol is None else (asked.protocol,):
        with output.progress(name) as progress:
            found += study(name, asked.runs or PROTOCOLS[name][1], progress, first=asked.first)
    output.result(found, lambda: _show(output, found))


def _show(output: Output, found: Sequence[Row]) -> None:
    for protocol in dict.fromkeys(each.protocol for each in found):
        rows = [each for each in found if each.protocol == protocol]
        output.table(
            f"{protocol}: relative errors of {rows[0].runs:,} runs",
            ["estimator", "mean", "±", "published", "± ", "within", "less default", "±  "],
            [
                [
                    each.estimator,
                    f"{each.mean:.4f}",
                    f"{each.error:.4f}",
                    None if each.published is None else f"{each.published:.4f}",
                    None if each.published_error is None else f"{each.published_error:.4f}",
                    each.within,
                    f"{each.to_default:+.4f}",
                    f"{each.to_default_error:.4f}",
                ]
                for each in rows
            ],
        )


if __name__ == "__main__":
    main()
