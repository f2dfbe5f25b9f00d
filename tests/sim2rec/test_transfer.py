"""The transfer study: who is trained where, what is said of runs, and the order of the arms."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import scipy

from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.sim2rec.jax_extra import require_jax
from croupier.sim2rec.lts import LTSConfig, UserPopulation
from croupier.sim2rec.recommender import myopic_returns
from croupier.sim2rec.study import STUDY_SCHEMA, constant_returns
from croupier.sim2rec.transfer_config import (
    ARMS,
    BUDGETS,
    UPPER_BOUND,
    TransferConfig,
    training_groups,
)
from croupier.sim2rec.transfer_figure import draw_transfer
from croupier.sim2rec.transfer_runs import RECOMMENDER, RUNS_SCHEMA, run_transfer
from croupier.sim2rec.transfer_study import summarise_transfer
from tests.sim2rec.killed_training import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [arm.name for arm in ARMS]


def yardsticks(optimum: float) -> pl.DataFrame:
    return pl.DataFrame(
        [
            ("best constant", 0.4, 400.0, 1.0, 10),
            ("best constant per user", None, 450.0, 1.0, 10),
            ("optimum", None, optimum, 1.0, 10),
        ],
        schema=STUDY_SCHEMA,
        orient="row",
    )


def test_arms_are_trained_where_they_ought_to_be() -> None:
    config = BUDGETS["reduced"]
    means = {arm.name: [group.mu_c for group in training_groups(config, arm, 4)] for arm in ARMS}
    everywhere = [6.0, 7.0, 8.0, 9.0, 19.0, 20.0, 21.0]
    assert means == {
        "DIRECT": [9.0],
        "DR-UNI": everywhere,
        "DR-OSI": everywhere,
        "Sim2Rec": everywhere,
        UPPER_BOUND: [14.0],
    }
    for arm in ARMS:
        shape = config.actor(arm)
        assert bool(shape.memory) == (arm.name not in {"DIRECT", "DR-UNI"})
        assert bool(shape.code) == (arm.name == "Sim2Rec")
        assert (0 in shape.sees) == (arm.name != "DIRECT")


def test_the_recommender_is_myopic() -> None:
    # Whatever is shown pays more now the more clickbait it is, so it shows much of it all along and
    # earns what the documents with the most clickbait earn, far less than the best one.
    rng = np.random.default_rng(1)
    users = UserPopulation.draw(100, rng)
    groups = training_groups(BUDGETS["reduced"], ARMS[1], 4)
    earned = myopic_returns(groups, LTSConfig(), users, rng).mean()
    constants = constant_returns(LTSConfig(), users, rng).mean(axis=1)
    assert constants[20:].min() - 10.0 < earned < constants[20:].max() + 10.0
    assert earned < 0.75 * constants.max()


def test_results_equal_their_formulas() -> None:
    seeds = 4
    rng = np.random.default_rng(2)
    final = {
        name: 500.0 + 30.0 * place + rng.normal(0.0, 5.0, seeds) for place, name in enumerate(NAMES)
    }
    final[RECOMMENDER] = np.full(seeds, 300.0)
    rows = [
        {
            "digest": "d",
            "level": 0 if arm == UPPER_BOUND else 3,
            "arm": arm,
            "seed": seed,
            "iteration": iteration,
            "training_return": 1.0,
            "test_return": value if iteration == 20 or arm == RECOMMENDER else 1.0,
            "entropy": 1.0,
            "explained": 1.0,
            "seconds": 2.0 * iteration,
        }
        for arm, values in final.items()
        for seed, value in enumerate(values)
        for iteration in ([0] if arm == RECOMMENDER else [10, 20])
    ]
    runs = pl.DataFrame(rows, schema=RUNS_SCHEMA, orient="row").sample(
        fraction=1.0, shuffle=True, seed=1
    )
    study = summarise_transfer(runs, yardsticks(700.0), [3])
    assert [each.arm for each in study.arms] == [RECOMMENDER, *NAMES]
    bound = final[UPPER_BOUND].mean()
    before = None
    for each in study.arms:
        values = final[each.arm]
        assert each.seeds == seeds
        assert each.test_return.value == pytest.approx(values.mean())
        assert each.test_return.error == pytest.approx(scipy.stats.sem(values))
        assert each.of_upper_bound == pytest.approx(values.mean() / bound)
        assert each.of_optimum == pytest.approx(values.mean() / 700.0)
        assert each.seconds == (None if each.arm == RECOMMENDER else 40.0)
        if before is None:
            assert each.lead is None
        else:
            assert each.lead is not None
            assert each.lead.over == before
            expected = scipy.stats.ttest_rel(values, final[before]).pvalue
            assert each.lead.p_value == pytest.approx(expected)
        before = each.arm
    figure = draw_transfer(runs, yardsticks(700.0), [3])
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == NAMES


@pytest.mark.slow  # ``croupier simulate`` does the same in tests/cli, for every run
def test_runs_are_kept_and_not_run_again(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def run() -> pl.DataFrame:
        return run_transfer(
            CONFIG,
            [4],
            [0],
            users=10,
            user_seed=1,
            directory=tmp_path,
            jobs=1,
            progress=lambda done, total: calls.append((done, total)),
        )

    first = run()
    assert first.schema == RUNS_SCHEMA
    assert calls == [(done, 6) for done in range(7)]
    assert first["arm"].unique(maintain_order=True).to_list() == [RECOMMENDER, *NAMES]
    for arm in NAMES:
        rows = first.filter(arm=arm)
        assert rows["iteration"].to_list() == [1, 2, 3, 4, 5, 6]
        assert rows.drop("seconds").null_count().sum_horizontal().item() == 0
    assert len(list((tmp_path / "policies").iterdir())) == 5
    calls.clear()
    assert run().equals(first)
    assert calls == [(6, 6)]


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "jax" else find(name),
    )
    with pytest.raises(ConfigError, match=r"expected jax to be installed.*croupier\[sim2rec\]"):
        require_jax("level")


def test_bad_settings_name_the_field() -> None:
    for field, value in (("users", 1), ("every", 7), ("every", 0), ("held_out", 0), ("hidden", 0)):
        with pytest.raises(InvalidInputError) as caught:
            TransferConfig(**{field: value})  # type: ignore[arg-type]
        assert caught.value.field == field


def test_a_single_simulator_has_the_users_of_an_iteration() -> None:
    with pytest.raises(InvalidInputError, match=r"ppo\.users: expected at most users, 100"):
        TransferConfig(users=100)
    for config in BUDGETS.values():
        assert config.ppo.users <= config.users


@pytest.mark.slow
def test_looking_ahead_pays(tmp_path: Path) -> None:
    runs = run_transfer(
        BUDGETS["reduced"], [4], [0, 1, 2], users=750, user_seed=0, directory=tmp_path, jobs=1
    )
    study = summarise_transfer(runs, yardsticks(781.33), [4])
    value = {each.arm: each.test_return.value for each in study.arms}
    # The smallest lead of a policy that looks ahead is hundreds, seeds differ by some ten.
    assert value[RECOMMENDER] + 100.0 < min(value[arm] for arm in NAMES)
    assert value[UPPER_BOUND] > 0.9 * 781.33
