"""The benchmark of the oracles measures what it says, in small."""

from __future__ import annotations

from benchmarks.oracles import measure

TABLE, RIDGE = "vowpal_wabbit", "sklearn: Ridge"
TREES = "sklearn_onnx: GradientBoosting, 100 trees of depth 3"
NETWORK = "vowpal_wabbit_model: --nn 5"


def test_every_figure_is_of_its_own() -> None:
    kinds = (TABLE, RIDGE, TREES, NETWORK)
    found = measure((2, 6), rounds=2, kinds=kinds)
    assert [(each.oracle, each.actions) for each in found] == [
        (name, actions) for name in kinds for actions in (2, 6)
    ]
    for each in found:
        # Hashing is part of the one and not of the other.
        assert min(each.estimate, each.encoded) > 0.0
        assert (each.library is None) == (each.oracle == TABLE)
        assert each.library is None or each.library > 0.0
