"""The small tables say what the lake says, however they came about."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.interactions import current_interactions
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from croupier.offline.summaries.refresh import refresh_summaries
from croupier.offline.summaries.sample import ROWS, sample_of, sampled_days
from croupier.offline.summaries.tables import (
    PROPENSITY_BOUNDS,
    SUMMARY_SCHEMAS,
    Summaries,
    SummaryState,
    summaries_of,
)
from croupier.offline.summaries.traffic import CALIBRATION_BINS, MOST_ACTIONS
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, Event
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.loop import LoopConfig
from tests.offline.logs import EPOCH_US, append, decision, outcome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from croupier.offline.summaries.tables import SummaryName

HOUR = 3_600_000_000
CONFIG = LoopConfig(
    attribution_window="2 h", fairness=FairnessConfig(attributes=("plan", "plan * context.city"))
)
SEGMENTS = ("context.city",)
SUMMED: tuple[SummaryName, ...] = ("hours", "actions", "propensities", "calibration", "days")


def shop_events(count: int, seed: int) -> list[Event]:
    """Decisions of a week over four actions, some kept by chance, with outcomes of all kinds."""
    rng = random.Random(seed)
    events: list[Event] = []
    for number in range(count):
        ts = EPOCH_US + round(number * 168 * HOUR / count)
        eligible = [rng.random() < 0.8 for _ in "abcd"]
        eligible[rng.randrange(4)] = True
        raw = [rng.random() * each for each in eligible]
        pmf = [each / sum(raw) for each in raw]
        chosen = rng.choices(range(4), pmf)[0]
        scores = [rng.random() for _ in "abcd"] if rng.random() < 0.9 else None
        made = decision(
            f"d{number}",
            ts,
            generation=number * 3 // count,
            context={"city": rng.choice(["Bern", "Biel"])},
            actions=[Action(each) for each in "abcd"],
            excluded=[name for name, could in zip("abcd", eligible, strict=True) if not could],
            pmf=pmf,
            chosen=chosen,
            propensity=pmf[chosen] if rng.random() < 0.98 else 0.5,
            scores=scores,
            keep_prob=rng.choice([1.0, 0.5]),
            audit={"plan": rng.choice(["free", "pro"])} if rng.random() < 0.9 else {},
            slot=rng.choice([None, None, "top"]),
        )
        events.append(made)
        for again in range(rng.choice([0, 0, 1, 1, 2])):
            came = ts + round(rng.expovariate(1 / HOUR))
            reward = rng.choice([0.0, 1.0, rng.random()])
            key = f"o{number}-{again}"
            events.append(outcome(f"d{number}", key, came, reward=reward, slot=made.slot))
        if rng.random() < 0.05:
            events.append(outcome(f"nobody{number}", f"x{number}", ts))
    return events


def stage(root: Path, batches: Iterable[list[Event]], *, held: int = 1_000_000) -> Lake:
    """Log, sink, join and summarise batch by batch."""
    lake = Lake(root / "lake")
    with SqliteEventLog(root / "log", synchronous="normal") as log, lake.lock():
        for batch in batches:
            append(log, batch)
            sink(log, lake)
            now = max(event.ts for event in batch)
            join(lake, "shop", CONFIG, now)
            refresh_summaries(lake, "shop", CONFIG, now_us=now, segments=SEGMENTS, held=held)
    return lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A week in five batches, cut anywhere: outcomes come after their decision was summed up."""
    events = sorted(shop_events(1500, 3), key=lambda event: event.ts)
    cuts = [0, 200, 650, 700, 1800, len(events)]
    batches = [events[one:two] for one, two in itertools.pairwise(cuts)]
    return stage(tmp_path_factory.mktemp("shop"), batches)


def rows_of(lake: Lake, name: SummaryName) -> list[dict[str, Any]]:
    return summaries_of(lake).read("shop", name).to_dicts()


def words(row: dict[str, Any]) -> dict[str | None, str | None]:
    """Every segment of a row of the lake."""
    plan = (json.loads(row["audit"]) if row["audit"] else {}).get("plan", "(none)")
    city = json.loads(row["context"])["city"]
    return {
        None: None,
        "plan": plan,
        "context.city": city,
        "plan * context.city": f"{plan} × {city}",
    }


def test_hours_add_up_to_what_the_lake_says(lake: Lake) -> None:
    expected: dict[Any, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    least: dict[Any, list[float]] = defaultdict(list)
    for row in lake.scan("decisions", "shop").collect().to_dicts():
        key = row["ts"].replace(minute=0, second=0, microsecond=0), row["generation"]
        found = expected[key]
        possible = [p for p in row["pmf"] if p > 0]
        least[key].append(min(possible))
        found["decisions"] += 1
        found["made"] += 1 / row["keep_prob"]
        found["baseline"] += row["chosen"] == row["baseline"]
        found["propensity_sum"] += row["propensity"]
        found["entropy_sum"] -= sum(p * math.log(p) for p in possible)
        if row["scores"] is not None:
            pairs = list(zip(row["scores"], row["pmf"], strict=True))
            found["scored"] += 1
            found["greedy_sum"] += max(score for score, p in pairs if p > 0)
            found["expected_sum"] += sum(score * p for score, p in pairs)
    for row in current_interactions(lake, "shop").collect().to_dicts():
        found = expected[row["ts"].replace(minute=0, second=0, microsecond=0), row["generation"]]
        found["joined"] += 1
        found["reward_sum"] += row["reward"]
        found["reward_squares"] += row["reward"] ** 2
        found["positive"] += row["reward"] > 0
        found["delay_sum"] += row["delay_s"] or 0.0
        name = "defaulted" if row["reward_source"] == "default" else row["reward_source"]
        found[name] += 1
    told = {(row["hour"], row["generation"]): row for row in rows_of(lake, "hours")}
    assert told.keys() == expected.keys()
    for key, sums in expected.items():
        assert {name: told[key][name] for name in sums} == pytest.approx(dict(sums), rel=1e-12)
        assert told[key]["least_possible"] == min(least[key])
        assert told[key]["entropy_rows"] == told[key]["decisions"]
    totals = {name: sum(row[name] for row in told.values()) for name in ("late", "revised")}
    assert min(totals.values()) > 0, "the log has all kinds of outcomes"


def test_actions_add_up_by_every_segment(lake: Lake) -> None:
    expected: dict[Any, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in lake.scan("decisions", "shop").collect().to_dicts():
        for by, segment in words(row).items():
            found = expected[row["date"], row["generation"], by, segment, row["action_id"]]
            found["decisions"] += 1
            found["propensity_sum"] += row["propensity"]
        for action, p in zip(row["action_ids"], row["pmf"], strict=True):
            if p > 0:
                found = expected[row["date"], row["generation"], None, None, action]
                found["offered"] += 1
                found["mass"] += p
    for row in current_interactions(lake, "shop").collect().to_dicts():
        w, r = 1 / row["propensity"], row["reward"]
        for by, segment in words(row).items():
            found = expected[row["date"], row["generation"], by, segment, row["action_id"]]
            found["joined"] += 1
            found["reward_sum"] += r
            for name, value in (
                ("weight_sum", w),
                ("weight_squares", w * w),
                ("weighted_reward", w * r),
                ("weighted_squares", w * w * r * r),
                ("weighted_cross", w * w * r),
            ):
                found[name] += value
    keys = ("date", "generation", "by", "segment", "action")
    told = {tuple(row[name] for name in keys): row for row in rows_of(lake, "actions")}
    assert told.keys() == expected.keys()
    for key, sums in expected.items():
        assert {name: told[key][name] for name in sums} == pytest.approx(dict(sums), rel=1e-12)


def test_bins_count_every_decision_once(lake: Lake) -> None:
    decided = lake.scan("decisions", "shop").collect()
    expected = Counter(
        (date, generation, sum(p > bound for bound in PROPENSITY_BOUNDS))
        for date, generation, p in decided.select("date", "generation", "propensity").iter_rows()
    )
    told = rows_of(lake, "propensities")
    assert {
        (row["date"], row["generation"], row["bin"]): row["decisions"] for row in told
    } == expected

    scored = current_interactions(lake, "shop").collect().drop_nulls("scores").to_dicts()
    rewards: dict[Any, float] = defaultdict(float)
    for row in scored:
        tenth = min(int(row["scores"][row["chosen"]] * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        rewards[row["date"], row["generation"], tenth] += row["reward"]
    found = rows_of(lake, "calibration")
    assert sum(row["rows"] for row in found) == len(scored)
    assert {
        (row["date"], row["generation"], row["bin"]): row["reward_sum"] for row in found
    } == pytest.approx(rewards)


def test_days_tell_what_became_of_decisions_and_outcomes(lake: Lake) -> None:
    decisions = lake.scan("decisions", "shop").collect()
    outcomes = lake.scan("outcomes", "shop").collect().filter(pl.col("kind") == "outcome")
    joined = current_interactions(lake, "shop").collect()
    known = set(decisions.select("decision_id", "slot").rows())
    expected: dict[Any, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in decisions.to_dicts():
        expected[row["date"]]["decisions"] += 1
        off = abs(row["pmf"][row["chosen"]] - row["propensity"]) > 1e-9
        expected[row["date"]]["contradictions"] += off
    for row in joined.to_dicts():
        expected[row["date"]]["joined"] += 1
        expected[row["date"]]["repeated"] += max(row["outcomes"] - 1, 0)
    for row in outcomes.to_dicts():
        expected[row["date"]]["outcomes"] += 1
        expected[row["date"]]["orphans"] += (row["decision_id"], row["slot"]) not in known
    told = {row["date"]: row for row in rows_of(lake, "days")}
    assert told.keys() == expected.keys()
    for day, sums in expected.items():
        assert {name: told[day][name] for name in sums} == dict(sums)
    for name in ("contradictions", "orphans", "repeated"):
        assert sum(row[name] for row in told.values()) > 0


def test_tables_do_not_depend_on_how_they_came_about(lake: Lake, tmp_path: Path) -> None:
    """Batch by batch, at once, or a few rows at a time."""
    for held in (1_000_000, 40):
        anew = Lake(tmp_path / str(held))
        shutil.copytree(lake.root, anew.root, ignore=shutil.ignore_patterns("summaries"))
        refresh_summaries(anew, "shop", CONFIG, now_us=1, segments=SEGMENTS, held=held)
        for name in (*SUMMED, "sample"):
            one, two = (summaries_of(each).read("shop", name) for each in (lake, anew))
            order = [each for each in one.columns if one[each].dtype != pl.List(pl.String)]
            keys = [each for each in order if not one[each].dtype.is_nested()]
            assert_frame_equal(one.sort(keys), two.sort(keys), rel_tol=1e-12)


def test_only_days_that_changed_are_summed_up_again(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(tmp_path / "lake")
    shutil.copytree(lake.root, copy.root)
    done: list[tuple[int, int]] = []

    def note(number: int, total: int) -> None:
        done.append((number, total))

    arguments: dict[str, Any] = {"now_us": 9, "segments": SEGMENTS, "progress": note}
    before = summaries_of(copy).read("shop", "hours")
    refresh_summaries(copy, "shop", CONFIG, **arguments)
    assert done == []

    day = copy.scan("decisions", "shop").select(pl.col("date").max()).collect().item()
    at = round(datetime.combine(day, datetime.min.time()).timestamp() * 1e6) + 30 * HOUR
    with SqliteEventLog(tmp_path / "log", synchronous="normal") as log:
        append(log, [decision("new", at)])
        rows = copy.scan("decisions", "shop").head(1).collect()
        fresh = rows.with_columns(
            decision_id=pl.lit("new"), date=pl.lit(day + timedelta(days=1)), ts=pl.lit(at)
        )
        copy.append("decisions", fresh.with_columns(pl.col("ts").cast(rows["ts"].dtype)))
    refresh_summaries(copy, "shop", CONFIG, **arguments)
    assert done == [(1, 1)]
    after = summaries_of(copy).read("shop", "hours")
    assert after["decisions"].sum() == before["decisions"].sum() + 1

    copy.delete("decisions", f"date <= '{day.isoformat()}'")
    copy.delete("interactions", f"date <= '{day.isoformat()}'")
    refresh_summaries(copy, "shop", CONFIG, **arguments)
    assert summaries_of(copy).read("shop", "hours")["decisions"].to_list() == [1]

    refresh_summaries(copy, "shop", CONFIG, now_us=9, progress=note)
    assert done == [(1, 1), (1, 1)], "another configuration sums up everything anew"


def test_rare_actions_of_a_day_are_taken_together(tmp_path: Path) -> None:
    count = MOST_ACTIONS + 30
    events: list[Event] = []
    for number in range(2 * count):
        name = f"a{number % count:03}" if number < count + MOST_ACTIONS else "a000"
        pair = [Action(name), Action("z")]
        events.append(decision(f"d{number}", EPOCH_US + number, actions=pair))
    lake = stage(tmp_path, [events])
    told = summaries_of(lake).read("shop", "actions").filter(pl.col("by").is_null())
    assert told["decisions"].sum() == len(events)
    assert len(told) == MOST_ACTIONS + 1
    rest = told.filter(pl.col("action").is_null())
    assert rest["offered"].item() == 30 + len(events), "the action z was never drawn"


def test_a_segment_that_is_none_is_left_out_and_said_so(tmp_path: Path) -> None:
    events: list[Event] = [
        decision(f"d{number}", EPOCH_US + number, context={"city": f"{number}"})
        for number in range(300)
    ]
    lake = stage(tmp_path, [events])
    state = summaries_of(lake).state("shop")
    assert state is not None
    assert "context.city" in state.left_out
    told = summaries_of(lake).read("shop", "actions")
    assert set(told["by"].to_list()) == {None, "plan"}


def test_the_sample_is_even_within_a_day_and_says_how_likely_a_row_was() -> None:
    day = datetime(2026, 11, 1).date()  # noqa: DTZ001 - a day
    few = {day + timedelta(days=number): 100 for number in range(30)}
    assert sampled_days(few) == dict(list(few.items())[-14:])
    many = dict.fromkeys(few, 1_000_000)
    assert set(sampled_days(many).values()) == {ROWS // 14}


def test_a_smaller_sample_estimates_the_same_mean(lake: Lake) -> None:
    """Weighted by keep_prob, a sample of the log has the log's mean, within four errors."""
    files = lake.snapshot("interactions", "shop").files
    by_day = defaultdict(list)
    for file in files:
        by_day[file.date].append(file)
    parts = [sample_of(lake, mine, 60, held=50) for mine in by_day.values()]
    sample = pl.concat(parts)
    whole = current_interactions(lake, "shop").collect()
    weight = 1 / sample["keep_prob"].to_numpy()
    assert weight.sum() == pytest.approx((1 / whole["keep_prob"]).sum(), rel=0.1)
    rewards = sample["reward"].to_numpy()
    mean = float(weight @ rewards / weight.sum())
    kept = 1 / whole["keep_prob"].to_numpy()
    true = float(kept @ whole["reward"].to_numpy() / kept.sum())
    error = float(np.sqrt(np.sum((weight * (rewards - mean)) ** 2))) / weight.sum()
    assert abs(mean - true) < 4 * error
    possible = sample.select(
        (pl.col("eligible").list.len() == pl.col("action_ids").list.len()).all()
    ).item()
    assert possible


def test_a_set_of_tables_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    summaries = Summaries(tmp_path)
    assert summaries.loops() == []
    assert summaries.read("shop", "days").is_empty()
    day = pl.DataFrame([{"decisions": 3}], schema=SUMMARY_SCHEMAS["days"])
    change = pl.DataFrame([{"what": "kill"}], schema=SUMMARY_SCHEMAS["changes"])
    state = SummaryState(format=1, made=5)
    summaries.write("shop", {"days": day, "changes": change}, state)
    first = summaries.version("shop")
    summaries.write("shop", {"days": pl.concat([day, day])}, state)
    assert summaries.version("shop") != first
    assert len(summaries.read("shop", "days")) == 2
    assert summaries.read("shop", "changes")["what"].to_list() == ["kill"], "kept, not given"
    assert (tmp_path / "shop" / first).exists(), "somebody may still read it"
    summaries.write("shop", {}, state)
    assert not (tmp_path / "shop" / first).exists()
    assert summaries.loops() == ["shop"]
    with pytest.raises(InvalidInputError, match="loop"):
        summaries.read("../shop", "days")
