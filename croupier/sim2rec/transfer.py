"""What a policy that was trained in simulators is worth to users that no simulator knew."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import msgspec
import numpy as np

from croupier.sim2rec.checkpoint import load_checkpoint, save_checkpoint
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.lts import UserPopulation, evaluation_config
from croupier.sim2rec.lts_groups import LTSGroups, draw_groups
from croupier.sim2rec.ppo import Training, advance, begin, play
from croupier.sim2rec.sadae import SADAE, blank_sadae, fit_sadae
from croupier.sim2rec.transfer_config import Arm, TransferConfig, training_groups

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import jax
    from numpy.typing import NDArray

    from croupier.sim2rec.actor import Actor
    from croupier.sim2rec.environment import Environment

__all__ = ("Point", "Trained", "returns", "train_arm")

# Parts of a seed that all arms share, so that they can be compared; learners have others.
_USERS, _TEST = 100, 101


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A point of a learning curve.

    Attributes
    ----------
    iteration
        Iterations until then.
    training_return
        Mean return of the users played with in the last of them, exploration included.
    test_return
        Mean return of the test users, of the policy as it would be served.
    entropy
        Of the policy in training, in nats.
    explained
        Share of the variance of returns to come that the critic explains.
    seconds
        Processor time until then, compilation included.
    """

    iteration: int
    training_return: float
    test_return: float
    entropy: float
    explained: float
    seconds: float


class Trained(NamedTuple):
    """A trained policy, what tells it of its group, and its learning curve."""

    actor: Actor
    extractor: SADAE | None
    curve: list[Point]


class _Run(NamedTuple):
    training: Training
    extractor: SADAE | None


def train_arm(
    config: TransferConfig,
    arm: Arm,
    level: int,
    seed: int,
    test_users: UserPopulation,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train an arm's policy and look at what it is worth in the test group on the way.

    Parameters
    ----------
    config
        How.
    arm
        Of what kind.
    level
        Transfer level, 2, 3 or 4.
    seed
        Everything random of it; arms of the same seed and grounds are trained with the same users.
    test_users
        Whom it is tested on.
    checkpoint
        A file that the training goes on from if it is there, and is kept in; the result is the
        same, bit for bit.
    progress
        Called with the iterations done and those to be done.
    """
    groups = training_groups(config, arm, level)
    rng = np.random.default_rng([seed, _USERS])
    simulators = draw_groups(
        groups, [UserPopulation.draw(config.users, rng, log_sample=g.log_sample) for g in groups]
    )
    truth = draw_groups([evaluation_config(config.environment)], [test_users])
    purpose = msgspec.json.encode([config, arm, level, seed]).decode()

    started = time.process_time()
    run, curve = _start(config, arm, simulators, seed), list[Point]()
    if checkpoint is not None:
        found = load_checkpoint(checkpoint, run, purpose=purpose)
        if found is not None:
            run, curve = found[0], msgspec.json.decode(found[1], type=list[Point])
    if not curve and arm.coded:
        run = run._replace(extractor=_fit(config, simulators, seed))
        run = run._replace(training=_training(config, arm, simulators, run.extractor, seed))
    before = curve[-1].seconds if curve else 0.0
    total = config.ppo.iterations
    for done in range(len(curve) * config.every, total, config.every):
        if progress is not None:
            progress(done, total)
        training, measured = advance(
            config.ppo, run.training, simulators, run.extractor, config.every
        )
        run = run._replace(training=training)
        tested = returns(training.actor, truth, run.extractor, seed)
        point = Point(
            iteration=done + config.every,
            training_return=float(measured.mean_return[-1]),
            test_return=float(tested.mean()),
            entropy=float(measured.entropy[-1]),
            explained=float(measured.explained[-1]),
            seconds=before + time.process_time() - started,
        )
        curve.append(point)
        if checkpoint is not None:
            save_checkpoint(checkpoint, run, purpose=purpose, notes=curve)
    if progress is not None:
        progress(total, total)
    return Trained(run.training.actor, run.extractor, curve)


def returns(
    actor: Actor, environment: Environment, extractor: SADAE | None, seed: int
) -> NDArray[np.float64]:
    """Return of every user in one episode of the policy as it would be served, shape (S, U).

    Actions are drawn from the policy's pmf, its floor included. Policies of the same seed meet the
    same signals and draws.
    """
    return np.asarray(
        _returns(actor, environment, extractor, key_of(seed, _TEST)), dtype=np.float64
    )


@eqx.filter_jit
def _returns(
    actor: Actor, environment: Environment, extractor: SADAE | None, key: jax.Array
) -> jax.Array:
    return play(actor, environment, extractor, key).reward.sum(axis=0)


def _start(config: TransferConfig, arm: Arm, simulators: Environment, seed: int) -> _Run:
    """A run of the right structure, with an extractor that has learned nothing yet."""
    extractor = None
    if arm.coded:
        extractor = blank_sadae(config.sadae, simulators, seed)
    return _Run(_training(config, arm, simulators, extractor, seed), extractor)


def _fit(config: TransferConfig, simulators: LTSGroups, seed: int) -> SADAE:
    """An extractor whose steps are chosen by the training groups nearest to the test group."""
    distance = np.abs(np.asarray(simulators.mu_c).ravel() - config.environment.mu_c)
    held_out = np.argsort(distance, kind="stable")[: config.held_out].tolist()
    return fit_sadae(config.sadae, simulators, held_out, seed).sadae


def _training(
    config: TransferConfig, arm: Arm, simulators: Environment, extractor: SADAE | None, seed: int
) -> Training:
    return begin(config.ppo, config.actor(arm), simulators, extractor, seed)
