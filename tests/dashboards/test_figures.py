"""What pages work out by themselves, beside the same worked out otherwise."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.dashboards.attention import of_nights, of_scorer
from croupier.dashboards.fairness import agreement
from croupier.dashboards.figures import (
    action_figures,
    in_period,
    mean_columns,
    new_and_vanished,
    open_segments,
)
from croupier.dashboards.generation_details import happenings
from croupier.dashboards.replays import replay
from croupier.dashboards.standstill import reasons
from croupier.dashboards.studies import StudyUnreadableError, curves, read_study, studies
from croupier.offline.lake import Lake
from croupier.offline.one_decision import decision_by_id
from croupier.offline.ope import SNIPS, LoggedBatch
from croupier.offline.scrapes import Readiness, live, parse_metrics
from croupier.offline.summaries.tables import SUMMARY_SCHEMAS
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import EpsilonGreedy, Uniform
from croupier.service.metrics import Metrics
from tests.dashboards.lakes import generation_row, homepage, write_delays, write_study

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.summaries.tables import SummaryName

DAY = date(2026, 11, 1)
RNG = np.random.default_rng(5)


def table(name: SummaryName, rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema = SUMMARY_SCHEMAS[name]
    empty = {
        column: 0 if dtype.is_numeric() and column != "generation" else None
        for column, dtype in schema.items()
    }
    return pl.DataFrame([empty | row for row in rows], schema=schema)


def test_what_an_action_is_worth_is_snips_with_its_interval() -> None:
    """The estimator's own interval allows for more; this one is the plain delta method's."""
    p = RNG.uniform(0.1, 0.9, 4000)
    r = (RNG.random(4000) < 0.3).astype(float)
    w = 1.0 / p
    rows = [
        {
            "date": DAY,
            "generation": 1,
            "action": "a",
            "decisions": len(part),
            "joined": len(part),
            "reward_sum": r[part].sum(),
            "reward_squares": (r[part] ** 2).sum(),
            "weight_sum": w[part].sum(),
            "weight_squares": (w[part] ** 2).sum(),
            "weighted_reward": (w * r)[part].sum(),
            "weighted_squares": ((w * r) ** 2)[part].sum(),
            "weighted_cross": (w * w * r)[part].sum(),
        }
        for part in np.array_split(np.arange(4000), 3)
    ]
    (found,) = action_figures(table("actions", rows), ["action"]).to_dicts()
    known = SNIPS().add(LoggedBatch(reward=r, propensity=p, target_probability=np.ones(4000)))
    told = known.result(0.95)
    assert found["worth"] == pytest.approx(told.value)
    error = math.sqrt(float(((w * (r - told.value)) ** 2).sum())) / w.sum()
    assert found["worth_upper"] - found["worth"] == pytest.approx(1.96 * error, rel=1e-3)
    assert found["worth"] - found["worth_lower"] == pytest.approx(1.96 * error, rel=1e-3)
    assert found["mean"] == pytest.approx(r.mean())
    half = 1.96 * r.std(ddof=1) / math.sqrt(4000)
    assert found["upper"] - found["mean"] == pytest.approx(half, rel=1e-3)


def test_an_interval_needs_two_rewards() -> None:
    rows = pl.DataFrame({"joined": [0, 1, 2], "reward_sum": [0.0, 1.0, 1.0]}).with_columns(
        reward_squares=pl.col("reward_sum")
    )
    found = rows.select(mean_columns())
    assert found["mean"].to_list() == [None, 1.0, 0.5]
    assert found["lower"].is_null().to_list() == [True, True, False]


def test_a_segment_that_is_small_in_one_generation_is_shown_of_none() -> None:
    decided = {(1, "a"): 100, (1, "b"): 19, (1, "c"): 30, (2, "a"): 50, (2, "b"): 90, (2, "c"): 40}
    rows = [
        {"generation": generation, "by": "plan", "segment": name, "action": "x", "decisions": n}
        for (generation, name), n in decided.items()
    ]
    # Beside b the smallest other one, or b would be the total less the others.
    shown, hidden = open_segments(table("actions", rows))
    assert (set(shown["segment"]), hidden) == ({"a"}, 2)
    everyone = [row | {"by": None, "segment": None} for row in rows[:2]]
    whole, none = open_segments(table("actions", everyone))
    assert (whole["decisions"].to_list(), none) == ([100, 19], 0)


def test_new_and_vanished_actions_are_those_of_the_latest_day() -> None:
    rows = [
        {"date": DAY + timedelta(days=day), "action": name, "offered": 5}
        for day, names in enumerate(("ab", "ab", "bc"))
        for name in names
    ]
    found = table("actions", rows)
    assert new_and_vanished(found) == (["c"], ["a"], DAY + timedelta(days=2))
    assert new_and_vanished(in_period(found, 1))[:2] == ([], [])


def test_rates_and_quantiles_are_those_of_two_readings() -> None:
    metrics = Metrics()
    first = parse_metrics(metrics.render().decode(), Readiness(), at=100.0)
    counts = metrics.loops["shop"]
    counts.decisions, counts.outcomes = 300, 30
    metrics.baseline.labels("shop", "no generation").inc(15)
    for _ in range(98):
        metrics.latency["decide"].observe(0.0015)
    metrics.latency["decide"].observe(0.06)
    metrics.latency["rank"].observe(0.4)
    metrics.latency["reward"].observe(0.9)
    metrics.log_spilling.set(1)
    last = parse_metrics(metrics.render().decode(), Readiness(status="ready"), at=160.0)
    now = live([first, last])
    assert now.seconds == 60.0
    assert now.decisions_per_minute == {"shop": 300.0}
    assert now.outcomes_per_minute == {"shop": 30.0}
    assert now.baseline_share == {"shop": 0.05}
    assert now.requests == 100.0
    # In (1, 2] ms are 98 of 100; the 50th is 50/98 of the way, the 99th the only one up to 0.1 s.
    assert now.p50_s == pytest.approx(1e-3 * (1 + 50 / 98))
    assert now.p99_s == pytest.approx(0.1)
    ready = msgspec.structs.replace(last, readiness=Readiness("ready", "ok", "ok"))
    assert [each.title for each in of_scorer("shop", ready, now, slow_s=0.05)] == [
        "The log is away",
        "Decisions are slow",
    ]
    again = parse_metrics(Metrics().render().decode(), Readiness(), at=200.0)
    assert live([last, again]).seconds is None, "it was started anew"


def test_a_night_that_is_late_or_broke_off_needs_attention() -> None:
    now = datetime(2026, 11, 5, tzinfo=UTC)
    night = {"started": now - timedelta(hours=2), "failed": None}
    assert of_nights([night], now) == []
    late = of_nights([night | {"started": now - timedelta(hours=40), "failed": "no disk"}], now)
    assert [each.title for each in late] == ["The last night broke off", "No night for a while"]


def sample(n: int) -> pl.DataFrame:
    """Decisions among three actions, drawn from their scores; the best pays."""
    scores = RNG.uniform(0, 1, (n, 3))
    pmf = np.full((n, 3), 0.1)
    pmf[np.arange(n), scores.argmax(axis=1)] += 0.7
    chosen = (pmf.cumsum(axis=1) < RNG.random(n)[:, None]).sum(axis=1)
    return pl.DataFrame(
        {
            "date": [DAY] * n,
            "generation": [1] * n,
            "action_ids": [["a", "b", "c"]] * n,
            "eligible": [[True] * 3] * n,
            "pmf": pmf.tolist(),
            "scores": scores.tolist(),
            "chosen": chosen,
            "propensity": pmf[np.arange(n), chosen],
            "baseline": [0] * n,
            "keep_prob": [1.0] * n,
            "reward": (RNG.random(n) < scores[np.arange(n), chosen]).astype(float),
            "place": np.arange(n),
        },
        schema=SUMMARY_SCHEMAS["sample"],
    )


def test_a_replayed_policy_is_worth_what_it_truly_earns() -> None:
    """Within four errors: a false alarm in 16,000."""
    rows = sample(3000)
    scores = np.array(rows["scores"].to_list())
    true = {"uniform": scores.mean(), "greedy": scores.max(axis=1).mean()}
    found = replay(rows, Uniform(), training_rows=1)
    for estimate in found.estimates.values():
        error = (estimate.upper - estimate.lower) / 3.92
        assert abs(estimate.value - true["uniform"]) < 4 * error
    assert found.entropy == pytest.approx(math.log(3))
    assert found.greedy == pytest.approx(1 / 3)
    assert found.rows == 3000
    epsilon = replay(rows, EpsilonGreedy(epsilon=0.3), training_rows=1)
    assert epsilon.estimates["snips"].value == pytest.approx(rows["reward"].mean(), abs=0.02)
    assert epsilon.logged.value == pytest.approx(rows["reward"].mean())
    with pytest.raises(NotEnoughDataError, match="20 decisions"):
        replay(rows.head(5), Uniform(), training_rows=1)
    imported = rows.with_columns(scores=pl.lit(None, pl.List(pl.Float64)))
    with pytest.raises(NotEnoughDataError):
        replay(imported, Uniform(), training_rows=1)


def test_people_are_compared_on_the_pairs_that_both_have_judged() -> None:
    judged = pl.DataFrame(
        {
            "decision_id": ["a", "b", "a", "c"],
            "other_decision_id": ["b", "a", "c", "a"],
            "auditor": ["ada", "ben", "ada", "cy"],
            "distance": [0.2, 0.7, 1.0, 0.9],
        }
    )
    assert agreement(judged).rows() == [
        ("ada", "ben", 1, pytest.approx(0.5), 0.0),
        ("ada", "cy", 1, pytest.approx(0.1), 1.0),
    ]


def test_why_nothing_changed_names_every_link() -> None:
    days = table(
        "days", [{"date": DAY, "decisions": 100, "joined": 40, "defaulted": 40, "late": 0}]
    )
    night = {"started": datetime(2026, 11, 2, tzinfo=UTC), "skipped": "nothing has come"}
    nights = table("nights", [night | {"failed": None}])
    rows = pl.DataFrame(homepage(), infer_schema_length=None)
    told = {sentence.split("**")[1]: mark for mark, sentence in reasons(rows, nights, days, str)}
    assert told == {
        "Joined:": "bad",
        "Defaulted:": "bad",
        "Late:": "good",
        "Training:": "open",
        "Weights last moved": "open",
    }


def test_a_challenger_that_was_held_back_is_a_reason() -> None:
    rows = [generation_row("shop", 1, verdict="not shown to be above +0")]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    said = reasons(frame, table("nights", []), table("days", []), str)
    assert ("open", "**Gate:** generation 1 was held back: not shown to be above +0.") in said
    assert any("cold start decides" in sentence for _, sentence in said)
    assert any("Nothing was decided" in sentence for _, sentence in said)


def test_the_timeline_has_overrides_rollbacks_and_what_the_registry_says() -> None:
    when = datetime(2026, 11, 2, tzinfo=UTC)
    row = generation_row(
        "shop",
        4,
        created=when,
        promoted=when + timedelta(hours=1),
        override_reason="campaign",
        override_by="ada",
        rolled_back=when + timedelta(hours=3),
        rolled_back_by="ben",
        rolled_back_to=3,
    )
    changes = table("changes", [{"ts": when + timedelta(hours=2), "what": "killed", "by": "cy"}])
    frame = pl.DataFrame([row], infer_schema_length=None)
    assert [(each["what"], each["by"]) for each in happenings(frame, changes)] == [
        ("Generation 4 rolled back to generation 3", "ben"),
        ("killed", "cy"),
        ("Generation 4 promoted by override", "ada"),
        ("Generation 4 trained", None),
    ]


def test_a_decision_is_found_by_its_id_with_all_that_came_of_it(tmp_path: Path) -> None:
    write_delays(tmp_path, [30.0, None, 7200.0], loop="homepage")
    lake = Lake(tmp_path / "lake")
    found = decision_by_id(lake, "homepage", "homepage-2")
    assert found is not None
    assert [row["decision_id"] for row in found.decisions] == ["homepage-2"]
    assert len(found.outcomes) == 1
    assert found.interactions[-1]["reward_source"] == "late"
    fold = found.interactions[-1]["fold"]
    assert found.judges(0.5) is (fold < 500)
    assert decision_by_id(lake, "homepage", "homepage-9") is None
    assert decision_by_id(lake, "elsewhere", "homepage-2") is None
    with pytest.raises(InvalidInputError, match="decision_id"):
        decision_by_id(lake, "homepage", "x" * 257)


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "lts"
    written = write_study(folder)
    assert studies(tmp_path) == ["lts"]
    found = read_study(folder)
    (best,) = (each for each in written.yardsticks if each["policy"] == "optimum")
    assert found.optimum == pytest.approx(best["mean_return"])
    rows = found.results()
    assert rows["arm"].to_list() == [each.arm for each in written.arms]
    assert rows["value"].to_list() == pytest.approx([e.test_return.value for e in written.arms])
    last, error = written.arms[-1], written.arms[-1].test_return.error
    assert error is not None
    assert rows["upper"].to_list()[-1] == pytest.approx(last.test_return.value + 1.959964 * error)
    drawn = curves(folder)
    assert drawn["level"].unique().sort().to_list() == [0, 2, 3]
    end = drawn.filter(arm="Sim2Rec", level=3).row(-1, named=True)
    (told,) = (each for each in written.arms if (each.arm, each.level) == ("Sim2Rec", 3))
    assert (end["iteration"], end["seeds"]) == (6, 2)
    assert end["value"] == pytest.approx(told.test_return.value)
    (folder / "lts.json").write_text("{}")
    with pytest.raises(StudyUnreadableError):
        read_study(folder)
