"""Links to Python objects only where there is one that can be meant.

Sphinx guesses: a type that is named without its module is any object of that name, and so is every
attribute. Here a name is looked up in its own module first, and elsewhere only if it is a class or
function of which there is just one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx import addnodes
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_KINDS = {"class", "exception", "function"}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both steps."""
    app.connect("doctree-read", _without_guesses)
    app.connect("missing-reference", _unique)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _without_guesses(_: Sphinx, document: nodes.document) -> None:
    for link in document.findall(addnodes.pending_xref):
        if link.get("refdomain") == "py" and link.attributes.pop("refspecific", False):
            link["may_be_elsewhere"] = True


def _unique(
    app: Sphinx, env: BuildEnvironment, link: addnodes.pending_xref, text: nodes.TextElement
) -> nodes.reference | None:
    if not link.get("may_be_elsewhere"):
        return None
    ending = f".{link['reftarget']}"
    found = [
        (name, entry)
        for name, entry in env.domains.python_domain.objects.items()
        if name.endswith(ending) and entry.objtype in _KINDS and not entry.aliased
    ]
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, link["refdoc"], entry.docname, entry.node_id, [text], name)
