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
from croupier.policy.oracle.base import OracleConfigBase, check_rows
from croupier.policy.oracle.design import design_of
from croupier.policy.oracle.tables import LinearOracle, linked, require_usable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.oracle.base import TrainingRow
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

    def __post_init__(self) -> None:
        check_path("estimator", self.estimator)


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
        check_rows(rows)
        design = design_of(self._encoder, rows)
        fitted = fit_linear(
            self.config, self.random_state, design.matrix, design.rewards, design.weights
        )
        self.link_ = fitted.link
        self.weights_ = np.zeros(1 << self.config.encoder.bits, dtype=np.float32)
        self.weights_[design.columns] = fitted.coefficients
        return self


@dataclass(frozen=True, slots=True)
class LinearFit:
    """Coefficients of a design's columns, shape (m,), float32, and the link they are for."""

    coefficients: NDArray[np.float32]
    link: Link


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
    # The encoder's constant is the intercept.
    params = {"fit_intercept": False, **config.params}
    estimator = make_estimator(config.estimator, params, random_state, "linear scikit-learn")
    fit_estimator(config.estimator, estimator, matrix, rewards, weights)
    link: Link = "logistic" if classifies(estimator) else "identity"
    coefficients = _coefficients(config, estimator, link, matrix[:_CHECKED_ROWS])
    return LinearFit(require_usable(coefficients, config.estimator), link)


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
