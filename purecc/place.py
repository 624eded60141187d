"""The concept's place in a picture, and sampling that leaves all around it to the base model.

    v = v3 + sum_i m_i (v_i - v3)           of texts that name concept i
    v = v3 + share sum_i m_i (v_i - v3)     of the others: the negative; share is 1 for a look
    v = v3                                  while t is above LAYOUT

v_i is the velocity with concept i alone. Of a thing m_i is 1 on the place where the two models differ most on this x_t, 0 elsewhere and
soft at the edge: it is looked for anew in each step, as DiffEdit finds it (arXiv 2210.11427). A look is all over the picture: there m_i is
LOOK_SHARE. It is eq. 13 with R_complete of eq. 10 as the direction and m as a lambda of its own at each place.
What a LoRA shifts in all texts alike cancels in the guidance v(negative) + w (v(prompt) - v(negative)) as far as the negative has it too;
a look, which is mostly that, is kept out of the negative by its gate, so guidance multiplies it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

# chosen by PocketBench (benchmarks/pocketbench/README.md)
NEGATIVE_SHARE = 0.75
LOOK_SHARE = 0.6
FAINT = 0.1  # of what another changes at most: a concept that hardly acts, as at a low strength
LAYOUT = 0.95  # of the way to noise: above it the picture is laid out, by the base model alone


def is_layout(t: Tensor) -> bool:
    """Whether at these times, [batch] of the flow, all is left to the base model."""
    return bool((t > LAYOUT).all())


@dataclass(frozen=True)
class Held:
    """What one concept makes of a step's texts: velocities, noises or clean pictures, [batch, channels, height, width] for each text."""

    found: Sequence[Tensor | None]  # with it alone; None where the base's stays
    names: Sequence[bool]  # which texts name it
    place: Tensor | None = None  # m of a thing, [batch, 1, height, width]; None for a look
    look_share: float = LOOK_SHARE  # m of a look

    def change(self, base: Sequence[Tensor]) -> Tensor:
        """How much it differs from the base at each place, [batch, height, width], in the texts that name it, of which one must."""
        texts = zip(self.found, base, self.names, strict=True)
        return sum((ours - theirs).float().square().mean(1) for ours, theirs, named in texts if named).sqrt()

    def m(self, text: int, like: Tensor, negative_share: float) -> Tensor:
        """m of one text, [batch or 1, 1, height or 1, width or 1]."""
        if self.place is None:
            return like.new_full((1, 1, 1, 1), self.look_share)
        return (self.place if self.names[text] else negative_share * self.place).to(like)


def places_of(changes: Sequence[Tensor], within: Tensor | None = None) -> list[Tensor]:
    """m of each of several things in one x_t, [batch, 1, height, width] from 0 to 1, from `Held.change` of each.

    The place of one is where it changes most, and where nothing differs there is none. Where places of several overlap, that one has it
    which changes more there, each by the most that it changes; one that is FAINT beside another takes nothing from it. `within`: likewise
    [batch, 1, height, width], above 0 where the picture is drawn at all, for an inpainting: what differs elsewhere is of no account.
    """
    drawn = None if within is None else within[:, 0] > 0
    if drawn is not None:
        drawn = drawn | (drawn.sum((1, 2), keepdim=True) < 2)
    found = [_place(change, drawn) for change in changes]
    if len(found) < 2:
        return found
    smooth = torch.stack([_smooth(change, drawn) for change in changes])
    most = smooth.amax((2, 3), keepdim=True)
    heard = most > FAINT * most.amax(0)
    claims = smooth / most.clamp_min(torch.finfo(smooth.dtype).tiny) * heard * (torch.cat(found, 1).movedim(1, 0) > 0)
    strongest, free = claims.argmax(0), claims.amax(0) == 0
    wins = [(strongest == number) | free | ~heard[number] for number in range(len(found))]
    return [m * _smooth(own.float(), drawn)[:, None] for m, own in zip(found, wins, strict=True)]


def left_to_base(
    base: Sequence[Tensor], concepts: Sequence[Held], negative_share: float = NEGATIVE_SHARE
) -> list[Tensor]:
    """For each text of a step the concepts' predictions in their places and the base's around them."""
    kept = []
    for text, theirs in enumerate(base):
        result = theirs
        for one in concepts:
            ours = one.found[text]
            if ours is not None:
                m = one.m(text, theirs, negative_share)
                # the first by lerp, which is exact at both ends
                result = torch.lerp(theirs, ours, m) if result is theirs else result + m * (ours - theirs)
        kept.append(result)
    return kept


def _place(change: Tensor, drawn: Tensor | None) -> Tensor:
    masks = [None] * len(change) if drawn is None else drawn
    return _smooth(torch.stack([where_most(*one) for one in zip(change, masks, strict=True)]), drawn)[:, None]


def where_most(energy: Tensor, drawn: Tensor | None = None) -> Tensor:
    """[height, width]: 1 where `energy`, smoothed over an eighth of the picture, is on the upper side of Otsu's threshold, else 0.

    `drawn`: likewise, bool, two at least; nothing else takes part.
    """
    if drawn is None:
        smooth = _smooth(energy[None])[0]
        return (smooth > otsu_threshold(smooth)).float()
    smooth = _smooth(energy[None], drawn[None])[0]
    return ((smooth > otsu_threshold(smooth[drawn])) & drawn).float()


def otsu_threshold(values: Tensor) -> Tensor:
    """The value that parts `values` into two groups with the greatest variance between them (Otsu 1979)."""
    order = values.flatten().sort().values
    count = len(order)
    below = torch.arange(1, count, device=order.device)
    sums = order.cumsum(0)
    low, high = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    best = int((below * (count - below) * (high - low).square()).argmax())
    return (order[best] + order[best + 1]) / 2


def _smooth(grids: Tensor, drawn: Tensor | None = None) -> Tensor:
    """[batch, height, width], each value the mean over an eighth of the picture's shorter side around it; where not all is `drawn`, of what is, and 0 elsewhere."""
    reach = min(grids.shape[-2:]) // 16
    mean = lambda values: avg_pool2d(values, 2 * reach + 1, 1, reach, count_include_pad=False)  # noqa: E731
    if drawn is None:
        return mean(grids)
    share = drawn.to(grids)
    return share * mean(grids * share) / mean(share).clamp_min(torch.finfo(grids.dtype).tiny)
