"""Bootstrap ensembles: what the members learn from, and what their spread says."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import Bagging
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    BootstrapConfig,
    BootstrapOracle,
    LinearOracle,
    SklearnConfig,
    TrainingRow,
    VowpalWabbitConfig,
    make_oracle,
    poisson_weights,
)
from tests.policy.training import random_request, random_rows

ENCODER = EncoderConfig(bits=12)
ALL = frozenset({"deviation", "members"})
BASES: list[VowpalWabbitConfig | SklearnConfig] = [
    VowpalWabbitConfig(encoder=ENCODER),
    VowpalWabbitConfig(cb_type="ips", passes=2, encoder=ENCODER),
    VowpalWabbitConfig(cb_type="dr", l2=1e-4, encoder=ENCODER),
    SklearnConfig(params={"solver": "cholesky"}, encoder=ENCODER),
    SklearnConfig(estimator="sklearn.linear_model.LogisticRegression", encoder=ENCODER),
]

bases = pytest.mark.parametrize(
    "base", BASES, ids=[f"{type(each).__name__}{i}" for i, each in enumerate(BASES)]
)


def clicks(n: int, seed: int = 0) -> list[TrainingRow]:
    return random_rows(n, seed=seed, reward=lambda _, action: float(action.features["x"] > 0))


def resampled(rows: list[TrainingRow], counts: list[int]) -> list[TrainingRow]:
    """The rows as a member counts them; those that it counts 0 times are left out."""
    return [
        msgspec.structs.replace(row, weight=count * row.weight)
        for row, count in zip(rows, counts, strict=True)
        if count
    ]


class TestWeights:
    def test_are_poisson(self) -> None:
        """Chi-squared test of 200,000 counts; fails by chance once in a million."""
        counts = poisson_weights(3, 20, 10_000)
        assert counts.shape == (10_000, 20)
        expected = stats.poisson.pmf(np.arange(7), 1.0)
        observed = np.bincount(np.minimum(counts.ravel(), 7), minlength=8)
        probabilities = np.append(expected, 1.0 - expected.sum())
        _, p = stats.chisquare(observed, probabilities * counts.size)
        assert p > 1e-6

    def test_of_rows_and_members_are_independent(self) -> None:
        """Of 20 members' and 40 rows' counts, no correlation is far out: |z| < 6 for each."""
        by_member = np.corrcoef(poisson_weights(0, 20, 5000).T)
        by_row = np.corrcoef(poisson_weights(0, 1000, 40))
        for correlations, n in ((by_member, 5000), (by_row, 1000)):
            assert np.abs(np.triu(correlations, 1)).max() < 6.0 / math.sqrt(n)

    @given(
        seed=st.integers(0, 2**63 - 1),
        members=st.integers(1, 8),
        rows=st.integers(0, 2100),
        more=st.integers(0, 1100),
    )
    @settings(deadline=None, max_examples=30)
    def test_depend_on_seed_member_and_row_alone(
        self, seed: int, members: int, rows: int, more: int
    ) -> None:
        few = poisson_weights(seed, members, rows)
        many = poisson_weights(seed, members + 2, rows + more)
        assert few.shape == (rows, members)
        assert np.array_equal(few, many[:rows, :members])

    def test_are_the_same_for_ever(self) -> None:
        """Written down once: generations must come out again after any upgrade."""
        assert poisson_weights(7, 3, 4).tolist() == WRITTEN_DOWN
        assert poisson_weights(8, 3, 4).tolist() != WRITTEN_DOWN


class TestMembers:
    @bases
    def test_are_the_base_on_their_own_rows(self, base: VowpalWabbitConfig | SklearnConfig) -> None:
        rows = clicks(150)
        config = BootstrapConfig(base=base, members=4)
        oracle = BootstrapOracle(config, random_state=5).fit(rows)
        assert oracle.weights_ is not None
        assert oracle.weights_.shape == (1 << 12, 4)
        for member, counts in enumerate(poisson_weights(5, 4, len(rows)).T.tolist()):
            alone = make_oracle(base, random_state=5)
            assert isinstance(alone, LinearOracle)
            alone.fit(resampled(rows, counts))
            assert alone.weights_ is not None
            if isinstance(base, VowpalWabbitConfig):
                assert np.array_equal(oracle.weights_[:, member], alone.weights_)
            else:
                # It has no columns for the rows left out, and sums in another order.
                np.testing.assert_allclose(
                    oracle.weights_[:, member], alone.weights_, rtol=1e-3, atol=1e-4
                )
            request = random_request(np.random.default_rng(member))
            members = oracle.estimate(*request, ALL).members
            assert members is not None
            np.testing.assert_allclose(members[member], alone.score(*request), atol=1e-4)

    @bases
    def test_give_the_mean_and_the_deviation(
        self, base: VowpalWabbitConfig | SklearnConfig
    ) -> None:
        oracle = BootstrapOracle(BootstrapConfig(base=base, members=4)).fit(clicks(150))
        request = random_request(np.random.default_rng(1))
        estimates = oracle.estimate(*request, ALL)
        assert estimates.members is not None
        assert estimates.deviation is not None
        assert estimates.members.shape == (4, 4)
        np.testing.assert_allclose(estimates.mean, estimates.members.mean(axis=0), rtol=1e-12)
        centered = estimates.members - estimates.mean
        np.testing.assert_allclose(
            estimates.deviation, np.sqrt((centered**2).sum(axis=0) / 3), rtol=1e-12
        )
        assert estimates.mean.tobytes() == oracle.score(*request).tobytes()
        assert estimates.covariance is None
        plain = oracle.estimate(*request)
        assert plain.members is None
        assert plain.deviation is None
        if oracle.link_ == "logistic":
            assert estimates.members.min() >= 0.0
            assert estimates.members.max() <= 1.0

    def test_are_the_same_for_the_same_seed_only(self) -> None:
        rows = random_rows(50)
        first, again, other = (
            BootstrapOracle(BootstrapConfig(base=BASES[0], members=3), random_state=state)
            .fit(rows)
            .weights_
            for state in (1, 1, 2)
        )
        assert first is not None
        assert again is not None
        assert other is not None
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != other.tobytes()

    def test_are_scored_alike_however_many_actions_there_are(self) -> None:
        """Actions without features, and more products than are gathered in one go."""
        config = BootstrapConfig(base=VowpalWabbitConfig(encoder=ENCODER), members=30)
        oracle = BootstrapOracle(config).fit(random_rows(50))
        rng = np.random.default_rng(0)
        context = {"v": rng.normal(size=200).tolist()}
        actions = [Action(f"a{k}", {"x": float(k)}) for k in range(60)] + [Action("")]
        together = oracle.estimate(context, actions, ALL).members
        assert together is not None
        for position in (0, 31, 60):
            alone = oracle.estimate(context, [actions[position]], ALL).members
            assert alone is not None
            np.testing.assert_allclose(together[:, position], alone[:, 0], rtol=1e-9, atol=1e-12)


class TestDeviation:
    def test_is_the_standard_error_of_a_mean(self) -> None:
        """An action without features is regressed on its mean, whose error is known.

        With 400 members the standard deviation comes out within 1 / sqrt(800) = 3.5 %, and the
        sample's own within 2.5 %; the tolerance of 20 % is almost five times both together.
        """
        rng = np.random.default_rng(2)
        n, sd = 800, 0.5
        rows = [
            TrainingRow(
                context={},
                actions=[Action("a")],
                chosen=0,
                propensity=1.0,
                reward=float(rng.normal(1.0, sd)),
            )
            for _ in range(n)
        ]
        base = SklearnConfig(params={"alpha": 1e-6, "solver": "cholesky"}, encoder=ENCODER)
        oracle = BootstrapOracle(BootstrapConfig(base=base, members=400)).fit(rows)
        estimates = oracle.estimate({}, [Action("a")], ALL)
        assert estimates.deviation is not None
        assert estimates.deviation[0] == pytest.approx(sd / math.sqrt(n), rel=0.2)
        assert estimates.mean[0] == pytest.approx(1.0, abs=5 * sd / math.sqrt(n))

    def test_is_larger_where_less_was_seen(self) -> None:
        rng = np.random.default_rng(0)
        actions = [Action("often"), Action("seldom")]
        rows = [
            TrainingRow(
                context={},
                actions=actions,
                chosen=int(i % 20 == 0),
                propensity=0.5,
                reward=float(rng.random()),
            )
            for i in range(400)
        ]
        for base in (BASES[0], BASES[3]):
            oracle = BootstrapOracle(BootstrapConfig(base=base, members=50)).fit(rows)
            deviation = oracle.estimate({}, actions, ALL).deviation
            assert deviation is not None
            assert deviation[1] > 1.5 * deviation[0] > 0.0


class TestRefusal:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"members": 1}, r"members must be in \[2, 1000\], got 1"),
            ({"members": 1001}, "members"),
            ({"base": {"kind": "ridge"}}, "'ridge'.*base"),
            ({"base": {"kind": "bootstrap"}}, "'bootstrap'.*base"),
            ({"base": {"kind": "sklearn", "alpha": 1}}, "alpha.*base"),
            ({"base": {"kind": "vowpal_wabbit", "passes": 0}}, "passes .*base"),
            ({"encoder": {"bits": 12}}, "encoder"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "bootstrap", **table}, BootstrapConfig)

    def test_of_rewards_that_a_member_cannot_classify(self) -> None:
        """One row of a kind is missing from a third of all members."""
        rows = [msgspec.structs.replace(row, reward=0.0) for row in random_rows(40)]
        rows[0] = msgspec.structs.replace(rows[0], reward=1.0)
        oracle = BootstrapOracle(BootstrapConfig(base=BASES[4], members=20))
        with pytest.raises(NotEnoughDataError, match=r"member \d+ of the ensemble: .* kinds"):
            oracle.fit(rows)

    def test_of_too_few_rows(self) -> None:
        for base in (BASES[0], BASES[3]):
            oracle = BootstrapOracle(BootstrapConfig(base=base, members=20))
            with pytest.raises(GenerationError, match="not fitted"):
                oracle.score({}, [Action("a")])
            with pytest.raises(NotEnoughDataError):
                oracle.fit([])
        with pytest.raises(NotEnoughDataError, match="got none of the rows"):
            oracle.fit(random_rows(1))

    def test_of_rows_that_cannot_be(self) -> None:
        rows = [msgspec.structs.replace(row, reward=float("nan")) for row in random_rows(3)]
        for base in (BASES[0], BASES[3]):
            with pytest.raises(InvalidInputError, match=r"rows\[0\]\.reward"):
                BootstrapOracle(BootstrapConfig(base=base)).fit(rows)


def test_a_loop_plays_it() -> None:
    table = {
        "exploration": {"kind": "bagging", "floor": 0.05},
        "oracle": {"kind": "bootstrap", "members": 4, "base": {"kind": "vowpal_wabbit"}},
    }
    loop = msgspec.convert(table, LoopConfig)
    assert loop.exploration == Bagging(floor=0.05)
    assert loop.oracle.encoder == EncoderConfig()
    oracle = make_oracle(loop.oracle).fit(random_rows(60))
    pmf, scores = Generation("shop", 1, loop.exploration, oracle, None).pmf(
        *random_request(np.random.default_rng(0))
    )
    assert scores is not None
    assert pmf.sum() == pytest.approx(1.0, abs=1e-9)
    assert pmf.min() >= 0.05 - 1e-12


WRITTEN_DOWN = [[0, 0, 0], [1, 0, 1], [0, 1, 0], [3, 0, 0]]
