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
from croupier.offline.ope import SNIPS, Difference, LoggedBatch, PairedBatch
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
    from collections.abc import Callable, Sequence
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
        "carried_value": pl.Float64(),
        "reward": pl.Float64(),
        "snips": pl.Float64(),
        "snips_lower": pl.Float64(),
        "snips_upper": pl.Float64(),
        "ess": pl.Float64(),
        "learned_rows": pl.Int64(),
        "kept": pl.Float64(),
        "step": pl.Float64(),
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
        "bootstrapped": pl.List(pl.Float64()),
    }
)
"""A row for each generation.

`value` is the true one, the mean over the panel of ``sum_a pmf(a) E[r | a]``, beside that of the
uniform policy and of the best action; `carried_value` is what the generation before would be worth
there and then, so that `value` less it is what changing generations has changed, and nothing that
the world has. `bootstrapped` are the values of generations retrained on bootstrapped logs, where
the arm has any. `reward` is what it earned; `snips` with its 95 % interval
and `ess` is what the judge's share of the log of the generation before says of it. `learned_rows`
and `positive_rate` are of what it learned from, `kept` and `step` say how it forgot and how far it
went from its champion (:class:`~croupier.policy.generation.Provenance`); `auc`, `log_loss` and
`ece` are of its estimates for what it did then, on its own log. `entropy` (nats) and the distances
from the generation before are means over the panel, `returns` the share of the panel where the most
probable action is that of two generations ago and not that of the one before. `min_propensity` and
`coverage`, the share of the pairs of a segment and an action that were tried at least ten times
among those that could have been, are of its log.
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
    gated
        Whether a challenger takes over only where the judge's share of what its champion has logged
        shows it to be better: the lower bound (95 %) of the difference of their values is above 0.
    bootstraps
        How many times each generation is also retrained on a bootstrap of its log, to see what
        chance alone makes of its value; 0 or at least 2.
    """

    name: str
    config: LoopConfig
    logs_uniformly: bool = False
    gated: bool = False
    bootstraps: int = 0


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
    panels, rows, logged, replicates = _Panels(), [], list[_Served](), list[Generation]()
    learned = pl.Series("reward", [], pl.Float64)
    for number in range(generations):
        served = log.serve(environment.traffic(number), serving, number)
        row: dict[str, Any] = {
            "generation": number,
            "learned_rows": len(learned),
            "positive_rate": _mean(learned),
        }
        if serving.provenance is not None:
            memory = serving.provenance.memory
            row["kept"] = None if memory is None else memory.kept
            row["step"] = serving.provenance.step
        play, panel = _play(serving, arm), environment.panel(number)
        row |= panels.of(play, panel) | served.figures()
        row |= logged[-1].judge(play) if logged else {}
        row["bootstrapped"] = [
            _mean_over(panel, _play(each, arm).pmfs(panel)) for each in replicates
        ] or None
        rows.append(row)
        logged.append(served)
        lake.append("interactions", log.known(environment.end_us(number)))
        learner = _Learner(lake, arm, serving, number + 1, environment.end_us(number), seed)
        challenger = learner.generation()
        replicates = [learner.generation(resample=each) for each in range(arm.bootstraps)]
        learned = learner.rewards()
        if not arm.gated or _is_better(_play(challenger, arm), play, logged):
            serving, logged = challenger, logged[-1:]
        if progress is not None:
            progress()
    return pl.DataFrame(rows, schema=SERIES_SCHEMA)


def _is_better(challenger: _Play, champion: _Play, logged: Sequence[_Served]) -> bool:
    """Whether what a champion has logged shows a challenger to be worth more."""
    difference = Difference(SNIPS())
    for each in logged:
        difference.add(each.compared(champion, challenger))
    return difference.result(0.95).lower > 0.0


@dataclass(frozen=True, slots=True)
class _Learner:
    """Trains a challenger of what serves, at the end of its time."""

    lake: Lake
    arm: Arm
    serving: Generation
    number: int
    created_us: int
    seed: int

    def generation(self, resample: int | None = None) -> Generation:
        """The next one; the same policy goes on where there is too little to learn from."""
        try:
            return retrain(
                self.lake,
                _LOOP,
                self.arm.config,
                number=self.number,
                parent=self.serving.number,
                judge_share=JUDGE_SHARE,
                seed=self.seed * 10_000 + self.number,
                created_us=self.created_us,
                champion=self.serving,
                resample=resample,
            )
        except NotEnoughDataError:
            return replace(self.serving, number=self.number)

    def rewards(self) -> pl.Series:
        """What it learned from."""
        version = self.lake.version("interactions")
        log = LearnerLog(self.lake, _LOOP, self.arm.config, JUDGE_SHARE, version=version)
        return log.rows(columns=["reward"])["reward"]


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

    def pmfs(self, traffic: Traffic) -> list[FloatArray]:
        """Of all requests of some traffic."""
        times = traffic.ts_us.tolist()
        return [self.pmf(*each) for each in zip(traffic.requests, times, strict=True)]


def _play(generation: Generation, arm: Arm) -> _Play:
    return _Play(generation, arm.config.uniform_slices)


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

    def judge(self, challenger: _Play) -> dict[str, float | None]:
        """What this log says that another policy is worth."""
        estimate = SNIPS().add(self._judged(challenger)).result(0.95)
        return {
            "snips": estimate.value,
            "snips_lower": estimate.lower,
            "snips_upper": estimate.upper,
            "ess": estimate.ess,
        }

    def compared(self, champion: _Play, challenger: _Play) -> PairedBatch:
        """What it has on two policies, rows that none of them has learned from."""
        return PairedBatch(a=self._judged(champion), b=self._judged(challenger))

    def _judged(self, policy: _Play) -> LoggedBatch:
        judges = round(JUDGE_SHARE * FOLDS)
        rows = [
            row for row, each in enumerate(self.decisions) if fold_of(each.decision_id) < judges
        ]
        decisions = [self.decisions[row] for row in rows]
        pmfs = [policy.pmf(self.traffic.requests[row], self.decisions[row].ts) for row in rows]
        return LoggedBatch(
            reward=self.rewards[rows],
            propensity=np.array([each.propensity for each in decisions]),
            target_probability=np.array(
                [pmf[each.chosen] for pmf, each in zip(pmfs, decisions, strict=True)]
            ),
        )

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
        pmfs = play.pmfs(panel)
        found: dict[str, float | None] = {
            "value": _mean_over(panel, pmfs),
            "uniform_value": float(np.mean([truth.mean() for truth in panel.expected])),
            "best_value": float(np.mean([truth.max() for truth in panel.expected])),
            "entropy": float(np.mean([-(pmf @ np.log(np.maximum(pmf, _TINY))) for pmf in pmfs])),
        }
        if self._pmfs:
            before = self._pmfs[-1]
            found["carried_value"] = _mean_over(panel, before)
            variation, js, flips = distances(before, pmfs)
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


def _mean_over(panel: Traffic, pmfs: Sequence[FloatArray]) -> float:
    """What pmfs are worth."""
    values = [pmf @ truth for pmf, truth in zip(pmfs, panel.expected, strict=True)]
    return float(np.mean(values))


def _mean(rewards: pl.Series) -> float | None:
    return float(rewards.to_numpy().mean()) if len(rewards) else None
