"""Bodies of the control plane's requests and answers, as Personalizer's reference names them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from croupier.policy.errors import InvalidInputError
from croupier.policy.loop import duration_text
from croupier.service.api import ErrorBody

if TYPE_CHECKING:
    from croupier.policy.events import LearningMode
    from croupier.policy.loop import LoopConfig
    from croupier.service.settings import LoopSettings

__all__ = (
    "LONGEST_NAME",
    "DateRange",
    "Evaluation",
    "EvaluationContract",
    "EvaluationStatus",
    "LogsProperties",
    "ModelProperties",
    "PolicyContract",
    "PolicyReference",
    "PolicyResult",
    "PolicySource",
    "PolicySummary",
    "ServiceConfiguration",
    "iso_duration",
    "microseconds_of",
    "moment",
)

LONGEST_NAME = 256
_LONGEST_ARGUMENTS = 1024
_DAY_US = 86_400_000_000

_DURATION = re.compile(
    r"P(?=.)(?:(?P<weeks>\d+(?:\.\d+)?)W)?(?:(?P<days>\d+(?:\.\d+)?)D)?"
    r"(?:T(?=.)(?:(?P<hours>\d+(?:\.\d+)?)H)?(?:(?P<minutes>\d+(?:\.\d+)?)M)?"
    r"(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)
_UNITS_US = {
    "weeks": 7 * _DAY_US,
    "days": _DAY_US,
    "hours": 3_600_000_000,
    "minutes": 60_000_000,
    "seconds": 1_000_000,
}
# Far longer than anything here may last, and short enough for every sum to fit.
_LONGEST_US = 36_500 * _DAY_US

_ModeName: TypeAlias = Literal["Online", "Apprentice", "LoggingOnly"]
_MODES: dict[_ModeName, LearningMode] = {
    "Online": "online",
    "Apprentice": "apprentice",
    "LoggingOnly": "logging_only",
}
_MODE_NAMES = {mode: name for name, mode in _MODES.items()}


class _Body(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What all of them share: names in camel case; unknown fields are passed over."""


class ServiceConfiguration(_Body, frozen=True, kw_only=True):
    """How a loop counts rewards, explores and learns.

    Attributes
    ----------
    reward_wait_time, model_export_frequency
        ISO-8601 durations.
    default_reward, reward_aggregation, exploration_percentage
        Numbers are shares, not percentages.
    log_retention_days
        -1 keeps logs for ever.
    learning_mode
        Stays as it is where it is left out.
    last_configuration_edit_date
        When something was last set; told, and passed over in a request.
    log_mirror_enabled, log_mirror_sas_uri, is_auto_optimization_enabled
        Of Azure's own; only ``false`` has an equivalent here.
    auto_optimization_frequency, auto_optimization_start_date
        Only meant anything with automatic optimization; passed over.
    """

    reward_wait_time: str
    default_reward: float
    reward_aggregation: str
    exploration_percentage: float
    model_export_frequency: str
    log_retention_days: int
    learning_mode: _ModeName | UnsetType | None = UNSET
    last_configuration_edit_date: datetime | UnsetType | None = UNSET
    log_mirror_enabled: bool | UnsetType | None = UNSET
    log_mirror_sas_uri: str | UnsetType | None = UNSET
    is_auto_optimization_enabled: bool | UnsetType | None = UNSET
    auto_optimization_frequency: str | UnsetType | None = UNSET
    auto_optimization_start_date: str | UnsetType | None = UNSET

    @classmethod
    def of(cls, config: LoopConfig, settings: LoopSettings | None) -> ServiceConfiguration:
        """What a loop's configuration is in these terms."""
        retention = config.log_retention_us
        edited = UNSET if settings is None else moment(settings.edited_us)
        return cls(
            reward_wait_time=iso_duration(config.attribution_window_us),
            default_reward=config.default_reward,
            reward_aggregation=config.aggregation,
            exploration_percentage=_always_uniform(config),
            model_export_frequency=iso_duration(config.model_export_frequency_us),
            log_retention_days=-1 if retention is None else math.ceil(retention / _DAY_US),
            learning_mode=_MODE_NAMES[config.learning_mode],
            last_configuration_edit_date=edited,
            log_mirror_enabled=False,
            is_auto_optimization_enabled=False,
        )

    def changes(self, present: ServiceConfiguration) -> dict[str, object]:
        """Settings that this asks for and the present configuration doesn't have, by name.

        What was got and is put back unchanged changes nothing, so that what was never set goes on
        following the configuration file.

        Raises
        ------
        InvalidInputError
            Naming the field and what was expected.
        """
        for field in ("log_mirror_enabled", "is_auto_optimization_enabled"):
            if getattr(self, field) is True:
                raise InvalidInputError(
                    _camel(field),
                    "expected false: there is no equivalent here, see the page on migrating",
                )
        changes: dict[str, object] = {}
        for field, setting in _DURATIONS.items():
            microseconds = microseconds_of(_camel(field), getattr(self, field))
            if microseconds != microseconds_of(field, getattr(present, field)):
                changes[setting] = duration_text(microseconds)
        if not math.isfinite(self.default_reward):
            raise InvalidInputError("defaultReward", "expected a finite number")
        if self.default_reward != present.default_reward:
            changes["default_reward"] = self.default_reward
        if self.reward_aggregation.lower() != present.reward_aggregation:
            changes["aggregation"] = self.reward_aggregation.lower()
        if not 0.0 <= self.exploration_percentage <= 1.0:
            raise InvalidInputError(
                "explorationPercentage",
                f"expected a share in [0, 1], got {self.exploration_percentage}",
            )
        if self.exploration_percentage != present.exploration_percentage:
            changes["uniform_share"] = self.exploration_percentage
        if self.log_retention_days != present.log_retention_days:
            changes["log_retention"] = _retention(self.log_retention_days)
        if isinstance(self.learning_mode, str) and self.learning_mode != present.learning_mode:
            changes["learning_mode"] = _MODES[self.learning_mode]
        return changes


_DURATIONS = {
    "reward_wait_time": "attribution_window",
    "model_export_frequency": "model_export_frequency",
}


class PolicyContract(_Body, frozen=True, kw_only=True):
    """Learning settings: how models are trained, and how they explore."""

    name: str
    arguments: str

    def check(self, where: str = "") -> None:
        """Refuse what is too long or nothing.

        Raises
        ------
        InvalidInputError
            Naming the field.
        """
        _require_length(f"{where}name", self.name, LONGEST_NAME)
        _require_length(f"{where}arguments", self.arguments, _LONGEST_ARGUMENTS)


class ModelProperties(_Body, frozen=True, kw_only=True):
    """When the present model was made and put to use; nothing of it before there is one."""

    creation_time: datetime | UnsetType = UNSET
    last_modified_time: datetime | UnsetType = UNSET


class DateRange(_Body, frozen=True, kw_only=True):
    """From the first to the last."""

    from_: datetime = msgspec.field(name="from")
    to: datetime


class LogsProperties(_Body, frozen=True, kw_only=True):
    """Of the decisions that are logged."""

    date_range: DateRange


class EvaluationContract(_Body, frozen=True, kw_only=True):
    """Asks for an offline evaluation.

    Attributes
    ----------
    name
        1 to 256 characters.
    start_time, end_time
        Decisions from the one up to the other count; UTC where they don't say otherwise.
    policies
        Learning settings to evaluate besides what is there.
    enable_offline_experimentation
        Whether a few settings of our own are tried too.
    """

    name: str
    start_time: datetime
    end_time: datetime
    policies: list[PolicyContract]
    enable_offline_experimentation: bool | None = None


class PolicyReference(_Body, frozen=True, kw_only=True):
    """A policy of an evaluation."""

    evaluation_id: str
    policy_name: str


EvaluationStatus: TypeAlias = Literal["completed", "pending", "failed"]
PolicySource: TypeAlias = Literal[
    "Online", "Baseline", "Random", "Custom", "OfflineExperimentation"
]


class PolicySummary(_Body, frozen=True, kw_only=True):
    """What a policy would have earned in a time window, or in all of them.

    Attributes
    ----------
    time_stamp
        When the window begins; of the total, when the evaluation's range ends.
    ips_estimator_numerator, ips_estimator_denominator
        Sum of weighted rewards, and number of decisions.
    snips_estimator_denominator
        Sum of weights.
    aggregate_time_window
        ISO-8601 duration.
    non_zero_probability
        Number of decisions whose logged action the policy might have taken.
    sum_of_squares
        Of the weighted rewards.
    confidence_interval
        Half the width of the 95 % interval around the average reward, on its wider side; left out
        where there are too few decisions for one.
    average_reward
        By inverse propensity scoring.
    """

    time_stamp: datetime
    ips_estimator_numerator: float
    ips_estimator_denominator: float
    snips_estimator_denominator: float
    aggregate_time_window: str
    non_zero_probability: float
    sum_of_squares: float
    average_reward: float
    confidence_interval: float | UnsetType = UNSET


class PolicyResult(_Body, frozen=True, kw_only=True):
    """A policy and what came of it; summaries are there once the evaluation is completed."""

    name: str
    arguments: str
    policy_source: PolicySource
    summary: list[PolicySummary] = []
    total_summary: PolicySummary | UnsetType = UNSET


class Evaluation(_Body, frozen=True, kw_only=True):
    """An offline evaluation.

    Attributes
    ----------
    id, job_id, name, start_time, end_time
        Which one.
    status
        ``pending`` until it is done, also while others are before it.
    policy_results
        One for every policy.
    feature_importance
        Not computed here.
    evaluation_type, optimal_policy, creation_time
        The optimal policy is the one with learning settings and the highest average reward.
    error
        Why it failed; an addition to the reference.
    """

    id: str
    job_id: str
    name: str
    start_time: datetime
    end_time: datetime
    status: EvaluationStatus
    policy_results: list[PolicyResult]
    creation_time: datetime
    evaluation_type: Literal["Manual"] = "Manual"
    optimal_policy: str = ""
    feature_importance: list[list[str]] = []
    error: ErrorBody | UnsetType = UNSET


def microseconds_of(field: str, text: str) -> int:
    """Microseconds in an ISO-8601 duration of weeks, days, hours, minutes and seconds.

    Raises
    ------
    InvalidInputError
        If it is none, or not positive: months and years have no fixed length.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInputError(field, f"expected an ISO-8601 duration such as PT10M, got {text!r}")
    parts = match.groupdict(default="0")
    microseconds = round(sum(float(parts[unit]) * size for unit, size in _UNITS_US.items()))
    if not 1_000 <= microseconds <= _LONGEST_US:
        raise InvalidInputError(field, f"expected a duration from 1 ms to 100 years, got {text!r}")
    return microseconds - microseconds % 1_000


def iso_duration(microseconds: int) -> str:
    """A duration as ISO 8601 has it, in days, hours, minutes and seconds."""
    days, rest = divmod(microseconds, _DAY_US)
    hours, rest = divmod(rest, _UNITS_US["hours"])
    minutes, rest = divmod(rest, _UNITS_US["minutes"])
    seconds = f"{rest / 1e6:.6f}".rstrip("0").rstrip(".")
    time = "".join(
        f"{value}{unit}"
        for value, unit in ((hours, "H"), (minutes, "M"), (seconds, "S"))
        if value not in {0, "0"}
    )
    date = f"{days}D" if days else ""
    return f"P{date}{'T' if time else ''}{time}" if date or time else "PT0S"


def moment(ts_us: int) -> datetime:
    """A time in microseconds since the Unix epoch."""
    return datetime.fromtimestamp(ts_us / 1e6, tz=UTC)


def _always_uniform(config: LoopConfig) -> float:
    """Share of uniform play that is on at all times."""
    slices = config.uniform_slices
    return float(min(sum(each.share for each in slices if each.is_always_on), 1.0))


def _retention(days: int) -> str | None:
    if days == -1:
        return None
    if not 1 <= days <= 36_500:
        raise InvalidInputError(
            "logRetentionDays", f"expected -1 or a number of days from 1 to 36500, got {days}"
        )
    return f"{days} d"


def _require_length(field: str, text: str, longest: int) -> None:
    if not 1 <= len(text) <= longest:
        raise InvalidInputError(field, f"expected 1 to {longest} characters, got {len(text)}")


def _camel(field: str) -> str:
    first, *others = field.split("_")
    return first + "".join(each.capitalize() for each in others)
