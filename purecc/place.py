"""The concept's place in a picture, and sampling that leaves all around it to the base model.

    v = v3 + m (v2 - v3)           of texts that name the concept
    v = v3 + share m (v2 - v3)     of the others: the negative
    v = v3                         while t is above LAYOUT

m is 1 on the place where the two models differ most on this x_t, 0 elsewhere and soft at the edge: it is looked for anew in each step,
as DiffEdit finds it (arXiv 2210.11427). It is eq. 13 with R_complete of eq. 10 as the direction and m as a lambda of its own at each place.
What a LoRA shifts in all texts alike cancels in the guidance v(negative) + w (v(prompt) - v(negative)) as far as the negative has it too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

# chosen by PocketBench (benchmarks/pocketbench/README.md)
NEGATIVE_SHARE = 0.75
LAYOUT = 0.95  # of the way to noise: above it the picture is laid out, by the base model alone


def is_layout(t: Tensor) -> bool:
    """Whether at these times, [batch] of the flow, all is left to the base model."""
    return bool((t > LAYOUT).all())


def place_of(
    with_concept: Sequence[Tensor], base: Sequence[Tensor], names: Sequence[bool], within: Tensor | None = None
) -> Tensor:
    """m of one x_t, [batch, 1, height, width] from 0 to 1, from what the two models predict for each text of a step.

    with_concept, base: [batch, channels, height, width] for each text, velocities, noises or clean pictures; `names`: which texts
    name the concept, of which one must: the place is where they differ most. Where nothing differs there is none. `within`: likewise, above
    0 where the picture is drawn at all, for an inpainting: what differs elsewhere is of no account.
    """
    texts = zip(with_concept, base, names, strict=True)
    energy = sum((ours - theirs).float().square().mean(1) for ours, theirs, named in texts if named).sqrt()
    drawn = [None] * len(energy) if within is None else within[:, 0] > 0
    return _smooth(torch.stack([where_most(*one) for one in zip(energy, drawn, strict=True)]))[:, None]


def kept_in_place(
    with_concept: Sequence[Tensor],
    base: Sequence[Tensor],
    names: Sequence[bool],
    place: Tensor | None = None,
    negative_share: float = NEGATIVE_SHARE,
) -> list[Tensor]:
    """For each text of a step the concept's prediction in its place and the base's around it; arguments as in `place_of`.

    One place for all texts, since guidance mixes them: `place`, or what `place_of` finds.
    """
    place = place_of(with_concept, base, names) if place is None else place
    return [
        torch.lerp(theirs, ours, (place if named else negative_share * place).to(ours))
        for ours, theirs, named in zip(with_concept, base, names, strict=True)
    ]


def where_most(energy: Tensor, drawn: Tensor | None = None) -> Tensor:
    """[height, width]: 1 where `energy`, smoothed over an eighth of the picture, is on the upper side of Otsu's threshold, else 0.

    `drawn`: likewise, bool; the threshold is that of these values, where there are two.
    """
    smooth = _smooth(energy[None])[0]
    among = smooth if drawn is None or drawn.sum() < 2 else smooth[drawn]
    return (smooth > otsu_threshold(among)).float()


def otsu_threshold(values: Tensor) -> Tensor:
    """The value that parts `values` into two groups with the greatest variance between them (Otsu 1979)."""
    order = values.flatten().sort().values
    count = len(order)
    below = torch.arange(1, count, device=order.device)
    sums = order.cumsum(0)
    low, high = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    best = int((below * (count - below) * (high - low).square()).argmax())
    return (order[best] + order[best + 1]) / 2


def _smooth(grids: Tensor) -> Tensor:
    """[batch, height, width], each value the mean over an eighth of the picture's shorter side around it."""
    reach = min(grids.shape[-2:]) // 16
    return avg_pool2d(grids, 2 * reach + 1, 1, reach, count_include_pad=False)
