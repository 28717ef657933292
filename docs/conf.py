"""Sphinx's settings."""

project = "msdlosses"
author = "The msdlosses developers"
copyright = "2026, the msdlosses developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_title = "msdlosses"
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the signature would be longer than the text
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Shape", "Source"]
napoleon_use_ivar = True
default_role = "code"
nitpick_ignore_regex = [(r"py:.*", r"(torch|collections|pathlib|numpy|nn|os)\..*")]
