"""Every setting there is, told from the types that it is read into and what is written there."""

from __future__ import annotations

import inspect
import re
import typing
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from croupier.cli.config import CroupierConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Section", "Setting", "configuration_sections", "reference_page")

_INTRODUCTION = """\
# Every setting

What `croupier config reference` prints: the sections of `croupier.toml`, told from the code. A
section's name is in brackets, `<name>` being one of your own choosing. Environment variables are
put over the file, and flags over both: `CROUPIER_SERVICE__PORT=9000` sets `service.port`. Any value
can be left to a file, as secrets should be: `draw_secret = { file = "/run/secrets/draw" }`, or
`CROUPIER_SERVICE__DRAW_SECRET='{ file = "/run/secrets/draw" }'`. `croupier config check` reads it
all, says what is wrong with it, and shows what isn't the default.
"""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A field that can be configured.

    Attributes
    ----------
    name
        Of the field.
    type
        What it takes.
    default
        As in a TOML file; None if it has to be given.
    description
        What it means.
    """

    name: str
    type: str
    default: str | None
    description: str


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A section that can be configured.

    Attributes
    ----------
    name
        Dotted, with ``<name>`` where the user chooses.
    kind
        What tells it from others in the same place: its `kind` or `type`; None if it is alone.
    description
        What it is.
    settings
        Its fields, without the sections below it.
    """

    name: str
    kind: str | None
    description: str
    settings: tuple[Setting, ...]


def configuration_sections() -> list[Section]:
    """All sections, each after the one that it is in, once."""
    return list(_sections(CroupierConfig, "", set()))


def reference_page() -> str:
    """All of it as a page of Markdown."""
    parts = [_INTRODUCTION]
    for section in configuration_sections():
        kind = f", `{section.kind}`" if section.kind else ""
        parts.append(f"## {f'`[{section.name}]`' if section.name else 'At the top'}{kind}\n")
        parts.append(section.description + "\n")
        if section.settings:
            parts.append("| setting | takes | default | |\n|---|---|---|---|")
            parts.append("\n".join(_row(each) for each in section.settings) + "\n")
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    default = "required" if setting.default is None else f"`{setting.default}`"
    cells = (f"`{setting.name}`", setting.type, default, setting.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _sections(struct: type[msgspec.Struct], name: str, seen: set[type]) -> Iterator[Section]:
    seen.add(struct)
    described = _attributes(struct)
    settings: list[Setting] = []
    below: list[tuple[type[msgspec.Struct], str]] = []
    for field in msgspec.structs.fields(struct):
        path = f"{name}.{field.name}".lstrip(".")
        inner = list(_structs(field.type))
        below += [(each, _path(path, field.type)) for each in inner]
        if inner and not any(each.__struct_config__.tag for each in inner):
            # It has a section of its own.
            continue
        settings.append(
            Setting(
                name=field.name,
                type=_type_name(field.type),
                default=_default(field),
                description=described.get(field.name, ""),
            )
        )
    config = struct.__struct_config__
    yield Section(
        name=name,
        kind=None if config.tag is None else f"{config.tag_field} = {_toml(config.tag)}",
        description=_first_line(struct),
        settings=tuple(settings),
    )
    for inner_struct, path in below:
        if inner_struct not in seen:
            yield from _sections(inner_struct, path, seen)


def _path(path: str, kind: Any) -> str:
    return f"{path}.<name>" if typing.get_origin(kind) is dict else path


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in typing.get_args(kind):
        yield from _structs(part)


def _type_name(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{_toml(each)}`" for each in parts)
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    if origin is dict:
        return f"section of {_type_name(parts[1])} by name"
    if parts:
        # A field that may be left out has None for its default.
        kinds = dict.fromkeys(_type_name(each) for each in parts if each is not type(None))
        return " or ".join(kinds)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "section"
    names: dict[Any, str] = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
    }
    return names.get(kind, "anything")


def _default(field: msgspec.structs.FieldInfo) -> str | None:
    if field.default is not msgspec.NODEFAULT:
        return _toml(field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return _toml(field.default_factory())
    return None


def _toml(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case tuple() | list():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case dict():
            return "{}" if not value else f"{{{', '.join(map(_entry, value, value.values()))}}}"
        case msgspec.Struct():
            # What tells it from others of its kind; the section below says the rest.
            config = value.__struct_config__
            chosen = {config.tag_field: config.tag} | {
                field.name: getattr(value, field.name)
                for field in msgspec.structs.fields(value)
                if field.default is not msgspec.NODEFAULT
                and getattr(value, field.name) != field.default
            }
            return _toml(chosen)
    return str(value)


def _entry(key: Any, value: Any) -> str:
    return f"{key} = {_toml(value)}"


def _first_line(struct: type) -> str:
    text = inspect.getdoc(struct) or ""
    return _markdown(" ".join(text.partition("\n\n")[0].split()))


def _markdown(text: str) -> str:
    """Docstrings' roles and literals as Markdown has them."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _attributes(struct: type) -> dict[str, str]:
    """What the docstrings of a struct and of what it inherits say of its fields."""
    found: dict[str, str] = {}
    for each in reversed(struct.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        _, _, listed = text.partition("Attributes\n----------\n")
        listed = re.split(r"\n\n\S[^\n]*\n-+\n", listed)[0]
        for names, lines in re.findall(
            r"^(\w[^\n]*)\n((?:    [^\n]*\n?|\n)+)", listed, re.MULTILINE
        ):
            description = _markdown(" ".join(lines.split()))
            found.update(dict.fromkeys((n.strip() for n in names.split(",")), description))
    return found
