"""Dashboards on a large lake: summing it up, first paint, a change of filter, and memory.

    python -m benchmarks.dashboards --rows 10000000

Makes a lake of that many interactions over a month, day by day, in a directory that is deleted
afterwards unless ``--keep`` names one; sums it up as the nightly job does, at once and again after
one more day; then opens pages in Chromium (``chromium``, or what CROUPIER_CHROMIUM names). Where an
earlier run has kept a lake, pages are opened at once. First paint is from the request until the
page's last chart is drawn, in a new browser context; a change of filter is from the choice until
charts are drawn anew. The load average tells what else the machine was doing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import urllib3
from playwright.sync_api import expect, sync_playwright

from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.realised import Moments, Realised
from croupier.offline.summaries.nights import swings_of
from croupier.offline.summaries.refresh import refresh_summaries
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS, summaries_of
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from croupier.offline.summaries.tables import SummaryName

LOOP = "offers"
CONFIG = LoopConfig(fairness=FairnessConfig(attributes=("plan",)))
ACTIONS = [f"offer-{number:02}" for number in range(8)]
FIRST = date(2026, 10, 1)
DAYS = 30
PAGES = {
    "": ("Now", 2),
    "generations": ("Generations", 9),
    "actions": ("Actions and contexts", 3),
    "data-quality": ("Data quality", 4),
    "fairness": ("Fairness audit", 0),
    "evaluation": ("Off-policy evaluation", 1),
}
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--refreshes", type=int, default=100)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY")
    parser.add_argument("--summarise", metavar="DIRECTORY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.summarise:
        print(json.dumps(_summarise(Path(arguments.summarise))))
        return
    found: dict[str, Any] = {"rows": arguments.rows, "load_before": os.getloadavg()}
    with _directory(arguments.keep) as root:
        found |= _prepared(root, arguments.rows)
        found["pages"] = measure_pages(root, arguments.repeats, arguments.refreshes)
    found["load_after"] = os.getloadavg()
    print(json.dumps(found, indent=2))


@contextmanager
def _directory(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="croupier-dashboards-") as directory:
        yield Path(directory)


def _prepared(root: Path, rows: int) -> dict[str, Any]:
    """Make a lake and sum it up, unless both were done here before; how long that took."""
    lake, note = Lake(root / "lake"), root / "made.json"
    found: dict[str, Any]
    if note.exists():
        found = json.loads(note.read_text())
        if found["rows_made"] != rows:
            sys.exit(f"{root} holds a lake of {found['rows_made']:,} rows: expected {rows:,}")
        write_generations(lake)
        return found | {"brought_up_to_date": _in_child(root)} | _sizes(root)
    if lake.root.exists():
        sys.exit(f"{lake.root} is in the way: expected a directory without a lake")
    started = time.perf_counter()
    write_generations(lake)
    for day in range(DAYS):
        write_day(lake, day, rows // DAYS)
    found = {"rows_made": rows, "made_s": round(time.perf_counter() - started, 1)}
    found["summed_up"] = _in_child(root)
    write_day(lake, DAYS, rows // DAYS)
    found["one_day_more"] = _in_child(root)
    note.write_text(json.dumps(found))
    return found | _sizes(root)


def _sizes(root: Path) -> dict[str, Any]:
    tables = root / "lake" / "summaries" / LOOP
    sets = [each for each in tables.iterdir() if each.is_dir()]
    latest = max(sets, key=lambda each: each.stat().st_mtime)
    sizes = {file.stem: file.stat().st_size for file in sorted(latest.glob("*.arrow"))}
    return {"tables_mb": {name: round(size / 1e6, 2) for name, size in sizes.items()}}


def write_generations(lake: Lake) -> None:
    """Write a generation a day."""
    generations = [_generation(number) for number in range(DAYS + 1)]
    lake.replace("generations", pl.DataFrame(generations, schema=SCHEMAS["generations"]))


def write_day(lake: Lake, day: int, rows: int) -> None:
    """Write one day's decisions, outcomes and interactions, 250,000 rows at a time at most."""
    for start in range(0, rows, 250_000):
        count = min(250_000, rows - start)
        frame = _decisions(day, start, count)
        lake.append("decisions", frame.select(SCHEMAS["decisions"].names()))
        rng = np.random.default_rng([day, start, 1])
        reward = (rng.random(count) < 0.05).astype(float)
        joined = frame.with_columns(
            reward=pl.Series(reward),
            reward_source=pl.Series(np.where(reward > 0, "observed", "default")),
            outcomes=pl.Series(reward.astype(np.int64)),
            delay_s=pl.Series(np.where(reward > 0, rng.exponential(600.0, count), np.nan)).fill_nan(
                None
            ),
            fold=pl.Series(rng.integers(0, 1000, count)),
            revision=pl.lit(0, pl.Int64),
            guardrails=pl.lit(None, SCHEMAS["interactions"]["guardrails"]),
        )
        lake.append("interactions", joined.select(SCHEMAS["interactions"].names()))
        sent = joined.filter(pl.col("reward") > 0).select(
            "loop",
            "date",
            "offset",
            "decision_id",
            "slot",
            "reward",
            "ts",
            "partition",
            kind=pl.lit("outcome"),
            outcome_id=pl.concat_str("decision_id", pl.lit("/click")),
            guardrails=pl.lit("{}"),
        )
        lake.append("outcomes", sent.select(SCHEMAS["outcomes"].names()))


def _decisions(day: int, start: int, count: int) -> pl.DataFrame:
    rng = np.random.default_rng([day, start])
    k = len(ACTIONS)
    scores = rng.uniform(0.0, 0.1, (count, k))
    pmf = np.full((count, k), 0.02)
    pmf[np.arange(count), scores.argmax(axis=1)] += 1.0 - 0.02 * k
    drawn = (pmf.cumsum(axis=1) < rng.random(count)[:, None]).sum(axis=1).clip(0, k - 1)
    second = np.sort(rng.integers(0, 86_400, count)) * 1_000_000
    midnight = datetime.combine(FIRST + timedelta(days=day), datetime.min.time(), UTC)
    ts = round(midnight.timestamp()) * 1_000_000 + second
    city = np.array(["Basel", "Bern", "Genf", "Zürich"])[rng.integers(0, 4, count)]
    plan = np.array(["free", "plus", "pro"])[rng.integers(0, 3, count)]
    nothing = {
        name: pl.lit(None, SCHEMAS["decisions"][name])
        for name in ("slot", "slate_size", "shadow", "partition", "session")
    }
    actions = json.dumps([{"id": each} for each in ACTIONS])
    return pl.DataFrame(
        {
            "offset": np.arange(count) + start + day * 10_000_000,
            "ts": ts,
            "chosen": drawn,
            "propensity": pmf[np.arange(count), drawn],
            "city": city,
            "plan": plan,
        }
    ).with_columns(
        pl.col("ts").cast(pl.Datetime("us", "UTC")),
        **nothing,
        pmf=pl.Series(pmf).arr.to_list(),
        scores=pl.Series(scores).arr.to_list(),
        loop=pl.lit(LOOP),
        date=pl.lit(FIRST + timedelta(days=day)),
        decision_id=pl.format("{}-{}", pl.lit(f"{day:02}"), "offset"),
        generation=pl.lit(day, pl.Int64),
        learning_mode=pl.lit("online"),
        context=pl.concat_str(pl.lit('{"city":"'), "city", pl.lit('"}')),
        actions=pl.lit(actions),
        action_ids=pl.lit(pl.Series([ACTIONS])).first(),
        excluded=pl.lit(pl.Series([[]], dtype=pl.List(pl.String))).first(),
        action_id=pl.col("chosen").replace_strict(dict(enumerate(ACTIONS))),
        baseline=pl.lit(0, pl.Int64),
        mix=pl.lit(
            pl.Series([[{"source": f"generation:{day}", "weight": 1.0}]], dtype=_MIX)
        ).first(),
        keep_prob=pl.lit(1.0),
        draw_key=pl.lit("0" * 16),
        deferred=pl.lit(value=False),
        audit=pl.concat_str(pl.lit('{"plan":"'), "plan", pl.lit('"}')),
    )


_MIX = SCHEMAS["decisions"]["mix"]


def _generation(number: int) -> dict[str, Any]:
    created = datetime.combine(FIRST + timedelta(days=number), datetime.min.time(), UTC)
    mean = 0.05 + 0.001 * (number % 7)
    return dict.fromkeys(SCHEMAS["generations"].names()) | {
        "loop": LOOP,
        "generation": number,
        "created": created,
        "promoted": created,
        "status": "champion" if number == DAYS else "retired",
        "exploration": "squarecb",
        "estimate": mean,
        "lower": mean - 0.002,
        "upper": mean + 0.002,
        "judged_rows": 90_000,
        "ess": 40_000.0,
        "estimator": "dr",
        "decisions": 333_333,
        "realised_mean": mean,
        "realised_lower": mean - 0.001,
        "realised_upper": mean + 0.001,
        "difference": 0.001,
        "difference_lower": -0.001,
        "difference_upper": 0.003,
    }


def _in_child(root: Path) -> dict[str, float]:
    """Sum up in a process of its own, whose memory can be told."""
    command = [sys.executable, "-m", "benchmarks.dashboards", "--summarise", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _summarise(root: Path) -> dict[str, float]:
    lake = Lake(root / "lake")
    started, cpu = time.perf_counter(), time.process_time()
    with lake.lock():
        refresh_summaries(lake, LOOP, CONFIG, now_us=1, segments=("context.city",))
    taken = {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_s": round(time.process_time() - cpu, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }
    summaries = summaries_of(lake)
    state = summaries.state(LOOP)
    assert state is not None, "written a moment ago"
    summaries.write(LOOP, _night_tables(), state)
    return taken


def _night_tables() -> dict[SummaryName, pl.DataFrame]:
    """Tables that a night makes of generations, as large as those of a real one."""
    rng = np.random.default_rng(7)
    found = {
        number: Realised(
            moments=Moments.of((rng.random(2000) < 0.05).astype(float), np.ones(2000)),
            guardrails={},
            propensity_p_value=0.5,
        )
        for number in range(DAYS + 1)
    }
    latest = range(DAYS - 4, DAYS + 1)
    cities = [None, "Basel", "Bern", "Genf", "Zürich"]
    segments = [
        {
            "generation": number,
            "by": None if city is None else "context.city",
            "segment": city,
            "estimator": "dr",
            "rows": 1000,
            "value": value,
            "lower": value - 0.01,
            "upper": value + 0.01,
            "confidence": 0.95,
            "ess": 500.0,
        }
        for number in latest
        for city in cities
        for value in [float(rng.uniform(0.04, 0.06))]
    ]
    features = [f"feature-{number:02}" for number in range(20)]
    influences = [
        {
            "generation": number,
            "feature": feature,
            "requests": 200,
            "total_variation": float(rng.random()),
            "error": 0.01,
            "score_shift": 0.01,
        }
        for number in latest
        for feature in features
    ]
    responses = [
        {
            "generation": number,
            "feature": feature,
            "value": f"value-{place}",
            "place": place,
            "requests": 30,
            "action": action,
            "mass": 1.0 / len(ACTIONS),
            "score": 0.05,
        }
        for number in latest
        for feature in features
        for place in range(6)
        for action in ACTIONS
    ]
    return {
        "swings": swings_of(found),
        "segments": pl.DataFrame(segments, schema=SUMMARY_SCHEMAS["segments"]),
        "influences": pl.DataFrame(influences, schema=SUMMARY_SCHEMAS["influences"]),
        "responses": pl.DataFrame(responses, schema=SUMMARY_SCHEMAS["responses"]),
    }


def measure_pages(root: Path, repeats: int, refreshes: int) -> dict[str, Any]:
    """Open pages again and again, and change a filter of those that have one."""
    chromium = os.environ.get("CROUPIER_CHROMIUM") or shutil.which("chromium")
    expect.set_options(timeout=120_000)
    found: dict[str, Any] = {}
    with _dashboard(root) as (url, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        for path, (heading, charts) in PAGES.items():
            paints = [_paint(browser, f"{url}/{path}", heading, charts) for _ in range(repeats + 1)]
            # The first one imports and reads what all later ones share.
            found[heading] = {
                "first_paint_s": _median([each for each, _ in paints[1:]]),
                "of_these_first_contentful_s": _median([each for _, each in paints[1:]]),
                "very_first_s": round(paints[0][0], 2),
            }
        found["Actions and contexts"]["filter_s"] = _filter(browser, f"{url}/actions", repeats)
        found["server_mb"] = _memory(browser, f"{url}/actions", process.pid, refreshes)
        browser.close()
    return found


@contextmanager
def _dashboard(root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = 18_501
    code = (
        "import sys; from pathlib import Path; from croupier.dashboards.launch import "
        "run_dashboard; sys.exit(run_dashboard(Path(sys.argv[1]), host='127.0.0.1', "
        "port=int(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(root), str(port)]
    process = subprocess.Popen(command)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if urllib3.request("GET", f"{url}/_stcore/health", retries=False).status == 200:
                    break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait(timeout=60)


def _drawn(page: Page, charts: int) -> None:
    if charts:
        drawn = page.get_by_test_id("stVegaLiteChart").locator("svg.marks, canvas")
        drawn.nth(charts - 1).wait_for()
    page.get_by_text("Read from").first.wait_for()


def _paint(browser: Browser, url: str, heading: str, charts: int) -> tuple[float, float]:
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(120_000)
    page = context.new_page()
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.get_by_role("heading", name=heading, exact=True).wait_for()
    _drawn(page, charts)
    taken = time.perf_counter() - started
    script = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
    first: float = page.evaluate(script)
    context.close()
    return taken, first


def _filter(browser: Browser, url: str, repeats: int) -> float:
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(url)
    _drawn(page, 3)
    taken = []
    for number in range(repeats):
        chosen = "Last 7 days" if number % 2 == 0 else "Last 30 days"
        box = page.get_by_test_id("stSelectbox").filter(has_text="Period")
        box.locator("input").click()
        before = page.get_by_test_id("stVegaLiteChart").first.inner_html()
        started = time.perf_counter()
        page.get_by_role("option", name=chosen, exact=True).click()
        page.wait_for_function(
            "before => { const it = document.querySelector('[data-testid=stVegaLiteChart]');"
            " return it && it.innerHTML !== before && it.querySelector('svg.marks, canvas'); }",
            arg=before,
        )
        taken.append(time.perf_counter() - started)
        expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    context.close()
    return _median(taken)


def _memory(browser: Browser, url: str, pid: int, refreshes: int) -> dict[str, int]:
    """Resident memory of the server while one viewer after the other looks."""
    found = {}
    for number in range(refreshes + 1):
        _paint(browser, url, "Actions and contexts", 3)
        if number in {0, refreshes // 4, refreshes // 2, refreshes}:
            found[f"after {number + 1}"] = _resident_mb(pid)
    return found


def _resident_mb(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = [int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in children]
    return round(max(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


if __name__ == "__main__":
    main()
