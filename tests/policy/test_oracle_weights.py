"""Every kind of oracle honours a row's weight: it learns what it would from that many rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np
import pytest

from croupier.policy.encoding import EncoderConfig
from croupier.policy.events import Action
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    CoverConfig,
    DistilledConfig,
    FairConfig,
    OracleConfig,
    RidgeConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    TrainingRow,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    make_oracle,
    poisson_weights,
)
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENCODER = EncoderConfig(bits=12)
LOGISTIC = "sklearn.linear_model.LogisticRegression"

# Exact: what is minimised is a sum over rows.
RIDGE = SklearnConfig(params={"alpha": 1.0, "solver": "cholesky"}, encoder=ENCODER)
TREE = SklearnOnnxConfig(
    estimator="sklearn.tree.DecisionTreeRegressor", params={"max_depth": 3}, encoder=ENCODER
)
SUMS: dict[str, OracleConfig] = {
    "ridge": RidgeConfig(l2=1.0, encoder=ENCODER),
    "auto": AutoConfig(l2=1.0, encoder=ENCODER),
    "sklearn": RIDGE,
    "sklearn logistic": SklearnConfig(
        estimator=LOGISTIC, params={"tol": 1e-10, "max_iter": 5000}, encoder=ENCODER
    ),
    # A tree finds such rewards whatever the weights are.
    "sklearn_onnx": SklearnOnnxConfig(
        estimator="sklearn.linear_model.Ridge", params=RIDGE.params, encoder=ENCODER
    ),
}
# In the limit of many passes: gradient steps whose size hangs on what came before.
STEPS: dict[str, OracleConfig] = {
    "vowpal_wabbit mtr": VowpalWabbitConfig(passes=20, encoder=ENCODER),
    "vowpal_wabbit ips": VowpalWabbitConfig(cb_type="ips", passes=20, encoder=ENCODER),
    "vowpal_wabbit dr": VowpalWabbitConfig(cb_type="dr", passes=20, encoder=ENCODER),
    "cover": CoverConfig(members=3, psi=0.0, encoder=ENCODER),
    "bootstrap": BootstrapConfig(base=VowpalWabbitConfig(passes=20, encoder=ENCODER), members=20),
    "vowpal_wabbit_model": VowpalWabbitModelConfig(
        arguments="-q ca", passes=20, encoder=EncoderConfig(bits=16)
    ),
    "distilled": DistilledConfig(base=TREE),
    "auto, beyond": AutoConfig(
        max_columns=1, beyond=VowpalWabbitConfig(passes=20), encoder=ENCODER
    ),
}


def test_no_kind_is_left_out() -> None:
    tested = {type(each) for each in (*SUMS.values(), *STEPS.values())}
    # What learns from approvals alone has tests of its own: see test_fair_oracle.py.
    assert tested | {FairConfig} == set(get_args(OracleConfig))


def clicks(n: int) -> list[TrainingRow]:
    """Weights are 1, 2 or 5."""
    rows = random_rows(n, reward=lambda _, action: float(action.features["x"] > 0))
    weights = np.random.default_rng(1).choice([1.0, 2.0, 5.0], n).tolist()
    return [
        msgspec.structs.replace(row, weight=weight)
        for row, weight in zip(rows, weights, strict=True)
    ]


def replicated(rows: list[TrainingRow]) -> list[TrainingRow]:
    """Every row as often as its weight says, each time with weight 1."""
    return [
        msgspec.structs.replace(row, weight=1.0) for row in rows for _ in range(int(row.weight))
    ]


def scores(oracle: Any) -> NDArray[np.float64]:
    rng = np.random.default_rng(2)
    return np.array([oracle.score(*random_request(rng)) for _ in range(20)])


@pytest.mark.parametrize("config", SUMS.values(), ids=SUMS)
def test_a_weight_is_that_many_rows(config: OracleConfig) -> None:
    rows = clicks(150)
    weighted, repeated = (make_oracle(config).fit(each) for each in (rows, replicated(rows)))
    np.testing.assert_allclose(scores(weighted), scores(repeated), atol=1e-5)
    alike = [msgspec.structs.replace(row, weight=1.0) for row in rows]
    assert np.abs(scores(make_oracle(config).fit(alike)) - scores(weighted)).max() > 0.02


def test_the_members_of_a_bootstrap_weigh_what_they_draw() -> None:
    rows = clicks(150)
    oracle = make_oracle(BootstrapConfig(base=RIDGE, members=4), random_state=3).fit(rows)
    counts = poisson_weights(3, 4, len(rows))
    request = random_request(np.random.default_rng(4))
    members = oracle.estimate(*request, frozenset({"members"})).members
    assert members is not None
    for member, drawn in zip(members, counts.T.tolist(), strict=True):
        seen = [
            msgspec.structs.replace(row, weight=1.0)
            for row, count in zip(rows, drawn, strict=True)
            for _ in range(count * int(row.weight))
        ]
        np.testing.assert_allclose(member, make_oracle(RIDGE).fit(seen).score(*request), atol=1e-5)


@pytest.mark.parametrize("heavy", [1.0, 4.0])
@pytest.mark.parametrize("config", STEPS.values(), ids=STEPS)
def test_contradicting_rows_end_at_the_weighted_mean(config: OracleConfig, heavy: float) -> None:
    """Rewards of 1 with weight w and of 0 with weight 1, in turn: the mean is w / (w + 1).

    The latest rows count for more in a single pass, so that the mean is met to 0.06.
    """
    actions = [Action("a"), Action("b")]
    rows = [
        TrainingRow(
            context={},
            actions=actions,
            chosen=number // 2 % 2,
            propensity=0.5,
            reward=float(number % 2),
            weight=heavy if number % 2 else 1.0,
        )
        for number in range(600)
    ]
    estimates = make_oracle(config).fit(rows).score({}, actions)
    np.testing.assert_allclose(estimates, heavy / (heavy + 1.0), atol=0.06)
