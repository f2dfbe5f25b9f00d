"""The scorer over Kafka: the same answers as over HTTP, each exactly once."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from croupier.eventlog.kafka.broker import Cluster
from croupier.eventlog.kafka.config import KafkaConfig
from croupier.eventlog.kafka.topics import KIND_HEADER, SCHEMA_HEADER, SCHEMA_VERSION
from croupier.policy.events import Activation, Decision, Judgement, Outcome, decode_event, event_key
from croupier.policy.keeping import is_kept
from tests.service.generations import generation
from tests.service.running import Server, running, wait_until
from tests.service.streaming import DECIDE, LOOP, SECRET, Asker, by_key, status, stream_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.eventlog.kafka.broker import Runtime


# As the scorers over Kafka decide, without it.
_OVER_HTTP = f"""
[service]
port = 0
draw_secret = "{SECRET}"

[loops.{LOOP}]
"""


def scorer(directory: Path, config: str, *arguments: str) -> Server:
    """A scorer over Kafka that serves generation 1."""
    directory.mkdir(exist_ok=True)
    server = Server(directory, config, arguments=("--stream", *arguments))
    server.serve(generation(LOOP, 1))
    return server


@pytest.fixture
def asker(kafka_config: KafkaConfig) -> Iterator[Asker]:
    with Asker(kafka_config) as asker:
        yield asker


@pytest.fixture
def serving(tmp_path: Path, kafka_config: KafkaConfig) -> Iterator[Server]:
    """A scorer over Kafka that has joined its group."""
    with running(scorer(tmp_path / "serving", stream_config(kafka_config))) as server:
        yield server


def test_answers_and_logs_as_over_http(serving: Server, asker: Asker) -> None:
    ids = [f"id-{number}" for number in range(40)]
    for name in ids:
        asker.ask(name)
    asker.sent()
    replies = by_key(asker.replies(len(ids)))
    requests, decisions = by_key(asker.committed("requests")), by_key(asker.committed("decisions"))
    # Later, and another way: the draw is the request's own.
    asked = [DECIDE | {"decision_id": name} for name in ids]
    over_http = [serving.post(f"{LOOP}/decide", request).body for request in asked]
    assert {status(reply) for reply in replies.values()} == {200}
    assert [replies[name].value for name in ids] == over_http
    assert len({json.loads(body)["action"] for body in over_http}) > 1
    for name, message in decisions.items():
        decision, answer = decode_event(message.value), json.loads(replies[name].value)
        assert isinstance(decision, Decision)
        assert dict(message.headers) == {SCHEMA_HEADER: SCHEMA_VERSION, KIND_HEADER: b"decision"}
        assert (decision.pmf, decision.propensity) == (answer["pmf"], answer["propensity"])
        assert decision.actions[decision.chosen].id == answer["action"]
        partitions = {each[name].partition for each in (requests, replies, decisions)}
        assert len(partitions) == 1
    assert decisions.keys() == set(ids)
    assert serving.readiness()["stream"] == "ok"
    metrics = serving.get("/metrics").body.decode()
    assert f'croupier_decisions_total{{loop="{LOOP}"}} {2 * len(ids)}.0' in metrics
    assert f'croupier_request_seconds_count{{route="stream"}} {len(ids)}.0' in metrics


def test_what_is_wrong_is_refused_as_over_http_and_stops_nobody(
    serving: Server, asker: Asker
) -> None:
    wrong: dict[str, Any] = {
        "text": b"{not json",
        "nothing": b"",
        "number": b"1",
        "no-actions": {"actions": []},
        "unknown": DECIDE | {"colour": "red"},
        "excluded": DECIDE | {"excluded": list("abcd")},
        "nested": b'{"actions":' + 10_000 * b"[",
        "large": b" " * 1_100_000,
        "x" * 257: DECIDE,
    }
    for key, request in wrong.items():
        asker.ask(key, request)
    asker.ask("other-id", DECIDE | {"decision_id": "mine"})
    asker.ask("gone", None)
    asker.ask("odd", DECIDE, kind="dictate")
    asker.ask(b"\xff", DECIDE)
    asker.ask(None, DECIDE)
    asker.ask("right", DECIDE)
    asker.sent()
    replies = {reply.key: reply for reply in asker.replies(len(wrong) + 6)}
    for key, request in wrong.items():
        body = request if isinstance(request, bytes) else DECIDE | request | {"decision_id": key}
        if key == "no-actions":
            body = {"actions": [], "decision_id": key}
        answer = serving.post(f"{LOOP}/decide", body)
        reply = replies[key.encode()]
        assert (status(reply), reply.value) == (answer.status, answer.body), key
        assert 400 <= status(reply) < 500, key
    targets = {
        b"other-id": (400, "decision_id"),
        b"gone": (400, "body"),
        b"odd": (404, "croupier-kind"),
        b"\xff": (400, "decision_id"),
        None: (400, "decision_id"),
    }
    for name, (code, target) in targets.items():
        assert status(replies[name]) == code
        assert json.loads(replies[name].value)["error"]["target"] == target
    assert status(replies[b"right"]) == 200
    assert [decision.decision_id for decision in asker.decisions()] == ["right"]


def test_a_body_may_have_the_key_for_its_id_and_may_do_without_a_key(
    asker: Asker, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("serving")
    asker.ask("both", DECIDE | {"decision_id": "both"})
    asker.ask(None, DECIDE | {"decision_id": "body"})
    asker.sent()
    replies = asker.replies(2)
    assert {json.loads(reply.value)["decision_id"] for reply in replies} == {"both", "body"}
    assert {message.key for message in asker.committed("decisions")} == {b"both", b"body"}


def test_everything_that_can_be_asked_over_http(serving: Server, asker: Asker) -> None:
    actions = DECIDE["actions"]
    asked: dict[str, tuple[str, Any]] = {
        "ranked": ("rank", {"actions": actions, "depth": 2}),
        "filled": ("slots", {"actions": actions, "slots": [{"id": "left"}, {"id": "right"}]}),
        "dealt": ("slate", {"actions": actions, "size": 2}),
    }
    for key, (kind, request) in asked.items():
        asker.ask(key, request, kind=kind)
    reported = [{"decision_id": "ranked", "reward": 1.0}, {"decision_id": "dealt", "reward": 0.5}]
    asker.ask("rewards", reported, kind="reward")
    asker.ask("activation", {"decision_id": "filled"}, kind="activate")
    pair = {"decision_id": "ranked", "other_decision_id": "dealt"}
    asker.ask("judgement", pair | {"auditor": "ada", "distance": 0.1}, kind="judge")
    asker.ask("too-good", {"decision_id": "ranked", "reward": 2.0}, kind="reward")
    asker.sent()
    replies = by_key(asker.replies(7))
    for key, (kind, request) in asked.items():
        over_http = serving.post(f"{LOOP}/{kind}", request | {"decision_id": key})
        assert (status(replies[key]), replies[key].value) == (200, over_http.body)
    assert json.loads(replies["rewards"].value) == {"accepted": 2}
    assert json.loads(replies["activation"].value) == {"accepted": 1}
    assert json.loads(replies["judgement"].value) == {"accepted": 1}
    assert status(replies["too-good"]) == 400
    outcomes = [decode_event(each.value) for each in asker.committed("outcomes")]
    assert len(outcomes) == 3
    assert {
        (type(each), event_key(each)) for each in outcomes if not isinstance(each, Judgement)
    } == {
        (Activation, "filled"),
        (Outcome, "dealt"),
        (Outcome, "ranked"),
    }


def test_a_message_that_comes_again_is_answered_again_and_logged_once(
    serving: Server, asker: Asker
) -> None:
    for _ in range(3):
        asker.ask("again")
    asker.sent()
    asker.replies(3)
    serving.serve(generation(LOOP, 2))
    wait_until(lambda: serving.readiness()["loops"][LOOP]["generation"] == 2)
    asker.ask("again")
    asker.ask("again", {"actions": [{"id": "b"}]})
    asker.ask("new")
    asker.sent()
    replies = asker.replies(6)
    same = [reply.value for reply in replies if reply.key == b"again" and status(reply) == 200]
    assert (len(same), len(set(same))) == (4, 1)
    refused = [json.loads(reply.value)["error"] for reply in replies if status(reply) == 400]
    assert [error["target"] for error in refused] == ["decision_id"]
    generations = {each.decision_id: each.generation for each in asker.decisions()}
    assert generations == {"again": 1, "new": 2}
    assert len(asker.decisions()) == 2


def test_a_subsampled_log_answers_all_and_keeps_its_share(
    tmp_path: Path, kafka_config: KafkaConfig, asker: Asker
) -> None:
    ids = {f"id-{number}" for number in range(60)}
    config = stream_config(kafka_config, loop="keep_prob = 0.4")
    with running(scorer(tmp_path, config)):
        for name in ids:
            asker.ask(name)
        asker.sent()
        replies = by_key(asker.replies(len(ids)))
    kept = {name for name in ids if is_kept(LOOP, name, 0.4, secret=bytes.fromhex(SECRET))}
    assert {each.decision_id for each in asker.decisions()} == kept
    assert replies.keys() == ids
    assert 0 < len(kept) < len(ids)


def test_told_to_stop_it_commits_and_makes_room_at_once(
    kafka_config: KafkaConfig, tmp_path: Path, asker: Asker
) -> None:
    config = stream_config(kafka_config, session_timeout="60 s")
    with running(scorer(tmp_path / "first", config)) as serving:
        asker.ask("first")
        asker.sent()
        asker.replies(1)
        assert serving.stop() == 0
    with running(scorer(tmp_path / "next", config)):
        started = time.monotonic()
        asker.ask("second")
        asker.sent()
        asker.replies(2)
        # A member that had not left would be missed only after the session's 60 seconds.
        assert time.monotonic() - started < 40.0


def test_requests_wait_while_the_brokers_are_away(
    tmp_path: Path, kafka_runtime: Runtime, topic_prefix: str
) -> None:
    cluster = Cluster.create(tmp_path / "kafka", runtime=kafka_runtime)
    with cluster.running():
        kafka = KafkaConfig(
            bootstrap_servers=cluster.bootstrap_servers, topic_prefix=topic_prefix, partitions=1
        )
        config = stream_config(kafka)
        with running(scorer(tmp_path / "serving", config)) as server:
            with Asker(kafka) as asker:
                asker.ask("before")
                asker.sent()
                asker.replies(1)
            cluster.kill()
            wait_until(lambda: server.readiness().get("stream") != "ok")
            assert server.readiness()["status"] == "degraded"
            cluster.start()
            wait_until(lambda: server.readiness().get("stream") == "ok")
            with Asker(kafka) as asker:
                asker.ask("after")
                asker.sent()
                assert by_key(asker.replies(2)).keys() == {"before", "after"}


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(1, 1), *(pytest.param(seed, 2, marks=pytest.mark.slow) for seed in (1, 2))],
)
def test_each_request_once_whatever_becomes_of_the_scorers(
    tmp_path: Path, kafka_config: KafkaConfig, asker: Asker, seed: int, rounds: int
) -> None:
    """Scorers are killed, stopped, added, and suspended until they are taken for dead."""
    chance = random.Random(seed)
    config = stream_config(kafka_config, stream="max_batch = 20")
    servers = [scorer(tmp_path / name, config) for name in ("one", "two", "three")]
    ids = [f"id-{number}" for number in range(1500 * rounds)]
    with ExitStack() as stack:
        for server in servers[:2]:
            stack.callback(_end, server)
            server.start()
        stack.callback(_end, servers[2])
        asking = threading.Thread(target=_ask_steadily, args=(asker, ids))
        asking.start()
        _kill_and_replace(servers, chance, rounds)
        asking.join()
        replies = by_key(asker.replies(len(ids)))
    decisions = by_key(asker.committed("decisions"))
    assert replies.keys() == decisions.keys() == set(ids)
    for name, message in decisions.items():
        decision, answer = decode_event(message.value), json.loads(replies[name].value)
        assert isinstance(decision, Decision)
        assert status(replies[name]) == 200
        assert (decision.pmf, decision.chosen) == (answer["pmf"], answer["index"])
    (tmp_path / "reference").mkdir()
    reference = Server(tmp_path / "reference", _OVER_HTTP)
    reference.serve(generation(LOOP, 1))
    with running(reference), reference.caller() as caller:
        for name in ids[::10]:
            over_http = caller.post(f"{LOOP}/decide", DECIDE | {"decision_id": name})
            assert replies[name].value == over_http.body
    for server in servers:
        assert "Traceback" not in server.stderr()


def _ask_steadily(asker: Asker, ids: list[str]) -> None:
    for start in range(0, len(ids), 10):
        for name in ids[start : start + 10]:
            asker.ask(name)
        time.sleep(0.1)
    asker.sent()


def _kill_and_replace(servers: list[Server], chance: random.Random, rounds: int) -> None:
    first, second, third = servers
    time.sleep(2.0)
    for _ in range(rounds):
        # In the middle of whatever it does, and back at once.
        first.kill()
        first.start()
        # Another one comes, and one only seems dead: its place is taken, and it comes back.
        third.start()
        time.sleep(chance.uniform(0.0, 1.0))
        second.process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(7.0, 9.0))
        second.process.send_signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 1.0))
        # One leaves in order.
        assert third.stop() == 0
    # And another one for good.
    first.kill()


def _end(server: Server) -> None:
    if hasattr(server, "process"):
        with suppress(ProcessLookupError):
            server.process.send_signal(signal.SIGCONT)
        server.kill()
