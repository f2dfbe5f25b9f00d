"""The benchmark of learning quality: its streams, its bookkeeping and what it concludes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from scipy import stats

from benchmarks import learning_peers
from benchmarks.greediness import LEARNERS as GREEDINESS
from benchmarks.greediness import measure as greediness
from benchmarks.learning_ours import COMPARED, LEARNERS, run
from benchmarks.learning_quality import Plan, measure
from benchmarks.learning_streams import BUNDLED, load, read, stream, write
from benchmarks.learning_verdicts import Earned, records, standings, verdicts

if TYPE_CHECKING:
    from pathlib import Path


def earned(learner: str, seed: int, reward: float | None, data: str = "iris") -> Earned:
    return Earned(
        learner=learner,
        data=data,
        seed=seed,
        ours=learner == "ours",
        most_rows=50,
        rows=50,
        reward=reward,
        error=None if reward is not None else "ValueError: none",
        seconds=0.0,
    )


class Recorder:
    """Chooses in turn, and remembers what it was shown and told."""

    def __init__(self, actions: int) -> None:
        self.actions = actions
        self.seen: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
        self.rewards: list[float] = []

    def choose(
        self,
        shared: np.ndarray[tuple[int], np.dtype[np.float64]],
        own: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    ) -> int:
        self.seen.append(shared)
        return len(self.rewards) % self.actions

    def learn(self, reward: float) -> None:
        self.rewards.append(reward)


@pytest.mark.parametrize("name", BUNDLED)
def test_streams_hold_each_row_once_and_look_at_none_to_come(name: str) -> None:
    data = load(name)
    whole = stream(data, 3)
    assert whole.rewards.shape == (min(2000, len(data.rewards)), data.rewards.shape[1])
    assert (whole.rewards.sum(axis=0) == data.rewards.sum(axis=0)).all()
    assert (whole.rewards.sum(axis=1) == 1.0).all()
    start = stream(data, 3, most_rows=40)
    np.testing.assert_allclose(start.shared, whole.shared[:40], atol=1e-9)
    order = np.random.default_rng(3).permutation(len(data.rewards))
    seen = data.shared[order[:100]]
    deviation = seen.std(axis=0)
    varied = deviation > 1e-9
    expected = (seen[-1] - seen.mean(axis=0))[varied] / deviation[varied]
    np.testing.assert_allclose(whole.shared[99][varied], expected, atol=1e-6)
    assert (whole.shared[99][~varied] == 0.0).all()


def test_orders_differ_by_seed_and_by_nothing_else() -> None:
    data = load("iris")
    assert (stream(data, 1).shared == stream(data, 1).shared).all()
    assert (stream(data, 1).rewards != stream(data, 2).rewards).any()


def test_a_peer_is_shown_what_ours_are_and_earns_what_it_chose(tmp_path: Path) -> None:
    given = stream(load("wine"), 0, most_rows=30)
    path = tmp_path / "stream.npz"
    write(path, given)
    assert (read(path).shared == given.shared).all()
    peer = Recorder(3)
    rewards = learning_peers.run(peer, path)
    assert rewards == [int(row[number % 3]) for number, row in enumerate(given.rewards)]
    assert peer.rewards == rewards
    assert (np.array(peer.seen) == given.shared).all()


@pytest.mark.parametrize("name", COMPARED)
def test_ours_learn(name: str) -> None:
    given = stream(load("wine"), 100)
    rewards = run(LEARNERS[name], given, 100)
    chance = run(LEARNERS["uniform"], given, 100)
    # Two orders of one hundred decisions: far beyond what chance could make of one third.
    assert np.mean(rewards[78:]) > np.mean(chance[78:]) + 0.2
    assert rewards == run(LEARNERS[name], given, 100)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    plan = Plan(
        folder=tmp_path,
        data=("iris", "wine"),
        seeds=(0, 1),
        most_rows=20,
        only=("greedy", "uniform"),
    )
    notes: list[tuple[int, int]] = []
    first = measure(plan, lambda done, total: notes.append((done, total)))
    assert notes == [(done, 8) for done in range(1, 9)]
    assert first.missing == 0
    results = tmp_path / "results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    # As if it had been stopped while the last line was being written.
    results.write_bytes(b"".join(lines[:-2]) + lines[-2][:30])
    notes.clear()
    again = measure(plan, lambda done, total: notes.append((done, total)))
    assert notes == [(1, 2), (2, 2)]
    assert again.standings == first.standings


def test_no_run_is_started_when_there_is_no_time(tmp_path: Path) -> None:
    plan = Plan(folder=tmp_path, data=("iris",), seeds=(0,), most_rows=20, minutes=0.0)
    assert measure(plan).missing == len(LEARNERS)


def test_a_verdict_is_the_paired_t_test_corrected_by_holm() -> None:
    rng = np.random.default_rng(5)
    ours = 0.6 + 0.01 * rng.normal(size=5)
    others = {
        "near": ours + 0.01 * rng.normal(size=5),
        "far": ours - 0.2 + 0.01 * rng.normal(size=5),
    }
    found = [earned("ours", seed, float(ours[seed])) for seed in range(5)] + [
        earned(name, seed, float(values[seed]))
        for name, values in others.items()
        for seed in range(5)
    ]
    told = {each.other: each for each in verdicts(found, "ours")}
    plain = {name: stats.ttest_rel(ours, values).pvalue for name, values in others.items()}
    for name, verdict in told.items():
        assert verdict.p == pytest.approx(plain[name])
        assert verdict.difference == pytest.approx(float((ours - others[name]).mean()))
    assert told["far"].p_holm == pytest.approx(min(1.0, 2.0 * plain["far"]))
    assert told["near"].p_holm == pytest.approx(max(plain["near"], 2.0 * plain["far"]))
    assert told["far"].won() == 1
    (worst, best) = records(verdicts(found, "ours"))
    assert (worst.other, best.other) == ("near", "far")
    assert (best.wins, best.losses, best.better, best.worse) == (1, 0, 1, 0)


def test_losses_are_told_as_such() -> None:
    found = [earned("ours", seed, 0.5 + 0.001 * seed) for seed in range(5)]
    found += [earned("peer", seed, 0.7 - 0.002 * seed) for seed in range(5)]
    (verdict,) = verdicts(found, "ours")
    assert verdict.won() == verdict.won(corrected=False) == -1
    (record,) = records([verdict])
    assert (record.losses, record.plain_losses, record.worse) == (1, 1, 1)


def test_equal_learners_neither_win_nor_lose_and_failures_count_for_nobody() -> None:
    found = [earned(name, seed, 0.5) for name in ("ours", "peer") for seed in range(3)]
    found.append(earned("broken", 0, None))
    (verdict,) = verdicts(found, "ours")
    assert (verdict.p, verdict.won()) == (1.0, 0)
    assert [each.learner for each in standings(found)] == ["ours", "peer"]


def test_learners_that_need_all_rows_are_fitted_anew_often_at_first() -> None:
    fitted = [rows for rows in range(1, 301) if learning_peers.is_refitted(rows)]
    assert fitted == [*range(10, 101, 10), 150, 200, 250, 300]


@pytest.mark.skipif(
    "CROUPIER_PEERS" not in os.environ,
    reason="CROUPIER_PEERS names no interpreter with the packages of learning_peers.py",
)
@pytest.mark.slow
def test_every_peer_goes_through_a_stream(tmp_path: Path) -> None:
    plan = Plan(
        folder=tmp_path,
        peers=os.environ["CROUPIER_PEERS"],
        data=("iris", "mode choice"),
        seeds=(0,),
        most_rows=12,
    )
    report = measure(plan)
    assert report.failed == []
    assert report.missing == 0
    ours, theirs = (
        {each.learner for each in report.standings if each.ours is side} for side in (True, False)
    )
    assert ours == set(LEARNERS)
    assert len(theirs) >= 40
    assert {name.split()[0] for name in theirs} == {
        "vw",
        "mabwiser",
        "contextualbandits",
        "coba",
        "river",
    }
    assert msgspec.json.encode(report)


def test_a_larger_gamma_leaves_rarer_actions() -> None:
    found = {each.learner: each for each in greediness(["iris"], [100], 60) if not each.every}
    assert found.keys() == GREEDINESS.keys()
    rarest = [each.rarest for each in found.values()]
    assert rarest[0] < rarest[1] < rarest[2]
    assert all(0.0 < each.reward <= 1.0 for each in found.values())
