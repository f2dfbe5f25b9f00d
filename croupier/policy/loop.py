"""Configuration of a loop: one decision problem with its own log, oracle and generations."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from croupier.policy.durations import DAY_US, duration_text, parse_duration
from croupier.policy.events import LearningMode
from croupier.policy.exploration import Conservative, Exploration, SquareCB
from croupier.policy.exploration.base import LARGEST, require_range
from croupier.policy.fairness.config import IndividualFairness
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.guardrails import Aggregation, Guardrail, valid_guardrail_name
from croupier.policy.oracle import AutoConfig, OracleConfig
from croupier.policy.sessions import SessionsConfig
from croupier.policy.simulators import SimulatorsSection
from croupier.policy.traffic import UniformSlice
from croupier.policy.training import TrainingConfig

__all__ = ("Aggregation", "LoopConfig", "duration_text", "parse_duration", "valid_loop_name")

_LOOP_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DEFAULT_HORIZON = "90 d"
_DEFAULT_EXPLORATION = SquareCB(gamma_scale=100.0, optimism=0.01)


class LoopConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is particular to one loop.

    Attributes
    ----------
    exploration
        How the next generation turns scores into probabilities. By default inverse gap weighting
        with optimism, of rewards as shares of their range.
    oracle
        Which regression model is retrained every night; ``auto`` by default, which knows how sure
        it is as long as it is small.
    attribution_window
        How long an outcome is waited for: a number and ``ms``, ``s``, ``min``, ``h`` or ``d``.
    default_reward
        Reward of a decision without an outcome when its window closes.
    late_horizon
        How long after its decision an outcome may still come and change the interaction: a
        duration not shorter than the attribution window.
    aggregation
        How several outcomes of a decision become one reward: the ``earliest`` or the ``last``
        (``latest`` is the same), or their ``sum``, ``mean``, ``median``, ``min`` or ``max``.
    censoring
        What learning and evaluation make of decisions whose outcome may still come, see
        :func:`~croupier.offline.delays.settled_interactions`: ``none`` takes their reward as it is
        now, ``hold_back`` leaves out recent ones, ``weight`` weighs what has come already.
    settled_share
        Share of the outcomes, in (0, 1), that must have come by the age of a decision that is not
        held back.
    learning_mode
        ``online`` plays the generation; ``apprentice`` plays the baseline and learns to imitate it;
        ``logging_only`` plays the baseline.
    uniform_slices
        When, and with which share, decisions are uniform.
    reward_min, reward_max
        Range of the reward. Outcomes outside it are refused, and intervals rely on it.
    keep_prob
        Share of the decisions, in (0, 1], that are written to the log; all are answered. See
        :func:`~croupier.policy.keeping.is_kept`.
    model_export_frequency
        How old the latest generation gets before ``croupier nightly --due`` trains another one.
    log_retention
        How long what was logged is kept once it is in the lake, at least a day longer than the
        attribution window; None keeps it for ever.
    training
        On which rows the oracle is trained, how they count, and what is done afterwards.
    guardrails
        Of the named rewards that outcomes carry, those that are joined and that a new champion must
        not harm, by name: 1 to 63 letters, digits, dots, hyphens and underscores.
    individual_fairness
        Who judges which decisions are alike, and how differently these may be treated; nobody if
        None.
    fairness
        Whose treatment is audited, what the gate holds against it, and what is never a feature.
    sessions
        Which decisions follow each other; none do if None.
    simulators
        How simulators of the users in sessions are learned and measured every night; not at all if
        None.
    """

    exploration: Exploration = _DEFAULT_EXPLORATION
    oracle: OracleConfig = AutoConfig()
    attribution_window: str = "10 min"
    late_horizon: str = _DEFAULT_HORIZON
    default_reward: float = 0.0
    aggregation: Aggregation = "earliest"
    censoring: Literal["none", "hold_back", "weight"] = "none"
    settled_share: float = 0.95
    learning_mode: LearningMode = "online"
    uniform_slices: tuple[UniformSlice, ...] = ()
    reward_min: float = 0.0
    reward_max: float = 1.0
    keep_prob: float = 1.0
    model_export_frequency: str = "1 d"
    log_retention: str | None = None
    training: TrainingConfig = TrainingConfig()
    guardrails: dict[str, Guardrail] = {}
    individual_fairness: IndividualFairness | None = None
    fairness: FairnessConfig = FairnessConfig()
    sessions: SessionsConfig | None = None
    simulators: SimulatorsSection | None = None

    def __post_init__(self) -> None:
        _require_positive("attribution_window", self.attribution_window)
        self._check_horizon()
        _require_positive("model_export_frequency", self.model_export_frequency)
        if self.log_retention is not None:
            _require_positive("log_retention", self.log_retention)
            shortest = self.attribution_window_us + DAY_US
            if parse_duration(self.log_retention) < shortest:
                raise ValueError(
                    f"log_retention must be at least a day longer than attribution_window "
                    f"({self.attribution_window}), got {self.log_retention!r}"
                )
        if not 0.0 < self.settled_share < 1.0:
            raise ValueError(f"settled_share must be in (0, 1), got {self.settled_share}")
        missing = sorted(self.exploration.needs - self.oracle.offers)
        if missing:
            raise ValueError(
                f"exploration {self.exploration.__struct_config__.tag} needs an oracle that "
                f"estimates {', '.join(missing)}; {self.oracle.__struct_config__.tag} does not"
            )
        player = self.oracle.played_by
        if player not in {None, self.exploration.__struct_config__.tag}:
            raise ValueError(
                f"oracle {self.oracle.__struct_config__.tag} needs exploration {player}, got "
                f"{self.exploration.__struct_config__.tag}"
            )
        require_range(self.reward_min, self.reward_max)
        # Not one that is equal to it: what is given is taken as it is.
        given = self.exploration is not _DEFAULT_EXPLORATION
        if not given and (self.reward_min, self.reward_max) != (0.0, 1.0):
            exploration = _default_exploration(self.reward_min, self.reward_max)
            msgspec.structs.force_setattr(self, "exploration", exploration)
        if not self.reward_min <= self.default_reward <= self.reward_max:
            raise ValueError(
                f"default_reward must be in [reward_min, reward_max] = "
                f"[{self.reward_min:g}, {self.reward_max:g}], got {self.default_reward}"
            )
        self._check_training()
        self._check_sessions()
        if not 0.0 < self.keep_prob <= 1.0:
            raise ValueError(f"keep_prob must be in (0, 1], got {self.keep_prob}")
        for name in self.guardrails:
            if not valid_guardrail_name(name):
                raise ValueError(
                    f"guardrails must have names of 1 to 63 letters, digits, dots, hyphens and "
                    f"underscores, got {name!r}"
                )

    def _check_sessions(self) -> None:
        if self.sessions is not None:
            _require_positive("pause", self.sessions.pause)
            if self.keep_prob < 1.0:
                raise ValueError(
                    f"keep_prob must be 1 with sessions, whose steps would be missing, "
                    f"got {self.keep_prob}"
                )
        if self.simulators is not None and (self.sessions is None or not self.sessions.state):
            raise ValueError("simulators need sessions with a state that is observed")

    def _check_horizon(self) -> None:
        _require_positive("late_horizon", self.late_horizon)
        # The default is long, but an attribution window may be longer.
        given = self.late_horizon != _DEFAULT_HORIZON
        if given and parse_duration(self.late_horizon) < self.attribution_window_us:
            raise ValueError(
                f"late_horizon must not be shorter than attribution_window "
                f"({self.attribution_window}), got {self.late_horizon!r}"
            )

    @property
    def late_horizon_us(self) -> int:
        """The late horizon in microseconds, not shorter than the attribution window."""
        return max(parse_duration(self.late_horizon), self.attribution_window_us)

    def _check_training(self) -> None:
        """Refuse a training that doesn't go with the rest."""
        training = self.training
        if training.window is not None:
            _require_positive("training.window", training.window)
        kind = self.oracle.__struct_config__.tag
        if training.weighting in ("ips", "mtr") and self.oracle.weighs_propensities:
            raise ValueError(
                f"training.weighting must be none, trajectory or advantage, got "
                f"{training.weighting}: oracle {kind} corrects for propensities by itself"
            )
        if training.max_total_variation is not None and not self.oracle.can_be_damped:
            raise ValueError(
                f"training.max_total_variation needs an oracle that is linear in its weights "
                f"(auto, ridge, sklearn or vowpal_wabbit), got {kind}"
            )
        if training.corrective is not None and isinstance(self.exploration, Conservative):
            raise ValueError(
                "training.corrective must be none with exploration conservative: what is tilted is "
                "not held to the baseline's value any more"
            )
        curved = training.calibration != "none" or training.class_weight != "none"
        if curved and self.exploration.needs:
            raise ValueError(
                f"training.calibration and training.class_weight must be none with exploration "
                f"{self.exploration.__struct_config__.tag}: calibrated rewards have no "
                f"{' and no '.join(sorted(self.exploration.needs))}"
            )
        inside = 0.0 <= self.reward_min <= self.reward_max <= 1.0
        if not inside and (training.calibration == "platt" or training.class_weight != "none"):
            raise ValueError(
                f"training.calibration = platt and class weights are for rewards within [0, 1], "
                f"got [{self.reward_min:g}, {self.reward_max:g}]"
            )
        if self.learning_mode == "apprentice" and training != TrainingConfig(
            holdout=training.holdout,
            window=training.window,
            window_generations=training.window_generations,
        ):
            raise ValueError(
                "training must have neither weights, calibration, tilt nor another start while "
                "learning_mode is apprentice: an apprentice learns no rewards"
            )

    @property
    def attribution_window_us(self) -> int:
        """The attribution window in microseconds."""
        return parse_duration(self.attribution_window)

    @property
    def model_export_frequency_us(self) -> int:
        """The model export frequency in microseconds."""
        return parse_duration(self.model_export_frequency)

    @property
    def log_retention_us(self) -> int | None:
        """The retention in microseconds; None if everything is kept."""
        return None if self.log_retention is None else parse_duration(self.log_retention)


def _default_exploration(reward_min: float, reward_max: float) -> Exploration:
    """The default, of rewards in a range: as much of it as of rewards from 0 to 1."""
    scale = min(_DEFAULT_EXPLORATION.gamma_scale / (reward_max - reward_min), LARGEST)
    return msgspec.structs.replace(
        _DEFAULT_EXPLORATION, gamma_scale=scale, reward_min=reward_min, reward_max=reward_max
    )


def _require_positive(field: str, text: str) -> None:
    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    if duration <= 0:
        raise ValueError(f"{field} must be positive, got {text!r}")


def valid_loop_name(name: str) -> bool:
    """Whether a name can be a loop's: it becomes a path, a topic and a registered model."""
    return _LOOP_NAME.fullmatch(name) is not None
