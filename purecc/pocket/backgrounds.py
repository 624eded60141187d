"""The twelve drawn backgrounds: each a function of a random generator that returns an RGB picture."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .specification import BACKGROUNDS, RESOLUTION

N = RESOLUTION
Colour = tuple[int, int, int]
Rng = np.random.Generator


def _near(rng: Rng, colour: Colour, spread: int = 14) -> Colour:
    """A colour close to the given one."""
    return tuple(int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in colour)


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    """A vertical gradient over the whole picture."""
    share = np.linspace(0, 1, N)[:, None, None]
    rows = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    return Image.fromarray(np.broadcast_to(rows, (N, N, 3)).astype(np.uint8).copy())


def _ground(draw: ImageDraw.ImageDraw, rng: Rng, horizon: int, colour: Colour, waves: int = 5) -> None:
    """Ground below a wavy horizon (pixels from the top)."""
    x = np.arange(0, N + 1, 4)
    y = horizon + waves * np.sin(x / N * rng.uniform(2, 6) + rng.uniform(0, 6.28))
    draw.polygon([(0, N), *zip(x.tolist(), y.tolist(), strict=True), (N, N)], fill=colour)


def _dots(
    draw: ImageDraw.ImageDraw, rng: Rng, count: int, colour: Colour, top: int, bottom: int, radius: float
) -> None:
    for x, y, r in zip(
        rng.uniform(0, N, count), rng.uniform(top, bottom, count), rng.uniform(0.5, radius, count), strict=True
    ):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _beach(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (120, 200, 250)), _near(rng, (200, 235, 255)))
    draw = ImageDraw.Draw(image)
    x, r = rng.uniform(10, N - 10), rng.uniform(6, 10)
    draw.ellipse((x - r, 16 - r, x + r, 16 + r), fill=(255, 230, 90))
    horizon = int(rng.integers(48, 60))
    draw.rectangle((0, horizon, N, N), fill=_near(rng, (30, 140, 200)))
    _ground(draw, rng, horizon + int(rng.integers(18, 28)), _near(rng, (240, 215, 150)), 4)
    return image


def _snow(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (170, 185, 205)), _near(rng, (215, 225, 238)))
    draw = ImageDraw.Draw(image)
    _ground(draw, rng, int(rng.integers(68, 82)), _near(rng, (246, 249, 253), 5), 6)
    _dots(draw, rng, 45, (255, 255, 255), 0, N, 1.8)
    return image


def _meadow(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (110, 190, 245)), _near(rng, (205, 235, 255)))
    draw = ImageDraw.Draw(image)
    horizon = int(rng.integers(56, 72))
    _ground(draw, rng, horizon, _near(rng, (120, 200, 80)), 7)
    _dots(draw, rng, 14, (255, 240, 120), horizon + 16, N, 2.2)
    _dots(draw, rng, 10, (250, 250, 250), horizon + 16, N, 2.2)
    return image


def _forest(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (40, 90, 50)), _near(rng, (25, 60, 35)))
    draw = ImageDraw.Draw(image)
    for x in np.arange(0, N, 18) + rng.uniform(-5, 5, 8):
        width = rng.uniform(3, 6)
        draw.rectangle((x - width, 0, x + width, 100), fill=_near(rng, (85, 60, 40)))
    _dots(draw, rng, 26, _near(rng, (50, 120, 55)), 0, 26, 15)
    _ground(draw, rng, int(rng.integers(88, 98)), _near(rng, (60, 95, 40)), 3)
    return image


def _desert(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (250, 190, 110)), _near(rng, (255, 225, 170)))
    draw = ImageDraw.Draw(image)
    _ground(draw, rng, int(rng.integers(58, 70)), _near(rng, (225, 160, 85)), 9)
    _ground(draw, rng, int(rng.integers(82, 96)), _near(rng, (205, 135, 65)), 8)
    return image


def _sea(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (40, 150, 205)), _near(rng, (10, 50, 115)))
    draw = ImageDraw.Draw(image)
    for x, y, r in zip(rng.uniform(0, N, 12), rng.uniform(0, N, 12), rng.uniform(1.5, 4, 12), strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(170, 220, 245))
    _ground(draw, rng, int(rng.integers(108, 116)), _near(rng, (190, 175, 120)), 3)
    for x in rng.uniform(0, N, 5):
        draw.line([(x + 3 * np.sin(k), 112 - 5 * k) for k in range(7)], fill=(30, 130, 90), width=3)
    return image


def _city(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (150, 165, 185)), _near(rng, (225, 205, 190)))
    draw = ImageDraw.Draw(image)
    x = 0
    while x < N:
        width, top = int(rng.integers(16, 28)), int(rng.integers(12, 60))
        draw.rectangle((x, top, x + width - 2, 104), fill=_near(rng, (105, 105, 125), 22))
        for wx in range(x + 3, x + width - 5, 6):
            for wy in range(top + 4, 98, 8):
                if rng.random() < 0.6:
                    draw.rectangle((wx, wy, wx + 2, wy + 3), fill=(250, 225, 140))
        x += width
    draw.rectangle((0, 100, N, N), fill=_near(rng, (90, 90, 95)))
    return image


def _night(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (12, 16, 50), 8), _near(rng, (40, 45, 95), 8))
    draw = ImageDraw.Draw(image)
    _dots(draw, rng, 30, (245, 245, 220), 0, 84, 1.1)
    x, y = rng.uniform(14, N - 14), rng.uniform(12, 26)
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(245, 240, 200))
    draw.ellipse((x - 4, y - 11, x + 12, y + 5), fill=image.getpixel((1, int(y))))
    _ground(draw, rng, int(rng.integers(86, 98)), _near(rng, (22, 38, 40), 6), 6)
    return image


def _space(rng: Rng) -> Image.Image:
    image = Image.new("RGB", (N, N), _near(rng, (10, 6, 20), 6))
    draw = ImageDraw.Draw(image)
    _dots(draw, rng, 60, (240, 240, 255), 0, N, 1.0)
    for colour in ((200, 120, 80), (120, 90, 190)):
        x, y, r = rng.uniform(0, N), rng.choice([rng.uniform(4, 26), rng.uniform(104, 124)]), rng.uniform(8, 15)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_near(rng, colour, 30))
        draw.line((x - r * 1.6, y + 3, x + r * 1.6, y - 3), fill=(220, 205, 170), width=2)
    return image


def _room(rng: Rng) -> Image.Image:
    image = Image.new("RGB", (N, N), _near(rng, (235, 205, 185)))
    draw = ImageDraw.Draw(image)
    x = int(rng.integers(6, 78))
    draw.rectangle((x, 12, x + 40, 50), fill=(170, 215, 245), outline=(250, 250, 250), width=4)
    draw.line((x + 20, 12, x + 20, 50), fill=(250, 250, 250), width=3)
    floor = int(rng.integers(86, 96))
    draw.rectangle((0, floor, N, N), fill=_near(rng, (160, 105, 65)))
    draw.rectangle((0, floor, N, floor + 3), fill=(245, 240, 232))
    for y in range(floor + 12, N, 10):
        draw.line((0, y, N, y), fill=(135, 85, 50))
    return image


def _mountains(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (130, 180, 235)), _near(rng, (225, 238, 250)))
    draw = ImageDraw.Draw(image)
    for x in (rng.uniform(-6, 30), rng.uniform(90, 132), rng.uniform(44, 84)):
        top, half = rng.uniform(12, 34), rng.uniform(40, 54)
        draw.polygon([(x - half, 96), (x, top), (x + half, 96)], fill=_near(rng, (125, 125, 145)))
        share = 0.3
        left, right, level = x - half * share, x + half * share, top + (96 - top) * share
        draw.polygon([(left, level), (x, top), (right, level), (x, level - 6)], fill=(250, 250, 255))
    _ground(draw, rng, int(rng.integers(90, 98)), _near(rng, (105, 150, 90)), 3)
    return image


def _road(rng: Rng) -> Image.Image:
    image = _gradient(_near(rng, (150, 205, 245)), _near(rng, (225, 240, 250)))
    draw = ImageDraw.Draw(image)
    horizon = int(rng.integers(50, 60))
    draw.rectangle((0, horizon, N, N), fill=_near(rng, (150, 185, 95)))
    x = rng.uniform(50, 78)
    draw.polygon([(x - 9, horizon), (x + 9, horizon), (N + 6, N), (-6, N)], fill=_near(rng, (95, 95, 100)))
    for k in range(5):
        a, b = ((k + share) ** 1.6 / 5**1.6 for share in (0.25, 0.7))
        ya, yb = horizon + (N - horizon) * a, horizon + (N - horizon) * b
        draw.line((x + (64 - x) * a, ya, x + (64 - x) * b, yb), fill=(250, 250, 240), width=2 + k)
    return image


_DRAWN: dict[str, Callable[[Rng], Image.Image]] = {
    "beach": _beach, "snow": _snow, "meadow": _meadow, "forest": _forest, "desert": _desert, "sea": _sea,
    "city": _city, "night": _night, "space": _space, "room": _room, "mountains": _mountains, "road": _road,
}  # fmt: skip
assert set(_DRAWN) == set(BACKGROUNDS)


def draw_background(name: str, rng: Rng) -> Image.Image:
    """One background of `specification.BACKGROUNDS`, RGB, RESOLUTION x RESOLUTION, varied by `rng`."""
    return _DRAWN[name](rng)
