"""What an estimate costs: every kind of oracle, beside the library that its model comes from.

``python -m benchmarks.oracles`` fits every kind to the same interactions and times, on one thread,
`estimate` of whole requests (20 context features, 5 of every action, features hashed anew),
`estimate_encoded` of requests that are hashed already, and the library's own prediction on inputs
that are ready for it: scikit-learn's ``predict`` or ``predict_proba`` on the rows of all actions,
Vowpal Wabbit's on examples. Rounds of all of them take turns, and the best round of each counts.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.serving_workloads import Workload, bodies, training_rows
from croupier.cli.output import Output
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.oracle import (
    BootstrapConfig,
    CoverConfig,
    DistilledConfig,
    EncodedOracle,
    OracleConfig,
    RidgeConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    SklearnOnnxOracle,
    SklearnOracle,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
    make_oracle,
)
from croupier.policy.oracle.design import design_of
from croupier.policy.oracle.vowpal_wabbit import bandit_examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from croupier.policy.encoding import EncodedDecision
    from croupier.policy.oracle import TrainingRow

__all__ = ("Cost", "measure")

ACTIONS = (10, 50)
ROUNDS = 7
TRAINED = 2000
REQUESTS = 100
_ENSEMBLE = "sklearn.ensemble."
# What optimism and intervals ask for; the other case asks for all that a ridge regression tells.
_DEVIATIONS = "ridge, 1,024 columns, deviations"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds per request; the best round's mean.

    Attributes
    ----------
    oracle
        Which kind, and what it was told.
    actions
        Of every request.
    estimate
        From features to estimates.
    encoded
        Of this, what comes after hashing.
    library
        The library's own prediction on inputs that are ready; None where the model isn't one that
        a library predicts with.
    """

    oracle: str
    actions: int
    estimate: float
    encoded: float
    library: float | None


@dataclass(frozen=True, slots=True)
class _Timed:
    """What is timed of one oracle: functions of the number of a request."""

    name: str
    actions: int
    functions: tuple[Callable[[int], object] | None, ...]


def measure(
    actions: Sequence[int] = ACTIONS,
    *,
    rounds: int = ROUNDS,
    kinds: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Cost]:
    """Fit and time the oracles.

    Parameters
    ----------
    actions
        Numbers of actions of a request.
    rounds
        How often every function is timed, over 100 requests each.
    kinds
        Names of the oracles to time; all of them if None.
    progress
        Is told what is being done.
    """
    timed = []
    for name, config in _cases().items():
        if kinds is not None and name not in kinds:
            continue
        for count in actions:
            progress(f"{name}, {count} actions: fit")
            timed.append(_prepared(name, config, Workload(actions=count, features=5)))
    best = [[np.inf] * len(each.functions) for each in timed]
    # One thread for everybody: OpenMP's spin while they wait, which on a busy machine takes longer.
    with threadpool_limits(1):
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for position, each in enumerate(timed):
                for place, function in enumerate(each.functions):
                    if function is not None:
                        best[position][place] = min(best[position][place], _round(function))
    return [
        Cost(
            oracle=each.name,
            actions=each.actions,
            estimate=fastest[0],
            encoded=fastest[1],
            library=None if each.functions[2] is None else fastest[2],
        )
        for each, fastest in zip(timed, best, strict=True)
    ]


def _cases() -> dict[str, OracleConfig]:
    def served(estimator: str, **params: Any) -> SklearnOnnxConfig:
        return SklearnOnnxConfig(estimator=estimator, params=params)

    boosting = served(f"{_ENSEMBLE}HistGradientBoostingRegressor", max_iter=100)
    forest = {"n_estimators": 100, "max_depth": 8}
    return {
        "vowpal_wabbit": VowpalWabbitConfig(),
        "sklearn: Ridge": SklearnConfig(),
        _DEVIATIONS: RidgeConfig(encoder=EncoderConfig(bits=10)),
        "ridge, 1,024 columns, covariances": RidgeConfig(encoder=EncoderConfig(bits=10)),
        "bootstrap of 10": BootstrapConfig(),
        "cover of 5": CoverConfig(),
        "sklearn_onnx: HistGradientBoosting, 100 trees": boosting,
        "sklearn_onnx: RandomForest, 100 trees of depth 8": served(
            f"{_ENSEMBLE}RandomForestRegressor", **forest
        ),
        "sklearn_onnx: ExtraTrees classifier, 100 trees of depth 8": served(
            f"{_ENSEMBLE}ExtraTreesClassifier", **forest
        ),
        "sklearn_onnx: GradientBoosting, 100 trees of depth 3": served(
            f"{_ENSEMBLE}GradientBoostingRegressor"
        ),
        "sklearn_onnx: MLP, 32 hidden units": served(
            "sklearn.neural_network.MLPRegressor", hidden_layer_sizes=[32], tol=0.01
        ),
        "vowpal_wabbit_model: -q ca": VowpalWabbitModelConfig(arguments="-q ca"),
        "vowpal_wabbit_model: --nn 5": VowpalWabbitModelConfig(arguments="--nn 5"),
        "vowpal_wabbit_model: --nn 5 -q ca": VowpalWabbitModelConfig(arguments="--nn 5 -q ca"),
        "distilled from HistGradientBoosting": DistilledConfig(base=boosting, max_rows=500),
    }


def _prepared(name: str, config: OracleConfig, workload: Workload) -> _Timed:
    rows = training_rows(workload, TRAINED)
    oracle: EncodedOracle = make_oracle(config).fit(rows)
    requests = bodies(workload, REQUESTS)
    encoder = FeatureEncoder(config.encoder)
    decisions = [encoder.encode(each.context, each.actions) for each in requests]
    needs = frozenset({"deviation"}) if name == _DEVIATIONS else config.offers

    def estimate(number: int) -> object:
        request = requests[number]
        return oracle.estimate(request.context, request.actions, needs)

    def encoded(number: int) -> object:
        return oracle.estimate_encoded(decisions[number], needs)

    library = _library(oracle, rows, decisions, encoder)
    return _Timed(name, workload.actions, (estimate, encoded, library))


def _library(
    oracle: EncodedOracle,
    rows: Sequence[TrainingRow],
    decisions: Sequence[EncodedDecision],
    encoder: FeatureEncoder,
) -> Callable[[int], object] | None:
    """The prediction of the library behind a model, on inputs made before."""
    inputs: list[Any]
    if isinstance(oracle, SklearnOnnxOracle):
        assert oracle.vocabulary_ is not None
        inputs = [oracle.vocabulary_.rows(decision) for decision in decisions]
        estimator = oracle.estimator_
        predict = getattr(estimator, "predict_proba", estimator.predict)
    elif isinstance(oracle, VowpalWabbitModelOracle):
        import vowpal_wabbit_next as vw  # noqa: PLC0415 - slow to import

        assert oracle.model_ is not None
        # Labels are not looked at when it predicts.
        inputs = [bandit_examples(rows[0], decision) for decision in decisions]
        predict = vw.Workspace(["--quiet"], model_data=oracle.model_).predict_one
    elif isinstance(oracle, SklearnOracle):
        inputs, predict = _ridge(rows, decisions, encoder)
    else:
        return None
    return lambda number: predict(inputs[number])


def _ridge(
    rows: Sequence[TrainingRow], decisions: Sequence[EncodedDecision], encoder: FeatureEncoder
) -> tuple[list[Any], Callable[[Any], object]]:
    """scikit-learn's ridge regression on sparse rows, as whoever uses it alone would have it."""
    from scipy.sparse import csr_array  # noqa: PLC0415
    from sklearn.linear_model import Ridge  # noqa: PLC0415

    design = design_of(encoder, rows)
    estimator = Ridge(fit_intercept=False)
    estimator.fit(design.matrix, design.rewards, sample_weight=design.weights)
    matrices = []
    for decision in decisions:
        entries = encoder.decision_columns(decision)
        indices = entries.indices.astype(np.int64)
        places = np.minimum(np.searchsorted(design.columns, indices), len(design.columns) - 1)
        known = design.columns[places] == indices
        shape = (len(decision.sizes), len(design.columns))
        matrices.append(
            csr_array((entries.values[known], (entries.actions[known], places[known])), shape=shape)
        )
    return matrices, estimator.predict


def _round(function: Callable[[int], object]) -> float:
    """Microseconds per request over all requests, once."""
    started = time.perf_counter()
    for number in range(REQUESTS):
        function(number)
    return 1e6 * (time.perf_counter() - started) / REQUESTS


def main() -> None:
    """Fit, time and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    output = Output(json=given.json)
    found = measure(rounds=given.rounds, progress=output.errors.print)
    output.result(
        found,
        lambda: output.table(
            "Microseconds per request",
            ["oracle", "actions", "estimate", "of this, encoded", "the library's own"],
            [
                [
                    each.oracle,
                    each.actions,
                    f"{each.estimate:.0f}",
                    f"{each.encoded:.0f}",
                    "" if each.library is None else f"{each.library:.0f}",
                ]
                for each in found
            ],
        ),
    )


if __name__ == "__main__":
    main()
