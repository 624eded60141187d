"""The witnesses: what is measured on pictures, learned (by the judges) and learning-free (pixels, colours, templates).

All take pictures [batch, 3, 128, 128] in [-1, 1]. A *likeness* is higher where the concept is better; a *change* is 0 where
a picture equals the base model's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from purecc.evaluation import colour_histogram, find_colours
from purecc.pocket.art import Sprite
from purecc.pocket.scenes import Thing, draw_thing

from .networks import Judges

_SIDES = (40, 60, 88)  # of the templates, pixels; what SIZES holds
_HALF = 2  # templates are matched at 1 / _HALF of the pictures' size


def as_images(pictures: Tensor) -> np.ndarray:
    """[batch, height, width, 3] in 0..1."""
    return ((pictures.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).float().numpy()


@torch.no_grad()
def embedding_likeness(embedder, pictures: Tensor, references: Tensor) -> Tensor:
    """Cosine of a judge's embedding of each picture with the mean of the references', [batch]: pocket CLIP-I, DINO, CSD."""
    return embedder(pictures) @ F.normalize(embedder(references).mean(0), dim=0)


def colour_likeness(pictures: Tensor, references: Tensor, masks: Tensor) -> Tensor:
    """Best histogram intersection of any window with the concept's own colours, [batch]; masks [count, height, width]."""
    shown = zip(as_images(references), masks.numpy(), strict=True)
    wanted = np.mean([colour_histogram(picture, where) for picture, where in shown], axis=0)
    return torch.tensor([find_colours(picture, wanted) for picture in as_images(pictures)])


def histogram_likeness(pictures: Tensor, references: Tensor) -> Tensor:
    """Histogram intersection of whole pictures with the references', [batch]: for looks."""
    wanted = np.mean([colour_histogram(picture) for picture in as_images(references)], axis=0)
    return torch.tensor([float(np.minimum(colour_histogram(p), wanted).sum()) for p in as_images(pictures)])


_PATCH = 5  # side of a patch at half size: 10 pixels of the picture
_KEPT = 6000  # patches of the references


def patch_likeness(pictures: Tensor, references: Tensor) -> Tensor:
    """1 - the root mean square colour difference (0..1) of each patch to the references' nearest one, [batch]: for looks.

    Patches of 10 x 10 pixels at half size hold a look's colours, edges and stripes together, wherever they stand (nearest
    neighbours of patches, as in the texture energy of Kwatra et al. 2005). One-sided: a plain field of one right colour scores
    well, which the histogram of the whole picture does not allow.
    """
    kept = _patches(references).flatten(0, 1)
    chosen = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:_KEPT]
    distances = [torch.cdist(patches, kept[chosen]).amin(1).square().mean() for patches in _patches(pictures)]
    return 1 - (torch.stack(distances) / kept.shape[1]).sqrt()


def _patches(pictures: Tensor) -> Tensor:
    """Patches at every second place of the pictures at half size, [batch, places, 3 * 5 * 5] in 0..1."""
    small = F.avg_pool2d((pictures.clamp(-1, 1) + 1) / 2, _HALF)
    return F.unfold(small, _PATCH, stride=2).transpose(1, 2)


def template_likeness(pictures: Tensor, sprite: Sprite) -> Tensor:
    """1 - the root mean square colour difference (0..1) of the drawing at its best place, size and side, [batch].

    The drawing is laid over every place in three sizes and both ways round; pixels count by its alpha.
    """
    small = F.avg_pool2d((pictures.clamp(-1, 1) + 1) / 2, _HALF)
    best = torch.full((len(pictures),), torch.inf)
    for side in _SIDES:
        for flip in (False, True):
            thing = Thing(sprite.class_word, "", "", sprite, side / _HALF, (0, 0), flip)
            rgba = torch.from_numpy(np.asarray(draw_thing(thing), dtype=np.float32) / 255).permute(2, 0, 1)
            colours, alpha = rgba[:3], rgba[3:]
            weight = alpha.sum() * 3
            # sum over the drawing of alpha (picture - colour)^2, opened up into three correlations
            squares = F.conv2d(small.square(), alpha.expand(1, 3, -1, -1))
            products = F.conv2d(small, (alpha * colours)[None])
            distance = (squares - 2 * products + (alpha * colours.square()).sum()) / weight
            best = torch.minimum(best, distance.flatten(1).amin(1))
    return 1 - best.clamp_min(0).sqrt()


@torch.no_grad()
def caption_likeness(judges: Judges, pictures: Tensor, texts: list[str]) -> Tensor:
    """Cosine of each picture with its text, [batch]: pocket CLIP-T."""
    return (judges.scene(pictures).embedding * judges.scene.read(texts)).sum(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The SSIM map of grey pictures, [batch, height, width] (Wang et al. 2004; gaussian window 11, sigma 1.5)."""
    line = torch.exp(-(torch.arange(-5.0, 6.0).square()) / (2 * 1.5**2))
    window = (line[:, None] * line[None] / line.sum().square())[None, None]
    grey = lambda x: ((x.clamp(-1, 1) + 1) / 2).mean(1, keepdim=True)  # noqa: E731
    blur = lambda x: F.conv2d(F.pad(x, (5, 5, 5, 5), mode="reflect"), window)  # noqa: E731
    a, b = grey(a), grey(b)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    made = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (made / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2)))[:, 0]


@dataclass
class Change:
    """How far pictures are from the base model's of the same seed and text, each [batch]."""

    pixels: Tensor  # mean absolute difference, 0..255
    feature: Tensor  # 1 - cosine of the drawing judge's embeddings
    background_pixels: Tensor  # the same, outside the objects of both pictures; NaN where nothing is outside
    background_ssim: Tensor  # 1 is equal, outside the objects of both pictures
    seg_cons: Tensor  # IoU of the two pictures' object masks, 0..1
    layout: Tensor  # distance of the two masks' centres, pixels
    beside: Tensor  # `pixels` on the base picture's second thing; NaN where none was asked for, or none is there


@torch.no_grad()
def change(judges: Judges, originals: Tensor, customised: Tensor, beside: list[str] | None = None) -> Change:
    """`beside`: for each picture the side that its second thing was asked for ("on the left", "on the right"), or ""."""
    difference = (customised.clamp(-1, 1) - originals.clamp(-1, 1)).abs().mean(1) * 127.5
    logits = [judges.scene(p).mask for p in (originals, customised)]
    a, b = (m > 0 for m in logits)
    union = F.max_pool2d((a | b).float()[:, None], 3, stride=1, padding=1)  # a rim of four pixels
    outside = 1 - F.interpolate(union, scale_factor=4.0)[:, 0]
    share = outside.sum((1, 2))  # 0 where objects fill the picture: then there is no background, and 0 / 0 is NaN
    embeddings = [judges.drawing(p) for p in (originals, customised)]
    second = F.interpolate(a.float()[:, None], scale_factor=4.0)[:, 0] * _sides(
        beside or [""] * len(a), a.shape[-1] * 4
    )
    overlap, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return Change(
        difference.mean((1, 2)),
        1 - (embeddings[0] * embeddings[1]).sum(1),
        (difference * outside).sum((1, 2)) / share,
        (ssim(originals, customised) * outside).sum((1, 2)) / share,
        torch.where(either > 0, overlap / either.clamp_min(1), 1.0),
        4 * (_centre(a) - _centre(b)).norm(dim=1),
        (difference * second).sum((1, 2)) / second.sum((1, 2)),  # 0 / 0: NaN
    )


def own_half(originals: Tensor, customised: Tensor, beside: list[str]) -> Tensor:
    """`customised` [batch, 3, height, width] with the base's picture in the half where a second thing was asked for.

    Most witnesses read a whole picture: a second thing that takes on the concept's looks would count as likeness.
    """
    second = _sides(beside, customised.shape[-1])[:, None]
    return torch.where(second > 0, originals, customised)


def _sides(places: list[str], width: int) -> Tensor:
    """1 in the half of the picture that each place names, [batch, 1, width]; nowhere for ""."""
    left = torch.arange(width) < width // 2
    halves = {"on the left": left, "on the right": ~left, "": left & ~left}
    return torch.stack([halves[place] for place in places]).float()[:, None]


def _centre(masks: Tensor) -> Tensor:
    """The middle of each mask [batch, height, width] in its own cells, [batch, 2]; of an empty one, the picture's."""
    rows, columns = masks.float().sum(2), masks.float().sum(1)
    count = masks.shape[-1]
    at = torch.arange(count, dtype=torch.float32)
    total = rows.sum(1)
    centre = torch.stack([rows @ at, columns @ at], dim=1) / total.clamp_min(1)[:, None]
    return torch.where(total[:, None] > 0, centre, torch.tensor((count - 1) / 2))


@torch.no_grad()
def kernel_distance(judges: Judges, a: Tensor, b: Tensor, *, paired: bool = False) -> float:
    """KID: the squared maximum mean discrepancy of the scene judge's features, polynomial kernel (Binkowski et al. 2018).

    Unbiased, so it may fall below 0. `paired`: a[i] and b[i] are of one seed and text, so not independent; those pairs are
    left out of the cross term too (Gretton et al. 2012, lemma 6), and equal pictures are exactly 0 apart.
    """
    x, y = (judges.scene.trunk(p)[1].mean((2, 3)).double() for p in (a, b))
    kernel = lambda u, v: (u @ v.T / u.shape[1] + 1) ** 3  # noqa: E731
    others = lambda k: float((k.sum() - k.trace()) / (len(k) * (len(k) - 1)))  # noqa: E731
    across = kernel(x, y)
    return others(kernel(x, x)) + others(kernel(y, y)) - 2 * (others(across) if paired else float(across.mean()))
