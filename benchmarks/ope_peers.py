r"""Figures of the Open Bandit Pipeline and of vw-estimators, for the tests to be equal to.

Run it by an interpreter that has both packages; Croupier needn't be there, and the packages need
old versions of NumPy and scikit-learn::

    python -m venv peers
    peers/bin/pip install --no-deps obp==0.4.1 vw-estimators==0.2.2
    peers/bin/pip install "numpy<1.25" "scipy<1.12" "scikit-learn<1.4" "pandas<2.1" pyyaml tqdm \
        matplotlib seaborn mypy-extensions
    peers/bin/python benchmarks/ope_peers.py tests/offline/data/obp_parity.json

PyTorch, which obp imports for its tensors, needn't be there: an empty module stands in for it. The
file holds the logs next to the figures, so that nothing depends on a version's random numbers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import sys
import time
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20_261_126
ROWS, ACTIONS, POSITIONS = 120, 4, 3


def main() -> None:
    """Write all figures to the file that the command names, or time one estimate."""
    if sys.argv[1] == "--time":
        _time(Path(sys.argv[2]), sys.argv[3])
        return
    rng = np.random.default_rng(SEED)
    log, slates = _log(rng), _slates(rng)
    found = {
        "origin": {
            "script": "benchmarks/ope_peers.py",
            "seed": SEED,
            "packages": {"obp": "0.4.1", "vw-estimators": "0.2.2", "numpy": np.__version__},
        },
        "log": _plain(log),
        "slates": _plain(slates),
        "obp": _obp(log) | _obp_slates(slates),
        "obp_intervals": _obp_intervals(rng),
        "vw": _vw(log, slates),
    }
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _time(folder: Path, name: str) -> None:
    """Say what one estimate from the arrays in a folder is, and takes; for benchmarks.ope."""
    module, _ = _modules()
    reward, action, logging, target, q = (
        np.load(folder / f"{each}.npy") for each in ("reward", "action", "logging", "target", "q")
    )
    estimator = {
        "ips": module.InverseProbabilityWeighting,
        "snips": module.SelfNormalizedInverseProbabilityWeighting,
        "dm": module.DirectMethod,
        "dr": module.DoublyRobust,
        "sndr": module.SelfNormalizedDoublyRobust,
        "switch-dr": lambda: module.SwitchDoublyRobust(tau=2.0),
        "dros": lambda: module.DoublyRobustWithShrinkage(lambda_=2.0),
    }[name]()

    def given() -> dict[str, Any]:
        rows = np.arange(len(reward))
        arrays = {
            "reward": reward,
            "action": action,
            "pscore": logging[rows, action],
            "action_dist": target[:, :, None],
            "position": np.zeros(len(reward), dtype=int),
            "estimated_rewards_by_reg_model": q[:, :, None],
        }
        taken = inspect.signature(estimator.estimate_policy_value).parameters
        return arrays if "kwargs" in taken else {key: arrays[key] for key in arrays if key in taken}

    start = time.perf_counter()
    value = float(estimator.estimate_policy_value(**given()))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    estimator.estimate_interval(**given(), n_bootstrap_samples=100, random_state=0)
    with_interval = time.perf_counter() - start
    tracemalloc.start()
    estimator.estimate_policy_value(**given())
    mib = tracemalloc.get_traced_memory()[1] / 2**20
    told = {"value": value, "seconds": seconds, "interval_s": with_interval, "mib": mib}
    sys.stdout.write(json.dumps(told) + "\n")


def _log(rng: np.random.Generator) -> dict[str, Any]:
    logging, target = (rng.dirichlet(np.full(ACTIONS, 2.0), ROWS) for _ in range(2))
    action = np.array([rng.choice(ACTIONS, p=pmf) for pmf in logging])
    reward = (rng.random(ROWS) < 0.2 + 0.15 * action).astype(float)
    return {
        "logging": logging,
        "target": target,
        "action": action,
        "reward": reward,
        "q": rng.random((ROWS, ACTIONS)),
    }


def _slates(rng: np.random.Generator) -> dict[str, Any]:
    shape = (ROWS, POSITIONS)
    return {
        "reward": (rng.random(shape) < 0.4).astype(float),
        "propensity": rng.uniform(0.2, 0.9, shape),
        "target_probability": rng.uniform(0.1, 0.9, shape),
    }


def _plain(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in arrays.items()}


@functools.cache
def _modules() -> tuple[Any, Any]:
    if importlib.util.find_spec("torch") is None:
        stand_in: Any = types.ModuleType("torch")
        stand_in.Tensor = type("Tensor", (), {})
        sys.modules["torch"] = stand_in
    package = types.ModuleType("obp")
    spec = importlib.util.find_spec("obp")
    if spec is None or spec.submodule_search_locations is None:
        message = "obp isn't installed"
        raise SystemExit(message)
    # Not the whole package: its policies need PyTorch itself.
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["obp"] = package
    ope = types.ModuleType("obp.ope")
    ope.__path__ = [f"{package.__path__[0]}/ope"]
    sys.modules["obp.ope"] = ope
    return (
        importlib.import_module("obp.ope.estimators"),
        importlib.import_module("obp.ope.estimators_slate"),
    )


def _obp(log: dict[str, Any]) -> dict[str, float]:
    module, _ = _modules()
    given = {
        "reward": log["reward"],
        "action": log["action"],
        "pscore": log["logging"][np.arange(ROWS), log["action"]],
        "action_dist": log["target"][:, :, None],
        "position": np.zeros(ROWS, dtype=int),
        "estimated_rewards_by_reg_model": log["q"][:, :, None],
    }
    model_free = {k: v for k, v in given.items() if k != "estimated_rewards_by_reg_model"}
    estimators = {
        "ips": (module.InverseProbabilityWeighting(), model_free),
        "snips": (module.SelfNormalizedInverseProbabilityWeighting(), model_free),
        "dm": (
            module.DirectMethod(),
            {
                name: given[name]
                for name in ("action_dist", "estimated_rewards_by_reg_model", "position")
            },
        ),
        "dr": (module.DoublyRobust(), given),
        "sndr": (module.SelfNormalizedDoublyRobust(), given),
    }
    for parameter in (0.5, 2.0, 10.0):
        estimators[f"switch-dr({parameter:g})"] = (
            module.SwitchDoublyRobust(tau=parameter),
            given,
        )
        estimators[f"dros({parameter:g})"] = (
            module.DoublyRobustWithShrinkage(lambda_=parameter),
            given,
        )
    return {
        name: float(estimator.estimate_policy_value(**arguments))
        for name, (estimator, arguments) in estimators.items()
    }


def _obp_slates(slates: dict[str, Any]) -> dict[str, float]:
    _, module = _modules()
    common = {
        "slate_id": np.repeat(np.arange(ROWS), POSITIONS),
        "position": np.tile(np.arange(POSITIONS), ROWS),
        "reward": slates["reward"].ravel(),
    }
    p, target = slates["propensity"], slates["target_probability"]
    whole = [np.repeat(each.prod(axis=1), POSITIONS) for each in (p, target)]
    cascade = [np.cumprod(each, axis=1).ravel() for each in (p, target)]
    return {
        "sips": float(
            module.SlateStandardIPS(len_list=POSITIONS).estimate_policy_value(
                pscore=whole[0], evaluation_policy_pscore=whole[1], **common
            )
        ),
        "iips": float(
            module.SlateIndependentIPS(len_list=POSITIONS).estimate_policy_value(
                pscore_item_position=p.ravel(),
                evaluation_policy_pscore_item_position=target.ravel(),
                **common,
            )
        ),
        "rips": float(
            module.SlateRewardInteractionIPS(len_list=POSITIONS).estimate_policy_value(
                pscore_cascade=cascade[0], evaluation_policy_pscore_cascade=cascade[1], **common
            )
        ),
    }


def _obp_intervals(rng: np.random.Generator) -> dict[str, Any]:
    """The bootstrap of SNIPW where rewards are frequent: st-tech/zr-obp#187."""
    module, _ = _modules()
    logging = np.array([0.6, 0.2, 0.1, 0.07, 0.03])
    target = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
    action = rng.choice(5, 2000, p=logging)
    reward = (rng.random(2000) < 0.8).astype(float)
    found = module.SelfNormalizedInverseProbabilityWeighting().estimate_interval(
        reward=reward,
        action=action,
        pscore=logging[action],
        action_dist=np.tile(target[:, None], (2000, 1, 1)),
        position=np.zeros(2000, dtype=int),
        n_bootstrap_samples=2000,
        random_state=1,
    )
    counts = [[int(((action == a) & (reward == r)).sum()) for a in range(5)] for r in (0.0, 1.0)]
    return {
        "logging": logging.tolist(),
        "target": target.tolist(),
        "rows_by_reward_and_action": counts,
        "snipw": [float(value) for name, value in sorted(found.items()) if "CI" in name],
    }


def _vw(log: dict[str, Any], slates: dict[str, Any]) -> dict[str, Any]:
    rows = np.arange(ROWS)
    p = log["logging"][rows, log["action"]]
    target = log["target"][rows, log["action"]]
    top = float(np.ceil((target / p).max()))
    found: dict[str, Any] = {"largest_weight": top}
    for name, module, kind, arguments in (
        ("ips", "ips", "Estimator", {}),
        ("snips", "snips", "Estimator", {}),
        ("normal", "gaussian", "Interval", {}),
        ("empirical-likelihood", "cressieread", "Interval", {"wmax": top}),
        ("confidence-sequence", "cs", "Interval", {}),
        ("clopper-pearson", "clopper_pearson", "Interval", {}),
    ):
        made = getattr(importlib.import_module(f"estimators.bandits.{module}"), kind)(**arguments)
        # Rising weights keep the predictions of the confidence sequence below 1.
        order = np.argsort(target / p, kind="stable") if name == "confidence-sequence" else rows
        for row in order:
            made.add_example(float(p[row]), float(log["reward"][row]), float(target[row]))
        found[name] = made.get() if name in {"ips", "snips"} else made.get(0.05)
    pseudo = importlib.import_module("estimators.slates.pseudo_inverse").Estimator()
    gaussian = importlib.import_module("estimators.slates.gaussian").Interval()
    for propensity, reward, probability in zip(
        slates["propensity"], slates["reward"], slates["target_probability"], strict=True
    ):
        for each in (pseudo, gaussian):
            each.add_example(propensity.tolist(), float(reward.sum()), probability.tolist())
    found["pi"] = pseudo.get()
    found["pi-normal"] = gaussian.get(0.05)
    return found


if __name__ == "__main__":
    main()
