"""The pages: that they name everything, and that what they link to is there."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

import msdlosses
from msdlosses import functional, meta, plot

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"|\{image\} (\S+)")


def targets(page: Path) -> list[str]:
    """What a page links to or shows, of its own site."""
    found = chain.from_iterable(LINK.findall(page.read_text()))
    return [target for target in found if target and not re.match(r"https?:|#", target)]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in targets(page):
        assert (page.parent / target.split("#")[0]).exists(), target


def test_the_index_for_machines_links_to_pages() -> None:
    for target in targets(DOCS / "llms.txt"):
        name = target.removeprefix("_sources/").removesuffix(".txt").replace(".html", ".md")
        assert (DOCS / name).exists(), target


def test_the_index_for_machines_names_every_page() -> None:
    text = (DOCS / "llms.txt").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or page.stem in text


def test_every_picture_is_there_for_light_and_for_dark_pages() -> None:
    shown = {target for page in TEXTS for target in targets(page) if target.endswith(".svg")}
    names = {Path(target).name for target in shown}
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
def test_the_reference_has_every_public_name_once(name: str) -> None:
    lines = re.findall(r"\.\. auto(?:class|function):: (\S+)", (DOCS / "api.md").read_text())
    assert lines.count(name) == 1
