"""Sphinx's settings."""

import re
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

project = "msdlosses"
author = "The msdlosses developers"
copyright = "2026, the msdlosses developers"
release = version = version_of("msdlosses")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
mathjax4_config = {"output": {"displayOverflow": "linebreak"}}  # for phones
html_theme = "furo"
html_title = f"msdlosses {release}"
html_extra_path = ["llms.txt"]  # for language models
exclude_patterns = ["_build"]
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
maximum_signature_line_length = 80  # longer signatures have a line for each argument
python_use_unqualified_type_names = True
napoleon_custom_sections = ["Shape", "Source"]
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
# In docstrings, a name in backticks is a link where the name is known, and code where it is not.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", ".*")]  # types of other packages
# If there is no network, the file behind each address has the few names that the pages link to.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", (None, "inventories/python.inv")),
    "torch": ("https://docs.pytorch.org/docs/stable", (None, "inventories/torch.inv")),
}
intersphinx_timeout = 10


def link_papers(
    app: Sphinx, kind: str, name: str, obj: object, opts: object, lines: list[str]
) -> None:
    """Turn the arXiv numbers in docstrings into links."""
    text = re.sub(
        r"arXiv\s+(\d{4}\.\d{5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", "\n".join(lines)
    )
    lines[:] = text.split("\n")


def link_pages(app: Sphinx, path: Path, page: str, content: list[str]) -> None:
    """Link to this site's changelog in files of the repository's root that pages include."""
    content[0] = content[0].replace("(CHANGELOG.md)", "(changelog.md)")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_papers)
    app.connect("include-read", link_pages)
