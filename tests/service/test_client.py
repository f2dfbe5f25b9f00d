"""The typed clients against a real server, and against what isn't one or gets in the way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, Decision, Outcome
from croupier.policy.loop import LoopConfig
from croupier.policy.requests import RankRequest, SlateRequest, Slot, SlotsRequest
from croupier.service import calls
from croupier.service.api import (
    OutcomeRequest,
    RankResponse,
    Readiness,
    SlateResponse,
    SlotsResponse,
)
from croupier.service.client import (
    AccessError,
    AsyncClient,
    Client,
    ClientOptions,
    ServiceError,
    UnavailableError,
)
from croupier.service.fallback import BASELINE_GENERATION, baseline_answer
from croupier.service.scorer import Scorer
from tests.service.asking import DROP, HANG, KINDS, LOSE, PASS, Words, asking, proxy
from tests.service.conftest import DIGITS_KEY
from tests.service.running import unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.running import Server

ACTIONS: list[dict[str, Any]] = [{"id": "a"}, {"id": "b", "features": {"x": 1.5}}, {"id": "c"}]
BUSY = Words(
    503,
    b'{"error": {"code": "LogUnavailable", "message": "full", "target": null}}',
    (("retry-after", "1"),),
)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(shared: Server, kind: str) -> Iterator[Client]:
    with asking(kind, shared.url, "digits", key=DIGITS_KEY) as client:
        yield client


def test_a_decision_and_what_becomes_of_it(shared: Server, client: Client) -> None:
    answer = client.decide(
        [Action("red", {"price": 3}), {"id": "blue", "features": {"price": 4}}, {"id": "green"}],
        {"hour": 9},
        decision_id="of-the-client",
        excluded=["green"],
        baseline="blue",
        deferred=True,
        audit={"region": "north"},
    )
    assert answer.pmf == [0.5, 0.5, 0.0]
    assert (answer.decision_id, answer.loop, answer.generation) == ("of-the-client", "digits", 0)
    assert client.activate(answer.decision_id).accepted == 1
    assert client.reward(answer.decision_id, 1.0, guardrails={"refund": 0.0}).accepted == 1
    logged = shared.decision("of-the-client")
    assert (logged.context, logged.audit, logged.baseline) == ({"hour": 9}, {"region": "north"}, 1)
    assert logged.deferred


def test_many_outcomes(client: Client) -> None:
    sent = (OutcomeRequest(decision_id="d", reward=n / 10) for n in range(10))
    assert client.rewards(sent).accepted == 10
    assert client.rewards([]).accepted == 0


def test_threads_may_share_it(shared: Server) -> None:
    client = Client(shared.url, "digits", key=DIGITS_KEY)
    answers: list[str] = []

    def work(name: int) -> None:
        answers.extend(
            client.decide([{"id": "a"}], decision_id=f"{name}:{n}").decision_id for n in range(20)
        )

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert sorted(answers) == sorted(f"{name}:{n}" for name in range(8) for n in range(20))


def test_tasks_may_share_it(shared: Server) -> None:
    async def work() -> list[str]:
        async with AsyncClient(shared.url, "digits", key=DIGITS_KEY) as client:
            asked = (client.decide(ACTIONS, decision_id=f"task:{n}") for n in range(100))
            return [answer.decision_id for answer in await asyncio.gather(*asked)]

    assert asyncio.run(work()) == [f"task:{n}" for n in range(100)]


def test_a_refusal_says_why(shared: Server, kind: str, client: Client) -> None:
    with pytest.raises(ServiceError) as refused:
        client.decide([])
    assert (refused.value.status, refused.value.code) == (400, "InvalidRequest")
    assert refused.value.target == "actions"
    assert str(refused.value) == "actions: expected 1 to 10000 actions, got 0"
    assert refused.value.message == str(refused.value)
    assert refused.value.retry_after is None
    with pytest.raises(ServiceError) as refused:
        client.reward("d", 3.0)
    assert refused.value.target == "[0].reward"
    with (
        asking(kind, shared.url, "scaled", key=DIGITS_KEY) as other,
        pytest.raises(AccessError) as refused,
    ):
        other.activate("d")
    assert (refused.value.status, refused.value.code) == (403, "Forbidden")
    with asking(kind, shared.url, "digits") as keyless, pytest.raises(AccessError) as refused:
        keyless.activate("d")
    assert refused.value.status == 401


@pytest.mark.parametrize("loop", ["no such loop", "../digits", "digits/decide?", "\N{SNOWMAN}"])
def test_a_loops_name_is_not_a_path(shared: Server, kind: str, loop: str) -> None:
    with (
        asking(kind, shared.url, loop, key=shared.key) as client,
        pytest.raises(ServiceError) as refused,
    ):
        client.activate("d")
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("actions", "context"),
    [
        ([{"features": {}}], {}),
        ([{"id": 5}], {}),
        (["red"], {}),
        ([{"id": "a"}], {"when": 1j}),
        ([{"id": "a"}], {"text": "\ud800"}),
        ([{"id": "\udfff"}], {}),
        ([{"id": "a"}], {"far": float("inf")}),
        ([{"id": "a", "features": {"x": [1.0, float("nan")]}}], {}),
    ],
    ids=ascii,
)
def test_what_can_not_be_sent_is_told_at_once(
    client: Client, actions: list[Any], context: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match=r"^(actions|request|context|actions\[0\])[.:]"):
        client.decide(actions, context)


def test_a_missing_value_is_not_taken_for_an_infinite_one(client: Client) -> None:
    assert client.decide([{"id": "null"}], {"x": None, "y": 1.0}).decided


def test_all_shapes(shared: Server, client: Client) -> None:
    ranked = client.rank(ACTIONS, {"u": 1}, depth=2, excluded=["b"])
    filled = client.slots(ACTIONS, [{"id": "top"}, Slot(id="side", baseline="c")], {"u": 1})
    dealt = client.slate(ACTIONS, 2, {"u": 1})
    assert ranked.ranking[1] == "b"
    assert [choice.slot for choice in filled.slots] == ["top", "side"]
    assert [member.slot for member in dealt.slate] == ["0", "1"]
    for answer in (ranked, filled, dealt):
        assert answer.decided
        # Ids are made by the client, and in order of time.
        assert shared.decision(answer.decision_id).decision_id[14] == "7"


def test_readiness(client: Client) -> None:
    ready = client.readiness()
    assert ready.status in {"ready", "degraded"}
    assert (ready.log, ready.loops["trained"]["generation"]) == ("ok", 1)


def test_readiness_of_a_service_that_can_not_log(kind: str) -> None:
    said = b'{"status": "unavailable", "log": "full", "registry": "ok", "loops": {}}'
    with proxy(Words(503, said)) as service, asking(kind, service.url, "digits") as client:
        assert client.readiness() == Readiness(
            status="unavailable", log="full", registry="ok", loops={}
        )
        assert service.paths == ["/readyz"]


# What gets lost on the way.


@pytest.mark.parametrize("trouble", [LOSE, DROP, HANG, Words(502), BUSY], ids=str)
def test_a_decision_is_asked_for_again_and_made_once(
    shared: Server, kind: str, trouble: str | Words
) -> None:
    with (
        proxy(trouble, PASS, behind=shared.url) as way,
        asking(kind, way.url, "digits", key=DIGITS_KEY, attempt_timeout_s=1.0) as client,
    ):
        answer = client.decide(ACTIONS, {"u": 1})
    first, again = way.bodies
    assert first == again
    logged = [
        event
        for event in shared.events()
        if isinstance(event, Decision) and event.decision_id == answer.decision_id
    ]
    assert len(logged) == 1
    assert (logged[0].pmf, logged[0].chosen) == (answer.pmf, answer.index)


def test_an_outcome_that_is_sent_again_counts_once(shared: Server, kind: str) -> None:
    decision_id = unique()
    with (
        proxy(LOSE, PASS, behind=shared.url) as way,
        asking(kind, way.url, "digits", key=DIGITS_KEY) as client,
    ):
        assert client.reward(decision_id, 1.0).accepted == 1
    outcomes = [
        event
        for event in shared.events()
        if isinstance(event, Outcome) and event.decision_id == decision_id
    ]
    assert len(outcomes) == 2
    assert len({outcome.outcome_id for outcome in outcomes}) == 1


def test_it_waits_as_long_as_the_service_wants(shared: Server, kind: str) -> None:
    with (
        proxy(BUSY, PASS, behind=shared.url) as way,
        asking(kind, way.url, "digits", key=DIGITS_KEY) as client,
    ):
        started = time.monotonic()
        assert client.decide(ACTIONS).decided
        assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize(
    ("date", "waits"), [("Thu, 01 Jan 1970 00:00:00 GMT", True), ("whenever", False)]
)
def test_a_date_to_wait_for(kind: str, date: str, waits: bool) -> None:
    words = BUSY._replace(headers=(("retry-after", date),))
    with (
        proxy(words) as way,
        asking(kind, way.url, "digits", attempts=1) as client,
        pytest.raises(UnavailableError) as refused,
    ):
        client.activate("d")
    assert refused.value.retry_after == (0.0 if waits else None)


def test_it_does_not_wait_for_what_would_come_too_late(kind: str) -> None:
    words = BUSY._replace(headers=(("retry-after", "60"),))
    with proxy(words) as way, asking(kind, way.url, "digits", timeout_s=50.0) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError) as refused:
            client.decide(ACTIONS)
        assert time.monotonic() - started < 25.0
    assert (refused.value.status, refused.value.code) == (503, "LogUnavailable")
    assert (refused.value.message, refused.value.retry_after) == ("full", 60.0)
    assert len(way.paths) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
def test_what_would_be_refused_again_is_not_sent_again(kind: str, status: int) -> None:
    with (
        proxy(Words(status)) as way,
        asking(kind, way.url, "digits") as client,
        pytest.raises(ServiceError),
    ):
        client.activate("d")
    assert len(way.paths) == 1


def test_attempts_end(kind: str) -> None:
    with (
        proxy(Words(503)) as way,
        asking(kind, way.url, "digits", attempts=4, first_pause_s=0.01) as client,
        pytest.raises(UnavailableError),
    ):
        client.activate("d")
    assert len(way.paths) == 4


def test_time_ends(kind: str) -> None:
    with proxy(HANG) as way, asking(kind, way.url, "digits", timeout_s=0.3) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="no answer from http"):
            client.activate("d")
        assert 0.29 < time.monotonic() - started < 30.0


def test_nobody_there(kind: str) -> None:
    with (
        asking(kind, "http://127.0.0.1:9", "digits") as client,
        pytest.raises(UnavailableError) as refused,
    ):
        client.activate("d")
    assert (refused.value.status, refused.value.code) == (None, "Unreachable")


@pytest.mark.parametrize("status", [200, 204, 301, 404, 502])
@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[]", b'{"error": "x"}'])
def test_an_answer_that_is_not_the_services(kind: str, status: int, body: bytes) -> None:
    with (
        proxy(Words(status, body)) as way,
        asking(kind, way.url, "digits", attempts=1) as client,
        pytest.raises(ServiceError) as refused,
    ):
        client.activate("d")
    assert (refused.value.status, refused.value.code) == (status, "Unknown")


def test_a_service_below_a_path(kind: str) -> None:
    with (
        proxy(Words(404)) as way,
        asking(kind, f"{way.url}/bandits/", "digits") as client,
        pytest.raises(ServiceError),
    ):
        client.activate("d")
    assert way.paths == ["/bandits/v1/loops/digits/activate"]


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8080", "ftp://x", "http://", "http://x:y", "http://x?a", "http://me:secret@x"],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^url: ") as refused:
        Client(url, "digits")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["two\r\nlines", "schlüssel"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^key: ") as refused:
        Client("http://127.0.0.1:9", "digits", key=key)
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout_s", 0.0),
        ("timeout_s", float("nan")),
        ("attempt_timeout_s", -1.0),
        ("first_pause_s", -1.0),
        ("longest_pause_s", float("inf")),
        ("attempts", 0),
        ("connections", 0),
    ],
)
def test_options_are_checked(field: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=f"^{field}: "):
        ClientOptions(**{field: value})  # type: ignore[arg-type]


# The fallback.


@pytest.mark.parametrize("trouble", [DROP, HANG, BUSY, Words(500), Words(429)], ids=str)
def test_the_baseline_is_played_while_nobody_answers(kind: str, trouble: str | Words) -> None:
    with (
        proxy(trouble) as way,
        asking(kind, way.url, "digits", fallback=True, timeout_s=0.3) as client,
    ):
        answer = client.decide(ACTIONS, {"u": 1}, decision_id="mine", baseline="b")
        asked = len(way.paths)
        assert not answer.decided
        assert (answer.action, answer.index, answer.pmf) == ("b", 1, [0.0, 1.0, 0.0])
        assert (answer.propensity, answer.generation) == (1.0, BASELINE_GENERATION)
        # The decision may be in the log after all: this answer is not that decision's.
        assert answer.decision_id != "mine"
        assert client.reward(answer.decision_id, 1.0).accepted == 0
        assert client.activate(answer.decision_id).accepted == 0
        assert len(way.paths) == asked


def test_rewards_of_the_undecided_are_left_out(shared: Server, kind: str) -> None:
    with (
        proxy(DROP, PASS, behind=shared.url) as way,
        asking(kind, way.url, "digits", key=DIGITS_KEY, fallback=True, attempts=1) as client,
    ):
        answers = [client.decide(ACTIONS) for _ in range(2)]
        assert [answer.decided for answer in answers] == [False, True]
        outcomes = [OutcomeRequest(decision_id=each.decision_id, reward=1.0) for each in answers]
        assert client.rewards(outcomes).accepted == 1


def test_a_fallback_hides_no_mistake(shared: Server, kind: str) -> None:
    with (
        asking(kind, shared.url, "digits", key=DIGITS_KEY, fallback=True) as client,
        pytest.raises(ServiceError, match="expected unique ids"),
    ):
        client.decide([{"id": "a"}, {"id": "a"}])
    with (
        asking(kind, shared.url, "digits", key="of-nobody", fallback=True) as client,
        pytest.raises(AccessError),
    ):
        client.decide(ACTIONS)


@pytest.mark.parametrize(("actions", "excluded"), [([], []), (["a"], ["a"])])
def test_without_a_baseline_there_is_no_fallback(
    kind: str, actions: list[str], excluded: list[str]
) -> None:
    with (
        asking(kind, "http://127.0.0.1:9", "digits", fallback=True) as client,
        pytest.raises(UnavailableError),
    ):
        client.decide([{"id": each} for each in actions], excluded=excluded)


ids = st.sampled_from("abcdef")


@given(st.data())
def test_the_fallback_is_what_the_service_plays_without_a_generation(data: st.DataObject) -> None:
    """The service's own words are the oracle: its baseline, for the same request."""
    scorer = Scorer({"shop": LoopConfig()})
    actions = [Action(each) for each in "abcdef"]
    excluded = sorted(data.draw(st.sets(ids, max_size=3)))
    baseline = data.draw(st.none() | ids)
    count = data.draw(st.integers(1, 6 - len(excluded)))
    own: dict[str, Any] = {"actions": actions, "excluded": excluded, "baseline": baseline}
    ranked, dealt = RankRequest(**own, depth=count), SlateRequest(**own, size=count)
    stand_in: Any = baseline_answer("shop", calls.Call("rank", ranked, RankResponse))
    ranking = scorer.rank("shop", ranked)
    assert stand_in.ranking == [actions[index].id for index in ranking.order]
    assert [(each.slot, each.index, each.pmf) for each in stand_in.drawn] == [
        (each.slot, each.chosen, each.pmf) for each in ranking.decisions
    ]
    stand_in = baseline_answer("shop", calls.Call("slate", dealt, SlateResponse))
    assert [(each.slot, each.index) for each in stand_in.slate] == [
        (each.slot, each.chosen) for each in scorer.decide_slate("shop", dealt)
    ]
    slots = data.draw(
        st.lists(
            st.builds(
                Slot,
                id=st.uuids().map(str),
                excluded=st.lists(ids, max_size=5, unique=True),
                baseline=st.none() | ids,
            ),
            min_size=1,
            max_size=6,
        )
    )
    request = SlotsRequest(actions=actions, slots=slots)
    stand_in = baseline_answer("shop", calls.Call("slots", request, SlotsResponse))
    try:
        filled = scorer.decide_slots("shop", request)
    except InvalidInputError:
        assert stand_in is None
    else:
        assert [(each.slot, each.index) for each in stand_in.slots] == [
            (each.slot, each.chosen) for each in filled
        ]


def test_it_loads_nothing_that_a_request_path_has_no_use_for(
    record_property: Any,
) -> None:
    """In a process of its own, which says how long it took."""
    script = """
import sys, time
started = time.perf_counter()
from croupier.service.client import AsyncClient, Client
print(time.perf_counter() - started)
print(*sys.modules)
"""
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    seconds, modules = printed.splitlines()
    record_property("import_seconds", float(seconds))
    tops = {name.partition(".")[0] for name in modules.split()}
    heavy = {"numpy", "scipy", "sklearn", "mlflow", "vowpal_wabbit_next", "onnxruntime", "polars"}
    assert not tops & (heavy | {"deltalake", "uvicorn", "starlette", "prometheus_client"})
    ours = {name for name in modules.split() if name.startswith("croupier.")}
    assert not ours & {"croupier.service.app", "croupier.service.scorer", "croupier.eventlog"}
