"""What the examples of dashboards and alerts ask for is what a service under load shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from croupier.offline.batch_metrics import write_batch_metrics
from croupier.offline.generations import record_generation
from croupier.offline.join import JoinReport
from croupier.offline.lake import Lake
from croupier.offline.night import LoopNight, NightlyReport
from croupier.offline.retention import RetentionReport
from croupier.offline.sink import SinkReport
from croupier.service.metrics import STAGES
from tests.service.load import Load
from tests.service.running import Server, running, unique, wait_until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

# Without a registry there is no generation: baselines are played, for a reason.
CONFIG = """
[service]
port = 0
[registry]
tracking_uri = "http://127.0.0.1:9"
[loops.digits]
[loops.visits.sessions]
user = "user"
"""

# What Prometheus adds by itself.
OF_THE_SCRAPE = {"up"}
TARGET_LABELS = {"instance", "job"}

_METRIC = re.compile(r"\b(up|croupier_\w+)\b")
_SELECTOR = re.compile(r"\b(up|croupier_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPED = re.compile(r"\bby \(([^)]*)\)\s*\((?:\w+\s*\()*(up|croupier_\w+)")
_GROUPS = re.compile(r"\b(?:by|on|group_left|group_right) \(([^)]*)\)")
_SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names of all samples of a service that has had some of everything, and their labels."""
    server = Server(tmp_path_factory.mktemp("monitored"), CONFIG)
    with running(server):
        with Load(server, clients=4) as load:
            load.wait_for(decisions=200)
        for route, more in (("rank", {"depth": 1}), ("slate", {"size": 1})):
            request = {"actions": [{"id": "a"}], "decision_id": unique(), **more}
            assert server.post(f"digits/{route}", request).status == 200
        assert server.post("digits/activate", {"decision_id": "d"}).status == 200
        assert server.post("digits/decide", {}).status == 400
        assert load.told.refused == []
        # A gauge by loop is there once its loop has been looked at.
        wait_until(lambda: b"croupier_killed{" in server.get("/metrics").body)
        server.name("digits", 0)
        wait_until(lambda: b"croupier_generation{" in server.get("/metrics").body)
        text = server.get("/metrics").body.decode()
    text += night(tmp_path_factory.mktemp("night"))
    labels: dict[str, set[str]] = defaultdict(set, {name: set() for name in OF_THE_SCRAPE})
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    return dict(labels)


def night(directory: Path) -> str:
    """What a night leaves of a loop whose generations have been tested for oscillation."""
    lake = Lake(directory / "lake")
    tested = {"oscillates": True, "spread_p_value": 0.001, "alternation_p_value": 0.002}
    tested |= {"disparity_rises": False, "violations_rise": False}
    tested |= {"simulators_err": False, "simulator_gap": 0.5}
    with lake.lock():
        record_generation(lake, {"loop": "digits", "generation": 7} | tested)
    joined = JoinReport(joined=9, observed=9, defaulted=0, open=0, late=0, orphans=0)
    report = NightlyReport(
        sink=SinkReport(decisions=9, outcomes=9, duplicates=0, position=18),
        loops=[LoopNight(loop="digits", join=joined, champion=7)],
        retention=RetentionReport(decisions={}, segments=0),
    )
    write_batch_metrics(directory / "croupier.prom", lake, report, now_us=1_000_000)
    return (directory / "croupier.prom").read_text()


def dashboard() -> Any:
    return json.loads((EXAMPLES / "grafana" / "croupier.json").read_text())


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((EXAMPLES / "prometheus" / "croupier.rules.yml").read_text())[
        "groups"
    ]
    found: list[dict[str, Any]] = group["rules"]
    return found


def asked() -> list[Any]:
    """Every expression with the texts that name labels of its result."""
    found = [
        (f"{panel['title']}-{target['refId']}", target["expr"], target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]
    found += [
        (each["name"], each["expr"], each["titleFormat"])
        for each in dashboard()["annotations"]["list"]
    ]
    for each in rules():
        found.append((each["alert"], each["expr"], " ".join(each["annotations"].values())))
    return [pytest.param(expression, text, id=name) for name, expression, text in found]


@pytest.mark.parametrize(("expression", "text"), asked())
def test_what_is_asked_for_is_there(shown: dict[str, set[str]], expression: str, text: str) -> None:
    metrics = set(_METRIC.findall(expression))
    assert metrics
    assert metrics <= set(shown)
    for metric, matchers in _SELECTOR.findall(expression):
        assert set(_MATCHER.findall(matchers)) <= shown[metric] | TARGET_LABELS
    grouped = _GROUPED.findall(expression)
    for labels, metric in grouped:
        assert words(labels) <= shown[metric] | TARGET_LABELS
    kept = {label for labels in _GROUPS.findall(expression) for label in words(labels)}
    has = set().union(*(shown[metric] for metric in metrics)) | TARGET_LABELS
    assert kept <= has
    # What is summed away can't be shown.
    left = kept if grouped else has
    assert set(_SHOWN.findall(text)) - {"value"} <= left


def test_the_variables_of_the_dashboard(shown: dict[str, set[str]]) -> None:
    source, loop = dashboard()["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", loop["definition"]).groups()  # type: ignore[union-attr]
    assert label in shown[metric]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()["panels"])))
    assert used == {"datasource", "loop", "__rate_interval"}


def test_panels_are_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    }
    # None lies on another.
    assert len(places) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in panels)


def test_the_rules_are_the_ones_that_are_scraped_for() -> None:
    directory = EXAMPLES / "prometheus"
    config = yaml.safe_load((directory / "prometheus.yml").read_text())
    assert [directory / name for name in config["rule_files"]] == list(
        directory.glob("*.rules.yml")
    )
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    named = {job for each in rules() for job in re.findall(r'job="(\w+)"', each["expr"])}
    assert named <= jobs
    for each in rules():
        assert each["labels"]["severity"] in {"critical", "warning"}
        assert set(each["annotations"]) == {"summary", "description"}


def test_every_metric_is_documented(shown: dict[str, set[str]]) -> None:
    page = (EXAMPLES.parent / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"^\| `(croupier_\w+)`", page, re.MULTILINE))
    exposed = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in shown
        if name.startswith("croupier_") and not name.endswith("_created")
    }
    assert documented == exposed
    stages = re.findall(r"^\| `croupier_stage_seconds` .*$", page, re.MULTILINE)[0]
    assert set(re.findall(r"`([a-z]+)`", stages)) == {"stage", *STAGES}


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("check", "rules"), EXAMPLES / "prometheus" / "croupier.rules.yml"),
        (("check", "config"), EXAMPLES / "prometheus" / "prometheus.yml"),
        (("test", "rules"), EXAMPLES / "prometheus" / "croupier.rules.test.yml"),
        (("check", "config"), EXAMPLES.parent / "docker" / "prometheus.yml"),
    ],
)
def test_prometheus_takes_the_files_and_rules_say_what_they_are_to(
    tmp_path: Path, command: tuple[str, str], file: Path
) -> None:
    promtool = tool("promtool")
    # As they are mounted: every configuration has the rules beside it.
    for each in (*(EXAMPLES / "prometheus").iterdir(), file):
        shutil.copy(each, tmp_path)
    done = subprocess.run(
        [promtool, *command, file.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.mark.parametrize(
    ("alert", "receiver"),
    [
        ("CroupierSlow", "oncall"),
        ("CroupierLogUnavailable", "oncall"),
        ("CroupierSupportThin", "null"),
    ],
)
def test_what_no_night_tells_of_is_delivered(alert: str, receiver: str) -> None:
    """The nights' own alerts are not told twice: what is silent is what a night's rules say."""
    config = EXAMPLES / "prometheus" / "alertmanager.yml"
    (silent,) = yaml.safe_load(config.read_text())["route"]["routes"]
    named = set(re.findall(r"Croupier\w+", silent["matchers"][0]))
    nightly = {
        each["alert"]
        for each in rules()
        if re.search(
            r"alert_open|oscillates|disparity_rises|violations_rise|_err\b|y_failed", each["expr"]
        )
    }
    assert named == nightly
    amtool = tool("amtool")
    for command in (("check-config", str(config)), ("config", "routes", "test")):
        asked = [] if len(command) == 2 else [f"--config.file={config}", f"alertname={alert}"]
        done = subprocess.run(
            [amtool, *command, *asked], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == receiver


def tool(name: str) -> str:
    """A tool of Prometheus's; where it is missing the test is skipped, but fails in CI."""
    found = os.environ.get(f"CROUPIER_{name.upper()}") or shutil.which(name)
    if found is None:
        missing = f"no {name}: install prometheus and prometheus-alertmanager"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found
