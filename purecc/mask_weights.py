"""How much each latent pixel counts, by masks: on them and their rims, or outside."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

_TOUCHED = 0.05  # share of a latent pixel that a mask must cover: mattes have a little grey everywhere
_LEAST_OUTSIDE = 0.1  # of the picture: where less is left, it is not weighed up to a whole picture's worth


def outside_of(share: Tensor) -> Tensor:
    """Weights [batch, 1, height, width] of what lies outside of masks (0..1, likewise) and their rims, of mean 1."""
    outside = 1 - covered(share)
    return outside / outside.mean((1, 2, 3), keepdim=True).clamp_min(_LEAST_OUTSIDE)


def inside_of(outside: Tensor) -> Tensor:
    """From the weights of `outside_of` those of the masks and their rims, of mean 1 likewise; all 0 where there is no mask."""
    inside = (outside == 0).to(outside)
    return inside / inside.mean((1, 2, 3), keepdim=True).clamp_min(_LEAST_OUTSIDE)


def loss_weights_of(outside: Tensor, background: float) -> Tensor:
    """From the weights of `outside_of` those of a loss, of mean 1 likewise: `background` where they are above 0, against 1."""
    weights = torch.where(outside > 0, background, 1.0)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def covered(share: Tensor) -> Tensor:
    """1 on all that a mask touches and on a rim around it, a sixteenth of the picture's shorter side, [batch, 1, height, width].

    A thing's outline is its own: what is anchored too close to it costs likeness.
    """
    rim = min(share.shape[-2:]) // 16
    return max_pool2d(touched(share).float(), 2 * rim + 1, 1, rim)


def touched(share: Tensor) -> Tensor:
    """Which latent pixels a mask covers, of how much of each is inside it."""
    return share > _TOUCHED
