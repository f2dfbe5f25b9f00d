"""Online cover: what its members learn, and that they differ because of the bonus."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import vowpal_wabbit_next as vw
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action
from croupier.policy.exploration import Cover
from croupier.policy.generation import Generation, Provenance
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    CoverConfig,
    CoverOracle,
    TrainingRow,
    VowpalWabbitConfig,
    VowpalWabbitOracle,
)
from croupier.policy.oracle.cover import cover_rewards
from tests.policy.training import push, random_request, random_rows

ENCODER = EncoderConfig(bits=12)
MEMBERS = frozenset({"members"})


def config(**settings: Any) -> CoverConfig:
    return CoverConfig(encoder=ENCODER, **settings)


def rows_of_weight_one(n: int, seed: int = 0) -> list[TrainingRow]:
    return [msgspec.structs.replace(row, weight=1.0) for row in random_rows(n, seed=seed)]


def votes_of(oracle: CoverOracle, requests: int = 100) -> list[tuple[int, ...]]:
    """The action that every member prefers, request by request."""
    rng = np.random.default_rng(77)
    votes = []
    for _ in range(requests):
        members = oracle.estimate(*random_request(rng), MEMBERS).members
        assert members is not None
        votes.append(tuple(members.argmax(axis=1).tolist()))
    return votes


class TestRewards:
    @given(
        settings=st.builds(
            CoverConfig,
            members=st.integers(1, 6),
            psi=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
            epsilon=st.sampled_from([None, 0.0, 0.1, 1.0]),
        ),
        actions=st.integers(1, 6),
        seen=st.integers(0, 10_000),
        seed=st.integers(0, 1000),
    )
    @settings(deadline=None)
    def test_are_doubly_robust_with_a_bonus_for_what_is_left_out(
        self, settings: CoverConfig, actions: int, seen: int, seed: int
    ) -> None:
        """The definition, action by action and member by member."""
        members = settings.members
        rng = np.random.default_rng(seed)
        scores = rng.integers(3, size=(members, actions)) / 4.0
        chosen, propensity, reward = int(rng.integers(actions)), 0.25, float(rng.random())
        row = TrainingRow(
            context={},
            actions=[Action(str(k)) for k in range(actions)],
            chosen=chosen,
            propensity=propensity,
            reward=reward,
        )
        rewards = cover_rewards(settings, scores, row, seen)
        assert rewards.shape == (members - 1, actions)
        smallest = min(1 / actions, 1 / math.sqrt(max(seen, 1) * actions))
        if settings.epsilon is not None:
            smallest = settings.epsilon / actions
        votes = [0.0] * actions
        for member in range(1, members):
            best = [k for k in range(actions) if scores[member - 1, k] == scores[member - 1].max()]
            for k in best:
                votes[k] += 1.0 / len(best) / members
            norm = sum(max(vote, smallest) for vote in votes)
            for k in range(actions):
                expected = scores[0, k]
                if k == chosen:
                    expected += (reward - scores[0, k]) / propensity
                if smallest > 0.0:
                    expected += settings.psi * smallest / (max(votes[k], smallest) / norm)
                assert rewards[member - 1, k] == pytest.approx(expected, rel=1e-12, abs=1e-12)

    def test_reckon_with_the_floor_that_is_played(self) -> None:
        """Where nobody votes, the bonus is psi times the sum of votes above the floor."""
        row = random_rows(1, n_actions=4)[0]
        scores = np.array([[3.0, 2.0, 1.0, 0.0]] * 2)
        for epsilon in (None, 0.2):
            (rewards,) = cover_rewards(config(members=2, epsilon=epsilon), scores, row, 100)
            (plain,) = cover_rewards(config(members=2, psi=0.0), scores, row, 100)
            pmf = Cover(epsilon=epsilon).pmf(
                Estimates(scores[0], members=scores), training_rows=100
            )
            floor = pmf.min()
            np.testing.assert_allclose((rewards - plain)[1:], 3 * floor + 0.5, rtol=1e-12)


class TestMembers:
    @pytest.mark.parametrize("psi", [0.0, 1.0])
    def test_the_first_is_the_ordinary_regression(self, psi: float) -> None:
        rows = random_rows(120)
        oracle = CoverOracle(config(psi=psi, learning_rate=0.3)).fit(rows)
        alone = VowpalWabbitOracle(VowpalWabbitConfig(learning_rate=0.3, encoder=ENCODER)).fit(rows)
        assert oracle.weights_ is not None
        assert alone.weights_ is not None
        assert np.array_equal(oracle.weights_[:, 0], alone.weights_)
        request = random_request(np.random.default_rng(0))
        estimates = oracle.estimate(*request, MEMBERS)
        assert estimates.members is not None
        assert estimates.mean.tobytes() == oracle.score(*request).tobytes()
        np.testing.assert_allclose(estimates.mean, alone.score(*request), rtol=1e-9)
        np.testing.assert_allclose(estimates.mean, estimates.members[0])

    def test_without_a_bonus_are_plain_cost_sensitive_learners(self) -> None:
        """``--csoaa_ldf`` on doubly robust costs, driven by hand: the same weights, bit for bit."""
        rows = rows_of_weight_one(150)
        oracle = CoverOracle(config(members=3, psi=0.0)).fit(rows)
        assert oracle.weights_ is not None
        encoder, arguments = (
            FeatureEncoder(ENCODER),
            "--quiet --csoaa_ldf m -q ca --noconstant -b 12",
        )
        first = VowpalWabbitOracle(VowpalWabbitConfig(encoder=ENCODER)).partial_fit([])
        peer: Any = vw.Workspace(arguments.split())
        for row in rows:
            rewards = first.score(row.context, row.actions)
            rewards[row.chosen] += (row.reward - rewards[row.chosen]) / row.propensity
            decision = encoder.encode(row.context, row.actions)
            shared = vw.Example()
            shared.set_label(vw.CSLabel(shared=True))
            push(shared["c"], decision.context)
            examples = [shared]
            for position, features in enumerate(decision.actions):
                example = vw.Example()
                example.set_label(vw.CSLabel(costs=[(position, -float(rewards[position]))]))
                push(example["a"], features)
                examples.append(example)
            peer.learn_one(examples)
            first.partial_fit([row])
        expected = 0.0 - peer.weights()[:, 0, 0]
        # The first member's scores are summed in another order, so costs differ in the last bit.
        for member in (1, 2):
            np.testing.assert_allclose(oracle.weights_[:, member], expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(oracle.weights_[:, 1], oracle.weights_[:, 2])
        assert np.abs(expected).max() > 0.01

    def test_without_a_bonus_vote_alike_and_with_one_do_not(self) -> None:
        rows = random_rows(400)
        alike = votes_of(CoverOracle(config(psi=0.0)).fit(rows))
        assert all(len(set(votes[1:])) == 1 for votes in alike)
        apart = votes_of(CoverOracle(config(psi=1.0)).fit(rows))
        assert sum(len(set(votes[1:])) > 1 for votes in apart) > 30

    def test_together_cover_more_actions_the_larger_the_bonus(self) -> None:
        rows = random_rows(400)
        covered = [
            np.mean([len(set(votes)) for votes in votes_of(CoverOracle(config(psi=psi)).fit(rows))])
            for psi in (0.0, 0.3, 3.0)
        ]
        assert covered[0] < covered[1] < covered[2]

    def test_a_rows_weight_counts_for_all_of_them(self) -> None:
        rows = rows_of_weight_one(60)
        heavy = [msgspec.structs.replace(row, weight=3.0) for row in rows]
        left, right = (CoverOracle(config(members=3)).fit(each).weights_ for each in (rows, heavy))
        assert left is not None
        assert right is not None
        assert all(np.abs(left - right).max(axis=0) > 0.01)

    def test_one_member_is_the_regression_alone(self) -> None:
        oracle = CoverOracle(config(members=1)).fit(random_rows(30))
        members = oracle.estimate(*random_request(np.random.default_rng(0)), MEMBERS).members
        assert members is not None
        assert members.shape == (1, 4)

    def test_are_the_same_for_the_same_rows(self) -> None:
        rows = random_rows(60)
        first, second = (CoverOracle(config()).fit(rows).weights_ for _ in range(2))
        assert first is not None
        assert second is not None
        assert first.tobytes() == second.tobytes()


class TestRefusal:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"members": 0}, r"members must be in \[1, 1000\], got 0"),
            ({"psi": -1}, "psi must be at least 0, got -1"),
            ({"psi": float("nan")}, "psi must be at least 0, got nan"),
            ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
            ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
            ({"passes": 2}, "passes"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "cover", **table}, CoverConfig)

    def test_of_too_few_rows(self) -> None:
        with pytest.raises(NotEnoughDataError):
            CoverOracle(config()).fit([])
        with pytest.raises(GenerationError, match="not fitted"):
            CoverOracle(config()).score({}, [Action("a")])

    def test_of_rows_that_cannot_be(self) -> None:
        rows = [msgspec.structs.replace(row, chosen=9) for row in random_rows(3)]
        with pytest.raises(InvalidInputError, match=r"rows\[0\]\.chosen"):
            CoverOracle(config()).fit(rows)

    def test_of_rewards_without_bound(self) -> None:
        rows = [msgspec.structs.replace(row, reward=1e39) for row in random_rows(20)]
        with pytest.raises(GenerationError, match="not finite"):
            CoverOracle(config()).fit(rows)


class TestLoop:
    def test_plays_it(self) -> None:
        table = {"exploration": {"kind": "cover"}, "oracle": {"kind": "cover", "members": 4}}
        loop = msgspec.convert(table, LoopConfig)
        oracle = CoverOracle(config(members=4)).fit(random_rows(100))
        origin = Provenance(
            parent=0,
            lake_version=0,
            code_version="0",
            loop_config="",
            seed=0,
            training_rows=100,
            created_us=0,
        )
        pmf, scores = Generation("shop", 1, loop.exploration, oracle, origin).pmf(
            *random_request(np.random.default_rng(0))
        )
        assert scores is not None
        assert pmf.sum() == pytest.approx(1.0, abs=1e-9)
        assert pmf.min() >= 1.0 / math.sqrt(4 * 100) - 1e-12

    def test_names_the_two_that_do_not_fit(self) -> None:
        message = "exploration cover needs an oracle that estimates members; auto does not"
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"exploration": {"kind": "cover"}}, LoopConfig)
