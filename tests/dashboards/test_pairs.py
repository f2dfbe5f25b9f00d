"""The page "Judge pairs" in a browser: from proposed pairs over a real service into the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from playwright.sync_api import expect

from croupier.dashboards.settings import JUDGE_KEY_VARIABLE, DashboardSettings
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.policy.events import Action, Judgement
from croupier.policy.fairness.config import IndividualFairness, LearnedDistance
from tests.dashboards.test_browser import browser, running_dashboard, visit
from tests.offline.logs import append, decision
from tests.service.running import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

__all__ = ("browser",)

KEY = "a-key-for-auditors-0123456789"
CONFIG = """
[service]
port = 0

[service.keys.board]
key = "a-key-for-auditors-0123456789"
scopes = ["judge"]

[service.keys.app]
key = "another-key-for-applications-0123"

[loops.loans]
[loops.loans.individual_fairness]
action = "approve"

[loops.loans.individual_fairness.auditors.board]
type = "learned"
features = ["income", "city"]
people = ["ada"]
"""
FAIRNESS = IndividualFairness(
    action="approve",
    auditors={"board": LearnedDistance(features=("income", "city"), people=("ada",))},
)
MONTH_AGO = 30 * 86_400_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose lake has decisions that treat cities differently."""
    server = Server(tmp_path_factory.mktemp("loans"), CONFIG, KEY)
    rng = np.random.default_rng(1)
    events = []
    for number in range(300):
        city = ["north", "south"][int(rng.integers(2))]
        approve = 0.8 if city == "north" else 0.3
        events.append(
            decision(
                f"loan-{number}",
                loop="loans",
                context={"income": round(float(rng.normal()), 3), "city": city},
                actions=[Action("decline"), Action("approve")],
                pmf=[1.0 - approve, approve],
                chosen=1,
                propensity=approve,
                audit={"gender": "f"},
            )
        )
    with SqliteEventLog(server.data_dir / "log", synchronous="normal") as log:
        append(log, events)
    server.run("sink")
    with running(server):
        yield server


@pytest.fixture(scope="module")
def page_url(server: Server) -> Iterator[str]:
    told = DashboardSettings(service=server.url, judged={"loans": FAIRNESS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(JUDGE_KEY_VARIABLE, KEY)
        with running_dashboard(server.data_dir, told) as (url, _):
            yield f"{url}/judge-pairs"


def judged(server: Server) -> list[Judgement]:
    return [each for each in server.events() if isinstance(each, Judgement)]


def settle(page: Page) -> None:
    page.get_by_text("As of the last sink").or_(page.get_by_text("with the next sink")).wait_for()
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)


def pair_shown(page: Page) -> tuple[str, ...]:
    names = page.get_by_text("First is decision").locator("code")
    expect(names).to_have_count(2)
    return tuple(sorted(names.all_inner_texts()))


def test_a_person_judges_what_is_proposed(browser: Browser, page_url: str, server: Server) -> None:
    before = len(judged(server))
    with visit(browser, page_url) as seen:
        page = seen.page
        settle(page)
        expect(page.get_by_text("The panel listens to ada.")).to_be_visible()
        alike = page.get_by_role("button", name="They are alike (0)")
        expect(alike).to_be_disabled()
        expect(page.get_by_text("Give your name to judge.")).to_be_visible()
        page.get_by_role("textbox", name="Your name").fill("ada")
        page.get_by_role("textbox", name="Your name").press("Enter")
        expect(alike).to_be_enabled()

        first = pair_shown(page)
        table = page.get_by_test_id("stTable").first
        expect(table).to_contain_text("probability of approve")
        expect(table).to_contain_text("audit.gender")
        alike.click()
        expect(page.get_by_text("Recorded for")).to_be_visible()
        settle(page)
        second = pair_shown(page)
        assert second != first

        page.get_by_role("button", name="Skip this pair").click()
        expect(page.get_by_text("Skipped.")).to_be_visible()
        settle(page)
        third = pair_shown(page)
        assert third not in {first, second}
        slider = page.get_by_role("slider")
        slider.focus()
        slider.press("ArrowRight")
        page.get_by_role("button", name="They may differ by 0.35").click()
        expect(page.get_by_text("treated differently by 0.35")).to_be_visible()
        settle(page)
        page.get_by_role("button", name="They are not alike (1)").click()
        expect(page.get_by_text("treated differently by 1 ")).to_be_visible()

    told = judged(server)[before:]
    assert [each.distance for each in told] == [0.0, 0.35, 1.0]
    assert {each.auditor for each in told} == {"ada"}
    assert {each.loop for each in told} == {"loans"}
    pairs = [tuple(sorted((each.decision_id, each.other_decision_id))) for each in told]
    assert pairs[:2] == [first, third]
    assert len({each.judgement_id for each in told}) == 3

    server.run("sink")
    rows = Lake(server.data_dir / "lake").scan("audits", "loans").collect()
    assert rows.filter(rows["auditor"] == "ada").height == len(judged(server))
    with visit(browser, page_url) as seen:
        settle(seen.page)
        standing = seen.page.get_by_test_id("stTable").last
        expect(standing).to_contain_text("ada")
        expect(standing).to_contain_text(str(len(set(pairs))))


def test_what_was_not_recorded_is_said_and_kept(
    browser: Browser, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, and without a scorer, nothing is logged and the pair stays."""
    monkeypatch.delenv(JUDGE_KEY_VARIABLE, raising=False)
    before = len(judged(server))
    for service, said in ((server.url, "wants a key of scope judge"), (None, "knows no scorer")):
        told = DashboardSettings(service=service, judged={"loans": FAIRNESS})
        with (
            running_dashboard(server.data_dir, told) as (url, _),
            visit(browser, f"{url}/judge-pairs") as seen,
        ):
            settle(seen.page)
            seen.page.get_by_role("textbox", name="Your name").fill("ada")
            seen.page.get_by_role("textbox", name="Your name").press("Enter")
            pair = pair_shown(seen.page)
            seen.page.get_by_role("button", name="They are alike (0)").click()
            expect(seen.page.get_by_text("Not recorded:")).to_be_visible()
            expect(seen.page.get_by_text(said)).to_be_visible()
            settle(seen.page)
            assert pair_shown(seen.page) == pair
    assert len(judged(server)) == before


def test_settings_come_as_json() -> None:
    told = DashboardSettings(service="http://localhost:1", judged={"loans": FAIRNESS})
    assert msgspec.json.decode(msgspec.json.encode(told), type=DashboardSettings) == told
