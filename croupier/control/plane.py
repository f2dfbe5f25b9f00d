"""What the control plane does, for any loop: settings, models and logs."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
from msgspec import UNSET

from croupier.control.archive import pack, unpack
from croupier.control.contracts import (
    DateRange,
    LogsProperties,
    ModelProperties,
    PolicyContract,
    ServiceConfiguration,
    moment,
)
from croupier.control.dsjson import read_interactions, read_observations
from croupier.control.learning import LearningSettings, arguments_of, read_arguments
from croupier.eventlog.log import Record
from croupier.eventlog.opening import open_log, open_writer
from croupier.offline.lake import Lake, LakeLockedError
from croupier.offline.nightly import Nightly
from croupier.offline.registry import Registry
from croupier.offline.retention import forget_all
from croupier.offline.sink import sink, sunk_position
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import decode_event
from croupier.service.ids import now_us
from croupier.service.refusals import Refusal
from croupier.service.settings import LoopSettings, SettingsDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from croupier.control.job import ControlJob
    from croupier.eventlog.log import EventLog, LogPartition, LogWriter
    from croupier.policy.events import Event
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("Plane",)

_CONFIGURED_POLICY = "configured"
# What a scorer's own appends are grouped by: it never waits long for one of ours.
_RECORDS_AT_ONCE = 256
_LOCK_PATIENCE_S = 10.0
_LOCK_EVERY_S = 0.1
# How far into what isn't in the lake yet is looked for a loop's first and last decisions.
_LOOKED_THROUGH = 20_000
# Unpacked: archives of weights that are mostly zeros are far smaller.
_LARGEST_MODEL_BYTES = 1 << 30
_MODE_CHANGE_KEEPS = ("attribution_window", "default_reward", "aggregation")


class Plane:
    """The state of a data directory, and what may be changed in it.

    Every method may be called from any thread. What writes to the lake waits a while for its lock,
    and is refused with a 503 if somebody else keeps it.

    Parameters
    ----------
    job
        Where everything is.
    """

    def __init__(self, job: ControlJob) -> None:
        self._job = job
        self._settings = SettingsDirectory(Path(job.settings_dir))
        self._editing = threading.Lock()
        self.lake = Lake(Path(job.lake_dir))
        self._registry = Registry(job.tracking_uri, Path(job.artifacts))

    # Configuration.

    def config(self, loop: str) -> LoopConfig:
        """A loop's configuration, with what was set put over it."""
        return self._settings.over(loop, self._job.loops[loop])

    def service_configuration(self, loop: str) -> ServiceConfiguration:
        """How a loop counts rewards, explores and learns."""
        return ServiceConfiguration.of(self.config(loop), self._settings.read(loop))

    def update_service_configuration(
        self, loop: str, asked: ServiceConfiguration, by: str
    ) -> ServiceConfiguration:
        """Set what differs from the present configuration; scorers see it at their next look.

        Raises
        ------
        Refusal
            400 if it can't be, naming the field.
        """
        with self._editing:
            changes = asked.changes(self.service_configuration(loop))
            before = self.config(loop).learning_mode
            modes = {before, changes.get("learning_mode", before)}
            frozen = [name for name in _MODE_CHANGE_KEEPS if name in changes]
            if modes == {"online", "apprentice"} and frozen:
                raise Refusal(
                    400,
                    "expected rewardWaitTime, defaultReward and rewardAggregation to stay as they "
                    "are while learningMode changes between Online and Apprentice; set them later",
                    target="learningMode",
                    code="InvalidLearningModeServiceConfiguration",
                )
            if changes:
                self._set(loop, by, changes)
        return self.service_configuration(loop)

    def policy(self, loop: str) -> PolicyContract:
        """The learning settings that the next generation is trained with."""
        settings, config = self._settings.read(loop), self.config(loop)
        if settings is not None and isinstance(settings.policy_arguments, str):
            assert isinstance(settings.policy_name, str)
            return PolicyContract(name=settings.policy_name, arguments=settings.policy_arguments)
        return PolicyContract(
            name=_CONFIGURED_POLICY,
            arguments=arguments_of(LearningSettings(config.exploration, config.oracle)),
        )

    def update_policy(self, loop: str, asked: PolicyContract, by: str) -> PolicyContract:
        """Train by other learning settings from now on; what is served stays as it is.

        Raises
        ------
        InvalidInputError
            If they can't be, naming the argument.
        """
        asked.check()
        with self._editing:
            if asked == self.policy(loop):
                return asked
            learning = read_arguments("arguments", asked.arguments)
            self._set(loop, by, _policy_changes(asked, learning))
        return asked

    def reset_policy(self, loop: str, by: str) -> PolicyContract:
        """Train by the configured learning settings again."""
        with self._editing:
            unset = dict.fromkeys(
                ("exploration", "oracle", "policy_name", "policy_arguments"), UNSET
            )
            self._set(loop, by, unset)
        return self.policy(loop)

    def _set(self, loop: str, by: str, changes: dict[str, Any]) -> None:
        """Put changes over the settings, if the configuration that comes of it can be."""
        present = self._settings.read(loop) or LoopSettings(edited_us=0, by=by)
        told = msgspec.structs.asdict(present) | changes | {"edited_us": now_us(), "by": by}
        raw = {name: value for name, value in told.items() if value is not UNSET}
        try:
            settings = msgspec.convert(msgspec.to_builtins(raw), LoopSettings)
            settings.over(self._job.loops[loop])
        except (ValueError, msgspec.ValidationError) as error:
            raise _unfit(str(error)) from error
        self._settings.write(loop, settings)

    # Models.

    def model(self, loop: str) -> bytes:
        """The champion's files as one archive.

        Raises
        ------
        Refusal
            404 while there is none.
        """
        return pack(self._champion(loop))

    def model_properties(self, loop: str) -> ModelProperties:
        """When the champion was made and promoted."""
        number = self._nightly(loop).registry.champion(loop)
        if number == 0:
            return ModelProperties()
        origin = self._champion(loop).provenance
        # The latest of both: it may have been promoted, and later restored by a rollback.
        promoted = (
            self.lake.scan("generations", loop)
            .filter(pl.col("generation") == number)
            .select(pl.max_horizontal("promoted", "restored"))
            .collect()
            .to_series()
            .to_list()
        )
        made = UNSET if origin is None else moment(origin.created_us)
        return ModelProperties(
            creation_time=made, last_modified_time=next(filter(None, promoted), made)
        )

    def put_model(self, loop: str, content: bytes, by: str) -> None:
        """Register what an archive holds as a new generation and promote it, on record.

        Raises
        ------
        InvalidInputError
            If it holds no whole generation with an oracle.
        Refusal
            503 if somebody else keeps the lake.
        """
        config = self.config(loop)
        generation = unpack(content, max_bytes=_LARGEST_MODEL_BYTES, configured=config)
        if generation.oracle is None or generation.provenance is None:
            raise InvalidInputError(
                "body", "expected a trained generation; DELETE goes back to none"
            )
        origin = f"{generation.loop} {generation.number}"
        reason = f"model put over the API by key {by}, of generation {origin}"
        self.promote(loop, generation, reason=reason, by=by)

    def promote(self, loop: str, generation: Generation, *, reason: str, by: str) -> None:
        """Make a new generation of one from elsewhere and promote it, because a person says so.

        Raises
        ------
        Refusal
            503 if somebody else keeps the lake.
        """
        with self.lake_lock():
            self._promote(loop, generation, reason, by)

    def apply(
        self, loop: str, generation: Generation, contract: PolicyContract, *, by: str, reason: str
    ) -> None:
        """Train by learning settings from now on, and promote a generation that they gave.

        Raises
        ------
        Refusal
            503 if somebody else keeps the lake; then nothing was changed.
        """
        learning = read_arguments("arguments", contract.arguments)
        with self.lake_lock():
            with self._editing:
                self._set(loop, by, _policy_changes(contract, learning))
            self._promote(loop, generation, reason, by)

    def _promote(self, loop: str, generation: Generation, reason: str, by: str) -> None:
        nightly, now = self._nightly(loop), now_us()
        origin = generation.provenance
        assert origin is not None
        own = msgspec.structs.replace(
            origin, parent=nightly.registry.champion(loop), created_us=now
        )
        number = nightly.next_number(loop)
        nightly.publish(replace(generation, loop=loop, number=number, provenance=own))
        nightly.override(loop, number, now_us=now, reason=reason, by=by)

    def reset_model(self, loop: str, by: str) -> None:
        """Go back to the cold start, on record."""
        with self.lake_lock():
            reason = f"model reset over the API by key {by}"
            self._nightly(loop).reset(loop, now_us=now_us(), reason=reason, by=by)

    def _champion(self, loop: str) -> Generation:
        nightly = self._nightly(loop)
        number = nightly.registry.champion(loop)
        if number == 0:
            raise Refusal(404, "no model was trained and promoted yet", target="model")
        return nightly.generation(loop, number)

    # Logs.

    def logs_properties(self, loop: str) -> LogsProperties:
        """From when to when there are decisions, as far as can be seen at a glance.

        Raises
        ------
        Refusal
            404 if there are none.
        """
        ends = self.lake.scan("decisions", loop).select(
            first=pl.col("ts").min().dt.epoch("us"), last=pl.col("ts").max().dt.epoch("us")
        )
        times = [each for each in ends.collect().row(0) if each is not None]
        with self.log() as log:
            for part in log.partitions():
                if part.loop in {None, loop} and part.stream in {None, "decisions"}:
                    times += self._unsunk_times(part, loop)
        if not times:
            raise Refusal(
                404, "nothing was logged yet", target="logs", code="LogsPropertiesNotFound"
            )
        return LogsProperties(date_range=DateRange(from_=moment(min(times)), to=moment(max(times))))

    def delete_logs(self, loop: str) -> None:
        """Forget every decision and outcome of a loop."""
        with self.lake_lock(), self.log() as log:
            sink(log, self.lake)
            forget_all(self.lake, log, loop)

    def import_interactions(self, loop: str, body: bytes) -> int:
        """Log decisions that another system made, and their outcomes; gives the number of events.

        Raises
        ------
        InvalidInputError
            Naming the line that can't be read; then nothing was logged.
        """
        return self._log(read_interactions(body, loop, self.config(loop), now_us=now_us()))

    def import_observations(self, loop: str, body: bytes) -> int:
        """Log outcomes and activations; otherwise as above."""
        return self._log(read_observations(body, loop, self.config(loop), now_us=now_us()))

    def _log(self, events: Sequence[Event]) -> int:
        records = [Record.of(event) for event in events]
        with self._writer() as log:
            for start in range(0, len(records), _RECORDS_AT_ONCE):
                log.append(records[start : start + _RECORDS_AT_ONCE])
        return len(records)

    def _unsunk_times(self, part: LogPartition, loop: str) -> list[int]:
        first = max(sunk_position(self.lake, part) or 0, part.start())
        end = part.end()
        late = max(first, end - _LOOKED_THROUGH)
        found = []
        for position in {first, late}:
            for entry in part.read(position, limit=_LOOKED_THROUGH) if position < end else ():
                if entry.loop == loop and entry.kind == "decision" and entry.flaw is None:
                    with contextlib.suppress(InvalidInputError):
                        found.append(decode_event(entry.payload).ts)
        return found

    # What everything above and the evaluations work with.

    def nightly(self, loop: str) -> Nightly:
        """The batch side, with a loop's present configuration."""
        return self._nightly(loop)

    @property
    def judge_share(self) -> float:
        """Share of the decisions that judge and never train."""
        return self._job.nightly.judge_share

    def log(self) -> EventLog:
        """Open the event log; the caller closes it."""
        return open_log(self._job.log, log_dir=Path(self._job.log_dir), loops=self._job.loops)

    def _writer(self) -> LogWriter:
        """Open the event log to append to it; the caller closes it."""
        return open_writer(
            self._job.log,
            log_dir=Path(self._job.log_dir),
            spill_dir=Path(self._job.spill_dir),
            loops=self._job.loops,
        )

    def bring_up_to_date(self, loop: str) -> None:
        """Sink and join, so that the lake has what was logged and is due."""
        with self.lake_lock(), self.log() as log:
            now = now_us()
            sink(log, self.lake)
            self._nightly(loop).join(loop, now_us=now)

    @contextlib.contextmanager
    def lake_lock(self) -> Iterator[None]:
        """Hold the lake, after waiting for it for a while.

        Raises
        ------
        Refusal
            503 if somebody else keeps it.
        """
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(self.lake.lock())
                    held = stack.pop_all()
                break
            except LakeLockedError as error:
                if time.monotonic() > deadline:
                    raise Refusal(
                        503,
                        "a batch job is writing to the lake, ask again when it is done",
                        code="OperationNotAllowed",
                    ) from error
                time.sleep(_LOCK_EVERY_S)
        with held:
            yield

    def _nightly(self, loop: str) -> Nightly:
        return Nightly(self.lake, self._registry, {loop: self.config(loop)}, self._job.nightly)


def _policy_changes(contract: PolicyContract, learning: LearningSettings) -> dict[str, Any]:
    return {
        "exploration": learning.exploration,
        "oracle": learning.oracle,
        "policy_name": contract.name,
        "policy_arguments": contract.arguments,
    }


_FIELDS = {
    "attribution_window": "rewardWaitTime",
    "default_reward": "defaultReward",
    "aggregation": "rewardAggregation",
    "log_retention": "logRetentionDays",
    "model_export_frequency": "modelExportFrequency",
    "learning_mode": "learningMode",
}
_OWN_CODES = {
    "rewardWaitTime": "InvalidRewardWaitTime",
    "logRetentionDays": "InvalidLogRetentionDays",
}


def _unfit(message: str) -> Exception:
    """The refusal of settings that don't go together, with the field as the reference calls it."""
    for setting, field in _FIELDS.items():
        if message.startswith(setting) or f"$.{setting}`" in message:
            return Refusal(
                400, message.replace(setting, field), target=field, code=_OWN_CODES.get(field)
            )
    return InvalidInputError("body", message)
