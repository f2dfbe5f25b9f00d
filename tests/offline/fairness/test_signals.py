"""Figures that nights keep of groups, and the signal when a disparity rises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from croupier.offline.fairness.signals import refresh_fairness, rises, stored_rises
from croupier.offline.generations import generation_rows, refresh_realised
from croupier.offline.lake import SCHEMAS, Lake
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.loop import LoopConfig
from tests.offline.fairness.populations import interactions

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = LoopConfig(fairness=FairnessConfig(attributes=("gender",)))


def served(
    generation: int, n: int, seed: int, *, tilt: float = 0.0, rise: float = 0.0
) -> pl.DataFrame:
    """f gets a0 oftener by `tilt`, and rewards oftener by `rise`, than m."""
    rng = np.random.default_rng(seed)
    gender = rng.choice(["f", "m"], n)
    moved = np.where(gender == "f", tilt, 0.0)[:, None]
    pmf = (1.0 - moved) * rng.dirichlet([2.0, 2.0, 2.0], n) + moved * np.array([1.0, 0.0, 0.0])
    reward = np.where(gender == "f", 0.3 + rise, 0.3)[:, None] * np.ones(3)
    return interactions({"gender": gender.tolist()}, pmf, reward, rng, generation=generation)


def night(lake: Lake, rows: pl.DataFrame) -> list[str]:
    lake.append("interactions", rows)
    refresh_realised(lake, "shop")
    return [each.told() for each in refresh_fairness(lake, "shop", CONFIG)]


def test_a_disparity_that_rises_is_signalled_and_one_that_stays_is_not(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for generation in range(1, 4):
        # There from the beginning: no rise.
        assert night(lake, served(generation, 800, generation, tilt=0.1)) == []
    assert generation_rows(lake, "shop")[3]["disparity_rises"] is False
    found = night(lake, served(4, 800, 4, tilt=0.4))
    assert any("gender f: exposure of a0 is +0.2" in each for each in found)
    assert not any("reward" in each for each in found)
    row = generation_rows(lake, "shop")[4]
    assert row["disparity_rises"] is True
    assert row["disparity_p_value"] < 0.001
    assert [each.told() for each in stored_rises(lake, "shop", CONFIG)] == found


def test_rewards_that_drift_apart_are_signalled(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert night(lake, served(1, 3000, 1)) == []
    (found,) = night(lake, served(2, 3000, 2, rise=0.2))
    assert "gender f: reward is +0.1" in found or "gender f: reward is +0.2" in found


def test_only_generations_that_have_changed_are_worked_out_anew(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    night(lake, served(1, 300, 1))
    first = lake.scan("fairness").collect()
    assert first["generation"].unique().to_list() == [1]
    assert set(first["measure"]) == {"reward", "exposure"}
    assert first["of_decisions"].unique().to_list() == [300]
    version = lake.version("fairness")
    refresh_realised(lake, "shop")
    refresh_fairness(lake, "shop", CONFIG)
    assert lake.version("fairness") == version
    night(lake, served(2, 200, 2))
    both = lake.scan("fairness").collect()
    assert both.filter(pl.col("generation") == 1).equals(first)
    assert len(both) == 2 * len(first)
    # More of the second generation: its figures, and nobody else's, are other ones.
    night(lake, served(2, 100, 3))
    again = lake.scan("fairness").collect()
    assert again.filter(pl.col("generation") == 1).equals(first)
    assert again.filter(pl.col("generation") == 2)["of_decisions"].unique().to_list() == [300]


def test_hidden_groups_are_kept_without_numbers(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rows = served(1, 60, 1)
    few = pl.when(pl.int_range(pl.len()) < 3).then(pl.lit('{"gender":"x"}')).otherwise("audit")
    night(lake, rows.with_columns(audit=few))
    hidden = lake.scan("fairness").filter(pl.col("hidden")).collect()
    assert "x" in hidden["group"].to_list()
    assert hidden.select("decisions", "value", "chosen", "difference").null_count().row(0) == (
        (len(hidden),) * 4
    )


def test_nothing_is_kept_without_attributes_and_what_is_none_is_refused(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append("interactions", served(1, 300, 1))
    refresh_realised(lake, "shop")
    assert refresh_fairness(lake, "shop", LoopConfig()) == []
    assert not lake.exists("fairness")
    named = pl.concat_str(pl.lit('{"gender":"'), pl.int_range(pl.len()), pl.lit('"}'))
    lake.append("interactions", served(1, 300, 2).with_columns(audit=named))
    refresh_realised(lake, "shop")
    with pytest.raises(InvalidInputError, match="at most 200"):
        refresh_fairness(lake, "shop", CONFIG)


def table(differences: np.ndarray, errors: np.ndarray) -> pl.DataFrame:
    """Of groups that have a contrast in every generation; shape (G, groups) each."""
    generations, groups = differences.shape
    rows = [
        {
            "loop": "shop",
            "generation": g,
            "attribute": "gender",
            "group": f"g{j}",
            "measure": "exposure",
            "action": "a0",
            "hidden": False,
            "difference": differences[g, j],
            "difference_error": errors[g, j],
        }
        for g in range(generations)
        for j in range(groups)
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["fairness"])


@pytest.mark.parametrize(("steady", "least"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.02)])
def test_noise_is_signalled_at_most_as_often_as_said(steady: float, least: float) -> None:
    """Four groups over six generations, whose disparities don't change."""
    config = LoopConfig(fairness=FairnessConfig(attributes=("gender",), min_rise=least))
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(400):
        errors = rng.uniform(0.005, 0.02, (6, 4))
        found = rises(table(steady + rng.normal(0.0, errors), errors), config)
        assert len(found) == 4
        alarms += min(each.p_value for each in found) <= 0.05
    # Above 34 of 400 happens once in a thousand times at a true rate of 5 %.
    assert alarms <= 34


def test_a_rise_beyond_noise_is_found() -> None:
    errors = np.full((6, 4), 0.01)
    differences = np.zeros((6, 4))
    differences[-1, 2] = -0.1
    found = rises(table(differences, errors), CONFIG)
    assert found[-1].group == "g2"
    assert found[-1].p_value < 0.001
    assert all(each.p_value == 1.0 for each in found[:-1])
    # A group that falls back is no rise.
    differences[:-1, 2], differences[-1, 2] = 0.2, 0.1
    assert all(each.p_value == 1.0 for each in rises(table(differences, errors), CONFIG))
