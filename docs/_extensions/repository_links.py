"""Links from pages to files of the repository that are no pages of the site.

They resolve where the repository is read, and must name something that is there; the site shows
their text and where the file is, since it doesn't know where the repository is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_ROOT = Path(__file__).parent.parent.parent
_logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform."""
    app.add_transform(_RepositoryLinks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class _RepositoryLinks(SphinxTransform):
    """Puts the path of a file of the repository in the place of a link to it."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        page = Path(self.env.doc2path(self.env.docname))
        pages = Path(self.env.srcdir)
        for link in list(self.document.findall(addnodes.download_reference)) + list(
            self.document.findall(addnodes.pending_xref)
        ):
            target = str(link.get("reftarget", "")).partition("#")[0]
            path = (page.parent / target).resolve()
            if not target or path.is_relative_to(pages):
                continue
            if not path.exists():
                # Links to Markdown come without its ending.
                path = path.with_suffix(".md")
            if not path.exists():
                _logger.warning("no file of the repository: %s", target, location=link)
            text = nodes.literal(text=str(path.relative_to(_ROOT)))
            link.replace_self([nodes.Text(link.astext() + " ("), text, nodes.Text(")")])
