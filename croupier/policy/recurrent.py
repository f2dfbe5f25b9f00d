"""Policies that remember a session: a recurrent network from what is seen to preferences.

They are trained in simulators (:mod:`croupier.sim2rec`) and served here, with NumPy alone.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from croupier.policy.damaged import UNREADABLE
from croupier.policy.errors import GenerationError, InvalidInputError, ScoringError
from croupier.policy.exploration import Softmax
from croupier.policy.sessions import group_at, numbers_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.events import Action, Features

__all__ = (
    "SPREADS",
    "AtStep",
    "Head",
    "RecurrentConfig",
    "RecurrentPolicy",
    "TrainingNotes",
    "load_recurrent",
)

Head: TypeAlias = Literal["ordered", "categorical"]

SPREADS: Final = (0.4, 0.25)
"""Of an ordered head: the smallest standard deviation, in actions, and the first one, as a share of
all actions."""

NEVER: Final = -1e9
"""Preference for an action that the policy doesn't know: its exponential is 0."""

_CONFIG_FILE, _ARRAYS_FILE = "policy.json", "arrays.npz"
# Nothing in training was ever so many deviations away; products with it must be finite.
_FARTHEST: Final = 1e6
_MEMORY = np.dtype("<f4")


class TrainingNotes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a policy was trained: with the code and the lake, enough to train the same one again.

    Attributes
    ----------
    seed
        Of everything random.
    lake_version
        Version of the interactions table that the simulators were learned from; -1 if from none.
    rows
        Interactions that they were learned from.
    settings
        Everything that was set, in JSON.
    """

    seed: int
    lake_version: int = -1
    rows: int = 0
    settings: str = "{}"


class RecurrentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recurrent policy sees and chooses from.

    Attributes
    ----------
    actions
        Ids of the actions that it knows, in the order of its outputs; at least 2.
    observation
        Paths in the context of the numbers that a step is observed by, in the order of training.
    sees
        Which of them it looks at, by their places.
    horizon
        Steps of an episode in training, at least 1.
    memory
        Numbers in the recurrent state; 0 for a policy without memory, which is told the previous
        action and nothing of what was before.
    hidden
        Units of the layers before and after it.
    head
        ``ordered`` or ``categorical``, see
        :class:`~croupier.sim2rec.learning_config.ActorConfig`.
    floor
        Share of the uniform policy in training, in (0, 1).
    group
        Path in the context of what groups users; None if it is told no group.
    codes
        What it is told of each group, equally many numbers. A group that isn't here is told of as
        the mean of all.
    training
        Where it comes from.
    """

    actions: tuple[str, ...]
    observation: tuple[str, ...]
    sees: tuple[int, ...]
    horizon: int
    memory: int
    hidden: int
    head: Head
    floor: float
    training: TrainingNotes
    group: str | None = None
    codes: dict[str, tuple[float, ...]] = {}

    def __post_init__(self) -> None:
        if len(self.actions) < 2 or len(set(self.actions)) < len(self.actions):
            raise InvalidInputError("actions", "expected at least 2 different ids")
        if not all(0 <= place < len(self.observation) for place in self.sees):
            expected = f"expected places in [0, {len(self.observation)}), got {list(self.sees)}"
            raise InvalidInputError("sees", expected)
        for field, low in (("horizon", 1), ("memory", 0), ("hidden", 1)):
            if getattr(self, field) < low:
                expected = f"expected at least {low}, got {getattr(self, field)}"
                raise InvalidInputError(field, expected)
        # Without a floor nothing else could be learned from its log, nor evaluated.
        if not 0.0 < self.floor < 1.0:
            raise InvalidInputError("floor", f"expected a number in (0, 1), got {self.floor}")
        if len({len(code) for code in self.codes.values()}) > 1:
            raise InvalidInputError("codes", "expected equally many numbers of each group")

    @property
    def code(self) -> int:
        """Numbers in a group's code."""
        return max((len(each) for each in self.codes.values()), default=0)

    @property
    def exploration(self) -> Softmax:
        """How preferences become a pmf, the same as in training while all actions can be chosen.

        ``p(a) = f / D + (1 - K f / D) softmax(preferences)(a)`` over the K eligible ones of D
        actions, with the share f of the uniform policy.
        """
        return Softmax(temperature=1.0, floor=self.floor / len(self.actions), floor_method="mix")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of the policy's arrays, by name."""
        inputs = len(self.sees) + 1 + self.code + 2
        hidden, states, columns = self.hidden, self.memory or self.hidden, len(self.observation)
        outputs = 2 if self.head == "ordered" else len(self.actions)
        shapes: dict[str, tuple[int, ...]] = {"mean": (columns,), "deviation": (columns,)}
        for name, sizes in (
            ("before", (inputs, hidden, hidden)),
            ("after", (inputs + states, hidden, outputs)),
        ):
            for layer in range(2):
                shapes[f"{name}_{layer}_weight"] = sizes[layer : layer + 2]
                shapes[f"{name}_{layer}_bias"] = (sizes[layer + 1],)
        if self.memory:
            shapes["inputs_weight"] = (hidden, 3 * self.memory)
            shapes["inputs_bias"] = (3 * self.memory,)
            shapes["recurrent_weight"] = (self.memory, 3 * self.memory)
        return shapes


class AtStep(NamedTuple):
    """A recurrent policy at one step of a session.

    Attributes
    ----------
    policy
        Whose.
    memory
        Its state after what is seen now, for the next step; see
        :class:`~croupier.policy.events.Recall`.
    preferences
        For each action that it knows, shape (D,): logarithms of odds.
    """

    policy: RecurrentPolicy
    memory: bytes
    preferences: NDArray[np.float64]

    def for_actions(self, actions: Sequence[Action]) -> NDArray[np.float64]:
        """Preferences for the actions of a request, shape (K,).

        An action that the policy doesn't know gets :data:`NEVER`: the floor's share, and nothing
        else, while any that it knows can be chosen.
        """
        place, known = self.policy.places, self.preferences.tolist()
        found = (place.get(action.id) for action in actions)
        return np.array([NEVER if at is None else known[at] for at in found])


class RecurrentPolicy:
    """A perceptron, a gated recurrent unit and a perceptron, as it was trained.

    The same network as :class:`croupier.sim2rec.actor.Actor`::

        x    what is seen: scaled columns, the share of the episode that is left, the group's code,
             the place of the action before
        b    = tanh(W2 tanh(W1 x))
        z, r = sigmoid(W b + U h),  n = tanh(W b + r (U h)),  h <- z h + (1 - z) n
        y    = V2 tanh(V1 (x, h)), and preferences from y as the head has it

    All numbers have 64 bits but those of h, which is rounded to 32 bits after each step. So what is
    kept of a session is exact, and hardly ever depends on the order in which a processor adds up.

    Parameters
    ----------
    config
        What it sees and chooses from.
    arrays
        By name, as :attr:`RecurrentConfig.shapes` has it; of 32 bits, as they were trained.

    Raises
    ------
    GenerationError
        If an array is missing, too much, of another shape, or not finite.
    """

    def __init__(self, config: RecurrentConfig, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        _check_arrays(config, arrays)
        self.config = config
        self.arrays = dict(arrays)
        self.places = {action: place for place, action in enumerate(config.actions)}
        self._at = {name: each.astype(np.float64) for name, each in arrays.items()}
        means, deviations = self._at["mean"].tolist(), self._at["deviation"].tolist()
        self._columns = [(place, means[place], deviations[place]) for place in config.sees]
        self._codes = config.codes
        self._code = tuple(np.mean(list(config.codes.values()), axis=0)) if config.codes else ()
        self._numbers = np.arange(len(config.actions), dtype=np.float64)

    def at_step(
        self, context: Features, *, memory: bytes | None, previous: str | None, steps: int
    ) -> AtStep:
        """Look at a step of a session.

        Parameters
        ----------
        context
            Of the request.
        memory
            After the step before; None if the policy begins with this one.
        previous
            Id of the action before; None if there is none. One that the policy doesn't know is as
            good as none.
        steps
            How many it has followed before, at least 0. Beyond the horizon of its training it takes
            every step for the last one.

        Raises
        ------
        InvalidInputError
            If what is observed is not a number.
        ScoringError
            If the memory isn't one of this policy.
        """
        x = self._inputs(context, previous, steps)
        hidden = np.tanh(self._perceptron("before", x))
        kept = b""
        if self.config.memory:
            hidden = self._remember(self._state(memory), hidden)
            kept = hidden.tobytes()
        outputs = self._perceptron("after", np.concatenate((x, hidden)))
        return AtStep(self, kept, self._preferences(outputs))

    def save(self, directory: Path) -> None:
        """Write it into a directory, which is made if it isn't there."""
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(directory / _ARRAYS_FILE, **self.arrays)  # type: ignore[arg-type]
        (directory / _CONFIG_FILE).write_bytes(
            msgspec.json.format(msgspec.json.encode(self.config))
        )

    def _inputs(self, context: Features, previous: str | None, steps: int) -> NDArray[np.float64]:
        # A few numbers, for which a call of NumPy each would cost more.
        config = self.config
        values = numbers_at(context, config.observation)
        seen = [
            min(max((values[place] - mean) / deviation, -_FARTHEST), _FARTHEST)
            for place, mean, deviation in self._columns
        ]
        seen.append(2.0 * max(config.horizon - steps, 1) / config.horizon - 1.0)
        if config.code:
            seen += self._codes.get(group_at(context, config.group), self._code)
        place = None if previous is None else self.places.get(previous)
        seen.append(0.0 if place is None else 2.0 * place / (len(config.actions) - 1) - 1.0)
        seen.append(float(place is None))
        return np.array(seen)

    def _perceptron(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        at = self._at
        inner = np.tanh(x @ at[f"{name}_0_weight"] + at[f"{name}_0_bias"])
        outer: NDArray[np.float64] = inner @ at[f"{name}_1_weight"] + at[f"{name}_1_bias"]
        return outer

    def _state(self, memory: bytes | None) -> NDArray[np.float64]:
        size = self.config.memory
        if memory is None:
            return np.zeros(size)
        if len(memory) != size * _MEMORY.itemsize:
            raise ScoringError(f"expected a memory of {size} numbers, got {len(memory)} bytes")
        return np.frombuffer(memory, dtype=_MEMORY).astype(np.float64)

    def _remember(
        self, state: NDArray[np.float64], hidden: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        size = self.config.memory
        given = hidden @ self._at["inputs_weight"] + self._at["inputs_bias"]
        own = state @ self._at["recurrent_weight"]
        gates = _sigmoid(given[: 2 * size] + own[: 2 * size])
        update, reset = gates[:size], gates[size:]
        new = np.tanh(given[2 * size :] + reset * own[2 * size :])
        return (update * state + (1.0 - update) * new).astype(_MEMORY)

    def _preferences(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.config.head == "categorical":
            return outputs
        centre, spread = outputs.tolist()
        narrowest, first = SPREADS
        actions = len(self.config.actions)
        at = 0.5 * (actions - 1) * (1.0 + math.tanh(2.0 * centre))
        # Beyond 80 it is flat anyhow, and the exponential would overflow.
        width = narrowest + first * actions * math.exp(min(4.0 * spread, 80.0))
        return -0.5 * ((self._numbers - at) / width) ** 2


def load_recurrent(directory: Path) -> RecurrentPolicy:
    """Read back what :meth:`RecurrentPolicy.save` wrote.

    Raises
    ------
    GenerationError
        If files are missing, damaged or don't fit together.
    """
    try:
        config = msgspec.json.decode((directory / _CONFIG_FILE).read_bytes(), type=RecurrentConfig)
        # Read here: given a path, NumPy leaves damaged files open.
        stored = io.BytesIO((directory / _ARRAYS_FILE).read_bytes())
        with np.load(stored, allow_pickle=False) as arrays:
            return RecurrentPolicy(config, {name: arrays[name] for name in arrays.files})
    except UNREADABLE as error:
        raise GenerationError(
            f"the recurrent policy in {directory} can't be read: {error}"
        ) from error


def _check_arrays(config: RecurrentConfig, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    wanted = config.shapes
    if wanted.keys() != arrays.keys():
        raise GenerationError(
            f"expected the arrays {', '.join(wanted)}, got {', '.join(sorted(arrays))}"
        )
    for name, shape in wanted.items():
        each = arrays[name]
        if each.shape != shape or each.dtype != np.float32:
            raise GenerationError(
                f"{name}: expected float32 of shape {shape}, got {each.dtype} of {each.shape}"
            )
        if not np.isfinite(each).all():
            raise GenerationError(f"{name}: expected finite numbers")
    if not (arrays["deviation"] > 0.0).all():
        raise GenerationError("deviation: expected numbers above 0")


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # Unlike 1 / (1 + exp(-x)) it can't overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * x))
