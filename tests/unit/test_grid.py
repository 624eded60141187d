"""Pictures in a grid: where each one lies, and that labels are drawn beside them and not over them."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from purecc import grid
from purecc.grid import draw_grid

COLOURS = [["red", "lime"], ["blue", "yellow"], ["cyan"]]
ROWS = [[Image.new("RGB", (40, 30), colour) for colour in row] for row in COLOURS]


def boxes(sheet: Image.Image) -> list[list[tuple[int, int, int, int]]]:
    """Left, top, right and bottom of each cell's colour in the sheet."""
    pixels = np.asarray(sheet)
    found = []
    for row in COLOURS:
        found.append([])
        for colour in row:
            rgb = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
            ys, xs = np.nonzero((pixels == rgb).all(-1))
            assert len(ys) == 40 * 30  # all of it, nothing drawn over it
            found[-1].append((xs.min(), ys.min(), xs.max(), ys.max()))
    return found


@pytest.mark.parametrize("labels", [((), ()), (("one", "two\nlines", "a longer label"), ("left", "right"))])
def test_every_picture_is_whole_and_in_its_place(labels) -> None:
    places = boxes(draw_grid(ROWS, *labels))
    for row in places:
        assert len({(top, bottom) for _, top, _, bottom in row}) == 1
        assert all(a[2] < b[0] for a, b in zip(row, row[1:], strict=False))
    assert all(above[0][3] < below[0][1] for above, below in zip(places, places[1:], strict=False))
    assert len({row[0][0] for row in places}) == 1


def test_labels_make_room_for_themselves_and_are_drawn() -> None:
    plain, labelled = draw_grid(ROWS), draw_grid(ROWS, ["one", "two", "three"], ["left", "right"])
    assert labelled.width > plain.width and labelled.height > plain.height
    margin = boxes(labelled)[0][0][0]
    assert (np.asarray(labelled)[:, : margin - 1] < 128).all(-1).any()  # ink


def test_columns_labels_do_not_run_over_one_another() -> None:
    """Broken into lines where they are wide; a column is as wide as its longest word."""
    words = "a label of many words"
    broken = draw_grid(ROWS, (), [words, words], font_size=10)
    assert broken.width == draw_grid(ROWS).width
    assert broken.height > draw_grid(ROWS, (), ["a", "a"], font_size=10).height
    assert (
        draw_grid(ROWS, (), ["two\nlines", ""], font_size=10).height
        == draw_grid(ROWS, (), ["a\nb", ""], font_size=10).height
    )
    assert draw_grid(ROWS, (), ["two lines", ""], font_size=10).width == broken.width
    long = draw_grid(ROWS, (), ["unquestionably", "unquestionably"], font_size=10)
    assert long.width > broken.width
    left, right = boxes(long)[0]
    assert (np.asarray(long)[: left[1], right[0] - 3 : right[0] - 1] > 250).all()  # paper between the two


class WithLambda(ImageFont.FreeTypeFont):
    """As a system's font that has one letter more than Pillow's own."""

    def __init__(self, own: ImageFont.FreeTypeFont):
        self.__dict__ |= own.__dict__

    def getmask(self, text: str, *args, **kwargs):
        return super().getmask("L" if text == "λ" else text, *args, **kwargs)


def test_letters_that_pillows_font_lacks_are_drawn_by_the_systems(monkeypatch) -> None:
    there, asked, truetype = {}, [], ImageFont.truetype

    def system(font, *args, **kwargs):
        if not isinstance(font, str):
            return truetype(font, *args, **kwargs)
        asked.append(font)
        if font in there:
            return there[font]
        raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", system)
    sheet = lambda label: draw_grid(ROWS, (label,), (), 20).tobytes()  # noqa: E731
    assert sheet("eta 0.5") and not asked
    box = sheet("λ")
    assert box == sheet("η") and len(set(asked)) > 5  # boxes, where no font has them
    there["arial.ttf"] = WithLambda(ImageFont.load_default(20))
    assert grid._font(20, "λ η") is there["arial.ttf"]
    assert grid._font(20, "η") is not there["arial.ttf"]


def test_no_pictures_is_told() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        draw_grid([[], []])
