"""Learning row by row: the same oracle as in batch, from nothing if need be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.events import Action
from croupier.policy.exploration import (
    Bagging,
    Cover,
    EpsilonGreedy,
    Exploration,
    RegCB,
    SquareCB,
    Thompson,
)
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    BootstrapOracle,
    CoverConfig,
    CoverOracle,
    RidgeConfig,
    RidgeOracle,
    SklearnConfig,
    TrainingRow,
    VowpalWabbitConfig,
    VowpalWabbitOracle,
    load_oracle,
    make_online_oracle,
    make_oracle,
)
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.oracle import OracleConfig

Online: TypeAlias = VowpalWabbitOracle | RidgeOracle | BootstrapOracle | CoverOracle
OnlineConfig: TypeAlias = VowpalWabbitConfig | RidgeConfig | BootstrapConfig | CoverConfig

ENCODER = EncoderConfig(bits=11)
# Ridge has its own tests of this, as its numbers are the same up to rounding only.
BIT_FOR_BIT: dict[str, VowpalWabbitConfig | BootstrapConfig | CoverConfig] = {
    "mtr": VowpalWabbitConfig(encoder=ENCODER),
    "ips": VowpalWabbitConfig(cb_type="ips", encoder=ENCODER),
    "dr": VowpalWabbitConfig(cb_type="dr", encoder=ENCODER),
    "l2": VowpalWabbitConfig(l2=1e-3, encoder=ENCODER),
    "bootstrap": BootstrapConfig(members=4, base=VowpalWabbitConfig(encoder=ENCODER)),
    "bootstrap of dr": BootstrapConfig(
        members=3, base=VowpalWabbitConfig(cb_type="dr", encoder=ENCODER)
    ),
    "bootstrap with l2": BootstrapConfig(
        members=3, base=VowpalWabbitConfig(l2=1e-3, encoder=ENCODER)
    ),
    "cover": CoverConfig(members=3, encoder=ENCODER),
}
RESUMED: dict[str, VowpalWabbitConfig | BootstrapConfig | CoverConfig] = {
    "mtr": BIT_FOR_BIT["mtr"],
    "ips": BIT_FOR_BIT["ips"],
    "bootstrap": BIT_FOR_BIT["bootstrap"],
    "cover": BIT_FOR_BIT["cover"],
    "passes": VowpalWabbitConfig(passes=3, learning_rate=0.2, power_t=0.3, encoder=ENCODER),
}
ALL: dict[str, OnlineConfig] = {**BIT_FOR_BIT, "ridge": RidgeConfig(encoder=ENCODER)}

kinds = pytest.mark.parametrize("kind", ALL)


def weights_of(oracle: Online) -> bytes:
    assert oracle.weights_ is not None
    return oracle.weights_.tobytes()


class TestBatch:
    @pytest.mark.parametrize("kind", BIT_FOR_BIT)
    @given(cuts=st.lists(st.integers(0, 130), max_size=4).map(sorted), from_nothing=st.booleans())
    @settings(deadline=None, max_examples=10)
    def test_any_cut_of_the_rows_gives_the_same_weights(
        self, kind: str, cuts: list[int], from_nothing: bool
    ) -> None:
        rows = random_rows(130)
        if not from_nothing:
            cuts = [max(cut, 1) for cut in cuts]
        oracle = make_oracle(BIT_FOR_BIT[kind], random_state=3)
        for start, end in zip([0, *cuts], [*cuts, 130], strict=True):
            if start == 0 and end > 0 and not from_nothing and oracle.weights_ is None:
                oracle.fit(rows[:end])
            else:
                oracle.partial_fit(rows[start:end])
        batch = make_oracle(BIT_FOR_BIT[kind], random_state=3).fit(rows)
        assert weights_of(oracle) == weights_of(batch)

    @pytest.mark.parametrize("kind", BIT_FOR_BIT)
    def test_row_by_row_is_all_at_once_at_every_row(self, kind: str) -> None:
        rows = random_rows(25)
        oracle = make_oracle(BIT_FOR_BIT[kind])
        for end, row in enumerate(rows, 1):
            oracle.partial_fit([row])
            assert weights_of(oracle) == weights_of(make_oracle(BIT_FOR_BIT[kind]).fit(rows[:end]))

    @kinds
    def test_a_second_fit_forgets_what_was_taught(self, kind: str) -> None:
        rows = random_rows(40)
        oracle = make_oracle(ALL[kind]).fit(rows[:20]).partial_fit(rows[20:])
        assert weights_of(oracle.fit(rows[:20])) == weights_of(
            make_oracle(ALL[kind]).fit(rows[:20])
        )


class TestStart:
    @kinds
    def test_scores_are_0_until_there_are_rows(self, kind: str) -> None:
        oracle = make_oracle(ALL[kind])
        request = random_request(np.random.default_rng(0))
        with pytest.raises(GenerationError, match="not fitted"):
            oracle.estimate(*request)
        assert oracle.partial_fit([]) is oracle
        estimates = oracle.estimate(*request, ALL[kind].offers)
        assert estimates.mean.tolist() == [0.0] * 4
        if estimates.members is not None:
            assert not estimates.members.any()
        row = random_rows(1)[0]
        oracle.partial_fit([row])
        assert oracle.score(row.context, row.actions)[row.chosen] != 0.0

    @kinds
    def test_nothing_to_learn_changes_nothing(self, kind: str) -> None:
        oracle = make_oracle(ALL[kind]).fit(random_rows(30))
        before = weights_of(oracle)
        assert weights_of(oracle.partial_fit([])) == before

    @kinds
    def test_is_one_call(self, kind: str) -> None:
        oracle = make_online_oracle(ALL[kind], random_state=3)
        row = random_rows(1)[0]
        assert oracle.score(row.context, row.actions).tolist() == [0.0] * 4
        by_hand = make_oracle(ALL[kind], random_state=3).partial_fit([row])
        taught = oracle.partial_fit([row]).score(row.context, row.actions)
        assert taught.tobytes() == by_hand.score(row.context, row.actions).tobytes()

    def test_configurations_say_who_can(self) -> None:
        assert all(config.learns_online for config in ALL.values())
        for config, name in (
            (SklearnConfig(), "sklearn"),
            (BootstrapConfig(base=SklearnConfig()), "bootstrap of sklearn"),
        ):
            assert not config.learns_online
            with pytest.raises(InvalidInputError, match=f"oracle: .* learns online .* got {name}"):
                make_online_oracle(config)


class TestResuming:
    @pytest.mark.parametrize("kind", RESUMED)
    @pytest.mark.parametrize("cut", [1, 60])
    def test_goes_on_bit_for_bit(self, tmp_path: Path, kind: str, cut: int) -> None:
        """Saved and read back between one row and the next, as if nothing had been."""
        rows = random_rows(130)
        oracle = make_oracle(RESUMED[kind], random_state=3).fit(rows[:cut])
        oracle.save(tmp_path)
        loaded = load_oracle(tmp_path, to_learn=True)
        assert isinstance(loaded, VowpalWabbitOracle | BootstrapOracle | CoverOracle)
        for each in (oracle, loaded):
            # A few rows are read out one by one, many all at once.
            each.partial_fit(rows[cut : cut + 5]).partial_fit(rows[cut + 5 :])
        assert weights_of(loaded) == weights_of(oracle)
        if isinstance(loaded, VowpalWabbitOracle) and loaded.config.passes == 1:
            assert weights_of(loaded) == weights_of(
                make_oracle(RESUMED[kind], random_state=3).fit(rows)
            )

    @pytest.mark.parametrize("kind", RESUMED)
    def test_is_saved_again_as_it_was(self, tmp_path: Path, kind: str) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        make_oracle(RESUMED[kind]).fit(random_rows(60)).save(first)
        load_oracle(first, to_learn=True).save(second)
        assert {path.name: path.read_bytes() for path in first.iterdir()} == {
            path.name: path.read_bytes() for path in second.iterdir()
        }

    def test_of_damaged_learners_is_refused(self, tmp_path: Path) -> None:
        make_oracle(RESUMED["mtr"]).fit(random_rows(60)).save(tmp_path)
        file = tmp_path / "learners.npz"
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        file.write_bytes(damaged)
        with pytest.raises(GenerationError, match="can't be read"):
            load_oracle(tmp_path, to_learn=True)
        # Whoever doesn't learn doesn't look.
        assert isinstance(load_oracle(tmp_path), VowpalWabbitOracle)


class TestRefusal:
    @kinds
    def test_of_a_row_that_cannot_be_learns_none_of_them(self, kind: str) -> None:
        rows = random_rows(30)
        oracle = make_oracle(ALL[kind]).fit(rows)
        before = weights_of(oracle)
        for change in ({"reward": float("inf")}, {"context": {"x": object()}}):
            bad = [rows[0], msgspec.structs.replace(rows[1], **change)]
            with pytest.raises(InvalidInputError):
                oracle.partial_fit(bad)
        assert weights_of(oracle) == before
        after = make_oracle(ALL[kind]).fit(rows).partial_fit(rows[:5])
        assert weights_of(oracle.partial_fit(rows[:5])) == weights_of(after)

    @pytest.mark.parametrize("kind", BIT_FOR_BIT)
    def test_of_an_oracle_that_was_loaded_to_score(self, tmp_path: Path, kind: str) -> None:
        """Vowpal Wabbit's model doesn't hold all of it under ``dr`` and with a ridge penalty."""
        make_oracle(BIT_FOR_BIT[kind]).fit(random_rows(30)).save(tmp_path)
        loaded = load_oracle(tmp_path, to_learn=kind not in RESUMED)
        assert isinstance(loaded, VowpalWabbitOracle | BootstrapOracle | CoverOracle)
        with pytest.raises(
            GenerationError, match=r"can't learn online: it was loaded without.*fit it anew"
        ):
            loaded.partial_fit(random_rows(3))
        assert loaded.fit(random_rows(3)).partial_fit(random_rows(3)) is loaded

    def test_of_a_base_that_learns_in_batches_only(self) -> None:
        oracle = BootstrapOracle(BootstrapConfig(base=SklearnConfig()))
        with pytest.raises(GenerationError, match="can't learn online: scikit-learn's"):
            oracle.partial_fit(random_rows(3))

    # With a penalty, Vowpal Wabbit forgets the weights that such a reward makes.
    @pytest.mark.parametrize("kind", [kind for kind in BIT_FOR_BIT if "l2" not in kind])
    def test_of_weights_that_are_not_finite(self, kind: str) -> None:
        oracle = make_oracle(BIT_FOR_BIT[kind]).partial_fit([])
        rows = [msgspec.structs.replace(row, reward=1e39) for row in random_rows(60)]
        with pytest.raises(GenerationError, match="not finite"):  # noqa: PT012
            for row in rows:
                oracle.partial_fit([row])


class TestLoop:
    @pytest.mark.parametrize(
        ("config", "exploration"),
        [
            (RidgeConfig(encoder=ENCODER), Thompson(scale=0.3, samples=200)),
            (RidgeConfig(encoder=ENCODER), RegCB(mellowness=0.01)),
            (AutoConfig(encoder=ENCODER), SquareCB(gamma_scale=100.0, optimism=0.01)),
            # It goes over after the first decisions, and does without deviations from then on.
            (AutoConfig(max_columns=8, encoder=ENCODER), SquareCB(optimism=0.01)),
            (ALL["bootstrap"], Bagging(floor=0.02)),
            (ALL["cover"], Cover()),
            (ALL["mtr"], EpsilonGreedy(epsilon=0.1)),
        ],
        ids=[
            "thompson",
            "regcb",
            "optimism",
            "optimism, beyond",
            "bagging",
            "cover",
            "epsilon-greedy",
        ],
    )
    def test_learns_from_nothing(self, config: OracleConfig, exploration: Exploration) -> None:
        """Two kinds of users, each with an action of its own out of four, and rewards of 0 and 1.

        Uniform play earns 0.35 a decision and the best policy 0.8. 0.46 over the second half of 400
        decisions is six standard errors above uniform.
        """
        rng = np.random.default_rng(1)
        actions = [Action(name) for name in "abcd"]
        oracle = make_online_oracle(config)
        earned = []
        for seen in range(400):
            kind = int(rng.integers(2))
            context: dict[str, Any] = {"kind": "xy"[kind]}
            estimates = oracle.estimate(context, actions, exploration.wants)
            pmf = exploration.pmf(estimates, training_rows=seen)
            chosen = int(rng.choice(4, p=pmf))
            reward = float(rng.random() < (0.8 if chosen == kind else 0.2))
            oracle.partial_fit(
                [
                    TrainingRow(
                        context=context,
                        actions=actions,
                        chosen=chosen,
                        propensity=float(pmf[chosen]),
                        reward=reward,
                    )
                ]
            )
            earned.append(0.8 if chosen == kind else 0.2)
        assert np.mean(earned[200:]) > 0.46
