"""Health, readiness, metrics and the API's description."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from croupier.service.api import ErrorResponse
from tests.service.running import wait_until

if TYPE_CHECKING:
    from tests.service.running import Caller

DECIDE = {"actions": [{"id": "a"}, {"id": "b"}]}


def samples(caller: Caller) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = caller.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def sample(caller: Caller, name: str, **labels: str) -> float:
    return samples(caller).get((name, frozenset(labels.items())), 0.0)


def test_alive(caller: Caller) -> None:
    answer = caller.get("/healthz")
    assert (answer.status, answer.json) == (200, {"status": "alive"})


def test_ready(caller: Caller) -> None:
    # The registry's mirror takes a moment to say its first word.
    wait_until(lambda: caller.get("/readyz").json["status"] == "ready")
    answer = caller.get("/readyz")
    nobody = {"canary": None, "canary_share": 0.0, "shadow": None, "killed": None, "error": None}
    assert answer.status == 200
    assert answer.json == {
        "status": "ready",
        "log": "ok",
        "registry": "ok",
        "loops": {
            "digits": {"generation": 0, **nobody},
            "scaled": {"generation": 0, **nobody},
            "trained": {"generation": 1, **nobody},
            "watching": {"generation": 0, **nobody},
        },
    }


def test_counters_count(caller: Caller) -> None:
    def counts() -> list[float]:
        return [
            sample(caller, "croupier_decisions_total", loop="digits"),
            sample(caller, "croupier_propensity_count", loop="digits"),
            sample(caller, "croupier_propensity_sum", loop="digits"),
            sample(caller, "croupier_request_seconds_count", route="decide"),
            sample(caller, "croupier_outcomes_total", loop="scaled"),
            sample(caller, "croupier_activations_total", loop="trained"),
            sample(caller, "croupier_errors_total", status="400", code="InvalidRequest"),
            sample(caller, "croupier_errors_total", status="404", code="NotFound"),
        ]

    before = counts()
    for _ in range(3):
        assert caller.post("digits/decide", DECIDE).status == 200
    outcomes = [{"decision_id": "d", "reward": 1.0}] * 7
    assert caller.post("scaled/reward", outcomes).status == 200
    assert caller.post("trained/activate", {"decision_id": "d"}).status == 200
    assert caller.post("digits/decide", {}).status == 400
    assert caller.post("nowhere/decide", DECIDE).status == 404
    grown = [after - earlier for earlier, after in zip(before, counts(), strict=True)]
    assert grown == [3, 3, 1.5, 3, 7, 1, 1, 1]


def test_gauges(caller: Caller) -> None:
    wait_until(lambda: ("croupier_registry_age_seconds", frozenset()) in samples(caller))
    assert 0.0 <= sample(caller, "croupier_registry_age_seconds") < 60.0
    assert sample(caller, "croupier_log_queue_depth") == 0.0
    assert sample(caller, "croupier_generation", loop="trained") == 1.0
    assert sample(caller, "croupier_canary_share", loop="trained") == 0.0
    killed = samples(caller)["croupier_killed", frozenset({("loop", "trained")})]
    assert killed == 0.0


def test_a_caller_can_not_make_metrics_without_end(caller: Caller) -> None:
    caller.post("digits/decide", DECIDE)
    caller.post("nowhere/decide", DECIDE)
    before = len(samples(caller))
    for number in range(20):
        caller.post(f"nowhere-{number}/decide", DECIDE)
        caller.post(f"digits/route-{number}", DECIDE)
        caller.get(f"/page-{number}")
    assert len(samples(caller)) == before


def resolve(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/"), reference
    node: Any = document
    for part in reference[2:].split("/"):
        node = node[part]
    return node


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [each for below in node.values() for each in references(below)]
    return [each for below in node for each in references(below)] if isinstance(node, list) else []


def test_the_apis_description(caller: Caller) -> None:
    document = caller.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/loops/{loop}/decide",
        "/v1/loops/{loop}/rank",
        "/v1/loops/{loop}/slots",
        "/v1/loops/{loop}/slate",
        "/v1/loops/{loop}/reward",
        "/v1/loops/{loop}/activate",
        "/v1/loops/{loop}/judge",
        "/v1/loops/{loop}/acknowledge",
        "/v1/loops/{loop}/override",
        "/personalizer/v1.0/rank",
        "/personalizer/v1.0/events/{eventId}/reward",
        "/personalizer/v1.0/events/{eventId}/activate",
        "/personalizer/v1.1-preview.3/rank",
        "/personalizer/v1.1-preview.3/events/{eventId}/reward",
        "/personalizer/v1.1-preview.3/events/{eventId}/activate",
        "/personalizer/v1.1-preview.3/multislot/rank",
        "/personalizer/v1.1-preview.3/multislot/events/{eventId}/reward",
        "/personalizer/v1.1-preview.3/multislot/events/{eventId}/activate",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
    }
    found = references(document)
    assert len(found) > 10
    for reference in found:
        assert isinstance(resolve(document, reference), dict)
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert all(operation["summary"] for operation in operations)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("decide", {}),
        ("rank", {}),
        ("slots", {"slots": [{"id": "top"}]}),
        ("slate", {"size": 1}),
    ],
)
def test_the_description_agrees_with_the_service(
    caller: Caller, route: str, fields: dict[str, Any]
) -> None:
    document = caller.get("/openapi.json").json
    decide = document["paths"][f"/v1/loops/{{loop}}/{route}"]["post"]
    request = resolve(
        document, decide["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    )
    assert request["required"] == ["actions", *fields]
    assert request["additionalProperties"] is False
    answer = resolve(
        document, decide["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    )
    decided = caller.post(f"digits/{route}", DECIDE | fields).json
    # How far a session has come is told only where the loop has sessions.
    optional = {"session"} if route == "decide" else set()
    assert set(answer["required"]) == set(answer["properties"]) - optional == set(decided)
    refused = caller.post(f"digits/{route}", {})
    assert str(refused.status) in decide["responses"]
    error = decide["responses"]["400"]["content"]["application/json"]["schema"]
    assert resolve(document, error["$ref"])["title"] == ErrorResponse.__name__
    assert json.loads(refused.body).keys() == resolve(document, error["$ref"])["properties"].keys()
