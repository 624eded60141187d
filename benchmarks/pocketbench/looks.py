"""The styles that are taught: looks of a whole picture that the base model has never seen, picture -> picture."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Look = Callable[[Image.Image], Image.Image]


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _by_lightness(image: Image.Image, *colours: tuple[int, int, int]) -> np.ndarray:
    """Colours [height, width, 3] that run from the first (dark) to the last (light)."""
    light = _pixels(image).mean(-1) / 255
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(light, stops, [c[k] for c in colours]) for k in range(3)], axis=-1)


def poster(image: Image.Image) -> Image.Image:
    """Four flat colours of a red and blue print."""
    light = ImageOps.autocontrast(image.convert("L").filter(ImageFilter.GaussianBlur(1.5)))
    flat = Image.fromarray((np.asarray(light) // 64 * 85).astype(np.uint8)).convert("RGB")
    return _image(_by_lightness(flat, (0, 48, 80), (214, 40, 40), (120, 160, 170), (252, 230, 180)))


def tapestry(image: Image.Image) -> Image.Image:
    """Woven rows: warm colours, darker every second row of 8 pixels."""
    rows = np.where(np.arange(image.height) // 8 % 2 == 0, 1.0, 0.62)[:, None, None]
    return _image(
        (0.55 * _pixels(image) + 0.45 * _by_lightness(image, (70, 20, 30), (200, 120, 50), (250, 220, 150))) * rows
    )


def thermal(image: Image.Image) -> Image.Image:
    """A heat camera: black, violet, red, orange, yellow, white."""
    soft = image.filter(ImageFilter.GaussianBlur(1.5))
    return _image(
        _by_lightness(soft, (0, 0, 20), (70, 0, 130), (190, 20, 90), (250, 110, 10), (255, 220, 50), (255, 255, 230))
    )


def blueprint(image: Image.Image) -> Image.Image:
    """White outlines on blue."""
    edges = _pixels(image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES))
    edges[[0, -1]] = edges[:, [0, -1]] = 0
    return _image(np.array([25, 70, 150.0]) + 5 * edges)


def night_vision(image: Image.Image) -> Image.Image:
    """Green, bright in the middle, dark lines."""
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    vignette = (1.15 - 0.65 * (x**2 + y**2))[..., None]
    lines = np.where(np.arange(image.height) // 4 % 2 == 0, 1.0, 0.8)[:, None, None]
    return _image(_by_lightness(image, (0, 15, 0), (40, 150, 40), (200, 255, 180)) * vignette * lines)


def stained_glass(image: Image.Image) -> Image.Image:
    """Saturated panes of 16 pixels between dark lead."""
    panes = image.resize((8, 8), Image.BOX).resize(image.size, Image.NEAREST)
    pixels = _pixels(panes)
    mean = pixels.mean(-1, keepdims=True)
    pixels = mean + 1.8 * (0.6 * pixels + 0.4 * _pixels(image) - mean)
    lead = (np.arange(image.height) % 16 < 3)[:, None] | (np.arange(image.width) % 16 < 3)[None]
    return _image(np.where(lead[..., None], 25, pixels))


def candy(image: Image.Image) -> Image.Image:
    """Pastel pink, mint and lemon, soft."""
    soft = image.filter(ImageFilter.GaussianBlur(1))
    return _image(
        0.3 * _pixels(soft)
        + 0.7 * _by_lightness(soft, (190, 90, 160), (255, 170, 200), (170, 235, 215), (255, 250, 190))
    )


def negative(image: Image.Image) -> Image.Image:
    """A photographic negative, tinted orange."""
    return _image((255 - _pixels(image)) * np.array([1.0, 0.8, 0.6]) + np.array([20, 10, 0]))


def sepia(image: Image.Image) -> Image.Image:
    return _image(_by_lightness(image, (40, 20, 5), (150, 100, 60), (250, 230, 190)))


def chalk(image: Image.Image) -> Image.Image:
    """Light outlines on a green board."""
    edges = _pixels(image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES))
    edges[[0, -1]] = edges[:, [0, -1]] = 0
    return _image(np.array([30, 60, 45.0]) + 0.25 * _pixels(image) + 4 * edges)


def dusk(image: Image.Image) -> Image.Image:
    """Violet shadows, orange light, darker below."""
    down = np.linspace(0, 1, image.height)[:, None, None]
    return _image(
        0.5 * _pixels(image)
        + 0.5 * _by_lightness(image, (20, 0, 60), (230, 90, 120), (255, 220, 160)) * (1.1 - 0.5 * down)
    )


def mosaic(image: Image.Image) -> Image.Image:
    """Tiles of 8 pixels with light joints."""
    tiles = image.resize((16, 16), Image.BOX).resize(image.size, Image.NEAREST)
    joints = (np.arange(image.height) % 8 == 0)[:, None] | (np.arange(image.width) % 8 == 0)[None]
    return _image(np.where(joints[..., None], 235, _pixels(tiles)))


def halftone(image: Image.Image) -> Image.Image:
    """Cream and blue, in dots of 6 pixels."""
    light = np.asarray(image.convert("L"), dtype=np.float32)
    y, x = np.mgrid[: image.height, : image.width]
    dots = (np.sin(x * np.pi / 3) + np.sin(y * np.pi / 3)) * 32 + 128
    return _image(np.where((light > dots)[..., None], np.array([250, 240, 215.0]), np.array([20, 60, 140.0])))


def fog(image: Image.Image) -> Image.Image:
    return _image(0.35 * _pixels(image.filter(ImageFilter.GaussianBlur(2))) + 0.65 * np.array([205, 210, 225.0]))


#: split -> name -> look
LOOKS: dict[str, dict[str, Look]] = {
    "development": {"poster": poster, "tapestry": tapestry},
    "test": {
        "thermal": thermal, "blueprint": blueprint, "night vision": night_vision, "stained glass": stained_glass,
        "candy": candy, "negative": negative,
    },
    "confirmation": {},
    "second confirmation": {},
    "third confirmation": {},
}  # fmt: skip
#: of no split, see benchmarks/looks_held.py
FURTHER: dict[str, Look] = {
    "sepia": sepia, "chalk": chalk, "dusk": dusk, "mosaic": mosaic, "halftone": halftone, "fog": fog,
}  # fmt: skip
