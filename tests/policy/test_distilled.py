"""Distillation: a table that stands for a slow oracle, and an honest word on how well."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import (
    GenerationError,
    InexpressibleError,
    InvalidInputError,
    NotEnoughDataError,
)
from croupier.policy.oracle import (
    DistilledConfig,
    DistilledOracle,
    SklearnOnnxConfig,
    SklearnOnnxOracle,
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
    make_online_oracle,
)
from tests.policy.training import random_rows

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.events import Action, Features
    from croupier.policy.oracle import TrainingRow

TREES = SklearnOnnxConfig(params={"max_iter": 30}, encoder=EncoderConfig(bits=14))


def sloped(context: Features, action: Action) -> float:
    """A reward that a table holds without a loss."""
    return 0.5 + 0.1 * float(context["v"][0] * action.features["x"])


def folded(_: Features, action: Action) -> float:
    """One that no table holds."""
    return float(abs(action.features["x"]) > 0.7)


def held_out(rows: list[TrainingRow]) -> list[TrainingRow]:
    return rows[4::5]


class TestTable:
    @pytest.mark.parametrize(
        "base", [TREES, VowpalWabbitModelConfig(arguments="--nn 3 -q ca")], ids=["trees", "network"]
    )
    def test_fidelity_is_what_it_says(
        self, base: SklearnOnnxConfig | VowpalWabbitModelConfig
    ) -> None:
        """Reckoned again by hand, with an oracle of one's own."""
        rows = random_rows(500, reward=sloped)
        oracle = DistilledOracle(DistilledConfig(base=base), random_state=4).fit(rows)
        taught: SklearnOnnxOracle | VowpalWabbitModelOracle
        if isinstance(base, SklearnOnnxConfig):
            taught = SklearnOnnxOracle(base, random_state=4).fit(rows)
        else:
            taught = VowpalWabbitModelOracle(base, random_state=4).fit(rows)
        estimates: list[float] = []
        missed: list[float] = []
        agreed: list[bool] = []
        for row in held_out(rows):
            theirs = taught.score(row.context, row.actions)
            ours = oracle.score(row.context, row.actions)
            estimates.extend(theirs)
            missed.extend(theirs - ours)
            agreed.append(theirs[np.argmax(ours)] == theirs.max())
        assert oracle.fidelity_ is not None
        assert oracle.fidelity_.rows == 100
        explained = 1.0 - np.square(missed).mean() / np.var(estimates)
        assert oracle.fidelity_.r2 == pytest.approx(explained, rel=1e-9)
        assert oracle.fidelity_.agreement == np.mean(agreed)

    def test_is_faithful_to_what_a_table_can_hold_and_not_to_more(self) -> None:
        faithful, unfaithful = (
            DistilledOracle(DistilledConfig(base=TREES)).fit(random_rows(2000, reward=reward))
            for reward in (sloped, folded)
        )
        assert faithful.fidelity_ is not None
        assert unfaithful.fidelity_ is not None
        assert faithful.fidelity_.r2 > 0.8
        assert faithful.fidelity_.agreement > 0.8
        assert unfaithful.fidelity_.r2 < 0.3
        assert unfaithful.fidelity_.agreement < 0.8

    def test_is_fitted_to_actions_that_were_not_chosen_too(self) -> None:
        """Of four actions only the first was ever chosen; the table knows what all are worth."""
        rows = [
            msgspec.structs.replace(row, chosen=0, reward=sloped(row.context, row.actions[0]))
            for row in random_rows(800)
        ]
        without_id = msgspec.structs.replace(TREES, encoder=EncoderConfig(bits=14, action_id=False))
        oracle = DistilledOracle(DistilledConfig(base=without_id)).fit(rows)
        taught = SklearnOnnxOracle(without_id).fit(rows)
        theirs, ours = (
            np.concatenate([each.score(row.context, row.actions)[1:] for row in held_out(rows)])
            for each in (taught, oracle)
        )
        assert np.corrcoef(theirs, ours)[0, 1] > 0.8

    def test_can_be_distilled_on_some_of_the_rows(self) -> None:
        oracle = DistilledOracle(DistilledConfig(base=TREES, max_rows=50)).fit(random_rows(400))
        assert oracle.fidelity_ is not None
        assert oracle.fidelity_.rows == 10

    @pytest.mark.parametrize(
        ("estimator", "faithful"),
        [("Nearest", 0.1), ("Plain", 0.95)],
    )
    def test_of_an_estimator_that_only_its_author_knows(
        self, estimator: str, faithful: float, tmp_path: Path
    ) -> None:
        """ONNX expresses neither; what is served is a table, and needs nothing of the estimator."""
        base = msgspec.structs.replace(
            TREES, estimator=f"tests.policy.estimators.{estimator}", params={}
        )
        rows = [msgspec.structs.replace(row, weight=1.0) for row in random_rows(600, reward=sloped)]
        oracle = DistilledOracle(DistilledConfig(base=base)).fit(rows)
        taught = SklearnOnnxOracle(base)
        with pytest.raises(InexpressibleError, match="kind distilled"):
            taught.fit(rows)
        encoder = FeatureEncoder(base.encoder)
        asked = [encoder.encode(row.context, row.actions) for row in held_out(rows)]
        theirs = np.concatenate(taught.estimated(asked))
        ours = np.concatenate([oracle.score(row.context, row.actions) for row in held_out(rows)])
        assert oracle.fidelity_ is not None
        explained = 1.0 - np.square(theirs - ours).mean() / np.var(theirs)
        assert oracle.fidelity_.r2 == pytest.approx(explained, rel=1e-9)
        assert oracle.fidelity_.r2 > faithful
        oracle.save(tmp_path)
        program = (
            "import sys, pathlib; from croupier.policy.oracle import load_oracle; "
            "from croupier.policy.events import Action; "
            "print(load_oracle(pathlib.Path(sys.argv[1])).score({}, [Action('a')])[0]); "
            "sys.exit(any(m.startswith(('tests', 'sklearn')) for m in sys.modules))"
        )
        subprocess.run([sys.executable, "-c", program, tmp_path], check=True)

    def test_of_an_oracle_without_an_opinion(self) -> None:
        oracle = DistilledOracle(DistilledConfig(base=TREES)).fit(
            random_rows(50, reward=lambda *_: 0.25)
        )
        assert oracle.fidelity_ is not None
        assert oracle.fidelity_.r2 == 0.0
        assert oracle.fidelity_.agreement == 1.0


class TestRefusal:
    def test_of_too_few_rows(self) -> None:
        for n in (0, 4):
            with pytest.raises(NotEnoughDataError):
                DistilledOracle(DistilledConfig(base=TREES)).fit(random_rows(n))

    def test_of_what_the_base_refuses(self) -> None:
        base = SklearnOnnxConfig(estimator="sklearn.neighbors.KNeighborsRegressor")
        with pytest.raises(GenerationError, match=r"can't be fitted.*sample_weight"):
            DistilledOracle(DistilledConfig(base=base)).fit(random_rows(50))

    def test_to_learn_online(self) -> None:
        with pytest.raises(InvalidInputError, match=r"learns online.*got distilled"):
            make_online_oracle(DistilledConfig())

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"l2": 0.0}, "l2 must be positive, got 0"),
            ({"max_rows": 9}, r"max_rows must be in \[10, 1000000\], got 9"),
            ({"base": {"kind": "sklearn"}}, r"\$\.base"),
            ({"base": {"kind": "sklearn_onnx", "max_columns": 0}}, r"max_columns.*\$\.base"),
            ({"base": {"kind": "vowpal_wabbit_model", "arguments": "-f x"}}, r"'-f'.*\$\.base"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "distilled", **table}, DistilledConfig)
