"""Individual fairness on the command line: ``croupier audit --pairs`` and ``croupier judge``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import polars as pl
import typer

from croupier.cli.options import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    LoopOption,
    Session,
    user_name,
)
from croupier.cli.output import interval
from croupier.eventlog.log import Record
from croupier.offline.fairness.individuals import REQUEST
from croupier.offline.fairness.pair_audit import (
    PairAudit,
    Side,
    audit_pairs,
    pair_sides,
    proposed_pairs,
    rows_beside,
)
from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.policy.fairness.config import IndividualFairness, WeightedDistance
from croupier.policy.fairness.judging import ALIKE, NOT_ALIKE, judgement_of
from croupier.service.ids import now_us, uuid7

if TYPE_CHECKING:
    from croupier.offline.fairness.pair_audit import AuditedPair

__all__ = ("PairOptions", "register", "run_pairs")

_GIVEN = "given"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(judge)


class PairOptions(NamedTuple):
    """What ``croupier audit --pairs`` was asked for, over what the loop configures.

    Attributes
    ----------
    distance
        Weights of a distance in the place of the loop's auditors, as a JSON object.
    alpha, gamma, action
        In the place of the loop's; its own if None.
    propose, worst
        How many pairs to propose, and how many violations to show.
    most
        How many decisions are looked through.
    """

    distance: str | None = None
    alpha: float | None = None
    gamma: float | None = None
    action: str | None = None
    propose: int = 10
    worst: int = 10
    most: int = 1_000_000

    def over(self, config: IndividualFairness | None) -> IndividualFairness:
        """The loop's configuration with what was asked for instead.

        Raises
        ------
        InvalidInputError
            If an option can't be, or there are no auditors at all.
        """
        given: dict[str, Any] = {
            name: value
            for name, value in (
                ("alpha", self.alpha),
                ("gamma", self.gamma),
                ("action", self.action),
            )
            if value is not None
        }
        if self.distance is not None:
            given["auditors"] = {_GIVEN: _distance(self.distance)}
        if config is None and "auditors" not in given:
            raise InvalidInputError(
                "distance",
                "expected --distance, or [loops.<name>.individual_fairness] in the configuration",
            )
        fields = {} if config is None else msgspec.structs.asdict(config)
        try:
            return IndividualFairness(**(fields | given))
        except ValueError as error:
            field, _, expected = str(error).partition(" ")
            raise InvalidInputError(field, expected) from error


def run_pairs(session: Session, only: str | None, options: PairOptions) -> bool:
    """Audit the pairs of one loop or of all that have auditors; whether all is well.

    Raises
    ------
    InvalidInputError
        If no loop has auditors, or an option can't be.
    """
    names = session.loops(only)
    if only is None and options.distance is None:
        names = [
            name for name in names if session.config.loop(name).individual_fairness is not None
        ] or names
    audits: dict[str, PairAudit] = {}
    for name in names:
        config = options.over(session.config.loop(name).individual_fairness)
        with session.output.progress(f"{name}: compare pairs") as progress:
            audits[name] = audit_pairs(
                session.lake,
                name,
                config,
                most=options.most,
                shown=options.worst,
                proposals=options.propose,
                progress=progress,
            )

    def show() -> None:
        for found in audits.values():
            _show(session, found)

    session.output.result(audits, show)
    return not any(found.rises for found in audits.values())


def judge(
    decision: Annotated[
        str | None, typer.Argument(help="Id of a decision; a pair is proposed unless given.")
    ] = None,
    other: Annotated[str | None, typer.Argument(help="Id of the decision beside it.")] = None,
    distance: Annotated[
        float | None, typer.Option(help="How differently the two may be treated, in [0, 1].")
    ] = None,
    alike: Annotated[
        bool | None, typer.Option("--alike/--not-alike", help="The same as 0 and as 1.")
    ] = None,
    auditor: Annotated[str | None, typer.Option(help="Who judges; you unless given.")] = None,
    judgement_id: Annotated[
        str | None, typer.Option("--id", help="Of the judgement: the same one counts once.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many pairs to propose.")] = 10,
    loop: LoopOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Say how differently two decisions may be treated: of a pair, or of those that are proposed.

    What was judged goes into the event log, and from there into the lake with the next sink. With a
    pair and a verdict nothing is asked. With --json and no verdict the pairs are only told.
    """
    session = Session.open(config, data_dir, json=json)
    name = session.one_loop(loop)
    verdict = _verdict(distance, alike)
    if (decision is None) != (other is None):
        raise InvalidInputError("other", "expected the ids of two decisions, or of none")
    who = auditor or user_name()
    fairness = session.config.loop(name).individual_fairness
    if decision is not None and other is not None:
        one, two = _sides(session, name, fairness, decision, other)
        if verdict is None and not json:
            _show_pair(session, one, two)
            verdict = _asked(0, 1)
        if verdict is None or verdict < 0.0:
            session.output.result([[one, two]], lambda: None)
            return
        _judged(session, name, (one, two), who, verdict, judgement_id)
        return
    if verdict is not None:
        raise InvalidInputError("decision", "expected the ids of two decisions with a verdict")
    if fairness is None:
        raise ConfigError(
            f"loops.{name}.individual_fairness", "expected auditors, by whom pairs are proposed"
        )
    pairs = proposed_pairs(session.lake, name, fairness, count=count, seed=time.time_ns() % 2**32)
    if json:
        session.output.result(pairs, lambda: None)
        return
    _judge_proposed(session, name, pairs, who)


def _judge_proposed(session: Session, loop: str, pairs: list[AuditedPair], who: str) -> None:
    if not pairs:
        session.output.remark(f"{loop}: no pair is treated differently enough to be judged")
    for number, pair in enumerate(pairs):
        _show_pair(session, pair.first, pair.second)
        verdict = _asked(number, len(pairs))
        if verdict is None:
            continue
        if verdict < 0.0:
            return
        _judged(session, loop, (pair.first, pair.second), who, verdict, None)


def _judged(
    session: Session,
    loop: str,
    pair: tuple[Side, Side],
    who: str,
    distance: float,
    judgement_id: str | None,
) -> None:
    now = now_us()
    event = judgement_of(
        loop,
        pair[0].decision_id,
        pair[1].decision_id,
        auditor=who,
        distance=distance,
        judgement_id=uuid7(now) if judgement_id is None else judgement_id,
        ts=now,
    )
    with session.writer() as log:
        log.append([Record.of(event)])
    session.output.result(
        event,
        lambda: session.output.remark(
            f"{loop}: {who} has judged that these two may be treated differently by {distance:g} "
            f"(judgement {event.judgement_id})"
        ),
    )


def _verdict(distance: float | None, alike: bool | None) -> float | None:
    if alike is None:
        return distance
    if distance is not None:
        raise InvalidInputError("distance", "expected either --distance or --alike / --not-alike")
    return ALIKE if alike else NOT_ALIKE


def _asked(number: int, count: int) -> float | None:
    """What a person says; None to skip the pair, below 0 to end."""
    while True:
        prompt = f"[{number + 1}/{count}] distance in [0, 1], a(like), n(ot alike), s(kip), q(uit)"
        answer = typer.prompt(prompt).strip().lower()
        if answer in {"a", "alike"}:
            return ALIKE
        if answer in {"n", "not alike"}:
            return NOT_ALIKE
        if answer in {"s", "skip"}:
            return None
        if answer in {"q", "quit"}:
            return -1.0
        try:
            distance = float(answer)
        except ValueError:
            distance = -1.0
        if 0.0 <= distance <= 1.0:
            return distance
        sys.stderr.write(f"expected a number in [0, 1], a, n, s or q, got {answer!r}\n")


def _sides(session: Session, loop: str, config: IndividualFairness | None, *ids: str) -> list[Side]:
    """The two decisions, out of the lake."""
    rows = (
        session.lake.scan("decisions", loop)
        .select(REQUEST)
        .filter(pl.col("decision_id").is_in(ids), pl.col("slot").is_null())
        .collect()
        .unique("decision_id", keep="first")
    )
    fairness = config or IndividualFairness(auditors={_GIVEN: WeightedDistance(weights={"": 0.0})})
    found = {side.decision_id: side for side in pair_sides(rows, fairness)}
    for field, decision_id in zip(("decision", "other"), ids, strict=True):
        if decision_id not in found:
            raise InvalidInputError(
                field, f"expected a decision of {loop} in the lake, got {decision_id!r}"
            )
    return [found[each] for each in ids]


def _show_pair(session: Session, one: Side, two: Side) -> None:
    rows = [
        [name, *(round(each, 4) if isinstance(each, float) else each for each in values)]
        for name, *values in rows_beside(one, two)
    ]
    session.output.table(
        "How differently may these two be treated?", ["", one.decision_id, two.decision_id], rows
    )


def _show(session: Session, found: PairAudit) -> None:
    output = session.output
    output.table(
        f"{found.loop}: who judges (α = {found.alpha:g}, γ = {found.gamma:g})",
        ["auditor", "kind", "judgements", "weights", "held-out error", "abstains"],
        [
            [
                each.name,
                each.kind,
                each.judgements,
                ", ".join(f"{path} {weight:.3g}" for path, weight in each.weights.items()) or None,
                each.held_out_error,
                each.abstains,
            ]
            for each in found.auditors
        ],
    )
    output.table(
        f"{found.loop}: violation rate by generation",
        ["generation", "rate", "interval", "pairs' worth"],
        [
            [
                each.generation,
                each.violation_rate,
                interval(each.violation_lower, each.violation_upper),
                round(each.violation_pairs),
            ]
            for each in found.generations
        ],
        note=_rise(found),
    )
    how = "all pairs compared" if found.exact else f"{100 * found.settled:.2f} % settled"
    output.remark(
        f"{found.loop}: {found.violators:,} of {found.decisions:,} decisions violate with another "
        f"one ({how}); {found.left_out:,} can't be compared"
    )
    _show_pairs(session, f"{found.loop}: the worst violations", found.worst, excess=True)
    _show_pairs(session, f"{found.loop}: pairs to be judged", found.proposed, excess=False)


def _rise(found: PairAudit) -> str:
    last = found.generations[-1] if found.generations else None
    if last is None or last.violation_p_value is None:
        return "Of fewer than two learned generations nothing can be said about a rise."
    word = "It rises" if last.violations_rise else "No rise is shown"
    return f"{word} across learned generations (p = {last.violation_p_value:.2g})."


def _show_pairs(
    session: Session, title: str, pairs: tuple[AuditedPair, ...], *, excess: bool
) -> None:
    if not pairs:
        return
    more = ["excess"] if excess else ["±", "chance"]
    rows: list[list[object]] = []
    for each in pairs:
        ends: list[object] = [each.excess] if excess else [each.uncertainty, each.chance]
        ids = [each.first.decision_id, each.second.decision_id]
        rows.append([*ids, each.gap, each.distance, *ends])
    session.output.table(title, ["decision", "other", "gap", "distance", *more], rows)


def _distance(text: str) -> WeightedDistance:
    try:
        weights = msgspec.json.decode(text, type=dict[str, float])
        return WeightedDistance(weights=weights)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidInputError(
            "distance", f"expected a JSON object of weights by feature: {error}"
        ) from error
