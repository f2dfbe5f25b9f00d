"""Every request that is refused: the status, the error's body, and the field it names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.conftest import MAX_BODY_BYTES

if TYPE_CHECKING:
    from tests.service.running import Caller, Server

A, B = {"id": "a"}, {"id": "b"}
NESTED = 10_000
HUGE = 10**400


def nested(count: int) -> bytes:
    return b"[" * count + b"]" * count


def decide(**fields: Any) -> dict[str, Any]:
    return {"actions": [A, B], **fields}


def raw(template: str, **values: bytes) -> bytes:
    """Insert bytes that no encoder would write."""
    body = template.encode()
    for name, value in values.items():
        body = body.replace(f"<{name}>".encode(), value)
    return body


DECIDE: list[tuple[Any, str]] = [
    # Not JSON.
    (b"", "body"),
    (b"   ", "body"),
    (b'{"actions": [', "body"),
    (b"{'actions': []}", "body"),
    (b"\xff\xfe", "body"),
    (b'\xef\xbb\xbf{"actions": [{"id": "a"}]}', "body"),
    (b'{"actions": [{"id": "\xff"}]}', "body"),
    (b'{"actions": [{"id": "a", "features": {"\xc3\x28": 1}}]}', "body"),
    (b'{"actions": [{"id": "a"}]} trailing', "body"),
    (b'{"actions": [{"id": "a", "features": {"x": NaN}}]}', "body"),
    (b'{"actions": [{"id": "a", "features": {"x": Infinity}}]}', "body"),
    # Lone surrogates, which no UTF-8 can hold.
    (b'{"actions": [{"id": "\\ud800"}]}', "body"),
    (b'{"actions": [{"id": "a"}], "decision_id": "x\\udfff"}', "body"),
    (b'{"actions": [{"id": "a"}], "context": {"\\ud800\\ud800": 1}}', "body"),
    # Nesting bombs.
    (nested(NESTED), "body"),
    (raw('{"actions": <x>}', x=nested(NESTED)), "actions[0]"),
    (raw('{"actions": [{"id": "a"}], "context": {"deep": <x>}}', x=nested(NESTED)), "body"),
    (b'{"a":' * NESTED + b"1" + b"}" * NESTED, "a"),
    # The wrong type, at any depth.
    (None, "body"),
    (5, "body"),
    ("text", "body"),
    ([], "body"),
    ({"actions": {}}, "actions"),
    ({"actions": "ab"}, "actions"),
    ({"actions": [A, "b"]}, "actions[1]"),
    ({"actions": [A, {"id": 1}]}, "actions[1].id"),
    ({"actions": [{"id": None}]}, "actions[0].id"),
    ({"actions": [{"id": "a", "features": []}]}, "actions[0].features"),
    (decide(context=[]), "context"),
    (decide(decision_id=7), "decision_id"),
    (decide(excluded="a"), "excluded"),
    (decide(excluded=["a", 2]), "excluded[1]"),
    (decide(baseline=["a"]), "baseline"),
    (decide(deferred="yes"), "deferred"),
    (decide(audit=3), "audit"),
    # Missing and unknown fields.
    ({}, "actions"),
    ({"actions": [{}]}, "actions[0].id"),
    ({"actions": [A, {"features": {}}]}, "actions[1].id"),
    (decide(contxt={}), "contxt"),
    ({"actions": [A, {"id": "b", "feature": {"x": 1}}]}, "actions[1].feature"),
    # What types alone don't say.
    ({"actions": []}, "actions"),
    ({"actions": [{"id": f"{n:x}"} for n in range(10_001)]}, "actions"),
    ({"actions": [A, B, A]}, "actions[2].id"),
    ({"actions": [A, {"id": ""}]}, "actions[1].id"),
    ({"actions": [{"id": "x" * 257}]}, "actions[0].id"),
    (decide(decision_id=""), "decision_id"),
    (decide(decision_id="x" * 257), "decision_id"),
    (decide(excluded=["c"]), "excluded[0]"),
    (decide(excluded=["b", "a"]), "excluded"),
    (decide(baseline="c"), "baseline"),
    (decide(baseline=""), "baseline"),
    # Numbers out of range.
    (b'{"actions": [{"id": "a", "features": {"x": 1e999}}]}', "actions[0].features[...]"),
    (decide(context={"x": 1e39}), "context"),
    (decide(context={"x": HUGE}), "context"),
    (raw('{"actions": [{"id": "a"}], "context": {"x": <n>}}', n=b"9" * 5000), "context[...]"),
    ({"actions": [A, {"id": "b", "features": {"x": -1e300}}]}, "actions[1].features"),
    (decide(audit={"account": [1, HUGE]}), "audit.account[1]"),
    # Deeper than any oracle looks.
    (decide(context={"deep": json.loads(nested(50))}), "context.deep[0][0][0][0][0][0][0][0]"),
    (decide(audit={"deep": json.loads(nested(50))}), "audit.deep[0][0][0][0][0][0][0][0]"),
    (
        {"actions": [A, {"id": "b", "features": {"x": json.loads(nested(50))}}]},
        "actions[1].features.x[0][0][0][0][0][0][0][0]",
    ),
]

OUTCOME = {"decision_id": "d", "reward": 0.5}
REWARD: list[tuple[Any, str]] = [
    (b"", "body"),
    (b'{"decision_id": "d", "reward": NaN}', "body"),
    (b'{"decision_id": "d", "reward": -Infinity}', "body"),
    (b'{"decision_id": "d", "reward": 1e999}', "reward"),
    (raw('{"decision_id": "d", "reward": <n>}', n=b"9" * 400), "reward"),
    (raw('{"decision_id": "d", "reward": <n>}', n=b"9" * 5000), "reward"),
    (nested(NESTED), "[0]"),
    ("text", "body"),
    ({}, "decision_id"),
    ({"decision_id": "d"}, "reward"),
    (OUTCOME | {"reward": "1"}, "reward"),
    (OUTCOME | {"reward": True}, "reward"),
    (OUTCOME | {"reward": None}, "reward"),
    (OUTCOME | {"reward": 1.0000001}, "reward"),
    (OUTCOME | {"reward": -1e-9}, "reward"),
    (OUTCOME | {"reward": 10**30}, "reward"),
    (OUTCOME | {"rewards": {}}, "rewards"),
    (OUTCOME | {"decision_id": ""}, "decision_id"),
    (OUTCOME | {"decision_id": "x" * 257}, "decision_id"),
    (OUTCOME | {"outcome_id": ""}, "outcome_id"),
    (OUTCOME | {"outcome_id": "x" * 257}, "outcome_id"),
    (OUTCOME | {"slot": ""}, "slot"),
    (OUTCOME | {"slot": "x" * 257}, "slot"),
    (OUTCOME | {"guardrails": {"refund": "no"}}, "guardrails[...]"),
    (OUTCOME | {"guardrails": []}, "guardrails"),
    (OUTCOME | {"guardrails": {f"g{n}": 1 for n in range(101)}}, "guardrails"),
    ([OUTCOME, 3], "[1]"),
    ([OUTCOME, OUTCOME | {"reward": 2}], "[1].reward"),
    ([OUTCOME, {"reward": 1}], "[1].decision_id"),
    ([OUTCOME, OUTCOME | {"x": 1}], "[1].x"),
]

ACTIVATE: list[tuple[Any, str]] = [
    (b"", "body"),
    ([], "body"),
    ({}, "decision_id"),
    ({"decision_id": 5}, "decision_id"),
    ({"decision_id": ""}, "decision_id"),
    ({"decision_id": "x" * 257}, "decision_id"),
    ({"decision_id": "d", "reward": 1}, "reward"),
]

JUDGE_BODY = {"decision_id": "d", "other_decision_id": "e", "auditor": "ada", "distance": 0.5}
JUDGE: list[tuple[Any, str]] = [
    (b"", "body"),
    ([], "body"),
    ({}, "decision_id"),
    (JUDGE_BODY | {"decision_id": ""}, "decision_id"),
    (JUDGE_BODY | {"other_decision_id": "x" * 257}, "other_decision_id"),
    (JUDGE_BODY | {"other_decision_id": "d"}, "other_decision_id"),
    (JUDGE_BODY | {"auditor": ""}, "auditor"),
    (JUDGE_BODY | {"distance": 1.5}, "distance"),
    (JUDGE_BODY | {"distance": -0.1}, "distance"),
    (JUDGE_BODY | {"distance": "far"}, "distance"),
    (JUDGE_BODY | {"judgement_id": ""}, "judgement_id"),
    (JUDGE_BODY | {"x": 1}, "x"),
]

CASES = [
    *(("decide", body, target) for body, target in DECIDE),
    *(("reward", body, target) for body, target in REWARD),
    *(("activate", body, target) for body, target in ACTIVATE),
    *(("judge", body, target) for body, target in JUDGE),
]


def described(value: object) -> str | None:
    return repr(value)[:60] if not isinstance(value, str) else None


@pytest.mark.parametrize(("route", "body", "target"), CASES, ids=described)
def test_an_invalid_request_names_its_field(
    caller: Caller, route: str, body: Any, target: str
) -> None:
    answer = caller.post(f"digits/{route}", body)
    assert answer.status == 400
    assert answer.error["code"] == "InvalidRequest"
    assert answer.error["target"] == target
    assert answer.error["message"].startswith((f"{target}: ", "expected a JSON body: "))


def test_the_message_says_what_was_expected_and_what_came(caller: Caller) -> None:
    refused = caller.post("scaled/reward", {"decision_id": "d", "reward": 11})
    assert refused.error["message"] == "reward: expected a number in [-1, 10], got 11.0"
    refused = caller.post("digits/decide", {"actions": [A, {"id": 3}]})
    assert refused.error["message"] == "actions[1].id: Expected `str`, got `int`"


def test_a_message_does_not_grow_with_the_request(caller: Caller) -> None:
    long = "x" * (MAX_BODY_BYTES - 100)
    for body in (decide(excluded=[long]), decide(**{long: 1}), decide(context={long: 1e300})):
        assert len(caller.post("digits/decide", body).body) < 1500


def test_more_outcomes_than_the_log_ever_takes(caller: Caller) -> None:
    outcomes = ",".join(['{"decision_id":"d","reward":0}'] * 8193)
    refused = caller.post("digits/reward", f"[{outcomes}]".encode())
    assert (refused.status, refused.error["target"]) == (400, "body")
    assert refused.error["message"] == "body: expected at most 8192, got 8193"


def test_a_body_that_is_too_large(caller: Caller) -> None:
    refused = caller.post("digits/decide", b" " * (MAX_BODY_BYTES + 1))
    assert (refused.status, refused.error["code"]) == (413, "BodyTooLarge")
    assert f"at most {MAX_BODY_BYTES} bytes" in refused.error["message"]
    # The connection has been read to the end of that body, and goes on.
    exactly = json.dumps(decide()).encode().ljust(MAX_BODY_BYTES)
    assert caller.post("digits/decide", exactly).status == 200


@pytest.mark.parametrize(
    "path", ["nowhere/decide", "/decide", "%64igits%2Fx/decide", "%ff%ed%a0%80/decide", "../decide"]
)
def test_an_unknown_loop(caller: Caller, path: str) -> None:
    refused = caller.post(path, decide())
    assert (refused.status, refused.error["code"]) == (404, "NotFound")


def test_an_unknown_loop_is_named(caller: Caller) -> None:
    refused = caller.post("nowhere/reward", OUTCOME)
    assert refused.error["target"] == "loop"
    assert refused.error["message"] == "no loop 'nowhere'"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/loops", "/v1/loops/", "/v1/loops/digits", "/v1/loops/digits/",
        "/v1/loops/digits/order", "/v1/loops/digits/decide/", "/v2/loops/digits/decide",
        "/healthz/", "/readyz/x", "/docs", "/favicon.ico", "//", "/%00", "/a%0d%0ab",
    ],
)  # fmt: skip
def test_an_unknown_route(caller: Caller, method: str, path: str) -> None:
    refused = caller.send(method, path)
    assert (refused.status, refused.error["code"]) == (404, "NotFound")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "route", ["decide", "rank", "slots", "slate", "reward", "activate", "judge"]
)
def test_the_wrong_method(caller: Caller, method: str, route: str) -> None:
    refused = caller.send(method, f"/v1/loops/digits/{route}")
    assert (refused.status, refused.error["code"]) == (405, "MethodNotAllowed")
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_the_wrong_method_for_a_probe(caller: Caller, path: str) -> None:
    refused = caller.send("POST", path, b"{}")
    assert (refused.status, refused.error["code"]) == (405, "MethodNotAllowed")
    assert {name.strip() for name in refused.headers["allow"].split(",")} == {"GET", "HEAD"}


def test_a_head_request_has_no_body(caller: Caller) -> None:
    for path, status in [("/healthz", 200), ("/nowhere", 404), ("/v1/loops/digits/decide", 405)]:
        answer = caller.send("HEAD", path)
        assert (answer.status, answer.body) == (status, b"")


def test_refusals_leave_nothing_in_the_log(shared: Server, caller: Caller) -> None:
    before = len(shared.events())
    for route, body, _ in CASES[:10]:
        caller.post(f"digits/{route}", body)
    assert len(shared.events()) == before
