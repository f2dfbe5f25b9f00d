"""Merging learners: the same as Vowpal Wabbit's own deltas, and good enough on real data."""

from __future__ import annotations

import numpy as np
import pytest
import vowpal_wabbit_next as vw

from benchmarks.merging import Digits, compare
from croupier.offline.engine import LOCAL
from croupier.offline.merged_training import learn_merged
from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.oracle import VowpalWabbitConfig, VowpalWabbitOracle
from croupier.policy.oracle.merging import merged, teach
from croupier.policy.oracle.vowpal_wabbit import BanditLearner
from tests.policy.training import random_rows


def learners(config: VowpalWabbitConfig, count: int) -> tuple[BanditLearner, list[BanditLearner]]:
    """A learner that has learned something, and several that went on from there."""
    encoder = FeatureEncoder(config.encoder)
    first = BanditLearner(config, 3)
    teach(first, encoder, random_rows(40, seed=1))
    model = first.serialize()
    found = [BanditLearner(config, 3, model) for _ in range(count)]
    for number, each in enumerate(found):
        teach(each, encoder, random_rows(60 + number, seed=2 + number))
    return BanditLearner(config, 3, model), found


@pytest.mark.parametrize(
    "config", [VowpalWabbitConfig(), VowpalWabbitConfig(cb_type="ips", power_t=0.3)]
)
def test_merges_as_vowpal_wabbit_does(config: VowpalWabbitConfig) -> None:
    """Its own deltas, which are for tables of 18 bits alone."""
    start, found = learners(config, 3)
    deltas = [vw.calculate_delta(start._workspace, each._workspace) for each in found]
    theirs = vw.apply_delta(start._workspace, vw.merge_deltas(deltas)).weights()[:, 0, :3]
    before = start.numbers().copy()
    ours = merged(start, found)
    assert np.array_equal(start.numbers(), before)
    assert np.allclose(ours.numbers(), theirs, rtol=1e-4, atol=1e-6)
    assert np.abs(theirs - before).max() > 0.01
    assert ours.counts[0] == 40 + 60 + 61 + 62


@pytest.mark.parametrize("bits", [10, 20])
def test_merges_tables_of_any_size(bits: int) -> None:
    """Whoever is merged alone is who he was; whoever has learned nothing has no say."""
    start, (alone, _) = learners(VowpalWabbitConfig(encoder=EncoderConfig(bits=bits)), 2)
    expected = alone.numbers().copy()
    idle = BanditLearner(start.config, 3, start.serialize())
    found = merged(start, [idle, alone])
    assert np.allclose(found.numbers(), expected, rtol=1e-6, atol=1e-6)
    assert found.counts == (100, 400)


def test_learns_on_from_what_was_merged() -> None:
    config = VowpalWabbitConfig(encoder=EncoderConfig(bits=10))
    start, found = learners(config, 2)
    whole = merged(start, found)
    again = BanditLearner(config, 3, whole.serialize())
    assert again.counts == whole.counts
    encoder = FeatureEncoder(config.encoder)
    for each in (whole, again):
        teach(each, encoder, random_rows(30, seed=9))
    assert np.array_equal(whole.weights(), again.weights())


def test_passes_are_gone_through_by_all() -> None:
    digits = Digits(0, 1)
    tables = []
    for passes in (1, 2):
        config = VowpalWabbitConfig(passes=passes, encoder=EncoderConfig(bits=14))
        oracle = VowpalWabbitOracle(config, random_state=0)
        learn_merged(oracle, digits.rows[:300], (2, 3), LOCAL)
        assert oracle._learner is not None
        assert oracle._learner.counts[0] == passes * 300
        assert oracle.weights_ is not None
        tables.append(oracle.weights_)
    assert not np.array_equal(tables[0], tables[1])


def test_loses_little_on_real_digits() -> None:
    """Of two fixed seeds the worse, with two partitions and with four.

    The best action earns at most 0.02 less; the squared error is at most a third larger, and
    three quarters.
    """
    single, halves, quarters = compare(2, 10, [2, 4], [16])
    assert single.value > 0.9
    assert min(halves.worst_value, quarters.worst_value) >= -0.02
    assert halves.worst_error <= 4 / 3
    assert quarters.worst_error <= 1.75
