"""How the learning rate goes over the steps."""

import math

from .settings import RateSchedule


def rate_factor(step: int, steps: int, schedule: RateSchedule, warmup: int = 0) -> float:
    """What multiplies the learning rates at a step (from 1): a straight rise over `warmup` steps, then 1, or half a cosine."""
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup - 1) / (steps - warmup)))
