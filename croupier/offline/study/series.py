"""One series of generations: each serves, its log is learned from, and the next one takes over.

Everything but the world is what runs in production: decisions are drawn, logged and joined into a
lake, and the oracle is retrained from there by the loop's configuration.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from croupier.offline.calibrate import HeldOut, measure
from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.learner_log import LearnerLog
from croupier.offline.ope import SNIPS, LoggedBatch
from croupier.offline.retrain import retrain
from croupier.offline.rewards import FOLDS
from croupier.offline.sink import decision_row
from croupier.offline.stability import distances
from croupier.policy.decision import Circumstances, decide
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.exploration import Uniform
from croupier.policy.generation import Generation
from croupier.policy.traffic import Plan, uniform_share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.offline.study.environment import StudyEnvironment, Traffic
    from croupier.policy.events import Decision
    from croupier.policy.loop import LoopConfig
    from croupier.policy.requests import DecisionRequest
    from croupier.policy.traffic import UniformSlice

    FloatArray = NDArray[np.float64]

__all__ = ("JUDGE_SHARE", "SERIES_SCHEMA", "Arm", "run_series")

SERIES_SCHEMA = pl.Schema(
    {
        "generation": pl.Int64(),
        "value": pl.Float64(),
        "uniform_value": pl.Float64(),
        "best_value": pl.Float64(),
        "reward": pl.Float64(),
        "snips": pl.Float64(),
        "snips_lower": pl.Float64(),
        "snips_upper": pl.Float64(),
        "ess": pl.Float64(),
        "learned_rows": pl.Int64(),
        "positive_rate": pl.Float64(),
        "auc": pl.Float64(),
        "log_loss": pl.Float64(),
        "ece": pl.Float64(),
        "entropy": pl.Float64(),
        "min_propensity": pl.Float64(),
        "flip_rate": pl.Float64(),
        "total_variation": pl.Float64(),
        "js_distance": pl.Float64(),
        "returns": pl.Float64(),
        "coverage": pl.Float64(),
    }
)
"""A row for each generation.

`value` is the true one, the mean over the panel of ``sum_a pmf(a) E[r | a]``, beside that of the
uniform policy and of the best action; `reward` is what it earned; `snips` with its 95 % interval
and `ess` is what the judge's share of the log of the generation before says of it. `learned_rows`
and `positive_rate` are of what it learned from; `auc`, `log_loss` and `ece` of its estimates for
what it did then, on its own log. `entropy` (nats) and the distances from the generation before are
means over the panel, `returns` the share of the panel where the most probable action is that of two
generations ago and not that of the one before. `min_propensity` and `coverage`, the share of the
pairs of a segment and an action that were tried at least ten times among those that could have
been, are of its log.
"""

JUDGE_SHARE = 0.2
"""Share of each log that the next generation doesn't learn from, and is judged by."""

_LOOP = "study"
_TRIED = 10
# Whose logarithm is taken in place of that of 0, and counts for nothing.
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Arm:
    """What is studied: a loop's configuration under a name.

    Attributes
    ----------
    name
        Of the arm.
    config
        Of the loop.
    logs_uniformly
        Whether all decisions are uniform, so that what a generation would do has no part in what
        the next one learns from. The values are those of what it would do: a control, whose
        generations differ by chance and by nothing else.
    """

    name: str
    config: LoopConfig
    logs_uniformly: bool = False


def run_series(
    environment: StudyEnvironment,
    arm: Arm,
    *,
    generations: int,
    seed: int,
    directory: Path,
    progress: Callable[[], None] | None = None,
) -> pl.DataFrame:
    """Let generations follow each other.

    Parameters
    ----------
    environment
        Whose traffic is decided.
    arm
        By which configuration.
    generations
        How many serve; the first is the cold start, which has learned nothing.
    seed
        Of draws, rewards and training. Rewards of the same request and action are the same in all
        arms of a seed.
    directory
        For the lake; empty.
    progress
        Called after every generation.

    Returns
    -------
    series
        Of :data:`SERIES_SCHEMA`.
    """
    lake, log = Lake(directory), _Log(arm, seed)
    serving = Generation(_LOOP, 0, arm.config.exploration, None, None)
    panels, rows = _Panels(), []
    last, learned = None, pl.Series("reward", [], pl.Float64)
    for number in range(generations):
        served = log.serve(environment.traffic(number), serving, number)
        row: dict[str, float | int | None] = {
            "generation": number,
            "learned_rows": len(learned),
            "positive_rate": _mean(learned),
        }
        play = _Play(serving, arm.config.uniform_slices)
        row |= panels.of(play, environment.panel(number)) | served.figures()
        row |= {} if last is None else last.judge(play)
        rows.append(row)
        last, end_us = served, environment.end_us(number)
        lake.append("interactions", log.known(end_us))
        serving = _trained(lake, arm.config, serving, seed=seed, created_us=end_us)
        learned = LearnerLog(
            lake, _LOOP, arm.config, JUDGE_SHARE, version=lake.version("interactions")
        ).rows(columns=["reward"])["reward"]
        if progress is not None:
            progress()
    return pl.DataFrame(rows, schema=SERIES_SCHEMA)


def _trained(
    lake: Lake, config: LoopConfig, serving: Generation, *, seed: int, created_us: int
) -> Generation:
    """The next generation; the same policy goes on where there is too little to learn from."""
    number = serving.number + 1
    try:
        return retrain(
            lake,
            _LOOP,
            config,
            number=number,
            parent=serving.number,
            judge_share=JUDGE_SHARE,
            seed=seed * 10_000 + number,
            created_us=created_us,
            champion=serving,
        )
    except NotEnoughDataError:
        return replace(serving, number=number)


@dataclass(frozen=True, slots=True)
class _Play:
    """A generation as it is played: with the loop's uniform slices in every pmf."""

    generation: Generation
    slices: tuple[UniformSlice, ...]

    def pmf(self, request: DecisionRequest, ts_us: int) -> FloatArray:
        """Of a request at a time, whose actions can all be chosen."""
        share = uniform_share(self.slices, ts_us)
        plan = Plan(self.generation)
        return plan.answer(request.context, request.actions, None, 0, uniform=share).pmf


class _Log:
    """Decisions with their rewards, those known already and those that aren't yet."""

    def __init__(self, arm: Arm, seed: int) -> None:
        self._slices = arm.config.uniform_slices
        self._uniformly = arm.logs_uniformly
        self._seed = seed
        self._count = 0
        self._pending: list[tuple[int, dict[str, Any]]] = []

    def serve(self, traffic: Traffic, serving: Generation, number: int) -> _Served:
        """Decide on every request, and draw its reward."""
        # The same number for a request whatever is done, so that arms differ by what they do.
        luck = np.random.default_rng((self._seed, number)).random(len(traffic))
        drawn = replace(serving, exploration=Uniform(), tilt=None) if self._uniformly else serving
        plan, decisions, rewards = Plan(drawn), [], []
        for row, (request, ts_us) in enumerate(
            zip(traffic.requests, traffic.ts_us.tolist(), strict=True)
        ):
            share = uniform_share(self._slices, ts_us)
            moment = Circumstances(f"{self._seed}-{number}-{row}", ts_us, uniform=share)
            decision = decide(request, plan, moment)
            reward = float(luck[row] < traffic.expected[row][decision.chosen])
            decisions.append(decision)
            rewards.append(reward)
            self._count += 1
            joined = decision_row(decision, self._count) | {
                "reward": reward,
                "reward_source": "observed",
                "outcomes": 1,
                "delay_s": float(traffic.known_us[row] - ts_us) / 1e6,
                "fold": fold_of(decision.decision_id),
            }
            self._pending.append((int(traffic.known_us[row]), joined))
        return _Served(traffic, decisions, np.array(rewards))

    def known(self, by_us: int) -> pl.DataFrame:
        """Interactions whose reward has become known since this was last asked."""
        due = [row for known_us, row in self._pending if known_us <= by_us]
        self._pending = [each for each in self._pending if each[0] > by_us]
        return pl.DataFrame(due, schema=SCHEMAS["interactions"])


@dataclass(frozen=True, slots=True)
class _Served:
    """What one generation has decided, and got."""

    traffic: Traffic
    decisions: list[Decision]
    rewards: FloatArray

    def figures(self) -> dict[str, float | None]:
        """Those of its log."""
        propensities = [each.propensity for each in self.decisions]
        found: dict[str, float | None] = {
            "reward": float(self.rewards.mean()),
            "min_propensity": min(propensities),
            "coverage": self._coverage(),
        }
        if self.decisions[0].scores is not None:
            scores = [each.scores[each.chosen] for each in self.decisions if each.scores]
            of_all = np.ones(len(self.rewards))
            measured = measure(
                HeldOut(scores=np.array(scores), rewards=self.rewards, weights=of_all)
            )
            found |= {name: measured.get(name) for name in ("auc", "log_loss", "ece")}
        return found

    def judge(self, challenger: _Play) -> dict[str, float]:
        """What this log says that another policy is worth."""
        judges = round(JUDGE_SHARE * FOLDS)
        reward, propensity, target = [], [], []
        for row, (request, decision) in enumerate(
            zip(self.traffic.requests, self.decisions, strict=True)
        ):
            # The challenger has learned from all others.
            if fold_of(decision.decision_id) < judges:
                pmf = challenger.pmf(request, decision.ts)
                reward.append(self.rewards[row])
                propensity.append(decision.propensity)
                target.append(pmf[decision.chosen])
        batch = LoggedBatch(
            reward=np.array(reward),
            propensity=np.array(propensity),
            target_probability=np.array(target),
        )
        estimate = SNIPS().add(batch).result(0.95)
        return {
            "snips": estimate.value,
            "snips_lower": estimate.lower,
            "snips_upper": estimate.upper,
            "ess": estimate.ess,
        }

    def _coverage(self) -> float:
        possible: set[tuple[str, str]] = set()
        tried: Counter[tuple[str, str]] = Counter()
        for segment, request, decision in zip(
            self.traffic.segments, self.traffic.requests, self.decisions, strict=True
        ):
            possible.update((segment, action.id) for action in request.actions)
            tried[segment, request.actions[decision.chosen].id] += 1
        return sum(count >= _TRIED for count in tried.values()) / len(possible)


class _Panels:
    """What generations make of the same requests, one after the other."""

    def __init__(self) -> None:
        self._pmfs: list[list[FloatArray]] = []

    def of(self, play: _Play, panel: Traffic) -> dict[str, float | None]:
        """Value of the next generation and distances from those before."""
        times = panel.ts_us.tolist()
        pmfs = [play.pmf(*each) for each in zip(panel.requests, times, strict=True)]
        found: dict[str, float | None] = {
            "value": _over(panel, lambda row, truth: float(pmfs[row] @ truth)),
            "uniform_value": _over(panel, lambda _, truth: float(truth.mean())),
            "best_value": _over(panel, lambda _, truth: float(truth.max())),
            "entropy": float(np.mean([-(pmf @ np.log(np.maximum(pmf, _TINY))) for pmf in pmfs])),
        }
        if self._pmfs:
            variation, js, flips = distances(self._pmfs[-1], pmfs)
            found |= {
                "total_variation": float(variation.mean()),
                "js_distance": float(js.mean()),
                "flip_rate": float(flips.mean()),
            }
            if len(self._pmfs) > 1:
                back = distances(self._pmfs[-2], pmfs)[2]
                found["returns"] = float(np.mean((flips > 0.0) & (back == 0.0)))
        self._pmfs = [*self._pmfs[-1:], pmfs]
        return found


def _over(panel: Traffic, value: Callable[[int, FloatArray], float]) -> float:
    return float(np.mean([value(row, truth) for row, truth in enumerate(panel.expected)]))


def _mean(rewards: pl.Series) -> float | None:
    return float(rewards.to_numpy().mean()) if len(rewards) else None
