"""One step's inputs: which pictures, which noise, which times."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .class_pictures import ClassPictures
from .concept_set import ConceptSet
from .encoding import TextBatch
from .flow import add_noise, sample_times, velocity
from .settings import TrainSettings


@dataclass(frozen=True)
class LatentScaling:
    """From an autoencoder's latents to the model's: (z - shift) * scale."""

    scale: float
    shift: float

    def to_model(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.scale

    def to_autoencoder(self, x0: Tensor) -> Tensor:
        return x0 / self.scale + self.shift


@dataclass(frozen=True)
class Prior:
    """As many class pictures as a batch has pictures of the concept."""

    x_t: Tensor
    t: Tensor
    v_true: Tensor
    text: TextBatch


@dataclass(frozen=True)
class Batch:
    """What one forward and its loss read, on the network's device."""

    x_t: Tensor  # [batch, channels, height, width]
    t: Tensor  # [batch]
    v_true: Tensor  # noise - x0
    complete: TextBatch
    base: TextBatch
    target: TextBatch
    null: TextBatch
    class_word: TextBatch
    weights: Tensor | None = None  # [batch, 1, height, width] of the loss, mean 1 for each sample
    prior: Prior | None = None


def draw_batch(
    data: ConceptSet,
    settings: TrainSettings,
    scaling: LatentScaling,
    number: int,
    device: torch.device | str,
    class_pictures: ClassPictures | None = None,
) -> Batch:
    """The batch of a number (from 1), a function of (seed, number) alone; drawn on the CPU, alike on any device.

    Class pictures have chance of their own, so that the concept's batch is the same with them and without.
    """
    indices, noise, t = drawn(data, settings, number)
    x0 = scaling.to_model(torch.stack([data.examples[i].latent.float() for i in indices]))
    x_t, v_true = add_noise(x0, noise, t), velocity(x0, noise)
    texts = {which: data.batch(which, indices, device) for which in ("complete", "base", "target")}
    weights = None
    if settings.background_weight != 1:
        weights = data.loss_weights(indices, settings.background_weight).to(device)
    prior = None
    if class_pictures is not None:
        own = torch.Generator().manual_seed(_mixed(settings.seed, number) ^ 1 << 62)
        x0, text = class_pictures.pick(data, len(indices), x0.shape[1:], own, device)
        prior = Prior(*(value.to(device) for value in _noised(x0, settings, own)), text)
    return Batch(
        x_t.to(device), t.to(device), v_true.to(device), null=data.null(len(indices), device),
        class_word=data.repeated(data.class_word, len(indices), device), weights=weights, prior=prior, **texts,
    )  # fmt: skip


def drawn(data: ConceptSet, settings: TrainSettings, number: int) -> tuple[list[int], Tensor, Tensor]:
    """Which examples a batch has, its noise and its times."""
    generator = torch.Generator().manual_seed(_mixed(settings.seed, number))
    indices = pick(data, settings.batch_size, generator)
    noise = torch.randn(len(indices), *data.examples[indices[0]].latent.shape, generator=generator)
    return indices, noise, _times(len(indices), settings, generator)


def pick(data: ConceptSet, count: int, generator: torch.Generator) -> list[int]:
    """`count` examples of one picture size and text length, by chance; again from the start where there are too few."""
    first = int(torch.randint(len(data.examples), (1,), generator=generator))
    alike = [i for i in range(len(data.examples)) if _shape(data, i) == _shape(data, first)]
    order = [alike[i] for i in torch.randperm(len(alike), generator=generator).tolist()]
    return (order * math.ceil(count / len(order)))[:count]


def _mixed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**62


def _noised(x0: Tensor, settings: TrainSettings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the velocity to regress."""
    noise = torch.randn(x0.shape, generator=generator)
    t = _times(len(x0), settings, generator)
    return add_noise(x0, noise, t), t, velocity(x0, noise)


def _times(count: int, settings: TrainSettings, generator: torch.Generator) -> Tensor:
    return sample_times(count, settings.shift, generator, grid=settings.times == "diffusers grid")


def _shape(data: ConceptSet, index: int) -> tuple:
    texts = asdict(data.examples[index].texts).values()
    return (data.examples[index].latent.shape, *(len(data.encoded[text].marks) for text in texts))
