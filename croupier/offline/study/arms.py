"""The arms of the oscillation study: what generations do, and how they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from croupier.offline.study.series import Arm
from croupier.policy.exploration import EpsilonGreedy, Softmax, SquareCB, Uniform
from croupier.policy.oracle import OracleConfig, SklearnConfig, VowpalWabbitConfig
from croupier.policy.traffic import UniformSlice
from croupier.policy.training import Corrective, TrainingConfig

if TYPE_CHECKING:
    from croupier.policy.exploration import Exploration
    from croupier.policy.loop import LoopConfig

__all__ = ("CONTROL", "ORACLES", "PLAIN", "UNIFORM", "oscillation_arms")

ORACLES: dict[str, OracleConfig] = {
    "logistic": SklearnConfig(
        estimator="sklearn.linear_model.LogisticRegression", params={"max_iter": 200}
    ),
    "ridge": SklearnConfig(),
    "vowpal_wabbit": VowpalWabbitConfig(),
}
"""What can learn. ``logistic``, the usual regression of what is 0 or 1, and ``ridge`` take rewards
as they are; ``vowpal_wabbit`` weighs them by one over the propensity (``mtr``)."""

PLAIN, CONTROL, UNIFORM = "igw", "igw, uniform log", "uniform"
"""Names of what is suspected, of its control, and of the arm that never does anything else."""

_SHORT = TrainingConfig(window_generations=1, holdout=0.0)


def oscillation_arms(base: LoopConfig) -> list[Arm]:
    """All arms, in the order of the tables.

    Those named by their exploration alone remember one generation (W = 1). `PLAIN` is inverse gap
    weighting with the scheduled γ that loops have by default; those that follow it change one thing
    of it, or several.

    Parameters
    ----------
    base
        Gives everything else, the oracle above all.
    """
    arms = [
        _arm(base, UNIFORM, Uniform()),
        *(
            _arm(base, f"epsilon {each:g}", EpsilonGreedy(epsilon=each))
            for each in (0.02, 0.05, 0.1, 0.2)
        ),
        _arm(base, "softmax", Softmax(temperature=0.02)),
        *(
            _arm(base, f"igw {each:g}", SquareCB(gamma_scale=each, gamma_exponent=0.0))
            for each in (10.0, 30.0, 100.0, 300.0, 1000.0)
        ),
        _arm(base, PLAIN, SquareCB()),
    ]
    plain = arms[-1].config
    arms.append(Arm(CONTROL, plain, logs_uniformly=True))
    return arms + [Arm(f"{PLAIN}, {name}", config) for name, config in _changed(plain).items()]


def _changed(plain: LoopConfig) -> dict[str, LoopConfig]:
    replace = msgspec.structs.replace

    def training(**changes: object) -> LoopConfig:
        return replace(plain, training=replace(plain.training, **changes))

    slices = (UniformSlice(share=0.1),)
    weighs = plain.oracle.weighs_propensities
    weighted = (
        {}
        if weighs
        else {
            "ips": training(weighting="ips"),
            "mtr": training(weighting="mtr"),
            "W = 3, ips": training(window_generations=3, weighting="ips"),
        }
    )
    return {
        "W = 3": training(window_generations=3),
        "W = 6": training(window_generations=6),
        "balanced": training(class_weight="balanced", calibration="isotonic"),
        "floor": replace(plain, exploration=SquareCB(floor=0.02)),
        "slice": replace(plain, uniform_slices=slices),
        "TV .1": training(max_total_variation=0.1),
        "TV .3": training(max_total_variation=0.3),
        "W = 3, TV .3": training(window_generations=3, max_total_variation=0.3),
        "W = 6, TV .1": training(window_generations=6, max_total_variation=0.1),
        "W = 3, corrective": training(window_generations=3, corrective=Corrective()),
        "W = 6, slice": replace(training(window_generations=6), uniform_slices=slices),
    } | weighted


def _arm(base: LoopConfig, name: str, exploration: Exploration) -> Arm:
    return Arm(name, msgspec.structs.replace(base, exploration=exploration, training=_SHORT))
