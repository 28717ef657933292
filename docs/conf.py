"""Sphinx's settings."""

import re
from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "msdlosses"
author = "The msdlosses developers"
copyright = "2026, the msdlosses developers"
release = version = version_of("msdlosses")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
mathjax4_config = {"output": {"displayOverflow": "linebreak"}}  # for phones
html_theme = "furo"
html_title = "msdlosses"
html_extra_path = ["llms.txt"]  # also served to readers that are no people
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the signature would be longer than the text
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Shape", "Source"]
napoleon_use_ivar = True
# In docstrings, a name in backticks is a link where the name is known, and code where it is not.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*")]
# Behind each address, the few names that the pages need: for a build without a network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", (None, "inventories/python.inv")),
    "torch": ("https://docs.pytorch.org/docs/stable", (None, "inventories/torch.inv")),
}
intersphinx_timeout = 10


def link_papers(
    app: Sphinx, kind: str, name: str, obj: object, opts: object, lines: list[str]
) -> None:
    """In docstrings, the number of a paper is a link."""
    text = re.sub(
        r"arXiv\s+(\d{4}\.\d{5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", "\n".join(lines)
    )
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_papers)
