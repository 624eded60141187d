"""Velocities that are asked for together share forwards: texts of one length and pictures of one size, whichever model reads them.

A GPU takes as long to be told of a forward of one sample as of eight.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .encoding import TextBatch
from .network import AdaptedNetwork

SAMPLES = 8  # that share a forward outside of steps at most; `memory.estimate` counts them


@dataclass(frozen=True)
class Query:
    """v_theta(x_t, y) of some samples."""

    x_t: Tensor  # [batch, channels, height, width]
    t: Tensor  # [batch] in [0, 1]
    text: TextBatch
    model: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.text.rows.shape[1], *self.x_t.shape[1:])


def velocities(
    network: AdaptedNetwork, queries: Sequence[Query], most: int | None = None, **strengths: float
) -> list[Tensor]:
    """Of each that is asked for, [batch, channels, height, width], in their order.

    `most`: samples that share a forward; None for no limit. One that has more goes alone. Strengths as in `AdaptedNetwork.velocity`.
    """
    found: dict[int, Tensor] = {}
    for numbers in _forwards(queries, most):
        some = [queries[number] for number in numbers]
        sizes = [len(one.t) for one in some]
        models = [one.model for one, size in zip(some, sizes, strict=True) for _ in range(size)]
        x_t, t = (torch.cat([getattr(one, name) for one in some]) for name in ("x_t", "t"))
        words = reduce(operator.add, (one.text for one in some))
        found |= zip(numbers, network.velocity(x_t, t, words, models, **strengths).split(sizes), strict=True)
    return [found[number] for number in range(len(queries))]


def _forwards(queries: Sequence[Query], most: int | None) -> list[list[int]]:
    """Which of those asked for share a forward."""
    forwards: list[list[int]] = []
    for shape in dict.fromkeys(one.shape for one in queries):
        size = 0
        for number in (number for number, one in enumerate(queries) if one.shape == shape):
            own = len(queries[number].t)
            if size == 0 or (most is not None and size + own > most):
                forwards.append([])
                size = 0
            forwards[-1].append(number)
            size += own
    return forwards
