"""What explorations earn while they learn, beside Vowpal Wabbit's of the same name.

Run with ``python -m benchmarks.learning`` (``--json`` for programs). Four data sets that come with
scikit-learn are turned into bandits: the context is a row's features, the actions are the classes,
the reward is 1 for the right one. Each policy decides, sees the reward of what it did and learns
from it at once; what is reported is the mean reward from the first decision on. Both sides see the
same rows in the same order, the same encoded features, and draw with the same keys; Vowpal Wabbit
runs with its defaults (``-q ca``, learning rate 0.5, cost = -reward).

A policy is called worse where the paired difference over the seeds is below 0 by a one-sided t test
at 5 % after Holm's correction over all comparisons.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import msgspec
import numpy as np
import sklearn.datasets
import vowpal_wabbit_next as vw
from scipy import stats

from croupier.cli.output import Output
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.events import Action
from croupier.policy.exploration import (
    Bagging,
    Cover,
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    Greedy,
    RegCB,
    Softmax,
    SquareCB,
    Thompson,
    Uniform,
)
from croupier.policy.oracle import (
    BootstrapConfig,
    CoverConfig,
    OracleConfig,
    RidgeConfig,
    TrainingRow,
    VowpalWabbitConfig,
    make_oracle,
)
from croupier.policy.oracle.vowpal_wabbit import bandit_examples
from croupier.policy.sampling import draw, draw_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.oracle import OnlineOracle

DataName: TypeAlias = Literal["digits", "wine", "iris", "breast cancer"]

DATA: tuple[DataName, ...] = ("digits", "wine", "iris", "breast cancer")
SEEDS, DECISIONS = 5, 2000
_MEMBERS = 5


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, and Vowpal Wabbit's of the same name if it has one.

    Attributes
    ----------
    name
        Of the policy, as the table shows it.
    exploration, oracle
        Ours.
    arguments
        Vowpal Wabbit's, after ``--cb_explore_adf``; None if it has none.
    weighted
        Whether learning weighs rewards by one over the propensity. Gap weighting and intervals are
        made for plain regression, in Vowpal Wabbit too.
    """

    name: str
    exploration: Exploration
    oracle: OracleConfig
    arguments: str | None = None
    weighted: bool = True


_TABLE = VowpalWabbitConfig()
_RANGE = "--cb_min_cost -1 --cb_max_cost 0"

CONTENDERS: tuple[Contender, ...] = (
    Contender("uniform", Uniform(), _TABLE),
    Contender("greedy", Greedy(), _TABLE, "--epsilon 0"),
    Contender("epsilon_greedy", EpsilonGreedy(epsilon=0.05), _TABLE, "--epsilon 0.05"),
    Contender("softmax", Softmax(temperature=0.1), _TABLE, "--softmax --lambda 10"),
    Contender("squarecb", SquareCB(), _TABLE, "--squarecb", weighted=False),
    Contender("falcon", Falcon(), _TABLE, weighted=False),
    Contender("fastcb", FastCB(gamma=400.0), _TABLE, weighted=False),
    Contender(
        "bagging",
        Bagging(),
        BootstrapConfig(base=_TABLE, members=_MEMBERS),
        f"--bag {_MEMBERS}",
    ),
    Contender("cover", Cover(), CoverConfig(members=_MEMBERS), f"--cover {_MEMBERS}"),
    Contender("regcb", RegCB(), RidgeConfig(), f"--regcb {_RANGE}", weighted=False),
    Contender(
        "regcb, mellowness 0.01",
        RegCB(mellowness=0.01),
        RidgeConfig(),
        f"--regcb --mellowness 0.01 {_RANGE}",
        weighted=False,
    ),
    Contender(
        "regcb optimistic",
        RegCB(variant="optimistic"),
        RidgeConfig(),
        f"--regcb --regcbopt {_RANGE}",
        weighted=False,
    ),
    Contender(
        "regcb optimistic, mellowness 0.01",
        RegCB(variant="optimistic", mellowness=0.01),
        RidgeConfig(),
        f"--regcb --regcbopt --mellowness 0.01 {_RANGE}",
        weighted=False,
    ),
    # The default of ours was chosen on digits and iris; Vowpal Wabbit's is 0.1.
    Contender(
        "regcb, mellowness 0.1",
        RegCB(mellowness=0.1),
        RidgeConfig(),
        f"--regcb {_RANGE}",
        weighted=False,
    ),
    Contender(
        "regcb optimistic, mellowness 0.1",
        RegCB(variant="optimistic", mellowness=0.1),
        RidgeConfig(),
        f"--regcb --regcbopt {_RANGE}",
        weighted=False,
    ),
    Contender("thompson", Thompson(), RidgeConfig(), weighted=False),
    Contender("squarecb on ridge", SquareCB(), RidgeConfig(), weighted=False),
)


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one data set.

    Attributes
    ----------
    reward, error
        Our mean progressive reward over the seeds, and its standard error.
    vw_reward, vw_error
        Vowpal Wabbit's; None if it has no such policy.
    difference
        Ours less theirs, per decision.
    p_worse
        P-value of the one-sided paired t test that ours is not worse, corrected by Holm; 1 where
        all differences are 0.
    """

    data: DataName
    policy: str
    reward: float
    error: float
    vw_reward: float | None = None
    vw_error: float | None = None
    difference: float | None = None
    p_worse: float | None = None


class _Learner(Protocol):
    """Gives a pmf, and learns what came of a choice."""

    def pmf(self, context: dict[str, Any], actions: list[Action]) -> NDArray[np.float64]: ...

    def learn(self, row: TrainingRow) -> None: ...


class _Ours:
    def __init__(self, contender: Contender, seed: int) -> None:
        self._exploration = contender.exploration
        fresh = cast("OnlineOracle", make_oracle(contender.oracle, random_state=seed))
        self._oracle = fresh.partial_fit([])
        self._rows = 0

    def pmf(self, context: dict[str, Any], actions: list[Action]) -> NDArray[np.float64]:
        believed = self._oracle.estimate(context, actions, self._exploration.needs)
        return self._exploration.pmf(believed, training_rows=self._rows)

    def learn(self, row: TrainingRow) -> None:
        self._oracle.partial_fit([row])
        self._rows += 1


class _Theirs:
    def __init__(self, arguments: str, seed: int) -> None:
        fixed = f"--quiet --cb_explore_adf -q ca --noconstant -b 18 --random_seed {seed}"
        self._workspace: Any = vw.Workspace([*fixed.split(), *arguments.split()])
        self._encoder = FeatureEncoder(EncoderConfig())

    def pmf(self, context: dict[str, Any], actions: list[Action]) -> NDArray[np.float64]:
        # No action was chosen yet, so no example has a label.
        asked = TrainingRow(context=context, actions=actions, chosen=-1, propensity=1.0, reward=0.0)
        examples = bandit_examples(asked, self._encoder.encode(context, actions))
        given = dict(self._workspace.predict_one(examples))
        pmf = np.maximum([given[index] for index in range(len(actions))], 0.0)
        return np.asarray(pmf / pmf.sum(), dtype=np.float64)

    def learn(self, row: TrainingRow) -> None:
        decision = self._encoder.encode(row.context, row.actions)
        self._workspace.learn_one(bandit_examples(row, decision))


def measure(
    data: Sequence[DataName] = DATA,
    seeds: int = SEEDS,
    decisions: int = DECISIONS,
    *,
    workers: int | None = None,
) -> list[Learned]:
    """Let every policy learn on every data set, once for every seed."""
    runs = [
        (name, index, ours, seed, decisions)
        for name in data
        for index, contender in enumerate(CONTENDERS)
        for ours in (True, False)
        if ours or contender.arguments is not None
        for seed in range(seeds)
    ]
    with ProcessPoolExecutor(workers) as pool:
        rewards = dict(zip((run[:4] for run in runs), pool.map(_run, runs), strict=True))
    rows = [
        _summary(
            name,
            contender.name,
            np.array([rewards[name, index, True, seed] for seed in range(seeds)]),
            None
            if contender.arguments is None
            else np.array([rewards[name, index, False, seed] for seed in range(seeds)]),
        )
        for name in data
        for index, contender in enumerate(CONTENDERS)
    ]
    return _corrected(rows)


def _run(run: tuple[DataName, int, bool, int, int]) -> float:
    """Mean reward of one policy on one stream."""
    data, index, ours, seed, decisions = run
    contender = CONTENDERS[index]
    contexts, labels, classes = _load(data)
    actions = [Action(str(label)) for label in range(classes)]
    learner: _Learner
    if ours:
        learner = _Ours(contender, seed)
    else:
        assert contender.arguments is not None
        learner = _Theirs(contender.arguments, seed)
    total = 0.0
    for number, row in enumerate(_order(len(labels), decisions, seed)):
        context = {"x": contexts[row]}
        pmf = learner.pmf(context, actions)
        chosen = draw(pmf, draw_key(data, seed, str(number)))
        reward = float(chosen == labels[row])
        total += reward
        learner.learn(
            TrainingRow(
                context=context,
                actions=actions,
                chosen=chosen,
                propensity=float(pmf[chosen]) if contender.weighted else 1.0,
                reward=reward,
            )
        )
    return total / decisions


def _load(data: DataName) -> tuple[list[list[float]], list[int], int]:
    """Features scaled to [0, 1], classes, and how many of these there are."""
    load = getattr(sklearn.datasets, f"load_{data.replace(' ', '_')}")
    features, labels = load(return_X_y=True)
    low, high = features.min(axis=0), features.max(axis=0)
    scaled = (features - low) / np.where(high > low, high - low, 1.0)
    return scaled.tolist(), labels.tolist(), int(labels.max()) + 1


def _order(rows: int, decisions: int, seed: int) -> list[int]:
    """Rows in shuffled passes."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(rows) for _ in range(-(-decisions // rows))]
    return [int(row) for row in np.concatenate(passes)[:decisions]]


def _summary(
    data: DataName, policy: str, ours: NDArray[np.float64], theirs: NDArray[np.float64] | None
) -> Learned:
    row = Learned(data=data, policy=policy, reward=float(ours.mean()), error=_error(ours))
    if theirs is None:
        return row
    apart = ours - theirs
    same = bool((apart == apart[0]).all())
    p_worse = (
        float(apart[0] >= 0.0)
        if same
        else float(stats.ttest_1samp(apart, 0.0, alternative="less").pvalue)
    )
    return msgspec.structs.replace(
        row,
        vw_reward=float(theirs.mean()),
        vw_error=_error(theirs),
        difference=float(apart.mean()),
        p_worse=p_worse,
    )


def _error(rewards: NDArray[np.float64]) -> float:
    return float(rewards.std(ddof=1) / math.sqrt(rewards.size)) if rewards.size > 1 else math.nan


def _corrected(rows: list[Learned]) -> list[Learned]:
    """Holm's correction of all p-values."""
    compared = [index for index, row in enumerate(rows) if row.p_worse is not None]
    ordered = sorted(compared, key=lambda index: rows[index].p_worse or 0.0)
    corrected, floor = list(rows), 0.0
    for rank, index in enumerate(ordered):
        floor = max(floor, min(1.0, (rows[index].p_worse or 0.0) * (len(ordered) - rank)))
        corrected[index] = msgspec.structs.replace(rows[index], p_worse=floor)
    return corrected


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--decisions", type=int, default=DECISIONS)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    output = Output(json=given.json)
    rows = measure(seeds=given.seeds, decisions=given.decisions, workers=given.workers)

    def show() -> None:
        output.table(
            f"Mean reward of {given.decisions:,} decisions while learning, {given.seeds} seeds",
            ["data", "policy", "ours", "Vowpal Wabbit", "difference", "p (ours is worse)"],
            [
                [
                    each.data,
                    each.policy,
                    f"{each.reward:.3f} ± {each.error:.3f}",
                    None
                    if each.vw_reward is None
                    else f"{each.vw_reward:.3f} ± {each.vw_error:.3f}",
                    None if each.difference is None else f"{each.difference:+.3f}",
                    None if each.p_worse is None else f"{each.p_worse:.3f}",
                ]
                for each in rows
            ],
        )

    output.result(rows, show)


if __name__ == "__main__":
    main()
