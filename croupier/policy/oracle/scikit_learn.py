"""Oracles that a linear scikit-learn estimator learns."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, NotEnoughDataError
from croupier.policy.oracle.base import OracleConfigBase, check_rows, not_online
from croupier.policy.oracle.design import design_of
from croupier.policy.oracle.tables import LinearOracle, linked, require_usable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.policy.oracle.base import TrainingRow
    from croupier.policy.oracle.design import Design
    from croupier.policy.oracle.encoded import Link

__all__ = (
    "LinearFit",
    "SklearnConfig",
    "SklearnOracle",
    "check_path",
    "classifies",
    "fit_estimator",
    "fit_linear",
    "make_estimator",
)

_CHECKED_ROWS = 1000
# Estimators that learn row by row. Of others with a partial_fit that isn't known before they are
# imported, which a configuration must not do.
_STEPPING = tuple(f"sklearn.linear_model.{name}" for name in ("SGDRegressor", "SGDClassifier"))


class SklearnConfig(OracleConfigBase, frozen=True, tag="sklearn"):
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
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    encoder: EncoderConfig = EncoderConfig()

    @property
    def learns_online(self) -> bool:
        """Whether the estimator takes one step of gradient descent a row, and little to go on.

        Beside its coefficients, what it needs is the number of rows so far. Averaged weights, a
        rate that adapts to the loss and a share held out to stop early need more.
        """
        averages, rate = self.params.get("average", False), self.params.get("learning_rate")
        holds_out = self.params.get("early_stopping", False)
        plain = not averages and rate != "adaptive" and not holds_out
        return self.estimator in _STEPPING and plain

    @property
    def can_be_damped(self) -> bool:
        """It is one table of weights."""
        return True

    def __post_init__(self) -> None:
        check_path("estimator", self.estimator)


class SklearnOracle(LinearOracle):
    """Any linear scikit-learn estimator on the columns of the chosen actions.

    A regressor predicts the reward (identity link). A binary classifier, for rewards that are 0 or
    1, predicts the probability of 1 (logistic link). The encoder's constant is the intercept;
    an estimator that wants its own, or another link, is refused.

    Estimators of stochastic gradient descent can be taught further. A batch is gone through once,
    in the order that the seed gives it, as scikit-learn's own ``partial_fit`` does, so what is
    learned depends on where one batch ends and the next begins.
    """

    config: SklearnConfig
    _steps: _Steps | None = None

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
        check_rows(rows)
        design = design_of(self._encoder, rows)
        fitted = fit_linear(
            self.config, self.random_state, design.matrix, design.rewards, design.weights
        )
        self._put(design.columns, fitted)
        if self.config.learns_online:
            self._steps = _Steps.of(fitted.estimator, design.columns)
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> SklearnOracle:
        """Learn from further interactions, each of them once.

        With no rows, an oracle that was not fitted starts with weights of 0.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the estimator can't be taught, a classifier is to learn rewards other than 0 and 1,
            the weights grew without bound, or the oracle was loaded without what it takes.
        """
        if not self.config.learns_online:
            raise not_online(f"{self.config.estimator} is fitted to all rows at once")
        check_rows(rows, some=False)
        steps = self._steps
        if steps is None and self.weights_ is not None:
            if not self._kept_learners:
                raise not_online("it was loaded without its learner")
            steps = _Steps.read(self._kept_learners)
        if steps is None:
            steps = _Steps(np.empty(0, dtype=np.int64), np.empty(0), 1.0)
        if rows:
            design = design_of(self._encoder, rows)
            steps, fitted = _teach(self.config, self.random_state, steps, design)
            self._put(steps.columns, fitted)
        elif self.weights_ is None:
            nothing = np.empty(0, dtype=np.float32)
            estimator = _make_linear(self.config, self.random_state)
            self._put(steps.columns, LinearFit(nothing, _link_of(estimator), estimator))
        self._steps = steps
        return self

    def learners(self) -> Mapping[str, bytes]:
        """The coefficients as they were learned, and how many rows there were."""
        return self._kept_learners if self._steps is None else self._steps.write()

    def _put(self, columns: NDArray[np.int64], fitted: LinearFit) -> None:
        """Make coefficients of some columns the whole table."""
        self.link_ = fitted.link
        self.weights_ = np.zeros(1 << self.config.encoder.bits, dtype=np.float32)
        self.weights_[columns] = fitted.coefficients


@dataclass(frozen=True, slots=True)
class _Steps:
    """Where gradient descent has come to: all that another estimator needs to go on from there.

    Attributes
    ----------
    columns
        Indices that have occurred, ascending, shape (m,).
    coefficients
        Of these, in double precision, shape (m,).
    rows
        One more than there were, which the learning rate falls with.
    """

    columns: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    rows: float

    @classmethod
    def of(cls, estimator: Any, columns: NDArray[np.int64]) -> _Steps:
        coefficients = np.asarray(estimator.coef_, dtype=np.float64).ravel().copy()
        return cls(columns, coefficients, float(estimator.t_))

    @classmethod
    def read(cls, kept: Mapping[str, bytes]) -> _Steps:
        columns = np.frombuffer(kept["columns"], dtype=np.int64)
        coefficients = np.frombuffer(kept["coefficients"], dtype=np.float64)
        (rows,) = np.frombuffer(kept["rows"], dtype=np.float64)
        return cls(columns, coefficients, float(rows))

    def write(self) -> dict[str, bytes]:
        return {
            "columns": self.columns.tobytes(),
            "coefficients": self.coefficients.tobytes(),
            "rows": np.float64(self.rows).tobytes(),
        }


def _teach(
    config: SklearnConfig, random_state: int, steps: _Steps, design: Design
) -> tuple[_Steps, LinearFit]:
    """Go on from where gradient descent has come to, with one step for every row of a design."""
    columns = np.union1d(steps.columns, design.columns)
    coefficients = np.zeros(len(columns))
    coefficients[np.searchsorted(columns, steps.columns)] = steps.coefficients
    matrix = design.matrix.copy()
    places = np.searchsorted(columns, design.columns).astype(matrix.indices.dtype)
    matrix = type(matrix)(
        (matrix.data, places[matrix.indices], matrix.indptr), shape=(matrix.shape[0], len(columns))
    )
    estimator = _make_linear(config, random_state)
    link, kinds = _link_of(estimator), {}
    estimator.n_features_in_, estimator.t_ = len(columns), steps.rows
    estimator.intercept_ = np.zeros(1)
    estimator.coef_ = coefficients if link == "identity" else coefficients[None, :]
    if link == "logistic":
        if not np.isin(design.rewards, (0.0, 1.0)).all():
            raise GenerationError(f"{config.estimator} classifies, and needs rewards 0 and 1")
        kinds = {"classes": np.array([0.0, 1.0])}
        estimator.classes_ = kinds["classes"]
    try:
        estimator.partial_fit(matrix, design.rewards, sample_weight=design.weights, **kinds)
    except (TypeError, ValueError) as error:
        raise GenerationError(f"{config.estimator} can't be taught: {error}") from error
    learned = _coefficients(config, estimator, link, matrix[:_CHECKED_ROWS])
    fitted = LinearFit(require_usable(learned, config.estimator), link, estimator)
    return _Steps.of(estimator, columns), fitted


@dataclass(frozen=True, slots=True)
class LinearFit:
    """What was learned of a design's columns.

    Attributes
    ----------
    coefficients
        Shape (m,).
    link
        That they are for.
    estimator
        That has learned them.
    """

    coefficients: NDArray[np.float32]
    link: Link
    estimator: Any


def fit_linear(
    config: SklearnConfig,
    random_state: int,
    matrix: Any,
    rewards: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> LinearFit:
    """Fit the configured estimator and take its coefficients, checked to be all there is to it.

    Parameters
    ----------
    config
        Names the estimator.
    random_state
        Its seed, unless the configuration gives one.
    matrix
        Sparse, shape (n, m).
    rewards, weights
        Shape (n,).

    Raises
    ------
    NotEnoughDataError
        If a classifier sees only one kind of reward.
    GenerationError
        If the estimator can't be made, can't be fitted or is not a linear one.
    """
    estimator = _make_linear(config, random_state)
    fit_estimator(config.estimator, estimator, matrix, rewards, weights)
    link = _link_of(estimator)
    coefficients = _coefficients(config, estimator, link, matrix[:_CHECKED_ROWS])
    return LinearFit(require_usable(coefficients, config.estimator), link, estimator)


def check_path(field: str, path: str) -> None:
    """Check that a path could be that of a class; whether it is one is seen when it is fitted.

    A configuration is read by scorers too, which must neither wait for scikit-learn nor run the
    code of whoever has written an estimator of their own.

    Raises
    ------
    ValueError
        If it isn't.
    """
    names = path.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise ValueError(f"{field} must be the dotted path of a class, got {path!r}")


def classifies(estimator: Any) -> bool:
    """Whether an estimator predicts kinds of rewards and not rewards.

    One that is not of scikit-learn's making says so by having probabilities to offer.
    """
    from sklearn.base import is_classifier  # noqa: PLC0415

    if hasattr(estimator, "__sklearn_tags__"):
        return bool(is_classifier(estimator))
    return hasattr(estimator, "predict_proba")


def make_estimator(path: str, params: dict[str, Any], random_state: int, what: str) -> Any:
    """Import and build an estimator, and seed it unless its parameters do.

    This runs the code that the path leads to, in the process that trains. Nothing of it is needed,
    or run, where the oracle is served.

    Parameters
    ----------
    path
        Dotted path of its class.
    params
        Its constructor's arguments.
    random_state
        Its seed.
    what
        Of which sort it is to be, for the error.

    Raises
    ------
    GenerationError
        If there is no such class, it doesn't take the arguments, or what it makes can't be
        fitted and asked.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
        estimator = make(**params)
        known = estimator.get_params() if hasattr(estimator, "get_params") else {}
        if known.get("random_state", 0) is None:
            estimator.set_params(random_state=random_state)
        asked = "predict_proba" if classifies(estimator) else "predict"
        missing = [name for name in ("fit", asked) if not callable(getattr(estimator, name, None))]
        if missing:
            raise TypeError(f"it has no {' and no '.join(missing)}")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise GenerationError(
            f"oracle.estimator: expected the dotted path of a {what} estimator that "
            f"takes the given params, got {path!r}: {error}"
        ) from error
    return estimator


def fit_estimator(
    path: str,
    estimator: Any,
    matrix: Any,
    rewards: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Fit an estimator, by rows that count by their weights.

    Raises
    ------
    NotEnoughDataError
        If it is a classifier, and the rewards are not of the two kinds 0 and 1.
    GenerationError
        If it can't be fitted, or takes no weights and there are some.
    """
    if classifies(estimator):
        _require_binary(path, rewards)
    try:
        if _takes_weights(estimator) or (weights != 1.0).any():
            estimator.fit(matrix, rewards, sample_weight=weights)
        else:
            estimator.fit(matrix, rewards)
    except (TypeError, ValueError) as error:
        raise GenerationError(f"{path} can't be fitted: {error}") from error


def _make_linear(config: SklearnConfig, random_state: int) -> Any:
    # The encoder's constant is the intercept.
    params = {"fit_intercept": False, **config.params}
    return make_estimator(config.estimator, params, random_state, "linear scikit-learn")


def _link_of(estimator: Any) -> Link:
    return "logistic" if classifies(estimator) else "identity"


def _takes_weights(estimator: Any) -> bool:
    parameters = inspect.signature(estimator.fit).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return "sample_weight" in parameters or anything


def _require_binary(path: str, rewards: NDArray[np.float64]) -> None:
    kinds = np.unique(rewards)
    if kinds.size != 2:
        raise NotEnoughDataError(
            f"{path} classifies, and needs rewards of exactly two kinds; got {kinds.size}"
        )
    if kinds.tolist() != [0.0, 1.0]:
        raise NotEnoughDataError(
            f"{path} classifies, and needs rewards 0 and 1; got {kinds[0]:g} and {kinds[1]:g}"
        )


def _coefficients(
    config: SklearnConfig, estimator: Any, link: Link, matrix: Any
) -> NDArray[np.float64]:
    """The estimator's coefficients, checked to be all there is to its predictions."""
    refusal = (
        f"oracle.estimator: expected one whose prediction is its coefficients times the columns "
        f"({link} link, no intercept; others can be oracles of kind sklearn_onnx), "
        f"got {config.estimator!r}"
    )
    try:
        coefficients = np.asarray(estimator.coef_, dtype=np.float64).ravel()
        linear = linked(matrix @ coefficients, link)
        if link == "logistic":
            predicted = estimator.predict_proba(matrix)[:, 1]
        else:
            predicted = estimator.predict(matrix)
    except (AttributeError, TypeError, ValueError) as error:
        raise GenerationError(f"{refusal}: {error}") from error
    # Coefficients that are not finite get an error of their own.
    if not np.allclose(linear, predicted, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise GenerationError(refusal)
    return coefficients
