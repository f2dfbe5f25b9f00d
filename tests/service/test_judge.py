"""Judgements over HTTP and in-process: what is logged of them, and that each counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.policy.events import Judgement
from croupier.service.client import Client
from tests.service.running import unique

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.running import Caller, Server


def judgements(server: Server, decision_id: str) -> list[Judgement]:
    return [
        event
        for event in server.events()
        if isinstance(event, Judgement) and event.decision_id == decision_id
    ]


def request(decision_id: str, **more: Any) -> dict[str, Any]:
    return {
        "decision_id": decision_id,
        "other_decision_id": "other",
        "auditor": "ada",
        "distance": 0.25,
        **more,
    }


def test_a_judgement_is_logged_with_who_and_when(shared: Server, caller: Caller) -> None:
    decision_id = unique()

    answer = caller.post("digits/judge", request(decision_id, judgement_id=decision_id))

    assert answer.json == {"accepted": 1}
    (found,) = judgements(shared, decision_id)
    assert (found.loop, found.judgement_id) == ("digits", decision_id)
    assert (found.other_decision_id, found.auditor, found.distance) == ("other", "ada", 0.25)
    assert found.ts > 1_600_000_000_000_000


def test_the_client_gives_a_judgement_an_id_of_its_own(shared: Server) -> None:
    decision_id = unique()
    with Client(shared.url, "digits", key=shared.key) as client:
        for _ in range(2):
            assert client.judge(decision_id, "other", auditor="ada", distance=1.0).accepted == 1

    assert len({each.judgement_id for each in judgements(shared, decision_id)}) == 2


def test_a_judgement_that_is_sent_again_is_one_in_the_lake(
    shared: Server, caller: Caller, tmp_path: Path
) -> None:
    decision_id = unique()
    for distance in (0.25, 0.75):
        sent = request(decision_id, judgement_id=decision_id, distance=distance)
        assert caller.post("digits/judge", sent).status == 200

    lake = Lake(tmp_path / "lake")
    with SqliteEventLog(shared.data_dir / "log") as log, lake.lock():
        sink(log, lake)

    kept = lake.scan("audits", "digits").filter(pl.col("decision_id") == decision_id).collect()
    assert kept.select("judgement_id", "auditor", "distance").rows() == [(decision_id, "ada", 0.25)]
