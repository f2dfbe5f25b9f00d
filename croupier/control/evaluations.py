"""Offline evaluations as background jobs, one at a time, kept in files.

``<root>/<loop>/<id>.json`` is an evaluation as it stands, and ``<root>/<loop>/<id>/<policy>/`` the
generation that was trained for one of its policies, so that exactly what was judged can be applied.
Files are replaced in one step. What was pending when the process ended is begun again when the next
one starts, twice at most.
"""

from __future__ import annotations

import logging
import math
import queue
import shutil
import threading
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
import polars as pl

from croupier.control.contracts import (
    LONGEST_NAME,
    Evaluation,
    EvaluationContract,
    PolicyContract,
    PolicyResult,
    PolicySource,
    PolicySummary,
    iso_duration,
    moment,
)
from croupier.control.learning import read_arguments
from croupier.offline.counterfactual import baseline_policy, judge_policies, random_policy
from croupier.offline.interactions import current_interactions
from croupier.offline.retrain import is_judged, retrain
from croupier.policy.errors import (
    CroupierError,
    InvalidInputError,
    NotEnoughDataError,
)
from croupier.policy.generation import Generation
from croupier.policy.training import TrainingConfig
from croupier.service.api import ErrorBody
from croupier.service.ids import now_us
from croupier.service.refusals import Refusal
from croupier.service.serving import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from croupier.control.contracts import PolicyReference
    from croupier.control.plane import Plane
    from croupier.offline.counterfactual import Policy, PolicyOnLog, WindowSums
    from croupier.offline.interactions import LoggedRequest

__all__ = ("Evaluations",)

_log = logging.getLogger(__name__)

ONLINE: Final = "Online"
BASELINE: Final = "Baseline"
RANDOM: Final = "Random"
CURRENT: Final = "Current"
"""Names of the policies that every evaluation has: what made the log, the application's own choice,
any action, and the champion if there is one."""

_RESERVED = frozenset({ONLINE, BASELINE, RANDOM, CURRENT})
_MOST_POLICIES = 20
_MOST_ATTEMPTS = 2
_CONFIDENCE = 0.95
_MOST_WINDOWS = 60
_WINDOWS_US = tuple(60_000_000 * minutes for minutes in (5, 15, 60, 360, 1440, 7 * 1440, 28 * 1440))
# Arguments that are tried where an evaluation is to find better ones.
_EXPERIMENTS = {
    "Experiment 1": "--cb_type mtr --learning_rate 0.5",
    "Experiment 2": "--cb_type mtr --learning_rate 0.05",
    "Experiment 3": "--cb_type dr --learning_rate 0.5",
    "Experiment 4": "--cb_type mtr --learning_rate 0.5 --passes 3",
}


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation's file: what is told of it, and what running it takes."""

    evaluation: Evaluation
    by: str
    attempts: int = 0
    trained: dict[str, str] = {}


class _CancelledError(Exception):
    """The evaluation that is running was deleted."""


class Evaluations:
    """All evaluations of a data directory, and the thread that does them in their order.

    Parameters
    ----------
    plane
        What they work with.
    root
        Where they are kept.
    loops
        Names of all loops.
    """

    def __init__(self, plane: Plane, root: Path, loops: list[str]) -> None:
        self._plane = plane
        self._root = root
        self._queue: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._changing = threading.Lock()
        for loop in loops:
            for kept in sorted(self._all(loop), key=lambda each: each.evaluation.creation_time):
                if kept.evaluation.status == "pending":
                    self._queue.put((loop, kept.evaluation.id))
        threading.Thread(target=self._work, name="evaluations", daemon=True).start()

    def create(self, loop: str, asked: EvaluationContract, by: str) -> Evaluation:
        """Submit an evaluation.

        Raises
        ------
        InvalidInputError
            If it can't be, naming the field.
        Refusal
            400 if two policies have the same name.
        """
        self._check(asked)
        key = str(uuid.uuid4())
        results = [
            PolicyResult(
                name=ONLINE, arguments=self._plane.policy(loop).arguments, policy_source=ONLINE
            ),
            PolicyResult(name=BASELINE, arguments="", policy_source=BASELINE),
            PolicyResult(name=RANDOM, arguments="", policy_source=RANDOM),
            *(
                PolicyResult(name=each.name, arguments=each.arguments, policy_source="Custom")
                for each in asked.policies
            ),
        ]
        if asked.enable_offline_experimentation:
            results += [
                PolicyResult(
                    name=name,
                    arguments=f"--cb_explore_adf --epsilon 0.05 {arguments} -q ::",
                    policy_source="OfflineExperimentation",
                )
                for name, arguments in _EXPERIMENTS.items()
            ]
        evaluation = Evaluation(
            id=key,
            job_id=key,
            name=asked.name,
            start_time=_aware(asked.start_time),
            end_time=_aware(asked.end_time),
            status="pending",
            policy_results=results,
            creation_time=moment(now_us()),
        )
        self._write(loop, _Kept(evaluation=evaluation, by=by))
        self._queue.put((loop, key))
        return evaluation

    def of(self, loop: str) -> list[Evaluation]:
        """A loop's evaluations, the latest first."""
        found = [kept.evaluation for kept in self._all(loop)]
        return sorted(found, key=lambda each: each.creation_time, reverse=True)

    def get(self, loop: str, key: str) -> Evaluation:
        """One of them.

        Raises
        ------
        Refusal
            404 if there is none of that id.
        """
        kept = self._kept(loop, key)
        if kept is None:
            raise _unknown(key)
        return kept.evaluation

    def delete(self, loop: str, key: str) -> None:
        """Delete one, and stop it if it is running; none of that id is deleted already."""
        with self._changing:
            if self._kept(loop, key) is not None:
                self._file(loop, key).unlink(missing_ok=True)
        shutil.rmtree(self._file(loop, key).with_suffix(""), ignore_errors=True)

    def apply(self, loop: str, reference: PolicyReference, by: str) -> None:
        """Train by a policy's learning settings from now on, and promote its model, on record.

        Raises
        ------
        Refusal
            404 if there is no such evaluation, no such policy in it, or no model of it.
        """
        kept = self._kept(loop, reference.evaluation_id)
        if kept is None:
            raise _unknown(reference.evaluation_id)
        evaluation = kept.evaluation
        result = next(
            (each for each in evaluation.policy_results if each.name == reference.policy_name), None
        )
        if result is None or result.policy_source in {"Baseline", "Random"}:
            raise Refusal(
                404,
                f"expected a policy of the evaluation with learning settings, "
                f"got {reference.policy_name!r}",
                target="policyName",
                code="LearningSettingsNotFound",
            )
        if result.policy_source == "Online":
            # It is what is there.
            return
        directory = kept.trained.get(result.name)
        if directory is None or evaluation.status != "completed":
            raise Refusal(
                404,
                f"expected a completed evaluation with a model of {result.name!r}, "
                f"this one is {evaluation.status}",
                target="evaluationId",
                code="EvaluationModelNotFound",
            )
        generation = Generation.load(self._file(loop, evaluation.id).with_suffix("") / directory)
        contract = PolicyContract(name=result.name, arguments=result.arguments)
        reason = _reason(evaluation, result, by)
        self._plane.apply(loop, generation, contract, by=by, reason=reason)

    # Running them.

    def _work(self) -> None:
        while True:
            loop, key = self._queue.get()
            kept = self._kept(loop, key)
            if kept is None:
                continue
            if kept.attempts >= _MOST_ATTEMPTS:
                self._fail(loop, kept, "InternalServerError", "it was interrupted more than once")
                continue
            kept = msgspec.structs.replace(kept, attempts=kept.attempts + 1)
            try:
                self._rewrite(loop, kept)
                self._rewrite(loop, self._done(loop, kept))
            except _CancelledError:
                _log.info("evaluation %s of loop %s was deleted", key, loop)
                shutil.rmtree(self._file(loop, key).with_suffix(""), ignore_errors=True)
            except NotEnoughDataError as error:
                self._fail(loop, kept, "NoLogsExistInDateRange", str(error))
            except (CroupierError, Refusal) as error:
                self._fail(loop, kept, getattr(error, "code", "BadRequest"), str(error))
            except Exception:  # noqa: BLE001 - the next one is to be done all the same
                _log.exception("evaluation %s of loop %s failed", key, loop)
                self._fail(loop, kept, "InternalServerError", "an error of ours, see the log")

    def _done(self, loop: str, kept: _Kept) -> _Kept:
        """The evaluation with what came of it."""
        evaluation = kept.evaluation
        self._plane.bring_up_to_date(loop)
        config = self._plane.config(loop)
        rows = (
            current_interactions(self._plane.lake, loop)
            .filter(pl.col("ts").is_between(evaluation.start_time, evaluation.end_time, "left"))
            .filter(is_judged(self._plane.judge_share, config.training))
            .sort("offset", "decision_id")
            .collect()
        )
        if len(rows) < 2:
            raise NotEnoughDataError(
                f"expected at least 2 joined decisions that judge from {evaluation.start_time} to "
                f"{evaluation.end_time}, got {len(rows)}"
            )
        trained, results = self._trained(loop, evaluation)
        policies: dict[str, Policy | None] = {
            ONLINE: None,
            BASELINE: baseline_policy,
            RANDOM: random_policy,
        }
        policies |= {name: _policy(generation) for name, generation in trained.items()}
        number = self._plane.nightly(loop).registry.champion(loop)
        if number:
            champion = self._plane.nightly(loop).generation(loop, number)
            policies[CURRENT] = _policy(champion)
            described = f"generation {number}: {champion.exploration.describe()}"
            results.append(PolicyResult(name=CURRENT, arguments=described, policy_source="Online"))
        window_us = _window(rows)
        judged = judge_policies(
            rows,
            policies,
            config,
            window_us=window_us,
            confidence=_CONFIDENCE,
            progress=lambda *_: self._require_wanted(loop, evaluation.id),
        )
        results = [_told(each, judged[each.name], evaluation, window_us) for each in results]
        directories = {name: str(place) for place, name in enumerate(trained)}
        for name, generation in trained.items():
            target = self._file(loop, evaluation.id).with_suffix("") / directories[name]
            shutil.rmtree(target, ignore_errors=True)
            generation.save(target)
        evaluation = msgspec.structs.replace(
            evaluation,
            status="completed",
            policy_results=results,
            optimal_policy=_optimal(results),
        )
        return msgspec.structs.replace(kept, evaluation=evaluation, trained=directories)

    def _trained(
        self, loop: str, evaluation: Evaluation
    ) -> tuple[dict[str, Generation], list[PolicyResult]]:
        """A generation for every policy with arguments of its own, from the learner's rows."""
        config, nightly = self._plane.config(loop), self._plane.nightly(loop)
        trained = {}
        for result in evaluation.policy_results:
            if result.policy_source not in {"Custom", "OfflineExperimentation"}:
                continue
            self._require_wanted(loop, evaluation.id)
            learning = read_arguments("arguments", result.arguments)
            trained[result.name] = retrain(
                self._plane.lake,
                loop,
                msgspec.structs.replace(
                    config,
                    exploration=learning.exploration,
                    oracle=learning.oracle,
                    learning_mode="online",
                    # What the loop's own training asks for may not go with another oracle.
                    training=TrainingConfig(learn_from_slices=config.training.learn_from_slices),
                ),
                number=nightly.next_number(loop),
                parent=nightly.registry.champion(loop),
                judge_share=self._plane.judge_share,
                seed=nightly.config.seed,
                created_us=now_us(),
            )
        return trained, list(evaluation.policy_results)

    def _require_wanted(self, loop: str, key: str) -> None:
        if not self._file(loop, key).exists():
            raise _CancelledError

    def _fail(self, loop: str, kept: _Kept, code: str, message: str) -> None:
        failed = msgspec.structs.replace(
            kept.evaluation, status="failed", error=ErrorBody(code=code, message=message)
        )
        try:
            self._rewrite(loop, msgspec.structs.replace(kept, evaluation=failed))
        except _CancelledError:
            _log.info("evaluation %s of loop %s was deleted", kept.evaluation.id, loop)

    # Files.

    def _file(self, loop: str, key: str) -> Path:
        return self._root / loop / f"{key}.json"

    def _kept(self, loop: str, key: str) -> _Kept | None:
        try:
            # An id is one that was given out, so nothing else is ever looked for.
            name = str(uuid.UUID(key))
        except ValueError:
            return None
        try:
            return msgspec.json.decode(self._file(loop, name).read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            # One that was damaged must not take the others along.
            _log.warning("evaluation %s of loop %s can't be read: %s", name, loop, error)
            return None

    def _all(self, loop: str) -> list[_Kept]:
        keys = [path.stem for path in (self._root / loop).glob("*.json")]
        return [kept for key in keys if (kept := self._kept(loop, key)) is not None]

    def _write(self, loop: str, kept: _Kept) -> None:
        replace_file(self._file(loop, kept.evaluation.id), msgspec.json.encode(kept), durable=True)

    def _rewrite(self, loop: str, kept: _Kept) -> None:
        """Write what is still wanted: a file that was deleted stays so."""
        with self._changing:
            self._require_wanted(loop, kept.evaluation.id)
            self._write(loop, kept)

    def _check(self, asked: EvaluationContract) -> None:
        if not 1 <= len(asked.name) <= LONGEST_NAME:
            raise InvalidInputError("name", f"expected 1 to {LONGEST_NAME} characters")
        if not _aware(asked.start_time) < _aware(asked.end_time):
            raise InvalidInputError("endTime", "expected a time after startTime")
        if len(asked.policies) > _MOST_POLICIES:
            raise InvalidInputError("policies", f"expected at most {_MOST_POLICIES}")
        names = _RESERVED | (set(_EXPERIMENTS) if asked.enable_offline_experimentation else set())
        for position, each in enumerate(asked.policies):
            where = f"policies[{position}]."
            each.check(where)
            if each.name in names:
                raise Refusal(
                    400,
                    f"{where}name: expected a name that no other policy has, got {each.name!r}",
                    target=f"{where}name",
                    code="DuplicateCustomPolicyNames",
                )
            names |= {each.name}
            read_arguments(f"{where}arguments", each.arguments)


def _policy(generation: Generation) -> Policy:
    def pmf(request: LoggedRequest) -> NDArray[np.float64]:
        return generation.pmf(request.context, request.actions, request.eligible, request.baseline)[
            0
        ]

    return pmf


def _window(rows: pl.DataFrame) -> int:
    """Length of the time windows: the shortest that makes no more of them than can be looked at."""
    first, last = rows["ts"].min(), rows["ts"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    span = (last - first).total_seconds() * 1e6
    return next((each for each in _WINDOWS_US if span / each < _MOST_WINDOWS), _WINDOWS_US[-1])


def _told(
    result: PolicyResult, judged: PolicyOnLog, evaluation: Evaluation, window_us: int
) -> PolicyResult:
    span = evaluation.end_time - evaluation.start_time
    total = msgspec.structs.replace(
        _summary(judged.total, round(span.total_seconds() * 1e6)), time_stamp=evaluation.end_time
    )
    return msgspec.structs.replace(
        result,
        summary=[_summary(each, window_us) for each in judged.windows],
        total_summary=total,
    )


def _summary(sums: WindowSums, window_us: int) -> PolicySummary:
    half: float | msgspec.UnsetType = msgspec.UNSET
    if sums.lower is not None and sums.upper is not None:
        wider = max(sums.upper - sums.value, sums.value - sums.lower)
        # Without the log's pmfs nothing bounds the weights, nor what wasn't seen.
        half = wider if math.isfinite(wider) else msgspec.UNSET
    return PolicySummary(
        time_stamp=moment(sums.start_us),
        ips_estimator_numerator=sums.weighted_rewards,
        ips_estimator_denominator=sums.rows,
        snips_estimator_denominator=sums.weights,
        aggregate_time_window=iso_duration(window_us),
        non_zero_probability=sums.taken,
        sum_of_squares=sums.squares,
        average_reward=sums.value,
        confidence_interval=half,
    )


def _optimal(results: list[PolicyResult]) -> str:
    """The policy with learning settings that would have earned most."""
    fit: tuple[PolicySource, ...] = ("Online", "Custom", "OfflineExperimentation")
    earned = {
        each.name: each.total_summary.average_reward
        for each in results
        if each.policy_source in fit
        and isinstance(each.total_summary, PolicySummary)
        and each.total_summary.ips_estimator_denominator > 0
    }
    return max(earned, key=lambda name: earned[name]) if earned else ""


def _reason(evaluation: Evaluation, result: PolicyResult, by: str) -> str:
    total = result.total_summary
    shown = ""
    if isinstance(total, PolicySummary):
        shown = f": {total.average_reward:.4f}"
        if isinstance(total.confidence_interval, float):
            shown += f" ± {total.confidence_interval:.4f}"
        shown += f" on {total.ips_estimator_denominator:g} decisions"
    return (
        f"policy {result.name!r} of evaluation {evaluation.id} applied over the API by key {by}"
        f"{shown}"
    )[:500]


def _unknown(key: str) -> Refusal:
    return Refusal(404, f"no evaluation {key!r}", target="evaluationId", code="EvaluationNotFound")


def _aware(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
