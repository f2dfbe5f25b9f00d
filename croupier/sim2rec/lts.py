"""The Long-Term-Satisfaction environment: clickbait pays now and costs satisfaction later.

A document has a clickbait score c in [0, 1). Showing it to a user returns an engagement that grows
with c and with the user's satisfaction, and then moves the user's net positive exposure (NPE):
kale (c < 0.5) raises it, clickbait (c > 0.5) lowers it. Users differ in how long they remember and
in how strongly they react; groups of users differ in how engaging clickbait is, and a policy sees
only a noisy group signal of that. The test group's clickbait mean is missing from the training
groups, so a policy must adapt to what it observes.

All users step together, in float64 and plain NumPy. This is the reference that faster versions are
compared with: :func:`transition` is a pure function whose randomness is an argument, and
:class:`LTSEnvironment` only keeps its state and draws its noise.

Sources: RecSim (Ie et al., 2019, arXiv 1909.04847) for the user model, Sim2Rec (Chen et al., 2023,
arXiv 2305.04832, with its released code) for the parameters, the groups and the observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np
import scipy
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

__all__ = (
    "GROUP_MEANS",
    "MAX_ENGAGEMENT",
    "OBSERVATION_FIELDS",
    "TEST_GROUP_MEAN",
    "TRANSFER_LEVELS",
    "FloatArray",
    "IntArray",
    "LTSConfig",
    "LTSEnvironment",
    "LTSNoise",
    "LTSState",
    "LTSStep",
    "UserPopulation",
    "clickbait_scores",
    "document_action",
    "document_index",
    "engagement_mean",
    "evaluation_config",
    "initial_state",
    "next_exposure",
    "observe",
    "satisfaction",
    "training_configs",
    "training_group_means",
    "transition",
)

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

MAX_ENGAGEMENT: Final = 100.0
"""Upper end of the observed engagement and of the mean engagements mu_c and mu_k."""

OBSERVATION_FIELDS: Final = ("group_signal", "click", "engagement")
"""What the columns of an observation hold."""

TEST_GROUP_MEAN: Final = 14.0
"""Clickbait mean mu_c of the group that policies are tested on."""

GROUP_MEANS: Final = tuple(float(mean) for mean in range(6, 22))
"""Clickbait means mu_c of all simulated groups: the integers 14 - 8 to 14 + 8 - 1."""

TRANSFER_LEVELS: Final = (2, 3, 4)
"""How far from the test group the training groups stay away; the higher, the harder."""

_MEMORY_RANGE = (0.7, 0.9)
_SENSITIVITY_RANGE = (0.4, 0.6)
_EXP_RANGE = (1.01, 2.6)


class LTSConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One group of users and how long they are shown documents.

    The defaults are the test environment of Sim2Rec.

    Attributes
    ----------
    mu_c, mu_k
        Mean engagement with pure clickbait and with pure kale at full satisfaction, in [0, 100].
    sd_c, sd_k
        Standard deviation of that engagement, at least 0.
    innovation_sd
        Standard deviation of the noise in a user's net positive exposure, at least 0.
    horizon
        Documents shown to a user in an episode, at least 1.
    documents
        Number of documents D, at least 2; document k has the clickbait score k / D.
    signal_sd
        Standard deviation of a user's group signal around `mu_c`, at least 0.
    kale_noise
        Half-width of the uniform noise on `mu_k` of each user, drawn at every reset, at least 0;
        it stands for the error of a training simulator, so the test environment has none.
    log_sample
        How users are drawn, see :meth:`UserPopulation.draw`.

    Raises
    ------
    InvalidInputError
        If a value is outside its range; the error names the attribute.
    """

    mu_c: float = TEST_GROUP_MEAN
    mu_k: float = 4.0
    sd_c: float = 0.01
    sd_k: float = 0.01
    innovation_sd: float = 0.0
    horizon: int = 140
    documents: int = 30
    signal_sd: float = 3.0
    kale_noise: float = 0.0
    log_sample: bool = True

    def __post_init__(self) -> None:
        for field in ("mu_c", "mu_k"):
            _require_number(field, getattr(self, field), high=MAX_ENGAGEMENT)
        for field in ("sd_c", "sd_k", "innovation_sd", "signal_sd", "kale_noise"):
            _require_number(field, getattr(self, field))
        _require_integer("horizon", self.horizon, low=1)
        _require_integer("documents", self.documents, low=2)


@dataclass(frozen=True, eq=False, slots=True)
class UserPopulation:
    """The parameters in which users differ, drawn once and kept across resets.

    Attributes
    ----------
    memory
        Share m of the net positive exposure that a user keeps from one document to the next,
        shape (n,), in [0, 1).
    sensitivity
        How strongly satisfaction follows exposure, h, shape (n,), finite and at least 0.

    Raises
    ------
    InvalidInputError
        If an array is empty, has the wrong shape or holds a value outside its range.

    Notes
    -----
    The arrays are copied to float64 and made read-only.
    """

    memory: FloatArray
    sensitivity: FloatArray

    def __post_init__(self) -> None:
        memory = _read_only("memory", self.memory)
        sensitivity = _read_only("sensitivity", self.sensitivity)
        if memory.size == 0:
            raise InvalidInputError("memory", "expected at least one user")
        if sensitivity.shape != memory.shape:
            raise InvalidInputError(
                "sensitivity",
                f"expected one value per user {memory.shape}, got {sensitivity.shape}",
            )
        _require_all("memory", memory, (memory >= 0.0) & (memory < 1.0), "[0, 1)")
        _require_all(
            "sensitivity", sensitivity, np.isfinite(sensitivity) & (sensitivity >= 0.0), "[0, inf)"
        )
        object.__setattr__(self, "memory", memory)
        object.__setattr__(self, "sensitivity", sensitivity)

    def __len__(self) -> int:
        return self.memory.size

    @classmethod
    def draw(cls, n: int, rng: np.random.Generator, *, log_sample: bool = True) -> UserPopulation:
        """Draw users as the released Sim2Rec code does.

        Parameters
        ----------
        n
            Number of users, at least 1.
        rng
            Source of randomness.
        log_sample
            If true, m and h are independent ``ln U[1.01, 2.6]``, so both lie in [0.00995, 0.9555];
            otherwise ``m ~ U[0.7, 0.9]`` and ``h ~ U[0.4, 0.6]``.

        Returns
        -------
        UserPopulation
            `n` users.
        """
        _require_integer("n", n, low=1)
        if log_sample:
            return cls(np.log(rng.uniform(*_EXP_RANGE, n)), np.log(rng.uniform(*_EXP_RANGE, n)))
        return cls(rng.uniform(*_MEMORY_RANGE, n), rng.uniform(*_SENSITIVITY_RANGE, n))

    def take(self, indices: Sequence[int] | IntArray) -> UserPopulation:
        """Return the users at `indices`, in that order, as a population of their own."""
        chosen = list(indices)
        return UserPopulation(self.memory[chosen], self.sensitivity[chosen])

    @property
    def initial_exposure(self) -> FloatArray:
        """Net positive exposure at reset, ``NPE_0 = 0.5 / (1 - m)`` (Sim2Rec code), shape (n,)."""
        return 0.5 / (1.0 - self.memory)


@dataclass(frozen=True, eq=False, slots=True)
class LTSNoise:
    """The standard normal draws of one step.

    Attributes
    ----------
    engagement, innovation
        Noise of the engagement and of the exposure before scaling, shape (n,) each.
    """

    engagement: FloatArray
    innovation: FloatArray

    @classmethod
    def draw(cls, n: int, rng: np.random.Generator) -> LTSNoise:
        """Draw the noise of one step of `n` users."""
        # Both are drawn whatever their scale, so that a seed means the same noise in every config.
        return cls(engagement=rng.standard_normal(n), innovation=rng.standard_normal(n))


@dataclass(frozen=True, eq=False, slots=True)
class LTSState:
    """Where every user stands; hidden from the policy but for the group signal.

    Attributes
    ----------
    step
        Documents shown since the reset, in [0, horizon].
    exposure
        Net positive exposure NPE, shape (n,).
    satisfaction
        ``SAT = sigmoid(h NPE)``, shape (n,), in (0, 1).
    kale_mean
        Each user's own mu_k of this episode, shape (n,), in [0, 100].
    group_signal
        Each user's noisy view of mu_c, constant in an episode, shape (n,).
    """

    step: int
    exposure: FloatArray
    satisfaction: FloatArray
    kale_mean: FloatArray
    group_signal: FloatArray


@dataclass(frozen=True, eq=False, slots=True)
class LTSStep:
    """What a step returns.

    Attributes
    ----------
    observation
        ``[group signal, click, engagement clipped to [0, 100]]``, shape (n, 3).
    reward
        Engagement of each user, not clipped, shape (n,).
    done
        True after the last document of the horizon, for all users at once.
    """

    observation: FloatArray
    reward: FloatArray
    done: bool


def training_group_means(level: int) -> tuple[float, ...]:
    """Clickbait means of the training simulators of a transfer level.

    Parameters
    ----------
    level
        2, 3 or 4: every group with ``|14 - mu_c| <= level`` is left out (Sim2Rec, tasks LTS1-3).

    Returns
    -------
    tuple of float
        11, 9 or 7 values of mu_c, ascending; the test group's 14 is never one of them.
    """
    if level not in TRANSFER_LEVELS:
        raise InvalidInputError("level", f"expected one of {TRANSFER_LEVELS}, got {level!r}")
    return tuple(mean for mean in GROUP_MEANS if abs(TEST_GROUP_MEAN - mean) > level)


def training_configs(level: int, base: LTSConfig | None = None) -> tuple[LTSConfig, ...]:
    """Return `base` with the clickbait mean of each training simulator of a transfer level."""
    start = LTSConfig() if base is None else base
    return tuple(msgspec.structs.replace(start, mu_c=mean) for mean in training_group_means(level))


def evaluation_config(base: LTSConfig | None = None) -> LTSConfig:
    """Return `base` as the test group: mu_c = 14, and no simulator error on mu_k."""
    start = LTSConfig() if base is None else base
    return msgspec.structs.replace(start, mu_c=TEST_GROUP_MEAN, kale_noise=0.0)


def document_index(actions: ArrayLike, documents: int) -> IntArray:
    """Document that a continuous action stands for, ``floor((a + 1) / 2 (D - 1))`` (Sim2Rec code).

    Parameters
    ----------
    actions
        Real numbers in [-1, 1], any shape.
    documents
        Number of documents D, at least 2.

    Returns
    -------
    IntArray
        Indices in [0, D - 1], of the shape of `actions`; only an action of exactly 1 gives D - 1.
    """
    _require_integer("documents", documents, low=2)
    values = _float_array("actions", actions)
    _require_all("actions", values, (values >= -1.0) & (values <= 1.0), "[-1, 1]")
    return np.floor((values + 1.0) / 2.0 * (documents - 1)).astype(np.int64)


def document_action(indices: ArrayLike, documents: int) -> FloatArray:
    """Action in the middle of those that stand for a document: undoes :func:`document_index`.

    Parameters
    ----------
    indices
        Integers in [0, D - 1], any shape.
    documents
        Number of documents D, at least 2.

    Returns
    -------
    FloatArray
        Actions in [-1, 1], of the shape of `indices`.
    """
    _require_integer("documents", documents, low=2)
    chosen = _document_array("indices", indices, documents)
    # The middle, since rounding at the lower edge 2 k / (D - 1) - 1 could fall to document k - 1.
    return np.minimum((2.0 * chosen + 1.0) / (documents - 1) - 1.0, 1.0)


def clickbait_scores(documents: int) -> FloatArray:
    """Clickbait score of every document, ``c_k = k / D``, shape (D,), in [0, 1)."""
    return np.arange(documents) / documents


def satisfaction(exposure: FloatArray, sensitivity: FloatArray) -> FloatArray:
    """``SAT = sigmoid(h NPE)`` (RecSim), in (0, 1), of the broadcast shape of its arguments."""
    return np.asarray(scipy.special.expit(sensitivity * exposure), dtype=np.float64)


def engagement_mean(
    clickbait: FloatArray, sat: FloatArray, mu_c: float, kale_mean: FloatArray | float
) -> FloatArray:
    """Mean engagement, ``(c mu_c + (1 - c) mu_k) SAT`` (RecSim, without its exponential).

    Parameters
    ----------
    clickbait
        Clickbait score c of the document shown, in [0, 1].
    sat
        Satisfaction before the document is shown, in (0, 1).
    mu_c, kale_mean
        Mean engagement with pure clickbait and pure kale.

    Returns
    -------
    FloatArray
        Of the broadcast shape of the arguments.
    """
    return (clickbait * mu_c + (1.0 - clickbait) * kale_mean) * sat


def next_exposure(
    exposure: FloatArray, clickbait: FloatArray, memory: FloatArray | float
) -> FloatArray:
    """Exposure after a document, without noise: ``m NPE - 2 (c - 0.5)``.

    The sign is that of both released code bases, in which clickbait lowers satisfaction; RecSim's
    docstring has a plus.
    """
    return memory * exposure - 2.0 * (clickbait - 0.5)


def initial_state(config: LTSConfig, users: UserPopulation, rng: np.random.Generator) -> LTSState:
    """Start an episode: ``mu_k <- clip(mu_k + U(-noise, noise), 0, 100)``, ``o ~ N(mu_c, sd)``.

    Parameters
    ----------
    config
        The group.
    users
        The n users.
    rng
        Source of each user's kale mean and group signal, in this order.

    Returns
    -------
    LTSState
        At step 0, with the deterministic ``NPE_0 = 0.5 / (1 - m)``.
    """
    n = len(users)
    kale_mean = config.mu_k + config.kale_noise * rng.uniform(-1.0, 1.0, n)
    exposure = users.initial_exposure
    return LTSState(
        step=0,
        exposure=exposure,
        satisfaction=satisfaction(exposure, users.sensitivity),
        kale_mean=np.clip(kale_mean, 0.0, MAX_ENGAGEMENT),
        group_signal=config.mu_c + config.signal_sd * rng.standard_normal(n),
    )


def transition(
    config: LTSConfig, users: UserPopulation, state: LTSState, shown: IntArray, noise: LTSNoise
) -> tuple[LTSState, FloatArray]:
    """Show one document to every user: a pure function of its arguments.

    ``r = (c mu_c + (1 - c) mu_k) SAT + (c sd_c + (1 - c) sd_k) e1`` with the satisfaction before
    the update, then ``NPE <- m NPE - 2 (c - 0.5) + innovation_sd e2`` (RecSim; Sim2Rec code).

    Parameters
    ----------
    config
        The group.
    users
        The n users.
    state
        Where they stand.
    shown
        Index of the document shown to each user, shape (n,), in [0, D - 1]; not checked here.
    noise
        The standard normal draws e1 and e2.

    Returns
    -------
    state : LTSState
        Where they stand afterwards.
    reward : FloatArray
        Engagement of each user, not clipped, shape (n,).
    """
    clickbait = clickbait_scores(config.documents)[shown]
    mean = engagement_mean(clickbait, state.satisfaction, config.mu_c, state.kale_mean)
    sd = clickbait * config.sd_c + (1.0 - clickbait) * config.sd_k
    exposure = next_exposure(state.exposure, clickbait, users.memory)
    exposure = exposure + config.innovation_sd * noise.innovation
    after = LTSState(
        step=state.step + 1,
        exposure=exposure,
        satisfaction=satisfaction(exposure, users.sensitivity),
        kale_mean=state.kale_mean,
        group_signal=state.group_signal,
    )
    return after, mean + sd * noise.engagement


def observe(state: LTSState, reward: FloatArray | None) -> FloatArray:
    """What a policy sees of a state.

    Parameters
    ----------
    state
        Where the users stand.
    reward
        Engagement with the last document, shape (n,); None at reset, before any document.

    Returns
    -------
    FloatArray
        Shape (n, 3), columns :data:`OBSERVATION_FIELDS`. A shown document is always clicked;
        engagement is clipped to [0, 100]; both are 0 at reset.
    """
    observation = np.zeros((state.group_signal.size, len(OBSERVATION_FIELDS)))
    observation[:, 0] = state.group_signal
    if reward is not None:
        observation[:, 1] = 1.0
        observation[:, 2] = np.clip(reward, 0.0, MAX_ENGAGEMENT)
    return observation


class LTSEnvironment:
    """Episodes of one group of users, all stepped together.

    Parameters
    ----------
    config
        The group.
    users
        Its n users, the same in every episode.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> environment = LTSEnvironment(LTSConfig(), UserPopulation.draw(750, rng))
    >>> environment.reset(rng).shape
    (750, 3)
    >>> environment.step(np.zeros(750)).reward.shape
    (750,)
    """

    def __init__(self, config: LTSConfig, users: UserPopulation) -> None:
        self.config = config
        self.users = users
        self._state: LTSState | None = None
        self._rng: np.random.Generator | None = None

    @property
    def state(self) -> LTSState:
        """Where the users stand, for critics and tests that may see it."""
        if self._state is None:
            raise InvalidInputError("state", "expected a call of reset before this one")
        return self._state

    def reset(self, rng: np.random.Generator) -> FloatArray:
        """Start an episode.

        Parameters
        ----------
        rng
            Source of the episode's randomness, kept and advanced by every step without own noise.

        Returns
        -------
        FloatArray
            The first observation, shape (n, 3): group signal, 0, 0.
        """
        self._rng = rng
        self._state = initial_state(self.config, self.users, rng)
        return observe(self._state, None)

    def step(self, actions: ArrayLike, noise: LTSNoise | None = None) -> LTSStep:
        """Act on every user with a continuous action.

        Parameters
        ----------
        actions
            One number in [-1, 1] per user, shape (n,); see :func:`document_index`.
        noise
            The step's draws; None takes them from the generator given to :meth:`reset`.

        Returns
        -------
        LTSStep
            Observation, reward and whether the episode is over.

        Raises
        ------
        InvalidInputError
            If `actions` is unusable, or there is no episode to go on with.
        """
        values = _float_array("actions", actions)
        _require_shape("actions", values.shape, len(self.users))
        return self.show(document_index(values, self.config.documents), noise)

    def show(self, shown: ArrayLike, noise: LTSNoise | None = None) -> LTSStep:
        """Show every user a document.

        Parameters
        ----------
        shown
            Index of one document per user, shape (n,), in [0, D - 1].
        noise
            The step's draws; None takes them from the generator given to :meth:`reset`.

        Returns
        -------
        LTSStep
            Observation, reward and whether the episode is over.

        Raises
        ------
        InvalidInputError
            If `shown` is unusable, or there is no episode to go on with.
        """
        before = self.state
        if before.step >= self.config.horizon:
            raise InvalidInputError(
                "state.step", f"expected a reset: the {self.config.horizon} steps are over"
            )
        chosen = _document_array("shown", shown, self.config.documents)
        _require_shape("shown", chosen.shape, len(self.users))
        after, reward = transition(
            self.config, self.users, before, chosen, self._noise_of_step(noise)
        )
        self._state = after
        return LTSStep(
            observation=observe(after, reward),
            reward=reward,
            done=after.step >= self.config.horizon,
        )

    def _noise_of_step(self, given: LTSNoise | None) -> LTSNoise:
        if given is None:
            assert self._rng is not None  # set together with the state
            return LTSNoise.draw(len(self.users), self._rng)
        _require_shape("noise.engagement", given.engagement.shape, len(self.users))
        _require_shape("noise.innovation", given.innovation.shape, len(self.users))
        return given


def _require_number(field: str, value: object, *, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInputError(field, f"expected a number, got {value!r}")
    if not (math.isfinite(value) and 0.0 <= value <= high):
        limit = "at least 0" if math.isinf(high) else f"in [0, {high:g}]"
        raise InvalidInputError(field, f"expected a finite number {limit}, got {value!r}")


def _require_integer(field: str, value: object, *, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InvalidInputError(field, f"expected an integer of at least {low}, got {value!r}")


def _require_all(field: str, values: NDArray[Any], good: NDArray[np.bool_], expected: str) -> None:
    # Written so that a NaN, which compares false with everything, is not good.
    if not good.all():
        where = np.unravel_index(int(np.argmin(good)), good.shape)
        position = "".join(f"[{index}]" for index in where)
        raise InvalidInputError(
            f"{field}{position}", f"expected a value in {expected}, got {values[where]}"
        )


def _require_shape(field: str, shape: tuple[int, ...], n: int) -> None:
    if shape != (n,):
        raise InvalidInputError(field, f"expected one value per user ({n},), got shape {shape}")


def _float_array(field: str, values: ArrayLike) -> FloatArray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(field, f"expected numbers: {error}") from error


def _read_only(field: str, values: ArrayLike) -> FloatArray:
    array = _float_array(field, values).copy()
    if array.ndim != 1:
        raise InvalidInputError(field, f"expected one dimension, got shape {array.shape}")
    array.flags.writeable = False
    return array


def _document_array(field: str, indices: ArrayLike, documents: int) -> IntArray:
    values = np.asarray(indices)
    if not np.issubdtype(values.dtype, np.integer):
        raise InvalidInputError(field, f"expected document indices, got {values.dtype}")
    _require_all(field, values, (values >= 0) & (values < documents), f"[0, {documents - 1}]")
    return values.astype(np.int64)
