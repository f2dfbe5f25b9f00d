"""Every control on every page is reached, marked, and operated by the keyboard alone."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from playwright.sync_api import expect

from croupier.dashboards.settings import PASSWORD_VARIABLE, DashboardSettings
from croupier.policy.events import Acknowledgement, Judgement, Override
from tests.dashboards.test_browser import browser, running_dashboard, visit
from tests.dashboards.test_pages import PAGES, opened, served, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser, Locator, Page

    from tests.dashboards.test_pages import Served

__all__ = ("browser", "served")

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

Operate: TypeAlias = "Callable[[Page, Locator], None]"

_HAS_FOCUS = "it => it === document.activeElement || it.contains(document.activeElement)"


def go_to(page: Page, target: Locator) -> None:
    """Press Tab until something has the focus; around once, and never anything else."""
    for _ in range(300):
        if target.evaluate(_HAS_FOCUS):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab doesn't reach {target}")


def press(page: Page, target: Locator, key: str) -> None:
    go_to(page, target)
    page.keyboard.press(key)


def write(page: Page, label: str, text: str) -> None:
    go_to(page, page.get_by_role("textbox", name=label))
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    settle(page)


def choose_another(page: Page, box: Locator) -> None:
    """Open a list, take another of its options if there is one, and see that it is taken."""
    field = box.get_by_role("combobox")
    before = field.input_value()
    names = unrolled(page, field, before)
    if len(names) == 1:
        page.keyboard.press("Escape")
        expect(page.get_by_role("option")).to_have_count(0)
        return
    page.keyboard.press("ArrowDown" if names[-1] != before else "ArrowUp")
    page.keyboard.press("Enter")
    settle(page)
    expect(field).not_to_have_value(before)
    assert field.input_value() in names


def unrolled(page: Page, field: Locator, before: str) -> list[str]:
    """The options of a list, which is open then."""
    options = page.get_by_role("option")
    for _ in range(10):
        press(page, field, "ArrowDown")
        # A page that is drawn anew at this moment closes the list again.
        with suppress(PlaywrightTimeoutError):
            options.first.wait_for(timeout=12_000)
            names = [each.strip() for each in options.all_inner_texts()]
            if before in names:
                return names
    raise AssertionError(f"the list with {before!r} doesn't open")


def slide(page: Page, slider: Locator) -> None:
    """Move a slider by a step, and see that the page has taken it."""
    before = str(slider.get_attribute("aria-valuenow"))
    press(page, slider, "ArrowRight")
    if not changes(slider, "aria-valuenow", before):
        # It was at its end.
        page.keyboard.press("ArrowLeft")
        assert changes(slider, "aria-valuenow", before)
    settle(page)
    assert changes(slider, "aria-valuenow", before), "the page has put it back"


def changes(target: Locator, attribute: str, before: str) -> bool:
    """Whether an attribute gets another value."""
    try:
        expect(target).not_to_have_attribute(attribute, before, timeout=10_000)
    except AssertionError:
        return False
    return True


def fetch(page: Page, button: Locator) -> None:
    """Download what a button offers; what is drawn anew meanwhile may not answer."""
    deadline = time.monotonic() + 240
    while True:
        with suppress(PlaywrightTimeoutError), page.expect_download(timeout=20_000) as download:
            press(page, button, "Enter")
        if download.is_done():
            assert download.value.path().stat().st_size > 0
            return
        assert time.monotonic() < deadline, "nothing came"


def walk(page: Page, table: Locator) -> None:
    """Move from cell to cell of a table, wherever in it the walk begins."""
    chosen = table.locator("[role=gridcell][aria-selected=true]")
    press(page, table.locator("canvas").first, "ArrowDown")
    expect(chosen).to_have_count(1)
    before = str(chosen.get_attribute("id"))
    page.keyboard.press("ArrowRight")
    if not changes(chosen, "id", before):
        # It began in the last column.
        page.keyboard.press("ArrowLeft")
        assert changes(chosen, "id", before)


def unfold(page: Page, expander: Locator) -> None:
    """Open what is folded."""
    folded = expander.locator("details")
    assert folded.get_attribute("open") is None
    press(page, folded.locator("summary"), "Enter")
    expect(folded).to_have_attribute("open", "")


def explain(page: Page, mark: Locator) -> None:
    """Have a question mark explain itself."""
    go_to(page, mark.get_by_role("button").first)
    expect(page.get_by_test_id("stTooltipContent")).not_to_be_empty()
    page.keyboard.press("Escape")


def get(page: Page, offer: Locator) -> None:
    fetch(page, offer.get_by_role("button"))


_OPERATED: Final[tuple[tuple[str, Operate], ...]] = (
    ("stExpander", unfold),
    ("stSlider", lambda page, each: slide(page, each.get_by_role("slider"))),
    ("stSelectbox", choose_another),
    ("stDownloadButton", get),
    ("stDataFrame", walk),
    ("stTooltipIcon", explain),
)


# Of every kind of control the CI has one; a page with many takes a browser a minute.
_OFTEN: Final = ("fairness", "alerts")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path in _OFTEN else pytest.mark.slow, id=path)
        for path in PAGES
    ],
)
def test_every_control_is_operated_by_keyboard(browser: Browser, served: Served, path: str) -> None:
    with opened(browser, served, path, PAGES[path]) as seen:
        page = seen.page
        operated = 0
        for kind, operate in _OPERATED:
            number = 0
            # What is chosen may bring controls, or take them away.
            while number < page.get_by_test_id(kind).count():
                operate(page, page.get_by_test_id(kind).nth(number))
                number += 1
                operated += 1
        assert operated > 0


@pytest.mark.slow  # the fields of other pages are filled in by keyboard too
def test_a_decision_is_found_by_keyboard(browser: Browser, served: Served) -> None:
    with opened(browser, served, "decision", "One decision") as seen:
        write(seen.page, "Decision id", "visit-000007")
        expect(seen.page).to_have_url(re.compile("id=visit-000007"))
        expect(seen.page.get_by_text("What was asked?")).to_be_visible()


def test_an_alert_is_acknowledged_by_keyboard(browser: Browser, served: Served) -> None:
    with opened(browser, served, "alerts", "Alerts") as seen:
        page = seen.page
        write(page, "Your name", "ada")
        press(page, page.get_by_role("button", name="Acknowledge").first, "Enter")
        expect(page.get_by_text("is acknowledged")).to_be_visible()
    (event,) = (each for each in served.server.events() if isinstance(each, Acknowledgement))
    assert event.by == "ada"


def test_pairs_are_judged_by_keyboard(browser: Browser, served: Served) -> None:
    """With every answer that there is: a button, another, the slider, and none at all."""
    before = judgements(served)
    with opened(browser, served, "judge-pairs", "Judge pairs") as seen:
        page = seen.page
        write(page, "Your name", "ada")

        def answer(name: str, key: str, said: str) -> None:
            press(page, page.get_by_role("button", name=name), key)
            expect(page.get_by_text(said)).to_be_visible()
            settle(page)

        answer("They are alike (0)", "Enter", "treated differently by 0 ")
        answer("Skip this pair", "Space", "Skipped.")
        answer("They are not alike (1)", "Space", "treated differently by 1 ")
        slide(page, page.get_by_role("slider"))
        answer("They may differ by 0.35", "Enter", "treated differently by 0.35")
    assert [each.distance for each in judgements(served)[len(before) :]] == [0.0, 1.0, 0.35]


def judgements(served: Served) -> list[Judgement]:
    return [each for each in served.server.events() if isinstance(each, Judgement)]


@pytest.mark.slow  # it has a dashboard of its own, and nothing but kinds that others operate
def test_another_champion_is_asked_for_by_keyboard(browser: Browser, served: Served) -> None:
    told = DashboardSettings(
        trusted_header="X-Forwarded-User", overrides_for=("ada",), service=served.server.url
    )
    with running_dashboard(served.server.data_dir, told) as (url, _):
        context = browser.new_context(extra_http_headers={"X-Forwarded-User": "ada"})
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.goto(f"{url}/generations")
        page.get_by_text("Read from version").wait_for()
        settle(page)
        box = page.get_by_test_id("stSelectbox").filter(has_text="Generation").first
        choose_another(page, box)
        wanted = int(box.get_by_role("combobox").input_value())
        write(page, "Why", "agreed with marketing")
        press(page, page.get_by_role("button", name="Review"), "Enter")
        expect(page.get_by_text("It takes effect with the next night")).to_be_visible()
        press(page, page.get_by_role("button", name="Cancel"), "Enter")
        expect(page.get_by_text("It takes effect with the next night")).to_have_count(0)
        settle(page)
        press(page, page.get_by_role("button", name="Review"), "Enter")
        press(page, page.get_by_role("button", name="Record the override"), "Enter")
        expect(page.get_by_text("The override is recorded")).to_be_visible()
        context.close()
    (event,) = overrides(served)
    assert (event.generation, event.by) == (wanted, "ada")
    assert event.reason == "agreed with marketing"


def overrides(served: Served) -> list[Override]:
    return [each for each in served.server.events() if isinstance(each, Override)]


@pytest.mark.slow  # as the one above
def test_a_password_is_given_by_keyboard(
    browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "open-sesame")
    with running_dashboard(served.server.data_dir) as (url, _), visit(browser, url) as seen:
        go_to(seen.page, seen.page.get_by_role("textbox", name="Password"))
        seen.page.keyboard.type("open-sesame")
        press(seen.page, seen.page.get_by_role("button", name="Open", exact=True), "Enter")
        seen.page.get_by_role("heading", name="Now", exact=True).wait_for()


_FOCUSED = """() => {
    const it = document.activeElement;
    if (!it || it === document.body) { return null; }
    const box = it.getBoundingClientRect(), ring = getComputedStyle(it);
    const around = [it, it.parentElement, it.parentElement?.parentElement].filter(Boolean);
    const seen = around.some(each => {
        const look = getComputedStyle(each);
        return (look.outlineStyle !== 'none' && parseFloat(look.outlineWidth) > 0)
            || look.boxShadow !== 'none' || it.matches('input, [role=slider]');
    });
    it.dataset.reached = 'yes';
    return {seen, name: it.outerHTML.slice(0, 200), area: box.width * box.height};
}"""
_UNREACHED = """() => [...document.querySelectorAll(
    'a[href], button, input, select, textarea, [role=slider], [role=tab], [tabindex="0"]'
)].filter(each => {
    const box = each.getBoundingClientRect(), look = getComputedStyle(each);
    return box.width * box.height > 0 && look.visibility !== 'hidden' && !each.disabled
        && each.tabIndex >= 0 && !each.closest('[aria-hidden=true], .vega-embed');
}).filter(each => each.dataset.reached !== 'yes').map(each => each.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize(
    "path",
    [
        "generations",
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("judge-pairs", marks=pytest.mark.slow),
    ],
)
def test_every_control_is_reached_by_tab_and_shows_that_it_is(
    browser: Browser, served: Served, path: str
) -> None:
    with opened(browser, served, path, PAGES[path]) as seen:
        page = seen.page
        stops, unseen = 0, []
        for _ in range(300):
            page.keyboard.press("Tab")
            found = page.evaluate(_FOCUSED)
            if found is None and stops:
                # Around once: focus leaves the page for the browser's own.
                break
            if found is not None:
                stops += 1
                if not found["seen"] and found["area"] > 0:
                    unseen.append(found["name"])
        assert stops > 5
        assert page.evaluate(_UNREACHED) == []
        assert unseen == []
        # What is reached is operated: a link of the menu opens its page.
        page.get_by_test_id("stSidebarNav").get_by_role("link", name="Delays").focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Delays", exact=True).wait_for()
