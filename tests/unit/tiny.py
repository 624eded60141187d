"""Small real parts for the unit tests: an SD3 transformer of two blocks, a text encoder of words, a concept set.

The weights are random and the LoRAs strong, so that an effect that should be there is large.
"""

from __future__ import annotations

import math
import re
import tempfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from purecc.batches import Batch, draw_batch
from purecc.concept import T5_SLOT, Concept
from purecc.concept_set import ConceptSet, build_concept_set
from purecc.encoding import EncodedText, TextBatch
from purecc.flow import LatentScaling
from purecc.initial import initial_embeddings
from purecc.job import Job
from purecc.network import EXTRACTOR, PURE, AdaptedNetwork
from purecc.objective import Original
from purecc.prompts import Placeholder, mark_tokens, substitute
from purecc.runs import StepRecord
from purecc.settings import TARGETS, PureSettings, TrainSettings
from purecc.stages import ExtractorJob, PureJob

CHANNELS, SIDE, WIDTH, ROWS, TEXT_WIDTH = 4, 8, 128, 8, 32
TRIGGER, BASE_ID = "[V]", "tiny base"
CAPTIONS = ("a [V] dog on the beach", "")
SCALING = LatentScaling(scale=1.5, shift=0.1)
SETTINGS = TrainSettings(
    steps=4, batch_size=2, learning_rate=1e-2, embedding_rate=1e-1, rank=2, alpha=4.0, checkpoint_every=2, seed=5
)
THROWAWAY = tempfile.TemporaryDirectory()  # what jobs of no interest write: pictures by the base
FEW = {"class_pictures": 3, "class_steps": 2}  # of PureSettings


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def transformer(heads: int = 2, layers: int = 2, seed: int = 0) -> SD3Transformer2DModel:
    """A real SD3 transformer, 8 x 8 latents of 4 channels; every weight, gates and last layer too, is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SD3Transformer2DModel(
            sample_size=SIDE, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=layers,
            attention_head_dim=64, num_attention_heads=heads, joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=64 * heads, pooled_projection_dim=TEXT_WIDTH, pos_embed_max_size=SIDE,
            dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def network(heads: int = 2, layers: int = 2) -> AdaptedNetwork:
    return AdaptedNetwork(transformer(heads, layers))


class Words:
    """A text encoder: a random vector for each word, moved by the words before it; with `t5`, a second part as long."""

    def __init__(self, trigger: str, placeholder: Placeholder, t5: bool = False):
        self.triggers, self.parts = {trigger: placeholder}, 2 if t5 else 1

    def encode(self, text: str) -> EncodedText:
        plain, spans = substitute(text, self.triggers)
        words = list(re.finditer(r"\w+", plain))[:ROWS]
        marked = mark_tokens(plain, spans, [match.span() for match in words])
        rows, marks = [], torch.zeros(self.parts * ROWS, dtype=torch.int64)
        for part in range(self.parts):
            part_rows = torch.zeros(ROWS, TEXT_WIDTH)
            for i, (word, mark) in enumerate(zip(words, marked, strict=True)):
                part_rows[i:] += 0.2 * self._vector(word[0], part)
                part_rows[i] += self._vector(word[0], part)
                if mark:
                    marks[part * ROWS + i] = 1 + mark[1] + part * T5_SLOT
            rows.append(part_rows)
        joined = torch.cat(rows)
        return EncodedText(joined, joined.mean(0), marks)

    @staticmethod
    def _vector(word: str, part: int) -> Tensor:
        return noise(TEXT_WIDTH, seed=zlib.crc32(f"{word} {part}".encode()))


def concept_set(
    captions: tuple[str, ...] = CAPTIONS,
    *,
    trigger: str = TRIGGER,
    class_word: str = "dog",
    tokens: int = 1,
    t5: bool = False,
    loud: float = 1.0,
    **options: Any,
) -> ConceptSet:
    """Pictures of noise, whose latents the picture's first pixels are; `loud` scales them. `options`: of `build_concept_set`."""
    return build_concept_set(
        [noise(SIDE, SIDE, CHANNELS, seed=i) for i in range(len(captions))],
        list(captions),
        trigger=trigger,
        class_word=class_word,
        kind="instance",
        tokens=tokens,
        encode_picture=lambda picture: loud * picture.permute(2, 0, 1),  # HWC -> CHW
        text_encoder=lambda trigger, placeholder: Words(trigger, placeholder, t5),
        **options,
    )


def text(caption: str, data: ConceptSet | None = None, count: int = 1) -> TextBatch:
    """A caption as the transformer reads it, `count` times."""
    tokens, class_word = (data.tokens, data.class_word) if data else (1, "dog")
    encoder = Words(TRIGGER, Placeholder(1, " ".join([class_word] * tokens)))
    return TextBatch.of([encoder.encode(caption)] * count)


@torch.no_grad()
def strengthen(adapted: AdaptedNetwork, model: str, seed: int = 0) -> None:
    """Random matrices in a model's LoRA, with an effect as large as the base's own."""
    for i, parameter in enumerate(adapted.lora_parameters(model)):
        parameter.copy_(noise(*parameter.shape, seed=1000 * seed + i) / math.sqrt(parameter.shape[1]))


@cache
def extractor(embeddings: str = "replace") -> Concept:
    """A strong concept in an extractor's role, for the default concept set."""
    data, adapted = concept_set(), network()
    start = initial_embeddings(adapted, data, SCALING, embeddings)
    adapted.add_new(EXTRACTOR, SETTINGS.rank, SETTINGS.alpha, TARGETS["attention"], seed=1)
    strengthen(adapted, EXTRACTOR, seed=1)
    if start is not None:
        start = replace(start, clip=start.clip + noise(*start.clip.shape, seed=9))
    return Concept(
        trigger=TRIGGER, class_word="dog", kind="instance", role="extractor", base=BASE_ID,
        lora=adapted.lora_weights(EXTRACTOR, SETTINGS.alpha), embeddings=start,
    )  # fmt: skip


def extractor_job(
    root: Path, settings: TrainSettings = SETTINGS, data: ConceptSet | None = None, base: str = BASE_ID
) -> ExtractorJob:
    """Stage 1 on a network of its own."""
    return ExtractorJob(network(), data or concept_set(), settings, SCALING, root, base)


def pure_job(
    root: Path,
    pure: PureSettings | None = None,
    settings: TrainSettings = SETTINGS,
    *,
    guide: Concept | None = None,
    data: ConceptSet | None = None,
    base: str = BASE_ID,
    adapted: AdaptedNetwork | None = None,
) -> PureJob:
    """Stage 2 on a network of its own, guided by `guide` (the strong extractor if none is given)."""
    return PureJob(
        adapted or network(), data or concept_set(), settings, SCALING, root, base, pure or PureSettings(),
        guide or extractor(),
    )  # fmt: skip


def stage_two(original: Original = "frozen base", **pure) -> tuple[PureJob, AdaptedNetwork]:
    """A prepared stage 2 whose model is already strong, for measuring single terms; nothing is written."""
    job = pure_job(Path(THROWAWAY.name), PureSettings(original=original, **pure))
    job.prepare()
    strengthen(job.network, PURE, seed=2)
    for parameter in learned(job.network):
        parameter.requires_grad_(True)
    return job, job.network


def learned(adapted: AdaptedNetwork) -> list[torch.nn.Parameter]:
    """What stage 2 trains: the LoRA and the embeddings of its model."""
    embeddings = adapted.embeddings.get(PURE)
    return adapted.lora_parameters(PURE) + (list(embeddings.parameters()) if embeddings else [])


def run(job: Job) -> list[StepRecord]:
    return list(job)


def same(a: Concept, b: Concept) -> bool:
    """Bit for bit the same weights."""
    of_a, of_b = a.tensors(), b.tensors()
    return of_a.keys() == of_b.keys() and all(torch.equal(of_a[name], of_b[name]) for name in of_a)


def losses(records: list[StepRecord]) -> list[tuple[float, float]]:
    return [(record.loss, record.concept_loss) for record in records]


def batch_of(job: Job, number: int = 1) -> Batch:
    return draw_batch(job.data, job.settings, job.scaling, number, "cpu", job.class_pictures())


def asked(pure: PureSettings, settings: TrainSettings = SETTINGS, data: ConceptSet | None = None):
    """The job, its batch, its terms, and a function for single velocities (of model and text)."""
    job = stage_two_of(pure, settings, data)
    batch = batch_of(job)

    @torch.no_grad()
    def velocity(model: str | None, which: str) -> Tensor:
        return job.network.velocity(batch.x_t, batch.t, getattr(batch, which), model)

    return job, batch, job.objective().terms(job.network, batch), velocity


def stage_two_of(pure: PureSettings, settings: TrainSettings = SETTINGS, data: ConceptSet | None = None) -> PureJob:
    job = pure_job(Path(THROWAWAY.name), pure, settings, data=data)
    job.prepare()
    strengthen(job.network, PURE, seed=2)
    for parameter in learned(job.network):
        parameter.requires_grad_(True)
    return job
