"""Pictures in a grid: where each one lies, and that labels are drawn beside them and not over them."""

import numpy as np
import pytest
from PIL import Image

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


def test_no_pictures_is_told() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        draw_grid([[], []])
