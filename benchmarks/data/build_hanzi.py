"""Build hanzi12.npz: images of Chinese characters with English glosses, to classify by radical.

Sources (Debian 12):
  unicode-data 15.0.0-1               Unihan 15.0.0: kDefinition, kRSUnicode
  fonts-noto-cjk 1:20220127+repack1-1 Noto Sans CJK SC Regular
Install them:
  apt install unicode-data fonts-noto-cjk
  pip install numpy pillow
Run from the root of the repository:
  python -m benchmarks.data.build_hanzi --help
Output, one row per character in the order of code points:
  glyph      uint8  [n, 12, 12]  ink, 0 (none) to 7 (full)
  radical    uint8  [n]          KangXi radical, 1 to 214, of which 40 occur
  codepoint  uint16 [n]          the character
  gloss      uint8  [bytes]      n glosses, lowercase ASCII, joined by newlines
"""

from __future__ import annotations

import bz2
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.data._pack import Array, encode, finish, parser

UNIHAN = Path("/usr/share/unicode")
FONT = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
FACE = 2  # Noto Sans CJK SC, in a collection with one face per region
SIDE = 12  # pixels of a stored glyph
SCALE = 2  # drawn larger, then averaged, because hinting at 12 pixels would bend the strokes
ASCENT = 5  # empty rows between the top of the line and the character's square
BITS = 3
CLASSES = 40
IDEOGRAPHS = range(0x4E00, 0xA000)  # the first block of Unihan, which fits in uint16


def read(path: Path, field: str) -> dict[int, str]:
    """Return one field of a Unihan file, by code point."""
    with bz2.open(path, "rt", encoding="utf-8") as file:
        rows = (line.rstrip("\n").split("\t") for line in file if line.startswith("U+"))
        return {int(code[2:], 16): value for code, name, value in rows if name == field}


def radical_and_strokes(value: str) -> tuple[int, int]:
    """Parse the first radical and its additional strokes in kRSUnicode, as in `120'.4 154.2`."""
    # An apostrophe marks a simplified form of the same radical.
    match = re.match(r"(\d+)'*\.(-?\d+)", value)
    if match is None:
        raise ValueError(f"Expected radical.strokes, got {value!r}.")
    return int(match[1]), int(match[2])


def gloss(definition: str) -> str:
    """Return a kDefinition in ASCII, without remarks and references to other characters."""
    text = re.sub(r"\([^)]*\)", " ", definition)
    text = re.sub(r"(same as|variant of)?\s*U\+[0-9A-F]+ ?\S*", " ", text)
    text = re.sub(r"[^\x20-\x7e]", " ", text.lower())
    return re.sub(r"\s+", " ", text).strip(" ,;")


def rows(unihan: Path) -> list[tuple[int, int, str]]:
    """Return code point, radical, and gloss of the characters with the most common radicals."""
    definitions = read(unihan / "Unihan_Readings.txt.bz2", "kDefinition")
    radicals = read(unihan / "Unihan_IRGSources.txt.bz2", "kRSUnicode")
    characters = []
    for code in sorted(definitions.keys() & radicals.keys() & set(IDEOGRAPHS)):
        radical, strokes = radical_and_strokes(radicals[code])
        text = gloss(definitions[code])
        # A character without additional strokes is the radical itself. A gloss without a word of
        # three letters has no meaning.
        if strokes > 0 and re.search("[a-z]{3}", text):
            characters.append((code, radical, text))
    counts = Counter(radical for _, radical, _ in characters)
    kept = {radical for radical, _ in counts.most_common(CLASSES)}
    return [character for character in characters if character[1] in kept]


def draw(character: str, font: ImageFont.FreeTypeFont) -> Array:
    """Return the image of a character."""
    image = Image.new("L", (SIDE * SCALE, SIDE * SCALE))
    ImageDraw.Draw(image).text((0, -ASCENT), character, font=font, fill=255)
    # `reduce` would round halves differently.
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small) >> (8 - BITS)


def build(unihan: Path, font_file: Path) -> dict[str, Array]:
    """Return the fields of the pack."""
    font = ImageFont.truetype(str(font_file), SIDE * SCALE, index=FACE)
    codes, radicals, glosses = zip(*rows(unihan), strict=True)
    return {
        "glyph": np.stack([draw(chr(code), font) for code in codes]),
        "radical": np.array(radicals, dtype=np.uint8),
        "codepoint": np.array(codes, dtype=np.uint16),
        "gloss": encode(glosses),
    }


def main() -> int:
    options = parser(__doc__, "hanzi12.npz")
    options.add_argument("--unihan", type=Path, default=UNIHAN, help="folder of Unihan_*.txt.bz2")
    options.add_argument("--font", type=Path, default=FONT, help="NotoSansCJK-Regular.ttc")
    args = options.parse_args()
    return finish(build(args.unihan, args.font), args)


if __name__ == "__main__":
    sys.exit(main())
