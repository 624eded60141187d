"""Sampling without a host: Euler steps along the learnt velocity, with classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from .encoding import TextBatch
from .flow import sigmas
from .network import AdaptedNetwork

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x_t [batch, ...], t [batch]) -> v


def guided_velocity(
    network: AdaptedNetwork,
    conditional: TextBatch,
    negative: TextBatch,
    guidance: float,
    model: str | None,
    *,
    strength: float = 1.0,
    embedding_strength: float = 1.0,
) -> Velocity:
    """v(negative) + w (v(conditional) - v(negative)), both in one forward where the texts are of one length.

    Strengths as in `AdaptedNetwork.velocity`.
    """
    negative = negative.as_negative_of(conditional)
    strengths = {"strength": strength, "embedding_strength": embedding_strength}

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        if negative.rows.shape[1] == conditional.rows.shape[1]:
            both = network.velocity(
                torch.cat([x_t] * 2), torch.cat([t] * 2), negative + conditional, model, **strengths
            )
            v_negative, v_conditional = both.chunk(2)
        else:
            v_negative, v_conditional = (
                network.velocity(x_t, t, text, model, **strengths) for text in (negative, conditional)
            )
        return v_negative + guidance * (v_conditional - v_negative)

    return velocity


@torch.no_grad()
def euler(velocity: Velocity, noise: Tensor, steps: int, shift: float) -> Tensor:
    """From noise at t = 1 to a clean latent at t = 0: x += (t_next - t) v(x, t)."""
    x = noise
    schedule = sigmas(steps, shift).to(noise.device)
    for now, after in zip(schedule[:-1], schedule[1:], strict=True):
        x = x + (after - now) * velocity(x, now.expand(len(x)))
    return x
