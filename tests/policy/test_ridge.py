"""The ridge oracle's posterior: against closed forms, scikit-learn and worlds that it describes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import Conservative, RegCB, Thompson
from croupier.policy.generation import Generation
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    RidgeConfig,
    RidgeOracle,
    SklearnConfig,
    SklearnOracle,
    TrainingRow,
    load_oracle,
)
from croupier.policy.oracle.moments import Moments, designs_of, moments_of
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.estimates import Estimates

BITS = 10
ENCODER = EncoderConfig(bits=BITS)
BOTH = frozenset({"deviation", "covariance"})


def config(l2: float = 1.0, **settings: Any) -> RidgeConfig:
    return RidgeConfig(l2=l2, encoder=ENCODER, **settings)


def columns_of(context: dict[str, Any], actions: Sequence[Action]) -> NDArray[np.float64]:
    """All 2^10 columns of every action, built without the oracle's code."""
    encoder = FeatureEncoder(ENCODER)
    decision = encoder.encode(context, actions)
    matrix = np.zeros((len(actions), 1 << BITS))
    for line, action in zip(matrix, decision.actions, strict=True):
        columns = encoder.columns(decision.context, action)
        np.add.at(line, columns.indices.astype(np.int64), columns.values)
    return matrix


def chosen_columns(rows: Sequence[TrainingRow]) -> NDArray[np.float64]:
    return np.stack([columns_of(row.context, row.actions)[row.chosen] for row in rows])


class ByHand:
    """The textbook's formulas on all columns."""

    def __init__(self, rows: Sequence[TrainingRow], l2: float | NDArray[np.float64]) -> None:
        """`l2` is one precision, or one for every column."""
        matrix = chosen_columns(rows)
        weights = np.array([row.weight for row in rows])
        rewards = np.array([row.reward for row in rows])
        precision = np.diag(np.full(1 << BITS, l2)) + matrix.T @ (weights[:, None] * matrix)
        self.inverse = np.linalg.inv(precision)
        self.weights = np.linalg.solve(precision, matrix.T @ (weights * rewards))

    def mean(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(columns @ self.weights)

    def covariance(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(columns @ self.inverse @ columns.T)


def strange_request(rng: np.random.Generator) -> tuple[dict[str, Any], list[Action]]:
    """A request with features and actions that never occurred, some of them shared."""
    context, actions = random_request(rng)
    context["season"] = "winter"
    return context, [*actions, Action("new", {"x": 1.5, "size": 2.0}), Action("newer")]


def assert_posterior(estimates: Estimates, expected: ByHand, columns: NDArray[Any]) -> None:
    covariance = expected.covariance(columns)
    assert estimates.deviation is not None
    assert estimates.covariance is not None
    np.testing.assert_allclose(estimates.mean, expected.mean(columns), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(estimates.covariance, covariance, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(estimates.deviation, np.sqrt(np.diag(covariance)), rtol=1e-8)


class TestPosterior:
    @pytest.mark.parametrize("l2", [1e-3, 1.0, 100.0])
    @pytest.mark.parametrize("n", [1, 10, 300])
    def test_is_the_textbooks(self, l2: float, n: int) -> None:
        rows = random_rows(n, seed=n)
        oracle, expected = RidgeOracle(config(l2)).fit(rows), ByHand(rows, l2)
        rng = np.random.default_rng(0)
        for request in [random_request(rng), random_request(rng), strange_request(rng)]:
            assert_posterior(oracle.estimate(*request, BOTH), expected, columns_of(*request))

    def test_is_scikit_learns(self) -> None:
        """Of BayesianRidge the covariance too, under the precisions that it settles on."""
        from sklearn.linear_model import BayesianRidge  # noqa: PLC0415

        rows = [msgspec.structs.replace(row, weight=1.0) for row in random_rows(120)]
        matrix, rewards = chosen_columns(rows), np.array([row.reward for row in rows])
        used = np.flatnonzero(matrix.any(axis=0))
        peer = BayesianRidge(fit_intercept=False).fit(matrix[:, used], rewards)
        oracle = RidgeOracle(config(peer.lambda_ / peer.alpha_)).fit(rows)
        columns = chosen_columns(rows[:20])[:, used]
        mean, deviation = peer.predict(columns, return_std=True)
        for row, expected, spread in zip(rows[:20], mean, deviation, strict=True):
            estimates = oracle.estimate(row.context, row.actions, frozenset({"deviation"}))
            assert estimates.deviation is not None
            assert estimates.mean[row.chosen] == pytest.approx(expected, abs=1e-8)
            # Theirs is of a reward, with its noise; ours of the mean, in units of the noise.
            noise = 1.0 / peer.alpha_
            ours = noise * estimates.deviation[row.chosen] ** 2 + noise
            assert math.sqrt(ours) == pytest.approx(spread, rel=1e-8)

    def test_has_the_mean_of_the_sklearn_oracle(self) -> None:
        rows = random_rows(200)
        params = {"alpha": 2.0, "solver": "cholesky"}
        peer = SklearnOracle(SklearnConfig(params=params, encoder=ENCODER)).fit(rows)
        oracle = RidgeOracle(config(2.0)).fit(rows)
        rng = np.random.default_rng(1)
        for _ in range(10):
            request = random_request(rng)
            # Theirs is a table of float32.
            np.testing.assert_allclose(oracle.score(*request), peer.score(*request), atol=1e-5)

    def test_a_rows_weight_counts_as_that_many_rows(self) -> None:
        rows = [msgspec.structs.replace(row, weight=1.0) for row in random_rows(60)]
        heavy = [msgspec.structs.replace(row, weight=3.0) for row in rows]
        left, right = (RidgeOracle(config()).fit(each) for each in (rows * 3, heavy))
        assert_same(left, right, 1e-10)

    def test_does_not_depend_on_the_order_of_rows(self) -> None:
        rows = random_rows(80)
        left, right = (RidgeOracle(config()).fit(each) for each in (rows, rows[::-1]))
        assert_same(left, right, 1e-10)

    def test_knows_of_unseen_columns_only_the_prior(self) -> None:
        rows = random_rows(50)
        oracle = RidgeOracle(config(4.0)).fit(rows)
        row = TrainingRow(context={}, actions=[Action("a0")], chosen=0, propensity=1.0, reward=0.0)
        alone = RidgeOracle(config(4.0)).fit([row])
        # A constant that was seen, an id that wasn't and their product.
        estimates = alone.estimate({}, [Action("b"), Action("c")], BOTH)
        assert estimates.covariance is not None
        shared = 1.0 / (4.0 + 3.0) * (1.0 + 2.0 / 4.0)
        np.testing.assert_allclose(estimates.covariance, shared + 2.0 / 4.0 * np.eye(2), rtol=1e-12)
        assert oracle.columns_.size > alone.columns_.size

    def test_gives_only_what_is_needed(self) -> None:
        oracle = RidgeOracle(config()).fit(random_rows(50))
        request = random_request(np.random.default_rng(0))
        plain = oracle.estimate(*request)
        assert plain.deviation is None
        assert plain.covariance is None
        assert plain.mean.tobytes() == oracle.score(*request).tobytes()
        wide = oracle.estimate(*request, frozenset({"covariance"}))
        assert wide.deviation is None
        assert wide.covariance is not None
        narrow = oracle.estimate(*request, frozenset({"deviation", "members"}))
        assert narrow.covariance is None
        assert narrow.members is None
        assert narrow.deviation is not None
        np.testing.assert_allclose(narrow.deviation**2, np.diag(wide.covariance), rtol=1e-10)

    def test_covers_the_truth_as_often_as_it_says(self) -> None:
        """Worlds drawn from the prior: errors, whitened by their covariance, are standard normal.

        Their squares over 200 worlds with 3 actions each are chi-squared with 600 degrees of
        freedom; the limits are passed by chance once in a million, and by variances off by 40 %.
        """
        rng = np.random.default_rng(5)
        l2, worlds, squares = 2.0, 200, 0.0
        base = random_rows(15, seed=3)
        columns = chosen_columns(base)
        for world in range(worlds):
            truth = rng.normal(size=1 << BITS) / math.sqrt(l2)
            rows = [
                msgspec.structs.replace(
                    row, reward=float(line @ truth + rng.normal() / math.sqrt(row.weight))
                )
                for row, line in zip(base, columns, strict=True)
            ]
            oracle = RidgeOracle(config(l2)).fit(rows)
            request = random_request(np.random.default_rng(world), 3)
            estimates = oracle.estimate(*request, BOTH)
            assert estimates.covariance is not None
            error = columns_of(*request) @ truth - estimates.mean
            squares += float(error @ np.linalg.solve(estimates.covariance, error))
        low, high = (float(stats.chi2.ppf(p, 3 * worlds)) for p in (5e-7, 1 - 5e-7))
        assert low < squares < high
        assert not low < 1.4 * squares < high


def assert_same(left: RidgeOracle, right: RidgeOracle, tolerance: float) -> None:
    rng = np.random.default_rng(9)
    for request in [random_request(rng), random_request(rng), strange_request(rng)]:
        ours, theirs = (each.estimate(*request, BOTH) for each in (left, right))
        for field in ("mean", "deviation", "covariance"):
            np.testing.assert_allclose(
                getattr(ours, field), getattr(theirs, field), rtol=tolerance, atol=tolerance
            )


def precisions_by_hand(
    rows: Sequence[TrainingRow], l2: float, asked: Sequence[tuple[Any, Any]] = ()
) -> NDArray[np.float64]:
    """The prior of parts on all columns, each told by what it is made of.

    Rows settle how precise parts are; columns that occur in the requests alone are told apart too.
    """
    encoder, part_of = FeatureEncoder(ENCODER), np.full(1 << BITS, 9)
    sums, total = np.zeros(4), 0.0
    chosen = [(row.context, [row.actions[row.chosen]]) for row in rows]
    for context, actions in [*chosen, *asked]:
        decision = encoder.encode(context, actions)
        for action in decision.actions:
            # The constant and the id are number 0, and so is what isn't there.
            shared, own = range(len(decision.context.indices)), range(len(action.indices))
            names = [(i, 0) for i in shared] + [(0, j) for j in own]
            names += [(i, j) for j in own for i in shared]
            columns = encoder.columns(decision.context, action).indices.tolist()
            for column, (i, j) in zip(columns, names, strict=True):
                part = (1 if i else 0) + (2 if j else 0)
                part_of[column] = min(part_of[column], part)
    for row, (context, actions) in zip(rows, chosen, strict=True):
        decision = encoder.encode(context, actions)
        width = sum(float(value) ** 2 for value in decision.context.values[1:])
        height = sum(float(value) ** 2 for value in decision.actions[0].values[1:])
        sums += row.weight * np.array([1.0, width, height, width * height])
        total += row.weight
    # What occurs nowhere is of no part, and any precision will do.
    return np.asarray(np.append(l2 * sums / total, np.ones(6))[part_of])


def plain_rows(n: int, seed: int) -> list[TrainingRow]:
    """Few features, of which no two share a column, nor do their products."""
    rng = np.random.default_rng(seed)
    return [
        TrainingRow(
            context={"x": float(rng.normal()), "z": float(rng.normal())},
            actions=[Action(name, {"y": float(rng.normal())}) for name in "abc"],
            chosen=int(rng.integers(3)),
            propensity=1 / 3,
            reward=float(rng.random()),
        )
        for _ in range(n)
    ]


class TestPriorOfParts:
    @pytest.mark.parametrize("l2", [0.1, 10.0])
    def test_is_the_textbooks(self, l2: float) -> None:
        rows, rng = random_rows(200, seed=3), np.random.default_rng(0)
        oracle = RidgeOracle(config(l2, prior="parts")).fit(rows)
        for request in [random_request(rng), random_request(rng)]:
            expected = ByHand(rows, precisions_by_hand(rows, l2, [request]))
            assert_posterior(oracle.estimate(*request, BOTH), expected, columns_of(*request))

    def test_knows_of_unseen_columns_only_the_prior(self) -> None:
        rows = plain_rows(30, seed=3)
        oracle = RidgeOracle(config(prior="parts")).fit(rows)
        request = {"x": 0.7, "w": -2.0}, [Action("a", {"y": 1.0}), Action("d", {"u": 3.0})]
        expected = ByHand(rows, precisions_by_hand(rows, 1.0, [request]))
        assert_posterior(oracle.estimate(*request, BOTH), expected, columns_of(*request))

    @pytest.mark.parametrize("at_once", [True, False])
    def test_units_make_no_difference(self, at_once: bool) -> None:
        rows = [
            msgspec.structs.replace(row, context={"v": row.context["v"]})
            for row in random_rows(80, seed=5)
        ]
        thousands = [
            msgspec.structs.replace(row, context={"v": [1000.0 * v for v in row.context["v"]]})
            for row in rows
        ]
        found = []
        for each in (rows, thousands):
            oracle = RidgeOracle(config(0.3, prior="parts")).partial_fit([])
            for start in range(0, 80, 80 if at_once else 1):
                oracle.partial_fit(each[start : start + (80 if at_once else 1)])
            request = each[7].context, each[7].actions
            found.append(oracle.estimate(*request, BOTH))
        np.testing.assert_allclose(found[0].mean, found[1].mean, rtol=1e-5, atol=1e-6)
        assert found[0].covariance is not None
        assert found[1].covariance is not None
        np.testing.assert_allclose(found[0].covariance, found[1].covariance, rtol=1e-4)

    def test_more_features_do_not_make_the_prior_wider(self) -> None:
        """A hundred columns of noise: before any data of an action, its variance is that of four
        parts, three of which occur here."""
        rng, widths = np.random.default_rng(0), []
        for features in (1, 100):
            rows = [
                TrainingRow(
                    context={"v": rng.normal(size=features).tolist()},
                    actions=[Action("a"), Action("b")],
                    chosen=0,
                    propensity=1.0,
                    reward=0.5,
                )
                for _ in range(50)
            ]
            oracle = RidgeOracle(config(prior="parts")).fit(rows)
            estimates = [oracle.estimate(row.context, row.actions, BOTH) for row in rows]
            widths.append(
                np.mean([each.deviation[1] for each in estimates if each.deviation is not None])
            )
        # The constants' two of b's own, the context's by itself and with b's id.
        assert 1.0 < widths[0] < 2.1
        assert 1.0 < widths[1] < 2.1

    def test_row_by_row_the_prior_is_that_of_some_of_the_rows(self) -> None:
        """Of those that there were when they had last become half as many again."""
        rows = plain_rows(60, seed=6)
        oracle = RidgeOracle(config(0.5, prior="parts")).partial_fit([])
        for row in rows:
            oracle.partial_fit([row])
        renewed = 1
        while math.ceil(1.5 * renewed) <= 60:
            renewed = math.ceil(1.5 * renewed)
        request = rows[11].context, rows[11].actions
        expected = ByHand(rows, precisions_by_hand(rows[:renewed], 0.5, [request]))
        assert_posterior(oracle.estimate(*request, BOTH), expected, columns_of(*request))

    def test_goes_on_after_being_loaded(self, tmp_path: Path) -> None:
        rows = random_rows(90)
        settings = config(0.2, prior="parts")
        straight = RidgeOracle(settings).fit(rows[:30])
        straight.save(tmp_path)
        loaded = load_oracle(tmp_path)
        assert isinstance(loaded, RidgeOracle)
        assert_same(loaded, straight, 1e-12)
        assert_same(loaded.partial_fit(rows[30:]), straight.partial_fit(rows[30:]), 1e-12)

    def test_does_not_load_what_cannot_be(self) -> None:
        oracle = RidgeOracle(config(prior="parts")).fit(random_rows(20))
        arrays = dict(oracle.arrays())
        for name, wrong in {
            "parts": arrays["parts"] + np.uint8(4),
            "precisions": -arrays["precisions"],
            "norms": -arrays["norms"],
        }.items():
            with pytest.raises((GenerationError, ValueError), match=r"expected|precisions"):
                RidgeOracle(config(prior="parts")).restore(arrays | {name: wrong})


class TestOnline:
    @given(
        cuts=st.lists(st.integers(0, 60), max_size=4).map(sorted),
        seed=st.integers(0, 1000),
        l2=st.sampled_from([0.1, 1.0, 10.0]),
    )
    @settings(deadline=None, max_examples=30)
    def test_any_cut_of_the_rows_gives_the_same_posterior(
        self, cuts: list[int], seed: int, l2: float
    ) -> None:
        rows = random_rows(60, seed=seed)
        oracle = RidgeOracle(config(l2)).partial_fit([])
        for start, end in zip([0, *cuts], [*cuts, 60], strict=True):
            oracle.partial_fit(rows[start:end])
        assert_same(oracle, RidgeOracle(config(l2)).fit(rows), 1e-9)

    def test_row_by_row_is_all_at_once(self) -> None:
        rows = random_rows(250, seed=4)
        oracle = RidgeOracle(config()).fit(rows[:50])
        for row in rows[50:]:
            oracle.partial_fit([row])
        assert_same(oracle, RidgeOracle(config()).fit(rows), 1e-9)

    def test_starts_from_the_prior(self) -> None:
        oracle = RidgeOracle(config(4.0)).partial_fit([])
        estimates = oracle.estimate({}, [Action("a"), Action("b")], BOTH)
        assert estimates.mean.tolist() == [0.0, 0.0]
        assert estimates.covariance is not None
        # The constant is shared, the id and its product with the constant are not.
        np.testing.assert_allclose(estimates.covariance, [[0.75, 0.25], [0.25, 0.75]])

    def test_rounding_does_not_build_up(self) -> None:
        """Thousands of nearly equal rows of great weight under a small penalty.

        The posterior's precisions span eleven orders of magnitude.
        """
        rng = np.random.default_rng(0)
        actions = [Action("a"), Action("b")]
        rows = [
            TrainingRow(
                context={"x": 1.0, "y": 1.0 + float(1e-3 * rng.normal())},
                actions=actions,
                chosen=i % 2,
                propensity=0.5,
                reward=float(rng.random()),
                weight=1000.0,
            )
            for i in range(3000)
        ]
        oracle = RidgeOracle(config(1e-5)).partial_fit([])
        for row in rows:
            oracle.partial_fit([row])
        batch = RidgeOracle(config(1e-5)).fit(rows)
        request = {"x": 1.0, "y": 1.0}, actions
        ours, theirs = (each.estimate(*request, BOTH) for each in (oracle, batch))
        assert ours.deviation is not None
        assert theirs.deviation is not None
        assert ours.covariance is not None
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6)
        np.testing.assert_allclose(ours.deviation, theirs.deviation, rtol=1e-6)
        # 1500 rows of weight 1000 each.
        np.testing.assert_allclose(ours.deviation, 1.0 / math.sqrt(1500 * 1000), rtol=0.01)
        assert np.linalg.eigvalsh(ours.covariance).min() >= 0.0

    @pytest.mark.parametrize("at_once", [True, False])
    def test_features_of_any_size_are_regressed_exactly(self, at_once: bool) -> None:
        """A clock as a feature: against the normal equations solved in fractions."""
        rng = np.random.default_rng(0)
        rows = [
            TrainingRow(
                context={"clock": 1.7e9 + float(rng.integers(10**6))},
                actions=[Action("a", {"x": float(rng.integers(3))}), Action("b")],
                chosen=int(rng.integers(2)),
                propensity=0.5,
                reward=float(rng.integers(2)),
            )
            for _ in range(40)
        ]
        oracle = RidgeOracle(config()).partial_fit([])
        for start in range(0, 40, 40 if at_once else 1):
            oracle.partial_fit(rows[start : start + (40 if at_once else 1)])
        request = rows[0].context, rows[0].actions
        estimates = oracle.estimate(*request, BOTH)
        assert estimates.covariance is not None
        mean, covariance = in_fractions(rows, *request)
        np.testing.assert_allclose(estimates.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(estimates.covariance, covariance, rtol=1e-5, atol=1e-6)
        # One that doesn't learn on has its variances from the covariance, where that will do.
        loaded = RidgeOracle(config())
        loaded.restore(oracle.arrays())
        deviation = loaded.estimate(*request, frozenset({"deviation"})).deviation
        assert deviation is not None
        np.testing.assert_allclose(deviation, np.sqrt(np.diag(covariance)), rtol=1e-5)

    def test_goes_on_after_being_loaded(self, tmp_path: Path) -> None:
        rows = random_rows(60)
        RidgeOracle(config()).fit(rows[:30]).save(tmp_path)
        loaded = load_oracle(tmp_path)
        assert isinstance(loaded, RidgeOracle)
        assert_same(loaded.partial_fit(rows[30:]), RidgeOracle(config()).fit(rows), 1e-9)

    def test_a_second_fit_forgets_the_first(self) -> None:
        first, second = random_rows(40, seed=1), random_rows(40, seed=2)
        oracle = RidgeOracle(config()).fit(first).fit(second)
        assert_same(oracle, RidgeOracle(config()).fit(second), 1e-12)


def in_fractions(
    rows: Sequence[TrainingRow], context: dict[str, Any], actions: Sequence[Action]
) -> tuple[list[float], list[list[float]]]:
    """Mean and covariance under l2 = 1 by Gauss-Jordan elimination without any rounding."""
    asked, matrix = columns_of(context, actions), chosen_columns(rows)
    used = np.flatnonzero(matrix.any(axis=0) | asked.any(axis=0))
    x = [[Fraction(v) for v in line] for line in matrix[:, used].tolist()]
    queries = [[Fraction(v) for v in line] for line in asked[:, used].tolist()]
    rewards = [Fraction(row.reward) for row in rows]
    size = range(len(used))
    # Beside the precision matrix: the right-hand side, and one query after the other.
    system = [
        [Fraction(i == j) + sum(line[i] * line[j] for line in x) for j in size]
        + [sum((line[i] * r for line, r in zip(x, rewards, strict=True)), Fraction(0))]
        + [query[i] for query in queries]
        for i in size
    ]
    for i in size:
        system[i] = [value / system[i][i] for value in system[i]]
        for j in size:
            if j != i:
                factor = system[j][i]
                system[j] = [a - factor * b for a, b in zip(system[j], system[i], strict=True)]
    solved = [[line[len(used) + k] for line in system] for k in range(1 + len(queries))]
    products = [
        [float(sum(q * s for q, s in zip(query, each, strict=True))) for each in solved]
        for query in queries
    ]
    return [line[0] for line in products], [line[1:] for line in products]


class TestMoments:
    """What is left of rows when they have been gone through in parts, by several perhaps."""

    @given(
        cuts=st.lists(st.integers(0, 120), max_size=3).map(sorted),
        prior=st.sampled_from(["weights", "parts"]),
    )
    @settings(deadline=None, max_examples=25, derandomize=True)
    def test_of_parts_give_what_a_fit_of_all_gives(self, cuts: list[int], prior: Any) -> None:
        rows = random_rows(120)
        chosen = config(prior=prior)
        total = Moments()
        for start, end in zip([0, *cuts], [*cuts, 120], strict=True):
            if end > start:
                part = moments_of(
                    FeatureEncoder(chosen.encoder), rows[start:end], most=1000, parts=True
                )
                total.merge(part)
        ours, theirs = RidgeOracle(chosen), RidgeOracle(chosen).fit(rows)
        assert ours.fit_moments(total)
        assert ours.columns_.tolist() == theirs.columns_.tolist()
        assert_same(ours, theirs, 1e-9)

    def test_of_many_rows_are_taken_block_by_block(self) -> None:
        """9,000 rows are three blocks; the posterior is the textbook's."""
        rows = random_rows(9000)
        encoder = FeatureEncoder(config().encoder)
        assert len(list(designs_of(encoder, rows, parts=False))) == 3
        oracle, by_hand = RidgeOracle(config(0.5)).fit(rows), ByHand(rows, 0.5)
        request = random_request(np.random.default_rng(3))
        assert_posterior(oracle.estimate(*request, BOTH), by_hand, columns_of(*request))

    def test_whose_digits_do_not_do_are_refused(self) -> None:
        """A fit of the rows goes through them again instead, block by block."""
        rows = [
            TrainingRow(
                context={"clock": 1.7e9 + number, "x": float(number % 7)},
                actions=[Action("a")],
                chosen=0,
                propensity=1.0,
                reward=float(number % 2),
            )
            for number in range(5000)
        ]
        moments = moments_of(FeatureEncoder(config().encoder), rows, most=10, parts=False)
        oracle = RidgeOracle(config())
        assert not oracle.fit_moments(moments)
        oracle.fit(rows)
        estimates = oracle.estimate(rows[0].context, rows[0].actions, BOTH)
        assert estimates.deviation is not None
        assert 0.0 < estimates.deviation[0] < 0.1
        assert abs(estimates.mean[0] - 0.5) < 0.05


class TestTowards:
    @pytest.mark.parametrize("prior", ["weights", "parts"])
    def test_means_are_mixed_and_errors_the_others(self, prior: Any) -> None:
        """Also of columns that one of the two has never met."""
        more = [
            msgspec.structs.replace(row, context=row.context | {"old": 1.0})
            for row in random_rows(80, seed=5)
        ]
        before = RidgeOracle(config(prior=prior)).fit(more)
        after = RidgeOracle(config(prior=prior)).fit(random_rows(90, seed=6))
        assert before.goes_with(after)
        between = before.towards(after, 0.25)
        for seed in range(5):
            context, actions = strange_request(np.random.default_rng(seed))
            request = context | {"old": 2.0}, actions
            one, other, found = (each.estimate(*request, BOTH) for each in (before, after, between))
            np.testing.assert_allclose(found.mean, 0.75 * one.mean + 0.25 * other.mean, atol=1e-9)
            np.testing.assert_allclose(found.covariance, other.covariance, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
        for step, end in ((0.0, before), (1.0, after)):
            np.testing.assert_allclose(
                before.towards(after, step).score(*request), end.score(*request), atol=1e-12
            )

    def test_takes_two_that_go_together(self, tmp_path: Path) -> None:
        fitted = RidgeOracle(config()).fit(random_rows(30))
        for other in (RidgeOracle(config()), RidgeOracle(config(2.0)).fit(random_rows(30))):
            assert not fitted.goes_with(other)
            with pytest.raises(GenerationError, match="of the same configuration"):
                fitted.towards(other, 0.5)
        between = fitted.towards(RidgeOracle(config()).fit(random_rows(40, seed=1)), 0.5)
        between.save(tmp_path)
        loaded = load_oracle(tmp_path)
        assert isinstance(loaded, RidgeOracle)
        assert_same(loaded, between, 1e-9)


class TestRefusal:
    def test_of_more_columns_than_there_is_room_for(self) -> None:
        rows = random_rows(50)
        oracle = RidgeOracle(config(max_columns=100))
        with pytest.raises(GenerationError, match=r"max_columns: expected at most 100 .* raise"):
            oracle.fit(rows)
        with pytest.raises(GenerationError, match="not fitted"):
            oracle.score({}, [Action("a")])

    def test_of_more_columns_leaves_what_was_learned(self) -> None:
        rows = random_rows(50)
        oracle = RidgeOracle(config(max_columns=100)).fit(rows[:2])
        before = oracle.estimate(*random_request(np.random.default_rng(0)), BOTH)
        with pytest.raises(GenerationError, match="max_columns"):
            oracle.partial_fit(rows)
        after = oracle.estimate(*random_request(np.random.default_rng(0)), BOTH)
        assert after.covariance is not None
        assert before.covariance is not None
        assert after.covariance.tobytes() == before.covariance.tobytes()

    def test_of_too_few_rows(self) -> None:
        with pytest.raises(NotEnoughDataError):
            RidgeOracle(config()).fit([])
        with pytest.raises(GenerationError, match="not fitted"):
            RidgeOracle(config()).score({}, [Action("a")])

    def test_of_rows_that_cannot_be(self) -> None:
        rows = [msgspec.structs.replace(row, reward=float("nan")) for row in random_rows(3)]
        for learn in (RidgeOracle(config()).fit, RidgeOracle(config()).partial_fit):
            with pytest.raises(InvalidInputError, match=r"rows\[0\]\.reward"):
                learn(rows)

    @pytest.mark.parametrize(
        ("x", "reward", "l2"),
        [(1e30, 0.0, 1e-300), (3e38, 1e300, 1.0), (1e20, 1.0, 1e-30), (1.0, 1.0, 1e-320)],
    )
    def test_of_numbers_that_are_too_large(self, x: float, reward: float, l2: float) -> None:
        rows = [
            TrainingRow(
                context={"x": x * scale, "y": x},
                actions=[Action("a")],
                chosen=0,
                propensity=1.0,
                reward=reward,
            )
            for scale in (1.0, 0.5, 0.25)
        ]
        oracle = RidgeOracle(config(l2))
        with pytest.raises(GenerationError, match=r"l2 = .*scale them down, or raise l2"):
            oracle.fit(rows)
        with pytest.raises(GenerationError, match="not fitted"):
            oracle.score({}, [Action("a")])
        with pytest.raises(GenerationError, match=r"l2 = .*scale them down, or raise l2"):  # noqa: PT012
            for row in rows:
                oracle.partial_fit([row])

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"l2": 0}, "l2 must be positive, got 0"),
            ({"l2": float("inf")}, "l2 must be positive, got inf"),
            ({"max_columns": 0}, r"max_columns must be in \[1, 20000\], got 0"),
            ({"max_columns": 20001}, "max_columns"),
            ({"alpha": 1.0}, "alpha"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "ridge", **table}, RidgeConfig)


class TestLoop:
    @pytest.mark.parametrize(
        "exploration",
        [
            {"kind": "thompson"},
            {"kind": "thompson", "correlated": False},
            {"kind": "regcb"},
            {"kind": "conservative", "inner": {"kind": "regcb"}, "radius": 1.0},
        ],
        ids=str,
    )
    def test_explorations_that_need_uncertainty_get_it(self, exploration: dict[str, Any]) -> None:
        loop = msgspec.convert(
            {"exploration": exploration, "oracle": {"kind": "ridge"}}, LoopConfig
        )
        oracle = RidgeOracle(config()).fit(random_rows(50))
        generation = Generation("shop", 1, loop.exploration, oracle, None)
        assert isinstance(generation.exploration, Thompson | RegCB | Conservative)
        pmf, _ = generation.pmf(*random_request(np.random.default_rng(0)), baseline=0)
        assert pmf.sum() == pytest.approx(1.0, abs=1e-9)

    @pytest.mark.parametrize(
        ("oracle", "message"),
        [
            ({}, "thompson needs an oracle that estimates covariance; auto does not"),
            ({"oracle": {"kind": "bootstrap"}}, "thompson .* covariance; bootstrap does not"),
            ({"oracle": {"kind": "cover"}}, "thompson .* covariance; cover does not"),
        ],
        ids=str,
    )
    def test_a_loop_names_the_two_that_do_not_fit(
        self, oracle: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"exploration": {"kind": "thompson"}, **oracle}, LoopConfig)
