"""Croupier's learners, for :mod:`benchmarks.learning_quality`.

``python -m benchmarks.learning_ours`` answers jobs as ``learning_peers.py`` does. Every exploration
decides from an oracle that is taught each interaction as an online learner teaches it, by
``partial_fit`` with the propensity that was logged.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.learning_streams import read
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
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    BootstrapConfig,
    CoverConfig,
    OracleConfig,
    RidgeConfig,
    TrainingRow,
    VowpalWabbitConfig,
    make_online_oracle,
)
from croupier.policy.sampling import draw, draw_key

if TYPE_CHECKING:
    from benchmarks.learning_streams import Stream

__all__ = ("COMPARED", "DEFAULT", "LEARNERS", "Answer", "Job", "run")

DEFAULT: Final = "default (squarecb, optimism 0.01, on auto)"
"""What a loop does that says nothing about exploration and oracle."""

COMPARED: Final = (DEFAULT, "squarecb on vowpal_wabbit", "regcb optimistic")
"""Those that are set beside each peer: the default, what it was before, and what doesn't give every
action a probability."""


@dataclass(frozen=True, slots=True)
class Learner:
    """An exploration and the oracle that it decides from."""

    exploration: Exploration
    oracle: OracleConfig


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is asked for.

    Attributes
    ----------
    learner
        Its name.
    stream
        Path of the stream.
    actions
        How many there are.
    seed
        Of everything random in the learner.
    """

    learner: str
    stream: str
    actions: int
    seed: int


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker answers: the reward of every decision, or what went wrong."""

    rewards: list[int] = []
    error: str | None = None


_TABLE, _RIDGE = VowpalWabbitConfig(), RidgeConfig()
_LOOP = LoopConfig()

LEARNERS: dict[str, Learner] = {
    DEFAULT: Learner(_LOOP.exploration, _LOOP.oracle),
    "squarecb on vowpal_wabbit": Learner(SquareCB(), _TABLE),
    "thompson, scale 0.05, l2 10": Learner(Thompson(scale=0.05), RidgeConfig(l2=10.0)),
    "uniform": Learner(Uniform(), _TABLE),
    "greedy": Learner(Greedy(), _TABLE),
    "epsilon_greedy": Learner(EpsilonGreedy(), _TABLE),
    "softmax": Learner(Softmax(), _TABLE),
    "softmax, temperature 0.05": Learner(Softmax(temperature=0.05), _TABLE),
    "falcon": Learner(Falcon(), _TABLE),
    "fastcb": Learner(FastCB(), _TABLE),
    "bagging": Learner(Bagging(), BootstrapConfig(base=_TABLE, members=5)),
    "cover": Learner(Cover(), CoverConfig(members=5)),
    "regcb": Learner(RegCB(), _RIDGE),
    "regcb optimistic": Learner(RegCB(variant="optimistic"), _RIDGE),
    "regcb optimistic, floor 0.01": Learner(
        RegCB(variant="optimistic", floor=0.01, floor_method="mix"), _RIDGE
    ),
    "thompson": Learner(Thompson(), _RIDGE),
    "squarecb on ridge": Learner(SquareCB(), _RIDGE),
    "greedy on ridge": Learner(Greedy(), _RIDGE),
}


def run(learner: Learner, given: Stream, seed: int) -> list[int]:
    """Reward of every decision, 0 or 1, of a learner that knows nothing yet."""
    oracle = make_online_oracle(learner.oracle, random_state=seed)
    ids = [str(index) for index in range(given.rewards.shape[1])]
    shared = [Action(name) for name in ids]
    has_own = given.own.shape[2] > 0
    earned: list[int] = []
    for number, rewards in enumerate(given.rewards):
        context = {"x": given.shared[number].tolist()}
        actions = shared
        if has_own:
            own = given.own[number].tolist()
            actions = [Action(name, {"x": each}) for name, each in zip(ids, own, strict=True)]
        estimates = oracle.estimate(context, actions, learner.exploration.wants)
        pmf = learner.exploration.pmf(estimates, training_rows=number)
        chosen = draw(pmf, draw_key("learning_quality", seed, str(number)))
        earned.append(int(rewards[chosen]))
        lesson = TrainingRow(
            context=context,
            actions=actions,
            chosen=chosen,
            propensity=float(pmf[chosen]),
            reward=float(earned[-1]),
        )
        oracle = oracle.partial_fit([lesson])
    return earned


def main() -> None:
    """Answer jobs until there are none."""
    for line in sys.stdin:
        job = msgspec.json.decode(line, type=Job)
        rewards = run(LEARNERS[job.learner], read(Path(job.stream)), job.seed)
        sys.stdout.write(msgspec.json.encode(Answer(rewards=rewards)).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
