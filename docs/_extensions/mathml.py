"""Formulas as MathML, which browsers show by themselves: no script, no fonts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> NoReturn:
    translator.body.append(_mathml(node.astext(), as_block=False))
    # The source, which is what the node contains, would be shown beside it.
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> NoReturn:
    formula = _mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def _mathml(code: str, *, as_block: bool) -> str:
    try:
        return str(tex2mathml(code, as_block=as_block))
    except MathError as error:
        raise ExtensionError(f"expected a formula in LaTeX, got {code!r}: {error}") from error
