"""DreamBooth's prior preservation (arXiv 2208.12242): pictures of the class by the base model, drawn once and kept."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .concept_set import NULL, ConceptSet
from .encoding import TextBatch, sketch_of_texts
from .files import load_tensors, save_tensors
from .fingerprint import SKETCH, differ_by_rounding
from .forwards import SAMPLES
from .frozen import storage_of
from .network import BASE, AdaptedNetwork
from .sampling import euler, guided_velocity
from .settings import PureSettings

log = logging.getLogger(__name__)
_TOGETHER = SAMPLES // 2  # pictures in one sampling, each with its negative
Size = tuple[int, ...]  # [channels, height, width] of a latent


@dataclass(frozen=True)
class ClassPictures:
    """Pictures of the class as the base model draws them, for each size of the concept's pictures."""

    latents: dict[Size, Tensor]  # size -> [count, ...], as the model reads them
    texts: tuple[str, ...]  # of each, for every size

    def pick(
        self, data: ConceptSet, count: int, size: Iterable[int], generator: torch.Generator, device: torch.device | str
    ) -> tuple[Tensor, TextBatch]:
        """`count` latents of one size and of texts of one length, by chance, and their texts."""
        drawn = self.latents[tuple(size)]
        length = lambda i: len(data.encoded[self.texts[i]].marks)  # noqa: E731
        first = int(torch.randint(len(drawn), (1,), generator=generator))
        alike = [i for i in range(len(drawn)) if length(i) == length(first)]
        chosen = [alike[i] for i in torch.randint(len(alike), (count,), generator=generator).tolist()]
        return drawn[chosen], TextBatch.of([data.encoded[self.texts[i]] for i in chosen], device)


def class_pictures(
    network: AdaptedNetwork, data: ConceptSet, settings: PureSettings, base: str, seed: int, root: Path,
    drawing: Callable[[int, int], None] = lambda done, total: None,
) -> ClassPictures:  # fmt: skip
    """The class pictures of these settings: read from `root`/class_pictures, or drawn by theta3 and kept there.

    `root` is the folder of the runs, `base` the base model's fingerprints. `drawing(done, total)` is called before each
    sampling step; what it raises ends the drawing, and the pictures that are finished are kept.
    """
    prompts = sorted({texts.base for example in data.examples for texts in example.all_texts})
    if settings.class_texts == "class" and data.class_text is not None:
        prompts = [data.class_text]
    texts = tuple(prompts[i % len(prompts)] for i in range(settings.class_pictures))
    sizes = sorted({tuple(example.latent.shape) for example in data.examples})
    return ClassPictures(drawn_by_base(network, data, settings, base, seed, root, texts, sizes, drawing), texts)


def drawn_by_base(
    network: AdaptedNetwork, data: ConceptSet, settings: PureSettings, base: str, seed: int, root: Path,
    texts: tuple[str, ...], sizes: list[Size], drawing: Callable[[int, int], None],
) -> dict[Size, Tensor]:  # fmt: skip
    """A picture of each text in each size, by theta3: read from `root`/class_pictures, or drawn and kept there.

    The rest is as in `class_pictures`; returns size -> latents [count, ...], as the model reads them, on the CPU.
    """
    key = _key(network, data, settings, base, seed, texts, sizes)
    path, begun = (root / "class_pictures" / f"{key}{ending}.safetensors" for ending in ("", " begun"))
    sketch = sketch_of_texts(data.encoded[text] for text in sorted({NULL, *texts}))
    whole, names = _read(path, sketch), {size: _name(size) for size in sizes}
    if set(names.values()) <= whole.keys():
        return {size: whole[name] for size, name in names.items()}
    done = _read(begun, sketch)  # "16x64x64 3" -> the picture of text 3 in that size
    pictures = [(size, some) for size in sizes for some in _together(data, texts)]
    waiting = [(size, some) for size, some in pictures if not {_one(size, i) for i in some} <= done.keys()]
    log.info(
        "The base model draws %d pictures, %d steps each.", sum(len(some) for _, some in waiting), settings.class_steps
    )
    total = settings.class_steps * len(pictures)
    steps = itertools.count(total - settings.class_steps * len(waiting))
    for size, some in waiting:
        drawn = _draw(network, data, settings, seed, texts, some, size, lambda: drawing(next(steps), total))
        done |= {_one(size, i): latent for i, latent in zip(some, drawn, strict=True)}
        save_tensors(begun, done, {SKETCH: json.dumps(sketch)})
    latents = {size: torch.stack([done[_one(size, i)] for i in range(len(texts))]) for size in sizes}
    save_tensors(
        path,
        {_name(size): value for size, value in latents.items()},
        {"texts": json.dumps(texts), SKETCH: json.dumps(sketch)},
    )
    begun.unlink(missing_ok=True)
    return latents


def _read(path: Path, sketch: list[float]) -> dict[str, Tensor]:
    """A file's tensors; none where there is no such file, it is damaged, or its texts were encoded otherwise."""
    if not path.is_file():
        return {}
    try:
        tensors, metadata = load_tensors(path)
        return tensors if differ_by_rounding(json.loads(metadata.get(SKETCH, "[]")), sketch) else {}
    except ValueError as error:
        log.warning("The class pictures in %s cannot be read (%s); they are drawn anew.", path.name, error)
        return {}


def _together(data: ConceptSet, texts: tuple[str, ...]) -> list[list[int]]:
    """Which texts share a sampling: of one length, at most _TOGETHER."""
    lengths = [len(data.encoded[text].marks) for text in texts]
    alike = [[i for i, one in enumerate(lengths) if one == length] for length in dict.fromkeys(lengths)]
    return [numbers[start : start + _TOGETHER] for numbers in alike for start in range(0, len(numbers), _TOGETHER)]


def _draw(
    network: AdaptedNetwork, data: ConceptSet, settings: PureSettings, seed: int, texts: tuple[str, ...],
    some: list[int], size: Size, each_step: Callable[[], None],
) -> Tensor:  # fmt: skip
    """[count, channels, height, width] on the CPU, of `some` of the texts; each picture has a seed of its own."""
    device = network.device
    seeds = [torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**62) for i in some]
    noise = torch.stack([torch.randn(size, generator=generator) for generator in seeds])
    words = TextBatch.of([data.encoded[texts[i]] for i in some], device), data.null(len(some), device)
    guided = guided_velocity(network, *words, settings.class_guidance, BASE)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        each_step()
        return guided(x_t, t)

    return euler(velocity, noise.to(device), settings.class_steps, settings.class_shift, network).cpu()


def _key(
    network: AdaptedNetwork, data: ConceptSet, settings: PureSettings, base: str, seed: int, texts: tuple[str, ...],
    sizes: list[Size],
) -> str:  # fmt: skip
    asked = {"base": base, "dtype": str(network.dtype), "texts": texts, "seed": seed, "sizes": sizes}
    asked |= {name: getattr(settings, f"class_{name}") for name in ("steps", "guidance", "shift")}
    if (stored := storage_of(network.transformer)) != "whole":
        asked["frozen_weights"] = stored  # another base draws other pictures
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for text in sorted({NULL, *texts}):  # another encoder reads the same words otherwise
        digest.update(data.encoded[text].identity)
    return digest.hexdigest()[:12]


def _name(size: Size) -> str:
    return "x".join(map(str, size))


def _one(size: Size, text: int) -> str:
    return f"{_name(size)} {text}"
