"""Time and velocity, said once: t = 0 is the picture, t = 1 is noise, v = noise - picture.

Rectified flow as SD3 uses it (arXiv 2403.03206); the equation numbers are PureCC's (arXiv 2603.07561).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentScaling:
    """From an autoencoder's latents to the model's: (z - shift) * scale."""

    scale: float
    shift: float

    def to_model(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.scale

    def to_autoencoder(self, x0: Tensor) -> Tensor:
        return x0 / self.scale + self.shift


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    """[batch] -> [batch, 1, 1, 1], as many axes as `like`."""
    return t.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Eq. 1: x_t = (1 - t) x0 + t noise. `x0`, `noise` [batch, ...], `t` [batch] in [0, 1]."""
    t = _per_sample(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """Eq. 2: the velocity to regress, noise - x0."""
    return noise - x0


def picture_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The clean latent that a velocity points back to: x_t - t v. The inverse of `add_noise` and `velocity`."""
    return x_t - _per_sample(t, x_t) * v


def shift_time(t: Tensor, shift: float) -> Tensor:
    """SD3's resolution shift of time: s t / (1 + (s - 1) t); 1 leaves t alone, more favours noise."""
    return shift * t / (1 + (shift - 1) * t)


def sample_times(
    batch: int, shift: float, generator: torch.Generator, device: str | torch.device = "cpu", grid: bool = False
) -> Tensor:
    """Training times [batch] in (0, 1): logit-normal(0, 1) as in SD3, then shifted.

    With `grid` they are those that diffusers' SD3 training scripts draw: the same, from the scheduler's 1000 times.
    """
    return _learnt_from(torch.randn(batch, generator=generator, device=device).sigmoid(), shift, grid)


def spread_times(count: int, shift: float, grid: bool = False) -> Tensor:
    """Times [count] without chance that lie as those of `sample_times` do: midpoints of the normal distribution's quantiles."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return _learnt_from(torch.special.ndtri(quantiles).sigmoid(), shift, grid).float()


def mean_time(shift: float, grid: bool = False) -> float:
    """E[t] of `sample_times`."""
    quantiles = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    return float(_learnt_from(torch.special.ndtri(quantiles).sigmoid(), shift, grid).mean())


def _learnt_from(u: Tensor, shift: float, grid: bool) -> Tensor:
    return shift_time((1000 - (1000 * u).floor().clamp_max(999)) / 1000 if grid else u, shift)


def sigmas(steps: int, shift: float) -> Tensor:
    """The sampling schedule from 1 to 0, [steps + 1]: FlowMatchEulerDiscreteScheduler's own, 1000 training steps."""
    smallest = float(shift_time(torch.tensor(1 / 1000), shift))
    return torch.cat([shift_time(torch.linspace(1.0, smallest, steps), shift), torch.zeros(1)])
