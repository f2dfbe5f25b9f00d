"""Commands that change what a loop serves: split, kill, resume."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, Session, user_name
from croupier.offline.registry import Change
from croupier.offline.tracking import RegistryError
from croupier.policy.errors import ConfigError, GenerationError, InvalidInputError
from croupier.service.scorer import now_us
from croupier.service.serving import KillSwitch, ServingDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.policy.traffic import Split

__all__ = ("describe_plan", "register")

_SHOWN_CHANGES = 10

LoopArgument = Annotated[str, typer.Argument(help="The loop.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(split)
    app.command()(kill)
    app.command()(resume)


def split(
    loop: LoopArgument,
    canary: Annotated[
        int | None, typer.Option(help="A generation to try on a share of the traffic.")
    ] = None,
    share: Annotated[float | None, typer.Option(help="The canary's share, in (0, 1).")] = None,
    shadow: Annotated[
        int | None, typer.Option(help="A generation to ask and log, and never to play.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take canary and shadow away.")] = False,
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show which generations share a loop's traffic, or give some of it to another one."""
    session = Session.open(config, data_dir, json=json)
    session.config.loop(loop)
    _check_options(canary, share, shadow, clear=clear)
    registry, change = session.registry, Change(user_name(), now_us(), reason)
    for number in (canary, shadow):
        if number is not None and number not in registry.numbers(loop):
            raise GenerationError(f"the registry has no generation {number} of loop {loop!r}")
    if canary is not None and share is not None:
        registry.set_canary(loop, canary, share, change)
    if shadow is not None:
        registry.set_shadow(loop, shadow, change)
    if clear:
        registry.clear_split(loop, change)
    plan, changes = registry.split(loop), registry.changes(loop)

    def show() -> None:
        session.output.remark(f"{loop}: {describe_plan(plan)}")
        if changes:
            session.output.table(
                "Changes",
                ["when", "by", "what", "why"],
                [
                    [datetime.fromtimestamp(each.ts / 1e6, tz=UTC), each.by, each.what, each.reason]
                    for each in changes[-_SHOWN_CHANGES:]
                ],
            )

    facts = {"loop": loop, "plan": msgspec.to_builtins(plan), "changes": changes}
    session.output.result(facts, show)


def kill(
    loop: LoopArgument,
    reason: Annotated[str, typer.Option(help="Why; recorded, and shown wherever it counts.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Have a loop's scorers play the application's own choice and nothing else.

    The scorers of this data directory are told at once, whatever the registry does; those of other
    machines hear of it from the registry.
    """
    session = Session.open(config, data_dir, json=json)
    session.config.loop(loop)
    if not reason.strip():
        raise InvalidInputError("reason", "expected why the loop is killed")
    change = Change(user_name(), now_us(), reason)
    # First, as MLflow takes seconds, or minutes if it is away.
    switch = KillSwitch(reason=reason, by=change.by, since_us=change.ts)
    _write(session, lambda serving: serving.kill(loop, switch))
    trouble = None
    try:
        session.registry.kill(loop, change)
    except RegistryError as error:
        trouble = str(error)

    def show() -> None:
        session.output.remark(f"{loop} is killed: the baseline is played until `croupier resume`")
        if trouble is not None:
            session.output.remark(f"only the scorers of {session.paths.root} know it: {trouble}")

    facts = {"loop": loop, "killed": reason, "here": True, "registry_error": trouble}
    session.output.result(facts, show)


def resume(
    loop: LoopArgument,
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Turn a loop's kill switch off, here and in the registry.

    Ends with exit code 1 if the registry can't be reached and may still have it on.
    """
    session = Session.open(config, data_dir, json=json)
    session.config.loop(loop)
    _write(session, lambda serving: serving.resume(loop))
    trouble = None
    try:
        session.registry.resume(loop, Change(user_name(), now_us(), reason))
    except RegistryError as error:
        trouble = str(error)

    def show() -> None:
        if trouble is None:
            session.output.remark(f"{loop} is no longer killed")
        else:
            session.output.remark(f"{loop} may still be killed in the registry: {trouble}")

    session.output.result({"loop": loop, "here": True, "registry_error": trouble}, show)
    raise typer.Exit(0 if trouble is None else 1)


def describe_plan(plan: Split) -> str:
    """A plan in a line for people."""
    if plan.killed is not None:
        return f"killed: {plan.killed}"
    parts = [f"champion {plan.generation}"]
    if plan.canary is not None:
        parts.append(f"canary {plan.canary} on {100 * plan.canary_share:g} %")
    if plan.shadow is not None:
        parts.append(f"shadow {plan.shadow}")
    return ", ".join(parts)


def _check_options(
    canary: int | None, share: float | None, shadow: int | None, *, clear: bool
) -> None:
    if clear and not (canary is None and share is None and shadow is None):
        raise InvalidInputError("clear", "expected neither --canary nor --share nor --shadow")
    if canary is not None and share is None:
        raise InvalidInputError("share", "expected the canary's share, in (0, 1)")
    if share is not None and canary is None:
        raise InvalidInputError("canary", "expected the generation that gets the share")


def _write(session: Session, write: Callable[[ServingDirectory], None]) -> None:
    try:
        write(ServingDirectory(session.paths.serving))
    except OSError as error:
        raise ConfigError(
            "data_dir", f"expected a directory to write to at {session.paths.serving}: {error}"
        ) from error
