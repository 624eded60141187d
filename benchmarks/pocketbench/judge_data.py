"""What the judges learn from and are measured on: composites of base and judges' art, worn as generated pictures are."""

import colorsys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from purecc.pocket.art import Sprite, sprites
from purecc.pocket.autoencoder import PocketAutoencoder
from purecc.pocket.scenes import Scene, describe, mask, place_thing, random_scene, render
from purecc.pocket.specification import BACKGROUNDS, CLASSES, PLACES, SIZES, STYLES

Rng = np.random.Generator
HELD_OUT = 900_000_000  # scene numbers from here on are never trained on; their drawings are
VIEWS = 4  # of one drawing or look in a batch


def to_pixels(pictures: list[Image.Image]) -> Tensor:
    """RGB pictures -> [batch, 3, height, width] in [-1, 1]."""
    arrays = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def as_generated(pixels: Tensor, autoencoder: PocketAutoencoder, rng: Rng, noise: float = 0.25) -> Tensor:
    """Through the autoencoder with noise on the latents (standard deviation up to `noise`; the latents' own is 1)."""
    latent = autoencoder.encode(pixels).latent_dist.mode()
    spread = torch.from_numpy(rng.uniform(0, noise, (len(pixels), 1, 1, 1))).float() / autoencoder.config.scaling_factor
    latent = latent + spread * torch.from_numpy(rng.standard_normal(latent.shape)).float()
    with torch.autocast("cpu", torch.bfloat16):
        return autoencoder.decode(latent).sample.float().clamp(-1, 1)


def worn(pixels: Tensor, autoencoder: PocketAutoencoder, rng: Rng) -> Tensor:
    """Three in four as generated pictures are, and a third of all blurred a little."""
    pixels = pixels.clone()
    chosen = torch.from_numpy(rng.random(len(pixels)) < 0.75)
    if chosen.any():
        pixels[chosen] = as_generated(pixels[chosen], autoencoder, rng)
    chosen = torch.from_numpy(rng.random(len(pixels)) < 0.33)
    if chosen.any():
        pixels[chosen] = F.avg_pool2d(F.pad(pixels[chosen], (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pixels


def scene_of(number: int) -> Scene:
    """A scene of base or judges' art; a number is its seed."""
    rng = np.random.default_rng((number, 11))
    return random_scene(rng, "base" if rng.random() < 0.6 else "judges")


@dataclass
class SceneTruth:
    """What the captions and masks of a batch of scenes say."""

    captions: list[str]
    labels: dict[str, Tensor]  # by head, [batch]; -100 where there are two things
    present: Tensor  # [batch, classes]
    mask: Tensor  # [batch, 32, 32] in 0..1

    def of(self, chosen: Tensor) -> "SceneTruth":
        labels = {name: values[chosen] for name, values in self.labels.items()}
        captions = [self.captions[i] for i in chosen.tolist()]
        return SceneTruth(captions, labels, self.present[chosen], self.mask[chosen])


def truth_of(scenes: list[Scene]) -> SceneTruth:
    things = [scene.things[0] if len(scene.things) == 1 else None for scene in scenes]
    position = lambda options, value: list(options).index(value)  # noqa: E731
    labels = {
        "class": [position(CLASSES, t.class_word) if t else -100 for t in things],
        "size": [position(SIZES, t.size) if t else -100 for t in things],
        "place": [position(PLACES, t.place) if t else -100 for t in things],
        "background": [position(BACKGROUNDS, s.background) for s in scenes],
        "style": [position(("", *STYLES), s.style) for s in scenes],
    }
    present = torch.zeros(len(scenes), len(CLASSES))
    masks = []
    for i, scene in enumerate(scenes):
        covers = np.zeros((128, 128), dtype=np.float32)
        for k, thing in enumerate(scene.things):
            present[i, position(CLASSES, thing.class_word)] = 1
            covers = np.maximum(covers, np.asarray(mask(scene, k), dtype=np.float32) / 255)
        masks.append(torch.from_numpy(covers))
    small = F.avg_pool2d(torch.stack(masks)[:, None], 4)[:, 0]
    return SceneTruth([describe(s) for s in scenes], {k: torch.tensor(v) for k, v in labels.items()}, present, small)


def turned_hue(sprite: Sprite, turn: float) -> Sprite:
    """The drawing in other colours, so that colours count for who it is."""
    if turn == 0:
        return sprite
    red, green, blue = (np.array(colorsys.hsv_to_rgb((h + turn) % 1, 1, 1)) for h in (0, 1 / 3, 2 / 3))
    rgba = np.asarray(sprite.image, dtype=np.float32)
    mixed = rgba[..., :3] @ np.stack([red, green, blue])
    image = Image.fromarray(np.concatenate([mixed.clip(0, 255), rgba[..., 3:]], axis=-1).astype(np.uint8), "RGBA")
    return replace(sprite, image=image)


def scene_with(sprite: Sprite, rng: Rng) -> Scene:
    size, place = rng.choice(["", "big", "small"], p=[0.45, 0.4, 0.15]), rng.choice(list(PLACES))
    thing = replace(place_thing(sprite, str(size), str(place), rng), angle=float(rng.uniform(-15, 15)))
    return Scene((thing,), str(rng.choice(list(BACKGROUNDS))), int(rng.integers(2**31)))


def drawings(held_out: bool) -> list[Sprite]:
    """The drawings of base and judges that the drawing judge learns from, or the eighth of them that is held out."""
    art = sprites("base") + sprites("judges")
    return [s for s in art if (zlib.crc32(f"{s.vendor} {s.drawing}".encode()) % 8 == 0) == held_out]


def drawing_batch(rng: Rng, count: int, art: Sequence[Sprite] | None = None) -> tuple[list[Image.Image], Tensor]:
    """`count` drawings (some recoloured), each in VIEWS scenes -> pictures, kinds; of those learnt from, if not said."""
    art = art or drawings(held_out=False)
    chosen = [art[i] for i in rng.choice(len(art), count, replace=False)]
    chosen = [turned_hue(sprite, float(rng.choice([0, 0, 0, 1 / 3, 2 / 3]))) for sprite in chosen]
    pictures = [render(scene_with(sprite, rng)) for sprite in chosen for _ in range(VIEWS)]
    return pictures, torch.arange(count).repeat_interleave(VIEWS)


def random_look(rng: Rng) -> Callable[[Image.Image], Image.Image]:
    """A look by chance: colours mapped by lightness, steps of colour, blocks, softness, outlines, stripes."""
    colours = [rng.uniform(0, 255, 3) * np.array(k) for k in (0.5, 1.0)] + [255 - rng.uniform(0, 120, 3)]
    strength = rng.choice([0.0, rng.uniform(0.5, 1.0)], p=[0.35, 0.65])
    levels = int(rng.choice([0, 3, 4, 6], p=[0.55, 0.15, 0.15, 0.15]))
    blocks = int(rng.choice([0, 16, 22, 32], p=[0.6, 0.1, 0.15, 0.15]))
    soft = float(rng.choice([0, 1.5, 3], p=[0.6, 0.2, 0.2]))
    outline = float(rng.choice([0, -1, 1], p=[0.6, 0.2, 0.2]))
    stripes, along = float(rng.choice([0, 6, 10, 16], p=[0.55, 0.15, 0.15, 0.15])), int(rng.integers(2))

    def look(image: Image.Image) -> Image.Image:
        image = image.filter(ImageFilter.GaussianBlur(soft)) if soft else image
        image = image.resize((blocks, blocks), Image.BOX).resize(image.size, Image.NEAREST) if blocks else image
        edges = np.asarray(image.convert("L").filter(ImageFilter.FIND_EDGES), dtype=np.float32)[..., None]
        edges[[0, -1]] = edges[:, [0, -1]] = 0
        pixels = np.asarray(image, dtype=np.float32)
        light = pixels.mean(-1) / 255
        mapped = np.stack([np.interp(light, [0, 0.5, 1], [c[k] for c in colours]) for k in range(3)], axis=-1)
        pixels = (1 - strength) * pixels + strength * mapped
        if levels:
            pixels = np.round(pixels / 255 * (levels - 1)) * 255 / (levels - 1)
        if stripes:
            wave = 40 * np.sign(np.sin(2 * np.pi * np.arange(image.width) / stripes))
            pixels = pixels + (wave[None, :, None] if along else wave[:, None, None])
        return Image.fromarray((pixels + outline * 2 * edges).clip(0, 255).astype(np.uint8))

    return look


def style_batch(rng: Rng, count: int) -> tuple[list[Image.Image], Tensor]:
    """`count` looks, each over VIEWS scenes -> pictures, kinds."""
    looks = [random_look(rng) for _ in range(count)]
    plain = lambda: replace(random_scene(rng, "judges" if rng.random() < 0.4 else "base"), style="")  # noqa: E731
    return [look(render(plain())) for look in looks for _ in range(VIEWS)], torch.arange(count).repeat_interleave(VIEWS)
