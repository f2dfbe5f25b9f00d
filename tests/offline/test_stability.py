"""Stability: distances of two policies against closed forms, and the limits of the gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from croupier.offline.evaluate import evaluate
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.offline.shares import wilson_interval
from croupier.offline.stability import Stability, distances, stability_section
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from tests.offline.worlds import random_world


def test_distances_are_those_of_an_independent_implementation() -> None:
    """Row by row, with action sets of any size and probabilities of 0."""
    rng = np.random.default_rng(5)
    first, second = [], []
    for size in rng.integers(1, 7, 200):
        p, q = (rng.dirichlet(np.ones(size)) for _ in range(2))
        if size > 2:
            p[0], q[-1] = 0.0, 0.0
            p, q = p / p.sum(), q / q.sum()
        first.append(p)
        second.append(q)
    variation, js, flips = distances(first, second)
    for row, (p, q) in enumerate(zip(first, second, strict=True)):
        assert variation[row] == pytest.approx(np.abs(p - q).sum() / 2, abs=1e-12)
        assert js[row] == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)
        assert flips[row] == float(p.argmax() != q.argmax())


@pytest.mark.parametrize(
    ("p", "q", "variation", "js", "flip"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0, 0.0, 0.0),
        ([1.0, 0.0], [0.0, 1.0], 1.0, 1.0, 1.0),
        # All tie for the one, so that it agrees with a choice as often as chance has it.
        ([0.25] * 4, [0.7, 0.1, 0.1, 0.1], 0.45, None, 0.75),
        ([1.0], [1.0], 0.0, 0.0, 0.0),
    ],
)
def test_plain_cases(
    p: list[float], q: list[float], variation: float, js: float | None, flip: float
) -> None:
    found = distances([np.array(p)], [np.array(q)])[:, 0]
    assert found[0] == pytest.approx(variation)
    assert js is None or found[1] == pytest.approx(js)
    assert found[2] == pytest.approx(flip)
    assert distances([], []).shape == (3, 0)


def test_means_count_rows_for_what_they_stand_for() -> None:
    found = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    stability = Stability.of(found, np.array([3.0, 1.0]), 0.9)
    assert stability.total_variation.value == pytest.approx(0.25)
    effective = 16.0 / 10.0
    assert (stability.flip_rate.lower, stability.flip_rate.upper) == wilson_interval(
        0.25, effective, 0.9
    )


def test_the_interval_of_a_mean_covers() -> None:
    """At 95 %: of 400 logs, 20 misses are expected at most; 40 have a chance below 1e-4."""
    rng = np.random.default_rng(3)
    misses = 0
    for _ in range(400):
        found = np.repeat(rng.beta(0.5, 2.0, 200)[None], 3, axis=0)
        distance = Stability.of(found, np.ones(200), 0.95).total_variation
        misses += not distance.lower <= 0.2 <= distance.upper
    assert misses < 40


def test_an_evaluation_knows_how_far_its_policies_are_apart() -> None:
    world = random_world(3, 4, seed=3)
    cold, better = cold_start("shop"), world.generation(1, EpsilonGreedy(epsilon=0.1))
    log = world.log(cold, 900, seed=1)
    found = evaluate(log, cold, better, LoopConfig()).stability
    assert found is not None
    # Against the uniform policy: 0.9 + 0.1 / 4 on one of four actions, whatever the context.
    assert found.total_variation.value == pytest.approx(0.925 - 0.25)
    assert found.flip_rate.value == pytest.approx(0.75)
    assert found.rows == 900
    same = evaluate(log, better, better, LoopConfig()).stability
    assert same is not None
    assert (same.total_variation.value, same.js_distance.value, same.flip_rate.value) == (0, 0, 0)
    assert evaluate(log, None, better, LoopConfig()).stability is None


def test_the_gate_holds_back_what_changes_too_much() -> None:
    world = random_world(3, 4, seed=3)
    cold, better = cold_start("shop"), world.generation(1, EpsilonGreedy(epsilon=0.1))
    evaluation = evaluate(world.log(cold, 2500, seed=1), cold, better, LoopConfig())
    assert judge_challenger(GateConfig(), evaluation).promote
    assert evaluation.stability is not None
    upper = evaluation.stability.total_variation.upper
    assert judge_challenger(GateConfig(max_total_variation=upper), evaluation).promote
    verdict = judge_challenger(
        GateConfig(max_total_variation=math.nextafter(upper, 0.0), max_flip_rate=0.1), evaluation
    )
    assert not verdict.promote
    first, second = verdict.reasons
    assert first.startswith("total variation between champion and challenger is 0.6750, 95 %")
    assert "flip rate between champion and challenger" in second
    assert second.endswith("not shown to be at most 0.1")


def test_limits_that_can_t_be_meant_are_refused() -> None:
    for name in ("max_total_variation", "max_flip_rate"):
        with pytest.raises(ValueError, match=name):
            GateConfig(**{name: 1.5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calibration_level"):
        GateConfig(calibration_level=0.0)
    with pytest.raises(ValueError, match="required must name sections"):
        GateConfig(required=("speed",))  # type: ignore[arg-type]


def test_what_is_required_and_not_measured_is_no_evidence() -> None:
    world = random_world(3, 4, seed=3)
    cold, better = cold_start("shop"), world.generation(1, EpsilonGreedy(epsilon=0.1))
    log = world.log(cold, 2500, seed=1)
    evaluation = evaluate(log, cold, better, LoopConfig())
    assert judge_challenger(GateConfig(required=("stability",)), evaluation).promote
    verdict = judge_challenger(GateConfig(required=("fairness", "stress")), evaluation)
    assert verdict.reasons == [
        "fairness is required and was not measured: no attribute is configured to make groups of",
        "simulator stress is required and was not measured: nothing measures it yet",
    ]
    sections = {each.name: each for each in verdict.sections}
    assert list(sections) == [
        "calibration",
        "guardrails",
        "stability",
        "fairness",
        "individual_fairness",
        "stress",
    ]
    assert [name for name, each in sections.items() if each.measured] == ["stability"]
    assert not any(each.findings for each in sections.values() if not each.measured)
    assert stability_section(None) == sections["stability"].unmeasured("stability")
