"""Pictures in rows and columns, with a label at each row and column."""

import math
from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = "white", "#202020"
_GAP = 4  # pixels between pictures
# of Windows, macOS and Linux, for labels with letters that Pillow's own font, which knows little but ASCII, does not have
_SYSTEM_FONTS = (
    "segoeui.ttf", "arial.ttf", "Arial.ttf", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "msyh.ttc", "YuGothR.ttc", "malgun.ttf",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc",
)  # fmt: skip
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    font_size: int = 0,
) -> Image.Image:
    """One picture of all, every cell as large as the largest. Labels may be fewer than rows or columns, or have lines.

    A column's label is broken into lines where it is wider than the column. font_size: pixels; 0 takes an eighth of a cell's height,
    between 12 and 40.
    """
    if not any(rows):
        raise ValueError("There are no pictures to put into a grid.")
    width = max(picture.width for row in rows for picture in row) + _GAP
    height = max(picture.height for row in rows for picture in row) + _GAP
    font = _font(font_size or min(40, max(12, height // 8)), "".join((*row_labels, *column_labels)))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    words = [word for text in column_labels for word in text.split()]
    width = max([width, *(math.ceil(font.getlength(word)) + _GAP for word in words)])
    column_labels = [_wrapped(text, font, width - _GAP) for text in column_labels]
    sizes = [measure.multiline_textbbox((0, 0), text, font) for text in row_labels]
    left = max((round(box[2]) for box in sizes), default=0) + (3 * _GAP if any(row_labels) else 0)
    sizes = [measure.multiline_textbbox((0, 0), text, font) for text in column_labels]
    top = max((round(box[3]) for box in sizes), default=0) + (2 * _GAP if any(column_labels) else 0)

    columns = max(map(len, rows))
    sheet = Image.new("RGB", (left + columns * width + _GAP, top + len(rows) * height + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (left + _GAP + x * width, top + _GAP + y * height))
    for y, text in enumerate(row_labels[: len(rows)]):
        middle = top + _GAP + y * height + (height - _GAP) / 2
        draw.multiline_text((left - _GAP, middle), text, INK, font, anchor="rm", align="right")
    for x, text in enumerate(column_labels[:columns]):
        middle = left + _GAP + x * width + (width - _GAP) / 2
        draw.multiline_text((middle, top), text, INK, font, anchor="md", align="center")
    return sheet


def _font(size: int, text: str) -> Font:
    """Pillow's own, or one of the system's where that has more of the text's letters; the rest are boxes."""
    letters = set("".join(text.split()))
    best = ImageFont.load_default(size)
    for name in _SYSTEM_FONTS:
        missing = _missing(best, letters)
        if not missing:
            break
        with suppress(OSError):  # it is not here
            other = ImageFont.truetype(name, size)
            best = other if _missing(other, letters) < missing else best
    return best


def _missing(font: Font, letters: set[str]) -> int:
    """How many of the letters it draws as it draws what is no letter."""
    none = bytes(font.getmask("\uffff"))
    return sum(bytes(font.getmask(letter)) == none for letter in letters)


def _wrapped(text: str, font: Font, width: int) -> str:
    """The text with further line breaks, so that no line of several words is wider than `width`."""
    lines = []
    for line in text.splitlines():
        kept = ""
        for word in line.split(" "):
            longer = f"{kept} {word}" if kept else word
            if kept and font.getlength(longer) > width:
                lines.append(kept)
                longer = word
            kept = longer
        lines.append(kept)
    return "\n".join(lines)
