"""The generations page, run without a browser: its figures are the lake's, whatever is missing."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from croupier.dashboards.settings import DATA_DIR_VARIABLE
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.realised import Moments, Realised
from croupier.offline.summaries.nights import swings_of
from croupier.offline.summaries.tables import Summaries, SummaryState
from tests.dashboards.lakes import (
    champion_of,
    generation_row,
    homepage,
    newsletter,
    write_lake,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    st.cache_data.clear()
    st.cache_resource.clear()
    yield tmp_path
    st.cache_data.clear()
    st.cache_resource.clear()


def show(loop: str | None = None) -> AppTest:
    page = AppTest.from_string(_PAGE, default_timeout=60)
    if loop is not None:
        page.query_params["loop"] = loop
    page.run()
    assert not page.exception
    return page


# Pages are switched to by their file, and these are functions.
_PAGE = """
from croupier.dashboards import generations
from croupier.dashboards.data import LakeUnreadableError
from croupier.dashboards.layout import show_unreadable, warn_of_spill
warn_of_spill()
try:
    generations.show()
except LakeUnreadableError as error:
    show_unreadable(error)
"""


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def text(page: AppTest) -> str:
    return "\n".join(element.value for element in page.markdown)


def test_a_log_that_is_away_is_told(data_dir: Path) -> None:
    write_lake(data_dir, homepage())
    assert not show().warning
    (data_dir / "spill" / "01767225600000000000").mkdir(parents=True)
    (warning,) = show().warning
    assert "away since 2026-01-01 00:00 UTC" in warning.value


def test_headline_is_the_champions_row(data_dir: Path) -> None:
    rows = homepage()
    write_lake(data_dir, rows + newsletter())
    champion = champion_of(rows)

    page = show("homepage")

    assert metrics(page) == {
        "Champion: generation": str(champion["generation"]),
        "Decisions served": f"{champion['decisions']:,}",
        "Realised mean reward": f"{champion['realised_mean']:.4f}",
        "Estimate before promotion": f"{champion['estimate']:.4f}",
    }
    said = text(page)
    assert f"`{champion['exploration']}`" in said
    assert f"{champion['realised_lower']:.4f} to {champion['realised_upper']:.4f}" in said
    assert f"{champion['lower']:.4f} to {champion['upper']:.4f}" in said
    assert f"n = {champion['judged_rows']:,} judged decisions" in said
    assert f"Effective sample size {champion['ess']:,.0f}" in said
    assert "95 % interval" in said


def test_a_subsampled_log_shows_what_was_logged_and_how_many_were_made(data_dir: Path) -> None:
    rows = newsletter()
    write_lake(data_dir, rows)
    whole = show("newsletter")
    assert metrics(whole)["Decisions served"] == "902"
    assert "Joined with their reward." in text(whole)
    assert "Made, estimated" not in whole.dataframe[0].value

    write_lake(data_dir, [row | {"decisions_made": 3006.67} for row in rows])
    page = show("newsletter")

    assert metrics(page)["Decisions served"] == "3,007"
    assert "Estimated from 902 that were logged and joined." in text(page)
    table = page.dataframe[0].value
    assert (table["Decisions"].tolist(), table["Made, estimated"].tolist()) == ([902], [3007])


def test_table_holds_every_generation_newest_first(data_dir: Path) -> None:
    rows = homepage(nights=80)
    write_lake(data_dir, rows)

    table = show().dataframe[0].value

    assert table["Generation"].tolist() == list(range(80, -1, -1))
    for shown, row in zip(table.to_dict("records"), reversed(rows), strict=True):
        assert shown["Status"] == row["status"].title()
        for column, field in (
            ("Estimate", "estimate"),
            ("Realised", "realised_mean"),
            ("Difference", "difference"),
            ("Decisions", "decisions"),
            ("Propensity p", "propensity_p_value"),
        ):
            assert same(shown[column], row[field])
        assert same(shown["ESS"], None if row["ess"] is None else round(row["ess"]))
        assert same(shown["Verdict"], row["verdict"])
        promoted = row["promoted"]
        assert same(shown["Promoted (UTC)"], promoted and promoted.replace(tzinfo=None))


def test_a_rollback_is_shown(data_dir: Path) -> None:
    moment = datetime(2026, 11, 5, 9, 30, tzinfo=UTC)
    rows = homepage()
    last = rows[-1]["generation"]
    for row in rows:
        if row["status"] == "champion":
            row |= {"restored": moment}
    rows[-1] |= {
        "status": "rolled_back",
        "rolled_back": moment,
        "rollback_reason": "returns went up",
        "total_variation": 0.25,
        "flip_rate": 0.5,
    }
    write_lake(data_dir, rows)

    page = show()

    assert "Restored by a rollback" in text(page)
    shown = page.dataframe[0].value.to_dict("records")[0]
    assert (shown["Generation"], shown["Status"]) == (last, "Rolled Back")
    assert (shown["Total variation"], shown["Flip rate"]) == (0.25, 0.5)
    assert shown["Rollback"] == "returns went up"
    assert same(shown["Rolled back (UTC)"], moment.replace(tzinfo=None))


@pytest.mark.parametrize("oscillates", [True, False])
def test_oscillation_is_pointed_out(data_dir: Path, oscillates: bool) -> None:
    rows = homepage()
    told = {"spread_p_value": 0.001, "alternation_p_value": 0.012, "oscillates": oscillates}
    # What was so once is not pointed out for ever.
    rows[-2] |= {"oscillates": not oscillates}
    rows[-1] |= told
    write_lake(data_dir, rows)

    said = " ".join(each.value for each in show().warning)

    assert (f"up to {rows[-1]['generation']} oscillate" in said) is oscillates
    assert ("(p = 0.012)" in said) is oscillates


@pytest.mark.parametrize("swing", [0.2, 0.0])
def test_swings_stand_within_the_band_of_noise(data_dir: Path, swing: float) -> None:
    rng = np.random.default_rng(5)
    found = {
        number: Realised(
            moments=Moments.of(
                (rng.random(500) < 0.5 + swing * (-1) ** number).astype(float), np.ones(500)
            ),
            guardrails={},
            propensity_p_value=0.5,
        )
        for number in range(9)
    }
    table = swings_of(found)
    summaries = Summaries(data_dir / "lake" / "summaries")
    summaries.write("homepage", {"swings": table}, SummaryState(format=1, made=1))
    write_lake(data_dir, homepage())

    page = show("homepage")
    signal = "generations up to 8 **oscillate**"
    assert (signal in text(page)) is (swing > 0.0)
    assert ("**do not oscillate**" in text(page)) is (swing == 0.0)
    page.selectbox(key="swing").set_value("Spread of the differences").run()
    assert not page.exception
    assert "standard deviation of the differences" in text(page)


def test_gaps_of_simulators_stand_beside_what_was_earned(data_dir: Path) -> None:
    rows = homepage()
    rows[-1] |= {
        "session_value": 4.25,
        "session_lower": 4.0,
        "session_upper": 4.5,
        "simulated_value": 5.0,
        "simulated_sessions": 321,
        "simulator_gap": 0.75,
        "simulator_gap_lower": 0.5,
        "simulator_gap_upper": 1.0,
        "simulator_p_value": 0.003,
        "simulators_err": True,
        "simulator_error": 1.5,
        "simulator_disagreement": 0.125,
    }
    write_lake(data_dir, rows + newsletter())
    page = AppTest.from_string(_SIMULATORS, default_timeout=60)
    page.query_params["loop"] = "homepage"
    page.run()
    assert not page.exception
    shown = page.dataframe[0].value.iloc[0]
    assert shown["Generation"] == rows[-1]["generation"]
    assert (shown["Real return"], shown["Simulated return"], shown["Gap"]) == (4.25, 5.0, 0.75)
    assert (shown["Gap, interval"], shown["Sessions"]) == ("+0.50 to +1.00", 321)
    assert (shown["Error"], shown["Disagreement"]) == (1.5, 0.125)
    assert "(p = 0.003)" in page.warning[0].value
    page.query_params["loop"] = "newsletter"
    page.run()
    assert not page.dataframe
    assert any("sessions" in each.value for each in page.info)


_SIMULATORS = """
from croupier.dashboards import simulators
simulators.show()
"""


def same(shown: Any, stored: Any) -> bool:
    if stored is None:
        return str(shown) in {"None", "nan", "NaT"}
    return bool(shown == stored)


def test_names_the_generations_that_did_not_keep_their_promise(data_dir: Path) -> None:
    write_lake(data_dir, homepage())

    said = text(show())

    assert "**5 of 6** generations" in said
    assert "Generation 4 earned less than promised." in said


def test_charts_draw_what_the_lake_holds(data_dir: Path) -> None:
    rows = homepage()
    write_lake(data_dir, rows)

    promised, differences = drawn_values(show())

    assert {value for _, kind, value in promised if kind == "Promised estimate"} == {
        row["estimate"] for row in rows if row["estimate"] is not None
    }
    assert {value for _, kind, value in promised if kind == "Realised mean"} == {
        row["realised_mean"] for row in rows if row["realised_mean"] is not None
    }
    kinds = {generation: kind for generation, kind, _ in differences}
    assert (kinds[1], kinds[2], kinds[3]) == ("Promoted", "Promoted by override", "Not promoted")


def drawn_values(page: AppTest) -> list[list[tuple[int, str, float]]]:
    """Generation, kind and value of every point, chart by chart."""
    charts = []
    for chart in page.get("vega_lite_chart"):
        frames = [pl.read_ipc_stream(dataset.data.data) for dataset in chart.proto.datasets]
        (points,) = [frame for frame in frames if "kind" in frame.columns]
        charts.append(points.select("generation", "kind", "value").rows())
    return charts


def test_a_cold_start_is_shown_without_an_estimate(data_dir: Path) -> None:
    write_lake(data_dir, newsletter())

    page = show()

    assert metrics(page)["Champion: generation"] == "0"
    assert metrics(page)["Estimate before promotion"] == "–"
    assert metrics(page)["Realised mean reward"] == "0.310"
    assert "Cold start" in text(page)
    assert "No generation was compared" in page.info[0].value


def test_rows_with_nothing_but_a_number_are_shown(data_dir: Path) -> None:
    write_lake(data_dir, [generation_row("bare", number) for number in range(3)])

    page = show()

    assert metrics(page) == {
        "Champion: generation": "0",
        "Decisions served": "–",
        "Realised mean reward": "–",
        "Estimate before promotion": "–",
    }
    assert len(page.dataframe[0].value) == 3


def test_without_champion_and_cold_start_there_is_no_headline(data_dir: Path) -> None:
    write_lake(data_dir, [generation_row("bare", 1, status="challenger")])

    page = show()

    assert not page.metric
    assert "the cold start serves" in page.info[0].value


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_an_interval_without_ends_is_missing(data_dir: Path, end: float) -> None:
    only = {"realised_mean": 1.0, "realised_lower": -end, "realised_upper": end, "decisions": 1}
    write_lake(data_dir, [generation_row("new", 0, status="champion", **only)])

    page = show()

    assert metrics(page)["Realised mean reward"] == "1.000"
    assert "95 % interval –" in text(page)
    assert "nan" not in text(page)
    assert "inf" not in text(page)


def test_draws_that_do_not_fit_their_propensities_are_pointed_out(data_dir: Path) -> None:
    rows = homepage()
    write_lake(data_dir, rows)
    assert not show().warning
    rows[5]["propensity_p_value"] = 2.67e-4
    write_lake(data_dir, rows)

    assert "generation 5 (p = 0.00027)" in show().warning[0].value


def test_the_address_holds_the_loop(data_dir: Path) -> None:
    write_lake(data_dir, homepage() + newsletter())

    page = show()
    assert page.selectbox[0].value == "homepage"
    assert page.query_params["loop"] == "homepage"

    page.selectbox[0].select("newsletter").run()
    assert page.query_params["loop"] == "newsletter"
    assert metrics(page)["Champion: generation"] == "0"


def test_a_shared_address_opens_its_loop(data_dir: Path) -> None:
    write_lake(data_dir, homepage() + newsletter())

    page = show("newsletter")

    assert page.selectbox[0].value == "newsletter"
    assert not page.warning


def test_an_address_of_an_unknown_loop_says_so_without_repeating_it(data_dir: Path) -> None:
    write_lake(data_dir, homepage())

    page = show("![](https://example.com/)")

    assert "not in this lake" in page.warning[0].value
    assert "example.com" not in page.warning[0].value
    assert page.query_params["loop"] == "homepage"


def test_a_new_version_of_the_table_is_seen(data_dir: Path) -> None:
    write_lake(data_dir, newsletter())
    page = show()
    write_lake(data_dir, [row | {"decisions": 1_204} for row in newsletter()])

    page.run()

    assert metrics(page)["Decisions served"] == "1,204"


def test_a_lake_that_is_not_there_names_the_commands_that_fill_it(data_dir: Path) -> None:
    page = show()

    assert [block.value for block in page.code] == [
        "croupier nightly --config croupier.toml",
        "croupier demo",
    ]
    assert str(data_dir) in text(page)


def test_a_table_without_rows_is_empty_too(data_dir: Path) -> None:
    rows = SCHEMAS["generations"].to_frame()
    Lake(data_dir / "lake").replace("generations", rows)

    assert show().code[0].value == "croupier nightly --config croupier.toml"


@pytest.mark.parametrize("damaged", ["*.json", "*.parquet"])
def test_a_damaged_table_is_explained(data_dir: Path, damaged: str) -> None:
    write_lake(data_dir, homepage())
    for file in (data_dir / "lake" / "generations").rglob(damaged):
        file.write_text("damaged")

    page = show()

    assert page.error[0].value == "**The lake can't be read.**"
    assert str(data_dir / "lake") in text(page)
    assert "Error" in page.code[0].value


def test_a_table_whose_files_are_gone_is_explained(data_dir: Path) -> None:
    write_lake(data_dir, homepage())
    for file in (data_dir / "lake" / "generations").rglob("*.parquet"):
        file.unlink()

    assert show().error[0].value == "**The lake can't be read.**"
