"""The configuration of a loop: what is read, and what is said about mistakes."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.encoding import EncoderConfig
from croupier.policy.estimates import Estimates
from croupier.policy.exploration import SquareCB
from croupier.policy.loop import LoopConfig, parse_duration, valid_loop_name
from croupier.policy.oracle import AutoConfig, SklearnConfig

UNITS = {"ms": 10**3, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}


def test_reads_toml() -> None:
    text = """
    attribution_window = "1.5 h"
    default_reward = -1
    aggregation = "sum"
    learning_mode = "apprentice"
    reward_min = -1
    reward_max = 5
    keep_prob = 0.25

    [exploration]
    kind = "squarecb"
    gamma_scale = 5
    floor = 0.01

    [oracle]
    kind = "sklearn"
    estimator = "sklearn.linear_model.Ridge"
    params = { alpha = 2.0 }
    encoder = { bits = 12 }
    """
    config = msgspec.convert(tomllib.loads(text), LoopConfig)
    assert config == LoopConfig(
        attribution_window="1.5 h",
        default_reward=-1.0,
        aggregation="sum",
        learning_mode="apprentice",
        reward_min=-1.0,
        reward_max=5.0,
        keep_prob=0.25,
        exploration=SquareCB(gamma_scale=5.0, floor=0.01),
        oracle=SklearnConfig(params={"alpha": 2.0}, encoder=EncoderConfig(bits=12)),
    )
    assert config.attribution_window_us == 5_400_000_000
    assert msgspec.json.decode(msgspec.json.encode(config), type=LoopConfig) == config


def test_defaults() -> None:
    config = msgspec.convert({}, LoopConfig)
    assert config.attribution_window_us == 600_000_000
    assert config.exploration == SquareCB(gamma_scale=100.0, optimism=0.01)
    assert config.oracle == AutoConfig()
    assert config.keep_prob == 1.0


def test_explores_as_much_by_default_whatever_the_range_of_the_reward() -> None:
    wide = msgspec.convert({"reward_min": -5, "reward_max": 15, "default_reward": 0}, LoopConfig)
    estimates, chances = np.array([0.1, 0.4, 0.9]), LoopConfig().exploration
    spread = Estimates(20.0 * estimates - 5.0, np.array([0.3, 0.2, 0.1]))
    np.testing.assert_allclose(
        wide.exploration.pmf(spread, training_rows=100),
        chances.pmf(Estimates(estimates, spread.deviation), training_rows=100),
    )
    assert msgspec.structs.replace(LoopConfig(), reward_max=4.0).exploration == SquareCB(
        gamma_scale=25.0, optimism=0.01, reward_max=4.0
    )
    # What is given is taken as it is.
    for chosen in (SquareCB(), SquareCB(gamma_scale=100.0, optimism=0.01)):
        table = {"exploration": msgspec.to_builtins(chosen), "reward_max": 15}
        assert msgspec.convert(table, LoopConfig).exploration == chosen


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"attribution_window": "ten minutes"}, "attribution_window: a duration is a number and"),
        ({"attribution_window": "0 s"}, "attribution_window must be positive, got '0 s'"),
        ({"attribution_window": "0.0001 ms"}, "attribution_window must be positive"),
        ({"attribution_window": 600}, "attribution_window"),
        ({"attribution_window": "1" + "0" * 400 + " d"}, "attribution_window: .*at most 365000 d"),
        ({"reward_min": 1.0}, "reward_min must be below reward_max, got 1.0 and 1.0"),
        ({"reward_max": float("inf")}, "reward_max must be finite, got inf"),
        ({"reward_min": float("nan")}, "reward_min must be finite, got nan"),
        ({"default_reward": 2}, r"default_reward must be in .* = \[0, 1\], got 2"),
        ({"default_reward": float("nan")}, "default_reward must be in"),
        ({"keep_prob": 0}, r"keep_prob must be in \(0, 1\], got 0"),
        ({"keep_prob": 1.01}, r"keep_prob must be in \(0, 1\], got 1.01"),
        ({"keep_prob": float("nan")}, r"keep_prob must be in \(0, 1\], got nan"),
        ({"keep_prob": "all"}, "keep_prob"),
        ({"aggregation": "mode"}, "aggregation"),
        ({"learning_mode": "offline"}, "learning_mode"),
        ({"exploration": {"kind": "ucb"}}, "'ucb'.*exploration"),
        ({"exploration": {"kind": "softmax", "temperature": 0}}, "temperature .*exploration"),
        ({"oracle": {"kind": "torch"}}, "'torch'.*oracle"),
        ({"oracle": {"kind": "sklearn", "encoder": {"bits": 9}}}, r"bits must be in .*encoder"),
        ({"exploraton": {}}, "exploraton"),
        ({"guardrails": {"a b": {}}}, "guardrails must have names of .*, got 'a b'"),
        ({"guardrails": {"x" * 64: {}}}, "guardrails must have names of 1 to 63"),
        ({"guardrails": {"x": {"max_fall": -0.1}}}, "max_fall must be at least 0 .*, got -0.1"),
        ({"guardrails": {"x": {"max_fall": float("nan")}}}, "max_fall must be .*, got nan"),
        ({"guardrails": {"x": {"default_reward": 2}}}, r"default_reward must be in .*, got 2"),
        ({"guardrails": {"x": {"reward_min": 1}}}, "reward_min must be below reward_max"),
        ({"guardrails": {"x": {"direction": "up"}}}, "'up'.*guardrails"),
        ({"guardrails": {"x": {"evidence": "proof_of_no_harm"}}}, "max_fall must be above 0 with"),
        ({"guardrails": {"x": {"aggregation": "mode"}}}, "guardrails"),
        ({"guardrails": {"x": {"harm": 1}}}, "harm.*guardrails"),
    ],
    ids=str,
)
def test_names_what_is_wrong(table: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(table, LoopConfig)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 min", 600_000_000),
        ("10min", 600_000_000),
        (" 1 d ", 86_400_000_000),
        ("0.5 ms", 500),
        ("1.5 h", 5_400_000_000),
        ("0 s", 0),
        ("365000 d", 365_000 * 86_400_000_000),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert parse_duration(text) == expected


@given(st.integers(0, 10**5), st.sampled_from(sorted(UNITS)))
@settings(deadline=None)
def test_whole_durations_are_exact(number: int, unit: str) -> None:
    assert parse_duration(f"{number} {unit}") == number * UNITS[unit]


@pytest.mark.parametrize(
    "text",
    [
        *("", "10", "min", "-1 s", "1e3 s", "1 m", "1 week", "1 s 2 ms", "nan s", "inf d"),
        *(".5 s", "1. s", "\u0661 s", "1\n2 s", "400000 d"),
    ],
    ids=ascii,
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(text)


@given(st.text())
@settings(deadline=None)
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    for candidate in (text, f"{text} s", f"1{text}"):
        try:
            assert parse_duration(candidate) >= 0
        except ValueError as error:
            assert "a duration is" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["news", "a", "0", "news-2_b", "a" * 63])
def test_loop_names(name: str) -> None:
    assert valid_loop_name(name)


@pytest.mark.parametrize(
    "name", ["", "News", "-a", "_a", "a b", "a/b", "../a", "a.b", "a\n", "é", "a" * 64]
)
def test_what_is_no_loop_name(name: str) -> None:
    assert not valid_loop_name(name)
