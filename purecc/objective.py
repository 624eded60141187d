"""The objective of PureCC (arXiv 2603.07561), as pure functions; sections 4.2 to 4.4, equations 3 and 8 to 15.

All velocities are [batch, channels, height, width] (any further shape works); everything is computed in float32, or in
float64 where that is what comes in; losses and scales are [batch]. `weights` [batch, 1, height, width], of mean 1 for
each sample, are those of a loss mask; None weighs all alike. What differs between the three sources of v_original is only
which prediction the caller passes:

    "frozen base"         v_theta3(x_t, y_base)            section 14's "more effective and intuitive" choice
    "trainable"           v_theta2(x_t, y_base)            eq. 9, the gradient flows through it
    "trainable, detached" v_theta2(x_t, y_base).detach()

R_complete is always taken against that same v_original, and the inner products of lambda* have the weights of the loss.
With another difference or other weights the residual of eq. 14 is not orthogonal to R_tar, and lambda* no longer its
minimiser.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Original = Literal["frozen base", "trainable", "trainable, detached"]
ORIGINALS: tuple[Original, ...] = get_args(Original)

# What R_tar is the difference of: (text with the concept, text without), both read by theta1
Target = Literal["null-relative", "class-relative", "in-context"]
TARGET_TEXTS: dict[Target, tuple[str, str]] = {
    "null-relative": ("target", "null"),  # eq. 8: what "[V] dog" is, the class too
    "class-relative": ("target", "class_word"),  # what "[V] dog" is beside "dog"
    "in-context": ("complete", "base"),  # what [V] adds to its scene, of the same kind as R_complete
}

EtaSchedule = Literal["constant", "high noise", "low noise"]


def implicit_guidance(v_with: Tensor, v_without: Tensor) -> Tensor:
    """Eq. 8: R(y_tar) = v_theta1(x_t, y_tar) - v_theta1(x_t, null), the direction of the concept; see TARGET_TEXTS."""
    return _wide(v_with) - _wide(v_without)


def learned_representation(v_complete: Tensor, v_original: Tensor) -> Tensor:
    """Eq. 10: R(y_complete, y_base) = v_theta2(x_t, y_complete) - v_original, what the trigger adds in its scene."""
    return _wide(v_complete) - _wide(v_original)


def inner_product(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """< a, b > for each sample, [batch]."""
    return _weighted(_wide(a) * _wide(b), weights).flatten(1).sum(1)


def adaptive_scale(representation: Tensor, guidance: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eqs. 11, 12: lambda* = < R_complete, R_tar > / ||R_tar||^2 for each sample, [batch]; 0 where R_tar is 0.

    The argmin over lambda of eq. 14. Detached: by the envelope theorem its gradient is zero.
    """
    length = inner_product(guidance, guidance, weights)
    product = inner_product(representation, guidance, weights)
    fitted = product / length.clamp_min(torch.finfo(length.dtype).tiny)
    return torch.where(length > 0, fitted, torch.zeros_like(fitted)).detach()


def bounded_scale(scale: Tensor, multiplier: float, lowest: float | None, highest: float | None) -> Tensor:
    """lambda = clamp(multiplier lambda*, lowest, highest); no equation of the paper. [batch]"""
    return (multiplier * scale).clamp(
        -float("inf") if lowest is None else lowest, float("inf") if highest is None else highest
    )


def pure_velocity(v_original: Tensor, scale: Tensor, guidance: Tensor) -> Tensor:
    """Eq. 13: v_PureCC = v_original + lambda* R_tar."""
    return _wide(v_original) + scale.view(-1, *(1,) * (guidance.ndim - 1)) * guidance


def squared_distance(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """|| a - b ||^2 for each sample, the mean over its elements, [batch]."""
    return _weighted((_wide(a) - _wide(b)).square(), weights).flatten(1).mean(1)


def concept_loss(v_complete: Tensor, v_true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 3: L_CC, flow matching with the complete text, [batch]."""
    return squared_distance(v_complete, v_true, weights)


def pure_loss(v_pure: Tensor, v_complete: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 14: L_PureCC = || v_PureCC - v_theta2(x_t, y_complete) ||^2, [batch]."""
    return squared_distance(v_pure, v_complete, weights)


def anchor_loss(v_model: Tensor, v_base: Tensor, weights: Tensor | None = None) -> Tensor:
    """|| v_theta2(x_t, y) - v_theta3(x_t, y) ||^2 for a text without the concept, [batch].

    With y_base: differential output preservation. With the null text: what classifier-free guidance multiplies is held.
    With theta2's y_complete, theta3's y_base and weights that are 0 inside the masks: the concept's surroundings are held.
    """
    return squared_distance(v_model, v_base, weights)


def eta_at(t: Tensor, eta: float, schedule: EtaSchedule, mean_t: float = 0.5) -> Tensor:
    """eta at times t, [batch]: constant, eta t / E[t], or eta (1 - t) / (1 - E[t]), each of mean eta.

    `mean_t` is E[t] of the times learnt from; with 1/2 these are eta 2 t and eta 2 (1 - t).
    """
    if schedule == "high noise":
        return eta * t / mean_t
    if schedule == "low noise":
        return eta * (1 - t) / (1 - mean_t)
    return torch.full_like(t, eta)


def squared_cosine(representation: Tensor, guidance: Tensor, weights: Tensor | None = None) -> Tensor:
    """cos^2 of the angle between R_complete and R_tar, [batch]: the share of R_complete that eq. 14 leaves alone."""
    own = inner_product(representation, representation, weights)
    lengths = own * inner_product(guidance, guidance, weights)
    product = inner_product(representation, guidance, weights)
    found = product.square() / lengths.clamp_min(1e-30)
    return torch.where(lengths > 0, found, torch.zeros_like(found)).detach()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    return x if weights is None else x * weights.to(x)
