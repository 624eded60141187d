"""Sampling without a host: Euler steps along the learnt velocity, with classifier-free guidance."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .adaln_table import table_of
from .encoding import TextBatch
from .flow import sigmas
from .forwards import Query, velocities
from .network import BASE, AdaptedNetwork
from .place import Held, is_layout, left_to_base, places_of
from .prompts import Kind

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
    held: Kind | None = None,
) -> Velocity:
    """v(negative) + w (v(conditional) - v(negative)), both in one forward where the texts are of one length.

    Strengths as in `AdaptedNetwork.velocity`. `held`: the kind of the concept, around whose place v is theta3's, or which changes the
    picture by a share (see `place`); theta3 is asked in the same forward. None: it acts all over the picture.
    """
    texts = negative.as_negative_of(conditional), conditional

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        models = (model, BASE) if held else (model,)
        if held and is_layout(t):
            models = (BASE,)
        asked = [Query(x_t, t, text, one) for one in models for text in texts]
        found = velocities(network, asked, strength=strength, embedding_strength=embedding_strength)
        if found[2:]:
            found = _held(found[:2], found[2:], held)
        v_negative, v_conditional = found
        return v_negative + guidance * (v_conditional - v_negative)

    return velocity


def _held(ours: list[Tensor], base: list[Tensor], kind: Kind | None) -> list[Tensor]:
    """Of the negative and of the text that names the concept."""
    concept = Held(ours, names=(False, True))
    if kind == "instance":
        concept = replace(concept, place=places_of([concept.change(base)])[0])
    return left_to_base(base, [concept])


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
