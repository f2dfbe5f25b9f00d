"""Whatever is sent to the hot routes, the answer is JSON and never the server's fault."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

    from tests.service.running import Answer, Caller, Server

# How many times as many examples as usual.
EFFORT = int(os.environ.get("CROUPIER_FUZZ_EFFORT", "1"))
# Without an oracle, with one, and with none asked.
LOOPS = st.sampled_from(["digits", "trained", "watching"])
ROUTES = st.sampled_from(["decide", "rank", "slots", "slate", "reward", "activate"])

# Text may hold lone surrogates, which Python's JSON writes as escapes, and numbers may be none.
TEXT = st.text(max_size=20) | st.text(st.characters(codec=None), max_size=5)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 2**64, -(2**70), 10**400, 1e308])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
NAMES = st.sampled_from(
    ["actions", "id", "features", "context", "decision_id", "excluded", "baseline", "deferred",
     "audit", "reward", "outcome_id", "slot", "guardrails", "depth", "slots", "size"]
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=5) | st.dictionaries(NAMES | TEXT, below, max_size=5),
    max_leaves=30,
)
FEATURES = st.dictionaries(TEXT, JSON, max_size=4)
IDS = st.text(min_size=1, max_size=5) | st.sampled_from(["a", "b"])


@st.composite
def decisions(draw: st.DrawFn) -> dict[str, Any]:
    """A request that is valid but for what is in its features."""
    ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    optional: dict[str, SearchStrategy[Any]] = {
        "context": FEATURES,
        "audit": FEATURES,
        "decision_id": IDS,
        "baseline": st.sampled_from(ids),
        "excluded": st.lists(st.sampled_from(ids), max_size=3),
        "deferred": st.booleans(),
    }
    actions = [{"id": each, "features": draw(FEATURES)} for each in ids]
    return {"actions": actions, **draw(st.fixed_dictionaries({}, optional=optional))}


@st.composite
def of_any_shape(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A decision's route and request, for one action or several."""
    request = draw(decisions())
    route = draw(st.sampled_from(["decide", "rank", "slots", "slate"]))
    count = draw(st.integers(1, 3))
    if route == "rank":
        request["depth"] = count
    elif route == "slate":
        request["size"] = count
    elif route == "slots":
        rules = {name: request.pop(name) for name in ("excluded", "baseline") if name in request}
        request["slots"] = [
            {"id": str(place), "features": draw(FEATURES), **rules} for place in range(count)
        ]
    return route, request


OUTCOMES: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"decision_id": IDS, "reward": st.floats(0.0, 1.0)},
    optional={"outcome_id": IDS, "slot": IDS, "guardrails": st.dictionaries(TEXT, NUMBERS)},
)
VALID: SearchStrategy[tuple[str, Any]] = st.one_of(
    of_any_shape(),
    st.tuples(st.just("reward"), OUTCOMES | st.lists(OUTCOMES, max_size=4)),
    st.tuples(st.just("activate"), st.fixed_dictionaries({"decision_id": IDS})),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A valid request in which one value, anywhere, is exchanged, left out or made up."""
    route, value = draw(VALID)
    node: Any = value
    places = st.booleans()
    while isinstance(node, dict | list) and node and draw(places):
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not draw(places):
            if draw(places):
                node[key] = draw(JSON)
            else:
                del node[key]
            return route, value
        node = node[key]
    if isinstance(node, dict):
        node[draw(NAMES | TEXT)] = draw(JSON)
    elif isinstance(node, list):
        node.append(draw(JSON))
    return route, value


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid body with some bytes cut out and others put in."""
    route, value = draw(VALID)
    body = encoded(value)
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(body))] * 2)))
    return route, body[:start] + draw(st.binary(max_size=10)) + body[end:]


# By kind: how many, and what.
REQUESTS: dict[str, tuple[int, SearchStrategy[tuple[str, bytes]]]] = {
    "valid but for its features": (300, VALID.map(lambda v: (v[0], encoded(v[1])))),
    "mutated": (400, mutated().map(lambda v: (v[0], encoded(v[1])))),
    "damaged": (300, damaged()),
    "any JSON": (500, st.tuples(ROUTES, JSON.map(encoded))),
    "any bytes": (1000, st.tuples(ROUTES, st.binary(max_size=200))),
}


@pytest.fixture(scope="module")
def connection(shared: Server) -> Iterator[Caller]:
    """One connection for all examples: after any of them it still has to be in step."""
    with shared.caller() as caller:
        yield caller


def check(route: str, answer: Answer) -> int:
    assert answer.status in {200, 400, 413}, answer
    if answer.status != 200:
        assert answer.error["code"] in {"InvalidRequest", "BodyTooLarge"}
    elif route in {"decide", "rank", "slots"}:
        named = {"decide": [answer.json], "rank": answer.json.get("drawn")}
        for decided in named.get(route) or answer.json["slots"]:
            assert math.isclose(math.fsum(decided["pmf"]), 1.0, abs_tol=1e-9)
            assert decided["propensity"] == decided["pmf"][decided["index"]] > 0.0
    elif route == "slate":
        members = answer.json["slate"]
        assert math.isclose(math.fsum(answer.json["inclusion"]), len(members), abs_tol=1e-9)
        assert len({member["index"] for member in members}) == len(members)
    else:
        assert answer.json["accepted"] >= 0
    return answer.status


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_request_is_the_servers_fault(connection: Caller, kind: str) -> None:
    examples, requests = REQUESTS[kind]
    seen = set()

    @settings(
        max_examples=EFFORT * examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(LOOPS, requests)
    def fuzz(loop: str, sent: tuple[str, bytes]) -> None:
        route, body = sent
        seen.add(check(route, connection.post(f"{loop}/{route}", body)))

    run: Callable[[], None] = fuzz
    run()
    assert 400 in seen
    assert 200 in seen or kind.startswith("any")


def test_everything_acknowledged_can_be_read_again(shared: Server) -> None:
    # Decodes every record: what the fuzzing got in must not stop the sink.
    assert shared.events()
