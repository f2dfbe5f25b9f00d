"""The compiled inner loops do what the Python ones do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

import mmh3
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.calibration import PriorCorrection
from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, KeptAction, encode_event
from croupier.policy.exploration import Falcon, FastCB, Greedy, SquareCB, gap_weighting
from croupier.policy.generation import Generation, cold_start
from croupier.policy.kernel import KERNEL
from croupier.policy.oracle import (
    AutoConfig,
    RidgeConfig,
    RidgeOracle,
    TrainingRow,
    VowpalWabbitConfig,
    make_oracle,
)
from croupier.policy.sampling import draw, draw_key, uniform_of_key
from croupier.policy.traffic import Plan

if KERNEL is None:
    assert os.environ.get("CI") != "true", "the compiled kernel was not built"
    pytest.skip("the compiled kernel was not built", allow_module_level=True)
BUILT: Any = KERNEL

CONFIG = EncoderConfig(bits=12)
COMPILED, PLAIN = FeatureEncoder(CONFIG), FeatureEncoder(CONFIG, compiled=False)

NUMBERS = st.floats(width=64) | st.integers() | st.sampled_from([10**400, 3.4e38, 3.5e38, -0.0])
TEXT = st.text(max_size=8) | st.text(st.characters(codec=None), max_size=3)
SCALARS = NUMBERS | TEXT | st.booleans() | st.none()
FEATURES = st.recursive(
    st.dictionaries(TEXT, SCALARS, max_size=6),
    lambda below: st.dictionaries(
        TEXT,
        below | SCALARS | st.lists(NUMBERS, max_size=4) | st.lists(SCALARS | below, max_size=4),
        max_size=6,
    ),
    max_leaves=20,
)
MILD = st.dictionaries(
    st.text(max_size=5), st.floats(-100, 100) | st.text(max_size=5) | st.booleans(), max_size=12
)


def encoded(encoder: FeatureEncoder, features: Any) -> tuple[list[int], list[float]] | str:
    """What comes of features, errors included."""
    try:
        found = encoder.encode_context(features)
    except InvalidInputError as error:
        return str(error)
    assert [str(each.dtype) for each in found] == ["uint64", "float32"]
    return found.indices.tolist(), found.values.tolist()


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(FEATURES)
def test_features_are_encoded_alike(features: Any) -> None:
    assert encoded(COMPILED, features) == encoded(PLAIN, features)


@pytest.mark.parametrize("levels", range(1, 12))
@pytest.mark.parametrize("leaf", [1.0, "x", True, None, {}, {"a": 1}, [], [1.0], ["x"], [[1.0]]])
def test_depth_is_limited_alike(levels: int, leaf: Any) -> None:
    for _ in range(levels):
        leaf = {"x": leaf}
    assert encoded(COMPILED, leaf) == encoded(PLAIN, leaf)


@pytest.mark.parametrize(
    "features",
    [
        {str(number): 1.0 for number in range(63)},
        {str(number): 1.0 for number in range(65)},
        {"k" * 2000: 1.0},
        {"k": "v" * 2000},
        {"k" * 600: {"l" * 600: 1.0}},
        {"v": [0.5] * 1000},
        {"e": 1, "é": 2, "\U0001f600": 3, "\uffff": 4, "z": 5},
        {"": {"": {"": 1.0}}},
        {1: 2.0},
        {"x": (1.0, 2.0)},
        {"x": np.float64(2.0)},
        {"x": 1j},
        {"x": {"y": b"bytes"}},
        ["not", "an", "object"],
    ],
    ids=lambda features: str(features)[:30],
)
def test_what_is_unusual_comes_out_alike(features: Any) -> None:
    try:
        expected = encoded(PLAIN, features)
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
        with pytest.raises(type(error)):
            encoded(COMPILED, features)
    else:
        assert encoded(COMPILED, features) == expected


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=40), st.integers(0, 2**32 - 1))
def test_hashes_are_murmurs(name: str, seed: int) -> None:
    found = BUILT.encode({name: 1.0}, seed, None)
    assert found is not None
    assert found[0].tolist() == [mmh3.hash(name.encode(), seed, signed=False)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(MILD, st.lists(MILD, min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_scores_are_the_same_but_for_rounding(
    context: dict[str, Any], features: list[dict[str, Any]], seed: int
) -> None:
    weights = np.random.default_rng(seed).normal(size=1 << CONFIG.bits).astype(np.float32)
    actions = [Action(str(place), each) for place, each in enumerate(features)]
    decision = COMPILED.encode(context, actions)
    np.testing.assert_allclose(
        COMPILED.linear_scores(weights, decision),
        PLAIN.linear_scores(weights, decision),
        rtol=1e-12,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("prior", "bits", "action_id"),
    [("weights", 14, True), ("parts", 14, False), ("parts", 10, True)],
)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_errors_are_the_same_but_for_rounding(
    data: st.DataObject, prior: Any, bits: int, action_id: Any
) -> None:
    """Of columns that occurred, that never did, and of several that are hashed into one."""
    encoder = EncoderConfig(bits=bits, action_id=action_id)
    drawn = data.draw(st.lists(st.tuples(MILD, st.lists(MILD, min_size=1, max_size=4))))
    requests: list[tuple[Any, Any]] = [({"a": 1.0}, [{"b": "c"}]), *drawn]
    rows = [
        TrainingRow(
            context=context,
            actions=[Action(str(place), each) for place, each in enumerate(features)],
            chosen=0,
            propensity=1.0,
            reward=float(number % 2),
        )
        for number, (context, features) in enumerate(requests)
    ]
    oracle = RidgeOracle(RidgeConfig(prior=prior, encoder=encoder)).fit(rows)
    asked = data.draw(MILD), [Action(str(place)) for place in range(6)] + [*rows[-1].actions]
    compiled = oracle.estimate(*asked, frozenset({"deviation"})).deviation
    oracle.do_without_kernel()
    plain = oracle.estimate(*asked, frozenset({"deviation"})).deviation
    assert compiled is not None
    assert plain is not None
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def test_what_a_ridge_regression_chooses_is_left_to_python() -> None:
    """It has standard errors, and an exploration that looks at them draws by more than means."""
    row = TrainingRow(context={}, actions=[Action("a")], chosen=0, propensity=1.0, reward=1.0)
    oracle = make_oracle(AutoConfig(encoder=CONFIG)).fit([row])
    generation = Generation("loop", 3, SquareCB(optimism=0.01), oracle, None)
    assert generation.choose({}, [Action("a"), Action("b")], 0.5) is None


def test_errors_whose_digits_cancel_are_left_to_python() -> None:
    places = np.array([0, 1, -1, -1], dtype=np.int32)
    near = np.array([[1.0, -1.0], [-1.0, 1.0]])
    precisions = np.full(4, 0.5)
    context = (np.array([0, 1], dtype=np.uint64), np.array([1.0, 1.0], dtype=np.float32))
    nothing = (np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.float32))
    assert BUILT.variances(places, near, precisions, False, context, [nothing]) is None
    apart = near + 1e-3 * np.eye(2)
    found = BUILT.variances(places, apart, precisions, False, context, [nothing])
    np.testing.assert_allclose(found, [2e-3], rtol=1e-9)
    # Column 3 never occurred; products with what the context has are one column or another.
    own = (np.array([3], dtype=np.uint64), np.array([2.0], dtype=np.float32))
    sums: dict[int, float] = defaultdict(float, {3: 2.0})
    for column in (0, 1):
        sums[(column * 16777619 ^ 3) & 3] += 2.0
    known = np.array([1.0 + sums.pop(0, 0.0), 1.0 + sums.pop(1, 0.0)])
    expected = known @ apart @ known + sum(each**2 for each in sums.values()) / 0.5
    found = BUILT.variances(places, apart, precisions, False, context, [own])
    np.testing.assert_allclose(found, [expected], rtol=1e-9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e308, 1e308) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60),
    st.floats(0.0, 1e308),
)
def test_gaps_are_weighted_alike(scores: list[float], gamma: float) -> None:
    exploration = SquareCB(gamma_scale=gamma, gamma_exponent=0.0)
    compiled = exploration.pmf(np.array(scores))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_weighting, "KERNEL", None)
        plain = exploration.pmf(np.array(scores))
    np.testing.assert_allclose(compiled, plain, rtol=1e-12, atol=1e-15)
    assert abs(compiled.sum() - 1.0) < 1e-12


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    MILD,
    st.lists(MILD, min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 1e6),
    st.text(max_size=8),
)
def test_a_draw_is_what_its_parts_give(
    context: dict[str, Any], features: list[dict[str, Any]], seed: int, gamma: float, name: str
) -> None:
    weights = np.random.default_rng(seed).normal(size=1 << CONFIG.bits).astype(np.float32)
    actions = [Action(str(place), each) for place, each in enumerate(features)]
    key = draw_key("loop", 1, name)
    found = COMPILED.choose(weights, context, actions, gamma, uniform_of_key(key))
    assert found is not None
    pmf, scores, chosen = found
    expected = COMPILED.linear_scores(weights, COMPILED.encode(context, actions))
    assert scores == expected.tolist()
    exploration = SquareCB(gamma_scale=gamma, gamma_exponent=0.0)
    assert pmf == exploration.pmf(expected).tolist()
    # What is logged can be replayed bit for bit.
    assert chosen == draw(np.array(pmf), key)
    assert PLAIN.choose(weights, context, actions, gamma, 0.5) is None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 7.0, 1e3]), min_size=1, max_size=200),
    st.floats(0.0, 1e9),
    st.integers(0, 2**53 - 1),
)
def test_draws_invert_the_pmf_alike(weights: list[float], gamma: float, number: int) -> None:
    table = np.zeros(1024, dtype=np.float32)
    table[: len(weights)] = weights
    nothing = (np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.float32))
    one = np.ones(1, dtype=np.float32)
    actions = [(np.array([place], dtype=np.uint64), one) for place in range(len(weights))]
    pmf, _, chosen = BUILT.choose(table, nothing, actions, gamma, number * 2.0**-53)
    assert chosen == draw(np.array(pmf), f"{number << 11:016x}")


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_scores_that_are_not_finite_are_left_to_python(bad: float) -> None:
    weights = np.full(1 << CONFIG.bits, bad, dtype=np.float32)
    assert COMPILED.choose(weights, {}, [Action("a")], 1.0, 0.5) is None
    assert COMPILED.choose(weights, {}, [], 1.0, 0.5) is None


@pytest.mark.parametrize(
    ("exploration", "simple"),
    [
        (SquareCB(), True),
        (SquareCB(floor=0.01), False),
        (SquareCB(optimism=0.01), True),
        (Falcon(), True),
        (Falcon(floor=0.01), False),
        (FastCB(), False),
        (Greedy(), False),
    ],
)
@pytest.mark.parametrize(
    "kind",
    [VowpalWabbitConfig(encoder=CONFIG), AutoConfig(max_columns=1, encoder=CONFIG)],
    ids=["vowpal_wabbit", "auto"],
)
def test_decisions_are_the_same_without_it(exploration: Any, *, simple: bool, kind: Any) -> None:
    rows = [
        TrainingRow(
            context={"c": 1.0},
            actions=[Action(name, {"x": x})],
            chosen=0,
            propensity=0.5,
            reward=reward,
        )
        for name, x, reward in [("a", 1.0, 1.0), ("b", -1.0, 0.0), ("a", 0.5, 1.0)] * 30
    ]
    oracle = make_oracle(kind).fit(rows)
    generation = Generation("loop", 3, exploration, oracle, None)
    request = DecisionRequest(
        actions=[Action("a", {"x": 1.0}), Action("b", {"x": 2.0}), Action("c", {"x": -1.0})],
        context={"c": 0.5},
    )
    assert (generation.choose(request.context, request.actions, 0.5) is not None) == simple
    oracle.calibration_ = (PriorCorrection(ratio=2.0),)
    assert generation.choose(request.context, request.actions, 0.5) is None
    oracle.calibration_ = ()
    for name in range(200):
        at = Circumstances(str(name), 1)
        compiled = decide(request, Plan(generation), at)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Generation, "choose", lambda *_: None)
            assert decide(request, Plan(generation), at) == compiled


@settings(deadline=None, derandomize=True)
@given(MILD, st.text(min_size=1, max_size=5))
def test_an_event_of_kept_actions_has_the_same_bytes(features: dict[str, Any], name: str) -> None:
    def event(kind: type[Action], *, spelt: bool = False) -> bytes:
        actions: list[Action] = [kind(name, features), kind(f"{name}!", {})]
        if spelt:
            actions = [each.spelt() for each in actions if isinstance(each, KeptAction)]
        request = DecisionRequest(actions=actions, context=features, decision_id="d")
        plan, at = Plan(cold_start("loop")), Circumstances("d", 1)
        return encode_event(decide(request, plan, at))

    assert event(KeptAction) == event(KeptAction, spelt=True) == event(Action)


def test_buffers_are_looked_up_by_their_bytes() -> None:
    known = {b"a": 1, b"bb": 2}
    texts = [b"bb", msgspec.Raw(b"a"), memoryview(b"abb")[1:], bytearray(b"c")]
    assert BUILT.look_up(known, texts) == [2, 1, 2, None]
    assert BUILT.look_up(known, []) == []
    mistakes: list[tuple[Any, Any]] = [(known, (b"a",)), ([], [b"a"]), (known, ["a"])]
    for wrong in mistakes:
        with pytest.raises(TypeError):
            BUILT.look_up(*wrong)


def test_features_are_counted() -> None:
    actions = [Action("a", {"x": 1, "y": "z"}), Action("b"), Action("c", {"v": [1.0, 2.0, 3.0]})]
    encoded = COMPILED.encode({}, actions).actions
    assert BUILT.count(encoded) == 3 + 1 + 4
    for wrong in ((encoded[0],), [None], [encoded[0][:1]]):
        with pytest.raises(TypeError, match="list of pairs"):
            BUILT.count(wrong)


def test_wrong_arguments_are_errors() -> None:
    pair = (np.zeros(2, dtype=np.uint64), np.zeros(2, dtype=np.float32))
    weights = np.zeros(1024, dtype=np.float32)
    for wrong in (
        (weights.astype(np.float16), pair, [pair]),
        (weights[::2], pair, [pair]),
        (weights, pair[:1], [pair]),
        (weights, pair, [(pair[0], pair[1][:1])]),
        (weights, pair, (pair,)),
        (weights, pair, [None]),
    ):
        with pytest.raises(TypeError, match="expected"):
            BUILT.score(*wrong)
    with pytest.raises(ValueError, match="power of two"):
        BUILT.score(weights[:1000], pair, [pair])
    places, square, four = np.zeros(1024, dtype=np.int32), np.eye(1), np.ones(4)
    for mistake in (
        (weights, square, four, True, pair, [pair]),
        (places, square[0], four, True, pair, [pair]),
        (places, np.ones((1, 2)), four, True, pair, [pair]),
        (places, square, four[:3], True, pair, [pair]),
        (places, square, four, True, pair, [None]),
    ):
        with pytest.raises(TypeError, match="expected"):
            BUILT.variances(*mistake)
    with pytest.raises(ValueError, match="outside the matrix"):
        BUILT.variances(places + 1, square, four, True, (pair[0], pair[1] + 1), [pair])
    for wrong_scores in (weights, np.zeros(0), [1.0], np.zeros((2, 2))):
        with pytest.raises(TypeError, match="gap_weights takes"):
            BUILT.gap_weights(wrong_scores, 1.0)
    with pytest.raises(OverflowError):
        BUILT.encode({}, 2**70, None)
    with pytest.raises(TypeError):
        BUILT.encode({})


def test_it_can_be_done_without() -> None:
    code = "from croupier.policy.kernel import KERNEL; print(KERNEL)"
    environment = os.environ | {"CROUPIER_KERNEL": "off"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "None\n"
