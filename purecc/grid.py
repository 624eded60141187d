"""Pictures in rows and columns, with a label at each row and column."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = "white", "#202020"
_GAP = 4  # pixels between pictures


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
    font = ImageFont.load_default(font_size or min(40, max(12, height // 8)))
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


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
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
