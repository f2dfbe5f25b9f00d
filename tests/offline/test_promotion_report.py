"""Promotion reports: complete, kept with the run, and a page that no log can break out of."""

from __future__ import annotations

import html.parser
import math
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from deltalake import write_deltalake

from croupier.offline.evaluate import evaluate
from croupier.offline.finding import Finding, Section
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.offline.nightly import NightlyConfig
from croupier.offline.promotion_report import (
    REPORT_JSON,
    REPORT_PAGE,
    Judged,
    PromotionReport,
    ReportEvent,
    keep_judgement,
    note_event,
    read_report,
    report_json,
)
from croupier.offline.report_page import page
from croupier.policy.errors import GenerationError
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from tests.offline.shop import CONFIG, Shop
from tests.offline.worlds import World, random_world

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

WORLD = World(random_world(3, 4, seed=3).rewards, excluded=(None, 1, None))
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x00"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One generation that passed, and one that didn't."""
    shop = Shop(tmp_path_factory.mktemp("reports"), WORLD)
    for margin in (0.0, 0.9):
        shop.nightly.config = NightlyConfig(gate=GateConfig(margin=margin))
        shop.day(800)
        shop.night()
    return shop


def report_of(shop: Shop, number: int) -> PromotionReport:
    found = shop.nightly.promotion_report("shop", number)
    assert found is not None
    return found


class Outline(html.parser.HTMLParser):
    """What a page consists of; fails on tags that don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_every_judged_generation_has_a_report_in_its_run(shop: Shop) -> None:
    for number, passed in ((1, True), (2, False)):
        report = report_of(shop, number)
        judged, row = report.judged, shop.rows()[number]
        assert judged is not None
        assert judged.evaluation is not None
        assert judged.verdict.promote == passed
        assert "; ".join(judged.verdict.reasons) == row["verdict"]
        assert judged.against == row["judged_against"] == number - 1
        assert judged.calibration is not None
        assert judged.calibration.smallest_p_value == row["calibration_p_value"] > 0.001
        assert [each.generation for each in judged.calibration.generations] == list(range(number))
        stability = judged.evaluation.stability
        assert stability is not None
        for name in ("total_variation", "js_distance", "flip_rate"):
            assert getattr(stability, name).value == row[name]
        assert report.created == judged.ts == round(row["judged"].timestamp() * 1e6)
        assert report.training_rows == row["training_rows"]
        assert judged.gate.margin == (0.0 if passed else 0.9)
        kinds = [each.kind for each in report.events]
        assert kinds == (["judged", "promoted"] if passed else ["judged"])
        for policy in judged.evaluation.policies:
            counted = policy.weights.zero + sum(policy.weights.counts)
            assert counted == pytest.approx(judged.evaluation.rows)
        place = shop.nightly.report_place("shop", number)
        stored = shop.registry.attached("shop", number, REPORT_PAGE)
        assert stored == page(report) == Path(place).read_text("utf-8")
        assert shop.registry.attached("shop", number, REPORT_JSON) == report_json(report)


def test_the_page_stands_alone_and_tells_everything(shop: Shop) -> None:
    report = report_of(shop, 2)
    text = page(report)
    outline = Outline(text)
    assert set(outline.tags).isdisjoint({"script", "link", "img", "iframe", "object", "a"})
    assert {name for name, _ in outline.attributes}.isdisjoint({"src", "href", "onload", "style"})
    assert "url(" not in text
    assert "default-src 'none'" in text
    shown = " ".join(outline.text)
    assert "The gate holds it back." in shown
    assert "Since then:" not in shown
    assert report.judged is not None
    for reason in report.judged.verdict.reasons:
        assert reason in shown
    for heading in ("Support", "Calibration", "Guardrails", "Stability", "Fairness", "Simulator"):
        assert heading in shown
    assert "Individual fairness" in shown
    assert shown.count("Not measured:") == 4
    for kind in ("ips", "snips", "dr (decides)"):
        assert kind in outline.text
    # Intervals, values, weights, and calibration of two generations.
    assert outline.tags.count("svg") == 5


def test_what_comes_from_logs_and_people_is_text(shop: Shop) -> None:
    report = report_of(shop, 1)
    assert report.judged is not None
    finding = Finding(name=HOSTILE, value=math.inf, limit=1.0, objection=HOSTILE)
    section = Section(name="guardrails", measured=True, note=HOSTILE, findings=(finding,))
    assert report.judged.evaluation is not None
    evil = judge_challenger(GateConfig(), report.judged.evaluation, [section])
    event = ReportEvent(ts=0, kind="overridden", told=HOSTILE, by=HOSTILE)
    changed = msgspec.structs.replace(
        report,
        loop=HOSTILE,
        exploration=HOSTILE,
        oracle=HOSTILE,
        events=(event,),
        judged=msgspec.structs.replace(report.judged, verdict=evil),
    )
    text = page(changed)
    outline = Outline(text)
    assert set(outline.tags).isdisjoint({"script", "img"})
    assert "alert(1)" in " ".join(outline.text)
    assert "Since then: overridden 1970-01-01 00:00:00 UTC by" in " ".join(outline.text)
    assert not re.search("[\u202e\x00]", text)
    assert "∞" in text


def test_a_report_comes_back_as_it_was_kept(shop: Shop) -> None:
    """Also where an interval has no end, which JSON has no number for."""
    report = report_of(shop, 1)
    assert report.judged is not None
    assert report.judged.evaluation is not None
    endless = msgspec.structs.replace(
        report.judged.evaluation.differences["dr"], lower=-math.inf, upper=math.inf
    )
    evaluation = msgspec.structs.replace(
        report.judged.evaluation,
        differences=report.judged.evaluation.differences | {"dr": endless},
    )
    changed = msgspec.structs.replace(
        report,
        exploration="null",
        judged=msgspec.structs.replace(report.judged, evaluation=evaluation),
    )
    text = report_json(changed)
    assert msgspec.json.decode(text, type=PromotionReport, strict=False) == changed
    assert '"lower": "-inf"' in text
    Outline(page(changed))


def test_an_apprentice_has_a_report_of_its_imitation(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, learning_mode="apprentice")
    other = Shop(tmp_path, WORLD, loops={"shop": config})
    other.day(300)
    (night,) = other.night().loops
    assert night.imitation is not None
    assert night.report is not None
    report = report_of(other, 1)
    assert report.judged is not None
    assert report.judged.imitation == night.imitation
    assert report.judged.evaluation is None
    sections = {each.name: each for each in report.judged.verdict.sections}
    assert sections["calibration"].note == "an apprentice is judged without propensities"
    shown = " ".join(Outline(page(report)).text)
    assert "Does it choose as the baseline does?" in shown
    assert "simulator stress" in shown.lower()


def test_reports_that_can_t_be_read_are_left_to_who_wrote_them(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    row = shop.rows()[2]
    kept = shop.registry.attached("shop", 2, REPORT_JSON)
    assert kept is not None
    shop.registry.attach("shop", 2, {REPORT_JSON: '{"format": 99}'})
    try:
        with pytest.raises(GenerationError, match="report of generation 2 of loop 'shop'"):
            read_report(shop.registry, "shop", 2)
        note_event(shop.registry, row, ReportEvent(ts=1, kind="promoted", told="x"))
        assert "'promoted' is not noted in the report" in caplog.text
        assert shop.registry.attached("shop", 2, REPORT_JSON) == '{"format": 99}'
        # A judgement is worth more than what nobody can read.
        cold, better = cold_start("shop"), WORLD.generation(9, EpsilonGreedy(epsilon=0.1))
        evaluation = evaluate(WORLD.log(cold, 300, seed=1), cold, better, LoopConfig())
        gate = GateConfig()
        judged = Judged(
            ts=5,
            against=0,
            gate=gate,
            verdict=judge_challenger(gate, evaluation),
            evaluation=evaluation,
        )
        assert keep_judgement(shop.registry, row, judged).judged == judged
        assert report_of(shop, 2).judged == judged
    finally:
        shop.registry.attach("shop", 2, {REPORT_JSON: kept})


def test_events_are_noted_once(shop: Shop) -> None:
    row, before = shop.rows()[1], report_of(shop, 1)
    last = before.events[-1]
    note_event(shop.registry, row, msgspec.structs.replace(last, ts=last.ts + 5))
    assert report_of(shop, 1) == before
    # The cold start has no run.
    note_event(shop.registry, shop.rows()[0], last)


def test_a_table_of_before_gains_the_columns(shop: Shop, tmp_path: Path) -> None:
    """A lake whose generations were written by an earlier version."""
    shutil.copytree(shop.root, tmp_path, dirs_exist_ok=True)
    copy = Shop(tmp_path, WORLD, now=shop.now)
    shutil.rmtree(tmp_path / "lake" / "generations")
    old = shop.lake.scan("generations").collect()
    last = old.columns.index("judge_share")
    early = old.select(old.columns[: last + 1])
    write_deltalake(tmp_path / "lake" / "generations", early.to_arrow(), partition_by=["loop"])
    assert copy.rows()[1]["judged"] is None
    copy.now += 1
    copy.nightly.rollback("shop", now_us=copy.now, reason="why", by="bob")
    rows = copy.rows()
    assert (rows[1]["status"], rows[0]["status"]) == ("rolled_back", "champion")
    assert rows[1]["rollback_reason"] == "why"
    assert rows[1]["verdict"] == old.filter(generation=1)["verdict"][0]
