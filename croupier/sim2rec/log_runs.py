"""Every seed and variant of the study from a log, in processes, kept in a Delta table."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import polars as pl
import scipy
from threadpoolctl import threadpool_limits

from croupier.offline.delays import settled_interactions
from croupier.offline.join import fold_of
from croupier.offline.lake import Lake
from croupier.offline.rewards import FOLDS
from croupier.offline.session_values import compare_over_sessions
from croupier.offline.sessions import LoggedSessions, logged_sessions
from croupier.offline.study.run_table import RunTable, stop_if_orphaned
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.exploration import Greedy
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.recurrent import TrainingNotes
from croupier.sim2rec.jax_extra import prepare_jax, require_jax
from croupier.sim2rec.log_loop import LOOP, GenerationAnswers, drawn, loop_of, serve_nights
from croupier.sim2rec.log_study_config import BASE, VARIANTS, LogStudyConfig, PolicyConfig
from croupier.sim2rec.log_world import Crowd, best_constant, optimum, play_crowd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.ope import Estimate
    from croupier.policy.sessions import SessionsConfig
    from croupier.sim2rec.log_policy import LearnedPolicy
    from croupier.sim2rec.log_world import Answering
    from croupier.sim2rec.user_model import FittedUsers

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("ESTIMATORS", "LOG_RUNS_SCHEMA", "UNSEEN", "LoggedLoop", "policy_folder", "run_from_log")

ESTIMATORS: Final = ("wpdis", "sdr", "wdr", "mdr", "wmdr")
"""Of what the policy is worth over the judges' sessions, see
:data:`~croupier.offline.ope.SESSION_ESTIMATORS`."""

UNSEEN: Final = "simulators of the judges"
"""What tells of a policy by simulators in which it was not trained."""

_ESTIMATE: Final[pl.DataType] = pl.Struct(
    {
        "estimator": pl.String,
        "value": pl.Float64,
        "lower": pl.Float64,
        "upper": pl.Float64,
        "ess": pl.Float64,
    }
)

_COLUMNS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "digest": pl.String,
    "seed": pl.Int64,
    "variant": pl.String,
    "sessions": pl.Int64,
    "judges": pl.Int64,
    "rmse": pl.Float64,
    "naive_rmse": pl.Float64,
    "coverage": pl.Float64,
    "rolled_rmse": pl.Float64,
    "rolled_naive_rmse": pl.Float64,
    "return_bias": pl.Float64,
    "simulated": pl.Float64,
    "unseen": _ESTIMATE,
    "estimates": pl.List(_ESTIMATE),
    "logged": _ESTIMATE,
    "value": pl.Float64,
    "value_error": pl.Float64,
    "champion": pl.Float64,
    "greedy": pl.Float64,
    "constant": pl.Float64,
    "optimum": pl.Float64,
    "lead": pl.Float64,
    "lead_error": pl.Float64,
}

LOG_RUNS_SCHEMA: Final = pl.Schema(_COLUMNS)
"""A row for each policy that was trained.

`rmse`, `naive_rmse` and `coverage` are the simulators' one step errors of held-out users,
`rolled_rmse`, `rolled_naive_rmse` and `return_bias` those of roll-outs; `simulated` is the policy's
return in them, `unseen` that in simulators of the judges' users, in which it was not trained,
`estimates` what the judges' sessions say of it, `logged` the mean return of the sessions that the
latest generation answered. The rest is true, of fresh users of the hidden
population, and null where there is none: the returns of the policy (with its standard error over
users), of the bandit's champion as it is served and without exploration, of the best constant and
of the optimum; `lead` is the policy's over the champion, user by user.
"""

# Parts of a seed: fresh users, the session that counts, and the one that chooses the constant.
_FRESH, _SESSION, _PILOT = 200, 201, 202


class LoggedLoop(msgspec.Struct, frozen=True, kw_only=True):
    """A loop with a log of its own, and no population that anybody could ask.

    Attributes
    ----------
    lake
        Where the lake is.
    name, config
        Of the loop, which has sessions.
    version
        Of the interactions.
    """

    lake: str
    name: str
    config: LoopConfig
    version: int


def run_from_log(
    config: LogStudyConfig,
    seeds: Sequence[int],
    *,
    directory: Path,
    jobs: int,
    loop: LoggedLoop | None = None,
    variants: Sequence[str] = (BASE.name,),
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Learn policies from logs, but for those that the table has already, and measure them.

    Parameters
    ----------
    config
        Of all of them.
    seeds
        Of the population and its log, of models and policies.
    directory
        Where the Delta table ``runs`` is, and a folder for each seed with log, lake, models and
        policies; made if they aren't there. What was stopped goes on from there.
    jobs
        How many processes work, at least 1.
    loop
        A loop whose log is learned from, instead of a hidden population's.
    variants
        Names of :data:`~croupier.sim2rec.log_study_config.VARIANTS`.
    progress
        Called with the numbers of policies that are finished and that there are.

    Returns
    -------
    runs
        Of these seeds and variants, of :data:`LOG_RUNS_SCHEMA`.

    Raises
    ------
    ConfigError
        If JAX isn't installed.
    NotEnoughDataError
        If a log has too few users or sessions.
    """
    require_jax("simulate")
    text = msgspec.json.encode([config, loop], order="deterministic")
    digest = hashlib.sha256(text).hexdigest()[:16]
    table = RunTable(directory / "runs", LOG_RUNS_SCHEMA, ("seed", "variant"))
    found = table.finished(pl.col("digest") == digest)
    wanted = [(seed, variant) for seed in seeds for variant in variants]
    unfinished = set(table.missing(wanted, found))
    # The study as it is comes first, so that what is there when it is stopped says the most; what
    # is turned afterwards finds its log and its models.
    parts = [
        part
        for part in ([BASE.name], [each for each in variants if each != BASE.name])
        if set(part) & set(variants)
    ]
    missing = [
        [
            _Task(config, loop, seed, names, digest, directory)
            for seed in seeds
            if (names := tuple(each for each in part if (seed, each) in unfinished))
        ]
        for part in parts
    ]
    fresh: list[pl.DataFrame] = []
    groups = len(parts) * len(seeds)
    for place, tasks in enumerate(missing):
        later = sum(map(len, missing[place + 1 :]))
        fresh += table.run(
            _run,
            [(task,) for task in tasks],
            wanted=groups - later,
            jobs=jobs,
            progress=None if progress is None else lambda done, _: progress(done, groups),
        )
    return table.of(wanted, [found, *fresh])


def policy_folder(directory: Path, run: Mapping[str, Any]) -> Path:
    """Where a run's policy is as it would be served; only that of the study as it is."""
    return directory / f"{run['seed']}-{run['digest']}" / "policy"


class _Task(NamedTuple):
    config: LogStudyConfig
    loop: LoggedLoop | None
    seed: int
    variants: tuple[str, ...]
    digest: str
    directory: Path

    @property
    def folder(self) -> Path:
        """Of what is kept on the way."""
        return self.directory / f"{self.seed}-{self.digest}"


def _run(task: _Task) -> pl.DataFrame:
    with threadpool_limits(limits=1):
        prepare_jax(task.directory)
        return pl.DataFrame(_rows(task), schema=LOG_RUNS_SCHEMA, orient="row")


def _rows(task: _Task) -> list[dict[str, Any]]:
    champion = None if task.loop is not None else _served(task)
    log = _Log.of(task)
    config = _fitted_to(task.config.policy, log.sessions)
    fitted = _models(task, config, log.learner, "models")
    unseen = _models(task, config, log.judges, "models-of-judges")
    about = _about(log, fitted)
    truth = None if champion is None else _Truth(task, champion)
    rows = []
    for variant in VARIANTS:
        if variant.name not in task.variants:
            continue
        stop_if_orphaned()
        own = _fitted_to(task.config.variant(variant), log.sessions)
        row = about | {"digest": task.digest, "seed": task.seed, "variant": variant.name}
        policy = _trained(task, variant.name, own, log=log, fitted=fitted)
        row |= _simulated(task, policy, log=log, fitted=fitted, unseen=unseen)
        if variant.name == BASE.name:
            row["estimates"] = _estimates(task, policy, log)
            _export(task, policy, own, log)
        if truth is not None:
            row |= truth.of(policy)
        rows.append(row)
    return rows


def _served(task: _Task) -> Generation:
    """The champion of the embedded loop, whose log is there afterwards."""
    kept = task.folder / "champion"
    if not kept.exists():
        # Half a log is of no use.
        shutil.rmtree(task.folder / "loop", ignore_errors=True)
        (task.folder / "loop").mkdir(parents=True)
        serve_nights(
            task.config.world,
            task.seed,
            task.folder / "loop",
            progress=lambda _done, _total: stop_if_orphaned(),
        ).save(kept)
    return Generation.load(kept)


class _Log(NamedTuple):
    """Logged sessions: all, those that are learned from, and the judges'; of what and of when."""

    config: SessionsConfig
    version: int
    sessions: LoggedSessions
    learner: LoggedSessions
    judges: LoggedSessions

    @classmethod
    def of(cls, task: _Task) -> _Log:
        loop = task.loop
        if loop is None:
            lake, name, config = (
                Lake(task.folder / "loop" / "lake"),
                LOOP,
                loop_of(task.config.world),
            )
            version = lake.version("interactions")
        else:
            lake, name, config = Lake(Path(loop.lake)), loop.name, loop.config
            version = loop.version
        rows = settled_interactions(lake, name, config, version=version)
        assert config.sessions is not None, "whoever asks has looked"
        sessions = logged_sessions(rows.collect(), config.sessions)
        judging = judging_users(sessions, task.config.policy.judge_share)
        ours, theirs = sessions.only(~judging), sessions.only(judging)
        return cls(config.sessions, version, sessions, ours, theirs)


def judging_users(sessions: LoggedSessions, share: float) -> NDArray[np.bool_]:
    """Which sessions are of users that judge, by a hash of who it is, shape (n,).

    Raises
    ------
    NotEnoughDataError
        If nobody judges, or nobody is left.
    """
    folds = {user: fold_of(user) for user in np.unique(sessions.user).tolist()}
    judging = np.array([folds[each] < share * FOLDS for each in sessions.user.tolist()])
    if judging.all() or not judging.any():
        raise NotEnoughDataError(
            f"expected users that learn and users that judge, got {len(folds)} in all"
        )
    return judging


def _fitted_to(config: PolicyConfig, sessions: LoggedSessions) -> PolicyConfig:
    return config.fitted_to(
        horizon=sessions.row.shape[1],
        columns=sessions.state.shape[2],
        groups=len(sessions.groups),
    )


def _models(task: _Task, config: PolicyConfig, sessions: LoggedSessions, name: str) -> FittedUsers:
    from croupier.sim2rec.user_model import fit_users  # noqa: PLC0415 - imports JAX, an extra

    return fit_users(
        sessions,
        config.models,
        seed=task.seed,
        checkpoint=task.folder / name,
        progress=lambda _done, _total: stop_if_orphaned(),
    )


def _about(log: _Log, fitted: FittedUsers) -> dict[str, Any]:
    rolled = fitted.roll_outs
    latest = _of_latest(log.sessions)
    return {
        "sessions": len(log.sessions),
        "judges": len(log.judges),
        "rmse": fitted.one_step.rmse,
        "naive_rmse": fitted.one_step.naive_rmse,
        "coverage": fitted.one_step.coverage,
        "rolled_rmse": float(rolled.by_step.mean()),
        "rolled_naive_rmse": float(rolled.naive_by_step.mean()),
        "return_bias": rolled.return_bias,
        "logged": None
        if latest is None
        else _told(compare_over_sessions(latest, {"logged": None}).policies[0].estimates[0]),
    }


def _of_latest(sessions: LoggedSessions) -> LoggedSessions | None:
    """Those that the latest generation answered, every step; None if they are too few."""
    numbers = sessions.interactions["generation"].to_numpy()
    latest = (numbers[sessions.row] == numbers.max()) | ~sessions.live
    answered = latest.all(axis=1)
    return sessions.only(answered) if answered.sum() >= 2 else None


def _told(estimate: Estimate) -> dict[str, Any]:
    return {
        name: getattr(estimate, name) for name in ("estimator", "value", "lower", "upper", "ess")
    }


def _trained(
    task: _Task, name: str, config: PolicyConfig, *, log: _Log, fitted: FittedUsers
) -> LearnedPolicy:
    from croupier.sim2rec.log_policy import train_policy  # noqa: PLC0415 - imports JAX, an extra

    return train_policy(
        config,
        fitted.models,
        log.learner,
        task.seed,
        checkpoint=task.folder / f"policy-{name.replace(' ', '-')}",
        progress=lambda _done, _total: stop_if_orphaned(),
    )


def _simulated(
    task: _Task, policy: LearnedPolicy, *, log: _Log, fitted: FittedUsers, unseen: FittedUsers
) -> dict[str, Any]:
    """What a policy returns in the simulators of the learner's users, and of the judges'."""
    from croupier.sim2rec.log_policy import returns_in  # noqa: PLC0415 - imports JAX, an extra

    config = _fitted_to(task.config.policy, log.sessions).simulators
    # As in the whole log: neither part of the users has exactly its groups.
    shares = np.bincount(log.sessions.group) / len(log.sessions)
    ours, theirs = (
        returns_in(each.models, sessions, policy, config, task.seed, shares=shares)
        for each, sessions in ((fitted, log.learner), (unseen, log.judges))
    )
    # Members are fitted to users drawn with replacement: they differ by a bootstrap's error.
    value, error = float(theirs.mean()), float(theirs.std(ddof=1))
    wide = float(scipy.stats.t.ppf(0.975, len(theirs) - 1)) * error
    told = {"estimator": UNSEEN, "value": value, "lower": value - wide, "upper": value + wide}
    return {"simulated": float(ours.mean()), "unseen": told | {"ess": None}}


def _estimates(task: _Task, policy: LearnedPolicy, log: _Log) -> list[dict[str, Any]]:
    """What the judges' sessions say of it."""
    named = {BASE.name: policy}
    judged = compare_over_sessions(log.judges, named, estimators=ESTIMATORS, seed=task.seed)
    return [_told(each) for each in judged.policies[0].estimates]


def _export(task: _Task, policy: LearnedPolicy, config: PolicyConfig, log: _Log) -> None:
    """Keep the policy as it would be served."""
    notes = TrainingNotes(
        seed=task.seed,
        lake_version=log.version,
        rows=len(log.learner.interactions),
        settings=msgspec.json.encode(config).decode(),
    )
    served = policy.exported(log.learner, log.config, notes)
    served.save(policy_folder(task.directory, {"seed": task.seed, "digest": task.digest}))


class _Truth:
    """What policies are worth to fresh users of the hidden population."""

    def __init__(self, task: _Task, champion: Generation) -> None:
        self._session = (task.seed, _SESSION)
        self._crowd = Crowd(
            task.config.world, task.config.fresh, np.random.default_rng((task.seed, _FRESH))
        )
        greedy = replace(champion, exploration=Greedy())
        self._champion = self._play(GenerationAnswers(champion))
        _, constant = best_constant(self._crowd, (task.seed, _PILOT), self._session)
        self._beside = {
            "champion": float(self._champion.mean()),
            "greedy": float(self._play(GenerationAnswers(greedy)).mean()),
            "constant": float(constant.mean()),
            "optimum": float(optimum(self._crowd, self._session).mean()),
        }

    def of(self, policy: LearnedPolicy) -> dict[str, float]:
        """A policy's columns of the table."""
        earned = self._play(_PolicyAnswers(policy))
        lead = earned - self._champion
        return self._beside | {
            "value": float(earned.mean()),
            "value_error": _error(earned),
            "lead": float(lead.mean()),
            "lead_error": _error(lead),
        }

    def _play(self, policy: Answering) -> FloatArray:
        return play_crowd(self._crowd, policy, self._session)


class _PolicyAnswers:
    """A trained policy that answers a crowd."""

    def __init__(self, policy: LearnedPolicy) -> None:
        self._policy = policy

    def begin(self, crowd: Crowd) -> None:
        from croupier.sim2rec.log_policy import Playing  # noqa: PLC0415 - imports JAX, an extra

        self._playing = Playing(self._policy, crowd.group)

    def choose(self, observation: FloatArray, draws: FloatArray) -> IntArray:
        chosen = drawn(self._playing.pmfs(observation), draws)
        self._playing.done(chosen)
        return chosen


def _error(values: FloatArray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
