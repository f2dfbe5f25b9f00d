"""The dashboard as people get it: served by ``run_dashboard``, seen in Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
import pytest
import urllib3
from playwright.sync_api import expect, sync_playwright

from croupier.dashboards.settings import DashboardSettings
from croupier.offline.evaluate import evaluate
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.offline.lake import Lake
from croupier.offline.log_calibration import calibrate_log
from croupier.offline.promotion_report import Judged, PromotionReport, ReportEvent
from croupier.offline.report_page import page
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from tests.dashboards.lakes import (
    champion_of,
    homepage,
    newsletter,
    write_delays,
    write_lake,
)
from tests.offline.worlds import random_world
from tests.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

_SERVE = """
import sys
from pathlib import Path
import msgspec
from croupier.dashboards.launch import run_dashboard
from croupier.dashboards.settings import DashboardSettings
told = msgspec.json.decode(sys.argv[3], type=DashboardSettings)
sys.exit(run_dashboard(Path(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), settings=told))
"""

# Where a page that is not the first is opened by its address, Streamlit looks for its server below
# the page, before it looks where it is.
_LOOKING = re.compile(r"/[a-z-]+/_stcore/(health|host-config)$")

# All pages are looked at on a phone in test_pages.py.
WIDTHS = [1440, pytest.param(390, marks=pytest.mark.slow)]

_CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def running_dashboard(
    data_dir: Path, settings: DashboardSettings | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a data directory until the block ends; gives the URL once it answers."""
    port = free_port()
    told = msgspec.json.encode(settings or DashboardSettings()).decode()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(data_dir), str(port), told], start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await_answer(process, f"{url}/_stcore/health")
        yield url, process
    finally:
        process.terminate()
        process.wait(timeout=30)


def await_answer(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if urllib3.request("GET", url, timeout=5.0, retries=False).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the dashboard didn't start (exit code {process.poll()})")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CROUPIER_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        reason = "no Chromium: install the package chromium or name a binary in CROUPIER_CHROMIUM"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # A loaded machine takes its time.
    expect.set_options(timeout=120_000)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = tmp_path_factory.mktemp("data")
    write_lake(data_dir, homepage() + newsletter())
    write_delays(data_dir, [30.0] * 60 + [7200.0] * 40, loop="homepage")
    with running_dashboard(data_dir) as (url, _):
        yield url


@dataclass
class Visit:
    """An open page and what went on behind it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type == "error" and not _LOOKING.search(message.location["url"])
                else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def metric(self, label: str) -> str:
        card = self.page.get_by_test_id("stMetric").filter(has_text=label)
        return card.get_by_test_id("stMetricValue").inner_text().strip()

    def settle(self) -> None:
        """Wait until the script has run and its last element is drawn."""
        self.page.get_by_text("Read from version").wait_for()
        expect(self.page.get_by_test_id("stStatusWidget")).to_have_count(0)


@contextmanager
def visit(browser: Browser, url: str, *, width: int = 1440) -> Iterator[Visit]:
    """Open a page; afterwards nothing may have gone wrong or have been asked of other hosts."""
    context = browser.new_context(viewport={"width": width, "height": 1000})
    context.set_default_timeout(120_000)
    opened = Visit(context.new_page())
    opened.page.goto(url)
    yield opened
    assert opened.page.get_by_test_id("stException").count() == 0
    assert opened.complaints == []
    assert opened.hosts == {urlsplit(url).netloc}
    context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_headline_and_charts_are_visible(browser: Browser, dashboard: str, width: int) -> None:
    champion = champion_of(homepage())
    with visit(browser, f"{dashboard}/generations", width=width) as seen:
        seen.settle()
        assert seen.metric("Champion: generation") == str(champion["generation"])
        assert seen.metric("Decisions served") == f"{champion['decisions']:,}"
        assert seen.metric("Realised mean reward") == f"{champion['realised_mean']:.4f}"
        assert seen.metric("Estimate before promotion") == f"{champion['estimate']:.4f}"
        interval = f"95 % interval {champion['lower']:.4f} to {champion['upper']:.4f}"
        expect(seen.page.get_by_text(interval)).to_be_visible()
        drawn = seen.page.get_by_test_id("stVegaLiteChart").locator("canvas, svg.marks")
        expect(drawn).to_have_count(2)
        expect(seen.page.get_by_test_id("stDataFrame").first).to_be_visible()
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert seen.page.evaluate(overflow) == 0


def test_choosing_a_loop_changes_the_page_and_the_address(browser: Browser, dashboard: str) -> None:
    with visit(browser, f"{dashboard}/generations") as seen:
        seen.settle()
        expect(seen.page).to_have_url(re.compile(r"\?loop=homepage$"))
        seen.page.get_by_test_id("stSelectbox").locator("input").click()
        seen.page.get_by_role("option", name="newsletter").click()
        expect(seen.page).to_have_url(re.compile(r"\?loop=newsletter$"))
        seen.settle()
        assert seen.metric("Champion: generation") == "0"
        assert seen.metric("Realised mean reward") == "0.310"
        assert seen.metric("Estimate before promotion") == "–"

        seen.page.go_back()
        expect(seen.page).to_have_url(re.compile(r"\?loop=homepage$"))
        expect(seen.page.get_by_test_id("stMetricValue").first).to_have_text("8")


def test_tooltips_tell_n_and_effective_sample_size(browser: Browser, dashboard: str) -> None:
    champion = champion_of(homepage())
    with visit(browser, f"{dashboard}/generations") as seen:
        seen.settle()
        chart = seen.page.get_by_test_id("stVegaLiteChart").first
        of_champion = f'[aria-label*="Generation: {champion["generation"]};"]'
        chart.locator(f'path{of_champion}[aria-label*="Shown: Promised"]').hover()
        tooltip = seen.page.locator("#vg-tooltip-element")
        expect(tooltip).to_contain_text(f"{champion['judged_rows']:,}")
        expect(tooltip).to_contain_text(f"{champion['ess']:,.0f}")
        expect(tooltip).to_contain_text(f"{champion['lower']:.4f} to {champion['upper']:.4f}")


def test_a_shared_address_opens_its_loop(browser: Browser, dashboard: str) -> None:
    with visit(browser, f"{dashboard}/generations?loop=newsletter") as seen:
        seen.settle()
        assert seen.metric("Decisions served") == "902"


@pytest.mark.parametrize("width", WIDTHS)
def test_delays_are_a_page_of_their_own(browser: Browser, dashboard: str, width: int) -> None:
    with visit(browser, f"{dashboard}/delays", width=width) as seen:
        seen.settle()
        expect(seen.page).to_have_url(re.compile(r"/delays\?loop=homepage$"))
        assert seen.metric("Half have come by") == "30 s"
        assert seen.metric("90 % have come by") == "2 h"
        assert seen.metric("Decisions with an outcome") == "100"
        chart = seen.page.get_by_test_id("stVegaLiteChart")
        expect(chart.locator("canvas, svg.marks")).to_have_count(1)
        expect(seen.page.get_by_test_id("stDataFrame").first).to_be_visible()
        chart.locator('path[aria-label*="Delay: 30 s;"]').hover()
        tooltip = seen.page.locator("#vg-tooltip-element")
        expect(tooltip).to_contain_text("60.0 %")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert seen.page.evaluate(overflow) == 0


def test_the_menu_leads_from_page_to_page(browser: Browser, dashboard: str) -> None:
    with visit(browser, f"{dashboard}/generations") as seen:
        seen.settle()
        seen.page.get_by_test_id("stSidebarNav").get_by_role("link", name="Delays").click()
        expect(seen.page).to_have_url(re.compile(r"/delays"))
        seen.settle()
        assert seen.metric("Half have come by") == "30 s"


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A promotion report of a real evaluation, with what a log might try."""
    world = random_world(3, 4, seed=3)
    cold, better = cold_start("shop"), world.generation(1, EpsilonGreedy(epsilon=0.1))
    lake = Lake(tmp_path_factory.mktemp("report") / "lake")
    log = world.log(cold, 900, seed=1)
    lake.append("interactions", log)
    evaluation = evaluate(log, cold, better, LoopConfig())
    calibration = calibrate_log(lake, "shop", log, level=0.001)
    gate = GateConfig(max_flip_rate=0.1)
    verdict = judge_challenger(gate, evaluation, [calibration.section()])
    judged = Judged(
        ts=0, against=0, gate=gate, verdict=verdict, evaluation=evaluation, calibration=calibration
    )
    event = ReportEvent(ts=0, kind="overridden", told="<img src=x onerror=alert(1)>" * 30, by="ann")
    report = PromotionReport(loop="shop", generation=1, judged=judged, events=(event,))
    path = lake.root.parent / "report.html"
    path.write_text(page(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1440, 390])
def test_a_promotion_report_is_read_without_a_server(
    browser: Browser, report_page: Path, width: int
) -> None:
    with visit(browser, report_page.as_uri(), width=width) as seen:
        asked: list[str] = []
        seen.page.on("dialog", lambda dialog: asked.append(dialog.message))
        expect(seen.page.get_by_role("heading", name="Generation 1 of shop")).to_be_visible()
        expect(seen.page.get_by_text("The gate holds it back.")).to_be_visible()
        expect(seen.page.get_by_text("onerror=alert(1)").first).to_be_visible()
        expect(seen.page.locator("svg[role=img]")).to_have_count(4)
        expect(seen.page.locator("svg[role=img]").first).to_be_visible()
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert seen.page.evaluate(overflow) == 0
        assert asked == []


def test_an_empty_data_directory_says_how_to_fill_it(browser: Browser, tmp_path: Path) -> None:
    with running_dashboard(tmp_path) as (url, _):
        with visit(browser, url) as seen:
            expect(seen.page.get_by_text("croupier nightly --config croupier.toml")).to_be_visible()
            expect(seen.page.get_by_text("croupier demo")).to_be_visible()
        with visit(browser, f"{url}/judge-pairs") as seen:
            expect(seen.page.get_by_text("No loop of this dashboard has auditors.")).to_be_visible()
            expect(seen.page.get_by_text("croupier dashboard --config")).to_be_visible()


@pytest.mark.parametrize("stop", ["sigterm", "ctrl-c"])
def test_a_signal_ends_the_dashboard_and_its_server(tmp_path: Path, stop: str) -> None:
    with running_dashboard(tmp_path) as (url, process):
        if stop == "sigterm":
            process.terminate()
        else:
            # A terminal sends it to the whole group: to the server as well.
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
        port = urlsplit(url).port
        assert port is not None
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = subprocess.run(
            [sys.executable, "-c", _SERVE, str(tmp_path), str(port), "{}"], check=False, timeout=60
        )
    assert process.returncode == 1
