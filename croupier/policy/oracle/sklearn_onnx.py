"""Oracles that any scikit-learn estimator learns and ONNX Runtime serves: trees, forests, networks.

A model is one ONNX graph from a dense float32 row per action to its reward; the encoder's columns
that the row consists of are in the file's metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, InexpressibleError
from croupier.policy.oracle.base import OracleConfigBase, check_rows, require
from croupier.policy.oracle.dense import Vocabulary
from croupier.policy.oracle.encoded import not_fitted
from croupier.policy.oracle.models import ModelOracle
from croupier.policy.oracle.onnx_graph import INPUT, graph_of, session_of
from croupier.policy.oracle.scikit_learn import (
    check_path,
    classifies,
    fit_estimator,
    make_estimator,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("SklearnOnnxConfig", "SklearnOnnxOracle")

_COLUMNS = "croupier.columns"
_CHECKED_ROWS = 1000
_TOLERANCE = 1e-5
_AT_ONCE = 200


class SklearnOnnxConfig(OracleConfigBase, frozen=True, tag="sklearn_onnx"):
    """Parameters of :class:`SklearnOnnxOracle`.

    Attributes
    ----------
    estimator
        Dotted path of a scikit-learn regressor or binary classifier.
    params
        Its constructor's arguments.
    max_columns
        Most columns that the model sees, 1 to 10,000: those that occur in most of the
        interactions. Training takes 4 bytes for each of them and each interaction.
    products
        Whether the products of context and action features are columns too, as a linear oracle has
        them. Trees and networks find out by themselves which features go together.
    threads
        OpenMP threads that training may use, 1 to 256. They spin while they wait for each other:
        with fewer idle cores than threads, histogram gradient boosting takes 30 times as long.
    encoder
        How features become columns.
    """

    estimator: str = "sklearn.ensemble.HistGradientBoostingRegressor"
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    max_columns: int = 1000
    products: bool = False
    threads: int = 1
    encoder: EncoderConfig = EncoderConfig()

    def __post_init__(self) -> None:
        check_path("estimator", self.estimator)
        fine = 1 <= self.max_columns <= 10_000
        require("max_columns", fine, "in [1, 10000]", self.max_columns)
        require("threads", 1 <= self.threads <= 256, "in [1, 256]", self.threads)


class SklearnOnnxOracle(ModelOracle):
    """Any estimator that can be put into ONNX, on dense rows of the chosen actions.

    It may be anybody's: a class with ``fit``, and with ``predict`` or ``predict_proba``. The
    process that trains runs its code; the scorer runs the graph alone, and unpickles nothing.

    A regressor predicts the reward. A binary classifier, for rewards that are 0 or 1, predicts the
    probability of 1. Which columns a row has is settled when the model is fitted; features that
    didn't occur then drop out, and a feature that is missing is 0, as everywhere.

    What is served is checked when it is fitted: it must predict what scikit-learn predicts, to
    1e-5.

    Attributes
    ----------
    vocabulary_
        The columns; None before :meth:`fit`.
    estimator_
        What scikit-learn has fitted; None before :meth:`fit`, and in an oracle that was loaded.
    """

    config: SklearnOnnxConfig
    file_name = "model.onnx"
    vocabulary_: Vocabulary | None = None
    estimator_: Any = None
    _session: Any = None

    def fit(self, rows: Sequence[TrainingRow]) -> SklearnOnnxOracle:
        """Learn from interactions.

        Raises
        ------
        NotEnoughDataError
            If there are no rows, or a classifier sees only one kind of reward.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If the estimator can't be made or can't be fitted.
        InexpressibleError
            If it is fitted, but ONNX can't express it; :meth:`estimated` can be asked nevertheless.
        """
        matrix = self._learn(rows)
        assert self.vocabulary_ is not None, "it has been learned"
        path, width = self.config.estimator, len(self.vocabulary_)
        columns = msgspec.json.encode(self.vocabulary_.columns.tolist()).decode()
        self.serve(graph_of(path, self.estimator_, width, {_COLUMNS: columns}))
        self._require_parity(self.estimator_, matrix)
        return self

    def estimated(self, decisions: Sequence[EncodedDecision]) -> list[NDArray[np.float64]]:
        """What the fitted estimator itself says of every action of every decision, K numbers each.

        Many decisions at once: an estimator takes about as long for one row as for a thousand.
        """
        if self.vocabulary_ is None or self.estimator_ is None:
            raise not_fitted()
        scores: list[NDArray[np.float64]] = []
        for start in range(0, len(decisions), _AT_ONCE):
            block = decisions[start : start + _AT_ONCE]
            rows = np.concatenate([self.vocabulary_.rows(each) for each in block])
            ends = np.cumsum([len(each.actions) for each in block])
            scores.extend(np.split(_prediction(self.estimator_, rows), ends[:-1]))
        return scores

    def _learn(self, rows: Sequence[TrainingRow]) -> NDArray[np.float32]:
        """Fit vocabulary and estimator; gives the dense rows of the chosen actions."""
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        check_rows(rows)
        path, encoder = self.config.estimator, self._encoder
        chosen = [encoder.encode(row.context, [row.actions[row.chosen]]) for row in rows]
        vocabulary = Vocabulary.of(
            encoder, chosen, limit=self.config.max_columns, products=self.config.products
        )
        matrix = np.empty((len(rows), len(vocabulary)), dtype=np.float32)
        for line, decision in zip(matrix, chosen, strict=True):
            line[:] = vocabulary.rows(decision)[0]
        estimator = make_estimator(path, self.config.params, self.random_state, "scikit-learn")
        rewards = np.array([row.reward for row in rows])
        weights = np.array([row.weight for row in rows])
        with threadpool_limits(self.config.threads, user_api="openmp"):
            fit_estimator(path, estimator, matrix, rewards, weights)
        self.vocabulary_, self.estimator_ = vocabulary, estimator
        return matrix

    def serve(self, model: bytes) -> None:
        """Make a model what is scored with."""
        session = session_of(model)
        metadata = session.get_modelmeta().custom_metadata_map
        columns = msgspec.json.decode(metadata[_COLUMNS], type=list[int])
        (rows,) = session.get_inputs()
        if rows.shape[1] != len(columns):
            raise GenerationError(
                f"the model takes {rows.shape[1]} columns, and names {len(columns)}"
            )
        self.vocabulary_ = Vocabulary(
            self._encoder, np.array(columns, dtype=np.int64), products=self.config.products
        )
        self._session = session
        self.model_ = model

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self.vocabulary_ is None:
            raise not_fitted()
        return self._predict(self.vocabulary_.rows(decision))

    def _predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        (predicted,) = self._session.run(None, {INPUT: rows})
        # A classifier's probability of 1 comes after that of 0.
        return np.asarray(predicted.reshape(len(rows), -1)[:, -1], dtype=np.float64)

    def _require_parity(self, estimator: Any, matrix: NDArray[np.float32]) -> None:
        """Refuse a model that predicts something else than the estimator, on known rows and new."""
        rng = np.random.default_rng(self.random_state)
        known = matrix[rng.permutation(len(matrix))[:_CHECKED_ROWS]]
        # Every column shuffled by itself: rows that look like no interaction.
        mixed = rng.permuted(known, axis=0)
        for rows in (known, mixed):
            expected, served = _prediction(estimator, rows), self._predict(rows)
            scale = max(1.0, float(np.abs(expected).max()))
            if not np.abs(served - expected).max() <= _TOLERANCE * scale:
                raise InexpressibleError(
                    f"oracle.estimator: expected one that ONNX can express (an oracle of kind "
                    f"distilled serves a table of any other), got {self.config.estimator!r}, "
                    f"whose predictions become others"
                )


def _prediction(estimator: Any, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """What scikit-learn predicts of the reward."""
    if classifies(estimator):
        return np.asarray(estimator.predict_proba(rows)[:, 1], dtype=np.float64)
    return np.asarray(estimator.predict(rows), dtype=np.float64)
