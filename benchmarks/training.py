"""Retraining beside Vowpal Wabbit's own command line, on the same interactions.

``python -m benchmarks.training`` makes 200,000 interactions of 10 actions and times, each in a
process of its own: :func:`~croupier.offline.retrain.retrain` from the Delta table to the saved
generation, and Vowpal Wabbit's command-line driver from the same rows as dsjson to its model
(``--cb_adf --cb_type mtr -q ca``, as it comes and with ``--no_predict``). Writing the table and the
dsjson is not timed. Rounds take turns, and the best round of each counts.

The actions are those of a catalogue, as most applications have them, or have a feature that is
another one in every decision. What was learned is compared too: mean squared errors on interactions
that neither has seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np
import polars as pl

from croupier.cli.output import Output
from croupier.offline.interactions import training_rows
from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.retrain import retrain
from croupier.policy.exploration import SquareCB
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import VowpalWabbitConfig
from croupier.policy.training import TrainingConfig

__all__ = ("Timing", "compare")

ROWS, QUICK_ROWS = 200_000, 5_000
ROUNDS, QUICK_ROUNDS = 3, 1
ACTIONS = 10
_EPOCH_S = 1_790_000_000
_LOOP = "bench"
_HELD_OUT = 2_000

Kind: TypeAlias = Literal["catalogue", "varying"]
Trainer: TypeAlias = Literal["croupier", "vw", "vw --no_predict"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRAINERS: tuple[Trainer, ...] = get_args(Trainer)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One trainer on one log; the best round of each.

    Attributes
    ----------
    actions, trainer, rows
        What was timed.
    wall_s, cpu_s
        Seconds from the table or file to the saved model; CPU of all threads.
    peak_mib
        Most memory that the process has had, in MiB.
    mse
        On interactions that were held out.
    """

    actions: Kind
    trainer: Trainer
    rows: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    mse: float


class _Measured(msgspec.Struct, frozen=True):
    wall_s: float
    cpu_s: float
    peak_mib: float


def compare(rows: int, rounds: int, directory: Path) -> list[Timing]:
    """Time all trainers on both kinds of logs.

    Parameters
    ----------
    rows
        Interactions of each log.
    rounds
        How often each is timed.
    directory
        To work in.
    """
    found = []
    for kind in KINDS:
        root = directory / kind
        root.mkdir()
        _write(root, kind, rows)
        measured: dict[Trainer, list[_Measured]] = {trainer: [] for trainer in TRAINERS}
        for _ in range(rounds):
            for trainer in TRAINERS:
                measured[trainer].append(_apart(root, trainer))
        for trainer in TRAINERS:
            best = min(measured[trainer], key=lambda each: each.wall_s)
            found.append(
                Timing(
                    actions=kind,
                    trainer=trainer,
                    rows=rows,
                    mse=_error(root, trainer),
                    **msgspec.structs.asdict(best),
                )
            )
    return found


def _write(root: Path, kind: Kind, rows: int) -> None:
    """The same interactions as a Delta table and as dsjson, and some more to test on."""
    made = [_interaction(number, kind) for number in range(rows + _HELD_OUT)]
    frame = pl.DataFrame(
        [_row(number, *each) for number, each in enumerate(made)], schema=SCHEMAS["interactions"]
    )
    Lake(root / "lake").append("interactions", frame[:rows])
    frame[rows:].write_parquet(root / "held_out.parquet")
    for name, part in (("train", made[:rows]), ("test", made[rows:])):
        with (root / f"{name}.dsjson").open("wb") as file:
            for number, each in enumerate(part):
                file.write(msgspec.json.encode(_dsjson(number, *each)) + b"\n")


def _interaction(
    number: int, kind: Kind
) -> tuple[dict[str, Any], list[dict[str, Any]], int, float]:
    """Context, features of the actions, the chosen one and its reward."""
    rng = np.random.default_rng((7, number))
    context: dict[str, Any] = {
        f"n{i}": round(float(value), 4) for i, value in enumerate(rng.random(5))
    }
    context |= {f"c{i}": f"v{value}" for i, value in enumerate(rng.integers(20, size=5))}
    actions: list[dict[str, Any]] = [
        {"id": f"a{k}", "color": f"c{k % 4}", "size": k / 10, "price": k * 7 % 11 / 10}
        for k in range(ACTIONS)
    ]
    if kind == "varying":
        for action, price in zip(actions, rng.random(ACTIONS), strict=True):
            action["price"] = round(float(price), 4)
    chosen = int(rng.integers(ACTIONS))
    action = actions[chosen]
    chance = 0.1 + 0.5 * context["n0"] * action["price"] + 0.2 * (context["c0"] < "v14")
    return context, actions, chosen, float(rng.random() < chance)


def _row(
    number: int,
    context: dict[str, Any],
    actions: list[dict[str, Any]],
    chosen: int,
    reward: float,
) -> dict[str, Any]:
    ids = [action["id"] for action in actions]
    told = [
        {"id": action["id"], "features": {k: v for k, v in action.items() if k != "id"}}
        for action in actions
    ]
    return {
        "loop": _LOOP,
        "date": pl.Series([_EPOCH_S]).cast(pl.Datetime("ms"))[0].date(),
        "offset": number + 1,
        "decision_id": f"d{number}",
        "ts": (_EPOCH_S + number) * 1_000_000,
        "generation": 0,
        "learning_mode": "online",
        "context": msgspec.json.encode(context).decode(),
        "actions": msgspec.json.encode(told).decode(),
        "action_ids": ids,
        "excluded": [],
        "pmf": [1.0 / ACTIONS] * ACTIONS,
        "chosen": chosen,
        "action_id": ids[chosen],
        "propensity": 1.0 / ACTIONS,
        "keep_prob": 1.0,
        "deferred": False,
        "reward": reward,
        "reward_source": "observed",
        "outcomes": 1,
        "delay_s": 0.0,
        "fold": fold_of(f"d{number}"),
    }


def _dsjson(
    number: int,
    context: dict[str, Any],
    actions: list[dict[str, Any]],
    chosen: int,
    reward: float,
) -> dict[str, Any]:
    others = [k + 1 for k in range(ACTIONS) if k != chosen]
    return {
        "_label_cost": -reward,
        "_label_probability": 1.0 / ACTIONS,
        "_label_Action": chosen + 1,
        "_labelIndex": chosen,
        "o": [{"v": reward}],
        "Timestamp": "2026-09-21T00:00:00.0000000Z",
        "Version": "1",
        "EventId": f"d{number}",
        "a": [chosen + 1, *others],
        "c": {"c": context, "_multi": [{"a": action} for action in actions]},
        "p": [1.0 / ACTIONS] * ACTIONS,
        "VWState": {"m": "bench"},
    }


def _apart(root: Path, trainer: Trainer) -> _Measured:
    """Train in a process of its own, so that neither finds anything of the other's."""
    command = [sys.executable, "-m", "benchmarks.training", "--train", trainer, "--in", str(root)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603
    return msgspec.json.decode(told.splitlines()[-1], type=_Measured)


def _train(root: Path, trainer: Trainer) -> _Measured:
    # Imports are paid once by a nightly job, and are not what is compared.
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    if trainer == "croupier":
        _warm_up()
    started, before = time.perf_counter(), time.process_time()
    if trainer == "croupier":
        generation = retrain(
            Lake(root / "lake"),
            _LOOP,
            _config(),
            number=time.time_ns(),
            parent=0,
            judge_share=0.0,
            seed=0,
            created_us=0,
        )
        generation.save(root / f"generation-{generation.number}")
    else:
        arguments = (
            "--dsjson -d train.dsjson --cb_adf --cb_type mtr -q ca -b 18 --quiet -f model.vw"
        )
        more = trainer.split()[1:]
        vw.cli_driver.run_cli_driver([*arguments.split(), *more], cwd=root)
    wall, cpu = time.perf_counter() - started, time.process_time() - before
    return _Measured(wall, cpu, _peak_mib())


def _peak_mib() -> float:
    """Most memory that this process has had; what getrusage says is inherited from the parent."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _config() -> LoopConfig:
    return LoopConfig(
        exploration=SquareCB(),
        oracle=VowpalWabbitConfig(),
        training=TrainingConfig(holdout=0.0),
    )


def _warm_up() -> None:
    """Load what training loads, on a few rows."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _write(root, "catalogue", 30)
        retrain(
            Lake(root / "lake"),
            _LOOP,
            _config(),
            number=1,
            parent=0,
            judge_share=0.0,
            seed=0,
            created_us=0,
        )


def _error(root: Path, trainer: Trainer) -> float:
    """Mean squared error of what was trained last, on the rows that were held out."""
    held_out = list(training_rows(pl.read_parquet(root / "held_out.parquet")))
    rewards = np.array([row.reward for row in held_out])
    if trainer == "croupier":
        directory = max(root.glob("generation-*"))
        oracle = Generation.load(directory).oracle
        assert oracle is not None
        scores = [oracle.score(row.context, row.actions)[row.chosen] for row in held_out]
    else:
        scores = _vw_scores(root, [row.chosen for row in held_out])
    return float(np.mean((np.array(scores) - rewards) ** 2))


def _vw_scores(root: Path, chosen: list[int]) -> list[float]:
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    model = (root / "model.vw").read_bytes()
    workspace: Any = vw.Workspace(["--quiet", "--dsjson"], model_data=model)
    parser: Any = vw.DSJsonFormatParser(workspace)
    scores = []
    with (root / "test.dsjson").open() as lines:
        for line, action in zip(lines, chosen, strict=True):
            costs = dict(workspace.predict_one(parser.parse_json(line)))
            scores.append(-costs[action])
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, one round")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--train", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train is not None:
        print(json.dumps(msgspec.structs.asdict(_train(given.root, given.train))))
        return
    rows = given.rows or (QUICK_ROWS if given.quick else ROWS)
    with tempfile.TemporaryDirectory() as directory:
        found = compare(rows, QUICK_ROUNDS if given.quick else ROUNDS, Path(directory))
    output = Output(json=given.json)
    output.result(found, lambda: _show(output, found))


def _show(output: Output, found: list[Timing]) -> None:
    output.table(
        f"Training on {found[0].rows:,} interactions of {ACTIONS} actions",
        ["actions", "trainer", "wall s", "CPU s", "µs a row", "peak MiB", "held-out MSE"],
        [
            [
                each.actions,
                each.trainer,
                round(each.wall_s, 2),
                round(each.cpu_s, 2),
                round(1e6 * each.wall_s / each.rows, 1),
                round(each.peak_mib),
                round(each.mse, 5),
            ]
            for each in found
        ],
    )


if __name__ == "__main__":
    main()
