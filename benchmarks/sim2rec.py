r"""Steps of the Long-Term-Satisfaction environment and frames of training, each in one process.

Run with ``python -m benchmarks.sim2rec`` (``--json`` for programs). Steps are compared with those
of RecSim's own environment, which needs a virtual environment of its own:

    python -m venv recsim
    recsim/bin/pip install --no-deps recsim gin-config gym==0.26.2 "numpy<2" absl-py cloudpickle \
        gym-notices scipy six
    python -m benchmarks.sim2rec --recsim recsim/bin/python

Without it, the peer is a plain-Python rendering of the dynamics, one user at a time, which leaves
out all that RecSim does besides. Every contender has a process to itself, held to one processor,
and is timed by the processor time that it uses; memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from croupier.cli.output import Output
from croupier.sim2rec.lts import LTSConfig, UserPopulation

if TYPE_CHECKING:
    import jax

    from croupier.sim2rec.lts_groups import LTSGroups

SECONDS = 3.0
GROUPS, USERS = 8, 2048


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """What a contender did in a second of processor time, and the peak of its memory."""

    contender: str
    unit: str
    per_second: float
    times: float
    memory_mb: float


_Work: TypeAlias = Callable[[], tuple[float, float]]


def plain_python() -> tuple[float, float]:
    """Steps and seconds of one user in plain Python."""
    config, draw = LTSConfig(), random.Random(0)
    memory, sensitivity = 0.7, 0.3
    steps, exposure, started = 0, 0.0, time.process_time()
    while (seconds := time.process_time() - started) < SECONDS:
        for _ in range(100):
            if steps % config.horizon == 0:
                exposure = 0.5 / (1.0 - memory)
            clickbait = (steps % config.documents) / config.documents
            sat = 1.0 / (1.0 + math.exp(-sensitivity * exposure))
            mean = (clickbait * config.mu_c + (1.0 - clickbait) * config.mu_k) * sat
            draw.gauss(mean, clickbait * config.sd_c + (1.0 - clickbait) * config.sd_k)
            exposure = memory * exposure - 2.0 * (clickbait - 0.5)
            steps += 1
    return steps, seconds


def compiled() -> tuple[float, float]:
    """Steps and seconds of all users of some groups in JAX."""
    # Here and below JAX is imported after the process was held to one processor, which it counts.
    import equinox as eqx  # noqa: PLC0415
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    from croupier.sim2rec.environment import key_of  # noqa: PLC0415

    environment = _groups()

    @eqx.filter_jit
    def episode(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, environment.horizon + 1)
        state, _ = environment.reset(keys[0])
        first = jnp.broadcast_to(jnp.arange(USERS), environment.shape)

        def step(carry, key):  # type: ignore[no-untyped-def]
            state, number = carry
            state, _, reward = environment.step(key, state, (first + number) % environment.actions)
            return (state, number + 1), reward.sum()

        _, reward = jax.lax.scan(step, (state, 0), keys[1:])
        total: jax.Array = reward.sum()
        return total

    return _timed(
        lambda number: episode(key_of(number)),
        environment.horizon * GROUPS * USERS,
    )


def training() -> tuple[float, float]:
    """Frames and seconds of training a recurrent policy: played, and learned from."""
    from croupier.sim2rec.learning_config import ActorConfig, PPOConfig  # noqa: PLC0415
    from croupier.sim2rec.ppo import advance, begin, users_of_each  # noqa: PLC0415

    environment, config = _groups(), PPOConfig()
    learner = [begin(config, ActorConfig(), environment, None, 0)]

    def iterate(_: int) -> jax.Array:
        learner[0], measured = advance(config, learner[0], environment, None, 5)
        return measured.mean_return

    frames = 5 * environment.horizon * GROUPS * users_of_each(config, environment)
    return _timed(iterate, frames)


def _groups() -> LTSGroups:
    from croupier.sim2rec.lts_groups import draw_groups  # noqa: PLC0415

    rng = np.random.default_rng(0)
    configs = [LTSConfig(mu_c=float(6 + group)) for group in range(GROUPS)]
    return draw_groups(configs, [UserPopulation.draw(USERS, rng) for _ in configs])


def _timed(call: Callable[[int], jax.Array], units: int) -> tuple[float, float]:
    np.asarray(call(0))  # compiled
    calls, started = 0, time.process_time()
    while (seconds := time.process_time() - started) < SECONDS:
        calls += 1
        np.asarray(call(calls))
    return calls * units, seconds


def _alone(work: _Work) -> tuple[float, float]:
    """Work per second and peak memory in MB, in a process of its own on one processor."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, sender))
    process.start()
    rate, memory = receiver.recv()
    process.join()
    return rate, memory


def _report(work: _Work, sender) -> None:  # type: ignore[no-untyped-def]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    done, seconds = work()
    sender.send((done / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def recsim(python: str) -> tuple[float, float]:
    """Steps per second and peak memory of RecSim's own environment."""
    script = Path(__file__).with_name("recsim_steps.py")
    done = subprocess.run(  # noqa: S603 - what the caller names
        [python, str(script)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["per_second"], found["memory_mb"]


def measure(python: str | None) -> list[Rate]:
    """Measure every contender."""
    peer = _alone(plain_python) if python is None else recsim(python)
    name = "plain Python, one user" if python is None else "RecSim, one user"
    contenders = [
        (name, "steps", peer),
        (f"JAX, {GROUPS} × {USERS} users", "steps", _alone(compiled)),
        ("PPO, recurrent", "frames", _alone(training)),
    ]
    return [
        Rate(
            contender=contender,
            unit=unit,
            per_second=rate,
            times=rate / peer[0],
            memory_mb=memory,
        )
        for contender, unit, (rate, memory) in contenders
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recsim", help="an interpreter that has RecSim")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    output = Output(json=given.json)
    rates = measure(given.recsim)
    output.result(
        rates,
        lambda: output.table(
            f"Long-Term Satisfaction, per second of processor time, Python "
            f"{sys.version.split()[0]}",
            ["contender", "unit", "per second", "times", "peak memory, MB"],
            [
                [each.contender, each.unit, each.per_second, each.times, each.memory_mb]
                for each in rates
            ],
        ),
    )


if __name__ == "__main__":
    main()
