"""Whatever is sent to the hot routes, the answer is JSON and never the server's fault."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.conftest import DIGITS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

    from tests.service.running import Answer, Caller, Server

# How many times as many examples as usual.
EFFORT = int(os.environ.get("CROUPIER_FUZZ_EFFORT", "1"))
# Without an oracle, with one, and with none asked.
LOOPS = st.sampled_from(["digits", "trained", "watching"])
ROUTES = st.sampled_from(["decide", "rank", "slots", "slate", "reward", "activate", "judge"])

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
JUDGEMENTS: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "decision_id": IDS.map("one-{}".format),
        "other_decision_id": IDS.map("two-{}".format),
        "auditor": IDS,
        "distance": st.floats(0.0, 1.0),
    },
    optional={"judgement_id": IDS},
)
VALID: SearchStrategy[tuple[str, Any]] = st.one_of(
    of_any_shape(),
    st.tuples(st.just("reward"), OUTCOMES | st.lists(OUTCOMES, max_size=4)),
    st.tuples(st.just("activate"), st.fixed_dictionaries({"decision_id": IDS})),
    st.tuples(st.just("judge"), JUDGEMENTS),
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


CALLERS = 4
# Put in anywhere: what JSON has no room for, what it has too much room for, and its own signs.
TOKENS = [
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"0.1e-400", b"9" * 400,
    b"18446744073709551616", b'"', b'""', b'"\\ud800"', b'"\\u0000"', b"\\", b"\xff\xfe",
    b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b",", b":", b"[" * 300,
    b'{"a":' * 300, b"[]" * 50, b" " * 500, b'"id":', b'"features":', b'"actions":', b'"slots":',
    b'"depth":', b'"size":', b'"excluded":', b'"reward":', b'{"id":"a"}', b'"x":1,', b"-", b"e",
    b".", b"1", b"/*", b"//", b"'",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1e308, 2**63, 2**64, 10**40, "", "a", "b", "\ud800",
    "x" * 300, [], {}, [1.5] * 40, ["a", "a"], {"": ""}, {"a": {"a": {"a": {"a": {"a": {}}}}}},
    [[[[[[[[1]]]]]]]], [{"id": "a"}, {"id": "b"}], {"id": "a", "features": {"x": 1}},
    {"x": [1, "y", None, {"z": 2}]},
]  # fmt: skip
PERSONALIZER = [
    ("v1.0/rank", {"actions": [{"id": "a", "features": [{"x": 1}]}], "eventId": "e"}),
    ("v1.0/events/e/reward", {"value": 0.5}),
    ("v1.0/events/e/activate", {}),
    (
        "v1.1-preview.3/multislot/rank",
        {
            "actions": [{"id": "a", "features": []}, {"id": "b", "features": [{"x": [1, 2]}]}],
            "slots": [{"id": "s", "baselineAction": "a", "features": [{"y": "z"}]}],
            "contextFeatures": [{"c": {"d": 1}}],
        },
    ),
    (
        "v1.1-preview.3/multislot/events/e/reward",
        {"reward": [{"slotId": "s", "value": 1.0}]},
    ),
]


def corpus() -> list[tuple[str, bytes]]:
    """Paths and bodies to begin with: some hundreds of each kind, and Personalizer's."""
    found = [(f"/personalizer/{path}", encoded(value)) for path, value in PERSONALIZER * 20]

    @settings(
        max_examples=500,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        LOOPS, st.one_of([REQUESTS[kind][1] for kind in ("valid but for its features", "mutated")])
    )
    def collect(loop: str, sent: tuple[str, bytes]) -> None:
        route, body = sent
        found.append((f"/v1/loops/{loop}/{route}", body))

    run: Callable[[], None] = collect
    run()
    return found


def altered(body: bytes, others: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """A body with something in it exchanged, by its bytes or by its values."""
    if rng.random() < 0.6:
        with suppress(ValueError, RecursionError):
            value = json.loads(body)
            for _ in range(rng.choice((0, 1, 1, 2))):
                value = rearranged(value, rng)
            if isinstance(value, dict) and "actions" in value and rng.random() < 0.7:
                # Or most of them would be refused for an id that another one had.
                value = {k: v for k, v in value.items() if k not in {"decision_id", "eventId"}}
            return encoded(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randint(0, len(body))
        end = min(len(body), start + rng.choice((0, 1, 1, 2, 5, 20, 100)))
        match rng.randrange(5):
            case 0:
                put = rng.choice(TOKENS)
            case 1:
                put = bytes(rng.randrange(256) for _ in range(rng.randint(0, 4)))
            case 2:
                put = body[start:end] * rng.choice((0, 2, 3))
            case 3:
                put = rng.choice(others)[1]
                put = put[rng.randint(0, len(put)) :]
            case _:
                at = rng.randint(0, len(body))
                put = body[at : at + end - start]
        body = body[:start] + put + body[end:]
    return body[:20_000]


def rearranged(value: Any, rng: random.Random) -> Any:
    """A JSON value in which one value, anywhere, is exchanged, left out, doubled or added."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    changed = value.copy()
    key = rng.choice(list(changed) if isinstance(changed, dict) else range(len(changed)))
    choice = rng.random()
    if choice < 0.7:
        changed[key] = rearranged(changed[key], rng)
    elif choice < 0.8:
        del changed[key]
    elif isinstance(changed, list):
        changed.append(rng.choice((changed[key], rng.choice(VALUES))))
    else:
        changed[rng.choice(("x", "id", "context", "features", str(key)))] = rng.choice(VALUES)
    return changed


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("inputs", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_so_many_altered_bodies_are_not_the_servers_fault(
    shared: Server, inputs: int, record_testsuite_property: Callable[[str, object], None]
) -> None:
    begun = corpus()

    def fuzz(number: int) -> Counter[int]:
        rng = random.Random(f"{inputs}-{number}")
        statuses: Counter[int] = Counter()
        headers = {"x-api-key": str(shared.key), "ocp-apim-subscription-key": DIGITS_KEY}
        with shared.caller() as caller:
            for _ in range(inputs // CALLERS):
                path, body = rng.choice(begun)
                answer = caller.send("POST", path, altered(body, begun, rng), headers)
                if path.startswith("/v1/loops/"):
                    check(path.rpartition("/")[2], answer)
                else:
                    assert answer.status in {201, 204, 400, 413}, answer
                    assert answer.status < 400 or answer.error["code"]
                statuses[answer.status] += 1
        return statuses

    with ThreadPoolExecutor(CALLERS) as pool:
        total: Counter[int] = sum(pool.map(fuzz, range(CALLERS)), Counter())
    assert total.total() == inputs
    assert {200, 201, 204, 400} <= set(total)
    for status, count in sorted(total.items()):
        record_testsuite_property(f"fuzz of {inputs:,}: {status}", count)


def test_everything_acknowledged_can_be_read_again(shared: Server) -> None:
    # Decodes every record: what the fuzzing got in must not stop the sink.
    assert shared.events()
