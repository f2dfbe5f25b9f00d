"""What the runs of the study from a log say: policies against each other, and every switch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import scipy

from croupier.offline.study.oscillation import Mean, mean_of
from croupier.sim2rec.log_study_config import BASE, VARIANTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("Ablation", "Difference", "LogStudy", "SessionEstimate", "Truths", "summarise_log")

_CONFIDENCE = 0.95


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Between two returns of the same users, in the mean over seeds.

    Attributes
    ----------
    value
        Of it.
    lower, upper
        Its 95% interval: Student's over seeds, and with one seed the normal one over users; None if
        it can't be told.
    p_value
        Of the t-test over seeds that there is none, two-sided; None with one seed.
    """

    value: float
    lower: float | None
    upper: float | None
    p_value: float | None


class SessionEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says of the policy, by one estimator over the judges' sessions.

    Attributes
    ----------
    estimator
        Its name.
    value
        Mean over seeds.
    lower, upper
        Means of the ends of its 95% intervals.
    off
        Mean of estimate less truth; None where nobody knows the truth.
    covers
        In how many seeds the interval holds the truth; None likewise.
    """

    estimator: str
    value: float
    lower: float
    upper: float
    off: Mean | None
    covers: int | None


class Truths(msgspec.Struct, frozen=True, kw_only=True):
    """Returns of a session of fresh users of the hidden population.

    Attributes
    ----------
    policy
        Of the policy.
    champion, greedy
        Of the bandit's champion as it is served, and without exploration.
    constant, optimum
        Of the best constant document, and of the best sequence for each user.
    over_champion, over_greedy, over_constant
        What the policy earns more.
    """

    policy: Mean
    champion: Mean
    greedy: Mean
    constant: Mean
    optimum: Mean
    over_champion: Difference
    over_greedy: Difference
    over_constant: Difference


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """True returns with a switch on and off.

    Attributes
    ----------
    switch
        Which.
    kept
        Whether it is on in the study as it is.
    seeds
        How many policies of each were trained.
    on, off
        Returns; the standard errors are over seeds.
    simulated_on, simulated_off
        What the simulators say of them, without penalty.
    unseen_on, unseen_off
        What simulators say in which they were not trained.
    gain
        Of the switch, seed by seed.
    """

    switch: str
    kept: bool
    seeds: int
    on: Mean
    off: Mean
    simulated_on: Mean
    simulated_off: Mean
    unseen_on: Mean
    unseen_off: Mean
    gain: Difference


class LogStudy(msgspec.Struct, frozen=True, kw_only=True):
    """The study as it is, and its ablations.

    Attributes
    ----------
    seeds, sessions, judges
        How many logs there were, and on average their sessions and those of them that judge.
    rmse, naive_rmse, coverage
        One-step errors of the simulators on held-out users, those of each action's mean reward, and
        the share of rewards within 90% intervals; None where rewards are 0 or 1.
    rolled_rmse, rolled_naive_rmse, return_bias
        Errors of roll-outs of which only the first observation is known, and the bias of returns.
    logged
        Mean return of the sessions that the latest generation answered; None if there are none.
    simulated
        The policy's return in the simulators.
    unseen
        The same in simulators of the judges' users, in which it was not trained; the interval is
        that of a bootstrap of users.
    estimates
        The same by the log.
    truths
        The same and others' truly; None for a log whose users nobody can ask.
    ablations
        Of each switch that was turned.
    """

    seeds: int
    sessions: float
    judges: float
    rmse: Mean
    naive_rmse: Mean
    coverage: Mean | None
    rolled_rmse: Mean
    rolled_naive_rmse: Mean
    return_bias: Mean
    logged: Mean | None
    simulated: Mean
    unseen: SessionEstimate
    estimates: list[SessionEstimate]
    truths: Truths | None
    ablations: list[Ablation]


def summarise_log(runs: pl.DataFrame) -> LogStudy:
    """Say what runs were worth.

    Parameters
    ----------
    runs
        Of :data:`~croupier.sim2rec.log_runs.LOG_RUNS_SCHEMA`, with the study as it is for every
        seed.
    """
    base = runs.filter(variant=BASE.name).sort("seed")

    def mean(column: str) -> Mean:
        return mean_of(base[column].to_numpy())

    known = base["value"].null_count() == 0
    logged = [each["value"] for each in base["logged"] if each is not None]
    covers = base["coverage"].to_numpy()
    return LogStudy(
        seeds=len(base),
        sessions=mean("sessions").value,
        judges=mean("judges").value,
        rmse=mean("rmse"),
        naive_rmse=mean("naive_rmse"),
        coverage=None if np.isnan(covers).any() else mean_of(covers),
        rolled_rmse=mean("rolled_rmse"),
        rolled_naive_rmse=mean("rolled_naive_rmse"),
        return_bias=mean("return_bias"),
        logged=mean_of(np.array(logged)) if logged else None,
        simulated=mean("simulated"),
        unseen=_estimates(base.with_columns(pl.concat_list("unseen")), "unseen", known=known)[0],
        estimates=_estimates(base, "estimates", known=known),
        truths=_truths(base) if known else None,
        ablations=_ablations(runs, base) if known else [],
    )


def _estimates(base: pl.DataFrame, column: str, *, known: bool) -> list[SessionEstimate]:
    told = base.select("value", told=column).explode("told").unnest("told", separator=".")
    found = []
    for (name,), rows in told.group_by("told.estimator", maintain_order=True):
        value, lower, upper = (
            rows[f"told.{each}"].to_numpy() for each in ("value", "lower", "upper")
        )
        truth = rows["value"].to_numpy()
        found.append(
            SessionEstimate(
                estimator=str(name),
                value=float(value.mean()),
                lower=float(lower.mean()),
                upper=float(upper.mean()),
                off=mean_of(value - truth) if known else None,
                covers=int(((lower <= truth) & (truth <= upper)).sum()) if known else None,
            )
        )
    return found


def _truths(base: pl.DataFrame) -> Truths:
    policy = base["value"].to_numpy()
    others = {name: base[name].to_numpy() for name in ("champion", "greedy", "constant", "optimum")}
    return Truths(
        policy=mean_of(policy),
        **{name: mean_of(each) for name, each in others.items()},
        over_champion=_difference(
            policy - others["champion"], None if len(base) > 1 else base["lead_error"].item()
        ),
        over_greedy=_difference(policy - others["greedy"]),
        over_constant=_difference(policy - others["constant"]),
    )


def _ablations(runs: pl.DataFrame, base: pl.DataFrame) -> list[Ablation]:
    found = []
    for variant in VARIANTS:
        turned = runs.filter(variant=variant.name).sort("seed")
        if variant.switch is None or not len(turned):
            continue
        same = base.join(turned.select("seed"), on="seed", maintain_order="left")
        on, off = (turned, same) if variant.on else (same, turned)
        found.append(
            Ablation(
                switch=variant.switch,
                kept=not variant.on,
                seeds=len(turned),
                on=mean_of(on["value"].to_numpy()),
                off=mean_of(off["value"].to_numpy()),
                simulated_on=mean_of(on["simulated"].to_numpy()),
                simulated_off=mean_of(off["simulated"].to_numpy()),
                unseen_on=_unseen(on),
                unseen_off=_unseen(off),
                gain=_difference(on["value"].to_numpy() - off["value"].to_numpy()),
            )
        )
    return found


def _unseen(runs: pl.DataFrame) -> Mean:
    return mean_of(runs["unseen"].struct["value"].to_numpy())


def _difference(values: NDArray[np.float64], error: float | None = None) -> Difference:
    """Of differences seed by seed; `error` is the standard error of the only one."""
    mean, n = float(values.mean()), len(values)
    wide = float(scipy.stats.norm.ppf(0.5 + _CONFIDENCE / 2.0))
    p_value = None
    if n > 1:
        error = float(values.std(ddof=1)) / math.sqrt(n)
        wide = float(scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2.0, n - 1))
        if error > 0.0:
            p_value = float(scipy.stats.ttest_1samp(values, 0.0).pvalue)
    if error is None:
        return Difference(value=mean, lower=None, upper=None, p_value=None)
    return Difference(
        value=mean, lower=mean - wide * error, upper=mean + wide * error, p_value=p_value
    )
