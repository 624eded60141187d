"""A concept: what training yields, one file keeps, and sampling applies.

The file is one `.safetensors`:

    transformer.<module>.lora_A.weight   [rank, in]     the names that stock LoRA loaders read,
    transformer.<module>.lora_B.weight   [out, rank]    <module> as in diffusers' SD3Transformer2DModel
    transformer.<module>.alpha           []             always there: without it loaders take scale 1, not alpha / rank
    concept.clip                         [blocks, tokens, width]   layer-wise embeddings (eq. 7), CLIP part of the text
    concept.t5                           [blocks, tokens, width]   the same for the T5 part, where there is one
    concept.token.clip_l                 [tokens, width]   input embeddings, where it has them (`token_embeddings`)
    concept.token.clip_g                 [tokens, width]

and, as metadata, everything else (`Concept`'s plain fields), each a JSON value under `purecc.<field>`.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from . import __version__
from .files import load_tensors, save_tensors
from .fingerprint import bytes_of
from .prompts import KINDS, Kind, Placeholder

Role = Literal["extractor", "concept"]
EmbeddingMode = Literal["replace", "offset"]
Gate = Literal["off", "picture", "conditioning", "rows"]
GATES: tuple[Gate, ...] = get_args(Gate)
T5_SLOT = 32  # slots 0..31 are embeddings of the CLIP part of the text stream, 32..63 of the T5 part


def sampling_gate(kind: Kind, trained: Gate) -> Gate:
    """Where a LoRA is to act if nobody says otherwise: the gate of its training, or one where prompts without it are exact.

    A look is largely what the LoRA shifts in all texts alike; behind "picture" that cancels in the guidance, and hardly shows.
    """
    if trained != "off":
        return trained
    return "conditioning" if kind == "style" else "picture"


def held_as(kind: Kind, token_embeddings: bool) -> Kind | None:
    """How sampling leaves to the base model what is not the concept's (see `place`); None where input embeddings are in what the
    host's base reads."""
    return None if token_embeddings else kind


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA over named Linears: change = alpha / rank * B @ A."""

    matrices: dict[str, tuple[Tensor, Tensor]]  # module -> (A [rank, in], B [out, rank])
    alpha: float

    @property
    def rank(self) -> int:
        return next(iter(self.matrices.values()))[0].shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class ForeignLoraError(ValueError):
    """A file that is no LoRA in diffusers' names with one rank and one alpha; the host's own loader may know it."""


def lora_of(name: str, matrices: dict[str, tuple[Tensor, Tensor]], alphas: Iterable[float | Tensor]) -> LoraWeights:
    """A file's LoRA. Raises ValueError where modules have several ranks or alphas, where A and B do not go together, and for what is not finite."""
    told = {float(alpha) if torch.as_tensor(alpha).numel() == 1 else math.nan for alpha in alphas}
    for module, (a, b) in matrices.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(f"{name}: A {tuple(a.shape)} and B {tuple(b.shape)} of {module} do not go together.")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"{name}: the LoRA of {module} is not finite. The training that made it had diverged.")
    ranks = sorted({a.shape[0] for a, _ in matrices.values()})
    if len(ranks) != 1:
        raise ForeignLoraError(f"{name} has modules of different rank ({ranks}); PureCC's concepts have one.")
    if any(not math.isfinite(alpha) for alpha in told):
        raise ValueError(f"{name}: the LoRA's alpha is no number.")
    if len(told) != 1:
        raise ForeignLoraError(f"{name} has modules of different alpha ({sorted(told)}); PureCC's concepts have one.")
    return LoraWeights(matrices, told.pop())


@dataclass(frozen=True)
class ConceptEmbeddings:
    """Layer-wise embeddings (eq. 7): what joint block l reads at the trigger's rows of the text stream."""

    clip: Tensor  # [blocks, tokens, width]
    t5: Tensor | None = None  # [blocks, tokens, width]
    mode: EmbeddingMode = "replace"  # "replace": in place of the row; "offset": added to the row

    def slot(self, slot: int) -> Tensor | None:
        """The embedding of one slot for every block, [blocks, width]; tokens beyond the last repeat from the first.

        None for T5's part of a concept that was trained without T5: there the class word stays.
        """
        table, index = (self.clip, slot) if slot < T5_SLOT else (self.t5, slot - T5_SLOT)
        return None if table is None else table[:, index % table.shape[1]]


@dataclass(frozen=True)
class Concept:
    """An extractor (theta1) or a finished concept (theta2), with all that is needed to apply it."""

    trigger: str
    class_word: str
    kind: Kind
    role: Role
    base: str  # fingerprint of the model it was trained on
    lora: LoraWeights | None
    embeddings: ConceptEmbeddings | None
    token_embeddings: dict[str, Tensor] | None = None  # "clip_l", "clip_g" -> [tokens, width of that encoder]
    settings: dict[str, Any] = field(default_factory=dict)  # as trained
    summary: dict[str, Any] = field(default_factory=dict)  # figures of the run
    # where the LoRA was trained to act, see `network`
    gate: Gate = "off"

    @cached_property
    def uid(self) -> int:
        """A stable number below 2^29 (31 bits with a slot fit a float's code), from the trigger and the weights."""
        digest = hashlib.sha256(self.trigger.lower().encode())
        for key, value in sorted(self.tensors().items()):
            digest.update(key.encode())
            digest.update(bytes_of(value))
        return int.from_bytes(digest.digest()[:8], "big") % (2**29 - 1) + 1

    @property
    def tokens(self) -> int:
        if self.token_embeddings:
            return len(next(iter(self.token_embeddings.values())))
        return self.embeddings.clip.shape[1] if self.embeddings else 1

    @property
    def sampling_gate(self) -> Gate:
        return sampling_gate(self.kind, self.gate)

    @property
    def held(self) -> Kind | None:
        return held_as(self.kind, bool(self.token_embeddings))

    @property
    def placeholder(self) -> Placeholder:
        """What the text encoders see in the trigger's place."""
        return Placeholder(self.uid, " ".join([self.class_word] * self.tokens), self.token_embeddings)

    def tensors(self) -> dict[str, Tensor]:
        """The file's tensors."""
        tensors: dict[str, Tensor] = {}
        if self.lora:
            for module, (a, b) in self.lora.matrices.items():
                tensors |= zip(_keys(module), (a, b, torch.tensor(float(self.lora.alpha))), strict=True)
        if self.embeddings:
            tensors["concept.clip"] = self.embeddings.clip
            if self.embeddings.t5 is not None:
                tensors["concept.t5"] = self.embeddings.t5
        for encoder, vectors in sorted((self.token_embeddings or {}).items()):
            tensors[f"{_TOKEN}{encoder}"] = vectors
        return tensors

    def metadata(self) -> dict[str, str]:
        """The file's metadata."""
        metadata = {f"purecc.{name}": json.dumps(getattr(self, name)) for name in _PLAIN}
        metadata["purecc.version"] = json.dumps(__version__)
        if self.embeddings:
            metadata["purecc.embedding_mode"] = json.dumps(self.embeddings.mode)
        metadata["modelspec.title"] = f"{self.trigger} {self.class_word}"
        metadata["modelspec.trigger_phrase"] = self.trigger
        return metadata


_TOKEN = "concept.token."
_PLAIN = [f.name for f in fields(Concept) if f.name not in ("lora", "embeddings", "token_embeddings")]
_DICTIONARIES = ("settings", "summary")  # among these; the others are words
_SINCE = {"gate": "off"}  # fields that older files lack, and what these mean
_A = ".lora_A.weight"


def _keys(module: str) -> tuple[str, str, str]:
    """Of A, B and alpha."""
    return f"transformer.{module}{_A}", f"transformer.{module}.lora_B.weight", f"transformer.{module}.alpha"


def save_concept(concept: Concept, path: Path) -> None:
    """Writes the file, whole or not at all."""
    save_tensors(path, concept.tensors(), concept.metadata())


def load_concept(path: Path) -> Concept:
    """Reads a file that `save_concept` wrote. Raises ValueError, with the reason, for any other."""
    if not path.is_file():
        raise ValueError(f"There is no concept file {path.name}. Save one with Save Concept, or choose another.")
    tensors, metadata = load_tensors(path)
    missing = [name for name in _PLAIN if f"purecc.{name}" not in metadata and name not in _SINCE]
    if missing:
        raise ValueError(
            f"{path.name} is not a PureCC concept: its metadata lacks {', '.join(missing)}. "
            "A plain LoRA goes into the stock Load LoRA node."
        )
    try:
        said = {name: json.loads(metadata[f"purecc.{name}"]) for name in _PLAIN if f"purecc.{name}" in metadata}
    except ValueError as error:
        raise ValueError(f"{path.name} is not a PureCC concept: its metadata is damaged ({error}).") from error
    plain = _SINCE | said
    strange = [name for name, value in plain.items() if not isinstance(value, dict if name in _DICTIONARIES else str)]
    if strange:
        raise ValueError(f"{path.name} is not a PureCC concept: its {', '.join(strange)} cannot be read.")
    if plain["kind"] not in KINDS:
        raise ValueError(f'{path.name} is of kind "{plain["kind"]}"; this version knows {", ".join(KINDS)}.')
    if plain["gate"] not in GATES:
        raise ValueError(f'{path.name} has the gate "{plain["gate"]}"; this version knows {", ".join(GATES)}.')
    modules = [key[len("transformer.") : -len(_A)] for key in tensors if key.endswith(_A)]
    half = [key for module in modules for key in _keys(module) if key not in tensors]
    if half:
        raise ValueError(f"{path.name} is damaged: it lacks {half[0]}.")
    parts = {module: tuple(tensors[key] for key in _keys(module)) for module in modules}
    matrices = {module: (a, b) for module, (a, b, _) in parts.items()}
    lora = lora_of(path.name, matrices, [alpha for *_, alpha in parts.values()]) if matrices else None
    embeddings = None
    if "concept.clip" in tensors:
        mode = json.loads(metadata.get("purecc.embedding_mode", "null"))
        embeddings = ConceptEmbeddings(tensors["concept.clip"], tensors.get("concept.t5"), mode)
        if mode not in get_args(EmbeddingMode):
            raise ValueError(
                f'{path.name} has embeddings of mode "{mode}"; this version knows {", ".join(get_args(EmbeddingMode))}.'
            )
    of_tokens = {key[len(_TOKEN) :]: value for key, value in tensors.items() if key.startswith(_TOKEN)}
    for key, value in tensors.items():
        if key.startswith("concept.") and (
            value.ndim != (2 if key.startswith(_TOKEN) else 3) or not torch.isfinite(value).all()
        ):
            raise ValueError(
                f"{path.name} is damaged: {key} {tuple(value.shape)} is of another shape, or is not finite."
            )
    return Concept(lora=lora, embeddings=embeddings, token_embeddings=of_tokens or None, **plain)
