"""The nightly job: sink, join, retrain, evaluate, gate, register, promote, forget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import Evaluation, evaluate
from croupier.offline.gate import GateConfig, Verdict, judge_challenger
from croupier.offline.generations import (
    evaluation_row,
    imitation_row,
    published_row,
    record_generation,
    record_promotion,
    refresh_realised,
)
from croupier.offline.imitation import Imitation, judge_imitation, served_match_rate
from croupier.offline.interactions import current_interactions
from croupier.offline.join import JoinReport, join
from croupier.offline.judged import judged_interactions
from croupier.offline.merged_training import MergeConfig, Spread
from croupier.offline.night import LoopNight, NightlyReport
from croupier.offline.registry import Change
from croupier.offline.report import TrainingReport, report_on
from croupier.offline.retention import retain
from croupier.offline.retrain import retrain
from croupier.offline.sink import sink
from croupier.offline.standing import anything_since, finish_published, last_trained
from croupier.policy.errors import (
    GenerationError,
    InvalidInputError,
    NotEnoughDataError,
    ScoringError,
)
from croupier.policy.exploration import Conservative
from croupier.policy.loop import parse_duration
from croupier.policy.oracle import DistilledOracle, Fidelity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from croupier.eventlog.log import EventLog
    from croupier.offline.engine import Engine
    from croupier.offline.lake import Lake
    from croupier.offline.night import Steps
    from croupier.offline.registry import Registry
    from croupier.offline.standing import LastTrained
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("Nightly", "NightlyConfig", "fidelity_of")


class NightlyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the nightly job trains and judges.

    Attributes
    ----------
    judge_share
        Share of the decisions, in [0.05, 0.95], that judge and never train.
    judge_window
        How far back from the latest of the judge's interactions rows are judged on: a duration;
        None for all.
    seed
        Of everything random in training.
    settle
        A decision is joined this much after its window has closed, so that whatever was received
        within it has reached the log.
    gate
        What a challenger has to show.
    merge
        How training is divided where a cluster does it.
    """

    judge_share: float = 0.3
    judge_window: str | None = None
    seed: int = 0
    settle: str = "1 s"
    gate: GateConfig = GateConfig()
    merge: MergeConfig = MergeConfig()

    def __post_init__(self) -> None:
        parse_duration(self.settle)
        if self.judge_window is not None:
            parse_duration(self.judge_window)
        if not 0.05 <= self.judge_share <= 0.95:
            raise ValueError(f"judge_share must be in [0.05, 0.95], got {self.judge_share}")


class Nightly:
    """The batch side of all loops: every step by itself, and a night's work as a whole.

    Parameters
    ----------
    lake, registry
        Where interactions are and where generations are published. Whoever calls a step holds the
        lake's lock; :meth:`run` takes it itself.
    loops
        Configuration by name.
    config
        How to train and judge.
    engine
        Sinks, joins, trains and evaluates.
    """

    def __init__(
        self,
        lake: Lake,
        registry: Registry,
        loops: Mapping[str, LoopConfig],
        config: NightlyConfig,
        *,
        engine: Engine = LOCAL,
    ) -> None:
        self.lake = lake
        self.registry = registry
        self.loops = loops
        self.config = config
        self.engine = engine

    def run(
        self, log: EventLog, *, now_us: int, steps: Steps, due_only: bool = False
    ) -> NightlyReport:
        """Do a night's work for all loops.

        It may be broken off anywhere, also by the end of its process: the next one goes on from
        there, and comes to the same generations if nothing was logged since. A loop that nothing
        has come of since its newest generation was trained, under the same configuration, is not
        trained again.

        Parameters
        ----------
        log
            Where events come from.
        now_us
            Time at the start, in microseconds since the epoch.
        steps
            Shows progress.
        due_only
            Whether a loop whose latest generation is younger than its `model_export_frequency` is
            joined, but not trained.

        Raises
        ------
        LakeLockedError
            If another process is writing to the lake.
        """
        with self.lake.lock():
            with steps("sink") as progress:
                sunk = sink(log, self.lake, progress, engine=self.engine)
            nights = [
                self._loop_night(loop, now_us, steps, due_only=due_only) for loop in self.loops
            ]
            kept = retain(self.lake, log, self.loops, now_us=now_us)
        return NightlyReport(sink=sunk, loops=nights, retention=kept)

    def join(self, loop: str, *, now_us: int) -> JoinReport:
        """Join a loop's decisions whose windows have closed and settled."""
        settled = now_us - parse_duration(self.config.settle)
        return join(self.lake, loop, self.loops[loop], settled, engine=self.engine)

    def generation(self, loop: str, number: int) -> Generation:
        """Read a generation of a configured loop back from the registry.

        Raises
        ------
        GenerationError
            If the registry doesn't have it, or not in order.
        """
        return self.registry.load(loop, number, self.loops[loop].exploration)

    def train(self, loop: str, *, now_us: int) -> Generation:
        """Train a loop's next generation against its present champion; doesn't publish it.

        Raises
        ------
        NotEnoughDataError
            If there is too little to learn from.
        """
        config, parent = self.loops[loop], self.registry.champion(loop)
        champion = None
        if config.training.start == "champion" and parent != 0:
            champion = self.registry.load(loop, parent, to_learn=True)
        spread = Spread(self.config.merge, self.engine) if self.engine.distributed else None
        return retrain(
            self.lake,
            loop,
            config,
            number=self.next_number(loop),
            parent=parent,
            champion=champion,
            judge_share=self.config.judge_share,
            seed=self.config.seed,
            created_us=now_us,
            spread=spread,
        )

    def report(self, generation: Generation) -> TrainingReport:
        """Measures and figures of a generation that was trained tonight."""
        loop = generation.loop
        return report_on(self.lake, generation, self.loops[loop], self.config.judge_share)

    def publish(self, generation: Generation, report: TrainingReport | None = None) -> None:
        """Put a trained generation into the registry as challenger, and record it.

        Parameters
        ----------
        generation
            To be registered.
        report
            Measures and figures to be logged with it.
        """
        report = TrainingReport() if report is None else report
        provenance = generation.provenance
        assert provenance is not None, "the cold start is never published"
        loop = self.loops[generation.loop]
        described = {
            "exploration": generation.exploration.describe(),
            # One that was put over the API need not be of the loop's present kind.
            "oracle": str(getattr(generation.oracle, "config", loop.oracle).__struct_config__.tag),
        }
        origin = {
            name: value
            for name, value in msgspec.structs.asdict(provenance).items()
            if value is not None
        }
        share = self.config.judge_share
        run_id = self.registry.publish(
            generation,
            params=origin
            | described
            | {
                "generation": generation.number,
                "config": msgspec.json.encode(loop).decode(),
                "judge_share": share,
            },
            metrics={"training_rows": provenance.training_rows}
            | _fidelity_metrics(generation)
            | report.metrics,
            figures=report.figures,
        )
        row = published_row(generation, run_id, **described, judge_share=share)
        record_generation(self.lake, row)

    def judge(
        self, challenger: Generation, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Evaluation, Verdict]:
        """Evaluate a generation against the champion, on rows that no generation learned from.

        Raises
        ------
        NotEnoughDataError
            If there are too few such rows.
        """
        loop = challenger.loop
        champion = self.generation(loop, self.registry.champion(loop))
        evaluation = evaluate(
            self._judged(loop, champion, challenger),
            champion,
            challenger,
            self.loops[loop],
            confidence=self.config.gate.confidence,
            progress=progress,
            engine=self.engine,
        )
        return evaluation, judge_challenger(self.config.gate, evaluation)

    def judge_imitation(
        self, challenger: Generation, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Imitation, Verdict]:
        """Compare how a generation and the champion imitate the baseline, on the judge's rows.

        Raises
        ------
        NotEnoughDataError
            If there are too few such rows.
        """
        loop, confidence = challenger.loop, self.config.gate.confidence
        champion = self.generation(loop, self.registry.champion(loop))
        imitation, verdict = judge_imitation(
            self._judged(loop, champion, challenger),
            champion,
            challenger,
            confidence=confidence,
            progress=progress,
        )
        if isinstance(self.loops[loop].exploration, Conservative):
            # Its shadows play the baseline whatever they have learned, and say nothing.
            return imitation, verdict
        logged = current_interactions(self.lake, loop).select(
            "learning_mode", "shadow", "baseline", "keep_prob"
        )
        served = served_match_rate(logged.collect(), confidence=confidence)
        return msgspec.structs.replace(imitation, served=served), verdict

    def promote_on_evidence(
        self,
        challenger: Generation,
        *,
        now_us: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Evaluation | Imitation, Verdict]:
        """Judge a published generation, record the verdict, and promote it if it passed.

        An apprentice is judged by how it imitates the baseline, any other by the gate.

        Raises
        ------
        InvalidInputError
            If it is the champion already.
        GenerationError
            If the registry doesn't have it.
        NotEnoughDataError
            If there are too few rows to judge on.
        """
        loop, number = challenger.loop, challenger.number
        self._require_challenger(loop, number)
        self.record_champion(loop, now_us)
        evidence: Evaluation | Imitation
        if self.loops[loop].learning_mode == "apprentice":
            evidence, verdict = self.judge_imitation(challenger, progress)
            shown = imitation_row(evidence)
        else:
            evidence, verdict = self.judge(challenger, progress)
            shown = evaluation_row(evidence, self.config.gate.estimator)
        judged = {
            "loop": loop,
            "generation": number,
            "status": "challenger" if verdict.promote else "rejected",
            "verdict": "; ".join(verdict.reasons),
        }
        record_generation(self.lake, judged | shown)
        if verdict.promote:
            self.registry.promote(loop, number)
            record_promotion(self.lake, loop, number, now_us=now_us)
        return evidence, verdict

    def override(self, loop: str, number: int, *, now_us: int, reason: str) -> None:
        """Make a generation champion because a person says so, and record why.

        Raises
        ------
        InvalidInputError
            If no reason is given, or if the generation is the champion already.
        GenerationError
            If the registry doesn't have the generation.
        """
        if not reason.strip():
            raise InvalidInputError("reason", "expected why the gate is overridden")
        self._require_challenger(loop, number)
        self.record_champion(loop, now_us)
        # First: whatever happens next, there is no champion whose override isn't on record.
        record_generation(
            self.lake, {"loop": loop, "generation": number, "override_reason": reason}
        )
        self.registry.promote(loop, number)
        record_promotion(self.lake, loop, number, now_us=now_us, override_reason=reason)

    def reset(self, loop: str, *, now_us: int, reason: str, by: str) -> None:
        """Go back to the cold start because a person says so, and record who and why.

        Raises
        ------
        InvalidInputError
            If no reason is given.
        """
        if not reason.strip():
            raise InvalidInputError("reason", "expected why the loop is reset")
        self.record_champion(loop, now_us)
        if self.registry.champion(loop) == 0:
            return
        explored = self.generation(loop, 0).exploration.describe()
        cold = {"generation": 0, "exploration": explored, "override_reason": reason}
        record_generation(self.lake, {"loop": loop} | cold)
        self.registry.reset(loop, Change(by=by, ts=now_us, reason=reason))
        record_promotion(self.lake, loop, 0, now_us=now_us, override_reason=reason)

    def next_number(self, loop: str) -> int:
        """Number that the loop's next generation gets."""
        known = self.lake.scan("generations", loop).select("generation").collect()["generation"]
        numbers: list[int] = [0, *known.to_list(), *self.registry.numbers(loop)]
        return 1 + max(numbers)

    def not_due(self, loop: str, now_us: int) -> str | None:
        """Why a loop needs no new generation yet; None if it is due."""
        latest = (
            self.lake.scan("generations", loop).select(pl.col("created").max()).collect().item()
        )
        if latest is None:
            return None
        age_us = now_us - round(latest.timestamp() * 1e6)
        if age_us >= self.loops[loop].model_export_frequency_us:
            return None
        return (
            f"not due: the latest generation is {age_us / 6e7:.1f} min old, and "
            f"model_export_frequency is {self.loops[loop].model_export_frequency}"
        )

    def record_champion(self, loop: str, now_us: int) -> None:
        """Put the registry's champion into the table, where it isn't there yet.

        A crash can have left it out, or somebody has moved the alias in MLflow. The latter is an
        override, and is recorded as one.
        """
        champion = self.registry.champion(loop)
        known = {
            row["generation"]: row
            for row in self.lake.scan("generations", loop).collect().iter_rows(named=True)
        }
        recorded = [number for number, row in known.items() if row["status"] == "champion"]
        if recorded == [champion]:
            return
        if champion == 0 and not recorded:
            explored = self.generation(loop, 0).exploration.describe()
            cold = {"generation": 0, "status": "champion", "exploration": explored}
            record_generation(self.lake, {"loop": loop} | cold)
            return
        row = known.get(champion, {})
        passed = row.get("status") == "challenger" and row.get("verdict") is not None
        explained = passed or row.get("override_reason") is not None
        reason = None if explained else "made champion in the registry, not by Croupier"
        record_promotion(self.lake, loop, champion, now_us=now_us, override_reason=reason)

    def _judged(self, loop: str, *generations: Generation) -> pl.DataFrame:
        """The judge's interactions, which none of the generations learned from."""
        return judged_interactions(
            self.lake,
            loop,
            self.loops[loop],
            generations,
            judge_share=self.config.judge_share,
            judge_window=self.config.judge_window,
        )

    def _require_challenger(self, loop: str, number: int) -> None:
        """Refuse what can't be promoted before anything is recorded of it."""
        if number == self.registry.champion(loop):
            raise InvalidInputError("generation", f"{number} is the champion of {loop} already")
        if number not in self.registry.numbers(loop):
            raise GenerationError(f"the registry has no generation {number} of loop {loop!r}")

    def _loop_night(self, loop: str, now_us: int, steps: Steps, *, due_only: bool) -> LoopNight:
        joined = self.join(loop, now_us=now_us)
        finish_published(self.lake, self.registry, loop)
        self.record_champion(loop, now_us)
        refresh_realised(self.lake, loop, confidence=self.config.gate.confidence)
        night = LoopNight(loop=loop, join=joined, champion=self.registry.champion(loop))
        try:
            night = self._challenge(night, now_us, steps, due_only=due_only)
        except NotEnoughDataError as reason:
            night = msgspec.structs.replace(night, skipped=str(reason))
        except (GenerationError, InvalidInputError, ScoringError) as error:
            night = msgspec.structs.replace(night, failed=str(error))
        return msgspec.structs.replace(night, champion=self.registry.champion(loop))

    def _challenge(
        self, night: LoopNight, now_us: int, steps: Steps, *, due_only: bool
    ) -> LoopNight:
        """Train a challenger, or take one that an earlier night has left, and judge it."""
        loop = night.loop
        last = self._last_trained(loop)
        idle = self.not_due(loop, now_us) if due_only else None
        if idle is None:
            idle = self._nothing_new(loop, last)
        if idle is None:
            with steps(f"{loop}: train") as progress:
                challenger = self.train(loop, now_us=now_us)
                self.publish(challenger, self.report(challenger))
                progress(1, 1)
        elif last is not None and last.undecided:
            challenger = self.generation(loop, last.generation)
        else:
            return msgspec.structs.replace(night, skipped=idle)
        night = msgspec.structs.replace(
            night,
            challenger=challenger.number,
            resumed=idle is not None,
            fidelity=None if idle is not None else fidelity_of(challenger),
        )
        try:
            with steps(f"{loop}: evaluate") as progress:
                evidence, verdict = self.promote_on_evidence(
                    challenger, now_us=now_us, progress=progress
                )
        except NotEnoughDataError as reason:
            return msgspec.structs.replace(night, skipped=str(reason))
        except (GenerationError, InvalidInputError, ScoringError) as error:
            return msgspec.structs.replace(night, failed=str(error))
        kind = "imitation" if isinstance(evidence, Imitation) else "evaluation"
        return msgspec.structs.replace(night, verdict=verdict, **{kind: evidence})

    def _last_trained(self, loop: str) -> LastTrained | None:
        """What a training now would be like the last one of, if the registry still has it."""
        config = self.config
        last = last_trained(
            self.lake, loop, self.loops[loop], judge_share=config.judge_share, seed=config.seed
        )
        there = last is not None and last.generation in self.registry.numbers(loop)
        return last if there else None

    def _nothing_new(self, loop: str, last: LastTrained | None) -> str | None:
        """Why a training would come to what there is; None if it wouldn't."""
        if last is None or anything_since(self.lake, loop, self.loops[loop], last.lake_version):
            return None
        return f"nothing has come since generation {last.generation} was trained"


def fidelity_of(generation: Generation) -> Fidelity | None:
    """How well a table that was distilled tonight stands for its oracle; None of any other kind."""
    oracle = generation.oracle
    return oracle.fidelity_ if isinstance(oracle, DistilledOracle) else None


def _fidelity_metrics(generation: Generation) -> dict[str, float]:
    fidelity = fidelity_of(generation)
    if fidelity is None:
        return {}
    return {f"fidelity_{name}": value for name, value in msgspec.structs.asdict(fidelity).items()}
