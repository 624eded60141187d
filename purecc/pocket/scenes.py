"""Pictures with known contents: drawings placed on backgrounds, and the captions that describe them.

The caption grammar: `a [size] <class> [place] [and a [size] <class> [place]] [background] [in <style> style]`,
a bare class (`a dog`), a bare style (`pixel style`), or nothing (`""`, for classifier-free guidance).
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .art import SIDE, Sprite, sprites_by_class
from .backgrounds import draw_background
from .specification import BACKGROUNDS, CLASSES, PLACES, RESOLUTION, SIZES, STYLES

Rng = np.random.Generator


@dataclass(frozen=True)
class Thing:
    """One object: its class, the size and place words that are true of it, and how it is drawn (pixels)."""

    class_word: str
    size: str
    place: str
    sprite: Sprite
    side: float
    centre: tuple[float, float]
    flip: bool = False
    angle: float = 0.0  # degrees


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `render` draws it, `describe` says it."""

    things: tuple[Thing, ...]
    background: str
    seed: int  # of the background's variation
    style: str = ""


def place_thing(sprite: Sprite, size: str, place: str, rng: Rng, shrink: float = 1.0) -> Thing:
    """A drawing at a size and place given in words (keys of SIZES and PLACES), the rest by chance."""
    side = rng.uniform(*SIZES[size]) * shrink
    x, y = rng.uniform(*PLACES[place]) * RESOLUTION, rng.uniform(0.50, 0.66) * RESOLUTION
    y = min(y, RESOLUTION - side / 2 - 2)
    x = float(np.clip(x, side / 2 - 6, RESOLUTION - side / 2 + 6))
    return Thing(
        sprite.class_word, size, place, sprite, side, (x, y), bool(rng.random() < 0.5), float(rng.uniform(-8, 8))
    )


def random_scene(rng: Rng, split: str = "base") -> Scene:
    """A scene with one object (in 14 of 100, two), drawn from a split's art."""
    table = sprites_by_class(split)
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    things: tuple[Thing, ...]
    if rng.random() < 0.14:
        first, second = rng.choice(len(CLASSES), 2, replace=False)
        sizes = [pick(list(SIZES)) for _ in range(2)]
        things = tuple(
            place_thing(pick(table[CLASSES[c]]), size, place, rng, 0.8)
            for c, size, place in zip((first, second), sizes, ("on the left", "on the right"), strict=True)
        )
    else:
        sprite = pick(table[pick(CLASSES)])
        things = (place_thing(sprite, pick(list(SIZES)), pick(list(PLACES)), rng),)
    style = pick(STYLES) if rng.random() < 0.12 else ""
    return Scene(things, pick(list(BACKGROUNDS)), int(rng.integers(2**31)), style)


def render(scene: Scene) -> Image.Image:
    """The picture: RGB, RESOLUTION x RESOLUTION."""
    image = draw_background(scene.background, np.random.default_rng(scene.seed))
    for thing in scene.things:
        drawing = draw_thing(thing)
        corner = (round(thing.centre[0] - drawing.width / 2), round(thing.centre[1] - drawing.height / 2))
        image.paste(drawing, corner, drawing)
    return apply_style(image, scene.style)


def mask(scene: Scene, index: int = 0) -> Image.Image:
    """Where one object stands: greyscale, 255 inside, RESOLUTION x RESOLUTION."""
    thing, image = scene.things[index], Image.new("L", (RESOLUTION, RESOLUTION))
    drawing = draw_thing(thing)
    corner = (round(thing.centre[0] - drawing.width / 2), round(thing.centre[1] - drawing.height / 2))
    image.paste(drawing.getchannel("A"), corner)
    return image


def draw_thing(thing: Thing) -> Image.Image:
    """The object alone, RGBA, scaled, flipped and turned."""
    drawing = ImageOps.mirror(thing.sprite.image) if thing.flip else thing.sprite.image
    if thing.angle:
        drawing = drawing.rotate(thing.angle, Image.BICUBIC, expand=True)
    factor = thing.side / SIDE
    size = (max(1, round(drawing.width * factor)), max(1, round(drawing.height * factor)))
    return drawing.convert("RGBa").resize(size, Image.LANCZOS).convert("RGBA")


def apply_style(image: Image.Image, style: str) -> Image.Image:
    """One of the base's art styles (or "" for none) over a whole picture."""
    if style == "":
        return image
    if style == "pixel":
        return image.resize((22, 22), Image.BOX).resize(image.size, Image.NEAREST)
    if style == "sepia":
        return ImageOps.colorize(ImageOps.grayscale(image), (45, 25, 10), (255, 235, 200))
    if style == "sketch":
        grey = ImageOps.grayscale(image)
        blurred = np.asarray(ImageOps.invert(grey).filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
        dodge = np.asarray(grey, dtype=np.float32) * 255 / np.maximum(255 - blurred, 1)
        return Image.fromarray(np.clip(dodge, 0, 255).astype(np.uint8)).convert("RGB")
    if style == "neon":
        edges = np.asarray(image.filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES), dtype=np.float32)
        edges[[0, -1]] = edges[:, [0, -1]] = 0  # the filter leaves the border as it was
        glow = np.clip(edges * 4 + np.asarray(image, dtype=np.float32) * 0.15, 0, 255)
        return Image.fromarray(glow.astype(np.uint8))
    raise ValueError(f"no such style: {style!r}; the base knows {', '.join(STYLES)}")


def describe(scene: Scene, *, size: bool = True, place: bool = True, background: bool = True) -> str:
    """The caption of a scene; each flag says whether that part is spoken of."""
    nouns = []
    for thing in scene.things:
        words = [thing.size if size else "", thing.class_word, thing.place if place else ""]
        words = [word for word in words if word]
        nouns.append(("an " if words[0][0] in "aeiou" else "a ") + " ".join(words))
    parts = [" and ".join(nouns)]
    if background:
        parts.append(BACKGROUNDS[scene.background])
    if scene.style:
        parts.append(f"in {scene.style} style")
    return " ".join(parts)


def random_caption(scene: Scene, rng: Rng) -> str:
    """A caption as the base is trained with: parts left out by chance, sometimes only the class, sometimes nothing."""
    chance = rng.random()
    if chance < 0.10:
        return ""
    if chance < 0.20 and not scene.style:
        return describe(replace(scene, things=scene.things[:1]), size=False, place=False, background=False)
    if chance < 0.20:
        return f"{scene.style} style"
    return describe(scene, size=rng.random() < 0.85, place=rng.random() < 0.8, background=rng.random() < 0.85)
