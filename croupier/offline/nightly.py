"""The nightly job: sink, join, retrain, evaluate, gate, register, promote, forget, summarise."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from croupier.offline.alerts import AlertRules
from croupier.offline.champions import evidence_since
from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import Evaluation, evaluate
from croupier.offline.fairness.fairness_section import judge_fairness
from croupier.offline.fairness.individual_gate import individual_section, violation_rows
from croupier.offline.fairness.individuals import judged_table
from croupier.offline.fairness.signals import refresh_fairness
from croupier.offline.finding import Section
from croupier.offline.gate import GateConfig, Verdict, judge_challenger, with_sections
from croupier.offline.generations import (
    RECURRENT,
    generation_rows,
    judged_row,
    published_row,
    record_generation,
    record_promotion,
    record_violations,
    refresh_realised,
)
from croupier.offline.imitation import Imitation, judge_imitation, served_match_rate
from croupier.offline.interactions import current_interactions
from croupier.offline.join import JoinReport, join
from croupier.offline.judged import judged_interactions
from croupier.offline.log_calibration import LogCalibration, calibrate_log
from croupier.offline.merged_training import MergeConfig, Spread
from croupier.offline.night import LoopNight, NightlyReport
from croupier.offline.overrides import act_on_overrides
from croupier.offline.promotion_report import Judged, keep_judgement
from croupier.offline.report import TrainingReport, report_on
from croupier.offline.retention import retain
from croupier.offline.retrain import retrain
from croupier.offline.session_gate import judge_over_sessions
from croupier.offline.simulator_gap import gap_rows, measure_gaps
from croupier.offline.sink import sink
from croupier.offline.standing import anything_since, finish_published, last_trained
from croupier.offline.succession import PASSED, Succession
from croupier.offline.summaries.summarise import summarise_night
from croupier.policy.errors import (
    GenerationError,
    InvalidInputError,
    NotEnoughDataError,
    ScoringError,
)
from croupier.policy.exploration import Conservative
from croupier.policy.fairness.groups import parts_of
from croupier.policy.loop import parse_duration
from croupier.policy.oracle import AutoOracle, Became, DistilledOracle, Fidelity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from croupier.eventlog.log import EventLog
    from croupier.offline.engine import Engine
    from croupier.offline.fairness.candidate_audit import CandidateAudit
    from croupier.offline.lake import Lake
    from croupier.offline.night import Steps
    from croupier.offline.registry import Registry
    from croupier.offline.simulator_gap import Simulate
    from croupier.offline.standing import LastTrained
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("Nightly", "NightlyConfig", "became_of", "fidelity_of")


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
    segments
        By loop, what the dashboards tell decisions apart by beside its fairness.attributes, in the
        same words: audit attributes, paths in the context, or some of them crossed.
    alerts
        When the night raises an alert.
    """

    judge_share: float = 0.3
    judge_window: str | None = None
    seed: int = 0
    settle: str = "1 s"
    gate: GateConfig = GateConfig()
    merge: MergeConfig = MergeConfig()
    segments: dict[str, tuple[str, ...]] = {}
    alerts: AlertRules = AlertRules()

    def __post_init__(self) -> None:
        parse_duration(self.settle)
        if self.judge_window is not None:
            parse_duration(self.judge_window)
        if not 0.05 <= self.judge_share <= 0.95:
            raise ValueError(f"judge_share must be in [0.05, 0.95], got {self.judge_share}")
        for names in self.segments.values():
            for name in names:
                parts_of(name)


class Nightly(Succession):
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
    simulate
        Learns simulators of users and plays in them; None where what that takes isn't installed.
    """

    def __init__(
        self,
        lake: Lake,
        registry: Registry,
        loops: Mapping[str, LoopConfig],
        config: NightlyConfig,
        *,
        engine: Engine = LOCAL,
        simulate: Simulate | None = None,
    ) -> None:
        super().__init__(lake, registry, loops)
        self.config = config
        self.engine = engine
        self.simulate = simulate

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
            with steps("summarise") as progress:
                for number, night in enumerate(nights, start=1):
                    summarise_night(self, night, sunk, started_us=now_us)
                    progress(number, len(nights))
        return NightlyReport(sink=sunk, loops=nights, retention=kept)

    def join(self, loop: str, *, now_us: int) -> JoinReport:
        """Join a loop's decisions whose windows have closed and settled."""
        settled = now_us - parse_duration(self.config.settle)
        return join(self.lake, loop, self.loops[loop], settled, engine=self.engine)

    def train(self, loop: str, *, now_us: int) -> Generation:
        """Train a loop's next generation against its present champion; doesn't publish it.

        Raises
        ------
        NotEnoughDataError
            If there is too little to learn from.
        """
        config, parent = self.loops[loop], self.registry.champion(loop)
        champion = None
        if config.training.needs_champion and parent != 0:
            teaches = config.training.start == "champion"
            champion = self.registry.load(loop, parent, to_learn=teaches)
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
            "oracle": _kind_of(generation, loop),
        }
        became = became_of(generation)
        origin = {
            name: value
            for name, value in msgspec.structs.asdict(provenance).items()
            if value is not None
        }
        if generation.recurrent is not None:
            origin["training"] = generation.recurrent.config.training.settings
        share = self.config.judge_share
        run_id = self.registry.publish(
            generation,
            params=origin
            | described
            | {
                "generation": generation.number,
                "config": msgspec.json.encode(loop).decode(),
                "judge_share": share,
            }
            | ({} if became is None else {"became": became.kind}),
            metrics={"training_rows": provenance.training_rows}
            | _fidelity_metrics(generation)
            | _size_metrics(became)
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
        evaluation, _, _, verdict = self._judgement(challenger, progress)
        return evaluation, verdict

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
        unneeded = Section.unmeasured("calibration", "an apprentice is judged without propensities")
        rows = self.judged(loop, champion, challenger)
        with self._saying_what_counts(challenger):
            imitation, verdict = judge_imitation(
                rows, champion, challenger, confidence=confidence, progress=progress
            )
        verdict = with_sections(verdict, self.config.gate, [unneeded])
        if isinstance(self.loops[loop].exploration, Conservative):
            # Its shadows play the baseline whatever they have learned, and say nothing.
            return imitation, verdict
        logged = current_interactions(self.lake, loop).select(
            "learning_mode", "shadow", "baseline", "keep_prob"
        )
        served = served_match_rate(logged.collect(), confidence=confidence)
        return msgspec.structs.replace(imitation, served=served), verdict

    def judged(self, loop: str, *generations: Generation) -> pl.DataFrame:
        """The judge's interactions, which none of some generations learned from.

        Parameters
        ----------
        loop
            Whose.
        generations
            The last one is the challenger, for which not all may be evidence.
        """
        found = judged_interactions(
            self.lake,
            loop,
            self.loops[loop],
            generations,
            judge_share=self.config.judge_share,
            judge_window=self.config.judge_window,
        )
        since = evidence_since(generation_rows(self.lake, loop), generations[-1].number)
        return found if since is None else found.filter(pl.col("ts") > since)

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
        self.require_challenger(loop, number)
        self.record_champion(loop, now_us)
        champion = self.registry.champion(loop)
        since = evidence_since(generation_rows(self.lake, loop), number)
        calibration: LogCalibration | None = None
        fairness: CandidateAudit | None = None
        evidence: Evaluation | Imitation
        if self.loops[loop].learning_mode == "apprentice":
            evidence, verdict = self.judge_imitation(challenger, progress)
        else:
            evidence, calibration, fairness, verdict = self._judgement(challenger, progress)
        judged = Judged(
            ts=now_us,
            against=champion,
            gate=self.config.gate,
            verdict=verdict,
            since=None if since is None else round(since.timestamp() * 1e6),
            evaluation=evidence if isinstance(evidence, Evaluation) else None,
            calibration=calibration,
            fairness=fairness,
            imitation=evidence if isinstance(evidence, Imitation) else None,
        )
        # First: a verdict that is on record is not worked out again, nor is its report.
        keep_judgement(self.registry, self.row(loop, number), judged)
        record_generation(self.lake, judged_row(loop, number, judged))
        if verdict.promote:
            self.registry.promote(loop, number)
            self.note(loop, number, "promoted", PASSED, now_us)
            record_promotion(self.lake, loop, number, now_us=now_us)
        return evidence, verdict

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

    def _judgement(
        self, challenger: Generation, progress: Callable[[int, int], None] | None
    ) -> tuple[Evaluation, LogCalibration, CandidateAudit | None, Verdict]:
        """Test the log that judges, evaluate both policies on it, and ask the gate."""
        loop, gate = challenger.loop, self.config.gate
        champion = self.generation(loop, self.registry.champion(loop))
        if champion.recurrent is not None or challenger.recurrent is not None:
            with self._saying_what_counts(challenger):
                judged = judge_over_sessions(
                    self.lake,
                    self.loops[loop],
                    gate,
                    (champion, challenger),
                    since=evidence_since(generation_rows(self.lake, loop), challenger.number),
                    seed=self.config.seed,
                    progress=progress,
                )
            return judged.evaluation, judged.calibration, None, judged.verdict
        rows = self.judged(loop, champion, challenger)
        with self._saying_what_counts(challenger):
            evaluation = evaluate(
                rows,
                champion,
                challenger,
                self.loops[loop],
                confidence=gate.confidence,
                progress=progress,
                engine=self.engine,
            )
        calibration = calibrate_log(self.lake, loop, rows, level=gate.calibration_level)
        fairness, section = judge_fairness(
            rows, (champion, challenger), self.loops[loop], limits=gate, engine=self.engine
        )
        auditors = self.loops[loop].individual_fairness
        alike = individual_section(
            auditors,
            rows,
            None if auditors is None else judged_table(self.lake, loop),
            champion,
            challenger,
            confidence=gate.confidence,
        )
        verdict = judge_challenger(gate, evaluation, [calibration.section(), section, alike])
        return evaluation, calibration, fairness, verdict

    @contextmanager
    def _saying_what_counts(self, challenger: Generation) -> Iterator[None]:
        """Where there are too few rows after a rollback, say that there was one."""
        try:
            yield
        except NotEnoughDataError as error:
            rows = generation_rows(self.lake, challenger.loop)
            since = evidence_since(rows, challenger.number)
            if since is None:
                raise
            raise NotEnoughDataError(
                f"{error}; after a rollback only decisions since {since:%Y-%m-%d %H:%M:%S} count"
            ) from error

    def _loop_night(self, loop: str, now_us: int, steps: Steps, *, due_only: bool) -> LoopNight:
        joined = self.join(loop, now_us=now_us)
        finish_published(self.lake, self.registry, loop)
        self.record_champion(loop, now_us)
        overridden = act_on_overrides(self, loop, now_us=now_us)
        refresh_realised(self.lake, loop, confidence=self.config.gate.confidence)
        fairness = self.loops[loop].individual_fairness
        if fairness is not None:
            record_violations(
                self.lake,
                violation_rows(self.lake, loop, fairness, confidence=self.config.gate.confidence),
            )
        night = LoopNight(
            loop=loop, join=joined, champion=self.registry.champion(loop), overridden=overridden
        )
        try:
            risen = refresh_fairness(self.lake, loop, self.loops[loop])
            night = msgspec.structs.replace(night, disparities=tuple(r.told() for r in risen))
        except InvalidInputError as error:
            # An attribute that is none is no reason to train nothing.
            night = msgspec.structs.replace(night, unaudited=str(error))
        night = self._measured_gaps(night, steps)
        try:
            night = self._challenge(night, now_us, steps, due_only=due_only)
        except NotEnoughDataError as reason:
            night = msgspec.structs.replace(night, skipped=str(reason))
        except (GenerationError, InvalidInputError, ScoringError) as error:
            night = msgspec.structs.replace(night, failed=str(error))
        return msgspec.structs.replace(night, champion=self.registry.champion(loop))

    def _measured_gaps(self, night: LoopNight, steps: Steps) -> LoopNight:
        """With the gap of the loop's simulators, on record, or why it wasn't measured."""
        loop, config = night.loop, self.loops[night.loop]
        if config.simulators is None:
            return night
        if self.simulate is None:
            missing = "expected JAX to be installed: pip install 'croupier[sim2rec]'"
            return msgspec.structs.replace(night, unsimulated=missing)
        try:
            with steps(f"{loop}: simulate") as progress:
                gaps = measure_gaps(
                    self.lake,
                    loop,
                    config,
                    lambda number: self.generation(loop, number),
                    self.simulate,
                    seed=self.config.seed,
                    confidence=self.config.gate.confidence,
                    progress=progress,
                )
        except (NotEnoughDataError, InvalidInputError, GenerationError, ScoringError) as reason:
            # Simulators that can't be learned are no reason to train nothing.
            return msgspec.structs.replace(night, unsimulated=str(reason))
        version = self.lake.version("interactions")
        for row in gap_rows(loop, gaps, version):
            record_generation(self.lake, row)
        return msgspec.structs.replace(night, gaps=tuple(gaps))

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
            became=became_of(challenger),
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
        place = self.report_place(loop, challenger.number)
        return msgspec.structs.replace(night, verdict=verdict, report=place, **{kind: evidence})

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


def _kind_of(generation: Generation, loop: LoopConfig) -> str:
    """What decides in a generation, in a word."""
    if generation.recurrent is not None:
        return RECURRENT
    # One that was put over the API need not be of the loop's present kind.
    return str(getattr(generation.oracle, "config", loop.oracle).__struct_config__.tag)


def fidelity_of(generation: Generation) -> Fidelity | None:
    """How well a table that was distilled tonight stands for its oracle; None of any other kind."""
    oracle = generation.oracle
    return oracle.fidelity_ if isinstance(oracle, DistilledOracle) else None


def became_of(generation: Generation) -> Became | None:
    """What an oracle that chooses by size has become; None of any other kind."""
    oracle = generation.oracle
    return oracle.became_ if isinstance(oracle, AutoOracle) else None


def _size_metrics(became: Became | None) -> dict[str, float]:
    if became is None or became.columns is None:
        return {}
    return {"became_columns": became.columns}


def _fidelity_metrics(generation: Generation) -> dict[str, float]:
    fidelity = fidelity_of(generation)
    if fidelity is None:
        return {}
    return {f"fidelity_{name}": value for name, value in msgspec.structs.asdict(fidelity).items()}
