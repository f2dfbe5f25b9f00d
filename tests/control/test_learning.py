"""Vowpal Wabbit's arguments as explorations and oracles, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from croupier.control.learning import LearningSettings, arguments_of, read_arguments, refuse_foreign
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import (
    Bagging,
    Conservative,
    Cover,
    EpsilonGreedy,
    Greedy,
    Softmax,
    SquareCB,
    Thompson,
)
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    CoverConfig,
    RidgeConfig,
    SklearnConfig,
    VowpalWabbitConfig,
)

if TYPE_CHECKING:
    from croupier.policy.exploration import Exploration
    from croupier.policy.oracle import OracleConfig

VW = VowpalWabbitConfig


@pytest.mark.parametrize(
    ("text", "exploration", "oracle"),
    [
        # Of the public documentation, its default and others.
        (
            "--cb_explore_adf --epsilon 0.2 --power_t 0 -l 0.001 --cb_type mtr -q ::",
            EpsilonGreedy(epsilon=0.2),
            VW(learning_rate=0.001, power_t=0.0),
        ),
        (
            " --cb_explore_adf --epsilon 0.2 --dsjson --cb_type ips -l 0.5 --l1 0 --power_t 0.5",
            EpsilonGreedy(epsilon=0.2),
            VW(cb_type="ips"),
        ),
        ("--cb_explore_adf", EpsilonGreedy(epsilon=0.05), VW()),
        ("--epsilon=0.1 --cb_type=dr", EpsilonGreedy(epsilon=0.1), VW(cb_type="dr")),
        ("--epsilon 0.1 --epsilon 0.1", EpsilonGreedy(epsilon=0.1), VW()),
        (
            "--learning_rate 2 --l2 1e-6 --passes 3 -b 20 --interactions ::",
            EpsilonGreedy(epsilon=0.05),
            VW(learning_rate=2.0, l2=1e-6, passes=3, encoder=EncoderConfig(bits=20)),
        ),
        ("--squarecb", SquareCB(), VW()),
        (
            "--squarecb --gamma_scale 100 --gamma_exponent 0.6 --epsilon 0",
            SquareCB(gamma_scale=100.0, gamma_exponent=0.6),
            VW(),
        ),
        ("--softmax --lambda 4", Softmax(temperature=0.25), VW()),
        ("--bag 7 -l 0.1", Bagging(), BootstrapConfig(base=VW(learning_rate=0.1), members=7)),
        ("--cover 3 --psi 0.1", Cover(), CoverConfig(members=3, psi=0.1)),
        (
            "--cover 3 --epsilon 0.1 -l 0.2",
            Cover(epsilon=0.1),
            CoverConfig(members=3, epsilon=0.1, learning_rate=0.2),
        ),
        (
            '{"exploration": {"kind": "thompson"}, "oracle": {"kind": "ridge", "l2": 2.0}}',
            Thompson(),
            RidgeConfig(l2=2.0),
        ),
    ],
)
def test_arguments_with_an_equivalent(
    text: str, exploration: Exploration, oracle: OracleConfig
) -> None:
    read = read_arguments("arguments", text)
    assert read == LearningSettings(exploration, oracle)
    assert read_arguments("arguments", arguments_of(read)) == read


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--cb_explore_adf --l1 1E-07", "--l1"),
        ("--first 3", "--first"),
        ("--regcb", "--regcb"),
        ("--cb_explore_adf --ngram 2", "--ngram"),
        ("-q ab", "--quadratic"),
        ("--interactions abc", "--quadratic"),
        ("--cb_type dm", "--cb_type"),
        ("--cover 3 --cb_type ips", "--cb_type"),
        ("--squarecb --softmax", "--softmax"),
        ("--squarecb --epsilon 0.1", "--epsilon"),
        ("--squarecb --lambda 3", "--lambda"),
        ("--epsilon 0.1 --gamma_scale 3", "--gamma_scale"),
        ("--cover 3 --l2 0.1", "--l2"),
        ("--softmax --lambda 0", "--lambda"),
        ("--softmax --lambda -1", "--lambda"),
        ("--epsilon", "--epsilon"),
        ("--epsilon --squarecb", "--epsilon"),
        ("--epsilon 0.1 --epsilon 0.2", "--epsilon"),
        ("--epsilon nan", "--epsilon"),
        ("--epsilon 2", "epsilon"),
        ("-l much", "--learning_rate"),
        ("-l 0", "learning_rate"),
        ("--passes 1.5", "--passes"),
        ("-b 40", "bits"),
        ("--bag 1", "members"),
        ("--power_t 2", "power_t"),
        ("--squarecb=yes", "--squarecb"),
        ("model.vw", "model.vw"),
        ("--epsilon '0.1", "command line"),
        ("{", "exploration and oracle"),
        ("{}", "exploration"),
        ('{"exploration": {"kind": "thompson"}, "oracle": {"kind": "torch"}}', "torch"),
    ],
)
def test_arguments_without_one_are_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named) as refused:
        read_arguments("policies[0].arguments", text)
    assert refused.value.field == "policies[0].arguments"


@pytest.mark.parametrize(
    "settings",
    [
        LearningSettings(SquareCB(), VW()),
        LearningSettings(SquareCB(floor=0.01), VW()),
        LearningSettings(SquareCB(optimism=0.01), VW()),
        LearningSettings(SquareCB(optimism=0.01), AutoConfig(beyond=VW(learning_rate=0.1))),
        LearningSettings(EpsilonGreedy(epsilon=1 / 3), VW()),
        LearningSettings(EpsilonGreedy(), VW(encoder=EncoderConfig(action_id=False))),
        LearningSettings(Greedy(), VW()),
        LearningSettings(EpsilonGreedy(), SklearnConfig(params={"alpha": 2.0})),
        LearningSettings(Bagging(), BootstrapConfig(members=4)),
        LearningSettings(Conservative(inner=Greedy()), VW()),
    ],
    ids=str,
)
def test_whatever_is_configured_can_be_told(settings: LearningSettings) -> None:
    assert read_arguments("arguments", arguments_of(settings)) == settings


def test_no_class_is_named_over_the_api() -> None:
    custom = {"kind": "custom", "path": "tests.control.never:Imported"}
    for raw in (custom, {"kind": "conservative", "inner": custom}, [{"a": [custom]}]):
        with pytest.raises(InvalidInputError, match="no exploration of kind custom"):
            refuse_foreign("body", raw)
    refuse_foreign("body", {"exploration": custom}, known=custom)
    text = '{"exploration": {"kind": "custom", "path": "os:system"}, "oracle": {"kind": "ridge"}}'
    with pytest.raises(InvalidInputError, match="no exploration of kind custom"):
        read_arguments("arguments", text)


@pytest.mark.parametrize(
    "estimator",
    [
        "subprocess.Popen",
        "sklearn.datasets._base.urlretrieve",
        "sklearn.linear_model._base.LinearRegression",
        "sklearn.linear_model.Ridge.fit",
        "sklearn.linear_modelXRidge",
        ["sklearn.linear_model.Ridge"],
    ],
)
def test_no_program_is_named_over_the_api(estimator: object) -> None:
    oracle = {"kind": "bootstrap", "base": {"kind": "sklearn", "estimator": estimator}}
    text = msgspec.json.encode({"exploration": {"kind": "bagging"}, "oracle": oracle}).decode()
    with pytest.raises(InvalidInputError, match="an estimator of scikit-learn's public modules"):
        read_arguments("arguments", text)
    allowed = {"kind": "sklearn", "estimator": "sklearn.linear_model.Lasso", "params": {}}
    text = msgspec.json.encode({"exploration": {"kind": "greedy"}, "oracle": allowed}).decode()
    read_arguments("arguments", text)
