"""Both audits of fairness on many decisions: of pairs, and of groups.

``python -m benchmarks.fairness_audit [--decisions 1000000] [--features 5] [--auditors 3]``
``python -m benchmarks.fairness_audit --groups [--decisions 1000000]``

Pairs: decisions have normal features and a treatment that follows two of them; one in fifty is
treated otherwise than those like it. Recall is measured on a sample of decisions, each of which is
compared with all others; the time that comparing all pairs would take follows from that sample.

Groups: three attributes, two of them crossed too, and five actions, in an interactions table of
thirty days.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from croupier.offline.fairness.finder import Found, indexed_partners
from croupier.offline.fairness.group_audit import audit_groups
from croupier.offline.fairness.partner_search import COMPILED
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.shares import wilson_interval
from croupier.policy.fairness.auditors import Metric, Panel, gap_of
from croupier.policy.fairness.groups import FairnessConfig
from croupier.policy.loop import LoopConfig

ALPHA, GAMMA = 0.1, 0.5


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--auditors", type=int, default=3)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", action="store_true", help="the audit of groups instead")
    parser.add_argument("--plain", action="store_true", help="without what is compiled")
    asked = parser.parse_args()
    if asked.groups:
        _groups(asked.decisions, asked.seed)
    else:
        _pairs(asked)


def _pairs(asked: argparse.Namespace) -> None:
    panel, treatments = _world(asked.decisions, asked.features, asked.auditors, asked.seed)
    compiled = COMPILED is not None and not asked.plain
    wall, cpu = time.perf_counter(), time.process_time()
    found = indexed_partners(panel, treatments, alpha=ALPHA, compiled=compiled)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pairs = asked.decisions * (asked.decisions - 1) // 2
    print(
        f"{asked.decisions:,} decisions, {asked.features} features, {asked.auditors} auditors, "
        f"{'compiled' if compiled else 'not compiled'}"
    )
    print(f"index: {wall:.1f} s, {cpu:.1f} s of processor time")
    print(
        f"{found.compared:,} of {pairs:,} pairs compared ({100 * found.compared / pairs:.4f} %, "
        f"1 in {pairs // found.compared:,})"
    )
    print(f"{found.violators:,} decisions violate; {100 * found.settled.mean():.4f} % settled")
    _recall(panel, treatments, found, asked.sample, cpu)


def _world(n: int, features: int, auditors: int, seed: int) -> tuple[Panel, np.ndarray]:
    # The same auditors of any number of decisions.
    weights = np.random.default_rng((seed, 1)).uniform(0.25, 0.5, size=(auditors, features))
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n, features))
    p = 1.0 / (1.0 + np.exp(-1.5 * places[:, 0] - 0.5 * places[:, 1])) + 0.03 * rng.normal(size=n)
    p[rng.random(n) < 0.02] += 0.2
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
    false = int((seen[rows] & ~violates).sum())
    wrong = int((settled[rows] & (violates != seen[rows])).sum())
    print(f"of {len(rows)} decisions compared with all others {all_} violate; {both} were found:")
    lower, upper = wilson_interval(both / max(all_, 1), max(all_, 1), 0.95)
    print(f"recall {both / max(all_, 1):.4f} [{lower:.4f}, {upper:.4f}] (95 %)")
    print(f"found and no violation: {false}; called settled and wrong: {wrong}")
    ratio = cpu / len(rows) * n / 2.0 / index_cpu
    print(f"comparing all pairs would take {ratio:,.0f} times the index's processor time")


def _groups(n: int, seed: int) -> None:
    fairness = FairnessConfig(attributes=("gender", "age", "region", "gender * age"))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder))
        lake.append("interactions", _people(n, seed))
        wall, cpu = time.perf_counter(), time.process_time()
        audit = audit_groups(lake, "loans", LoopConfig(fairness=fairness))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    (generation,) = audit.generations
    print(f"{n:,} decisions, 5 actions, 3 attributes and two of them crossed")
    print(f"audit of groups: {wall:.1f} s, {cpu:.1f} s of processor time")
    shown = {each.attribute: len(each.groups) for each in generation.attributes}
    print(f"{generation.tests} tests of {shown}, {len(generation.found)} differences found:")
    for each in generation.found:
        print(f"  {each}")


def _people(n: int, seed: int) -> pl.DataFrame:
    """Interactions in which women get the first action less often, and so the others more often."""
    rng = np.random.default_rng(seed)
    gender = rng.choice(["f", "m"], size=n)
    age = rng.choice(["18-30", "30-45", "45-60", "60+"], size=n)
    region = rng.choice(["n", "e", "s", "w", "c", "x"], size=n)
    pmf = rng.dirichlet(np.full(5, 3.0), size=n)
    pmf[:, 0] *= np.where(gender == "f", 0.95, 1.0)
    pmf /= pmf.sum(axis=1, keepdims=True)
    chosen = np.minimum((rng.random((n, 1)) > pmf.cumsum(axis=1)).sum(axis=1), 4)
    actions = ["a", "b", "c", "d", "e"]
    people = pl.DataFrame({"gender": gender, "age": age, "region": region})
    ts = datetime(2026, 1, 1, tzinfo=UTC) + pl.int_range(n) * (timedelta(days=30) / n)
    rows = pl.DataFrame(
        {
            "pmf": pl.Series(pmf.tolist(), dtype=pl.List(pl.Float64)),
            "action_ids": pl.Series([actions] * n),
            "chosen": chosen,
            "action_id": [actions[each] for each in chosen.tolist()],
            "propensity": pmf[np.arange(n), chosen],
            "reward": (rng.random(n) < 0.2).astype(np.float64),
        }
    ).with_columns(
        loop=pl.lit("loans"),
        offset=pl.int_range(1, n + 1),
        decision_id=pl.format("d{}", pl.int_range(n)),
        ts=ts,
        date=ts.dt.date(),
        generation=pl.lit(1),
        context=pl.lit("{}"),
        audit=people.to_struct().struct.json_encode(),
        actions=pl.lit(json.dumps([{"id": each} for each in actions])),
        keep_prob=pl.lit(1.0),
    )
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in SCHEMAS["interactions"].items()
    )


if __name__ == "__main__":
    main()
