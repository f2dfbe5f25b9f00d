"""A server that logs a share of its decisions, from the requests to the promotion."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.evaluate import evaluate
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.offline.interactions import keep_weights
from croupier.offline.lake import Lake
from croupier.offline.registry import Registry
from croupier.offline.retrain import is_judged
from croupier.policy.decision import DecisionRequest
from croupier.policy.events import Action, Decision, Outcome
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.keeping import is_kept
from croupier.policy.loop import LoopConfig
from croupier.policy.ranking import RankRequest
from croupier.policy.slates import SlateRequest
from croupier.policy.slots import Slot, SlotsRequest
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer
from tests.service.generations import generation
from tests.service.running import Server, running, unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.policy.events import LearningMode
    from tests.service.conftest import Serve
    from tests.service.running import Caller

# MLflow uses what its own dependencies have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SECRET = bytes(range(16))
KEEP_PROB = 0.3
REQUESTS = 2000
FALSE_ALARM = 1e-6
WINDOW_S = 4.0


def config(keep_prob: float) -> str:
    return f"""
[service]
port = 0
draw_secret = "{SECRET.hex()}"

[loops.shop]
keep_prob = {keep_prob}
attribution_window = "{WINDOW_S:g} s"
exploration = {{ kind = "epsilon_greedy", epsilon = 0.2 }}
oracle = {{ kind = "sklearn" }}
"""


ACTIONS = [{"id": "a"}, {"id": "b"}, {"id": "c"}]
SHAPES: list[tuple[str, dict[str, Any], int]] = [
    ("decide", {}, 1),
    ("rank", {"depth": 2}, 2),
    ("slots", {"slots": [{"id": "top"}, {"id": "side"}]}, 2),
    ("slate", {"size": 2}, 2),
]


@pytest.mark.parametrize(("route", "more", "rows"), SHAPES, ids=[each[0] for each in SHAPES])
def test_all_draws_of_a_request_are_kept_or_none(
    serve: Serve, route: str, more: dict[str, Any], rows: int
) -> None:
    """By the one rule, that of the id; the answer is the same, and so it is when asked again."""
    server = serve(config(KEEP_PROB))
    ids = [unique() for _ in range(60)]
    with server.caller() as caller:
        for decision_id in ids:
            asked = {"actions": ACTIONS, "decision_id": decision_id} | more
            answers = [caller.post(f"shop/{route}", asked) for _ in range(2)]
            assert answers[0].status == 200
            assert answers[0].body == answers[1].body
    decisions = [each for each in server.events() if isinstance(each, Decision)]
    assert {each.keep_prob for each in decisions} == {KEEP_PROB}
    logged = [each.decision_id for each in decisions]
    kept = [each for each in ids if is_kept("shop", each, KEEP_PROB, secret=SECRET)]
    assert 0 < len(kept) < 60
    assert logged == [each for each in kept for _ in range(rows)]


@pytest.mark.parametrize("mode", ["online", "logging_only"])
@pytest.mark.parametrize("planned", [True, False])
def test_every_draw_says_with_which_probability_it_was_kept(
    *, planned: bool, mode: LearningMode
) -> None:
    """Drawn from a generation or played as the baseline; the rest of the answer is as without."""
    actions = [Action("a"), Action("bb"), Action("ccc")]
    drawn = []
    for keep_prob in (0.25, 1.0):
        loop = LoopConfig(keep_prob=keep_prob, learning_mode=mode)
        scorer = Scorer({"digits": loop}, clock=lambda: 1_790_000_000_000_000, secret=SECRET)
        if planned:
            scorer.swap(Plan(generation("digits", 3)))
        name: dict[str, Any] = {"decision_id": "visit-1", "actions": actions}
        decisions = [
            scorer.decide("digits", DecisionRequest(**name)),
            *scorer.rank("digits", RankRequest(**name, depth=2)).decisions,
            *scorer.decide_slots("digits", SlotsRequest(**name, slots=[Slot(id="x")])),
            *scorer.decide_slate("digits", SlateRequest(**name, size=2)),
        ]
        assert {each.keep_prob for each in decisions} == {keep_prob}
        assert len({scorer.keeps(each) for each in decisions}) == 1
        drawn.append([msgspec.structs.replace(each, keep_prob=0.5) for each in decisions])
    assert drawn[0] == drawn[1]


def test_a_request_sent_again_after_a_restart_is_kept_or_dropped_as_before(serve: Serve) -> None:
    server = serve(config(KEEP_PROB))
    ids = [unique() for _ in range(40)]
    for _ in range(2):
        with server.caller() as caller:
            for decision_id in ids:
                asked = {"actions": ACTIONS, "decision_id": decision_id}
                assert caller.post("shop/decide", asked).status == 200
        server.stop()
        server.start()
    logged = {each.decision_id for each in server.events() if isinstance(each, Decision)}
    assert logged == {each for each in ids if is_kept("shop", each, KEEP_PROB, secret=SECRET)}


# --- a day at 0.3, a night, a day at 1, a night ---------------------------------------------------


@dataclass(frozen=True)
class Nights:
    """What the server logged by day, and what two nights made of it."""

    server: Server
    first: dict[str, Any]
    second: dict[str, Any]
    logged: list[Decision]
    outcomes: int

    @property
    def lake(self) -> Lake:
        return Lake(self.server.data_dir / "lake")


def day(caller: Caller, requests: int, *, best: str) -> None:
    """Decide for phones and desktops, and reward what is best; every decision gets an outcome."""
    for start in range(0, requests, 50):
        outcomes = []
        for number in range(start, min(start + 50, requests)):
            device = ("phone", "desktop")[number % 2]
            asked = {"actions": ACTIONS, "context": {"device": device}}
            answer = caller.post("shop/decide", asked)
            assert answer.status == 200
            good = answer.json["action"] == (best if device == "phone" else "c")
            outcomes.append({"decision_id": answer.json["decision_id"], "reward": float(good)})
        assert caller.post("shop/reward", outcomes).json == {"accepted": len(outcomes)}


def croupier(server: Server, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "croupier", *arguments, "--json", "--config", "croupier.toml"],
        cwd=server.data_dir.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        server = Server(tmp_path_factory.mktemp("subsampled"), config(KEEP_PROB))
        with running(server):
            with server.caller() as caller:
                day(caller, REQUESTS, best="a")
            time.sleep(WINDOW_S + 1.5)
            first = croupier(server, "nightly")
            events = server.events()
            # From now on everything is logged, and phones want something else.
            server.stop()
            server.configure(config(1.0))
            server.start()
            with server.caller() as caller:
                day(caller, 400, best="b")
            time.sleep(WINDOW_S + 1.5)
            second = croupier(server, "nightly")
            yield Nights(
                server,
                first,
                second,
                [each for each in events if isinstance(each, Decision)],
                sum(isinstance(each, Outcome) for each in events),
            )


def test_a_share_is_logged_and_says_so(nights: Nights) -> None:
    """Within the binomial bounds; false alarm: 1e-6."""
    low, high = stats.binom.interval(1.0 - FALSE_ALARM, REQUESTS, KEEP_PROB)
    assert low <= len(nights.logged) <= high
    assert {each.keep_prob for each in nights.logged} == {KEEP_PROB}
    assert all(is_kept("shop", each.decision_id, 0.3, secret=SECRET) for each in nights.logged)
    assert nights.outcomes == REQUESTS


def test_the_join_counts_what_has_no_decision(nights: Nights) -> None:
    (night,) = nights.first["loops"]
    logged = len(nights.logged)
    assert night["join"]["joined"] == night["join"]["observed"] == logged
    assert night["join"]["orphans"] == REQUESTS - logged
    rows = nights.lake.scan("interactions", "shop").sort("offset").collect()
    assert rows["keep_prob"].to_list() == [KEEP_PROB] * logged + [1.0] * 400


def test_generations_tell_how_many_decisions_were_made(nights: Nights) -> None:
    """4 standard errors of the number estimated: false alarm 6e-5. The mean is that of all."""
    rows = nights.lake.scan("interactions", "shop").collect()
    table = nights.lake.scan("generations", "shop").collect()
    served = {row["generation"]: row for row in table.to_dicts() if row["decisions"] is not None}
    for number, row in served.items():
        own = rows.filter(pl.col("generation") == number)
        c = keep_weights(own)
        assert row["decisions"] == len(own)
        assert row["decisions_made"] == pytest.approx(c.sum())
        assert row["realised_mean"] == pytest.approx(np.average(own["reward"], weights=c))
    made = sum(row["decisions_made"] for row in served.values())
    error = (REQUESTS * (1.0 - KEEP_PROB) / KEEP_PROB) ** 0.5
    assert abs(made - REQUESTS - 400) < 4.0 * error


@pytest.mark.parametrize("which", [0, 1])
def test_promotion_is_by_the_weighted_evidence(nights: Nights, which: int) -> None:
    """Made again from the lake; in the second night, whoever ignores keep_prob finds otherwise."""
    (night,) = (nights.first, nights.second)[which]["loops"]
    assert (night["challenger"], night["skipped"], night["failed"]) == (which + 1, None, None)
    loop = LoopConfig(exploration=EpsilonGreedy(epsilon=0.2))
    server = nights.server
    registry = Registry(f"sqlite:///{server.data_dir / 'mlflow.db'}", server.data_dir)
    champion, challenger = (
        registry.load("shop", number, loop.exploration) for number in (which, which + 1)
    )
    rows = nights.lake.scan("interactions", "shop").filter(is_judged(0.3)).collect()
    if not which:
        rows = rows.filter(pl.col("keep_prob") < 1.0)
    rows = rows.sort("offset", "decision_id")
    again = evaluate(rows, champion, challenger, loop)
    told = night["evaluation"]
    value = told["policies"][1]["estimates"]["dr"]["value"]
    assert value == pytest.approx(again.policies[1].estimates["dr"].value)
    lower = told["differences"]["dr"]["lower"]
    assert lower == pytest.approx(again.differences["dr"].lower)
    verdict = judge_challenger(GateConfig(), again)
    assert night["verdict"]["promote"] == verdict.promote
    assert night["champion"] == (which + 1 if verdict.promote else which)
    ignorant = evaluate(rows.with_columns(keep_prob=pl.lit(1.0)), champion, challenger, loop)
    moved = abs(ignorant.policies[1].estimates["dr"].value - value)
    assert (moved > 0.02) == bool(which)
    if not which:
        # Everybody's best against uniform play, on some 180 judged decisions.
        assert verdict.promote


def test_a_subsampled_log_is_sound_and_can_be_replayed(nights: Nights) -> None:
    assert croupier(nights.server, "audit")["shop"]["replay_mismatches"] == 0
    assert croupier(nights.server, "replay", "again")["equal"] == {"shop": True}
