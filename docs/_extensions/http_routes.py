"""The directive ``croupier-routes``: the HTTP API as its OpenAPI document describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from croupier.service.openapi import openapi_document

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_REFERENCE = "#/components/schemas/"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("croupier-routes", _Routes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class _Routes(SphinxDirective):
    """A section for every route, and one for every type of its bodies."""

    def run(self) -> list[nodes.Node]:
        document = openapi_document()
        routes = [
            _route(path, method.upper(), operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ]
        types = [
            _type(name, schema)
            for name, schema in sorted(document["components"]["schemas"].items())
        ]
        return [_section("Routes", routes), _section("Types", types)]


def _section(title: str, parts: list[nodes.section]) -> nodes.section:
    identifier = nodes.make_id(title)
    return nodes.section("", nodes.title(text=title), *parts, ids=[identifier], names=[identifier])


def _route(path: str, method: str, operation: dict[str, Any]) -> nodes.section:
    title = f"{method} {path}"
    identifier = nodes.make_id(title)
    section = nodes.section(
        "", nodes.title("", "", nodes.literal(text=title)), ids=[identifier], names=[identifier]
    )
    section += nodes.paragraph(text=f"{operation['summary']}.")
    facts = nodes.bullet_list()
    body = operation.get("requestBody")
    if body is not None:
        facts += _fact("body", *_shape(body["content"]["application/json"]["schema"]))
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        schema = content.get("application/json", {}).get("schema")
        shape = _shape(schema) if schema else [nodes.Text(", ".join(content))]
        facts += _fact(status, nodes.Text(f"{answer['description']} "), *shape)
    section += facts
    return section


def _fact(name: str, *parts: nodes.Node) -> nodes.list_item:
    paragraph = nodes.paragraph("", "", nodes.strong(text=name), nodes.Text(": "), *parts)
    return nodes.list_item("", paragraph)


def _type(name: str, schema: dict[str, Any]) -> nodes.section:
    identifier = nodes.make_id(f"type-{name}")
    section = nodes.section(
        "", nodes.title("", "", nodes.literal(text=name)), ids=[identifier], names=[identifier]
    )
    first = schema.get("description", "").partition("\n\n")[0]
    if first:
        section += nodes.paragraph(text=" ".join(first.split()))
    required = set(schema.get("required", ()))
    facts = nodes.bullet_list()
    for field, described in schema.get("properties", {}).items():
        mark = "" if field in required else "optional, "
        facts += _fact(field, nodes.Text(mark), *_shape(described))
    if len(facts):
        section += facts
    return section


def _shape(schema: dict[str, Any]) -> list[nodes.Node]:
    """What a value has to be, with links to the types that it is made of."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE)
        target = nodes.make_id(f"type-{name}")
        return [nodes.reference("", "", nodes.literal(text=name), internal=True, refid=target)]
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives is not None:
        parts: list[nodes.Node] = []
        for number, each in enumerate(alternatives):
            parts += [nodes.Text(" or ")] * (number > 0) + _shape(each)
        return parts
    if schema.get("type") == "array":
        return [nodes.Text("list of "), *_shape(schema.get("items", {})), *_bounds(schema)]
    if "enum" in schema:
        return [nodes.literal(text=" | ".join(map(str, schema["enum"])))]
    return [nodes.Text(str(schema.get("type", "any value"))), *_bounds(schema)]


def _bounds(schema: dict[str, Any]) -> list[nodes.Node]:
    """Limits of a value, as they stand in its schema."""
    limits = {
        key: schema[key] for key in sorted(schema) if key.startswith(("min", "max", "exclusive"))
    }
    return [nodes.Text(f", {msgspec.json.encode(limits).decode()}")] if limits else []
