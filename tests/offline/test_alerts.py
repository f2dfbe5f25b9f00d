"""Alerts: when the rules open and close them, and that people are told of each, over real wires."""

from __future__ import annotations

import json
import socketserver
import threading
from datetime import date, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import pytest

from croupier.offline.alerts import Alert, AlertRules, found_alerts, with_alerts
from croupier.offline.alerts_config import AlertsConfig, EmailConfig
from croupier.offline.delivery import deliver_alerts
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS, SummaryState, summaries_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = date(2026, 11, 1)
RULES = AlertRules()
NOTHING = SUMMARY_SCHEMAS["nights"].to_frame()
GOOD: dict[str, Any] = {"decisions": 1000, "joined": 1000, "outcomes": 500}


def days(*changes: dict[str, int]) -> pl.DataFrame:
    rows = [
        dict.fromkeys(SUMMARY_SCHEMAS["days"].names(), 0)
        | {"date": DAY + timedelta(days=number)}
        | GOOD
        | change
        for number, change in enumerate(changes)
    ]
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMAS["days"])


def generations(**values: Any) -> dict[int, dict[str, Any]]:
    return {3: dict.fromkeys(SCHEMAS["generations"].names()) | {"generation": 3} | values}


def rules_that_speak(
    table: pl.DataFrame, rows: dict[int, dict[str, Any]] | None = None, rules: AlertRules = RULES
) -> set[str]:
    return {each.rule for each in found_alerts(rules, rows or {}, table, NOTHING)}


def test_nothing_is_said_of_a_healthy_loop() -> None:
    rows = generations(
        oscillates=False, disparity_rises=False, propensity_p_value=0.2, ess=900.0, judged_rows=1000
    )
    assert rules_that_speak(days({}, {}, {}), rows) == set()


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"oscillates": True, "alternation_p_value": 0.001}, "oscillation"),
        ({"disparity_rises": True, "disparity_p_value": 0.001}, "disparity"),
        ({"violations_rise": True, "violation_p_value": 0.001}, "violations"),
        ({"ess": 99.0, "judged_rows": 5000}, "support"),
        ({"propensity_p_value": 1e-5}, "propensities"),
    ],
)
def test_a_generation_raises_the_rule_that_it_breaks(values: dict[str, Any], rule: str) -> None:
    assert rules_that_speak(days({}, {}), generations(**values)) == {rule}


def test_rules_can_be_turned_off() -> None:
    off = AlertRules(oscillation=False, least_effective=0.0, least_joined=0.0, most_orphans=1.0)
    table = days({"joined": 1, "orphans": 499}, {})
    assert rules_that_speak(table, generations(oscillates=True, ess=1.0), off) == set()


def test_the_last_day_does_not_count_as_its_windows_are_open() -> None:
    assert rules_that_speak(days({}, {"joined": 0})) == set()
    assert rules_that_speak(days({"joined": 949}, {})) == {"join_completeness"}
    assert rules_that_speak(days({"joined": 950}, {})) == set()
    assert rules_that_speak(days({"orphans": 26}, {})) == {"orphans"}
    few = {"decisions": 99, "joined": 0, "outcomes": 99, "orphans": 99}
    assert rules_that_speak(days(few, {})) == set()


def test_a_night_that_broke_off_is_critical() -> None:
    row = dict.fromkeys(SUMMARY_SCHEMAS["nights"].names()) | {"failed": "no such oracle"}
    nights = pl.DataFrame([row], schema=SUMMARY_SCHEMAS["nights"])
    (alert,) = found_alerts(RULES, {}, days({}), nights)
    assert (alert.rule, alert.severity, alert.told) == ("night", "critical", "no such oracle")


def alert(told: str, rule: Any = "orphans") -> Alert:
    return Alert(rule=rule, severity="warning", title="Orphans", told=told, page="data-quality")


def test_an_alert_keeps_its_id_from_opening_to_closing() -> None:
    table = SUMMARY_SCHEMAS["alerts"].to_frame()
    first = with_alerts(table, [alert("5 %")], loop="shop", now_us=1_000_000)
    second = with_alerts(first, [alert("6 %")], loop="shop", now_us=2_000_000)
    closed = with_alerts(second, [], loop="shop", now_us=3_000_000)
    again = with_alerts(closed, [alert("7 %")], loop="shop", now_us=4_000_000)
    assert first["alert_id"].to_list() == second["alert_id"].to_list()
    assert second["told"].to_list() == ["6 %"]
    assert [each.microsecond + 1_000_000 * each.second for each in second["last"]] == [2_000_000]
    assert closed["closed"].is_not_null().all()
    assert again["alert_id"].n_unique() == 2
    assert again["closed"].is_null().to_list() == [False, True]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake whose loop has one open alert."""
    lake = Lake(tmp_path / "lake")
    nothing = SUMMARY_SCHEMAS["alerts"].to_frame()
    table = with_alerts(nothing, [alert("5 % of 100")], loop="shop", now_us=1_000_000)
    summaries_of(lake).write("shop", {"alerts": table}, SummaryState(format=1, made=1))
    return lake


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted, and answers what it is told to."""

    received: list[dict[str, Any]]
    status: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).received.append(json.loads(body))
        self.send_response(type(self).status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    handler = type("Handler", (Hook,), {"received": [], "status": 200})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hooks/secret", handler
    server.shutdown()
    thread.join()
    server.server_close()


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as it takes to be sent a message."""

    letters: list[tuple[list[str], bytes]]

    def handle(self) -> None:
        self._say("220 mailbox")
        recipients: list[str] = []
        for raw in self.rfile:
            line = raw.decode().strip()
            verb = line.split(" ", 1)[0].upper()
            if verb == "EHLO":
                self._say("250 mailbox")
            elif verb == "RCPT":
                recipients.append(line.split(":", 1)[1].strip().strip("<>"))
                self._say("250 yes")
            elif verb == "DATA":
                self._say("354 go on")
                letter = b"".join(iter(self.rfile.readline, b".\r\n"))
                type(self).letters.append((recipients, letter))
                self._say("250 kept")
            elif verb == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 fine")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def mailbox() -> Iterator[tuple[int, type[Mailbox]]]:
    handler = type("Handler", (Mailbox,), {"letters": []})
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], handler
        server.shutdown()
        thread.join()


def test_people_are_told_once_by_both_ways(
    lake: Lake, hook: tuple[str, type[Hook]], mailbox: tuple[int, type[Mailbox]]
) -> None:
    address, handler = hook
    port, box = mailbox
    email = EmailConfig(
        host="127.0.0.1", port=port, sender="c@example.org", recipients=("a@x.org", "b@x.org")
    )
    config = AlertsConfig(webhook=address, email=email, dashboard="https://d.example/")
    for now in (2_000_000, 3_000_000):
        assert deliver_alerts(lake, ["shop"], config, now_us=now) == []
    (told,) = handler.received
    link = "https://d.example/data-quality?loop=shop"
    assert told["text"] == f"shop: Orphans. 5 % of 100 {link}"
    assert told["alerts"][0]["rule"] == "orphans"
    assert told["alerts"][0]["since"] == "1970-01-01T00:00:01+00:00"
    ((recipients, letter),) = box.letters
    assert recipients == ["a@x.org", "b@x.org"]
    message = message_from_bytes(letter)
    assert message["subject"] == "[croupier] shop: Orphans"
    assert link in str(message.get_payload())
    delivered = summaries_of(lake).read("shop", "alerts")["delivered"].to_list()
    assert [each.second for each in delivered] == [2]


def test_what_could_not_be_delivered_is_tried_again(
    lake: Lake, hook: tuple[str, type[Hook]]
) -> None:
    address, handler = hook
    config = AlertsConfig(webhook=address)
    handler.status = 500
    (failure,) = deliver_alerts(lake, ["shop"], config, now_us=2_000_000)
    assert failure == "shop: the webhook answers 500"
    handler.status = 204
    assert deliver_alerts(lake, ["shop"], config, now_us=3_000_000) == []
    assert len(handler.received) == 2
    gone = AlertsConfig(webhook="http://127.0.0.1:9/secret")
    assert deliver_alerts(lake, ["shop"], gone, now_us=4_000_000) == [], "it was delivered"


def test_what_can_not_be_reached_is_said_without_its_secret(lake: Lake) -> None:
    email = EmailConfig(host="127.0.0.1", port=9, sender="c@x.org", recipients=("a@x.org",))
    config = AlertsConfig(webhook="http://127.0.0.1:9/secret", email=email)
    failures = deliver_alerts(lake, ["shop"], config, now_us=2_000_000)
    assert len(failures) == 2
    assert not any("secret" in each for each in failures)
    assert summaries_of(lake).read("shop", "alerts")["delivered"].is_null().all()


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (AlertsConfig, {"webhook": "ftp://x"}),
        (EmailConfig, {"host": "x", "sender": "nobody", "recipients": ["a@x"]}),
        (EmailConfig, {"host": "x", "sender": "a@x", "recipients": []}),
        (EmailConfig, {"host": "x", "sender": "a@x", "recipients": ["a@x"], "user": "me"}),
        (AlertRules, {"least_joined": 1.5}),
        (AlertsConfig, {"scorers": ["scorer-1:8080"]}),
        (AlertsConfig, {"scorers": ["http://user:secret@scorer-1"]}),
        (AlertsConfig, {"scorers": ["dns+https://scorers"]}),
        (AlertsConfig, {"scorers": ["http://a", "http://a"]}),
        (AlertsConfig, {"latency": {"p99": "1 s"}}),
        (AlertsConfig, {"latency": {"p99": "0 s"}}),
        (AlertsConfig, {"latency": {"least_requests": 0}}),
        (AlertsConfig, {"refusals": {"window": "0 s"}}),
        (AlertsConfig, {"unreachable": {"lasting": "long"}}),
    ],
)
def test_what_can_not_be_meant_is_refused(type_: Any, values: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(values, type_)
