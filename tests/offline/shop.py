"""An application with its scorer and its batch side, in one process and with its own clock."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.lake import Lake
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.registry import Registry
from croupier.policy.events import Outcome
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import SECOND, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from croupier.offline.night import NightlyReport
    from croupier.policy.events import Event

CONFIG = LoopConfig(
    exploration=EpsilonGreedy(epsilon=0.3),
    oracle=SklearnConfig(),
    attribution_window="1 min",
    default_reward=0.0,
)
MINUTE = 60 * SECOND


@contextmanager
def no_steps(_label: str, /) -> Iterator[Callable[[int, int], None]]:
    yield lambda _done, _total: None


class Shop:
    """An application, its scorer and its batch side, with a clock of their own."""

    def __init__(
        self,
        root: Path,
        world: World,
        *,
        loops: dict[str, LoopConfig] | None = None,
        config: NightlyConfig | None = None,
        template: Path | None = None,
        now: int = EPOCH_US,
    ) -> None:
        self.root = root
        self.world = world
        self.now = now
        self.rng = np.random.default_rng(1)
        self.count = 0
        loops = {"shop": CONFIG} if loops is None else loops
        if template is not None:
            shutil.copy(template, root / "mlflow.db")
        self.lake = Lake(root / "lake")
        self.registry = Registry(f"sqlite:///{root / 'mlflow.db'}", root / "mlartifacts")
        self.nightly = Nightly(self.lake, self.registry, loops, config or NightlyConfig())
        self.scorer = Scorer(loops, clock=lambda: self.now)
        self.follow()

    def follow(self) -> None:
        """Serve the champions."""
        for loop in self.scorer.loops:
            champion = self.nightly.generation(loop, self.registry.champion(loop))
            self.scorer.swap(Plan(champion))

    def log(self) -> SqliteEventLog:
        return SqliteEventLog(self.root / "log", synchronous="normal")

    def day(self, decisions: int, loop: str = "shop") -> None:
        """Decide, one second after the other; rewards of 1 are reported after a while."""
        events: list[Event] = []
        for _ in range(decisions):
            self.now += SECOND
            self.count += 1
            context = int(self.rng.integers(len(self.world.rewards)))
            made = self.scorer.decide(loop, self.world.request(context, f"{loop}-{self.count}"))
            events.append(made)
            if self.rng.random() < self.world.rewards[context, made.chosen]:
                ts = self.now + int(self.rng.integers(MINUTE))
                key = f"{made.decision_id}/click"
                events.append(
                    Outcome(
                        decision_id=made.decision_id, loop=loop, outcome_id=key, reward=1.0, ts=ts
                    )
                )
        with self.log() as log:
            log.append([Record.of(event) for event in events])

    def night(self) -> NightlyReport:
        """Wait for all windows to close, do a night's work, and serve what came of it."""
        self.now += 2 * MINUTE
        with self.log() as log:
            report = self.nightly.run(log, now_us=self.now, steps=no_steps)
        self.follow()
        return report

    def rows(self, loop: str = "shop") -> dict[int, dict[str, Any]]:
        table = self.lake.scan("generations", loop).sort("generation").collect()
        return {row["generation"]: row for row in table.to_dicts()}

    def unproven_champions(self) -> list[dict[str, Any]]:
        """Champions of any time that neither passed the gate nor were an override (invariant 4)."""
        return [
            row
            for loop in self.scorer.loops
            for version in range(self.lake.version("generations") + 1)
            for row in self.lake.scan_version("generations", version, loop).collect().to_dicts()
            if row["status"] == "champion"
            and row["generation"] != 0
            and row["override_reason"] is None
            and not (row["difference_lower"] is not None and row["difference_lower"] > 0.0)
        ]
