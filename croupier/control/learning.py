"""Learning settings: Vowpal Wabbit's arguments as a loop's exploration and oracle, and back."""

from __future__ import annotations

import math
import re
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import (
    Bagging,
    Cover,
    EpsilonGreedy,
    Exploration,
    Softmax,
    SquareCB,
)
from croupier.policy.oracle import (
    BootstrapConfig,
    CoverConfig,
    OracleConfig,
    VowpalWabbitConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ("LearningSettings", "arguments_of", "read_arguments", "refuse_foreign")

_DEFAULT_EPSILON = 0.05
# What the reader of examples is told, and that the problem is one of bandits with action features.
_UNDERSTOOD = frozenset({"--cb_explore_adf", "--dsjson", "--json", "--quiet"})
_SHORT = {
    "-l": "--learning_rate",
    "-b": "--bit_precision",
    "-q": "--quadratic",
    "--interactions": "--quadratic",
}
_FLAGS = frozenset({"--squarecb", "--softmax"})
_VALUED = frozenset(
    {
        "--epsilon",
        "--gamma_scale",
        "--gamma_exponent",
        "--lambda",
        "--bag",
        "--cover",
        "--psi",
        "--cb_type",
        "--learning_rate",
        "--power_t",
        "--l1",
        "--l2",
        "--passes",
        "--bit_precision",
        "--quadratic",
    }
)
_KINDS = ("--squarecb", "--softmax", "--bag", "--cover")
# The encoder multiplies every feature of the context with every one of the action, which is what
# these make of the pairs that tell actions apart.
_PRODUCTS = frozenset({"::", ":a", "a:", "ca", "ac"})
_ESTIMATOR = re.compile(
    r"sklearn\.(?:ensemble|linear_model|neural_network|svm|tree)\.[A-Z]\w*", re.ASCII
)
_NEGATIVE = re.compile(r"-\.?\d")


class LearningSettings(NamedTuple):
    """How generations are trained, and how they explore."""

    exploration: Exploration
    oracle: OracleConfig


def read_arguments(field: str, text: str) -> LearningSettings:
    """What arguments of Vowpal Wabbit, or Croupier's own settings in JSON, ask for.

    JSON is an object with `exploration` and `oracle`, as a configuration file has them.

    Parameters
    ----------
    field
        Where the arguments stand, for errors.
    text
        For example ``--cb_explore_adf --epsilon 0.2 --cb_type mtr -l 0.5``.

    Raises
    ------
    InvalidInputError
        Naming the argument that has no equivalent here, or the value that can't be.
    """
    if text.lstrip().startswith("{"):
        return _from_json(field, text)
    given = _Given(field, _tokens(field, text))
    try:
        settings = _settings(given)
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(field, str(error)) from error
    given.require_all_used()
    return settings


def arguments_of(settings: LearningSettings) -> str:
    """The arguments that :func:`read_arguments` reads as these settings."""
    given = _exploration_arguments(settings)
    oracle = settings.oracle
    base = oracle.base if isinstance(oracle, BootstrapConfig) else oracle
    if given is not None and isinstance(base, VowpalWabbitConfig):
        default = VowpalWabbitConfig()
        given += f" --cb_type {base.cb_type} --learning_rate {base.learning_rate:g}"
        for name, option in (("power_t", "--power_t"), ("l2", "--l2"), ("passes", "--passes")):
            if (value := getattr(base, name)) != getattr(default, name):
                given += f" {option} {value:g}"
        if base.encoder.bits != default.encoder.bits:
            given += f" --bit_precision {base.encoder.bits}"
        text = f"--cb_explore_adf {given} -q ::"
        if read_arguments("arguments", text) == settings:
            return text
    return msgspec.json.encode(settings._asdict()).decode()


def refuse_foreign(field: str, raw: Any, *, known: Any = None) -> None:
    """Refuse what names code to import, other than public estimators of scikit-learn.

    Who may set a loop over the API must not thereby run programs of theirs on the machine.

    Parameters
    ----------
    field
        Where it stands, for errors.
    raw
        Decoded JSON.
    known
        An exploration that is configured, in JSON's types; that one may be named.

    Raises
    ------
    InvalidInputError
        If anything in it does, and isn't the known one.
    """
    if raw == known:
        return
    if isinstance(raw, dict):
        if raw.get("kind") == "custom":
            raise InvalidInputError(
                field, "expected no exploration of kind custom: only a configuration file names one"
            )
        estimator = raw.get("estimator", "")
        if estimator and not (isinstance(estimator, str) and _ESTIMATOR.fullmatch(estimator)):
            raise InvalidInputError(
                field,
                "expected an estimator of scikit-learn's public modules linear_model, svm, tree, "
                "ensemble and neural_network: only a configuration file names another",
            )
        for value in raw.values():
            refuse_foreign(field, value, known=known)
    elif isinstance(raw, list):
        for value in raw:
            refuse_foreign(field, value, known=known)


class _Json(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    exploration: Exploration
    oracle: OracleConfig


def _from_json(field: str, text: str) -> LearningSettings:
    try:
        raw = msgspec.json.decode(text)
        refuse_foreign(field, raw)
        read = msgspec.convert(raw, _Json)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidInputError(field, f"expected exploration and oracle: {error}") from error
    return LearningSettings(read.exploration, read.oracle)


class _Given:
    """Arguments by name; whoever looks at one has used it."""

    def __init__(self, field: str, values: Mapping[str, str | None]) -> None:
        self._field = field
        self._values = dict(values)
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def use(self, name: str) -> None:
        self._used.add(name)

    def number(self, name: str, default: float) -> float:
        return float(self._read(name, default, float))

    def count(self, name: str, default: int) -> int:
        return int(self._read(name, default, int))

    def text(self, name: str, default: str) -> str:
        return str(self._read(name, default, str))

    def refuse(self, name: str, expected: str) -> InvalidInputError:
        return InvalidInputError(self._field, f"{name}: {expected}")

    def require_all_used(self) -> None:
        for name in self._values:
            if name not in self._used:
                raise self.refuse(name, "expected no such argument beside the others")

    def _read(self, name: str, default: Any, kind: Callable[[str], Any]) -> Any:
        self.use(name)
        text = self._values.get(name)
        if text is None:
            return default
        try:
            value = kind(text)
        except ValueError:
            raise self.refuse(name, f"expected a number, got {text!r}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refuse(name, f"expected a finite number, got {text!r}")
        return value


def _tokens(field: str, text: str) -> dict[str, str | None]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInputError(field, f"expected a command line: {error}") from error
    values: dict[str, str | None] = {}
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        name = _SHORT.get(name, name)
        if name in _UNDERSTOOD or name in _FLAGS:
            if equals:
                raise InvalidInputError(field, f"{name}: expected no value, got {value!r}")
            values[name] = None
        elif name in _VALUED:
            found = value if equals else next(left, None)
            if found is None or (found.startswith("-") and not _NEGATIVE.match(found)):
                raise InvalidInputError(field, f"{name}: expected a value")
            if values.get(name, found) != found:
                raise InvalidInputError(field, f"{name}: expected it once, got two values")
            values[name] = found
        else:
            raise InvalidInputError(
                field, f"{name}: expected an argument that has an equivalent in Croupier"
            )
    return {name: value for name, value in values.items() if name not in _UNDERSTOOD}


def _settings(given: _Given) -> LearningSettings:
    kinds = [name for name in _KINDS if name in given]
    if len(kinds) > 1:
        raise given.refuse(kinds[1], f"expected one exploration, got {kinds[0]} too")
    kind = kinds[0] if kinds else "--epsilon"
    given.use(kind)
    # Explorations that don't draw at random by themselves are mixed with the uniform one instead.
    if kind in {"--squarecb", "--softmax", "--bag"} and given.number("--epsilon", 0.0) != 0.0:
        raise given.refuse("--epsilon", f"expected none beside {kind}")
    if kind == "--cover":
        return _cover(given)
    base = _oracle(given)
    match kind:
        case "--squarecb":
            scale, exponent = SquareCB().gamma_scale, SquareCB().gamma_exponent
            squarecb = SquareCB(
                gamma_scale=given.number("--gamma_scale", scale),
                gamma_exponent=given.number("--gamma_exponent", exponent),
            )
            return LearningSettings(squarecb, base)
        case "--softmax":
            factor = given.number("--lambda", 1.0)
            if factor <= 0.0:
                raise given.refuse("--lambda", f"expected more than 0, got {factor:g}")
            return LearningSettings(Softmax(temperature=1.0 / factor), base)
        case "--bag":
            members = given.count("--bag", 10)
            return LearningSettings(Bagging(), BootstrapConfig(base=base, members=members))
    epsilon = given.number("--epsilon", _DEFAULT_EPSILON)
    return LearningSettings(EpsilonGreedy(epsilon=epsilon), base)


def _cover(given: _Given) -> LearningSettings:
    if given.text("--cb_type", "mtr") not in {"mtr", "dr"}:
        raise given.refuse("--cb_type", "expected mtr or dr beside --cover")
    epsilon = given.number("--epsilon", -1.0)
    fixed = None if epsilon < 0.0 else epsilon
    default = CoverConfig()
    _products(given)
    oracle = CoverConfig(
        members=given.count("--cover", default.members),
        psi=given.number("--psi", default.psi),
        epsilon=fixed,
        learning_rate=given.number("--learning_rate", default.learning_rate),
        encoder=_encoder(given),
    )
    return LearningSettings(Cover(epsilon=fixed), oracle)


def _oracle(given: _Given) -> VowpalWabbitConfig:
    default = VowpalWabbitConfig()
    if given.number("--l1", 0.0) != 0.0:
        raise given.refuse("--l1", "expected 0: there is no such penalty here, --l2 is one")
    _products(given)
    kind = given.text("--cb_type", default.cb_type)
    if kind not in {"mtr", "ips", "dr"}:
        raise given.refuse("--cb_type", f"expected mtr, ips or dr, got {kind!r}")
    return VowpalWabbitConfig(
        cb_type=kind,  # type: ignore[arg-type]
        learning_rate=given.number("--learning_rate", default.learning_rate),
        power_t=given.number("--power_t", default.power_t),
        l2=given.number("--l2", default.l2),
        passes=given.count("--passes", default.passes),
        encoder=_encoder(given),
    )


def _products(given: _Given) -> None:
    pairs = given.text("--quadratic", "::")
    if pairs not in _PRODUCTS:
        raise given.refuse(
            "--quadratic", f"expected :: (context and action features together), got {pairs!r}"
        )


def _encoder(given: _Given) -> EncoderConfig:
    return EncoderConfig(bits=given.count("--bit_precision", EncoderConfig().bits))


def _exploration_arguments(settings: LearningSettings) -> str | None:
    """The arguments for an exploration; None if there are none."""
    match settings.exploration:
        case EpsilonGreedy(epsilon=epsilon):
            return f"--epsilon {epsilon:g}"
        case SquareCB(gamma_scale=scale, gamma_exponent=exponent):
            return f"--squarecb --gamma_scale {scale:g} --gamma_exponent {exponent:g}"
        case Softmax(temperature=temperature):
            return f"--softmax --lambda {1.0 / temperature:g}"
        case Bagging() if isinstance(settings.oracle, BootstrapConfig):
            return f"--bag {settings.oracle.members}"
    return None
