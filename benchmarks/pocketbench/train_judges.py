"""Trains the judges on art that no concept is made of (splits "base" and "judges"), and prints their own accuracy.

    python -m benchmarks.pocketbench.train_judges [scene drawing style] --minutes 10

Pictures go through the autoencoder, with noise on the latents, and are blurred a little, as generated pictures are.
"""

import argparse
import colorsys
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from purecc.files import load_tensors, save_tensors
from purecc.pocket.art import Sprite, sprites
from purecc.pocket.autoencoder import PocketAutoencoder
from purecc.pocket.model import WEIGHTS as POCKET
from purecc.pocket.scenes import Scene, describe, mask, place_thing, random_scene, render
from purecc.pocket.specification import BACKGROUNDS, CLASSES, PLACES, SIZES, STYLES

from .networks import WEIGHTS, Embedder, SceneJudge

log = logging.getLogger("pocketbench")
Rng = np.random.Generator
HELD_OUT = 900_000_000  # scene numbers from here on are never trained on
VIEWS = 4  # of one drawing or look in a batch
REUSED = 80  # batches from one store of pictures


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


# scene judge


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


def scene_loss(judge: SceneJudge, pixels: Tensor, truth: SceneTruth) -> Tensor:
    view = judge(pixels)
    loss = sum(F.cross_entropy(view.logits[name].float(), wanted) for name, wanted in truth.labels.items())
    loss = loss + 4 * F.binary_cross_entropy_with_logits(view.present.float(), truth.present)
    loss = loss + 2 * F.binary_cross_entropy_with_logits(view.mask.float(), truth.mask)
    alike = judge.temperature.clamp(max=4.0).exp() * view.embedding.float() @ judge.read(truth.captions).float().T
    pairs = torch.arange(len(pixels))
    return loss + 0.5 * (F.cross_entropy(alike, pairs) + F.cross_entropy(alike.T, pairs))


# drawing and style judges: pictures of one kind near one another, of different kinds apart


def supervised_contrast(embeddings: Tensor, kinds: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (arXiv 2004.11362, its L_out); embeddings [batch, width] of unit length, kinds [batch]."""
    alike = embeddings.float() @ embeddings.float().T / temperature
    alike = alike.masked_fill(torch.eye(len(kinds), dtype=torch.bool), -1e9)
    same = (kinds[:, None] == kinds[None]) & ~torch.eye(len(kinds), dtype=torch.bool)
    log_share = alike - alike.logsumexp(1, keepdim=True)
    return -(log_share.masked_fill(~same, 0).sum(1) / same.sum(1).clamp_min(1)).mean()


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


def drawing_batch(rng: Rng, count: int) -> tuple[list[Image.Image], Tensor]:
    """`count` drawings (some recoloured), each in VIEWS scenes -> pictures, kinds."""
    art = sprites("base") + sprites("judges")
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


@torch.no_grad()
def retrieval(judge: Embedder, batch, autoencoder: PocketAutoencoder, rounds: int = 8) -> float:
    """How often the picture nearest to a picture is of its own kind, among 24 kinds of VIEWS pictures."""
    rng, hits = np.random.default_rng(HELD_OUT), []
    for _ in range(rounds):
        pictures, kinds = batch(rng, 24)
        embeddings = judge(as_generated(to_pixels(pictures), autoencoder, rng))
        alike = (embeddings @ embeddings.T).fill_diagonal_(-1)
        hits.append((kinds[alike.argmax(1)] == kinds).float().mean())
    return float(torch.stack(hits).mean())


@torch.no_grad()
def accuracy(judge: SceneJudge, autoencoder: PocketAutoencoder, count: int = 400) -> dict[str, float]:
    """The scene judge's own accuracy on held-out composites through the autoencoder, by head and by art."""
    found: dict[str, list[float]] = {}
    scenes = [scene_of(HELD_OUT + i) for i in range(count)]
    pixels = as_generated(to_pixels([render(s) for s in scenes]), autoencoder, np.random.default_rng(0))
    truth = truth_of(scenes)
    view = judge(pixels)
    for name, wanted in truth.labels.items():
        right = (view.logits[name].argmax(1) == wanted)[wanted >= 0]
        found[name] = right.float().tolist()
    alike = view.embedding @ judge.read(truth.captions).T
    found["caption among 400"] = (alike.argmax(1) == torch.arange(count)).float().tolist()
    covered, real = view.mask > 0, truth.mask > 0.5
    found["mask IoU"] = ((covered & real).sum((1, 2)) / (covered | real).sum((1, 2)).clamp_min(1)).tolist()
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


class Store:
    """Pictures enough for REUSED / 4 batches, composed and worn."""

    def __init__(self, name: str, rng: Rng, number: int, autoencoder: PocketAutoencoder):
        self.name = name
        batches = REUSED // 4
        if name == "scene":
            scenes = [scene_of(number * batches * 48 + i) for i in range(batches * 48)]
            self.truth, pictures = truth_of(scenes), [render(s) for s in scenes]
        else:
            pictures, _ = (drawing_batch if name == "drawing" else style_batch)(rng, batches * 12)
        self.pixels = torch.cat([worn(chunk, autoencoder, rng) for chunk in to_pixels(pictures).split(48)])

    def batch(self, rng: Rng) -> tuple[Tensor, SceneTruth | Tensor]:
        """48 pictures by chance, with what is true of them."""
        if self.name == "scene":
            chosen = torch.from_numpy(rng.choice(len(self.pixels), 48, replace=False))
            return self.pixels[chosen], self.truth.of(chosen)
        kinds = rng.choice(len(self.pixels) // VIEWS, 12, replace=False)
        chosen = torch.from_numpy(kinds)[:, None] * VIEWS + torch.arange(VIEWS)
        return self.pixels[chosen.flatten()], torch.arange(12).repeat_interleave(VIEWS)


def train(name: str, minutes: float, autoencoder: PocketAutoencoder, more: bool, rate: float) -> tuple[nn.Module, int]:
    """One judge, from nothing or from where it stands (`more`), and its steps; the rate falls to zero over the minutes."""
    torch.manual_seed(0)
    judge, first = SceneJudge() if name == "scene" else Embedder(), 0
    if more:
        tensors, header = load_tensors(WEIGHTS / f"{name}.safetensors")
        judge.load_state_dict(tensors)
        first = int(header.get("steps", 0))
    judge.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.02, fused=True)
    rng, step, losses, start, store = np.random.default_rng(1 + first), first, [], time.monotonic(), None
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(1, (step - first + 1) / 100) * (1 - share)
        if (
            store is None or step % REUSED == 0
        ):  # composing costs more than learning, so a store of pictures is gone through some times
            store = Store(name, rng, step // REUSED, autoencoder)
        pixels, wanted = store.batch(rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss = scene_loss(judge, pixels, wanted) if name == "scene" else supervised_contrast(judge(pixels), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            log.info("%s: step %d, loss %.3f, %.1f minutes", name, step, np.mean(losses), share * minutes)
            losses.clear()
    return judge.eval(), step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judges", nargs="*", default=["scene", "drawing", "style"])
    parser.add_argument("--minutes", type=float, default=10, help="for each judge")
    parser.add_argument("--more", action="store_true", help="go on from the weights that there are")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--autoencoder", type=Path, default=POCKET / "vae")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    autoencoder = PocketAutoencoder.from_pretrained(args.autoencoder, torch_dtype=torch.float32).requires_grad_(False)
    for name in args.judges:
        judge, steps = train(name, args.minutes, autoencoder, args.more, args.rate)
        if name == "scene":
            figures = accuracy(judge, autoencoder)
        else:
            batch = drawing_batch if name == "drawing" else style_batch
            figures = {"nearest is of its kind, 24 kinds": round(retrieval(judge, batch, autoencoder), 4)}
        figures["steps"] = steps
        log.info("%s: %s", name, figures)
        weights = {
            key: value.half().contiguous() if value.is_floating_point() else value
            for key, value in judge.state_dict().items()
        }
        save_tensors(WEIGHTS / f"{name}.safetensors", weights, {key: str(value) for key, value in figures.items()})


if __name__ == "__main__":
    main()
