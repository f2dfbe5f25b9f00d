"""API keys: who is let in where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import ALL_KEY, DIGITS_KEY, HASHED_KEY

if TYPE_CHECKING:
    from tests.service.conftest import Serve
    from tests.service.running import Answer, Caller

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


SCOPED = """
[service]
port = 0

[service.keys]
asker = { key = "key-of-the-asker", scopes = ["decide"] }
teller = { key = "key-of-the-teller", scopes = ["reward"] }
boss = { key = "key-of-the-boss", scopes = ["admin"] }
judge = { key = "key-of-the-judge", scopes = ["judge"] }
chief = { key = "key-of-the-chief", scopes = ["override"] }
plain = { key = "key-without-scopes" }

[loops.digits]
"""
DECIDE = b'{"actions": [{"id": "a"}, {"id": "b"}]}'
REWARD = b'{"decision_id": "d", "reward": 1.0}'
JUDGE = b'{"decision_id": "d", "other_decision_id": "e", "auditor": "ada", "distance": 0.1}'
ROUTES = [
    ("decide", DECIDE),
    ("rank", DECIDE),
    ("reward", REWARD),
    ("activate", BODY),
    ("judge", JUDGE),
]
SLOTS = b'{"actions": [{"id": "a"}], "slots": [{"id": "s"}]}'
OURS = [
    *ROUTES,
    ("slots", SLOTS),
    ("slate", b'{"actions": [{"id": "a"}], "size": 1}'),
    ("acknowledge", b'{"alert_id": "a", "by": "bo"}'),
    (
        "override",
        b'{"action": "promote", "generation": 1, "champion": 0, "reason": "it is", "by": "bo"}',
    ),
]
RANK = b'{"actions": [{"id": "a", "features": []}]}'
SCOPES = {
    "key-of-the-asker": {"decide"},
    "key-of-the-teller": {"reward"},
    "key-of-the-boss": {"admin"},
    "key-of-the-judge": {"judge"},
    "key-of-the-chief": {"override"},
    "key-without-scopes": {"decide", "reward"},
}


def needed(route: str) -> str:
    scopes = {"activate": "reward", "acknowledge": "judge"}
    own = {"reward", "judge", "override"}
    return route if route in own else scopes.get(route, "decide")


def check(answer: Answer, key: str, scope: str) -> None:
    if scope in SCOPES[key]:
        assert answer.status in {200, 201, 204}, answer
    else:
        assert answer.status == 403
        assert f"lacks the scope '{scope}'" in answer.error["message"]
        assert answer.error["target"] == "scopes"


def test_a_key_may_do_what_its_scopes_say(serve: Serve) -> None:
    server = serve(SCOPED)
    with server.caller() as caller:
        for key in SCOPES:
            for route, body in OURS:
                answer = caller.send("POST", f"/v1/loops/digits/{route}", body, {"X-Api-Key": key})
                check(answer, key, needed(route))
            subscription = {"Ocp-Apim-Subscription-Key": key}
            for path, body, scope in (
                ("rank", RANK, "decide"),
                ("events/e/reward", b'{"value": 1}', "reward"),
                ("events/e/activate", b"", "reward"),
            ):
                answer = caller.send("POST", f"/personalizer/v1.0/{path}", body, subscription)
                check(answer, key, scope)
            settings = "/personalizer/v1.0/configurations/service"
            check(caller.send("GET", settings, headers=subscription), key, "admin")


def test_whoever_has_no_key_learns_nothing_of_scopes(serve: Serve) -> None:
    server = serve(SCOPED)
    with server.caller() as caller:
        for path in ("/personalizer/v1.0/configurations/service", "/personalizer/v1.0/model"):
            assert caller.send("GET", path, headers={}).status == 401


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("0.0.0.0", 403)])
def test_without_keys_only_this_machine_is_an_admin(serve: Serve, host: str, status: int) -> None:
    server = serve(
        f'[service]\nport = 0\nhost = "{host}"\nallow_anonymous = true\n[loops.digits]\n'
    )
    answer = server.get("/personalizer/v1.0/configurations/service")
    assert answer.status == status
    if status == 403:
        assert answer.error["target"] == "scopes"
    assert server.post("digits/decide", DECIDE).status == 200
