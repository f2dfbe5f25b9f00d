"""A decision that is asked for again: one answer, one record, whatever happened in between."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from croupier.policy.decision import DecisionRequest
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from croupier.policy.events import Action
from croupier.service.repeats import Repeats
from tests.service.running import unique

if TYPE_CHECKING:
    from tests.service.running import Caller, Server

ACTIONS = [{"id": "a"}, {"id": "b", "features": {"x": 1.0, "y": 2.0}}, {"id": "c"}]
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("digits/decide", {}),
    ("digits/rank", {"depth": 2}),
    ("digits/slots", {"slots": [{"id": "top"}, {"id": "side"}]}),
    ("digits/slate", {"size": 2}),
]


def records(server: Server, decision_id: str) -> int:
    return sum(getattr(event, "decision_id", None) == decision_id for event in server.events())


@pytest.mark.parametrize(("route", "more"), ROUTES, ids=[route for route, _ in ROUTES])
def test_a_repeated_request_gets_the_same_answer_and_is_logged_once(
    shared: Server, caller: Caller, route: str, more: dict[str, Any]
) -> None:
    decision_id = unique()
    request = {"actions": ACTIONS, "context": {"u": 1, "v": "x"}, "decision_id": decision_id} | more
    first = caller.post(route, request)
    # Clients may write the same JSON in another order.
    shuffled = dict(reversed(request.items())) | {"context": {"v": "x", "u": 1}}
    again = [caller.post(route, each) for each in (request, shuffled)]
    assert first.status == 200
    assert [each.body for each in again] == [first.body] * 2
    expected = {"digits/decide": 1}.get(route, 2)
    assert records(shared, decision_id) == expected


def test_requests_at_the_same_time_share_an_answer(shared: Server) -> None:
    decision_id = unique()
    request = {"actions": ACTIONS, "decision_id": decision_id}
    with ThreadPoolExecutor(12) as pool:
        bodies = set(pool.map(lambda _: shared.post("digits/decide", request).body, range(48)))
    assert len(bodies) == 1
    assert records(shared, decision_id) == 1


def test_an_id_is_not_for_another_request(shared: Server, caller: Caller) -> None:
    decision_id = unique()
    request: dict[str, Any] = {"actions": ACTIONS, "decision_id": decision_id}
    assert caller.post("digits/decide", request).status == 200
    for route, other in (
        ("digits/decide", request | {"context": {"u": 2}}),
        ("digits/decide", request | {"actions": ACTIONS[:2]}),
        ("digits/rank", request),
    ):
        answer = caller.post(route, other)
        assert answer.status == 400
        assert answer.json["error"]["target"] == "decision_id"
    assert records(shared, decision_id) == 1


def test_what_was_refused_can_be_asked_again(caller: Caller) -> None:
    decision_id = unique()
    wrong = {"actions": [{"id": "a"}, {"id": "a"}], "decision_id": decision_id}
    assert caller.post("digits/decide", wrong).status == 400
    right = {"actions": ACTIONS, "decision_id": decision_id}
    assert caller.post("digits/decide", right).status == 200


REQUEST = DecisionRequest(actions=[Action("a")], decision_id="d")


def run(scenario: Any) -> Any:
    return asyncio.run(scenario)


class Counter:
    """Answers with how often it was asked, or as it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.trouble: BaseException | None = None
        self.gate: asyncio.Event | None = None

    async def __call__(self) -> int:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        return self.calls


class TestRepeats:
    def test_trouble_is_shared_by_who_waits_and_then_forgotten(self) -> None:
        async def scenario() -> None:
            repeats, answer = Repeats(10), Counter()
            answer.gate, answer.trouble = asyncio.Event(), LogUnavailableError("full")
            both = [asyncio.create_task(repeats.once("x", "d", REQUEST, answer)) for _ in range(2)]
            await asyncio.sleep(0)
            answer.gate.set()
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            assert [type(each) for each in outcomes] == [LogUnavailableError] * 2
            assert (answer.calls, len(repeats)) == (1, 0)
            answer.trouble = None
            assert await repeats.once("x", "d", REQUEST, answer) == 2
            assert await repeats.once("x", "d", REQUEST, answer) == 2

        run(scenario())

    def test_a_client_that_waits_and_goes_away_takes_nothing_with_it(self) -> None:
        async def scenario() -> None:
            repeats, answer = Repeats(10), Counter()
            answer.gate = asyncio.Event()
            first, second, third = (
                asyncio.create_task(repeats.once("x", "d", REQUEST, answer)) for _ in range(3)
            )
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.sleep(0)
            answer.gate.set()
            assert [await first, await third] == [1, 1]
            assert second.cancelled()

        run(scenario())

    def test_the_oldest_are_forgotten_first(self) -> None:
        async def scenario() -> list[int]:
            repeats, answer = Repeats(3), Counter()
            for name in "abcd":
                await repeats.once("x", name, REQUEST, answer)
            assert len(repeats) == 3
            return [await repeats.once("x", name, REQUEST, answer) for name in "dcba"]

        assert run(scenario()) == [4, 3, 2, 5]

    def test_long_ones_do_not_take_the_room_of_all(self) -> None:
        async def scenario() -> list[int]:
            repeats, answer = Repeats(10, 100), Counter()
            for name, size in (("a", 40), ("b", 40), ("c", 40), ("d", 1)):
                await repeats.once("x", name, REQUEST, answer, size=size)
            assert len(repeats) == 3
            answer.trouble = LogUnavailableError("full")
            for _ in range(5):
                with pytest.raises(LogUnavailableError):
                    await repeats.once("x", "e", REQUEST, answer, size=90)
            # What failed has taken nothing.
            answer.trouble = None
            return [await repeats.once("x", name, REQUEST, answer, size=1) for name in "bcda"]

        assert run(scenario()) == [2, 3, 4, 10]

    @pytest.mark.parametrize(("capacity", "decision_id"), [(0, "d"), (3, None)])
    def test_without_an_id_or_room_everything_is_new(
        self, capacity: int, decision_id: str | None
    ) -> None:
        async def scenario() -> list[int]:
            repeats, answer = Repeats(capacity), Counter()
            found = [await repeats.once("x", decision_id, REQUEST, answer) for _ in range(3)]
            assert len(repeats) == 0
            return found

        assert run(scenario()) == [1, 2, 3]

    def test_another_request_under_the_same_id_is_refused(self) -> None:
        async def scenario() -> None:
            repeats, answer = Repeats(3), Counter()
            await repeats.once("x", "d", REQUEST, answer)
            other = DecisionRequest(actions=[Action("b")], decision_id="d")
            with pytest.raises(InvalidInputError, match="one of its own for every request"):
                await repeats.once("x", "d", other, answer)
            assert await repeats.once("y", "d", other, answer) == 2

        run(scenario())
