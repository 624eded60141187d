"""Pictures in rows and columns, with a label at each row and column."""

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

    font_size: pixels; 0 takes an eighth of a cell's height, between 12 and 40.
    """
    if not any(rows):
        raise ValueError("There are no pictures to put into a grid.")
    width = max(picture.width for row in rows for picture in row) + _GAP
    height = max(picture.height for row in rows for picture in row) + _GAP
    font = ImageFont.load_default(font_size or min(40, max(12, height // 8)))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
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
