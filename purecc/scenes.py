"""Scenes: the class beside another thing, as the base model draws it, to learn from what no reference shows.

References show the concept alone, so nothing in them says that the cat beside [V] dog is not part of it, and a LoRA
gives the cat the dog's looks. In a scene the concept's own place is found, as DiffEdit finds it (arXiv 2210.11427): where
v3("a dog on the left and a cat on the right") and v3("a cat on the right") differ most. Outside of it, training holds
v2("a [V] dog on the left and a cat on the right") at v3("a dog on the left and a cat on the right"). In it the concept may be
kept as it is alone, "a [V] dog on the left" (see `terms.SceneTerm`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .class_pictures import drawn_by_base
from .concept_set import ConceptSet
from .encoding import TextBatch, TextEncoder
from .found_masks import mask_of
from .mask_weights import outside_of
from .network import AdaptedNetwork
from .prompts import OTHERS, SceneTexts, scene_texts
from .settings import PureSettings

Progress = Callable[[int, int], None]
SCENE_TEXTS = ("complete", "base", "alone", "class_alone")  # that a step may read


@dataclass(frozen=True)
class Scenes:
    """Pictures by the base model, all of one size."""

    latents: Tensor  # [count, channels, height, width], as the model reads them
    outside: Tensor  # [count, 1, height, width]: 0 on the concept's place and its rim, else such that the mean is 1
    texts: tuple[SceneTexts, ...]  # of each


@dataclass(frozen=True)
class Choice:
    """Which scenes a batch has, of one text length, and their times."""

    texts: list[SceneTexts]
    indices: list[int]
    t: Tensor  # [batch]


def with_scenes(data: ConceptSet, encoder: TextEncoder, others: tuple[str, ...] = OTHERS) -> ConceptSet:
    """`data` with the texts of its scenes, the class beside each of `others`, encoded; a style has none."""
    if data.class_text is None:
        return data
    scenes = scene_texts(data.trigger, data.class_word, others)
    new = {text for scene in scenes for text in astuple(scene)} - set(data.encoded)
    return replace(data, scenes=scenes, encoded=data.encoded | {text: encoder.encode(text) for text in sorted(new)})


def require_scenes(data: ConceptSet) -> None:
    """Raises ValueError where the set has no scenes."""
    if not data.scenes:
        raise ValueError("The scene anchor needs scenes, and this concept set holds none; see with_scenes.")


def base_scenes(
    network: AdaptedNetwork, data: ConceptSet, settings: PureSettings, base: str, seed: int, root: Path,
    drawing: Progress = lambda done, total: None, looking: Progress = lambda done, total: None,
) -> Scenes:  # fmt: skip
    """The set's scenes, drawn by theta3 in the references' most common size, or read from `root`; their masks are looked for anew.

    `root`, `base`, `seed` and `drawing` as in `class_pictures`; `looking` as in `with_found_masks`.
    """
    (size, _), *_ = Counter(tuple(example.latent.shape) for example in data.examples).most_common()
    texts = tuple(scene.base for scene in data.scenes)
    latents = drawn_by_base(network, data, settings, base, seed, root, texts, [size], drawing)[size]
    masks = []
    for i, (latent, scene) in enumerate(zip(latents, data.scenes, strict=True)):
        looking(i, len(latents))
        masks.append(mask_of(network, data, latent, (scene.base, scene.without)))
    return Scenes(latents, outside_of(torch.stack(masks)[:, None]), data.scenes)


def chosen(data: ConceptSet, count: int, times: Callable[[int], Tensor], generator: torch.Generator) -> Choice:
    """`count` scenes by chance, whose texts are of one length, and their times."""
    length_of = lambda scene: tuple(len(data.encoded[getattr(scene, which)].marks) for which in SCENE_TEXTS)  # noqa: E731
    lengths = [length_of(scene) for scene in data.scenes]
    first = int(torch.randint(len(lengths), (1,), generator=generator))
    alike = [i for i, length in enumerate(lengths) if length == lengths[first]]
    indices = [alike[i] for i in torch.randint(len(alike), (count,), generator=generator).tolist()]
    return Choice([data.scenes[i] for i in indices], indices, times(count))


def text_batch(data: ConceptSet, choice: Choice, which: str, device: torch.device | str) -> TextBatch:
    """The choice's texts of one kind of SCENE_TEXTS."""
    return TextBatch.of([data.encoded[getattr(scene, which)] for scene in choice.texts], device)
