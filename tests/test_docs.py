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
    targets = local_targets(DOCS / "llms.txt")
    names = {target.removeprefix("_sources/").split(".")[0] for target in targets}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert names == pages - {"index"}


def test_llms_txt_follows_the_page_tree() -> None:
    tree = re.findall(r":caption: (.+)\n\n((?:[\w/-]+\n)+)", (DOCS / "index.md").read_text())
    text = (DOCS / "llms.txt").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [caption for caption, _ in tree]
    for caption, names in tree:
        section = text.split(f"## {caption}\n")[1].split("\n## ")[0]
        places = [re.search(rf"\((?:_sources/)?{name}\.", section) for name in names.split()]
        starts = [place.start() for place in places if place]
        assert len(starts) == len(places), f"add all pages of {caption} to docs/llms.txt"
        assert starts == sorted(starts)


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
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    lines = re.findall(r"\.\. auto(?:class|function):: ([\w.]+)", text)
    assert lines.count(name) == 1, f"add `{name}` to a page in docs/api"


@pytest.mark.parametrize("name", PUBLIC)
def test_reference_summary_lists_every_public_name(name: str) -> None:
    assert f"\n   {name}\n" in (DOCS / "api" / "index.md").read_text()


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/evidence.md", "docs/reproduce.md"]
)
def test_differences_are_those_of_the_study(page: str) -> None:
    """Prose outside of generated tables quotes no number that the study does not have."""
    text = re.sub(
        r"<!-- [^>]*: begin -->.*?: end -->", "", (ROOT / page).read_text(), flags=re.DOTALL
    )
    study = "".join((DOCS / f"{name}.md").read_text() for name in ("study", "study-tables"))
    for difference in re.findall(r"[+-]\d+\.\d+ ± \d+\.\d+", text):
        assert difference in re.sub(r" +", " ", study.replace("\N{MINUS SIGN}", "-")), difference


@pytest.mark.parametrize("page", ["README.md", "docs/evidence.md"])
def test_bold_differences_are_significant(page: str) -> None:
    for bold, mean, half in re.findall(
        r"(\*\*)?([+-]\d+\.\d+) ± (\d+\.\d+)(?=\*\*\ \||\ \|)", (ROOT / page).read_text()
    ):
        assert bool(bold) == (abs(float(mean)) > float(half)), f"{mean} ± {half}"


TERMS = "quickstart cite changelog license hyperparameter ablation kldivloss temperature clip qwen"


@pytest.mark.parametrize("word", TERMS.split())
def test_search_terms_are_in_a_page(word: str) -> None:
    pages = [page.read_text().lower() for page in DOCS.rglob("*.md")]
    assert any(word in page for page in pages)
