"""Sizes that pictures are trained at: near in area and aspect, cropped about the centre, never squashed."""

from __future__ import annotations

import math

import pytest
import torch

from purecc.shapes import MULTIPLE, SHAPES, Size, buckets, described, fit, size_of


@pytest.mark.parametrize("resolution", [64, 128, 256, 512, 768, 1024])
def test_buckets_have_about_the_area_and_sides_of_whole_tokens(resolution: int) -> None:
    found = buckets(resolution)
    assert len(set(found)) == len(found) and found[0] == (resolution, resolution)
    assert {Size(s.width, s.height) for s in found} == set(found)  # each upright one lies too
    for size in found:
        assert size.height % MULTIPLE == size.width % MULTIPLE == 0
        exact = resolution / math.sqrt(max(size) / min(size))  # the shorter side of that area
        assert abs(min(size) - exact) <= MULTIPLE / 2 + 1e-9 or resolution == 64


@pytest.mark.parametrize("side", [(1000, 1000), (1500, 1000), (1920, 1080), (1179, 2556), (100, 3000), (900, 1000)])
def test_a_picture_gets_the_bucket_nearest_in_aspect(side: tuple[int, int]) -> None:
    width, height = side
    size = size_of(height, width, 512, "buckets")
    far = lambda s: max(s.width / s.height * height / width, s.height / s.width * width / height)  # noqa: E731
    assert far(size) == min(map(far, buckets(512)))
    assert size_of(width, height, 512, "buckets") == (size.width, size.height)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("buckets", [(416, 624), (416, 624), (512, 512)]),
        ("own shape", [(416, 624), (432, 624), (496, 528)]),
        ("square", [(512, 512)] * 3),
    ],
)
def test_pictures_share_a_bucket_where_their_own_shapes_differ(shape: str, sizes: list) -> None:
    pictures = [(1000, 1500), (700, 1020), (900, 980)]
    assert [size_of(*one, 512, shape) for one in pictures] == sizes


@pytest.mark.parametrize(
    ("size", "fitted"), [((128, 128), (128, 128)), ((400, 400), (128, 128)), ((100, 200), (96, 176))]
)
def test_a_picture_gets_values_in_range_and_one_of_the_size_is_left_alone(size: tuple, fitted: tuple) -> None:
    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    made = fit(picture, size_of(*size, 128, "own shape"))
    assert tuple(made.shape) == (*fitted, 3)
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    assert size != fitted or made is picture


@pytest.mark.parametrize("side", [(300, 200), (200, 300), (333, 200), (211, 97), (64, 64), (500, 40)])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_squashed_and_the_middle_stays_in_the_middle(shape: str, side: tuple[int, int]) -> None:
    """Two ramps: their slopes are alike after scaling, and the centre keeps its value."""
    height, width = side
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    longest = max(side)
    ramps = torch.stack([y / longest, x / longest], dim=-1)
    size = size_of(height, width, 128, shape)
    made = fit(ramps, size)
    assert made.shape == (*size, 2)
    rows, columns = made[size.height // 4 : -size.height // 4, :, 0], made[:, size.width // 4 : -size.width // 4, 1]
    down = float(rows.diff(dim=0).mean())
    along = float(columns.diff(dim=1).mean())
    assert down == pytest.approx(along, rel=0.02)
    assert float(made[..., 0].mean()) == pytest.approx(height / 2 / longest, abs=0.01)
    assert float(made[..., 1].mean()) == pytest.approx(width / 2 / longest, abs=0.01)


def test_nothing_more_is_cut_off_than_must_be_and_fine_patterns_are_smoothed() -> None:
    picture = torch.zeros(400, 400, 3)
    picture[:4], picture[-4:], picture[:, :4], picture[:, -4:] = 1, 1, 1, 1  # a frame
    made = fit(picture, size_of(400, 400, 100, "square"))
    assert all(float(edge.mean()) > 0.8 for edge in (made[0], made[-1], made[:, 0], made[:, -1]))
    checks = (torch.arange(400)[:, None] + torch.arange(400)) % 2
    made = fit(checks[..., None].expand(-1, -1, 3).float(), size_of(400, 400, 96, "square"))
    assert float((made - 0.5).abs().max()) < 0.1  # grey, not a pattern of its own


def test_what_is_done_to_a_picture_is_told() -> None:
    assert described(800, 1200, Size(416, 624)) == "1200 x 800 px -> 624 x 416, 0 % cut off"
    assert described(100, 200, Size(512, 512)) == "200 x 100 px -> 512 x 512, 50 % cut off, enlarged 5.1 times"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="The resolution is 8; it must be at least 16 pixels"):
        size_of(100, 100, 8, "square")
    with pytest.raises(ValueError, match='The shape is "round"; it must be one of buckets, own shape, square'):
        size_of(100, 100, 128, "round")
