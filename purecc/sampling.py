"""Sampling without a host: Euler steps along the learnt velocity, with classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from .adaln_table import table_of
from .encoding import TextBatch
from .flow import sigmas
from .forwards import Query, velocities
from .network import BASE, AdaptedNetwork
from .place import is_layout, kept_in_place

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
    hold_surroundings: bool = False,
) -> Velocity:
    """v(negative) + w (v(conditional) - v(negative)), both in one forward where the texts are of one length.

    Strengths as in `AdaptedNetwork.velocity`. `hold_surroundings`: around the concept's place v is theta3's (see `place`), asked
    in the same forward.
    """
    texts = negative.as_negative_of(conditional), conditional

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        models = (model, BASE) if hold_surroundings else (model,)
        if hold_surroundings and is_layout(t):
            models = (BASE,)
        asked = [Query(x_t, t, text, one) for one in models for text in texts]
        found = velocities(network, asked, strength=strength, embedding_strength=embedding_strength)
        v_negative, v_conditional = kept_in_place(found[:2], found[2:], names=(False, True)) if found[2:] else found
        return v_negative + guidance * (v_conditional - v_negative)

    return velocity


@torch.no_grad()
def euler(velocity: Velocity, noise: Tensor, steps: int, shift: float, network: AdaptedNetwork | None = None) -> Tensor:
    """From noise at t = 1 to a clean latent at t = 0: x += (t_next - t) v(x, t).

    `network`: the one that is asked, whose adaLN table, if it has one, is told the times.
    """
    x = noise
    schedule = sigmas(steps, shift).to(noise.device)
    table = None if network is None else table_of(network.transformer)
    if table:
        table.expect(schedule[:-1])
    try:
        for now, after in zip(schedule[:-1], schedule[1:], strict=True):
            x = x + (after - now) * velocity(x, now.expand(len(x)))
    finally:
        if table:
            table.expect(schedule[:0])
    return x
