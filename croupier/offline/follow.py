"""The online learner: joins, learns and publishes, round after round."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from croupier.offline.evaluate import Evaluation
from croupier.offline.gate import Verdict
from croupier.offline.generations import refresh_realised
from croupier.offline.imitation import Imitation
from croupier.offline.join import JoinReport
from croupier.offline.lake import ForgottenError
from croupier.offline.learner import OnlineLearner, require_online
from croupier.offline.retrain import MIN_TRAINING_ROWS, config_digest
from croupier.policy.errors import (
    GenerationError,
    InvalidInputError,
    NotEnoughDataError,
    ScoringError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from croupier.offline.nightly import Nightly

__all__ = ("FollowingLearner", "LoopRound")

_log = logging.getLogger(__name__)


class LoopRound(msgspec.Struct, frozen=True, kw_only=True):
    """What a round brought for one loop.

    Attributes
    ----------
    loop, join
        The loop and its join.
    learned, lessons
        Interactions that were learned from in this round, and so far.
    base_version, version
        Of the interactions: what was learned at once, and what was reached. None before the first
        join.
    champion
        Number of the generation that is champion afterwards.
    published, evaluation, imitation, verdict
        What was published and how it was judged; None where nothing was.
    report
        Where the page of its promotion report is; None where nothing was judged.
    waiting
        Why nothing was published, or why what was published was not judged; None if all was done.
    failed
        Why learning or judging broke off; None unless it did. Learning then begins anew with the
        next round.
    """

    loop: str
    join: JoinReport
    champion: int
    learned: int = 0
    lessons: int = 0
    base_version: int | None = None
    version: int | None = None
    published: int | None = None
    evaluation: Evaluation | None = None
    imitation: Imitation | None = None
    verdict: Verdict | None = None
    report: str | None = None
    waiting: str | None = None
    failed: str | None = None


class FollowingLearner:
    """Learns from loops as their interactions are joined, and publishes generations.

    A generation is published once the latest one is as old as the loop's `model_export_frequency`
    and anything was learned since, and goes through the same gate as the night's.

    A process that takes the place of another one learns again from where that one had begun, in the
    same order, and so comes to the same oracle.

    Parameters
    ----------
    nightly
        The steps that a night has too. Whoever asks for a round holds the lake's lock.
    loops
        Whose interactions to learn from.

    Raises
    ------
    ConfigError
        If a loop's oracle can't learn online.
    """

    def __init__(self, nightly: Nightly, loops: Iterable[str]) -> None:
        self._nightly = nightly
        self._loops = tuple(loops)
        self._learners: dict[str, OnlineLearner] = {}
        for loop in self._loops:
            require_online(loop, nightly.loops[loop])

    def round(self, *, now_us: int) -> list[LoopRound]:
        """Join, learn and, where it is due, publish.

        Parameters
        ----------
        now_us
            Time at the start, in microseconds since the epoch.
        """
        return [self._round(loop, now_us) for loop in self._loops]

    def _round(self, loop: str, now_us: int) -> LoopRound:
        joined = self._nightly.join(loop, now_us=now_us)
        found = LoopRound(loop=loop, join=joined, champion=self._nightly.registry.champion(loop))
        try:
            return self._learn(loop, found, now_us)
        except (GenerationError, InvalidInputError, ScoringError) as error:
            self._learners.pop(loop, None)
            return msgspec.structs.replace(found, failed=str(error))

    def _learn(self, loop: str, found: LoopRound, now_us: int) -> LoopRound:
        if self._nightly.lake.version("interactions") < 0:
            return msgspec.structs.replace(found, waiting="no interactions yet")
        known = self._learners.get(loop)
        before = 0 if known is None else known.lessons
        learner = self._taught(loop)
        found = msgspec.structs.replace(
            found,
            learned=learner.lessons - before,
            lessons=learner.lessons,
            base_version=learner.base,
            version=learner.version,
        )
        waiting = self._not_due(loop, learner, now_us)
        if waiting is not None:
            return msgspec.structs.replace(found, waiting=waiting)
        return self._publish(learner, found, now_us)

    def _taught(self, loop: str) -> OnlineLearner:
        """The loop's learner, after it has learned all there is."""
        learner = self._learners.get(loop)
        if learner is None:
            latest = self._latest(loop)
            current = self._nightly.lake.version("interactions")
            learner = self._learner(loop, current if latest is None else latest["base_version"])
        try:
            learner.learn()
        except ForgottenError as error:
            _log.warning("loop %s: learning begins anew: %s", loop, error)
            learner = self._learner(loop, self._nightly.lake.version("interactions"))
            learner.learn()
        except BaseException:
            self._learners.pop(loop, None)
            raise
        self._learners[loop] = learner
        return learner

    def _learner(self, loop: str, base: int) -> OnlineLearner:
        config = self._nightly.config
        return OnlineLearner(
            self._nightly.lake,
            loop,
            self._nightly.loops[loop],
            judge_share=config.judge_share,
            seed=config.seed,
            base=base,
        )

    def _latest(self, loop: str) -> dict[str, Any] | None:
        """The last generation of the loop that has learned online."""
        rows = self._nightly.lake.scan("generations", loop)
        online = rows.filter(pl.col("base_version").is_not_null()).sort("generation").collect()
        return online.row(-1, named=True) if len(online) else None

    def _not_due(self, loop: str, learner: OnlineLearner, now_us: int) -> str | None:
        """Why nothing is to be published now; None if something is."""
        if learner.lessons < MIN_TRAINING_ROWS:
            return f"{learner.lessons} interactions to learn from, of at least {MIN_TRAINING_ROWS}"
        latest = self._latest(loop)
        if latest is not None:
            learned = learner.base, learner.lessons, config_digest(self._nightly.loops[loop])
            if learned == (latest["base_version"], latest["training_rows"], latest["loop_config"]):
                return f"nothing was learned since generation {latest['generation']}"
        return self._nightly.not_due(loop, now_us)

    def _publish(self, learner: OnlineLearner, found: LoopRound, now_us: int) -> LoopRound:
        nightly, loop = self._nightly, found.loop
        nightly.record_champion(loop, now_us)
        refresh_realised(nightly.lake, loop, confidence=nightly.config.gate.confidence)
        generation = learner.generation(
            number=nightly.next_number(loop),
            parent=nightly.registry.champion(loop),
            created_us=now_us,
        )
        nightly.publish(generation)
        found = msgspec.structs.replace(found, published=generation.number)
        try:
            evidence, verdict = nightly.promote_on_evidence(generation, now_us=now_us)
        except NotEnoughDataError as reason:
            return msgspec.structs.replace(found, waiting=str(reason))
        kind = "imitation" if isinstance(evidence, Imitation) else "evaluation"
        champion = nightly.registry.champion(loop)
        place = nightly.report_place(loop, generation.number)
        return msgspec.structs.replace(
            found, champion=champion, verdict=verdict, report=place, **{kind: evidence}
        )
