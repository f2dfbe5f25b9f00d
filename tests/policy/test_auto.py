"""The oracle that chooses by size: it is the one or the other, exactly, however it was taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import SquareCB
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    AutoOracle,
    Became,
    OutgrownError,
    RidgeConfig,
    RidgeOracle,
    TrainingRow,
    VowpalWabbitConfig,
    VowpalWabbitOracle,
    load_oracle,
    make_online_oracle,
)
from croupier.policy.oracle.moments import moments_of
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from croupier.policy.oracle import EncodedOracle

ENCODER = EncoderConfig(bits=12)
UNCERTAIN = frozenset({"deviation", "covariance"})
BEYOND = Became(kind="vowpal_wabbit")
RIDGE = RidgeConfig(l2=2.0, prior="parts", encoder=ENCODER)


def config(max_columns: int = 1000, **beyond: Any) -> AutoConfig:
    return AutoConfig(
        l2=2.0, max_columns=max_columns, encoder=ENCODER, beyond=VowpalWabbitConfig(**beyond)
    )


def ridge(rows: Sequence[TrainingRow]) -> RidgeOracle:
    return RidgeOracle(RIDGE).fit(rows)


def regression(rows: Sequence[TrainingRow], **settings: Any) -> VowpalWabbitOracle:
    return VowpalWabbitOracle(VowpalWabbitConfig(encoder=ENCODER, **settings)).fit(rows)


def assert_same(ours: EncodedOracle, theirs: EncodedOracle, tolerance: float = 0.0) -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        request = random_request(rng)
        left, right = (each.estimate(*request, UNCERTAIN) for each in (ours, theirs))
        for field in ("mean", "deviation", "covariance"):
            mine, other = getattr(left, field), getattr(right, field)
            assert (mine is None) == (other is None), field
            if mine is not None:
                np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)


ROWS = random_rows(120)
COLUMNS = len(ridge(ROWS).columns_)


class TestFit:
    def test_is_a_ridge_regression_up_to_so_many_columns_and_not_of_one_more(self) -> None:
        small = AutoOracle(config(COLUMNS)).fit(ROWS)
        assert small.became_ == Became(kind="ridge", columns=COLUMNS)
        assert_same(small, ridge(ROWS))
        large = AutoOracle(config(COLUMNS - 1)).fit(ROWS)
        assert large.became_ == BEYOND
        assert_same(large, regression(ROWS))

    def test_beyond_is_configured(self) -> None:
        oracle = AutoOracle(config(1, passes=3, learning_rate=0.1)).fit(ROWS)
        assert_same(oracle, regression(ROWS, passes=3, learning_rate=0.1))

    def test_decides_anew_every_time(self) -> None:
        oracle = AutoOracle(config(COLUMNS - 1)).fit(ROWS)
        assert oracle.fit(ROWS[:5]).became_ == Became(
            kind="ridge", columns=len(ridge(ROWS[:5]).columns_)
        )
        assert_same(oracle, ridge(ROWS[:5]))
        assert oracle.fit(ROWS).became_ == BEYOND

    def test_is_nothing_before(self) -> None:
        oracle = AutoOracle(config())
        assert oracle.became_ is None
        for ask in (oracle.score, oracle.estimate):
            with pytest.raises(GenerationError, match="not fitted"):
                ask({}, [Action("a")])

    def test_refuses_what_cannot_be(self) -> None:
        oracle = AutoOracle(config())
        with pytest.raises(NotEnoughDataError):
            oracle.fit([])
        with pytest.raises(InvalidInputError, match=r"rows\[0\].reward"):
            oracle.fit([msgspec.structs.replace(ROWS[0], reward=float("nan"))])

    def test_takes_features_of_any_size(self) -> None:
        clock = msgspec.structs.replace(ROWS[0], context={"clock": 1e25})
        oracle = AutoOracle(config()).fit([clock] * 3)
        assert np.isfinite(oracle.score(clock.context, clock.actions)).all()

    @pytest.mark.parametrize("size", [1e3, 1e12])
    def test_is_not_a_ridge_regression_of_features_of_different_sizes(self, size: float) -> None:
        """Beside an income, a flag would be taken for nothing."""
        rng = np.random.default_rng(0)
        rows = [
            TrainingRow(
                context={"income": size * float(rng.random()), "flag": float(flag)},
                actions=[Action("a")],
                chosen=0,
                propensity=1.0,
                reward=float(flag),
            )
            for flag in rng.integers(2, size=400)
        ]
        moments = moments_of(FeatureEncoder(ENCODER), rows, most=1000, parts=True)
        with pytest.raises(GenerationError, match="features of about the same size"):
            AutoOracle(config()).fit_moments(moments)
        at_once = AutoOracle(config()).fit(rows)
        row_by_row = AutoOracle(config()).partial_fit([])
        for row in rows:
            row_by_row.partial_fit([row])
        for oracle in (at_once, row_by_row):
            assert oracle.became_ == BEYOND
            scores = [
                oracle.score({"income": size / 2.0, "flag": flag}, [Action("a")])[0]
                for flag in (0.0, 1.0)
            ]
            assert scores[1] - scores[0] > 0.5


class TestOnline:
    @given(
        cuts=st.lists(st.integers(1, 120), max_size=4).map(sorted),
        room=st.sampled_from([1, COLUMNS // 2, COLUMNS - 1, COLUMNS]),
    )
    @settings(deadline=None, max_examples=40)
    def test_any_cut_of_the_rows_is_the_same_oracle(self, cuts: list[int], room: int) -> None:
        """Also where it goes over in the middle.

        But for the prior of a ridge regression, which depends on when there were how many rows.
        """
        oracle, peer = AutoOracle(config(room)), RidgeOracle(RIDGE)
        for each in (oracle, peer):
            each.partial_fit([])
            for start, end in zip([0, *cuts], [*cuts, 120], strict=True):
                each.partial_fit(ROWS[start:end])
        assert oracle.became_ == AutoOracle(config(room)).fit(ROWS).became_
        assert_same(oracle, peer if room == COLUMNS else regression(ROWS), 1e-9)

    def test_goes_on_after_a_fit_as_what_it_is(self) -> None:
        for room, peer in ((COLUMNS, RidgeOracle(RIDGE)), (1, None)):
            oracle = AutoOracle(config(room))
            for each in (oracle, peer or regression(ROWS)):
                each.fit(ROWS[:60]).partial_fit(ROWS[60:])
            assert_same(oracle, peer or regression(ROWS), 1e-9)

    def test_outgrown_after_a_fit_it_has_to_be_fitted_anew(self) -> None:
        """A ridge regression that was fitted is there alone; it stays what it was."""
        oracle, same = (AutoOracle(config(COLUMNS - 1)).fit(ROWS[:5]) for _ in range(2))
        with pytest.raises(OutgrownError, match=r"max_columns: .* or fit it anew"):
            oracle.partial_fit(ROWS[5:])
        assert_same(oracle, same)
        assert oracle.fit(ROWS).became_ == BEYOND

    def test_goes_over_for_good(self) -> None:
        """Later rows have few columns, and the ridge regression doesn't come back."""
        oracle = make_online_oracle(config(COLUMNS - 1))
        assert isinstance(oracle, AutoOracle)
        seen = []
        for row in ROWS:
            oracle.partial_fit([row])
            assert oracle.became_ is not None
            seen.append(oracle.became_.kind)
        assert seen == sorted(seen)
        assert set(seen) == {"ridge", "vowpal_wabbit"}
        assert_same(oracle, regression(ROWS))
        oracle.partial_fit([ROWS[0]] * 100)
        assert oracle.became_ == BEYOND

    def test_starts_from_the_prior(self) -> None:
        oracle = make_online_oracle(config())
        estimates = oracle.estimate({}, [Action("a"), Action("b")], UNCERTAIN)
        assert estimates.mean.tolist() == [0.0, 0.0]
        assert estimates.deviation is not None
        # The constant, the id and their product.
        np.testing.assert_allclose(estimates.deviation, np.sqrt(3.0 / 2.0))

    def test_a_row_that_cannot_be_teaches_nothing(self) -> None:
        """Not even its columns, which would take room."""
        oracle, same = (AutoOracle(config(COLUMNS)).fit(ROWS) for _ in range(2))
        foreign = msgspec.structs.replace(ROWS[0], context={"never": "seen"})
        unreadable = msgspec.structs.replace(ROWS[1], context={"x": object()})
        for bad in ([foreign, unreadable], [msgspec.structs.replace(foreign, propensity=0.0)]):
            with pytest.raises(InvalidInputError):
                oracle.partial_fit(bad)
        for each in (oracle, same):
            each.partial_fit(ROWS[:10])
        assert oracle.became_ == Became(kind="ridge", columns=COLUMNS)
        assert_same(oracle, same)


class TestFiles:
    @pytest.mark.parametrize("cut", [3, 100])
    @pytest.mark.parametrize("room", [COLUMNS // 2, COLUMNS])
    def test_goes_on_as_if_nothing_had_been(self, tmp_path: Path, cut: int, room: int) -> None:
        """As either, and from the one to the other."""
        oracle = AutoOracle(config(room)).partial_fit(ROWS[:cut])
        oracle.save(tmp_path)
        loaded = load_oracle(tmp_path, to_learn=True)
        assert isinstance(loaded, AutoOracle)
        assert loaded.became_ == oracle.became_
        assert_same(loaded, oracle)
        for each in (oracle, loaded):
            each.partial_fit(ROWS[cut : cut + 5])
            each.partial_fit(ROWS[cut + 5 :])
        assert loaded.became_ == oracle.became_ == AutoOracle(config(room)).fit(ROWS).became_
        assert_same(loaded, oracle)

    @pytest.mark.parametrize(
        ("to_learn", "beyond"), [(False, {}), (True, {"cb_type": "dr"}), (True, {"l2": 1e-3})]
    )
    def test_beyond_without_a_learner_it_is_not_taught_but_fitted_anew(
        self, tmp_path: Path, to_learn: bool, beyond: dict[str, Any]
    ) -> None:
        AutoOracle(config(1, **beyond)).fit(ROWS).save(tmp_path)
        loaded = load_oracle(tmp_path, to_learn=to_learn)
        assert isinstance(loaded, AutoOracle)
        for rows in ([], ROWS[:3]):
            with pytest.raises(GenerationError, match="loaded without its learner; fit it anew"):
                loaded.partial_fit(rows)
        assert_same(loaded, AutoOracle(config(1, **beyond)).fit(ROWS))
        assert_same(loaded.fit(ROWS[:60]), AutoOracle(config(1, **beyond)).fit(ROWS[:60]), 1e-9)

    def test_without_a_learner_a_ridge_regression_goes_on_while_there_is_room(
        self, tmp_path: Path
    ) -> None:
        AutoOracle(config(COLUMNS - 1)).partial_fit(ROWS[:5]).save(tmp_path)
        loaded = load_oracle(tmp_path)
        assert isinstance(loaded, AutoOracle)
        expected = RidgeOracle(RIDGE).partial_fit(ROWS[:5]).partial_fit(ROWS[:3])
        assert_same(loaded.partial_fit(ROWS[:3]), expected, 1e-9)
        with pytest.raises(OutgrownError):
            loaded.partial_fit(ROWS[5:])

    def test_that_do_not_say_what_it_is_are_refused(self, tmp_path: Path) -> None:
        AutoOracle(config()).fit(ROWS).save(tmp_path)
        told = tmp_path / "became.json"
        for damage in (b"", b"{}", b'{"kind": "sklearn"}', told.read_bytes()[:-1]):
            told.write_bytes(damage)
            with pytest.raises(GenerationError, match="can't be read"):
                load_oracle(tmp_path)
        told.unlink()
        with pytest.raises(GenerationError, match="can't be read"):
            load_oracle(tmp_path)

    def test_of_the_other_kind_are_refused(self, tmp_path: Path) -> None:
        AutoOracle(config(1)).fit(ROWS).save(tmp_path)
        (tmp_path / "became.json").write_text('{"kind": "ridge", "columns": 3}')
        with pytest.raises(GenerationError, match="can't be read"):
            load_oracle(tmp_path)


class TestTowards:
    @pytest.mark.parametrize("room", [1, 1000])
    def test_goes_from_one_to_another_that_became_the_same(self, room: int) -> None:
        one = AutoOracle(config(room)).fit(ROWS)
        other = AutoOracle(config(room)).fit(random_rows(50, seed=9))
        assert one.goes_with(other)
        between = one.towards(other, 0.5)
        assert between.became_ is not None
        assert one.became_ is not None
        assert between.became_.kind == one.became_.kind
        request = random_request(np.random.default_rng(4))
        middle = (one.score(*request) + other.score(*request)) / 2.0
        np.testing.assert_allclose(between.score(*request), middle, atol=1e-6)

    def test_does_not_go_from_a_small_one_to_a_large_one(self) -> None:
        small = AutoOracle(config(COLUMNS - 1)).fit(ROWS[:5])
        large = AutoOracle(config(COLUMNS - 1)).fit(ROWS)
        fresh = AutoOracle(config(COLUMNS - 1))
        for one, other in ((small, large), (large, small), (fresh, small), (fresh, fresh)):
            assert not one.goes_with(other)
            with pytest.raises(GenerationError, match="of the same configuration"):
                one.towards(other, 0.5)


class TestConfiguration:
    def test_encoder_is_that_of_both(self) -> None:
        auto = AutoConfig(encoder=ENCODER, max_columns=7, l2=3.0)
        assert auto.ridge == RidgeConfig(l2=3.0, prior="parts", max_columns=7, encoder=ENCODER)
        assert auto.vowpal_wabbit == VowpalWabbitConfig(encoder=ENCODER)
        same = AutoConfig(encoder=ENCODER, beyond=VowpalWabbitConfig(encoder=ENCODER))
        assert same.vowpal_wabbit == auto.vowpal_wabbit

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"l2": 0.0}, "l2 must be positive, got 0"),
            ({"max_columns": 0}, r"max_columns must be in \[1, 20000\], got 0"),
            ({"max_columns": 20_001}, r"max_columns must be in \[1, 20000\], got 20001"),
            ({"beyond": {"kind": "sklearn"}}, r"\$\.beyond"),
            ({"beyond": {"kind": "vowpal_wabbit", "passes": 0}}, r"passes.*\$\.beyond"),
            (
                {"beyond": {"kind": "vowpal_wabbit", "encoder": {"bits": 12}}},
                "beyond.encoder must be left out",
            ),
            ({"columns": 3}, "unknown field `columns`"),
        ],
        ids=str,
    )
    def test_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "auto", **table}, AutoConfig)

    def test_goes_with_explorations_that_can_do_without_deviations(self) -> None:
        loop = LoopConfig(exploration=SquareCB(optimism=0.01), oracle=AutoConfig())
        assert loop.exploration.wants == {"deviation"}
        for kind, missing in (("regcb", "deviation"), ("thompson", "covariance")):
            with pytest.raises(msgspec.ValidationError, match=f"{missing}; auto does not"):
                msgspec.convert(
                    {"exploration": {"kind": kind}, "oracle": {"kind": "auto"}}, LoopConfig
                )

    @pytest.mark.parametrize("weighting", ["ips", "mtr"])
    def test_is_not_weighed_for_propensities_twice(self, weighting: str) -> None:
        table = {"oracle": {"kind": "auto"}, "training": {"weighting": weighting}}
        with pytest.raises(msgspec.ValidationError, match="auto corrects for propensities"):
            msgspec.convert(table, LoopConfig)
