"""Durations as ISO 8601 has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from croupier.control.contracts import iso_duration, microseconds_of
from croupier.policy.errors import InvalidInputError
from croupier.policy.loop import duration_text, parse_duration

S = 1_000_000


@pytest.mark.parametrize(
    ("text", "microseconds", "told"),
    [
        ("PT5S", 5 * S, "PT5S"),
        ("PT10M", 600 * S, "PT10M"),
        ("PT600S", 600 * S, "PT10M"),
        ("PT1.5H", 5400 * S, "PT1H30M"),
        ("P1D", 86_400 * S, "P1D"),
        ("P1DT2H3M4.5S", 93_784_500_000, "P1DT2H3M4.5S"),
        ("P2W", 14 * 86_400 * S, "P14D"),
        ("PT0.1S", S // 10, "PT0.1S"),
    ],
)
def test_durations(text: str, microseconds: int, told: str) -> None:
    assert microseconds_of("field", text) == microseconds
    assert iso_duration(microseconds) == told


@pytest.mark.parametrize(
    "text", ["", "P", "PT", "P1DT", "10 min", "PT5", "pt5s", "P1Y", "P1M", "-PT5S", "PT0S", "PT٣S"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expected a") as refused:
        microseconds_of("rewardWaitTime", text)
    assert refused.value.field == "rewardWaitTime"


@given(st.integers(1, 10**12).map(lambda milliseconds: 1000 * milliseconds))
def test_a_duration_survives_all_its_forms(microseconds: int) -> None:
    assert microseconds_of("field", iso_duration(microseconds)) == microseconds
    assert parse_duration(duration_text(microseconds)) == microseconds
