"""A sensitive feature is refused on every way in, before anything is decided or logged of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from croupier.cli.config import load_setup
from croupier.policy.events import Decision
from croupier.service.calls import ServiceError
from croupier.service.embedded import EmbeddedScorer
from croupier.service.personalizer import KEY_HEADER
from tests.service.generations import generation
from tests.service.running import Server, running, unique
from tests.service.streaming import DECIDE, LOOP, Asker, by_key, status, stream_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.eventlog.kafka.config import KafkaConfig

KEY = "key-of-digits"
FAIRNESS = f"""
[loops.{LOOP}.fairness]
sensitive = ["gender"]
"""
CONFIG = f"""
[service]
port = 0

[service.keys.digits]
key = "{KEY}"
personalizer_loop = "{LOOP}"

[loops.{LOOP}]
{FAIRNESS}
"""
SENSITIVE: dict[str, Any] = {"user": {"gender": "f"}}
ACTIONS: list[dict[str, Any]] = [{"id": "a"}, {"id": "b", "features": {"size": 2}}]
BAD_ACTIONS: list[dict[str, Any]] = [{"id": "a"}, {"id": "b", "features": {"gender": "f"}}]
SLOTS: list[dict[str, Any]] = [{"id": "top"}]
MORE: dict[str, dict[str, Any]] = {
    "decide": {},
    "rank": {"depth": 2},
    "slate": {"size": 2},
    "slots": {"slots": SLOTS},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("sensitive"), CONFIG, KEY)
    server.serve(generation(LOOP, 1))
    with running(server):
        yield server


def logged(server: Server) -> set[str]:
    return {each.decision_id for each in server.events() if isinstance(each, Decision)}


@pytest.mark.parametrize("route", list(MORE))
def test_over_http(server: Server, route: str) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "context.user.gender": {"context": SENSITIVE, "actions": ACTIONS},
        "actions[1].features.gender": {"actions": BAD_ACTIONS},
    }
    if route == "slots":
        slots = [{"id": "top", "features": SENSITIVE}]
        wrong["slots[0].features.user.gender"] = {"actions": ACTIONS, "slots": slots}
    before = logged(server)
    for target, request in wrong.items():
        answer = server.post(f"{LOOP}/{route}", MORE[route] | request)
        assert (answer.status, answer.error["target"]) == (400, target)
        assert "send it as an audit attribute" in answer.error["message"]
    assert logged(server) == before
    asked = MORE[route] | {"actions": ACTIONS, "audit": {"gender": "f"}}
    assert server.post(f"{LOOP}/{route}", asked).status == 200
    assert len(logged(server)) == len(before) + 1


@pytest.mark.parametrize(
    ("path", "place"),
    [
        *(("v1.0/rank", place) for place in ("context", "actions")),
        *(("v1.1-preview.3/multislot/rank", place) for place in ("context", "actions", "slots")),
    ],
)
def test_over_personalizers_api(server: Server, path: str, place: str) -> None:
    event = unique()
    features: dict[str, list[dict[str, Any]]] = {
        each: [SENSITIVE] if each == place else [] for each in ("context", "actions", "slots")
    }
    request: dict[str, Any] = {
        "eventId": event,
        "contextFeatures": features["context"],
        "actions": [{"id": "a", "features": []}, {"id": "b", "features": features["actions"]}],
    }
    if "multislot" in path:
        request["slots"] = [{"id": "top", "features": features["slots"], "baselineAction": "a"}]
    with server.caller() as caller:
        headers = {KEY_HEADER: KEY, "content-type": "application/json"}

        def ask() -> Any:
            body = json.dumps(request).encode()
            return caller.send("POST", f"/personalizer/{path}", body, headers)

        answer = ask()
        assert answer.status == 400, answer
        assert b"gender" in answer.body
        assert event not in logged(server)
        features[place].clear()
        assert ask().status == 201


def test_in_an_applications_own_process(tmp_path: Path) -> None:
    (tmp_path / "croupier.toml").write_text(f'data_dir = "data"\n[loops.{LOOP}]\n{FAIRNESS}')
    with EmbeddedScorer.open(load_setup(tmp_path / "croupier.toml"), mirror=False) as scorer:
        loop = scorer.loop(LOOP)
        asks = (
            lambda context: loop.decide(ACTIONS, context),
            lambda context: loop.rank(ACTIONS, context, depth=2),
            lambda context: loop.slots(ACTIONS, SLOTS, context),
            lambda context: loop.slate(ACTIONS, 2, context),
        )
        for ask in asks:
            with pytest.raises(ServiceError) as refused:
                ask(SENSITIVE)
            assert refused.value.target == "context.user.gender"
            ask({"user": {"tier": "gold"}})


def test_over_kafka(tmp_path: Path, kafka_config: KafkaConfig) -> None:
    config = stream_config(kafka_config, loop=FAIRNESS)
    server = Server(tmp_path, config, arguments=("--stream",))
    server.serve(generation(LOOP, 1))
    with Asker(kafka_config) as asker, running(server):
        for route, more in MORE.items():
            asker.ask(f"bad-{route}", {"actions": ACTIONS, "context": SENSITIVE} | more, kind=route)
        asker.ask("good", DECIDE)
        asker.sent()
        replies = by_key(asker.replies(len(MORE) + 1))
        for route in MORE:
            reply = replies[f"bad-{route}"]
            assert status(reply) == 400
            assert json.loads(reply.value)["error"]["target"] == "context.user.gender"
        assert status(replies["good"]) == 200
        assert [each.decision_id for each in asker.decisions()] == ["good"]
