"""Oracles that only Vowpal Wabbit can score: its own arguments, its own model, its own prediction.

Features are hashed by the shared encoder and handed to Vowpal Wabbit as numbers; no text is made
or parsed.
"""

from __future__ import annotations

import math
import re
import shlex
import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError
from croupier.policy.oracle.base import OracleConfigBase, check_rows, not_online, require
from croupier.policy.oracle.encoded import not_fitted
from croupier.policy.oracle.models import ModelOracle
from croupier.policy.oracle.vowpal_wabbit import bandit_examples, resumed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import EncodedDecision, EncodedFeatures
    from croupier.policy.oracle.base import TrainingRow

__all__ = ("VowpalWabbitModelConfig", "VowpalWabbitModelOracle")

_CHECKED_ROWS = 200
_TOLERANCE = 1e-6
_KEPT_EXAMPLES = 256


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdecimal() and 1 <= int(value) <= 1000


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _matching(pattern: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


class _Form(NamedTuple):
    """What the value of an argument has to be, in words and as a test."""

    expected: str
    fits: Callable[[str], bool]


_COUNT = _Form("a whole number in [1, 1000]", _is_count)
_NUMBER = _Form("a finite number", _is_number)
_RANK = _Form("two of the namespaces c and a, and a rank up to 99", _matching("[ca]{2}[1-9][0-9]?"))

# Arguments that may be given; None of those without a value. Each was tried: it trains, its model
# is saved whole, and the same request always gets the same prediction. Not so with others: with
# --dropout and adaptive boosting it is random, --permutations is forgotten, --l1 and --l2 have
# shrunk the weights differently once a model is read, --ksvm ends the process.
_ALLOWED: dict[str, _Form | None] = {
    # Products of features. The namespaces are c, the context, and a, the action; : is any.
    "quadratic": _Form("two of the namespaces c, a and :", _matching("[ca:]{2}")),
    "cubic": _Form("three of the namespaces c, a and :", _matching("[ca:]{3}")),
    "interactions": _Form("2 to 8 of the namespaces c, a and :", _matching("[ca:]{2,8}")),
    "ignore_linear": _Form("one of the namespaces c and a", _matching("[ca]")),
    "stage_poly": None,
    "sched_exponent": _NUMBER,
    "batch_sz": _COUNT,
    "batch_sz_no_doubling": None,
    # Networks and factors.
    "nn": _COUNT,
    "inpass": None,
    "multitask": None,
    "lrq": _RANK,
    "lrqfa": _RANK,
    "lrqdropout": None,
    "new_mf": _COUNT,
    # Ensembles.
    "boosting": _COUNT,
    "gamma": _NUMBER,
    "alg": _Form("BBM or logistic", _matching("BBM|logistic")),
    "bootstrap": _COUNT,
    "bs_type": _Form("mean or vote", _matching("mean|vote")),
    # How rows count.
    "clip_p": _NUMBER,
    "cb_dro": None,
    "cb_dro_alpha": _NUMBER,
    "cb_dro_tau": _NUMBER,
    "cb_dro_wmax": _NUMBER,
    "loss_function": _Form(
        "squared, logistic, hinge or quantile", _matching("squared|logistic|hinge|quantile")
    ),
    "quantile_tau": _NUMBER,
    # How weights move, and within which bounds predictions stay.
    "ftrl": None,
    "coin": None,
    "pistol": None,
    "ftrl_alpha": _NUMBER,
    "ftrl_beta": _NUMBER,
    "freegrad": None,
    "sgd": None,
    "adaptive": None,
    "invariant": None,
    "normalized": None,
    "power_t": _NUMBER,
    "initial_t": _NUMBER,
    "initial_weight": _NUMBER,
    "random_weights": None,
    "min_prediction": _NUMBER,
    "max_prediction": _NUMBER,
}


# Of these, the ones under which a model that was read back learns on as the learner would have, bit
# for bit. With the others Vowpal Wabbit's file lacks something: of networks, factors and ensembles
# the state of their own, of losses the bounds that predictions keep to, of ftrl its parameters.
_RESUMED = frozenset(
    {
        "quadratic",
        "cubic",
        "interactions",
        "ignore_linear",
        "lrq",
        "lrqfa",
        "clip_p",
        "ftrl",
        "coin",
        "pistol",
        "sgd",
        "adaptive",
        "normalized",
        "power_t",
        "initial_t",
        "initial_weight",
        "random_weights",
    }
)
# And the ones under which a learner is changed by being saved or asked, so that what it comes to
# depends on how often that was done.
_AT_ONCE = frozenset({"bootstrap", "bs_type", "freegrad", "invariant"})


class VowpalWabbitModelConfig(OracleConfigBase, frozen=True, tag="vowpal_wabbit_model"):
    """Parameters of :class:`VowpalWabbitModelOracle`.

    Attributes
    ----------
    arguments
        Vowpal Wabbit's, as on its command line: ``--nn 5 -q ca``. Context features are in the
        namespace c, those of an action in a; there are no products but those asked for.
        Options that touch files or the network, change what is predicted or would end the process
        are refused.
    cb_type
        How the reward of the chosen action teaches about the others: ``mtr``, ``ips`` or ``dr``.
    learning_rate
        Positive.
    passes
        How often the interactions are gone through, 1 to 1000.
    encoder
        How features become indices. All of a model's weights, those of every hidden unit or weak
        learner, are in the table of 2**bits entries; each takes 16 bytes where it is served.
    """

    arguments: str = "-q ca"
    cb_type: Literal["mtr", "ips", "dr"] = "mtr"
    learning_rate: float = 0.5
    passes: int = 1
    encoder: EncoderConfig = EncoderConfig()

    @property
    def learns_online(self) -> bool:
        """Whether what is learned in parts is what is learned at once."""
        return self._names.isdisjoint(_AT_ONCE)

    @property
    def resumes(self) -> bool:
        """Whether the model file holds all that Vowpal Wabbit needs to go on."""
        return self.cb_type != "dr" and self._names <= _RESUMED

    @property
    def _names(self) -> set[str]:
        """Of the arguments."""
        given = parse_arguments(self.arguments)
        return {each.removeprefix("--").partition("=")[0] for each in given}

    @property
    def weighs_propensities(self) -> bool:
        """That is what `cb_type` says."""
        return True

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require("learning_rate", 0 < rate < math.inf, "positive", rate)
        require("passes", 1 <= self.passes <= 1000, "in [1, 1000]", self.passes)
        parse_arguments(self.arguments)


class VowpalWabbitModelOracle(ModelOracle):
    """Vowpal Wabbit's contextual-bandit regression under the user's own arguments.

    Costs are minus the rewards. The learner is ``--cb_adf``; what it has learned is saved as
    Vowpal Wabbit saves it, and what was saved is what scores, in the process that has fitted it
    too. One decision is scored at a time: a workspace is not made for several threads.

    What has learned stays in memory, to be taught further; once it was saved it can be, where the
    model file holds all of it.

    Attributes
    ----------
    model_
        Vowpal Wabbit's model file; None before :meth:`fit`.
    """

    config: VowpalWabbitModelConfig
    file_name = "model.vw"
    _scorer: _Scorer | None = None
    _workspace: Any = None

    def fit(self, rows: Sequence[TrainingRow]) -> VowpalWabbitModelOracle:
        """Learn from interactions in the given order.

        Raises
        ------
        NotEnoughDataError
            If there are no rows.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If Vowpal Wabbit refuses the arguments, its model doesn't hold all that was learned
            under them, or the weights grew without bound.
        """
        check_rows(rows)
        encoded = [(row, self._encoder.encode(row.context, row.actions)) for row in rows]
        learner = self._learner()
        for _ in range(self.config.passes):
            for row, decision in encoded:
                learner.learn_one(bandit_examples(row, decision))
        self._take_over(learner, encoded)
        return self

    def partial_fit(self, rows: Sequence[TrainingRow]) -> VowpalWabbitModelOracle:
        """Learn from further interactions, each of them once.

        With no rows, an oracle that was not fitted starts with what Vowpal Wabbit starts with.
        With one pass, ``fit`` and ``partial_fit`` in turn give what one ``fit`` of all rows gives,
        bit for bit.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            As :meth:`fit` does, or if what is learned in parts would be something else, or the
            oracle was loaded and its model doesn't hold all that was learned.
        """
        if not self.config.learns_online:
            raise not_online(f"under {self.config.arguments!r} it is fitted to all rows at once")
        check_rows(rows, some=False)
        encoded = [(row, self._encoder.encode(row.context, row.actions)) for row in rows]
        learner = self._going_on()
        for row, decision in encoded:
            learner.learn_one(bandit_examples(row, decision))
        if encoded or self._scorer is None:
            self._take_over(learner, encoded)
        self._workspace = learner
        return self

    def serve(self, model: bytes) -> None:
        """Make a model what is scored with."""
        import vowpal_wabbit_next as vw  # noqa: PLC0415 - slow to import

        try:
            # Not --testonly: its table has another layout, in which --nn's weights share others.
            workspace = vw.Workspace(["--quiet"], model_data=model)
        except RuntimeError as error:
            raise GenerationError(f"Vowpal Wabbit can't read its model: {error}") from error
        _require_contract(workspace)
        self._scorer = _Scorer(workspace)
        self.model_ = model

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self._scorer is None:
            raise not_fitted()
        return self._scorer.rewards(decision)

    def _take_over(
        self, learner: Any, encoded: Sequence[tuple[TrainingRow, EncodedDecision]]
    ) -> None:
        """Score with what a learner has learned, as it is saved."""
        self.serve(bytes(learner.serialize()))
        self._require_parity(_Scorer(learner), [each for _, each in encoded[-_CHECKED_ROWS:]])
        self._workspace = learner

    def _going_on(self) -> Any:
        """What learns on from here."""
        if self._workspace is not None:
            return self._workspace
        if self.model_ is None:
            return self._learner()
        if not self.config.resumes:
            raise not_online("Vowpal Wabbit's model file doesn't hold all that goes on")
        return resumed(self.model_)

    def _learner(self) -> Any:
        import vowpal_wabbit_next as vw  # noqa: PLC0415

        config = self.config
        # Doubly robust learning keeps two weights per feature within the same 2**b.
        bits = config.encoder.bits + (1 if config.cb_type == "dr" else 0)
        arguments = (
            f"--quiet --cb_adf --cb_type {config.cb_type} --noconstant -b {bits} "
            f"--learning_rate {config.learning_rate} --random_seed {self.random_state}"
        )
        try:
            learner = vw.Workspace([*arguments.split(), *parse_arguments(config.arguments)])
        except RuntimeError as error:
            raise GenerationError(
                f"oracle.arguments: Vowpal Wabbit refuses {config.arguments!r}: {error}"
            ) from error
        _require_contract(learner)
        return learner

    def _require_parity(self, learner: _Scorer, decisions: Sequence[EncodedDecision]) -> None:
        """Refuse a model that predicts something else than the learner it was saved by."""
        assert self._scorer is not None, "what is compared is served"
        for decision in decisions:
            expected, served = learner.rewards(decision), self._scorer.rewards(decision)
            if not np.isfinite(expected).all():
                raise GenerationError(
                    "Vowpal Wabbit predicts what is not finite; were the features or rewards very "
                    "large, or the learning rate?"
                )
            scale = max(1.0, float(np.abs(expected).max()))
            # Written so that NaN fails the comparison.
            parity = np.abs(served - expected).max() <= _TOLERANCE * scale
            if not parity or (self._scorer.rewards(decision) != served).any():
                raise GenerationError(
                    f"oracle.arguments: expected some whose model holds all that was learned and "
                    f"always predicts the same, got {self.config.arguments!r}: read back, it "
                    f"predicts something else"
                )


class _Scorer:
    """A workspace with examples that are filled anew for every decision.

    To make an example costs as much as to score it, and every one keeps what memory it once took:
    they are used over and over, up to a number.
    """

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._examples: list[Any] = []

    def rewards(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """What the workspace predicts of every action, shape (K,)."""
        rewards = np.empty(len(decision.actions))
        with self._lock:
            # Should it fail, nobody knows in which state the examples are: they are not put back.
            examples, self._examples = self._examples, []
            costs = self._workspace.predict_one(_filled(examples, decision))
            self._examples = examples[:_KEPT_EXAMPLES]
        for action, cost in costs:
            # Not merely negated: zeros are to be positive.
            rewards[action] = 0.0 - cost
        return rewards


def _filled(examples: list[Any], decision: EncodedDecision) -> list[Any]:
    """The context's example, then one for every action; examples that are lacking are added."""
    actions = decision.actions
    while len(examples) <= len(actions):
        examples.append(_example(shared=not examples))
    _fill(examples[0]["c"], decision.context)
    for example, features in zip(examples[1:], actions, strict=False):
        _fill(example["a"], features)
    return examples[: len(actions) + 1]


def _fill(group: Any, features: EncodedFeatures) -> None:
    group.truncate_to(0)
    group.push_many_features(features.indices, features.values)


def _example(*, shared: bool) -> Any:
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    example = vw.Example()
    example.set_label(vw.CBLabel(shared=True) if shared else vw.CBLabel())
    return example


def _require_contract(workspace: Any) -> None:
    """A cost for every action is expected of a model, whatever it was made with."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    if workspace.prediction_type != vw.PredictionType.ActionScores:
        raise GenerationError(
            f"expected a model that predicts a cost for every action, got one that predicts "
            f"{workspace.prediction_type.name}"
        )


def parse_arguments(text: str) -> list[str]:
    """Vowpal Wabbit's arguments, one by one: ``--nn=5``.

    Raises
    ------
    ValueError
        If one is not allowed, or its value isn't what it has to be.
    """
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"arguments must be a command line, got {text!r}: {error}") from error
    parsed = []
    for word in words:
        name, value = _name_and_value(word)
        form = _ALLOWED[name]
        if form is None:
            if value is not None:
                raise ValueError(f"arguments: --{name} takes no value, got {value!r}")
            parsed.append(f"--{name}")
            continue
        value = next(words, "") if value is None else value
        if not form.fits(value):
            raise ValueError(f"arguments: --{name} must be {form.expected}, got {value!r}")
        parsed.append(f"--{name}={value}")
    return parsed


def _name_and_value(word: str) -> tuple[str, str | None]:
    """The name of an argument, and its value if that is in the same word."""
    if word.startswith("-q"):
        return "quadratic", word[2:] or None
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or name not in _ALLOWED:
        raise ValueError(
            f"arguments must be among those that touch no files and no network, leave the kind of "
            f"prediction as it is and are saved with the model, got {word!r}; they are "
            f"-q, {', '.join(f'--{each}' for each in _ALLOWED)}"
        )
    return name, value if equals else None
