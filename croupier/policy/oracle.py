"""Oracles: regression models of the reward given context and action.

Both oracles here end up as a linear table of weights over the columns of
:class:`~croupier.policy.encoding.FeatureEncoder`, whoever fitted it, and share one scoring path.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, NotEnoughDataError
from croupier.policy.events import Action, Features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, EncodedFeatures

__all__ = (
    "LinearOracle",
    "Oracle",
    "OracleConfig",
    "SklearnConfig",
    "SklearnOracle",
    "TrainingRow",
    "VowpalWabbitConfig",
    "VowpalWabbitOracle",
    "load_oracle",
    "make_oracle",
)

Link: TypeAlias = Literal["identity", "logistic"]

_WEIGHTS_FILE = "weights.npz"
_CONFIG_FILE = "oracle.json"


class TrainingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One interaction, as much of it as an oracle learns from.

    Attributes
    ----------
    context, actions
        The request.
    chosen
        Index of the action that was drawn.
    propensity
        The probability with which it was drawn, in (0, 1].
    reward
        What came of it.
    weight
        Importance of the row, positive; ``1 / keep_prob`` for a subsampled log.
    """

    context: Features
    actions: list[Action]
    chosen: int
    propensity: float
    reward: float
    weight: float = 1.0


class Oracle(Protocol):
    """A regression model of the reward; scikit-learn's conventions, on decisions."""

    def fit(self, rows: Sequence[TrainingRow]) -> Oracle:
        """Learn from interactions and return self."""
        ...

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        """Reward estimate of every action, shape (K,)."""
        ...

    def save(self, directory: Path) -> None:
        """Write everything that :func:`load_oracle` needs into an existing directory."""
        ...


class VowpalWabbitConfig(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="vowpal_wabbit",
):
    """Parameters of :class:`VowpalWabbitOracle`.

    Attributes
    ----------
    cb_type
        How the reward of the chosen action teaches about the others: ``mtr`` (importance-weighted
        regression), ``ips`` or ``dr``.
    learning_rate
        Positive.
    passes
        How often the interactions are gone through, 1 to 1000.
    l2
        Ridge penalty per update, ≥ 0.
    encoder
        How features become indices.
    """

    cb_type: Literal["mtr", "ips", "dr"] = "mtr"
    learning_rate: float = 0.5
    passes: int = 1
    l2: float = 0.0
    encoder: EncoderConfig = EncoderConfig()

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 1 <= self.passes <= 1000:
            raise ValueError(f"passes must be in [1, 1000], got {self.passes}")
        if not self.l2 >= 0:
            raise ValueError(f"l2 must be at least 0, got {self.l2}")


class SklearnConfig(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="sklearn",
):
    """Parameters of :class:`SklearnOracle`.

    Attributes
    ----------
    estimator
        Dotted path of a linear scikit-learn regressor or binary classifier.
    params
        Its constructor's arguments.
    encoder
        How features become columns.
    """

    estimator: str = "sklearn.linear_model.Ridge"
    params: dict[str, Any] = {}
    encoder: EncoderConfig = EncoderConfig()


OracleConfig: TypeAlias = VowpalWabbitConfig | SklearnConfig


class LinearOracle:
    """A fitted table of weights: ``f(x, a) = link(Σ w[i] v[i])`` over the encoder's columns.

    Parameters
    ----------
    config
        The configuration it was fitted under.
    random_state
        Seed of everything random in :meth:`fit`.

    Attributes
    ----------
    weights_
        The fitted table, shape (2**bits,), float32; None before :meth:`fit`.
    link_
        ``identity``, or ``logistic`` for a model of log-odds.
    """

    def __init__(self, config: OracleConfig, *, random_state: int = 0) -> None:
        self.config = config
        self.random_state = random_state
        self._encoder = FeatureEncoder(config.encoder)
        self.weights_: NDArray[np.float32] | None = None
        self.link_: Link = "identity"

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        """Reward estimate of every action, shape (K,).

        Raises
        ------
        GenerationError
            If the oracle was never fitted.
        """
        return self.score_encoded(self._encoder.encode(context, actions))

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self.weights_ is None:
            raise GenerationError("the oracle was not fitted")
        scores = self._encoder.linear_scores(self.weights_, decision)
        if self.link_ == "logistic":
            # tanh is the logistic function that doesn't overflow.
            return 0.5 * (1.0 + np.tanh(0.5 * scores))
        return scores

    def save(self, directory: Path) -> None:
        """Write the configuration and the weights that are not 0 into an existing directory."""
        if self.weights_ is None:
            raise GenerationError("the oracle was not fitted")
        used = np.flatnonzero(self.weights_).astype(np.uint32)
        np.savez(directory / _WEIGHTS_FILE, index=used, value=self.weights_[used])
        saved = _SavedOracle(config=self.config, link=self.link_)
        (directory / _CONFIG_FILE).write_bytes(msgspec.json.encode(saved))


class VowpalWabbitOracle(LinearOracle):
    """Vowpal Wabbit's contextual-bandit regression, read out as a table of weights.

    Costs are minus the rewards. The learner is ``--cb_adf`` with the product of context and action
    features; prediction is a dot product, so the table predicts what Vowpal Wabbit predicts.
    """

    config: VowpalWabbitConfig

    def fit(self, rows: Sequence[TrainingRow]) -> VowpalWabbitOracle:
        """Learn from interactions in the given order.

        Raises
        ------
        NotEnoughDataError
            If there are no rows.
        """
        _require_rows(rows)
        # Vowpal Wabbit takes a while to import, and not every process learns.
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        workspace: Any = vw.Workspace(self._arguments())
        encoded = [(row, self._encoder.encode(row.context, row.actions)) for row in rows]
        for _ in range(self.config.passes):
            for row, decision in encoded:
                workspace.learn_one(_vw_examples(row, decision))
        # The first of the values stored with a weight is the weight itself.
        self.weights_ = -np.array(workspace.weights()[:, 0, 0], dtype=np.float32)
        return self

    def _arguments(self) -> list[str]:
        config = self.config
        arguments = f"--quiet --cb_adf --cb_type {config.cb_type} -q ca --noconstant"
        return [
            *arguments.split(),
            *("-b", str(config.encoder.bits)),
            *("--learning_rate", str(config.learning_rate)),
            *("--l2", str(config.l2)),
            *("--random_seed", str(self.random_state)),
        ]


class SklearnOracle(LinearOracle):
    """Any linear scikit-learn estimator on the columns of the chosen actions.

    A regressor predicts the reward (identity link). A binary classifier, for rewards that are 0 or
    1, predicts the probability of 1 (logistic link).
    """

    config: SklearnConfig

    def fit(self, rows: Sequence[TrainingRow]) -> SklearnOracle:
        """Learn from interactions.

        Raises
        ------
        NotEnoughDataError
            If there are no rows, or a classifier sees only one kind of reward.
        """
        _require_rows(rows)
        from sklearn.base import is_classifier  # noqa: PLC0415

        estimator = _linear_estimator(self.config, self.random_state)
        rewards = np.array([row.reward for row in rows])
        if is_classifier(estimator):
            self._require_binary(rewards)
        columns, matrix = self._matrix(rows)
        estimator.fit(matrix, rewards, sample_weight=np.array([row.weight for row in rows]))
        self.link_ = "logistic" if is_classifier(estimator) else "identity"
        self.weights_ = np.zeros(1 << self.config.encoder.bits, dtype=np.float32)
        self.weights_[columns] = estimator.coef_.ravel()
        return self

    def _matrix(self, rows: Sequence[TrainingRow]) -> tuple[NDArray[np.int64], Any]:
        """Indices that occur, shape (m,), and a sparse matrix over just them, shape (n, m)."""
        from scipy.sparse import csr_array  # noqa: PLC0415

        indices, values, ends = [], [], [0]
        for row in rows:
            columns = self._encoder.columns(
                self._encoder.encode_context(row.context),
                self._encoder.encode_action(row.actions[row.chosen]),
            )
            indices.append(columns.indices.astype(np.int64))
            values.append(columns.values.astype(np.float64))
            ends.append(ends[-1] + len(columns.indices))
        used, compact = np.unique(np.concatenate(indices), return_inverse=True)
        shape = (len(rows), len(used))
        matrix = csr_array((np.concatenate(values), compact, np.array(ends)), shape=shape)
        matrix.sum_duplicates()
        return used, matrix

    def _require_binary(self, rewards: NDArray[np.float64]) -> None:
        kinds = np.unique(rewards)
        if kinds.size != 2:
            raise NotEnoughDataError(
                f"{self.config.estimator} classifies, and needs rewards of exactly two kinds; "
                f"got {kinds.size}"
            )
        if kinds.tolist() != [0.0, 1.0]:
            raise NotEnoughDataError(
                f"{self.config.estimator} classifies, and needs rewards 0 and 1; "
                f"got {kinds[0]:g} and {kinds[1]:g}"
            )


class _SavedOracle(msgspec.Struct, frozen=True, kw_only=True):
    config: OracleConfig
    link: Link


def make_oracle(
    config: OracleConfig, *, random_state: int = 0
) -> VowpalWabbitOracle | SklearnOracle:
    """An oracle that is not fitted yet, as a loop's configuration asks for it."""
    if isinstance(config, VowpalWabbitConfig):
        return VowpalWabbitOracle(config, random_state=random_state)
    return SklearnOracle(config, random_state=random_state)


def load_oracle(directory: Path) -> LinearOracle:
    """Read back what :meth:`LinearOracle.save` wrote.

    Raises
    ------
    GenerationError
        If files are missing or can't be read.
    """
    try:
        saved = msgspec.json.decode((directory / _CONFIG_FILE).read_bytes(), type=_SavedOracle)
        oracle = make_oracle(saved.config)
        with np.load(directory / _WEIGHTS_FILE, allow_pickle=False) as table:
            weights = np.zeros(1 << saved.config.encoder.bits, dtype=np.float32)
            weights[table["index"]] = table["value"]
    except (OSError, ValueError, KeyError, IndexError, msgspec.DecodeError) as error:
        raise GenerationError(f"the oracle in {directory} can't be read: {error}") from error
    oracle.weights_ = weights
    oracle.link_ = saved.link
    return oracle


def _require_rows(rows: Sequence[TrainingRow]) -> None:
    if not rows:
        raise NotEnoughDataError("there are no interactions to learn from")


def _vw_examples(row: TrainingRow, decision: EncodedDecision) -> Iterable[Any]:
    """One multi-line example: the shared context, then a line per action with the chosen's cost."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    shared = vw.Example()
    shared.set_label(vw.CBLabel(shared=True))
    _push(shared["c"], decision.context)
    examples = [shared]
    for position, features in enumerate(decision.actions):
        cost = (-row.reward, row.propensity) if position == row.chosen else None
        example = vw.Example()
        example.set_label(vw.CBLabel(label=cost, weight=row.weight))
        _push(example["a"], features)
        examples.append(example)
    return examples


def _push(group: Any, features: EncodedFeatures) -> None:
    group.push_many_features(features.indices, features.values)


def _linear_estimator(config: SklearnConfig, random_state: int) -> Any:
    """Import and build the estimator; the encoder's constant is its intercept."""
    module_name, _, class_name = config.estimator.rpartition(".")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
        estimator = make(**{"fit_intercept": False, **config.params})
        if estimator.get_params().get("random_state", 0) is None:
            estimator.set_params(random_state=random_state)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise GenerationError(
            f"oracle.estimator: expected the dotted path of a linear scikit-learn estimator that "
            f"takes the given params, got {config.estimator!r}: {error}"
        ) from error
    return estimator
