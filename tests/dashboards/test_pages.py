"""Every page in a browser, on a loop that was decided by the real scorer and learned from nightly.

One server and one browser serve all of it: what is checked is that pages open without a complaint,
can be read by everybody, say what the lake says, and that their controls do what they say.
"""

from __future__ import annotations

import importlib.resources
import io
import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import altair as alt
import polars as pl
import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from croupier.dashboards import generation_charts
from croupier.dashboards.launch import run_dashboard
from croupier.dashboards.settings import (
    DATA_DIR_VARIABLE,
    FEATURES_PASSWORD_VARIABLE,
    JUDGE_KEY_VARIABLE,
    PASSWORD_VARIABLE,
    DashboardSettings,
)
from croupier.offline.interactions import current_interactions
from croupier.offline.summaries.tables import SCORERS, summaries_of
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Acknowledgement, Override
from tests.dashboards.lakes import write_study
from tests.dashboards.months import FAIRNESS, LOOP, Town
from tests.dashboards.test_browser import Visit, browser, running_dashboard, visit
from tests.offline.logs import EPOCH_US
from tests.service.running import Server, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from croupier.offline.lake import Lake

__all__ = ("browser",)

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

KEY = "a-key-for-auditors-0123456789"
CONFIG = f"""
[service]
port = 0

[service.keys.board]
key = "{KEY}"
scopes = ["judge", "override"]

[alerts]
scorers = ["http://127.0.0.1:9"]

[alerts.unreachable]
lasting = "0 s"

[loops.{LOOP}]
"""
PAGES = {
    "": "Now",
    "alerts": "Alerts",
    "generations": "Generations",
    "evaluation": "Off-policy evaluation",
    "actions": "Actions and contexts",
    "fairness": "Fairness audit",
    "judge-pairs": "Judge pairs",
    "data-quality": "Data quality",
    "delays": "Delays",
    f"decision?loop={LOOP}&id=visit-000007": "One decision",
    "simulators": "Simulators",
}
_RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']"


@dataclass(frozen=True)
class Served:
    """The dashboard's address, and the scorer and lake behind it."""

    url: str
    server: Server
    lake: Lake


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("town")
    server = Server(folder, CONFIG, KEY)
    server.data_dir.mkdir()
    town = Town(server.data_dir, now=EPOCH_US // 86_400_000_000 * 86_400_000_000)
    for night in range(3):
        town.day(260)
        if night == 1:
            town.judge()
        town.night()
    write_study(server.data_dir / "simulations" / "lts")
    with running(server), pytest.MonkeyPatch.context() as patch:
        patch.setenv(JUDGE_KEY_VARIABLE, KEY)
        # It says that it is degraded until it has heard of the registry.
        wait_until(lambda: bool(server.readiness()["status"] == "ready"))
        told = DashboardSettings(judged={LOOP: FAIRNESS}, service=server.url)
        with running_dashboard(server.data_dir, told) as (url, _):
            yield Served(url, server, town.lake)


def settle(page: Page) -> None:
    """Wait until the script has run and what it drew is there."""
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)


@contextmanager
def opened(browser: Browser, served: Served, path: str, heading: str) -> Iterator[Visit]:
    with visit(browser, f"{served.url}/{path}") as seen:
        seen.page.get_by_role("heading", name=heading, exact=True).wait_for()
        settle(seen.page)
        yield seen


def choose(page: Page, label: str, option: str) -> None:
    box = page.get_by_test_id("stSelectbox").filter(has_text=label)
    offered = page.get_by_role("option", name=option, exact=True)
    for _ in range(10):
        box.locator("input").click()
        # A page that is drawn anew at this moment closes the list again.
        with suppress(PlaywrightTimeoutError):
            offered.wait_for(timeout=12_000)
            break
    offered.click()
    settle(page)


def downloaded(
    page: Page, number: int, holds: Callable[[pl.DataFrame], bool] = lambda _: True
) -> pl.DataFrame:
    """The data of a chart of the page, once it is as it is to be.

    What is asked for while the page is being drawn anew may never come, or be what was there.
    """
    deadline = time.monotonic() + 240
    while True:
        try:
            with page.expect_download(timeout=20_000) as download:
                page.get_by_role("button", name="Download this chart's data").nth(number).click()
            found = pl.read_csv(io.BytesIO(download.value.path().read_bytes()))
        except PlaywrightTimeoutError:
            found = None
        if found is not None and holds(found):
            return found
        assert time.monotonic() < deadline, f"not what was to come: {found}"


def downloads(page: Page, holds: Callable[[pl.DataFrame], bool]) -> pl.DataFrame:
    """The data of whichever chart of the page is as it is to be."""
    deadline = time.monotonic() + 240
    while True:
        buttons = page.get_by_role("button", name="Download this chart's data")
        for number in reversed(range(buttons.count())):
            with suppress(PlaywrightTimeoutError):
                with page.expect_download(timeout=20_000) as download:
                    buttons.nth(number).click(timeout=20_000)
                found = pl.read_csv(io.BytesIO(download.value.path().read_bytes()))
                if holds(found):
                    return found
        assert time.monotonic() < deadline, "no chart is as it was to come"


def taken(rows: pl.DataFrame) -> dict[str, int]:
    """By action, how many decisions took it."""
    shares = rows.filter(pl.col("kind") == "Share of the decisions")
    return dict(shares.select("action", "n").iter_rows())


def axe_script() -> str:
    try:
        package = importlib.resources.files("axe_playwright_python")
    except ModuleNotFoundError:
        if os.environ.get("CI") == "true":
            pytest.fail("no axe: install axe-playwright-python")
        pytest.skip("no axe: install axe-playwright-python")
    return (package / "axe.min.js").read_text()


@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens_and_everybody_can_read_it(
    browser: Browser, served: Served, path: str
) -> None:
    """No exception, no error in the console, nothing against WCAG 2.1 AA, no sideways scrolling."""
    axe = axe_script()
    with opened(browser, served, path, PAGES[path]) as seen:
        page = seen.page
        page.evaluate(axe)
        for width in (1440, 390):
            page.set_viewport_size({"width": width, "height": 1000})
            settle(page)
            found = page.evaluate(f"axe.run(document, {{runOnly: {_RULES}}})")
            against = [
                (each["id"], each["nodes"][0]["html"][:200], each["nodes"][0]["failureSummary"])
                for each in found["violations"]
            ]
            assert against == [], f"at {width} px"
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(overflow) == 0, f"at {width} px"


@pytest.mark.parametrize(
    ("module", "charts"),
    [
        ("now", 2),
        ("generations", 8),
        ("evaluation", 4),
        ("actions", 3),
        ("fairness", 3),
        ("quality", 4),
        ("delays", 1),
        ("simulators", 2),
    ],
)
def test_every_chart_keeps_to_vega_lites_schema(
    module: str, charts: int, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which pages don't look at when they draw."""
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(served.server.data_dir))
    monkeypatch.setattr(generation_charts.Unchecked, "to_dict", alt.LayerChart.to_dict)
    script = f"from croupier.dashboards import {module}\n{module}.show()"
    page = AppTest.from_string(script, default_timeout=120).run()
    assert [each.message for each in page.exception] == []
    assert len(page.get("vega_lite_chart")) == charts


def test_now_says_what_the_scorer_and_the_lake_say(browser: Browser, served: Served) -> None:
    with opened(browser, served, "", "Now") as seen:
        assert seen.metric("Scorer") == "ready"
        assert seen.metric("Log") == "ok"
        nights = summaries_of(served.lake).read(LOOP, "nights")
        assert seen.metric("Sunk last night") == f"{nights['sunk_decisions'].to_list()[-1]:,}"
        assert seen.metric("Joined last night") == f"{nights['joined'].to_list()[-1]:,}"
        expect(seen.page.get_by_text("A disparity").first).to_be_visible()
        hours = downloaded(seen.page, 0)
        assert hours["decisions"].sum() == 3 * 260


def test_actions_are_those_of_the_lake_and_controls_choose_among_them(
    browser: Browser, served: Served
) -> None:
    rows = served.lake.scan("decisions", LOOP).collect()
    everyone = dict(rows.group_by("action_id").len().iter_rows())
    with opened(browser, served, "actions", "Actions and contexts") as seen:
        page = seen.page
        downloaded(page, 0, lambda rows: taken(rows) == everyone)

        choose(page, "Generation", "0")
        expect(page).to_have_url(re.compile(r"generation=0"))
        first = rows.filter(pl.col("generation") == 0).group_by("action_id").len()
        downloaded(page, 0, lambda rows: taken(rows) == dict(first.iter_rows()))
        choose(page, "Generation", "All")

        choose(page, "Told apart by", "context.city")
        expect(page).to_have_url(re.compile(r"by=context.city"))
        expect(page.get_by_role("heading", name="by context.city")).to_be_visible()
        told = downloaded(page, 1, lambda rows: "segment" in rows.columns)
        city = pl.col("context").str.json_path_match("$.city")
        counted = rows.group_by(city.alias("segment"), "action_id").len()
        known = {(a, b): n for a, b, n in counted.iter_rows()}
        assert set(told["segment"]) == {"Bern", "Zürich"}
        assert {
            (a, b): n for a, b, n in told.select("segment", "action", "decisions").iter_rows()
        }.items() <= known.items()

        choose(page, "Period", "Last day")
        downloaded(page, 0, lambda rows: sum(taken(rows).values()) == 260)
        address = page.url
    with visit(browser, address) as seen:
        seen.page.get_by_role("heading", name="by context.city").wait_for()
        settle(seen.page)
        # A view that was sent is the same view.
        downloaded(seen.page, 0, lambda rows: sum(taken(rows).values()) == 260)


def test_data_quality_counts_what_the_lake_has(browser: Browser, served: Served) -> None:
    decided = served.lake.scan("decisions", LOOP).collect()
    joined = current_interactions(served.lake, LOOP).collect()
    sources = dict(joined.group_by("reward_source").len().iter_rows())
    with opened(browser, served, "data-quality", "Data quality") as seen:
        page = seen.page
        assert seen.metric("Joined") == f"{100 * len(joined) / len(decided):.1f} %"
        assert seen.metric("Defaulted") == f"{100 * sources['default'] / len(joined):.1f} %"
        assert seen.metric("Contradictions") == "0"
        fates = downloaded(page, 0)
        told = dict(fates.group_by("fate").agg(pl.col("count").sum()).iter_rows())
        assert told == {
            "observed": sources["observed"],
            "revised": sources.get("revised", 0),
            "late": sources.get("late", 0),
            "defaulted": sources["default"],
            "not joined": len(decided) - len(joined),
        }
        expect(page.get_by_text("Weights last moved")).to_be_visible()
        expect(page.get_by_text("trained generation 3")).to_be_visible()


def test_estimates_are_those_of_the_gate_and_what_if_follows_its_controls(
    browser: Browser, served: Served
) -> None:
    rows = served.lake.scan("generations", LOOP).sort("generation").collect()
    last = rows.row(-1, named=True)
    with opened(browser, served, "evaluation", "Off-policy evaluation") as seen:
        page = seen.page
        told = downloaded(page, 0).filter(
            pl.col("estimator") == last["estimator"],
            pl.col("policy") == f"generation {last['generation']}",
        )
        assert told["value"].item() == pytest.approx(last["estimate"])
        before = seen.metric("Entropy")
        choose(page, "Exploration", "Uniform")
        expect(page).to_have_url(re.compile(r"exploration=Uniform"))
        expect(page.get_by_test_id("stMetricValue").filter(has_text=before)).to_have_count(0)
        # Of three actions, four from the fourth day on; all may always be chosen.
        assert seen.metric("Entropy") == "1.099"


def test_two_generations_are_compared_by_segment_and_by_feature(
    browser: Browser, served: Served
) -> None:
    summaries = summaries_of(served.lake)
    influences = summaries.read(LOOP, "influences")
    assert set(influences["feature"]) == {"city", "visits"}
    with opened(browser, served, "generations?one=2&other=1", "Generations") as seen:
        page = seen.page
        of_all = downloads(page, lambda rows: "worth_lower" in rows.columns and len(rows) == 2)
        assert of_all["decisions"].drop_nulls().sum() == (
            served.lake.scan("decisions", LOOP)
            .filter(pl.col("generation").is_in([1, 2]))
            .collect()
            .height
        )
        choose(page, "Told apart by", "context.city")
        expect(page).to_have_url(re.compile(r"compare_by=context.city"))
        estimates = summaries.read(LOOP, "segments").filter(
            pl.col("by") == "context.city", pl.col("generation").is_in([1, 2])
        )
        shown = downloads(page, lambda rows: "worth_lower" in rows.columns and len(rows) == 4)
        assert set(shown["segment"]) == {"Bern", "Zürich"}
        told = {(g, s): v for g, s, v in shown.select("generation", "segment", "worth").iter_rows()}
        known = estimates.select("generation", "segment", "value")
        assert told == pytest.approx({(g, s): v for g, s, v in known.iter_rows()})
        interactions = current_interactions(served.lake, LOOP).collect()
        city = pl.col("context").str.json_path_match("$.city").alias("segment")
        earned = interactions.filter(pl.col("generation").is_in([1, 2])).group_by(
            "generation", city
        )
        means = {(g, s): m for g, s, m in earned.agg(pl.col("reward").mean()).iter_rows()}
        # Not both have decided anything.
        seen_means = shown.drop_nulls("mean").select("generation", "segment", "mean")
        assert {(g, s): m for g, s, m in seen_means.iter_rows()} == pytest.approx(means)

        looked = downloads(page, lambda rows: "total_variation" in rows.columns)
        known = influences.filter(pl.col("generation").is_in([1, 2]))
        assert dict(zip(looked["feature"], looked["generation"], strict=True)).keys() == set(
            known["feature"]
        )
        assert looked["total_variation"].sum() == pytest.approx(known["total_variation"].sum())
        choose(page, "Feature", "visits")
        answers = downloads(
            page, lambda rows: "mass" in rows.columns and "visits" in rows["feature"]
        )
        per_value = answers.group_by("generation", "value").agg(pl.col("mass").sum())
        assert per_value["mass"].to_list() == pytest.approx([1.0] * len(per_value))


def test_fairness_says_what_nights_have_found(browser: Browser, served: Served) -> None:
    figures = served.lake.scan("fairness", LOOP).collect().filter(pl.col("measure") == "reward")
    with opened(browser, served, "fairness", "Fairness audit") as seen:
        page = seen.page
        shown = downloaded(page, 0).sort("generation", "group")
        lake = figures.filter(~pl.col("hidden")).sort("generation", "group")
        assert shown["value"].to_list() == pytest.approx(lake["value"].to_list())
        frontier = summaries_of(served.lake).read(LOOP, "frontier")
        alphas = frontier["alpha"].unique().sort().to_list()
        slider = page.get_by_role("slider").first
        slider.focus()
        slider.press("ArrowRight")
        expect(page).to_have_url(re.compile(r"alpha="))
        settle(page)
        points = downloaded(page, 2, lambda rows: set(rows["alpha"]) == {alphas[1]})
        known = frontier.filter(pl.col("alpha") == alphas[1], pl.col("gamma") == points["gamma"][0])
        assert dict(points.select("policy", "rate").iter_rows()) == pytest.approx(
            dict(known.select("policy", "rate").iter_rows())
        )


def test_one_decision_is_told_as_the_lake_has_it(browser: Browser, served: Served) -> None:
    row = served.lake.scan("decisions", LOOP).filter(decision_id="visit-000007").collect()
    decided = row.row(0, named=True)
    with opened(browser, served, "decision", "One decision") as seen:
        field = seen.page.get_by_role("textbox", name="Decision id")
        field.fill("visit-000007")
        field.press("Enter")
        expect(seen.page).to_have_url(re.compile(r"id=visit-000007"))
        settle(seen.page)
        assert seen.metric("Action") == decided["action_id"]
        assert seen.metric("Propensity") == f"{decided['propensity']:.4g}"
        expect(seen.page.get_by_text("of 1000")).to_be_visible()
        expect(seen.page.get_by_text("city").first).to_be_visible()
        field.fill("nobody")
        field.press("Enter")
        expect(seen.page.get_by_text("has no decision of that id")).to_be_visible()


def test_an_alert_is_acknowledged_over_the_service(browser: Browser, served: Served) -> None:
    with opened(browser, served, "alerts", "Alerts") as seen:
        page = seen.page
        button = page.get_by_role("button", name="Acknowledge").first
        expect(button).to_be_disabled()
        page.get_by_role("textbox", name="Your name").fill("ada")
        page.get_by_role("textbox", name="Your name").press("Enter")
        expect(button).to_be_enabled()
        button.click()
        expect(page.get_by_text("is acknowledged")).to_be_visible()
    (event,) = (each for each in served.server.events() if isinstance(each, Acknowledgement))
    open_ = summaries_of(served.lake).read(LOOP, "alerts").filter(pl.col("closed").is_null())
    assert event.by == "ada"
    assert event.alert_id in open_["alert_id"]
    served.server.run("sink")
    with opened(browser, served, "alerts", "Alerts") as seen:
        expect(seen.page.get_by_text("Acknowledged by ada")).to_be_visible()


def test_an_alert_of_the_scorers_is_shown_and_acknowledged(
    browser: Browser, served: Served
) -> None:
    served.server.run("watch", "--once", code=1)
    open_ = summaries_of(served.lake).read(SCORERS, "alerts").filter(pl.col("closed").is_null())
    with opened(browser, served, "alerts", "Alerts") as seen:
        page = seen.page
        expect(page.get_by_text("1 of 1: http://127.0.0.1:9 since")).to_be_visible()
        expect(page.get_by_text("has last looked")).to_be_visible()
        links = page.get_by_role("link", name="Look", exact=True)
        assert f"{served.url}/" in links.evaluate_all("all => all.map(it => it.href)")
        page.get_by_role("textbox", name="Your name").fill("ben")
        page.get_by_role("textbox", name="Your name").press("Enter")
        # The newest stands first.
        page.get_by_role("button", name="Acknowledge").first.click()
        expect(page.get_by_text("is acknowledged")).to_be_visible()
    said = [each for each in served.server.events() if isinstance(each, Acknowledgement)]
    assert (said[-1].by, [said[-1].alert_id]) == ("ben", open_["alert_id"].to_list())
    served.server.run("sink")
    with opened(browser, served, "alerts", "Alerts") as seen:
        expect(seen.page.get_by_text("Acknowledged by ben")).to_be_visible()


def test_a_password_opens_pages_and_another_one_features(
    browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "open-sesame")
    monkeypatch.setenv(FEATURES_PASSWORD_VARIABLE, "open-everything")
    decision = f"decision?loop={LOOP}&id=visit-000007"
    with running_dashboard(served.server.data_dir) as (url, _):
        for password, features in (("open-sesame", False), ("open-everything", True)):
            with visit(browser, f"{url}/{decision}") as seen:
                page = seen.page
                field = page.get_by_role("textbox", name="Password")
                field.fill("wrong")
                field.press("Enter")
                expect(page.get_by_text("That is not the password.")).to_be_visible()
                expect(page.get_by_text("visit-")).to_have_count(0)
                field.fill(password)
                field.press("Enter")
                expect(page.get_by_text("What was asked?")).to_be_visible()
                settle(page)
                refused = page.get_by_text("You may not see features")
                expect(refused).to_have_count(0 if features else 1)


def test_a_proxy_says_who_may_see_features(browser: Browser, served: Served) -> None:
    told = DashboardSettings(trusted_header="X-Forwarded-User", features_for=("ada",))
    decision = f"decision?loop={LOOP}&id=visit-000007"
    with running_dashboard(served.server.data_dir, told) as (url, _):
        for who, says in (
            (None, "Nobody has said who you are."),
            ("ben", "You may not see features"),
            ("ada", "Context"),
        ):
            context = browser.new_context(
                extra_http_headers={} if who is None else {"X-Forwarded-User": who}
            )
            page = context.new_page()
            page.goto(f"{url}/{decision}")
            expect(page.get_by_text(says).first).to_be_visible()
            asked = page.get_by_text("What was asked?")
            expect(asked).to_have_count(0 if who is None else 1)
            context.close()


def test_who_may_asks_for_another_champion_with_a_reason(
    browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the service and the log into the lake; nobody else is shown the form."""
    told = DashboardSettings(
        trusted_header="X-Forwarded-User", overrides_for=("ada",), service=served.server.url
    )
    monkeypatch.setenv(JUDGE_KEY_VARIABLE, KEY)
    rows = served.lake.scan("generations", LOOP).collect()
    champion = rows.filter(pl.col("status") == "champion")["generation"].item()
    wanted = max(set(rows["generation"]) - {0, champion})
    with running_dashboard(served.server.data_dir, told) as (url, _):
        for who in ("ben", "ada"):
            context = browser.new_context(extra_http_headers={"X-Forwarded-User": who})
            context.set_default_timeout(120_000)
            page = context.new_page()
            page.goto(f"{url}/generations")
            page.get_by_text("Read from version").wait_for()
            settle(page)
            heading = page.get_by_role("heading", name="Should another generation decide?")
            expect(heading).to_have_count(1 if who == "ada" else 0)
            if who == "ben":
                context.close()
        review = page.get_by_role("button", name="Review")
        expect(review).to_be_disabled()
        page.get_by_role("textbox", name="Why").fill("agreed with marketing")
        page.get_by_role("textbox", name="Why").press("Enter")
        expect(review).to_be_enabled()
        review.click()
        expect(page.get_by_text("It takes effect with the next night")).to_be_visible()
        assert not any(isinstance(each, Override) for each in served.server.events())
        page.get_by_role("button", name="Record the override").click()
        expect(page.get_by_text("The override is recorded")).to_be_visible()
        (event,) = (each for each in served.server.events() if isinstance(each, Override))
        assert (event.action, event.generation, event.champion) == ("promote", wanted, champion)
        assert (event.by, event.reason) == ("ada", "agreed with marketing")
        served.server.run("sink")
        page.reload()
        expect(page.get_by_text("it waits for the next night")).to_be_visible()
        context.close()


def test_others_are_not_let_in_without_access_control(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="CROUPIER_DASHBOARD_PASSWORD"):
        run_dashboard(tmp_path, host="0.0.0.0", port=1)
