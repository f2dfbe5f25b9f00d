"""All kinds of oracles: what a configuration can ask for, and what a directory can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, overload

import msgspec

from croupier.policy.calibration import require_finite
from croupier.policy.damaged import UNREADABLE
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.oracle.auto import AutoConfig, AutoOracle
from croupier.policy.oracle.bootstrap import BootstrapConfig, BootstrapOracle
from croupier.policy.oracle.cover import CoverConfig, CoverOracle
from croupier.policy.oracle.distilled import DistilledConfig, DistilledOracle
from croupier.policy.oracle.encoded import CONFIG_FILE, EncodedOracle, SavedOracle
from croupier.policy.oracle.fair import FairConfig, FairOracle
from croupier.policy.oracle.ridge import RidgeConfig, RidgeOracle
from croupier.policy.oracle.scikit_learn import SklearnConfig, SklearnOracle
from croupier.policy.oracle.sklearn_onnx import SklearnOnnxConfig, SklearnOnnxOracle
from croupier.policy.oracle.vowpal_wabbit import VowpalWabbitConfig, VowpalWabbitOracle
from croupier.policy.oracle.vowpal_wabbit_model import (
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
)

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.oracle.base import OnlineOracle

__all__ = ("OracleConfig", "load_oracle", "make_online_oracle", "make_oracle")

OracleConfig: TypeAlias = (
    VowpalWabbitConfig
    | SklearnConfig
    | RidgeConfig
    | AutoConfig
    | BootstrapConfig
    | CoverConfig
    | SklearnOnnxConfig
    | VowpalWabbitModelConfig
    | DistilledConfig
    | FairConfig
)

# These have no partial_fit at all; that of others depends on what they are configured with.
_LEARN_AT_ONCE = (SklearnOnnxOracle, DistilledOracle, FairOracle)


@overload
def make_oracle(config: VowpalWabbitConfig, *, random_state: int = 0) -> VowpalWabbitOracle: ...
@overload
def make_oracle(config: SklearnConfig, *, random_state: int = 0) -> SklearnOracle: ...
@overload
def make_oracle(config: RidgeConfig, *, random_state: int = 0) -> RidgeOracle: ...
@overload
def make_oracle(config: AutoConfig, *, random_state: int = 0) -> AutoOracle: ...
@overload
def make_oracle(config: BootstrapConfig, *, random_state: int = 0) -> BootstrapOracle: ...
@overload
def make_oracle(config: CoverConfig, *, random_state: int = 0) -> CoverOracle: ...
@overload
def make_oracle(config: SklearnOnnxConfig, *, random_state: int = 0) -> SklearnOnnxOracle: ...
@overload
def make_oracle(
    config: VowpalWabbitModelConfig, *, random_state: int = 0
) -> VowpalWabbitModelOracle: ...
@overload
def make_oracle(config: DistilledConfig, *, random_state: int = 0) -> DistilledOracle: ...
@overload
def make_oracle(config: FairConfig, *, random_state: int = 0) -> FairOracle: ...


# Of a configuration of some kind among several, type checkers find out the union by themselves.
def make_oracle(config: OracleConfig, *, random_state: int = 0) -> EncodedOracle:
    """An oracle that is not fitted yet, as a loop's configuration asks for it."""
    return _ORACLES[type(config)](config, random_state=random_state)


_ORACLES: dict[type[OracleConfig], type[EncodedOracle]] = {
    VowpalWabbitConfig: VowpalWabbitOracle,
    SklearnConfig: SklearnOracle,
    RidgeConfig: RidgeOracle,
    AutoConfig: AutoOracle,
    BootstrapConfig: BootstrapOracle,
    CoverConfig: CoverOracle,
    SklearnOnnxConfig: SklearnOnnxOracle,
    VowpalWabbitModelConfig: VowpalWabbitModelOracle,
    DistilledConfig: DistilledOracle,
    FairConfig: FairOracle,
}


def make_online_oracle(config: OracleConfig, *, random_state: int = 0) -> OnlineOracle:
    """An oracle that scores 0 whatever it is asked, ready to be taught row by row.

    Raises
    ------
    InvalidInputError
        If oracles of this kind don't learn online.
    """
    oracle = make_oracle(config, random_state=random_state)
    if isinstance(oracle, _LEARN_AT_ONCE) or not config.learns_online:
        of = ""
        if isinstance(config, BootstrapConfig):
            of = " of sklearn"
        elif isinstance(config, SklearnConfig):
            of = f" with {config.estimator}"
        elif isinstance(config, VowpalWabbitModelConfig):
            of = f" under {config.arguments!r}"
        raise InvalidInputError(
            "oracle",
            f"expected one that learns online (vowpal_wabbit, vowpal_wabbit_model, ridge, auto, "
            f"cover, a bootstrap of vowpal_wabbit, or sklearn with SGDRegressor or SGDClassifier, "
            f"neither averaged nor adaptive), got {config.__struct_config__.tag}{of}",
        )
    return oracle.partial_fit([])


def load_oracle(directory: Path, *, to_learn: bool = False) -> EncodedOracle:
    """Read back what :meth:`EncodedOracle.save` wrote.

    Parameters
    ----------
    directory
        Where it was written to.
    to_learn
        Whether the oracle is to learn on. The learners take several times the room of the tables
        that are scored with, so scorers do without them.

    Raises
    ------
    GenerationError
        If files are missing or can't be read.
    """
    try:
        encoded = (directory / CONFIG_FILE).read_bytes()
        saved = msgspec.json.decode(encoded, type=SavedOracle[OracleConfig])
        oracle = make_oracle(saved.config, random_state=saved.random_state)
        oracle.read(directory)
        if to_learn:
            oracle.read_learners(directory)
        calibration = require_finite(saved.calibration)
    except GenerationError as error:
        raise GenerationError(f"{directory}: {error}") from error
    except UNREADABLE as error:
        raise GenerationError(f"the oracle in {directory} can't be read: {error}") from error
    oracle.link_, oracle.calibration_ = saved.link, calibration
    return oracle
