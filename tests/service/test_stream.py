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

from croupier.eventlog.kafka.topics import KIND_HEADER, SCHEMA_HEADER, SCHEMA_VERSION
from croupier.policy.events import Activation, Outcome, decode_event
from croupier.policy.keeping import is_kept
from tests.service.generations import generation
from tests.service.running import Server, running, wait_until
from tests.service.streaming import DECIDE, LOOP, SECRET, Asker, by_key, status, stream_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.eventlog.kafka.config import KafkaConfig


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


def test_answers_and_logs_as_over_http(
    tmp_path: Path, kafka_config: KafkaConfig, asker: Asker
) -> None:
    with running(scorer(tmp_path, stream_config(kafka_config))) as server:
        wait_until(lambda: asker.topic("requests") in topics(kafka_config))
        ids = [f"id-{number}" for number in range(40)]
        for name in ids:
            asker.ask(name)
        asker.sent()
        replies = by_key(asker.replies(len(ids)))
        # Later, and of another way: the draw is the request's own.
        over_http = {name: server.post(f"{LOOP}/decide", DECIDE | {"decision_id": name}) for name in ids}
        metrics = server.get("/metrics").body.decode()
        assert server.readiness()["stream"] == "ok"
    assert {status(reply) for reply in replies.values()} == {200}
    assert {name: reply.value for name, reply in replies.items()} == {
        name: answer.body for name, answer in over_http.items()
    }
    assert len({json.loads(reply.value)["action"] for reply in replies.values()}) > 1
    assert f'croupier_decisions_total{{loop="{LOOP}"}} {2 * len(ids)}.0' in metrics
    assert f'croupier_request_seconds_count{{route="stream"}} {len(ids)}.0' in metrics
    requests = by_key(asker.committed("requests"))
    assert {name: reply.partition for name, reply in replies.items()} == {
        name: request.partition for name, request in requests.items()
    }
    for message in asker.committed("decisions"):
        decision = decode_event(message.value)
        answer = json.loads(replies[message.key.decode()].value)
        assert dict(message.headers) == {SCHEMA_HEADER: SCHEMA_VERSION, KIND_HEADER: b"decision"}
        assert (decision.pmf, decision.propensity) == (answer["pmf"], answer["propensity"])
        assert decision.actions[decision.chosen].id == answer["action"]
        assert message.partition == requests[message.key.decode()].partition
