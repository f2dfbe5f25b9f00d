"""Pairs that violate among many decisions: the index against comparing all pairs.

``python -m benchmarks.fairness_audit [--decisions 1000000] [--features 5] [--auditors 3]``

Decisions have normal features and a treatment that follows two of them; one in fifty is treated
otherwise than those like it. Recall is measured on a sample of decisions, each of which is compared
with all others; the time that comparing all pairs would take follows from that sample.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from croupier.offline.fairness.finder import Found, indexed_partners
from croupier.policy.fairness.auditors import Metric, Panel, gap_of

ALPHA, GAMMA = 0.1, 0.5


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--auditors", type=int, default=3)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    panel, treatments = _world(asked.decisions, asked.features, asked.auditors, asked.seed)
    wall, cpu = time.perf_counter(), time.process_time()
    found = indexed_partners(panel, treatments, alpha=ALPHA)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pairs = asked.decisions * (asked.decisions - 1) // 2
    print(f"{asked.decisions:,} decisions, {asked.features} features, {asked.auditors} auditors")
    print(f"index: {wall:.1f} s, {cpu:.1f} s of processor time")
    print(f"{found.compared:,} of {pairs:,} pairs compared (1 in {pairs // found.compared:,})")
    print(f"{found.violators:,} decisions violate; {100 * found.settled.mean():.3f} % settled")
    _recall(panel, treatments, found, asked.sample, cpu)


def _world(n: int, features: int, auditors: int, seed: int) -> tuple[Panel, np.ndarray]:
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n, features))
    p = 1.0 / (1.0 + np.exp(-1.5 * places[:, 0] - 0.5 * places[:, 1])) + 0.03 * rng.normal(size=n)
    p[rng.random(n) < 0.02] += 0.2
    weights = rng.uniform(0.25, 0.5, size=(auditors, features))
    metrics = [Metric(places * each) for each in weights]
    return Panel(metrics, GAMMA), np.clip(p, 0.0, 1.0)[:, None]


def _recall(
    panel: Panel,
    treatments: np.ndarray,
    found: Found,
    size: int,
    index_cpu: float,
) -> None:
    """Compare a sample of decisions with all others."""
    n, seen, settled = len(treatments), found.partner >= 0, found.settled
    rng = np.random.default_rng(1)
    rows = rng.choice(n, size=min(size, n), replace=False)
    cpu = time.process_time()
    violates = np.zeros(len(rows), dtype=np.bool_)
    for at, row in enumerate(rows.tolist()):
        gaps = gap_of("any")(treatments, treatments[row])
        over = gaps - panel.block(np.array([row]))[0] - ALPHA
        over[row] = -np.inf
        violates[at] = over.max() > 0.0
    cpu = time.process_time() - cpu
    both, all_ = int((violates & seen[rows]).sum()), int(violates.sum())
    wrong = int((settled[rows] & (violates != seen[rows])).sum())
    print(f"of {len(rows)} decisions compared with all others {all_} violate; {both} were found:")
    print(f"recall {both / max(all_, 1):.4f}; called settled and wrong: {wrong}")
    ratio = cpu / len(rows) * n / 2.0 / index_cpu
    print(f"comparing all pairs would take {ratio:,.0f} times the index's processor time")


if __name__ == "__main__":
    main()
