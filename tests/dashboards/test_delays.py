"""The delays page, run without a browser: its figures are those of the lake's outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from croupier.dashboards.delay_chart import delay_chart
from croupier.dashboards.settings import DATA_DIR_VARIABLE
from croupier.offline.delays import estimate_delays
from tests.dashboards.lakes import write_delays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A hundred outcomes after 1 to 50 s and 1 to 50 h, and some that never came.
DELAYS = [*map(float, range(1, 51)), *(3600.0 * n for n in range(1, 51)), *[None] * 25]


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    st.cache_data.clear()
    yield tmp_path
    st.cache_data.clear()


def show() -> AppTest:
    page = AppTest.from_string(_PAGE, default_timeout=60)
    page.run()
    assert not page.exception
    return page


# Pages are switched to by their file, and these are functions.
_PAGE = """
from croupier.dashboards import delays
delays.show()
"""


def test_the_headline_is_of_all_outcomes(data_dir: Path) -> None:
    write_delays(data_dir, DELAYS)
    page = show()
    assert {metric.label: metric.value for metric in page.metric} == {
        "Half have come by": "50 s",
        "90 % have come by": "1.67 d",
        "99 % have come by": "2.04 d",
        "Decisions with an outcome": "100",
    }
    table = page.dataframe[0].value
    assert table["Share"].iloc[-1] == "100.0 %"
    shares = [float(each.removesuffix(" %")) for each in table["Share"]]
    assert shares == sorted(shares)
    for delay, share in zip(table["Delay in s"], shares, strict=True):
        come = sum(each is not None and each <= delay for each in DELAYS)
        assert share == pytest.approx(come, abs=0.05)


def test_a_new_join_is_seen(data_dir: Path) -> None:
    write_delays(data_dir, DELAYS)
    assert show().metric[3].value == "100"
    write_delays(data_dir, [5.0] * 30, loop="newsletter")
    page = AppTest.from_string(_PAGE, default_timeout=60)
    page.query_params["loop"] = "newsletter"
    page.run()
    assert page.metric[3].value == "30"


def test_without_outcomes_there_is_no_curve(data_dir: Path) -> None:
    write_delays(data_dir, [None] * 5)
    page = show()
    assert [each.value for each in page.info] == ["No outcome of this loop has been joined yet."]


def test_an_empty_lake_says_how_to_fill_it() -> None:
    page = show()
    assert "Delays will appear here after the first nightly run." in page.info[0].value


def test_a_lake_that_can_not_be_read_is_no_traceback(data_dir: Path) -> None:
    write_delays(data_dir, DELAYS)
    for file in (data_dir / "lake" / "interactions").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    page = AppTest.from_string(_PAGE, default_timeout=60)
    page.run()
    assert [type(each).__name__ for each in page.exception] == ["Exception"]
    assert "can't be read" in page.exception[0].value


def test_the_chart_draws_the_curve() -> None:
    curve = estimate_delays([0.0, 30.0, 30.0, 7200.0], [1e6] * 4)
    drawn = delay_chart(curve).to_dict()
    (rows,) = drawn["datasets"].values()
    assert [row["delay"] for row in rows] == [0.0, 30.0, 7200.0]
    assert [row["share"] for row in rows] == pytest.approx([0.25, 0.75, 1.0])
    assert [(row["by"], row["shown"]) for row in rows] == [
        ("0 s", "25.0 %"),
        ("30 s", "75.0 %"),
        ("2 h", "100.0 %"),
    ]
    area, line, points = drawn["layer"]
    assert (area["mark"]["type"], line["mark"]["type"]) == ("area", "line")
    assert area["encoding"]["y2"]["field"] == "upper"
    axis = points["encoding"]["x"]
    assert axis["axis"]["values"] == [0, 1, 10, 60, 600, 3600]
    assert "datum.value === 3600 ? '1 h' : " in axis["axis"]["labelExpr"]
