"""Build emoji24_nf.npz: emoji of two vendors with names and keywords, to classify by group.

Sources (npm; drawings have the names of the CLDR, and so do the labels of emojibase):
  @iconify-json/noto 1.2.9               drawings of Google's Noto Emoji (Apache-2.0)
  @iconify-json/fluent-emoji-flat 1.2.6  drawings of Microsoft's Fluent Emoji (MIT)
  emojibase-data 17.0.0                  names, keywords, groups (MIT)
Install them:
  npm install @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 emojibase-data@17.0.0
  pip install numpy pillow resvg-py==0.5.0
Run from the root of the repository:
  python -m benchmarks.data.build_emoji --help
Output, one row per drawing in the order of Unicode, with an emoji's vendors in adjacent rows:
  image   uint8 [n, 24, 24, 3]  red, green, blue on white, 0 to 31
  y       uint8 [n]             group, 0 to 7 (GROUPS), without components and flags
  vendor  uint8 [n]             0 noto, 1 fluent-emoji-flat
  text    uint8 [bytes]         n lines label|tags|concept, UTF-8, joined by newlines:
                                the name, its keywords, the key that groups look-alikes
"""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from benchmarks.data._pack import Array, encode, finish, parser

VENDORS = ("noto", "fluent-emoji-flat")
GROUPS = (0, 1, 3, 4, 5, 6, 7, 8)  # of emojibase, without 2 (skin tones) and 9 (flags)
SIDE = 24  # pixels of a stored image
DRAWN = 64  # drawn at this size, averaged to `AVERAGED`, sharpened down to `SIDE`
AVERAGED = 32
BITS = 5

# Without these words, the woman, the man, and the person are one concept.
WHO = re.compile(r"\b(man|woman|men|women|person|people|male|female|mrs)\b")
# The first pattern that matches a plain label replaces it, because these drawings look alike.
FAMILIES = (
    (re.compile(r"^family\b"), "family"),
    (re.compile(r"^(kiss|couple)"), "couple"),
    (re.compile(r"^keycap\b"), "keycap"),
    (re.compile(r"\bbutton$"), "x button"),
    (re.compile(r"\b(o|timer|mantelpiece) clock$|\bthirty$"), "clock"),
)


def icon_name(label: str) -> str:
    """Return the name of a label's drawing: `ok-hand` for `OK hand`, `pinata` for `piñata`."""
    plain = unicodedata.normalize("NFD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[.!()]", "", plain)).strip("-")


def concept(label: str) -> str:
    """Return the key of an emoji and its look-alikes, which a split must keep together."""
    plain = re.sub(r"[^a-z0-9]+", " ", label.lower()).strip()
    for pattern, name in FAMILIES:
        if pattern.search(plain):
            return name
    # Text after `medium` or `facing right` only distinguishes versions of an emoji.
    short = re.sub(r"\b(medium|facing right)\b.*", "", WHO.sub("", plain))
    return " ".join(short.split()) or plain


def svg(icons: dict[str, Any], name: str) -> str | None:
    """Return a drawing of an Iconify set as SVG, or None if the set lacks it."""
    # An alias may also mirror its parent, which the committed pack ignores: one of its drawings
    # (backhand index pointing right, by Fluent) points to the left.
    parent = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(parent)
    if icon is None:
        return None
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def draw(source: str) -> Array:
    """Return an SVG as `SIDE` x `SIDE` pixels of `BITS` bits."""
    png = resvg_py.svg_to_bytes(
        svg_string=source, width=DRAWN, height=DRAWN, background="#ffffff", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    image = image.resize((AVERAGED, AVERAGED), Image.Resampling.BOX)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) >> (8 - BITS)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(modules: Path) -> list[tuple[str, int, int, str]]:
    """Return the SVG, group, vendor, and text of each drawing."""
    sets = [load(modules / "@iconify-json" / vendor / "icons.json") for vendor in VENDORS]
    emojis = load(modules / "emojibase-data" / "en" / "data.json")
    kept = [emoji for emoji in emojis if emoji.get("group") in GROUPS]
    drawings = []
    for emoji in sorted(kept, key=lambda emoji: emoji["order"]):
        label = emoji["label"]
        text = "|".join([label, " ".join(emoji["tags"]), concept(label)])
        for vendor, icons in enumerate(sets):
            source = svg(icons, icon_name(label))
            if source is not None:
                drawings.append((source, GROUPS.index(emoji["group"]), vendor, text))
    return drawings


def build(modules: Path) -> dict[str, Array]:
    """Return the fields of the pack."""
    sources, groups, vendors, texts = zip(*rows(modules), strict=True)
    return {
        "image": np.stack([draw(source) for source in sources]),
        "y": np.array(groups, dtype=np.uint8),
        "vendor": np.array(vendors, dtype=np.uint8),
        "text": encode(texts),
    }


def main() -> int:
    options = parser(__doc__, "emoji24_nf.npz")
    options.add_argument(
        "--node-modules", type=Path, default=Path("node_modules"), help="folder of npm's packages"
    )
    args = options.parse_args()
    return finish(build(args.node_modules), args)


if __name__ == "__main__":
    sys.exit(main())
