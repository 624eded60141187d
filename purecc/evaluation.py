"""Simple, learning-free measures of pictures; the bench has the thorough ones.

Fidelity here is colour only: it asks whether somewhere in the picture there is a region coloured as the concept is. It
cannot see shape. Drift is the mean absolute difference of pixels to the base model's picture of the same seed.
"""

import numpy as np
from torch import Tensor

_BINS = 6  # a channel
_WINDOWS = (0.3, 0.45, 0.65)  # sides of the search windows, as shares of the picture's shorter side
_STRIDE = 8  # windows a side of the picture


def pixel_drift(original: Tensor, customised: Tensor) -> float:
    """Mean absolute difference of pictures [batch, height, width, 3] in 0..1, on the scale 0 to 255."""
    if original.shape != customised.shape:
        raise ValueError(
            f"The pictures differ in number or size: {tuple(original.shape)} and {tuple(customised.shape)}. "
            "Sample both from the same latent size, batch and seed."
        )
    return float((original.float() - customised.float()).abs().mean() * 255)


def colour_histogram(picture: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Share of each of the 216 colours, [216], of a picture [height, width, 3] in 0..1, inside the mask if there is one."""
    colours = _colour_numbers(picture)
    weights = np.ones(colours.shape) if mask is None else mask
    counts = np.bincount(colours.ravel(), weights.ravel(), _BINS**3)
    return counts / max(counts.sum(), 1e-9)


def find_colours(picture: np.ndarray, wanted: np.ndarray) -> float:
    """The best histogram intersection of any window of the picture with the wanted colours, 0..1."""
    colours = _colour_numbers(picture)
    height, width = colours.shape
    kinds = [int(k) for k in np.flatnonzero(wanted > 0.01)]
    sums = np.zeros((len(kinds), height + 1, width + 1))  # one integral picture for each colour that matters
    for i, kind in enumerate(kinds):
        sums[i, 1:, 1:] = (colours == kind).cumsum(0).cumsum(1)
    best = 0.0
    for share in _WINDOWS:
        side = max(4, round(share * min(height, width)))
        ys = np.unique(np.linspace(0, height - side, _STRIDE * 2).astype(int))[:, None]
        xs = np.unique(np.linspace(0, width - side, _STRIDE * 2).astype(int))[None]
        counts = sums[:, ys + side, xs + side] - sums[:, ys, xs + side] - sums[:, ys + side, xs] + sums[:, ys, xs]
        shares = counts / counts.sum(0, keepdims=True).clip(0.35 * side * side)  # few such pixels are not the object
        best = max(best, float(np.minimum(shares, wanted[kinds][:, None, None]).sum(0).max()))
    return best


def colour_fidelity(pictures: Tensor, floor: Tensor, references: list[Tensor], masks: list[Tensor]) -> float | None:
    """How far the concept's colours are there: 0 as in the base model's pictures, 1 as in the references themselves.

    `pictures`, `floor` [batch, height, width, 3]; references [height, width, 3] with masks [height, width]. The ceiling is
    each reference against the colours of the others. None where that cannot be told: fewer than two references, or a base
    model whose pictures have these colours already.
    """
    if len(references) < 2:
        return None
    objects = [colour_histogram(p.numpy(), m.numpy()) for p, m in zip(references, masks, strict=True)]
    score = lambda batch: float(np.mean([find_colours(p.numpy(), np.mean(objects, 0)) for p in batch]))  # noqa: E731
    others = [np.mean(objects[:i] + objects[i + 1 :], 0) for i in range(len(objects))]
    ceiling = float(np.mean([find_colours(p.numpy(), o) for p, o in zip(references, others, strict=True)]))
    lowest = score(floor)
    if ceiling - lowest < 0.05:
        return None
    return (score(pictures) - lowest) / (ceiling - lowest)


def _colour_numbers(picture: np.ndarray) -> np.ndarray:
    levels = np.clip(picture * _BINS, 0, _BINS - 1).astype(int)
    return levels[..., 0] * _BINS * _BINS + levels[..., 1] * _BINS + levels[..., 2]
