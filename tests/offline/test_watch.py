"""Alerts of the scorers: what rules say of readings, and that looks go on beside a night."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from croupier.offline.alerts import Alert, with_alerts
from croupier.offline.alerts_config import (
    AlertsConfig,
    LatencyRule,
    RefusalRule,
    UnreachableRule,
)
from croupier.offline.backup import backup
from croupier.offline.lake import Lake
from croupier.offline.scorer_alerts import FORGOTTEN_US, Watched, judge_scorers
from croupier.offline.scrapes import Readiness, ScrapeFailedError, parse_metrics
from croupier.offline.summaries.tables import SCORERS, SUMMARY_SCHEMAS, SummaryState, summaries_of
from croupier.offline.watch import look
from croupier.service.metrics import Metrics
from tests.processes import free_port

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from croupier.offline.scrapes import Scrape

MINUTE = 60_000_000
AWAY = ScrapeFailedError("it doesn't answer")
RULES = AlertsConfig(
    latency=LatencyRule(p99="50 ms", window="5 min", lasting="2 min", least_requests=100),
    refusals=RefusalRule(window="5 min", lasting="0 s"),
    unreachable=UnreachableRule(lasting="1 min"),
)
AT_ONCE = AlertsConfig(
    latency=LatencyRule(p99="50 ms", lasting="0 s"),
    refusals=RefusalRule(lasting="0 s"),
    unreachable=UnreachableRule(lasting="0 s"),
)


class Scorer:
    """What a scorer counts, and shows."""

    def __init__(self) -> None:
        self.metrics = Metrics()

    def answer(self, requests: int, taken_s: float, route: str = "decide") -> None:
        for _ in range(requests):
            self.metrics.latency[route].observe(taken_s)

    def refuse(self, requests: int, code: str = "LogUnavailable") -> None:
        self.metrics.errors.labels("503", code).inc(requests)

    def read(self, now_us: int, log: str = "ok") -> Scrape:
        ready = Readiness(status="ready", log=log, registry="ok")
        return parse_metrics(self.metrics.render().decode(), ready, at=now_us / 1e6)


class Looks:
    """One look after the other, each at its time."""

    def __init__(self, config: AlertsConfig = RULES) -> None:
        self.config = config
        self.watched = Watched()
        self.undecided: frozenset[str] = frozenset()

    def __call__(self, minute: float, **answers: Scorer | Scrape | ScrapeFailedError) -> list[str]:
        now = round(minute * MINUTE)
        read = {
            name: each.read(now) if isinstance(each, Scorer) else each
            for name, each in answers.items()
        }
        found = judge_scorers(self.watched, read, self.config, now_us=now)
        self.watched, self.undecided = found.watched, found.undecided
        self.told = {each.rule: each.told for each in found.alerts}
        return sorted(self.told)


def test_a_route_that_is_slow_for_long_enough_is_an_alert_until_it_is_not() -> None:
    looks, scorer = Looks(), Scorer()
    scorer.answer(10_000, 0.4)
    assert looks(10, a=scorer) == []
    assert looks.undecided == {"latency"}, "what it counted before says nothing of now"
    for minute in (11, 12):
        scorer.answer(197, 0.004)
        scorer.answer(3, 0.08)
        scorer.answer(200, 0.004, "reward")
        assert looks(minute, a=scorer) == []
        assert "latency" in looks.undecided
    scorer.answer(3, 0.08)
    scorer.answer(197, 0.004)
    assert looks(13, a=scorer) == ["latency"]
    # 9 of 600 are in (50, 100] ms, of which the 594th is the third.
    assert "66.7 ms at decide (of 600 requests); 50 ms are allowed" in looks.told["latency"]
    assert "reward" not in looks.told["latency"]
    # The window still has them.
    assert looks(17, a=scorer) == ["latency"]
    assert looks(19, a=scorer) == []
    assert looks.undecided == frozenset()


def test_the_percentile_is_of_all_scorers_together() -> None:
    for slow_requests, found in ((90, []), (150, ["latency"])):
        looks, fast, slow = Looks(AT_ONCE), Scorer(), Scorer()
        looks(1, fast=fast, slow=slow)
        fast.answer(9_900, 0.004)
        slow.answer(slow_requests, 0.2)
        assert looks(2, fast=fast, slow=slow) == found


def test_few_requests_say_nothing() -> None:
    looks, scorer = Looks(AT_ONCE), Scorer()
    looks(1, a=scorer)
    scorer.answer(99, 0.2)
    assert looks(2, a=scorer) == []
    scorer.answer(1, 0.2)
    assert looks(3, a=scorer) == ["latency"]


def test_a_scorer_that_was_started_anew_counts_from_nothing() -> None:
    looks, before = Looks(AT_ONCE), Scorer()
    before.answer(5_000, 0.004)
    looks(1, a=before)
    after = Scorer()
    after.answer(300, 0.2)
    assert looks(2, a=after) == ["latency"]
    assert "(of 300 requests)" in looks.told["latency"]
    after.answer(100, 0.2)
    looks(3, a=after)
    assert "(of 400 requests)" in looks.told["latency"]


def test_refusals_of_the_log_are_an_alert_and_others_are_none() -> None:
    looks, scorer = Looks(), Scorer()
    scorer.refuse(7)
    looks(1, a=scorer)
    scorer.refuse(9, "InternalError")
    assert looks(2, a=scorer) == []
    scorer.refuse(2)
    assert looks(3, a=scorer) == ["refusals"]
    assert looks.told["refusals"] == "2 requests were refused in the last 5 min."
    assert looks(9, a=scorer) == []
    assert looks(10, a=scorer.read(10 * MINUTE, log="the disk is full")) == ["refusals"]
    assert looks.told["refusals"] == "A scorer says of it: the disk is full."


def test_a_scorer_that_does_not_answer_is_an_alert_and_the_others_are_judged() -> None:
    looks, there = Looks(), Scorer()
    looks(1, a=there, b=there)
    assert looks(2, a=there, b=AWAY) == []
    assert looks.undecided == {"unreachable"}
    there.refuse(1)
    assert looks(3, a=there, b=AWAY) == ["refusals", "unreachable"]
    assert looks.told["unreachable"] == "1 of 2: b since 00:02 UTC."
    assert looks(4, a=there, b=there) == ["refusals"]


def test_while_no_scorer_answers_nobody_knows_more_of_them() -> None:
    looks, scorer = Looks(AT_ONCE), Scorer()
    looks(1, a=scorer)
    scorer.answer(100, 0.2)
    scorer.refuse(1)
    assert looks(2, a=scorer) == ["latency", "refusals"]
    assert looks(3, a=AWAY) == ["unreachable"]
    assert looks.undecided == {"latency", "refusals"}


def test_after_a_long_time_without_a_look_what_lasts_is_counted_anew() -> None:
    for pause_us, found in ((FORGOTTEN_US, ["unreachable"]), (FORGOTTEN_US + 1, [])):
        looks = Looks()
        looks(1, a=AWAY)
        assert looks(1 + pause_us / MINUTE, a=AWAY) == found


def test_rules_can_be_turned_off() -> None:
    off = AlertsConfig(
        latency=LatencyRule(on=False, lasting="0 s"),
        refusals=RefusalRule(on=False),
        unreachable=UnreachableRule(on=False),
    )
    looks, scorer = Looks(off), Scorer()
    looks(1, a=scorer)
    scorer.answer(100, 0.2)
    scorer.refuse(1)
    assert looks(2, a=scorer, b=AWAY) == []
    assert looks.undecided == frozenset()


def test_what_is_undecided_stays_as_it_is() -> None:
    slow = Alert(rule="latency", severity="warning", title="Slow", told="60 ms", page="")
    nothing = SUMMARY_SCHEMAS["alerts"].to_frame()
    first = with_alerts(nothing, [slow], loop=SCORERS, now_us=1)
    later = with_alerts(first, [], loop=SCORERS, now_us=2, undecided={"latency"})
    assert later.equals(first)
    assert with_alerts(first, [], loop=SCORERS, now_us=2)["closed"].is_not_null().all()


def nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


def alerts_of(lake: Lake, loop: str) -> pl.DataFrame:
    return summaries_of(lake).read(loop, "alerts")


def test_looks_and_nights_write_side_by_side_and_a_backup_is_whole(tmp_path: Path) -> None:
    root = tmp_path / "data"
    lake = Lake(root / "lake")
    summaries, stop = summaries_of(lake), threading.Event()
    night = Alert(rule="support", severity="warning", title="Thin", told="9", page="evaluation")
    done: list[int] = []

    def nights() -> None:
        table = SUMMARY_SCHEMAS["alerts"].to_frame()
        now = 0
        while not stop.wait(0.002):
            now += 1
            # It opens and closes by turns.
            found = [night] if now % 2 else []
            table = with_alerts(table, found, loop="shop", now_us=now)
            summaries.write("shop", {"alerts": table}, SummaryState(format=1, made=now))

    def looking() -> None:
        now = 1_000_000
        while not stop.wait(0.002):
            now += 1
            look(lake, [address], AT_ONCE, seen=root / "watch.json", now_us=now)
        done.append(now)

    address = nobody()
    with lake.lock():
        threads = [threading.Thread(target=each) for each in (nights, looking)]
        for each in threads:
            each.start()
        while len(alerts_of(lake, "shop")) < 20 or alerts_of(lake, SCORERS).is_empty():
            assert threads[1].is_alive()
        stop.set()
        for each in threads:
            each.join()
    assert set(alerts_of(lake, "shop")["rule"]) == {"support"}
    (row,) = alerts_of(lake, SCORERS).to_dicts()
    assert (row["rule"], row["closed"]) == ("unreachable", None)
    assert summaries.loops() == ["shop"]

    stop.clear()
    thread = threading.Thread(target=looking)
    thread.start()
    for number in range(5):
        copy = tmp_path / f"backup-{number}"
        backup(root, lake, copy)
        assert alerts_of(Lake(copy / "lake"), SCORERS)["alert_id"].to_list() == [row["alert_id"]]
    stop.set()
    thread.join()
    assert len(done) == 2, "no look has failed"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("dns+http://nobody.invalid:8080", "1 of 1: dns+http://nobody.invalid:8080 since"),
        ("dns+http://127.0.0.1:9", "1 of 1: http://127.0.0.1:9 since"),
    ],
)
def test_a_name_stands_for_all_that_it_resolves_to(address: str, told: str, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    found = look(lake, [address], AT_ONCE, seen=tmp_path / "watch.json", now_us=MINUTE)
    (row,) = found.opened
    assert row["told"].startswith(told)


def test_a_file_of_another_release_is_taken_for_none(tmp_path: Path) -> None:
    seen: Any = tmp_path / "watch.json"
    seen.write_text('{"scrapes": 7}')
    lake = Lake(tmp_path / "lake")
    for minute in (1, 2):
        found = look(lake, [nobody()], AT_ONCE, seen=seen, now_us=minute * MINUTE)
        assert len(found.open) == 1
    assert found.opened == []
