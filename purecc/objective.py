"""The objective of PureCC (arXiv 2603.07561), as pure functions; sections 4.2 to 4.4, equations 3 and 8 to 15.

All velocities are [batch, channels, height, width] (any further shape works); everything is computed in float32 and
scales are [batch]. What differs between the three sources of v_original is only which prediction the caller passes:

    "frozen base"         v_theta3(x_t, y_base)            section 14's "more effective and intuitive" choice
    "trainable"           v_theta2(x_t, y_base)            eq. 9, the gradient flows through it
    "trainable, detached" v_theta2(x_t, y_base).detach()

R_complete is always taken against that same v_original. With another difference the residual of eq. 14 is not
orthogonal to R_tar, and lambda* no longer its minimiser.
"""

from typing import Literal

import torch
from torch import Tensor

Original = Literal["frozen base", "trainable", "trainable, detached"]
ORIGINALS: tuple[Original, ...] = ("frozen base", "trainable", "trainable, detached")


def implicit_guidance(v_target_text: Tensor, v_null: Tensor) -> Tensor:
    """Eq. 8: R(y_tar) = v_theta1(x_t, y_tar) - v_theta1(x_t, null), the direction of the concept."""
    return v_target_text.float() - v_null.float()


def learned_representation(v_complete: Tensor, v_original: Tensor) -> Tensor:
    """Eq. 10: R(y_complete, y_base) = v_theta2(x_t, y_complete) - v_original, what the trigger adds in its scene."""
    return v_complete.float() - v_original.float()


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """< a, b > for each sample, [batch]."""
    return (a.float() * b.float()).flatten(1).sum(1)


def adaptive_scale(representation: Tensor, guidance: Tensor) -> Tensor:
    """Eqs. 11, 12: lambda* = < R_complete, R_tar > / ||R_tar||^2 for each sample, [batch]; 0 where R_tar is 0.

    The argmin over lambda of eq. 14. Detached: by the envelope theorem its gradient is zero.
    """
    length = inner_product(guidance, guidance)
    product = inner_product(representation, guidance)
    return torch.where(length > 0, product / length.clamp_min(torch.finfo(length.dtype).tiny), 0).detach()


def pure_velocity(v_original: Tensor, scale: Tensor, guidance: Tensor) -> Tensor:
    """Eq. 13: v_PureCC = v_original + lambda* R_tar."""
    return v_original.float() + scale.view(-1, *(1,) * (guidance.ndim - 1)) * guidance


def concept_loss(v_complete: Tensor, v_true: Tensor) -> Tensor:
    """Eq. 3: L_CC, flow matching with the complete text; the mean over all elements."""
    return (v_complete.float() - v_true.float()).square().mean()


def pure_loss(v_pure: Tensor, v_complete: Tensor) -> Tensor:
    """Eq. 14: L_PureCC = || v_PureCC - v_theta2(x_t, y_complete) ||^2; the mean over all elements."""
    return (v_pure - v_complete.float()).square().mean()


def total_loss(loss_concept: Tensor, loss_pure: Tensor, eta: float) -> Tensor:
    """Eq. 15: L_PCC = L_CC + eta L_PureCC."""
    return loss_concept + eta * loss_pure


def squared_cosine(representation: Tensor, guidance: Tensor) -> Tensor:
    """cos^2 of the angle between R_complete and R_tar, [batch]: the share of R_complete that eq. 14 leaves alone."""
    lengths = inner_product(representation, representation) * inner_product(guidance, guidance)
    return torch.where(
        lengths > 0, inner_product(representation, guidance).square() / lengths.clamp_min(1e-30), 0
    ).detach()
