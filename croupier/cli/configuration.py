"""``croupier config``: whether the configuration is right, and what there is to configure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import typer

from croupier.cli.config import load_config, with_settings
from croupier.cli.options import ConfigOption, DataDirOption, JsonOption
from croupier.cli.output import Output
from croupier.cli.reference import configuration_sections, reference_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.cli.config import CroupierConfig

__all__ = ("register",)

_SECRETS: Final = frozenset({"draw_secret", "key", "key_sha256", "password", "webhook"})
_HIDDEN: Final = "(secret)"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    config = typer.Typer(help="Check a configuration, or tell all there is.", no_args_is_help=True)
    config.command()(check)
    config.command()(reference)
    app.add_typer(config, name="config")


def check(
    config: ConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """Read file, environment and flags, and show what isn't the default; secrets are hidden.

    What can't be used is one line on stderr that names the field, and exit code 2. What is allowed
    and rarely meant is remarked on.
    """
    output = Output(json=json)
    read, paths = load_config(config, flags={"data_dir": data_dir})
    read = with_settings(read, paths)
    rows = [{"setting": name, "value": value} for name, value in _set(read, "")]
    cautions = list(_cautions(read))

    def show() -> None:
        output.table(
            f"What isn't the default; data in {paths.root}",
            ["setting", "value"],
            [[row["setting"], row["value"]] for row in rows],
        )
        for caution in cautions:
            output.remark(f"Caution: {caution}")

    output.result({"data_dir": str(paths.root), "settings": rows, "cautions": cautions}, show)


def reference(json: JsonOption = False) -> None:
    """Print every setting, what it takes, its default and what it means, as Markdown."""
    output = Output(json=json)
    output.result(
        [msgspec.to_builtins(each) for each in configuration_sections()],
        lambda: typer.echo(reference_page(), nl=False),
    )


def _set(section: Any, path: str) -> Iterator[tuple[str, str]]:
    """Dotted names and values of what isn't the default."""
    if isinstance(section, dict):
        for key, value in section.items():
            yield from _set(value, f"{path}.{key}")
        return
    if not isinstance(section, msgspec.Struct):
        yield path, msgspec.json.encode(section).decode()
        return
    tag = section.__struct_config__
    if tag.tag is not None:
        yield f"{path}.{tag.tag_field}", str(tag.tag)
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        inner = f"{path}.{field.name}".lstrip(".")
        if field.default is not msgspec.NODEFAULT and value == field.default:
            continue
        if field.name in _SECRETS and value is not None:
            yield inner, _HIDDEN
        elif isinstance(value, dict) and not any(
            isinstance(v, msgspec.Struct) for v in value.values()
        ):
            if value:
                yield inner, msgspec.json.encode(value).decode()
        else:
            yield from _set(value, inner)


def _cautions(config: CroupierConfig) -> Iterator[str]:
    """What is allowed and rarely meant."""
    if not config.loops:
        yield "no loop is configured, so there is nothing to decide"
    local = config.service.host in ("127.0.0.1", "::1", "localhost")
    if not local and config.service.draw_secret is None and config.log.backend == "kafka":
        yield (
            "service.draw_secret isn't set: several scorers would draw the same decision_id "
            "differently"
        )
    if config.log.backend == "kafka" and config.registry.tracking_uri is None:
        yield "registry.tracking_uri isn't set: scorers on other machines find no generations"
    if config.log.backend == "kafka" and config.log.kafka.replication == 1:
        yield "log.kafka.replication is 1: what a lost broker held is lost"
    for name, loop in config.loops.items():
        caution = getattr(loop.exploration, "caution", None)
        if caution is not None:
            yield f"loops.{name}.exploration: {caution}"
