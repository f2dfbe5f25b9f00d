"""Feature encoding: what becomes a feature, what is refused, and the one scoring formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy import encoding
from croupier.policy.encoding import EncodedFeatures, EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action
from tests.policy.strategies import FEATURES, action_lists

ENCODER = FeatureEncoder(EncoderConfig(bits=18))


def values(features: dict[str, Any]) -> list[float]:
    """Values of a context's features, without the constant."""
    return [float(value) for value in ENCODER.encode_context(features).values[1:]]


def indices(features: dict[str, Any]) -> list[int]:
    """Indices of a context's features, without the constant."""
    return [int(index) for index in ENCODER.encode_context(features).indices[1:]]


class TestFeatures:
    @pytest.mark.parametrize(
        ("features", "expected"),
        [
            ({}, []),
            ({"age": 3}, [3.0]),
            ({"age": -0.5}, [-0.5]),
            ({"new": True, "old": False}, [1.0, 0.0]),
            ({"gone": None}, []),
            ({"city": "Bern"}, [1.0]),
            ({"tags": ["a", "b"]}, [1.0, 1.0]),
            ({"empty": [], "nothing": {}}, []),
            ({"pixels": [0.5, 2, 3]}, [0.5, 2.0, 3.0]),
            ({"mixed": [1, None, "x", True, {"deep": 4}]}, [1.0, 1.0, 1.0, 4.0]),
            ({"user": {"device": {"os": "x", "ram": 8}}}, [1.0, 8.0]),
            ({"matrix": [[1, 2], [3, 4]]}, [1.0, 2.0, 3.0, 4.0]),
            ({"big": 2**64 + 1}, [float(2**64)]),
            ({"tiny": 1e-300}, [0.0]),
        ],
        ids=str,
    )
    def test_have_these_values(self, features: dict[str, Any], expected: list[float]) -> None:
        assert values(features) == expected

    def test_have_these_names(self) -> None:
        named: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "flat": ({"a": {"b": 1}}, {"a": {"b": 7}}),
            "number in a list": ({"v": [5, 6]}, {"v": [0.5, 0.25]}),
            "number in a mixed list": ({"v": [5, 6]}, {"v": [5, True]}),
            "set of strings": ({"t": ["x", "y"]}, {"t": "x", "t2": None}),
        }
        for what, (left, right) in named.items():
            shared = set(indices(left)) & set(indices(right))
            assert shared, what
        assert indices({"t": ["x", "y"]}) == indices({"t": ["x"]}) + indices({"t": ["y"]})
        assert indices({"t": ["y"]}) == indices({"t": "y"})
        assert indices({"v": [5, 6]}) != indices({"v": [6]})

    def test_that_differ_have_hashes_that_differ(self) -> None:
        contexts: list[dict[str, Any]] = [
            {"a": 1},
            {"b": 1},
            {"a": "1"},
            {"a": "2"},
            {"a": [1]},
            {"a": [[1]]},
            {"a": {"a": 1}},
            {"": 1},
            {"A": 1},
            {"é": 1},
            {"e\u0301": 1},
            {"constant": 1},
        ]
        hashes = [tuple(indices(context)) for context in contexts]
        assert len(set(hashes)) == len(contexts)

    def test_golden_hashes(self) -> None:
        # Should this fail: generations trained so far would be read with the wrong features.
        context = ENCODER.encode_context({"age": 3, "city": "Zürich", "v": [1.5, 2.5]})
        action = ENCODER.encode_action(Action("sku-1", {"price": 9.5}))
        assert context.indices.tolist() == [3202035128, 1281077134, 142520951, 492498834, 220260695]
        assert action.indices.tolist() == [1220298365, 42186328]
        columns = ENCODER.columns(context, action)
        assert columns.indices.tolist()[-3:] == [83725, 38030, 58797]

    def test_written_flat_or_nested_are_the_same_feature(self) -> None:
        """A decision, not an accident: see the docstring of FeatureEncoder."""
        assert indices({"a.b": 1}) == indices({"a": {"b": 1}})
        assert indices({"x=y": 1}) == indices({"x": "y"})

    def test_of_an_application_never_share_the_weights_of_ids_and_constant(self) -> None:
        plain = ENCODER.encode_action(Action("a"))
        for features in ({"id": "b"}, {"id=b": 1}, {"": "b"}, {"b": 1}, {"=b": 1}):
            named = ENCODER.encode_action(Action("a", features))
            assert named.indices[0] == plain.indices[0]
            assert named.indices[1] != ENCODER.encode_action(Action("b")).indices[0]
        constant = ENCODER.encode_context({}).indices[0]
        for name in ("constant", "", "=", "=constant"):
            assert constant not in indices({name: 1})

    def test_of_context_and_action_are_kept_apart(self) -> None:
        assert (
            indices({"price": 1})[0]
            not in ENCODER.encode_action(Action("a", {"price": 1})).indices.tolist()
        )

    def test_can_leave_out_the_id(self) -> None:
        encoder = FeatureEncoder(EncoderConfig(action_id=False))
        assert encoder.encode_action(Action("a")).indices.size == 0
        assert encoder.encode_action(Action("a", {"x": 2})).values.tolist() == [2.0]

    def test_nest_up_to_eight_levels(self) -> None:
        assert values(nested(8)) == [1.0]
        with pytest.raises(InvalidInputError, match=r"context\.x\.x.*at most 8 levels"):
            ENCODER.encode_context(nested(9))
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(InvalidInputError, match="at most 8 levels"):
            ENCODER.encode_context({"x": endless})

    @pytest.mark.parametrize(
        "bad",
        [float("nan"), float("inf"), -float("inf"), 1e300, 10**400, -(10**39), 3.41e38],
        ids=str,
    )
    def test_beyond_float32_are_refused(self, bad: float) -> None:
        for features in ({"x": bad}, {"x": [1.0, bad]}, {"x": {"y": [bad, "s"]}}):
            with pytest.raises(InvalidInputError, match=r"^context: .*±3.4e\+38"):
                ENCODER.encode_context(features)
            with pytest.raises(InvalidInputError, match=r"^actions\[id=a\]\.features: "):
                ENCODER.encode_action(Action("a", features))

    @pytest.mark.parametrize(
        "bad", [object(), b"x", {1, 2}, 1j], ids=lambda bad: type(bad).__name__
    )
    def test_of_unknown_types_are_refused(self, bad: object) -> None:
        with pytest.raises(InvalidInputError, match=rf"context\.u\.x: .*{type(bad).__name__}"):
            ENCODER.encode_context({"u": {"x": bad}})

    @pytest.mark.parametrize(
        "features",
        [
            {"x": "\ud800"},
            {"\udfff": 1},
            {"\ud800": [1.0, 2.0]},
            {"x": ["a", "\ud800"]},
            {"x": {"\ud800": "y"}},
        ],
        ids=ascii,
    )
    def test_that_are_not_unicode_are_refused(self, features: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError, match=r"^context\..*valid Unicode") as caught:
            ENCODER.encode_context(features)
        # The message itself has to be fit for a response.
        str(caught.value).encode()
        with pytest.raises(InvalidInputError, match="valid Unicode"):
            ENCODER.encode_action(Action("a", features))

    def test_ids_that_are_not_unicode_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="valid Unicode") as caught:
            ENCODER.encode_action(Action("\ud800"))
        str(caught.value).encode()

    def test_names_that_are_not_strings_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match=r"context\.u: .*to be strings"):
            ENCODER.encode_context({"u": {1: 2}})

    @given(
        st.recursive(
            st.none() | st.floats() | st.text(st.characters()) | st.integers(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
        )
    )
    @settings(deadline=None)
    def test_are_encoded_or_refused_whatever_they_are(self, value: Any) -> None:
        try:
            encoded = ENCODER.encode_context({"x": value})
        except InvalidInputError:
            return
        assert encoded.indices.dtype == np.uint64
        assert encoded.values.dtype == np.float32
        assert encoded.indices.shape == encoded.values.shape
        assert np.isfinite(encoded.values).all()

    @pytest.mark.parametrize("bits", [9, 27, -1])
    def test_need_a_table_of_sensible_size(self, bits: int) -> None:
        with pytest.raises(ValueError, match=rf"bits must be in \[10, 26\], got {bits}"):
            EncoderConfig(bits=bits)


class TestScores:
    @given(FEATURES, action_lists(), st.sampled_from([10, 18]), st.booleans())
    @settings(deadline=None, max_examples=50)
    def test_are_the_dot_product_with_the_columns(
        self, context: dict[str, Any], actions: list[Action], bits: int, action_id: bool
    ) -> None:
        encoder = FeatureEncoder(EncoderConfig(bits=bits, action_id=action_id))
        weights = np.random.default_rng(0).normal(size=1 << bits).astype(np.float32)
        decision = encoder.encode(context, actions)
        scores = encoder.linear_scores(weights, decision)
        assert scores.shape == (len(actions),)
        for score, action in zip(scores, decision.actions, strict=True):
            columns = encoder.columns(decision.context, action)
            terms = weights[columns.indices].astype(np.float64) * columns.values
            # Relative to the size of the terms: their sum may cancel.
            assert abs(score - terms.sum()) <= 1e-12 * np.abs(terms).sum()

    @given(
        st.lists(st.tuples(FEATURES, FEATURES), min_size=1, max_size=3),
        st.integers(min_value=10, max_value=18),
        st.booleans(),
    )
    def test_of_many_are_those_of_each(
        self, pairs: list[tuple[dict[str, Any], dict[str, Any]]], bits: int, action_id: bool
    ) -> None:
        encoder = FeatureEncoder(EncoderConfig(bits=bits, action_id=action_id))
        contexts = [encoder.encode_context(context) for context, _ in pairs]
        actions = [
            encoder.encode_action(Action(f"a{number}", features))
            for number, (_, features) in enumerate(pairs)
        ]
        lines = encoder.lines(contexts, actions)
        for number, (context, action) in enumerate(zip(contexts, actions, strict=True)):
            mine = slice(lines.ends[number], lines.ends[number + 1])
            columns = encoder.columns(context, action)
            assert (lines.indices[mine] == columns.indices.astype(np.int64)).all()
            assert (lines.values[mine] == columns.values).all()
        assert lines.ends[-1] == len(lines.indices) == len(lines.values)

    def test_of_large_features_do_not_overflow(self) -> None:
        weights = np.ones(1 << 18, dtype=np.float32)
        decision = ENCODER.encode({"x": 1e38}, [Action("a", {"y": 1e38})])
        columns = ENCODER.columns(decision.context, decision.actions[0])
        assert columns.values.max() == pytest.approx(1e76, rel=1e-6)
        assert ENCODER.linear_scores(weights, decision) == pytest.approx([1e76], rel=1e-6)

    @given(st.data(), FEATURES, action_lists())
    @settings(deadline=None, max_examples=50)
    def test_do_not_depend_on_the_order_of_keys(
        self, data: st.DataObject, context: dict[str, Any], actions: list[Action]
    ) -> None:
        """Bit for bit: a client that retries may serialize its maps in another order."""
        weights = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)
        shuffled = [Action(each.id, shuffle(data, each.features)) for each in actions]
        np.testing.assert_array_equal(
            ENCODER.linear_scores(weights, ENCODER.encode(shuffle(data, context), shuffled)),
            ENCODER.linear_scores(weights, ENCODER.encode(context, actions)),
        )

    @given(st.data(), FEATURES, action_lists())
    @settings(deadline=None, max_examples=50)
    def test_follow_the_actions_when_they_are_permuted(
        self, data: st.DataObject, context: dict[str, Any], actions: list[Action]
    ) -> None:
        weights = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)
        order = data.draw(st.permutations(range(len(actions))))
        permuted = ENCODER.encode(context, [actions[index] for index in order])
        straight = ENCODER.linear_scores(weights, ENCODER.encode(context, actions))
        np.testing.assert_array_equal(ENCODER.linear_scores(weights, permuted), straight[order])

    def test_products_follow_vowpal_wabbits_formula(self) -> None:
        context = EncodedFeatures(
            np.array([3, 2**32 - 1], dtype=np.uint64), np.array([2.0, 3.0], dtype=np.float32)
        )
        action = EncodedFeatures(np.array([5], dtype=np.uint64), np.array([7.0], dtype=np.float32))
        columns = ENCODER.columns(context, action)
        mask = 2**18 - 1
        products = [((16777619 * index) ^ 5) & mask for index in (3, 2**32 - 1)]
        assert columns.indices.tolist() == [3, (2**32 - 1) & mask, 5, *products]
        assert columns.values.tolist() == [2.0, 3.0, 7.0, 14.0, 21.0]


class TestCache:
    """Memory has to stay bounded whatever is sent; what is forgotten is merely hashed again."""

    def test_of_names_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "_CACHED_HASHES", 100)
        encoder = FeatureEncoder(EncoderConfig(), compiled=False)
        before = encoder.encode_context({"q": "text 0"})
        for i in range(1000):
            encoder.encode_context({"q": f"text {i}", "tags": [f"tag {i}"]})
            assert len(encoder._hashes) <= 100
            words = [len(words) for shape in encoder._shapes.values() for *_, words in shape]
            assert sum(words) <= 100
        assert encoder.encode_context({"q": "text 0"}).indices.tolist() == before.indices.tolist()

    def test_holds_no_long_texts(self) -> None:
        encoder = FeatureEncoder(EncoderConfig(), compiled=False)
        for _ in range(2):
            assert encoder.encode_context({"essay": "x" * 100_000}).values.size == 2
        encoder.encode_context({"x" * 100_000: [1.0]})
        assert sum(len(name) for _, name in encoder._hashes) < 1000
        assert not any(words for shape in encoder._shapes.values() for *_, words in shape)
        assert sum(len(path) for _, path, _ in encoder._vectors) < 1000

    def test_of_vectors_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "_CACHED_POSITIONS", 5000)
        encoder = FeatureEncoder(EncoderConfig(), compiled=False)
        before = encoder.encode_context({"v": [1.0] * 10})
        for length in [*range(300), 6000]:
            encoder.encode_context({"v": [1.0] * length})
            assert sum(map(len, encoder._vectors.values())) <= 5000
            assert len(encoder._vectors) <= 500
        after = encoder.encode_context({"v": [1.0] * 10})
        assert after.indices.tolist() == before.indices.tolist()

    def test_of_the_members_of_objects_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("croupier.policy.encoding._CACHED_POSITIONS", 5000)
        encoder = FeatureEncoder(EncoderConfig(), compiled=False)
        before = encoder.encode_context({"b": 2.0, "a": "x", "c": {"d": True}})
        for user in range(2000):
            encoder.encode_context({f"user-{user}": 1.0, "v": [1.0] * (user % 40)})
            kept = sum(map(len, encoder._shapes.values())), sum(map(len, encoder._vectors.values()))
            assert 8 * kept[0] + kept[1] <= 5000
        encoder.encode_context({f"{number:04}": 1.0 for number in range(1000)})
        assert max(map(len, encoder._shapes.values())) < 1000
        after = encoder.encode_context({"c": {"d": True}, "a": "x", "b": 2.0})
        assert after.indices.tolist() == before.indices.tolist()
        assert after.values.tolist() == before.values.tolist()

    def test_of_names_that_look_alike_keeps_them_apart(self) -> None:
        encoder = FeatureEncoder(EncoderConfig(), compiled=False)
        for value in ({"a": {"b": 1.0}}, {"a.b": 1.0}):
            fresh = FeatureEncoder(EncoderConfig(), compiled=False).encode_context(value)
            assert encoder.encode_context(value).indices.tolist() == fresh.indices.tolist()
        for bad in ({1: 1.0}, {True: 1.0}, {"x": {None: 1.0}}):
            with pytest.raises(InvalidInputError, match="names of features to be strings"):
                encoder.encode_context(bad)  # type: ignore[arg-type]


def nested(levels: int) -> dict[str, Any]:
    value: Any = 1.0
    for _ in range(levels):
        value = {"x": value}
    assert isinstance(value, dict)
    return value


def shuffle(data: st.DataObject, value: Any) -> Any:
    if isinstance(value, dict):
        keys = data.draw(st.permutations(list(value)))
        return {key: shuffle(data, value[key]) for key in keys}
    if isinstance(value, list):
        return [shuffle(data, item) for item in value]
    return value


def test_products_are_bounded() -> None:
    encoder = FeatureEncoder(EncoderConfig(), compiled=False)
    wide = Action("a", {"v": [1.0] * 4000})
    with pytest.raises(InvalidInputError, match=r"context: expected at most 10,000,000 products"):
        encoder.encode({"v": [1.0] * 4000}, [wide])


def test_scores_do_not_depend_on_the_size_of_a_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FeatureEncoder(EncoderConfig(bits=12))
    weights = np.random.default_rng(5).normal(size=1 << 12).astype(np.float32)
    actions = [Action(str(k), {"v": [0.1 * k] * (k % 4)}) for k in range(9)]
    decision = encoder.encode({"v": [0.3, -2.0, 5.0]}, actions)
    at_once = encoder.linear_scores(weights, decision)
    monkeypatch.setattr("croupier.policy.encoding._GATHERED", 4)
    np.testing.assert_allclose(encoder.linear_scores(weights, decision), at_once, rtol=1e-13)
