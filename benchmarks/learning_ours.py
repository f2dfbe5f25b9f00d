"""Croupier's learners, for :mod:`benchmarks.learning_quality`.

``python -m benchmarks.learning_ours`` answers jobs as ``learning_peers.py`` does. Every exploration
decides from an oracle that is taught each interaction as an online learner teaches it, by
``partial_fit`` with the propensity that was logged.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
import numpy as np

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
    make_oracle,
)
from croupier.policy.sampling import draw, draw_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.learning_streams import Stream
    from croupier.policy.oracle import OnlineOracle, Oracle

__all__ = ("COMPARED", "DEFAULT", "LEARNERS", "Answer", "Job", "Learner", "Played", "play", "run")

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
    return [each.reward for each in play(learner, given, seed)]


class Played(NamedTuple):
    """What came of a decision: its reward, 0 or 1, and how probable the rarest action was."""

    reward: int
    rarest: float


def play(learner: Learner, given: Stream, seed: int, *, every: int = 0) -> Iterator[Played]:
    """Decide, see the reward and learn, of a learner that knows nothing yet.

    Parameters
    ----------
    learner, given
        Who decides what.
    seed
        Of everything random in the learner.
    every
        After how many decisions it is trained afresh on all so far, as a night does, with uniform
        ones until then; 0 to teach it every decision, as it comes.
    """
    oracle: Oracle = make_online_oracle(learner.oracle, random_state=seed)
    rows: list[TrainingRow] = []
    behind = 0
    for number, (context, actions) in enumerate(_requests(given)):
        if every and number and number % every == 0:
            oracle, behind = make_oracle(learner.oracle, random_state=seed).fit(rows), number
        pmf = np.full(len(actions), 1.0 / len(actions))
        if behind or not every:
            estimates = oracle.estimate(context, actions, learner.exploration.wants)
            known = behind if every else number
            pmf = learner.exploration.pmf(estimates, training_rows=known)
        chosen = draw(pmf, draw_key("learning_quality", seed, str(number)))
        reward = int(given.rewards[number][chosen])
        yield Played(reward, float(pmf.min()))
        lesson = TrainingRow(
            context=context,
            actions=actions,
            chosen=chosen,
            propensity=float(pmf[chosen]),
            reward=float(reward),
        )
        if every:
            rows.append(lesson)
        else:
            oracle = cast("OnlineOracle", oracle).partial_fit([lesson])


def _requests(given: Stream) -> Iterator[tuple[dict[str, Any], list[Action]]]:
    """Contexts and actions, one after the other."""
    ids = [str(index) for index in range(given.rewards.shape[1])]
    actions = [Action(name) for name in ids]
    for shared, own in zip(given.shared.tolist(), given.own.tolist(), strict=True):
        if given.own.shape[2] > 0:
            actions = [Action(name, {"x": each}) for name, each in zip(ids, own, strict=True)]
        yield {"x": shared}, actions


def main() -> None:
    """Answer jobs until there are none."""
    for line in sys.stdin:
        job = msgspec.json.decode(line, type=Job)
        rewards = run(LEARNERS[job.learner], read(Path(job.stream)), job.seed)
        sys.stdout.write(msgspec.json.encode(Answer(rewards=rewards)).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
