"""The arms of the oscillation study: what generations do, and how they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from croupier.offline.study.series import Arm
from croupier.policy.exploration import EpsilonGreedy, Softmax, SquareCB, Uniform
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import AutoConfig, OracleConfig, SklearnConfig, VowpalWabbitConfig
from croupier.policy.traffic import UniformSlice
from croupier.policy.training import Corrective, TrainingConfig

if TYPE_CHECKING:
    from croupier.policy.exploration import Exploration

__all__ = ("CONTROL", "ORACLES", "PLAIN", "UNIFORM", "oscillation_arms")

ORACLES: dict[str, OracleConfig] = {
    "logistic": SklearnConfig(
        estimator="sklearn.linear_model.LogisticRegression", params={"max_iter": 200}
    ),
    "ridge": SklearnConfig(),
    "vowpal_wabbit": VowpalWabbitConfig(),
    "auto": AutoConfig(),
}
"""What can learn. ``logistic``, the usual regression of what is 0 or 1, and ``ridge`` take rewards
as they are, and so does ``auto``, the default of loops, in a world as small as this one;
``vowpal_wabbit`` weighs them by one over the propensity (``mtr``)."""

PLAIN, CONTROL, UNIFORM = "igw", "igw, uniform log", "uniform"
"""Names of what is suspected, of its control, and of the arm that never does anything else."""

_SHORT = TrainingConfig(window_generations=1, holdout=0.0)


def oscillation_arms(base: LoopConfig) -> list[Arm]:
    """All arms, in the order of the tables.

    Those named by their exploration alone remember one generation (W = 1). `PLAIN` is inverse gap
    weighting with Vowpal Wabbit's scheduled γ; those that follow it change one thing of it, or
    several.

    Parameters
    ----------
    base
        Gives everything else, the oracle above all.
    """
    replace = msgspec.structs.replace
    plain = _arm(base, PLAIN, SquareCB())
    softmax = _arm(base, "softmax", Softmax(temperature=0.02))
    steadied = replace(_SHORT, window_generations=None, memory="adaptive", max_total_variation=0.1)
    return [
        _arm(base, UNIFORM, Uniform()),
        *(
            _arm(base, f"epsilon {each:g}", EpsilonGreedy(epsilon=each))
            for each in (0.02, 0.05, 0.1, 0.2)
        ),
        softmax,
        *(
            _arm(base, f"igw {each:g}", SquareCB(gamma_scale=each, gamma_exponent=0.0))
            for each in (10.0, 30.0, 100.0, 300.0, 1000.0)
        ),
        Arm(PLAIN, plain.config, bootstraps=4),
        Arm(CONTROL, plain.config, logs_uniformly=True),
        *(Arm(f"{PLAIN}, {name}", each) for name, each in _changed(plain.config).items()),
        Arm(f"{PLAIN}, gate", plain.config, gated=True),
        Arm("softmax, adaptive, TV .1", replace(softmax.config, training=steadied)),
    ]


def _changed(plain: LoopConfig) -> dict[str, LoopConfig]:
    replace = msgspec.structs.replace

    def training(**changes: object) -> LoopConfig:
        return replace(plain, training=replace(plain.training, **changes))

    floor, slices = SquareCB(floor=0.02), (UniformSlice(share=0.1),)
    adaptive: dict[str, object] = {"window_generations": None, "memory": "adaptive"}
    damped = adaptive | {"max_total_variation": 0.1}
    return {
        "W = 3": training(window_generations=3),
        "W = 6": training(window_generations=6),
        "all": training(window_generations=None),
        "adaptive": training(**adaptive),
        **_weighted(plain),
        "balanced": training(class_weight="balanced", calibration="isotonic"),
        "floor": replace(plain, exploration=floor),
        "optimism": replace(plain, exploration=LoopConfig().exploration),
        "slice": replace(plain, uniform_slices=slices),
        "TV .1": training(max_total_variation=0.1),
        "TV .3": training(max_total_variation=0.3),
        "W = 3, TV .3": training(window_generations=3, max_total_variation=0.3),
        "W = 3, corrective": training(window_generations=3, corrective=Corrective()),
        "all, TV .1": training(window_generations=None, max_total_variation=0.1),
        "all, slice": replace(training(window_generations=None), uniform_slices=slices),
        "adaptive, TV .1": training(**damped),
        "adaptive, TV .1, floor": replace(training(**damped), exploration=floor),
        "adaptive, TV .1, slice": replace(training(**damped), uniform_slices=slices),
    }


def _weighted(plain: LoopConfig) -> dict[str, LoopConfig]:
    """Importance weights: of the rows, or of the kinds that an oracle has which weighs them."""
    replace = msgspec.structs.replace
    oracle = plain.oracle
    if isinstance(oracle, VowpalWabbitConfig):
        return {
            "ips": replace(plain, oracle=replace(oracle, cb_type="ips")),
            "dr": replace(plain, oracle=replace(oracle, cb_type="dr")),
        }
    if oracle.weighs_propensities:
        return {}
    return {
        "ips": replace(plain, training=replace(plain.training, weighting="ips")),
        "mtr": replace(plain, training=replace(plain.training, weighting="mtr")),
    }


def _arm(base: LoopConfig, name: str, exploration: Exploration) -> Arm:
    return Arm(name, msgspec.structs.replace(base, exploration=exploration, training=_SHORT))
