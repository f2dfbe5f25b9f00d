"""API keys: who is let in where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import ALL_KEY, DIGITS_KEY, HASHED_KEY

if TYPE_CHECKING:
    from tests.service.running import Caller

BODY = b'{"decision_id": "d"}'


def status(caller: Caller, loop: str, headers: dict[str, str]) -> int:
    answer = caller.send("POST", f"/v1/loops/{loop}/activate", BODY, headers)
    if answer.status != 200:
        codes = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound"}
        assert answer.error["code"] == codes[answer.status]
    return answer.status


@pytest.mark.parametrize("name", ["X-Api-Key", "Authorization"])
@pytest.mark.parametrize(
    ("key", "loop", "expected"),
    [
        (ALL_KEY, "digits", 200),
        (ALL_KEY, "scaled", 200),
        (ALL_KEY, "nowhere", 404),
        (DIGITS_KEY, "digits", 200),
        (DIGITS_KEY, "scaled", 403),
        # Whether there is such a loop is nothing that this key may find out.
        (DIGITS_KEY, "nowhere", 403),
        (HASHED_KEY, "digits", 200),
        (HASHED_KEY, "scaled", 200),
        (HASHED_KEY, "watching", 403),
        ("not-a-known-key", "digits", 401),
        (ALL_KEY[:-1], "digits", 401),
        (ALL_KEY.upper(), "digits", 401),
        ("", "digits", 401),
    ],
)
def test_a_key_opens_its_loops(
    caller: Caller, name: str, key: str, loop: str, expected: int
) -> None:
    value = key if name == "X-Api-Key" else f"Bearer {key}"
    assert status(caller, loop, {name: value}) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ALL_KEY},
        {"Authorization": f"Basic {ALL_KEY}"},
        {"Authorization": "Bearer"},
        {"Cookie": f"X-Api-Key={ALL_KEY}"},
    ],
    ids=str,
)
def test_a_key_in_the_wrong_place_is_none(caller: Caller, headers: dict[str, str]) -> None:
    assert status(caller, "digits", headers) == 401


def test_the_scheme_is_written_as_one_likes(caller: Caller) -> None:
    assert status(caller, "digits", {"Authorization": f"bEARER  {ALL_KEY}"}) == 200


def test_a_401_says_how_to_authenticate(caller: Caller) -> None:
    refused = caller.send("POST", "/v1/loops/digits/activate", BODY, {})
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_probes_need_no_key(caller: Caller, path: str) -> None:
    assert caller.send("GET", path, headers={}).status == 200
