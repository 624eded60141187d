"""What the checks of forms share: files, one prediction, a copy beside its original, two steps of a training."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import SD3Transformer2DModel
from purecc_pack.nodes.host import convert, pocket, session, training
from purecc_pack.nodes.host.weights import fingerprint
from purecc_pack.nodes.types import TrainingData
from purecc_pack.purecc.concept_set import build_concept_set
from purecc_pack.purecc.encoding import EncodedText
from purecc_pack.purecc.settings import TrainSettings
from purecc_pack.purecc.stages import ExtractorJob
from purecc_pack.purecc.targets import lora_modules
from safetensors import safe_open
from safetensors.torch import save_file
from sd3_files import CHANNELS, JOINT, POOLED

CHECKS: dict[str, Callable[[], dict]] = {}
MODELS = Path(folder_paths.models_dir)
noise = lambda *shape, seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))  # noqa: E731


WORDS = noise(1, 90, JOINT, seed=2)


def write(folder: str, name: str, values: dict, metadata: dict[str, str] | None = None) -> str:
    """A file in one of the host's model folders, with a space in its name; its name."""
    path = MODELS / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path, metadata)
    folder_paths.filename_list_cache.clear()
    return name


def predicted(network: ModelPatcher | SD3Transformer2DModel, words: torch.Tensor | None = None) -> torch.Tensor:
    """What the host's network, or a copy, predicts for one noised latent."""
    x, pooled, t = noise(1, CHANNELS, 12, 16, seed=1), noise(1, POOLED, seed=3), torch.tensor([700.0])
    words = WORDS if words is None else words
    if isinstance(network, ModelPatcher):
        return network.model.diffusion_model(x, t, context=words, y=pooled)
    return network(x, words, pooled, t).sample


def compared(model: ModelPatcher, **options) -> dict:
    """The host's network against the copy on the same inputs, and against the copy of another text."""
    copy = convert.to_diffusers(model, **options)
    expected, got, other = predicted(model), predicted(copy), predicted(copy, WORDS.flip(1) * 0.5)
    size = expected.norm()
    config = {k: copy.config[k] for k in ("num_layers", "dual_attention_layers", "qk_norm", "pos_embed_max_size")}
    return {
        "error": float((got - expected).norm() / size),
        "effect": float((other - got).norm() / size),
        "config": config,
        "table": copy.pos_embed.pos_embed_max_size,
        "notes": convert.remarks(model, torch.float32),
        "fingerprint": fingerprint(model, with_patches=True),
        "linears": {key: len(lora_modules(copy, key)) for key in ("attention", "attention and attn2")},
    }


def check(function: Callable[[], dict]) -> Callable[[], dict]:
    CHECKS[function.__name__] = function
    return function


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def refused(model: ModelPatcher) -> str:
    try:
        convert.to_diffusers(model)
    except ValueError as error:
        return str(error)
    return "was taken"


class Words:
    """Rows of chance for each text, in SD3's widths; the trigger at row 3."""

    def __init__(self, trigger: str):
        self.trigger = trigger

    def encode(self, words: str) -> EncodedText:
        seed, marks = zlib.crc32(words.encode()), torch.zeros(20, dtype=torch.int64)
        marks[3] = int(self.trigger in words)
        return EncodedText(noise(20, JOINT, seed=seed), noise(POOLED, seed=seed + 1), marks)


def wire() -> TrainingData:
    """As Concept Set gives it."""
    data = build_concept_set(
        [noise(64, 64, 3, seed=7)] * 2, ["a [V] dog", ""], trigger="[V]", class_word="dog", kind="instance", tokens=1,
        encode_picture=lambda picture: noise(CHANNELS, 8, 8, seed=8), text_encoder=lambda word, _: Words(word),
    )  # fmt: skip
    return TrainingData(data, pocket.load_pocket()[2], Words(data.trigger))


def trained(model: ModelPatcher, **changed) -> dict:
    """Two steps of stage 1, as the node makes them; what stands in the concept's file."""
    settings = TrainSettings(steps=2, **changed)
    with session.outside_inference():
        data = wire()
        with training.prepared(model, data, settings) as it:
            job = ExtractorJob(it.network, data.concept_set, it.settings, it.scaling, Path(tempfile.mkdtemp()), it.base)
            losses = [record.loss for record in job]
    with safe_open(job.run.result, "pt") as file:
        written = {name: json.loads(file.metadata()[f"purecc.{name}"]) for name in ("base", "settings")}
        moved = max(float(file.get_tensor(key).abs().max()) for key in file.keys() if "lora_B" in key)
    return written | {"losses": losses, "moved": moved, "notes": it.notes}
