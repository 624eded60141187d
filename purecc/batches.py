"""One step's inputs: which pictures, which noise, which times."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .class_pictures import ClassPictures
from .concept_set import ConceptSet, View
from .encoding import TextBatch
from .flow import LatentScaling, add_noise, sample_times, spread_times, velocity
from .prompts import Texts
from .scenes import SCENE_TEXTS, Choice, Scenes, chosen, text_batch
from .settings import TrainSettings

_VIEWS, _CLASS_PICTURES, _SCENES = "views", "class pictures", "scenes"  # purposes of chance


@dataclass(frozen=True)
class Prior:
    """As many class pictures as a batch has pictures of the concept."""

    x_t: Tensor
    t: Tensor
    v_true: Tensor
    text: TextBatch


@dataclass(frozen=True)
class Scene:
    """Pictures by the base with other things beside the concept; half as many as the batch has, at least one."""

    x_t: Tensor
    t: Tensor
    complete: TextBatch
    base: TextBatch
    alone: TextBatch
    class_alone: TextBatch
    outside: Tensor  # [batch, 1, height, width], as `Batch.outside`


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
    outside: Tensor | None = None  # the same of what lies outside the masks, where there are masks
    prior: Prior | None = None
    scene: Scene | None = None


@dataclass(frozen=True)
class Drawn:
    """What chance decides of a batch: views of one size and text length, their noise and their times."""

    views: list[View]
    noise: Tensor  # [batch, channels, height, width]
    t: Tensor  # [batch]

    def texts(self, which: str) -> list[str]:
        """The texts called "complete", "base" or "target"."""
        return [getattr(view.texts, which) for view in self.views]


def draw_batch(
    data: ConceptSet,
    settings: TrainSettings,
    scaling: LatentScaling,
    number: int,
    device: torch.device | str,
    class_pictures: ClassPictures | None = None,
    scenes: Scenes | None = None,
) -> Batch:
    """The batch of a number (from 1), a function of (seed, number) alone; drawn on the CPU, alike on any device.

    Class pictures and scenes have chance of their own, so that the concept's batch is the same with them and without.
    """
    chance = _generator(settings, number, _CLASS_PICTURES), _generator(settings, number, _SCENES)
    return as_batch(drawn(data, settings, number), data, settings, scaling, device, class_pictures, scenes, chance)


def as_batch(
    draw: Drawn,
    data: ConceptSet,
    settings: TrainSettings,
    scaling: LatentScaling,
    device: torch.device | str,
    class_pictures: ClassPictures | None,
    scenes: Scenes | None,
    chance: tuple[torch.Generator, torch.Generator],
) -> Batch:
    """The batch of a draw; `chance` is that of the class pictures and of the scenes."""
    views, t = draw.views, draw.t
    x0 = scaling.to_model(torch.stack([view.latent.float() for view in views]))
    x_t, v_true = add_noise(x0, draw.noise, t), velocity(x0, draw.noise)
    texts = {
        which: TextBatch.of([data.encoded[text] for text in draw.texts(which)], device)
        for which in ("complete", "base", "target")
    }
    weights = outside = prior = scene = None
    indices, flipped = [view.index for view in views], [view.flipped for view in views]
    if settings.background_weight != 1:
        weights = data.loss_weights(indices, settings.background_weight, flipped)
    if data.masked:
        outside = data.outside_weights(indices, flipped)
    if class_pictures is not None:
        of_class, text = class_pictures.pick(data, len(views), x0.shape[1:], chance[0], device)
        prior = Prior(*_noised(of_class, settings, chance[0]), text)
    if scenes is not None:
        scene = _scene(data, settings, scenes, chance[1], device)
    made = Batch(
        x_t, t, v_true, null=data.null(len(views), device), class_word=data.repeated(data.class_word, len(views), device),
        weights=weights, outside=outside, prior=prior, scene=scene, **texts,
    )  # fmt: skip
    return _on(device, made)  # last: a copy to a GPU waits for what it has yet to do


def _on(device: torch.device | str, part: Any) -> Any:
    """A batch with its tensors on a device; its texts are there."""
    if isinstance(part, Tensor):
        return part.to(device)
    if part is None or isinstance(part, TextBatch):
        return part
    return replace(part, **{of.name: _on(device, getattr(part, of.name)) for of in fields(part)})


def scene_choice(data: ConceptSet, settings: TrainSettings, number: int) -> Choice:
    """The scenes of the batch of a number, and their times."""
    return _scene_choice(data, settings, _generator(settings, number, _SCENES))


def _scene_choice(data: ConceptSet, settings: TrainSettings, generator: torch.Generator) -> Choice:
    count = math.ceil(settings.batch_size / 2)
    return chosen(data, count, lambda count: _times(count, settings, generator), generator)


def _scene(
    data: ConceptSet, settings: TrainSettings, scenes: Scenes, generator: torch.Generator, device: torch.device | str
) -> Scene:
    choice = _scene_choice(data, settings, generator)
    x0 = scenes.latents[choice.indices]
    x_t = add_noise(x0, torch.randn(x0.shape, generator=generator), choice.t)
    texts = {which: text_batch(data, choice, which, device) for which in SCENE_TEXTS}
    return Scene(x_t, choice.t, outside=scenes.outside[choice.indices], **texts)


def drawn(data: ConceptSet, settings: TrainSettings, number: int) -> Drawn:
    """The draw of a number. Orientations and templates have chance of their own: pictures, noise and times stay."""
    generator = _generator(settings, number)
    indices = pick(data, settings.batch_size, generator)
    noise = torch.randn(len(indices), *data.examples[indices[0]].latent.shape, generator=generator)
    t = _times(len(indices), settings, generator)
    return Drawn(_views(data, indices, _generator(settings, number, _VIEWS)), noise, t)


def held_draws(data: ConceptSet, settings: TrainSettings, times: int = 4) -> Iterator[Drawn]:
    """Always the same: every picture, unflipped and with its first text, at `times` times that lie as those learnt from do.

    At most `batch_size` samples a draw, so that none needs more memory than a step.
    """
    generator = torch.Generator().manual_seed(20_261)
    t = spread_times(times, settings.shift, grid=settings.times == "diffusers grid")
    for index, example in enumerate(data.examples):
        noise = torch.randn(times, *example.latent.shape, generator=generator)
        for start in range(0, times, settings.batch_size):
            chosen = slice(start, start + settings.batch_size)
            yield Drawn([data.view(index)] * len(t[chosen]), noise[chosen], t[chosen])


def pick(data: ConceptSet, count: int, generator: torch.Generator) -> list[int]:
    """`count` examples of one picture size and text length, by chance; again from the start where there are too few."""
    first = int(torch.randint(len(data.examples), (1,), generator=generator))
    alike = [i for i in range(len(data.examples)) if _shape(data, i) == _shape(data, first)]
    order = [alike[i] for i in torch.randperm(len(alike), generator=generator).tolist()]
    return (order * math.ceil(count / len(order)))[:count]


def _views(data: ConceptSet, indices: list[int], generator: torch.Generator) -> list[View]:
    """Each example in one of its orientations, with one of its texts: those of one batch are of one length."""
    views, length = [], None
    for index in indices:
        example = data.examples[index]
        alike = [i for i, texts in enumerate(example.all_texts) if length in (None, _length(data, texts))]
        text = alike[int(torch.randint(len(alike), (1,), generator=generator))]
        length = _length(data, example.all_texts[text])
        mirrored = bool(torch.randint(2, (1,), generator=generator))
        views.append(data.view(index, text, mirrored and example.flipped is not None))
    return views


def _generator(settings: TrainSettings, number: int, purpose: str = "") -> torch.Generator:
    """Chance that follows from the seed and a batch's number; each purpose has its own."""
    if not purpose:
        return torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**62)
    digest = hashlib.sha256(f"{settings.seed} {number} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # of a seed, PyTorch takes 32 bits


def _noised(x0: Tensor, settings: TrainSettings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the velocity to regress."""
    noise = torch.randn(x0.shape, generator=generator)
    t = _times(len(x0), settings, generator)
    return add_noise(x0, noise, t), t, velocity(x0, noise)


def _times(count: int, settings: TrainSettings, generator: torch.Generator) -> Tensor:
    return sample_times(count, settings.shift, generator, grid=settings.times == "diffusers grid")


def _shape(data: ConceptSet, index: int) -> tuple:
    """What two examples of one batch have alike: the size, and the lengths that their texts can have."""
    example = data.examples[index]
    return (example.latent.shape, frozenset(_length(data, texts) for texts in example.all_texts))


def _length(data: ConceptSet, texts: Texts) -> tuple[int, ...]:
    """Rows of complete, base and target text."""
    return tuple(len(data.encoded[text].marks) for text in astuple(texts))
