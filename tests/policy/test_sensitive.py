"""Sensitive attributes never become features, on any route, nor in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.learner_log import learnable
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, KeptAction
from croupier.policy.fairness.groups import FairnessConfig, FairnessLimits, parts_of
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.requests import (
    DecisionRequest,
    RankRequest,
    SlateRequest,
    Slot,
    SlotsRequest,
)
from croupier.policy.sensitive import SensitiveFeatures
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from collections.abc import Callable

GENDER = FairnessConfig(sensitive=("gender", "user.age"))
ACTIONS = [Action("a", {"price": 1}), Action("b", {"price": 2})]


def refused(context: dict[str, Any], config: FairnessConfig = GENDER) -> str | None:
    """Field of the error; None if the context is let in."""
    try:
        SensitiveFeatures(config).check(DecisionRequest(actions=ACTIONS, context=context))
    except InvalidInputError as error:
        return error.field
    return None


@pytest.mark.parametrize(
    ("context", "field"),
    [
        ({"gender": "f"}, "context.gender"),
        ({"Gender": None}, "context.Gender"),
        ({"user": {"gender": "f"}}, "context.user.gender"),
        ({"gender": {"code": 1}}, "context.gender"),
        ({"user.gender": "f"}, "context.user.gender"),
        ({"gender=f": 1}, "context.gender=f"),
        ({"gender[0]": 1}, "context.gender[0]"),
        ({"user": {"age": 4}}, "context.user.age"),
        ({"user.age": 4}, "context.user.age"),
        ({"app": {"user": [{"x": 1}, {"age": 4}]}}, "context.app.user.age"),
        ({"gender_neutral": 1, "age": 4, "user": {"pages": [1, 2], "agent": "x"}}, None),
        ({}, None),
    ],
)
def test_what_is_refused_in_a_context(context: dict[str, Any], field: str | None) -> None:
    guard = SensitiveFeatures(GENDER)
    assert refused(context) == field
    assert guard.has_any(context, ACTIONS) is (field is not None)
    # Shapes that were met before are no exception.
    assert guard.has_any(context, ACTIONS) is (field is not None)


def test_a_shape_that_is_harmless_in_one_place_is_not_in_another() -> None:
    guard = SensitiveFeatures(GENDER)
    assert not guard.has_any({"age": 4}, ACTIONS)
    assert guard.has_any({"user": {"age": 4}}, ACTIONS)


@settings(deadline=None)
@given(
    st.recursive(
        st.integers(0, 9),
        lambda inner: st.dictionaries(st.sampled_from(["x", "y", "user", "gender"]), inner),
        max_leaves=12,
    )
)
def test_the_guard_agrees_with_what_the_encoder_makes_of_a_context(value: Any) -> None:
    """The names of all features, walked by something else, tell whether one is sensitive."""

    def names(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return [path]
        return [
            path,
            *(name for key, each in node.items() for name in names(each, f"{path}.{key}")),
        ]

    context = {"root": value}
    expected = any("gender" in name.split(".") for name in names(context, "context"))
    assert (refused(context) is not None) is expected


def test_what_is_allowed_after_all() -> None:
    config = msgspec.structs.replace(GENDER, allow_as_features=("actions.gender",))
    clothes = Action("dress", {"gender": "f"})
    guard = SensitiveFeatures(config)
    guard.check(DecisionRequest(actions=[clothes]))
    with pytest.raises(InvalidInputError, match=r"context\.gender"):
        guard.check(DecisionRequest(actions=[clothes], context={"gender": "f"}))
    with pytest.raises(InvalidInputError, match=r"actions\[1\]\.features\.gender"):
        SensitiveFeatures(GENDER).check(DecisionRequest(actions=[ACTIONS[0], clothes]))


def test_actions_of_a_catalogue_are_looked_through_once_by_every_guard() -> None:
    action = KeptAction("a", {"gender": "f"})
    request = DecisionRequest(actions=[action])
    allowing = SensitiveFeatures(
        msgspec.structs.replace(GENDER, allow_as_features=("actions.gender",))
    )
    for _ in range(2):
        allowing.check(request)
        with pytest.raises(InvalidInputError, match=r"actions\[0\]\.features\.gender"):
            SensitiveFeatures(GENDER).check(request)


def test_every_kind_of_decision_is_refused_alike() -> None:
    loops = {"shop": LoopConfig(fairness=GENDER), "free": LoopConfig()}
    scorer = Scorer(loops)
    for loop, config in loops.items():
        scorer.swap(Plan(cold_start(loop, config.exploration)))
    bad: dict[str, Any] = {"gender": "f"}
    audit: dict[str, Any] = {"gender": "f"}

    def slots(context: dict[str, Any], features: dict[str, Any]) -> SlotsRequest:
        top = Slot(id="top", features=features)
        return SlotsRequest(actions=ACTIONS, slots=[top], context=context, audit=audit)

    def asks(loop: str, context: dict[str, Any]) -> list[Callable[[], object]]:
        plain = DecisionRequest(actions=ACTIONS, context=context, audit=audit)
        ranked = RankRequest(actions=ACTIONS, context=context, audit=audit, depth=2)
        slate = SlateRequest(actions=ACTIONS, context=context, audit=audit, size=2)
        return [
            lambda: scorer.decide(loop, plain),
            lambda: scorer.rank(loop, ranked),
            lambda: scorer.decide_slate(loop, slate),
            lambda: scorer.decide_slots(loop, slots(context, {})),
        ]

    for call in [*asks("free", bad), *asks("shop", {})]:
        call()
    for call in asks("shop", bad):
        with pytest.raises(InvalidInputError) as error:
            call()
        assert error.value.field == "context.gender"
    with pytest.raises(InvalidInputError, match=r"slots\[0\]\.features\.gender"):
        scorer.decide_slots("shop", slots({}, bad))


def test_rows_with_sensitive_features_are_not_learned_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = random_world(3, 3, seed=1).log(cold_start("shop"), 50, seed=2)
    marked = pl.when(pl.int_range(pl.len()) % 5 == 0)
    log = log.with_columns(
        context=marked.then(pl.lit('{"x":"x0","user":{"Gender":"f"}}')).otherwise("context")
    )
    kept = learnable("shop", LoopConfig(fairness=GENDER), log)
    assert len(kept) == 40
    assert not kept["context"].str.contains("Gender").any()
    assert "10 interactions have sensitive features" in caplog.text
    assert learnable("shop", LoopConfig(), log).equals(log)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attributes": ["gender", "gender"]}, "attributes must be different"),
        ({"attributes": ["gender * "]}, "attributes must be names"),
        ({"attributes": ["a*b*c*d"]}, "attributes must be names"),
        ({"min_cell": 1}, "min_cell must be at least 2"),
        ({"max_groups": 1}, "max_groups must be at least 2"),
        ({"max_actions": 0}, "max_actions must be at least 1"),
        ({"alpha": 0.5}, "alpha must be in"),
        ({"min_rise": -1}, "min_rise must be"),
        ({"sensitive": ["a..b"]}, "sensitive must be names or dotted paths"),
        ({"sensitive": ["a"], "allow_as_features": ["b"]}, "must name what sensitive names"),
        ({"limits": {"max_value_gap": 0.1}}, "limits need attributes"),
        ({"attributes": ["a"], "limits": {"max_value_gap": -1}}, "max_value_gap must be"),
        ({"attributes": ["a"], "limits": {"max_exposure_gap": 2}}, "max_exposure_gap must be"),
        ({"attributes": ["a"], "limits": {"min_exposure_ratio": 0}}, "min_exposure_ratio must"),
        ({"attributes": ["a"], "limits": {"exposure_actions": ["x"]}}, "exposure_actions needs"),
        (
            {
                "attributes": ["a"],
                "limits": {"max_value_gap": 0.0, "evidence": "proof_of_no_harm"},
            },
            "max_value_gap must not be 0",
        ),
        ({"atributes": ["a"]}, "unknown field"),
    ],
)
def test_configurations_that_can_t_be_meant_are_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({"fairness": given}, LoopConfig)


def test_what_an_attribute_is_made_of() -> None:
    assert parts_of(" gender ") == ("gender",)
    assert parts_of("audit.gender*user.age") == ("audit.gender", "user.age")
    assert FairnessLimits(max_value_gap=0.1, min_exposure_ratio=0.8).asked == 2


def test_a_context_without_sensitive_features_encodes_as_before() -> None:
    """Refusing changes nothing about what is let in."""
    context = {"user": {"pages": [1.0, 2.0]}, "x": "y"}
    before = FeatureEncoder(EncoderConfig()).encode_context(context)
    assert refused(context) is None
    after = FeatureEncoder(EncoderConfig()).encode_context(context)
    assert before.indices.tolist() == after.indices.tolist()
