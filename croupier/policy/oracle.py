"""Oracles: regression models of the reward given context and action.

Both oracles here end up as a linear table of weights over the columns of
:class:`~croupier.policy.encoding.FeatureEncoder`, whoever fitted it, and share one scoring path.
"""

from __future__ import annotations

import importlib
import io
import math
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action, Features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, EncodedFeatures
    from croupier.policy.estimates import Uncertainty

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

_CHECKED_ROWS = 1000

# Everything that NumPy, zipfile and msgspec were seen to raise on damaged files.
_UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


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

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        """Reward estimates with as much of their uncertainty as an exploration needs."""
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

    @property
    def offers(self) -> Uncertainty:
        """A single table of weights can't tell how sure it is."""
        return frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 1 <= self.passes <= 1000:
            raise ValueError(f"passes must be in [1, 1000], got {self.passes}")
        if not 0 <= self.l2 < math.inf:
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

    @property
    def offers(self) -> Uncertainty:
        """A single table of weights can't tell how sure it is."""
        return frozenset()


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

    def estimate(
        self,
        context: Features,
        actions: Sequence[Action],
        needs: Uncertainty = frozenset(),  # noqa: ARG002
    ) -> Estimates:
        """The scores; a single table of weights can't tell how sure it is of them."""
        return Estimates(self.score(context, actions))

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self.weights_ is None:
            raise GenerationError("the oracle was not fitted")
        return _linked(self._encoder.linear_scores(self.weights_, decision), self.link_)

    def save(self, directory: Path) -> None:
        """Write the configuration and the weights that are not 0 into an existing directory."""
        if self.weights_ is None:
            raise GenerationError("the oracle was not fitted")
        used = np.flatnonzero(self.weights_).astype(np.uint32)
        np.savez(directory / _WEIGHTS_FILE, index=used, value=self.weights_[used])
        saved = _SavedOracle(config=self.config, link=self.link_, random_state=self.random_state)
        (directory / _CONFIG_FILE).write_bytes(msgspec.json.encode(saved))


class VowpalWabbitOracle(LinearOracle):
    """Vowpal Wabbit's contextual-bandit regression, read out as a table of weights.

    Costs are minus the rewards. The learner is ``--cb_adf`` with the product of context and action
    features. Its prediction is a dot product that is not clipped to the range of the rewards, so
    the table predicts what Vowpal Wabbit predicts: an estimate may lie outside of the range, which
    keeps the order of actions where clipping would make ties.
    """

    config: VowpalWabbitConfig

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
        _check_rows(rows)
        # Vowpal Wabbit takes a while to import, and not every process learns.
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        workspace: Any = vw.Workspace(self._arguments())
        encoded = [(row, self._encoder.encode(row.context, row.actions)) for row in rows]
        for _ in range(self.config.passes):
            for row, decision in encoded:
                workspace.learn_one(_vw_examples(row, decision))
        self.weights_ = self._read_weights(workspace)
        return self

    def _read_weights(self, workspace: Any) -> NDArray[np.float32]:
        """Rewards' weights out of the workspace, which holds costs'."""
        # Of the weights stored with a feature the first predicts; of the numbers stored with a
        # weight the first is its value. With doubly robust learning, weights() claims twice the
        # memory there is: only the first half may be looked at.
        costs = np.array(workspace.weights()[: 1 << self.config.encoder.bits, 0, 0])
        # Not merely negated: zeros are to be positive, as they will be when loaded.
        weights = np.float32(0.0) - costs
        if self.config.l2 > 0 and weights.any():
            weights *= np.float32(_shrinkage(workspace, costs))
        return _require_usable(weights, "Vowpal Wabbit")

    def _arguments(self) -> list[str]:
        config = self.config
        # Doubly robust learning keeps two weights per feature within the same 2**b.
        bits = config.encoder.bits + (1 if config.cb_type == "dr" else 0)
        arguments = f"--quiet --cb_adf --cb_type {config.cb_type} -q ca --noconstant"
        return [
            *arguments.split(),
            *("-b", str(bits)),
            *("--learning_rate", str(config.learning_rate)),
            *("--l2", str(config.l2)),
            *("--random_seed", str(self.random_state)),
        ]


class SklearnOracle(LinearOracle):
    """Any linear scikit-learn estimator on the columns of the chosen actions.

    A regressor predicts the reward (identity link). A binary classifier, for rewards that are 0 or
    1, predicts the probability of 1 (logistic link). The encoder's constant is the intercept;
    an estimator that wants its own, or another link, is refused.
    """

    config: SklearnConfig

    def fit(self, rows: Sequence[TrainingRow]) -> SklearnOracle:
        """Learn from interactions.

        Raises
        ------
        NotEnoughDataError
            If there are no rows, or a classifier sees only one kind of reward.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the estimator can't be made, can't be fitted or is not a linear one.
        """
        _check_rows(rows)
        from sklearn.base import is_classifier  # noqa: PLC0415

        estimator = _linear_estimator(self.config, self.random_state)
        rewards = np.array([row.reward for row in rows])
        if is_classifier(estimator):
            self._require_binary(rewards)
        columns, matrix = self._matrix(rows)
        try:
            estimator.fit(matrix, rewards, sample_weight=np.array([row.weight for row in rows]))
        except (TypeError, ValueError) as error:
            raise GenerationError(f"{self.config.estimator} can't be fitted: {error}") from error
        self.link_ = "logistic" if is_classifier(estimator) else "identity"
        coefficients = self._coefficients(estimator, matrix[:_CHECKED_ROWS])
        self.weights_ = np.zeros(1 << self.config.encoder.bits, dtype=np.float32)
        self.weights_[columns] = _require_usable(coefficients, self.config.estimator)
        return self

    def _coefficients(self, estimator: Any, matrix: Any) -> NDArray[np.float64]:
        """The estimator's coefficients, checked to be all there is to its predictions."""
        refusal = (
            f"oracle.estimator: expected one whose prediction is its coefficients times the "
            f"columns ({self.link_} link, no intercept), got {self.config.estimator!r}"
        )
        try:
            coefficients = np.asarray(estimator.coef_, dtype=np.float64).ravel()
            linear = _linked(matrix @ coefficients, self.link_)
            if self.link_ == "logistic":
                predicted = estimator.predict_proba(matrix)[:, 1]
            else:
                predicted = estimator.predict(matrix)
        except (AttributeError, TypeError, ValueError) as error:
            raise GenerationError(f"{refusal}: {error}") from error
        # Coefficients that are not finite get an error of their own.
        if not np.allclose(linear, predicted, rtol=1e-6, atol=1e-9, equal_nan=True):
            raise GenerationError(refusal)
        return coefficients

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
        # Most estimators take 32-bit indices only.
        narrow = np.dtype(np.int32 if ends[-1] <= np.iinfo(np.int32).max else np.int64)
        stored = (np.concatenate(values), compact.astype(narrow), np.array(ends, dtype=narrow))
        matrix: Any = csr_array(stored, shape=shape)
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
    random_state: int


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
        oracle = make_oracle(saved.config, random_state=saved.random_state)
        # Read here: given a path, NumPy leaves damaged files open.
        stored = io.BytesIO((directory / _WEIGHTS_FILE).read_bytes())
        with np.load(stored, allow_pickle=False) as table:
            weights = np.zeros(1 << saved.config.encoder.bits, dtype=np.float32)
            weights[table["index"]] = table["value"]
    except _UNREADABLE as error:
        raise GenerationError(f"the oracle in {directory} can't be read: {error}") from error
    oracle.weights_ = _require_usable(weights, f"the oracle in {directory}")
    oracle.link_ = saved.link
    return oracle


def _linked(linear: NDArray[np.float64], link: Link) -> NDArray[np.float64]:
    if link == "logistic":
        # tanh is the logistic function that doesn't overflow.
        return 0.5 * (1.0 + np.tanh(0.5 * linear))
    return linear


def _require_usable(weights: NDArray[Any], whose: str) -> NDArray[np.float32]:
    """The weights as float32; a generation that can't score must not be made."""
    # Written so that NaN fails the comparison.
    if weights.size and not np.abs(weights).max() <= np.finfo(np.float32).max:
        raise GenerationError(
            f"{whose} has weights that are not finite; were the features or rewards very large, "
            f"or the learning rate?"
        )
    return weights.astype(np.float32, copy=False)


def _check_rows(rows: Sequence[TrainingRow]) -> None:
    """Refuse what Vowpal Wabbit would learn nothing from without a word."""
    if not rows:
        raise NotEnoughDataError("there are no interactions to learn from")
    for position, row in enumerate(rows):
        # Rounding may take a propensity as far above 1 as a pmf's sum.
        checks = {
            "chosen": (0 <= row.chosen < len(row.actions), "the index of an action"),
            "propensity": (0.0 < row.propensity <= 1.0 + 1e-9, "a number in (0, 1]"),
            "reward": (math.isfinite(row.reward), "a finite number"),
            "weight": (0.0 < row.weight < math.inf, "a positive, finite number"),
        }
        for name, (fine, expected) in checks.items():
            if not fine:
                raise InvalidInputError(
                    f"rows[{position}].{name}", f"expected {expected}, got {getattr(row, name)!r}"
                )


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


def _shrinkage(workspace: Any, costs: NDArray[np.float32]) -> float:
    """The factor that Vowpal Wabbit applies to all of its weights when it predicts.

    A ridge penalty shrinks every weight at every update; the factor is kept in one place instead
    and shown nowhere, but it is the prediction for a lone feature over that feature's weight.
    """
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    strongest = int(np.abs(costs).argmax())
    shared, action = vw.Example(), vw.Example()
    shared.set_label(vw.CBLabel(shared=True))
    action.set_label(vw.CBLabel())
    action["a"].push_feature(strongest, 1.0)
    ((_, predicted),) = workspace.predict_one([shared, action])
    return float(predicted) / float(costs[strongest])


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
