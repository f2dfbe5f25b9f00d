"""The site of the documentation: built by ``make docs``, where a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

from croupier import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Croupier"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands",
    "http_routes",
    "mathml",
    "references",
    "repository_links",
]

# Everything that a page needs is within the site: no fonts, scripts or styles of other hosts.
html_theme = "furo"
html_title = "Croupier"
html_static_path = ["_static"]
html_css_files = ["croupier.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
templates_path = []
exclude_patterns = ["_extensions"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
