"""The documentation: links, pictures, and the reference."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

import msdlosses
from msdlosses import functional, meta, plot

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"|\{image\} (\S+)")


def local_targets(page: Path) -> list[str]:
    """The files of this site that a page links to or shows."""
    targets = chain.from_iterable(LINK.findall(page.read_text()))
    return [target for target in targets if target and not re.match(r"https?:|#", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_targets_exist(page: Path) -> None:
    for target in local_targets(page):
        assert (page.parent / target.split("#")[0]).exists(), target


def test_llms_txt_link_targets_exist() -> None:
    for target in local_targets(DOCS / "llms.txt"):
        name = target.removeprefix("_sources/").removesuffix(".txt").replace(".html", ".md")
        assert (DOCS / name).exists(), target


def test_llms_txt_names_every_page() -> None:
    text = (DOCS / "llms.txt").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or page.stem in text


def test_pictures_are_used_and_have_a_dark_variant() -> None:
    targets = {target for page in PAGES for target in local_targets(page)}
    names = {Path(target).name for target in targets if target.endswith(".svg")}
    assert names == {path.name for path in (DOCS / "pictures").iterdir()}
    for name in names:
        assert name.replace("-light", "-dark") in names


PUBLIC = [
    *(f"msdlosses.{name}" for name in msdlosses.__all__ if name != "functional"),
    *(f"msdlosses.functional.{name}" for name in functional.__all__ if name != "modality_saliency"),
    *(f"msdlosses.meta.{name}" for name in meta.__all__ if name not in msdlosses.__all__),
    *(f"msdlosses.plot.{name}" for name in plot.__all__),
]


@pytest.mark.parametrize("name", PUBLIC)
def test_reference_lists_every_public_name_once(name: str) -> None:
    lines = re.findall(r"\.\. auto(?:class|function):: (\S+)", (DOCS / "api.md").read_text())
    assert lines.count(name) == 1, f"add `{name}` to docs/api.md"
