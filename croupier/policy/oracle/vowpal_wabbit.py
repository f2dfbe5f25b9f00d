"""Oracles that Vowpal Wabbit learns, in one pass or row by row."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from croupier.policy.encoding import EncodedDecision, EncoderConfig
from croupier.policy.errors import GenerationError
from croupier.policy.oracle.base import (
    OracleConfigBase,
    check_rows,
    checked,
    not_online,
    require,
)
from croupier.policy.oracle.tables import LinearOracle, require_usable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import (
        EncodedFeatures,
        FeatureEncoder,
        IndexArray,
    )
    from croupier.policy.oracle.base import TrainingRow

__all__ = (
    "READ_OUT_ROWS",
    "BanditLearner",
    "CostLearner",
    "Lesson",
    "RegressionExample",
    "VowpalWabbitConfig",
    "VowpalWabbitOracle",
    "action_examples",
    "bandit_examples",
    "lesson_of",
    "resumed",
)

READ_OUT_ROWS = 50
"""From so many rows on it is quicker to read out a whole table than what every row changed."""

_SINGLE = np.float32
_NEXT_TO_0 = 1e-12
_COUNTS = struct.Struct("<QQ")


class VowpalWabbitConfig(OracleConfigBase, frozen=True, tag="vowpal_wabbit"):
    """Parameters of :class:`VowpalWabbitOracle`.

    Attributes
    ----------
    cb_type
        How the reward of the chosen action teaches about the others: ``mtr`` (importance-weighted
        regression), ``ips`` or ``dr``.
    learning_rate
        Positive.
    power_t
        How fast the learning rate falls with the number of examples, in [0, 1]; 0 keeps it.
    passes
        How often the interactions are gone through, 1 to 1000.
    l2
        Ridge penalty per update, ≥ 0.
    encoder
        How features become indices.
    """

    cb_type: Literal["mtr", "ips", "dr"] = "mtr"
    learning_rate: float = 0.5
    power_t: float = 0.5
    passes: int = 1
    l2: float = 0.0
    encoder: EncoderConfig = EncoderConfig()

    @property
    def learns_online(self) -> bool:
        """Vowpal Wabbit learns nothing but online."""
        return True

    @property
    def weighs_propensities(self) -> bool:
        """That is what `cb_type` says."""
        return True

    @property
    def can_be_damped(self) -> bool:
        """It is one table of weights."""
        return True

    @property
    def resumes(self) -> bool:
        """Whether Vowpal Wabbit's own model file holds all that it needs to go on.

        Read back, ``mtr`` and ``ips`` go on bit for bit. Under ``dr`` the model lacks the second
        regression's learning rate, and with a ridge penalty how far weights were shrunk.
        """
        return self.cb_type != "dr" and self.l2 == 0.0

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require("learning_rate", 0 < rate < math.inf, "positive", rate)
        require("power_t", 0 <= self.power_t <= 1, "in [0, 1]", self.power_t)
        require("passes", 1 <= self.passes <= 1000, "in [1, 1000]", self.passes)
        require("l2", 0 <= self.l2 < math.inf, "at least 0", self.l2)


class VowpalWabbitOracle(LinearOracle):
    """Vowpal Wabbit's contextual-bandit regression, read out as a table of weights.

    Costs are minus the rewards. The learner is ``--cb_adf`` with the product of context and action
    features. Its prediction is a dot product that is not clipped to the range of the rewards, so
    the table predicts what Vowpal Wabbit predicts: an estimate may lie outside of the range, which
    keeps the order of actions where clipping would make ties.

    The learner stays in memory, 16 bytes for each of the table's 2**bits entries (32 under ``dr``),
    so that :meth:`partial_fit` can go on where :meth:`fit` ended. It is saved where its file holds
    all of it, which is but for ``dr`` and a ridge penalty, and read back where it is asked for.
    """

    config: VowpalWabbitConfig
    _learner: BanditLearner | None = None

    def learners(self) -> Mapping[str, bytes]:
        """The learner, if it can be saved."""
        if self._learner is None:
            return self._kept_learners
        return {"learner": self._learner.serialize()} if self.config.resumes else {}

    def fit(self, rows: Sequence[TrainingRow]) -> VowpalWabbitOracle:
        """Learn from interactions in the given order.

        Raises
        ------
        NotEnoughDataError
            If there are no rows.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the weights grew without bound.
        """
        learner = BanditLearner(self.config, self.random_state)
        slate = RegressionExample()
        for _ in range(self.config.passes):
            for row in checked(rows):
                learner.learn(lesson_of(self.config, self._encoder, row, slate), row.weight)
        return self.adopt(learner)

    def adopt(self, learner: BanditLearner) -> VowpalWabbitOracle:
        """Take over what a learner of the same configuration has learned, and the learner.

        Raises
        ------
        GenerationError
            If the weights grew without bound.
        """
        self.weights_ = learner.weights()
        self._learner = learner
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> VowpalWabbitOracle:
        """Learn from further interactions, each of them once.

        With no rows, an oracle that was not fitted starts with scores of 0. With one pass, ``fit``
        and ``partial_fit`` in turn give the weights of one ``fit`` of all rows, bit for bit. What a
        row costs doesn't depend on the size of the table unless there is a ridge penalty, which
        shrinks all of it.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the weights grew without bound, or the oracle was loaded.
        """
        check_rows(rows, some=False)
        lessons = [(row, lesson_of(self.config, self._encoder, row)) for row in rows]
        if self._learner is None:
            kept = self._kept_learners.get("learner")
            if self.weights_ is not None and kept is None:
                raise not_online("it was loaded without its learner")
            self._learner = BanditLearner(self.config, self.random_state, kept)
        if self.weights_ is None:
            self.weights_ = self._learner.weights()
        at_once = len(rows) >= READ_OUT_ROWS or (self.config.l2 > 0 and len(rows) > 0)
        for row, lesson in lessons:
            self._learner.learn(lesson, row.weight)
            if not at_once:
                self.weights_[lesson.changed] = self._learner.weights(lesson.changed)
        if at_once:
            self.weights_ = self._learner.weights()
        return self


class Lesson(NamedTuple):
    """An interaction as a :class:`BanditLearner` takes it.

    Attributes
    ----------
    examples
        Vowpal Wabbit's.
    row
        What they are made of.
    decision
        The encoded context and actions: all of them, or the chosen one alone where that is all
        that there is to learn from.
    encoder
        Made it.
    """

    examples: list[Any]
    row: TrainingRow
    decision: EncodedDecision
    encoder: FeatureEncoder

    @property
    def changed(self) -> IndexArray:
        """Columns whose weights can change when it is learned."""
        return self.encoder.indices_of(self.decision)


class BanditLearner:
    """A workspace that learns from interactions, read out as weights of the reward.

    ``mtr`` is a regression of the chosen actions' costs, in which a row's weight is multiplied by
    ``1 / (p K̄)``, with the propensity p and the mean number K̄ of actions so far. It is done as
    such, with one example a row and nothing predicted, in the arithmetic of ``--cb_adf --cb_type
    mtr``: the weights are the same bit for bit, in a fraction of the time. ``ips`` and ``dr``
    learn from all actions, by ``--cb_adf`` itself.

    Parameters
    ----------
    config
        What it learns, and how.
    random_state
        Its seed.
    model
        What another one gave when it was serialized, to go on from there; only where the
        configuration :attr:`~VowpalWabbitConfig.resumes`.

    Attributes
    ----------
    config
        As given.
    counts
        Numbers of rows and of actions so far.
    """

    def __init__(
        self, config: VowpalWabbitConfig, random_state: int, model: bytes | None = None
    ) -> None:
        # Doubly robust learning keeps two weights per feature within the same 2**b.
        bits = config.encoder.bits + (1 if config.cb_type == "dr" else 0)
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        self.config = config
        self._label = vw.SimpleLabel
        self._is_regression = config.cb_type == "mtr"
        bandit = "" if self._is_regression else f"--cb_adf --cb_type {config.cb_type} --no_predict"
        reduction = f"{bandit} --l2 {config.l2} --power_t {config.power_t}"
        self.counts: tuple[int, int] = (0, 0) if model is None else _COUNTS.unpack_from(model)
        self._workspace = (
            _workspace(reduction, bits, config.learning_rate, random_state)
            if model is None
            else resumed(model[_COUNTS.size :])
        )
        self._size = 1 << config.encoder.bits
        self._shrinks = config.l2 > 0

    def serialize(self) -> bytes:
        """The numbers of rows and actions so far, and Vowpal Wabbit's model file."""
        return _COUNTS.pack(*self.counts) + bytes(self._workspace.serialize())

    def learn(self, lesson: Lesson, weight: float) -> None:
        """Learn from one interaction, as :func:`lesson_of` makes it, that counts by a weight."""
        row = lesson.row
        taught, offered = self.counts
        taught, offered = self.counts = taught + 1, offered + len(row.actions)
        if not self._is_regression:
            weigh(lesson.examples, row, weight)
            self._workspace.learn_one(lesson.examples)
            return
        example = lesson.examples[0]
        # Rounded step by step, as Vowpal Wabbit's own arithmetic is in single precision.
        share = _SINGLE(taught) / _SINGLE(offered)
        importance = _SINGLE(weight) * (_SINGLE(1.0) / _SINGLE(row.propensity) * share)
        example.set_label(self._label(-row.reward, float(importance)))
        # Its own method looks at the label's type again, which takes longer than to learn.
        self._workspace._workspace.learn_one(example._example)  # noqa: SLF001

    def numbers(self) -> NDArray[np.float32]:
        """What Vowpal Wabbit keeps for every weight, to be read and written, shape (2**b, 3).

        The weight of the cost, the sum of squared gradients that its learning rate falls by, and
        the scale that its feature is normalized by. Only where the configuration
        :attr:`~VowpalWabbitConfig.resumes`.
        """
        found: NDArray[np.float32] = self._workspace.weights()[:, 0, :3]
        return found

    def weights(self, columns: IndexArray | None = None) -> NDArray[np.float32]:
        """Weights of the reward; of all columns, or of some.

        Raises
        ------
        GenerationError
            If one is not finite.
        """
        # With doubly robust learning, the workspace claims twice the memory there is: only the
        # first half may be looked at.
        costs = _costs(self._workspace, self._size, columns)
        # Not merely negated: zeros are to be positive, as they will be when loaded.
        weights = np.float32(0.0) - costs
        if self._shrinks and weights.any():
            weights *= np.float32(self._shrinkage(costs))
        return require_usable(weights, "Vowpal Wabbit")

    def _shrinkage(self, costs: NDArray[np.float32]) -> float:
        """The factor that Vowpal Wabbit applies to all of its weights when it predicts.

        A ridge penalty shrinks every weight at every update; the factor is kept in one place
        instead and shown nowhere, but it is the prediction for a lone feature over that feature's
        weight.
        """
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        strongest = int(np.abs(costs).argmax())
        weight = float(costs[strongest])
        if not math.isfinite(weight):
            # Whoever wants the weights will refuse them.
            return 1.0
        if not self._is_regression:
            shared, lone = vw.Example(), vw.Example()
            shared.set_label(vw.CBLabel(shared=True))
            lone.set_label(vw.CBLabel())
            lone["a"].push_feature(strongest, 1.0)
            ((_, predicted),) = self._workspace.predict_one([shared, lone])
            return float(predicted) / weight
        # A regression's predictions are clipped to the range of the costs so far, with 0 in it: a
        # prediction next to 0 is in it on the one side or on the other.
        found = []
        for value in (_NEXT_TO_0 / weight, -_NEXT_TO_0 / weight):
            lone = vw.Example()
            lone.set_label(vw.SimpleLabel(0.0))
            lone["a"].push_feature(strongest, value)
            found.append(abs(float(self._workspace.predict_one(lone))))
        return max(found) / _NEXT_TO_0


class CostLearner:
    """A workspace that learns the cost of every action of a decision by regression.

    It does what ``--csoaa_ldf`` does, action by action, but with a weight for the whole decision.

    Parameters
    ----------
    encoder
        Size of the table.
    learning_rate
        Positive.
    random_state
        Its seed.
    model
        What another one gave when it was serialized, to go on from there.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        learning_rate: float,
        random_state: int,
        model: bytes | None = None,
    ) -> None:
        self._workspace = (
            _workspace("", encoder.bits, learning_rate, random_state)
            if model is None
            else resumed(model)
        )
        self._size = 1 << encoder.bits

    def serialize(self) -> bytes:
        """Vowpal Wabbit's model file."""
        return bytes(self._workspace.serialize())

    def learn(
        self, examples: Sequence[Any], rewards: NDArray[np.float64], weight: float = 1.0
    ) -> None:
        """Learn the rewards of all actions, shape (K,), given as :func:`action_examples`."""
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        for example, reward in zip(examples, rewards.tolist(), strict=True):
            example.set_label(vw.SimpleLabel(-reward, weight))
            self._workspace.learn_one(example)

    def weights(self, columns: IndexArray | None = None) -> NDArray[np.float32]:
        """Weights of the reward; of all columns, or of some.

        Raises
        ------
        GenerationError
            If one is not finite.
        """
        costs = _costs(self._workspace, self._size, columns)
        return require_usable(np.float32(0.0) - costs, "Vowpal Wabbit")


class RegressionExample:
    """Vowpal Wabbit's example for one action, to be filled over and over.

    To make an example takes about as long as to learn it.
    """

    def __init__(self) -> None:
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        self.example = vw.Example()
        # In the order of --csoaa_ldf, so that even the rounding of sums is the same.
        self._action, self._context = self.example["a"], self.example["c"]

    def fill(self, decision: EncodedDecision) -> None:
        """Put the features of a decision's context and of its first action into it."""
        action, context = self._action, self._context
        action.truncate_to(0)
        _push(action, decision.actions[0])
        context.truncate_to(0)
        _push(context, decision.context)


def lesson_of(
    config: VowpalWabbitConfig,
    encoder: FeatureEncoder,
    row: TrainingRow,
    slate: RegressionExample | None = None,
) -> Lesson:
    """Encode an interaction, as much of it as a learner of this configuration learns from.

    Parameters
    ----------
    config
        The learner's.
    encoder
        To encode with.
    row
        The interaction.
    slate
        To be written over, for a lesson that is learned before the next one is made.
    """
    if config.cb_type == "mtr":
        action = encoder.encode_action(row.actions[row.chosen])
        decision = EncodedDecision(encoder.encode_context(row.context), [action])
        slate = RegressionExample() if slate is None else slate
        slate.fill(decision)
        return Lesson([slate.example], row, decision, encoder)
    decision = encoder.encode(row.context, row.actions)
    return Lesson(bandit_examples(row, decision), row, decision, encoder)


def bandit_examples(row: TrainingRow, decision: EncodedDecision) -> list[Any]:
    """One multi-line example: the shared context, then a line per action with the chosen's cost."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    shared = vw.Example()
    shared.set_label(vw.CBLabel(shared=True))
    _push(shared["c"], decision.context)
    examples = [shared]
    for features in decision.actions:
        example = vw.Example()
        _push(example["a"], features)
        examples.append(example)
    weigh(examples, row, row.weight)
    return examples


def weigh(examples: Sequence[Any], row: TrainingRow, weight: float) -> None:
    """Label what :func:`bandit_examples` made with the row's cost and another weight."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    for position, example in enumerate(examples[1:]):
        cost = (-row.reward, row.propensity) if position == row.chosen else None
        example.set_label(vw.CBLabel(label=cost, weight=weight))


def action_examples(decision: EncodedDecision) -> list[Any]:
    """One example per action, with the features of the action and the context."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    examples = []
    for features in decision.actions:
        example = vw.Example()
        # In the order of --csoaa_ldf, so that even the rounding of sums is the same.
        _push(example["a"], features)
        _push(example["c"], decision.context)
        examples.append(example)
    return examples


def _workspace(reduction: str, bits: int, learning_rate: float, random_state: int) -> Any:
    # Vowpal Wabbit takes a while to import, and not every process learns.
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    arguments = (
        f"--quiet {reduction} -q ca --noconstant -b {bits} --learning_rate {learning_rate} "
        f"--random_seed {random_state}"
    )
    return vw.Workspace(arguments.split())


def resumed(model: bytes) -> Any:
    """A workspace that goes on where the one ended that was serialized."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    try:
        # The model has its own arguments, those of its learning rate among them.
        return vw.Workspace(["--quiet"], model_data=model)
    except RuntimeError as error:
        raise GenerationError(f"Vowpal Wabbit can't go on from its model: {error}") from error


def _costs(workspace: Any, size: int, columns: IndexArray | None) -> NDArray[np.float32]:
    # Of the weights stored with a feature the first predicts; of the numbers stored with a weight
    # the first is its value.
    stored: NDArray[np.float32] = workspace.weights()[:size, 0, 0]
    return np.array(stored) if columns is None else stored[columns]


def _push(group: Any, features: EncodedFeatures) -> None:
    group.push_many_features(features.indices, features.values)
