"""Commands about who is champion: promote, rollback, report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
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
from croupier.offline.gate import Verdict
from croupier.offline.generations import generation_rows
from croupier.offline.overrides import act_on_overrides, asked_overrides, state_of
from croupier.offline.promotion_report import report_json
from croupier.offline.report_page import page
from croupier.policy.errors import InvalidInputError
from croupier.service.scorer import now_us

if TYPE_CHECKING:
    from croupier.offline.finding import Section
    from croupier.offline.overrides import AskedOverride, OverrideState
    from croupier.offline.promotion_report import PromotionReport

__all__ = ("register",)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(promote)
    app.command()(rollback)
    app.command()(overrides)
    app.command()(report)


def promote(
    loop: Annotated[str, typer.Argument(help="The loop.")],
    generation: Annotated[int, typer.Argument(help="Number of a registered generation.")],
    override: Annotated[bool, typer.Option(help="Promote without asking the gate.")] = False,
    reason: Annotated[str, typer.Option(help="Why the gate is overridden; recorded.")] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Promote a generation to champion if the gate lets it through."""
    session = Session.open(config, data_dir, json=json)
    session.config.loop(loop)
    if reason and not override:
        raise InvalidInputError("reason", "expected --override with it; the gate needs none")
    verdict = Verdict(promote=True, reasons=[f"overridden: {reason}"])
    with session.lake.lock():
        if override:
            session.nightly.override(
                loop, generation, now_us=now_us(), reason=reason, by=user_name()
            )
        else:
            challenger = session.nightly.generation(loop, generation)
            with session.output.progress(f"{loop}: evaluate") as progress:
                _, verdict = session.nightly.promote_on_evidence(
                    challenger, now_us=now_us(), progress=progress
                )
    place = session.nightly.report_place(loop, generation)
    word = "promoted" if verdict.promote else "not promoted"

    def show() -> None:
        session.output.remark(
            f"generation {generation} of {loop} {word}: {'; '.join(verdict.reasons)}"
        )
        session.output.remark(f"promotion report at {place}")

    session.output.result(_facts(verdict) | {"report": place}, show)
    raise typer.Exit(0 if verdict.promote else 1)


def rollback(
    reason: Annotated[str, typer.Option(help="Why; recorded.")],
    loop: LoopOption = None,
    to: Annotated[
        int | None,
        typer.Option(help="An earlier champion, 0 for the cold start; the one before if left out."),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make the champion before champion again; scorers pick it up as they do a promotion."""
    session = Session.open(config, data_dir, json=json)
    name = session.one_loop(loop)
    with session.lake.lock():
        done = session.nightly.rollback(name, now_us=now_us(), reason=reason, by=user_name(), to=to)
    session.output.result(
        done,
        lambda: session.output.remark(
            f"{name}: rolled back from generation {done.left} to {_called(done.restored)}; "
            "until another one is promoted, the gate hears only what is decided from now on"
        ),
    )


def overrides(
    loop: LoopOption = None,
    act: Annotated[
        bool, typer.Option("--act", help="Make the change that waits, as the next night would.")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List the champions that people have asked for on the dashboard, and what became of it."""
    session = Session.open(config, data_dir, json=json)
    done: dict[str, str | None] = {}
    if act:
        with session.lake.lock():
            for name in session.loops(loop):
                session.nightly.record_champion(name, now_us())
                done[name] = act_on_overrides(session.nightly, name, now_us=now_us())
    found = [
        {"loop": name, "state": state} | msgspec.structs.asdict(asked)
        for name in session.loops(loop)
        for asked, state in _with_states(session, name)
    ]

    def show() -> None:
        for name, told in done.items():
            session.output.remark(f"{name}: {told or 'nothing waits'}")
        columns = ["loop", "when", "by", "asked for", "in the place of", "state", "why"]
        table = [
            [
                *(row["loop"], row["ts"], row["by"], f"{row['action']} {row['generation']}"),
                *(row["champion"], row["state"], row["reason"]),
            ]
            for row in found
        ]
        session.output.table("Overrides", columns, table)

    session.output.result({"done": done, "overrides": found}, show)


def _with_states(session: Session, loop: str) -> list[tuple[AskedOverride, OverrideState]]:
    asked, rows = asked_overrides(session.lake, loop), generation_rows(session.lake, loop)
    champion = session.registry.champion(loop) if asked else 0
    return [
        (each, state_of(each, rows, champion, last=each is asked[-1])) for each in reversed(asked)
    ]


def report(
    loop: LoopOption = None,
    generation: Annotated[
        int | None, typer.Option(help="Whose report; the newest generation's if left out.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write it there: as a page, or as JSON if the name ends so."),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show what was found about a generation before it was promoted, or wasn't, and what then came.

    The page needs no network and runs no script.
    """
    session = Session.open(config, data_dir, json=json)
    name = session.one_loop(loop)
    number = generation
    if number is None:
        number = max(session.registry.numbers(name), default=0)
    if number == 0:
        raise InvalidInputError(
            "generation",
            f"expected a registered generation of {name}; the cold start has no report",
        )
    found = session.nightly.promotion_report(name, number)
    if found is None:
        raise InvalidInputError(
            "generation", f"expected one that was judged or promoted, got {number}"
        )
    if output is not None:
        _write(output, report_json(found) if output.suffix == ".json" else page(found))
    place = str(output) if output is not None else session.nightly.report_place(name, number)
    # As it is kept, where numbers that JSON doesn't have are text.
    told = msgspec.json.decode(report_json(found))
    session.output.result(told, lambda: _show(session, found, place))


def _facts(verdict: Verdict) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(verdict)
    return facts


def _called(number: int) -> str:
    return "the cold start" if number == 0 else f"generation {number}"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidInputError("output", f"expected a file to write: {error}") from error


def _show(session: Session, found: PromotionReport, place: str) -> None:
    output, judged = session.output, found.judged
    if judged is not None:
        rows = [row for section in judged.verdict.sections for row in _rows(section)]
        output.table(
            f"{found.loop}: generation {found.generation} against {judged.against}",
            ["section", "what", "value", "interval", "limit", "holds"],
            rows,
        )
    output.table(
        f"{found.loop}: what happened to generation {found.generation}",
        ["when", "what", "by", "told"],
        [
            [datetime.fromtimestamp(each.ts / 1e6, tz=UTC), each.kind, each.by or "–", each.told]
            for each in found.events
        ],
    )
    if judged is not None:
        gate = "lets it through" if judged.verdict.promote else "holds it back"
        output.remark(f"The gate {gate}: {'; '.join(judged.verdict.reasons)}")
    output.remark(f"promotion report at {place}")


def _rows(section: Section) -> list[list[object]]:
    if not section.measured:
        return [[section.title, f"not measured: {section.note}", None, "–", "–", None]]
    return [
        [
            *(section.title, each.name, each.value, interval(each.lower, each.upper)),
            "–" if each.limit is None else f"{each.bound} {each.limit:g}",
            each.holds,
        ]
        for each in section.findings
    ]
