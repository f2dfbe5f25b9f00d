"""The study's yardsticks: the known values of the benchmark, and an optimum that is one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.lts import LTSConfig, UserPopulation
from croupier.sim2rec.study import (
    STUDY_SCHEMA,
    constant_policy_study,
    constant_returns,
    episode_returns,
    optimal_documents,
)

# Mean return per user over 140 steps at mu_c = 14, mu_k = 4, log-sampled users: values computed
# apart from this code, on a drawn population, so they carry a sampling error of their own.
KNOWN = {
    "kale": 440.7,
    "balanced": 645.1,
    "myopic": 446.2,
    "best constant": 675.9,
    "best constant per user": 740.7,
    "optimum": 784.0,
}
CLICKBAIT = {"kale": 0.0, "balanced": 0.5, "myopic": 29 / 30, "best constant": 0.4}
EVALUATION_USERS = 750
NOISELESS = LTSConfig(sd_c=0.0, sd_k=0.0)


@pytest.fixture(scope="module")
def study() -> pl.DataFrame:
    rng = np.random.default_rng(2)
    users = UserPopulation.draw(EVALUATION_USERS, rng)
    return constant_policy_study(LTSConfig(), users, rng)


def test_frame_has_the_declared_schema(study: pl.DataFrame) -> None:
    assert study.schema == STUDY_SCHEMA
    assert study["policy"].to_list() == list(KNOWN)
    assert study["users"].unique().to_list() == [EVALUATION_USERS]
    assert study["clickbait"].to_list() == [CLICKBAIT.get(policy) for policy in KNOWN]


@pytest.mark.parametrize("policy", KNOWN)
def test_known_values_are_reproduced(study: pl.DataFrame, policy: str) -> None:
    row = study.row(by_predicate=pl.col("policy") == policy, named=True)
    assert 0.0 < row["standard_error"] < 11.0
    assert abs(row["mean_return"] - KNOWN[policy]) < 3 * row["standard_error"]


def gauss_population(nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes (memory, sensitivity) and weights of the expectation over log-sampled users."""
    point, weight = np.polynomial.legendre.leggauss(nodes)
    parameter = np.log(1.01 + (point + 1) / 2 * (2.6 - 1.01))
    memory, sensitivity = (part.ravel() for part in np.meshgrid(parameter, parameter))
    return memory, sensitivity, np.outer(weight, weight).ravel() / 4


def constants_by_quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Every constant's return at the nodes, from the formulas alone, and the weights."""
    memory, sensitivity, weight = gauss_population(40)
    returns = np.zeros((30, memory.size))
    for k in range(30):
        c = k / 30
        exposure = 0.5 / (1 - memory)
        for _ in range(140):
            returns[k] += (c * 14 + (1 - c) * 4) / (1 + np.exp(-sensitivity * exposure))
            exposure = memory * exposure - 2 * (c - 0.5)
    return returns, weight


def test_exact_population_means(study: pl.DataFrame) -> None:
    returns, weight = constants_by_quadrature()
    means = returns @ weight
    memory, sensitivity, coarse = gauss_population(16)
    users = UserPopulation(memory, sensitivity)
    rng = np.random.default_rng(0)
    best = episode_returns(NOISELESS, users, optimal_documents(NOISELESS, users), rng) @ coarse
    assert int(np.argmax(means)) == 12
    exact = {
        "kale": means[0],
        "balanced": means[15],
        "myopic": means[29],
        "best constant": means[12],
        "best constant per user": returns.max(axis=0) @ weight,
        "optimum": best,
    }
    for row in study.iter_rows(named=True):
        value = exact[row["policy"]]
        assert abs(row["mean_return"] - value) < 3 * row["standard_error"]
        # The known values are those of a drawn population, of the published evaluation's size.
        assert abs(KNOWN[row["policy"]] - value) < 3 * row["standard_error"]
    # Pinned, since they are what a reader of a result table compares with.
    pinned = [441.69, 645.11, 443.14, 676.55, 740.42, 781.33]
    np.testing.assert_allclose(list(exact.values()), pinned, rtol=0, atol=0.02)


@pytest.mark.parametrize("config", [NOISELESS, LTSConfig(mu_c=3.0, mu_k=5.0, sd_c=0.0, sd_k=0.0)])
def test_optimum_equals_brute_force(config: LTSConfig) -> None:
    short = LTSConfig(
        mu_c=config.mu_c, mu_k=config.mu_k, sd_c=0.0, sd_k=0.0, horizon=5, documents=5
    )
    rng = np.random.default_rng(3)
    users = UserPopulation.draw(12, rng)
    found = episode_returns(short, users, optimal_documents(short, users), rng)
    sequences = np.array(list(itertools.product(range(5), repeat=5))).T
    for user in range(12):
        copies = users.take([user] * sequences.shape[1])
        best = episode_returns(short, copies, sequences, rng).max()
        assert found[user] == pytest.approx(best, abs=1e-3)


def test_optimum_beats_every_constant_of_every_user_and_a_finer_grid_adds_nothing() -> None:
    rng = np.random.default_rng(4)
    users = UserPopulation.draw(60, rng)
    best = constant_returns(NOISELESS, users, rng).max(axis=0)
    found, finer = (
        episode_returns(
            NOISELESS, users, optimal_documents(NOISELESS, users, grid_points=points), rng
        )
        for points in (201, 801)
    )
    assert (found >= best - 1e-9).all()
    assert abs(finer.mean() - found.mean()) < 0.02


def test_myopic_prefers_kale_where_kale_pays_more() -> None:
    config = LTSConfig(mu_c=2.0, mu_k=6.0, horizon=4, documents=5)
    rng = np.random.default_rng(5)
    study = constant_policy_study(config, UserPopulation.draw(3, rng), rng)
    rows = {row["policy"]: row for row in study.iter_rows(named=True)}
    assert rows["myopic"]["clickbait"] == 0.0
    assert rows["optimum"]["mean_return"] == pytest.approx(rows["kale"]["mean_return"], abs=0.1)
    # Five documents have no score of exactly 0.5.
    assert rows["balanced"]["clickbait"] == pytest.approx(0.4)


def test_study_is_determined_by_the_seed_and_reports_progress() -> None:
    config = LTSConfig(horizon=6, documents=4)
    users = UserPopulation.draw(4, np.random.default_rng(6))
    calls: list[tuple[int, int]] = []
    first = constant_policy_study(
        config, users, np.random.default_rng(1), progress=lambda done, n: calls.append((done, n))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert first.equals(constant_policy_study(config, users, np.random.default_rng(1)))
    assert not first.equals(constant_policy_study(config, users, np.random.default_rng(2)))


def test_a_single_user_has_no_standard_error() -> None:
    rng = np.random.default_rng(7)
    study = constant_policy_study(
        LTSConfig(horizon=3, documents=3), UserPopulation.draw(1, rng), rng
    )
    assert study.schema == STUDY_SCHEMA
    assert study["standard_error"].null_count() == study.height


def test_picking_the_best_document_does_not_flatter_it() -> None:
    # No document matters here: every return is 8 + N(0, 10), and the largest of a user's 30 returns
    # lies about two standard deviations above 8.
    config = LTSConfig(mu_c=4.0, mu_k=4.0, sd_c=5.0, sd_k=5.0, horizon=4)
    n = 500
    users = UserPopulation(np.full(n, 0.5), np.zeros(n))
    rng = np.random.default_rng(8)
    assert constant_returns(config, users, rng).max(axis=0).mean() > 8.0 + 15.0
    study = constant_policy_study(config, users, rng)
    for row in study.iter_rows(named=True):
        assert row["standard_error"] == pytest.approx(10.0 / math.sqrt(n), rel=0.15)
        assert abs(row["mean_return"] - 8.0) < 4 * 10.0 / math.sqrt(n)


def test_bad_input_names_the_field() -> None:
    rng = np.random.default_rng(9)
    users = UserPopulation.draw(2, rng)
    for config, field in (
        (LTSConfig(innovation_sd=0.1), "config.innovation_sd"),
        (LTSConfig(kale_noise=0.1), "config.kale_noise"),
    ):
        for call in (
            lambda given: constant_policy_study(given, users, rng),
            lambda given: optimal_documents(given, users),
        ):
            with pytest.raises(InvalidInputError) as caught:
                call(config)
            assert caught.value.field == field
    with pytest.raises(InvalidInputError, match=r"^plan: expected shape \(140, 2\)"):
        episode_returns(LTSConfig(), users, np.zeros((3, 2), dtype=int), rng)
    with pytest.raises(InvalidInputError, match=r"^grid_points"):
        optimal_documents(LTSConfig(), users, grid_points=1)
