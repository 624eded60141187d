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
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from . import __version__
from .files import load_tensors, save_tensors
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
    """A LoRA over named Linears: change = alpha / rank * B @ A. This line is the only place where the scale is said."""

    matrices: dict[str, tuple[Tensor, Tensor]]  # module -> (A [rank, in], B [out, rank])
    alpha: float

    @property
    def rank(self) -> int:
        return next(iter(self.matrices.values()))[0].shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


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
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
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
                tensors[f"transformer.{module}.lora_A.weight"] = a
                tensors[f"transformer.{module}.lora_B.weight"] = b
                tensors[f"transformer.{module}.alpha"] = torch.tensor(float(self.lora.alpha))
        if self.embeddings:
            tensors["concept.clip"] = self.embeddings.clip
            if self.embeddings.t5 is not None:
                tensors["concept.t5"] = self.embeddings.t5
        for encoder, vectors in sorted((self.token_embeddings or {}).items()):
            tensors[f"{_TOKEN}{encoder}"] = vectors
        return tensors


_TOKEN = "concept.token."
_PLAIN = [f.name for f in fields(Concept) if f.name not in ("lora", "embeddings", "token_embeddings")]
_SINCE = {"gate": "off"}  # fields that older files lack, and what these mean


def save_concept(concept: Concept, path: Path) -> None:
    """Writes the file, whole or not at all."""
    metadata = {f"purecc.{name}": json.dumps(getattr(concept, name)) for name in _PLAIN}
    metadata["purecc.version"] = json.dumps(__version__)
    if concept.embeddings:
        metadata["purecc.embedding_mode"] = json.dumps(concept.embeddings.mode)
    metadata["modelspec.title"] = f"{concept.trigger} {concept.class_word}"
    metadata["modelspec.trigger_phrase"] = concept.trigger
    save_tensors(path, concept.tensors(), metadata)


def load_concept(path: Path) -> Concept:
    """Reads a file that `save_concept` wrote. Raises ValueError, with the reason, for any other."""
    if not path.is_file():
        raise ValueError(f"There is no concept file {path.name}. Save one with Save Concept, or choose another.")
    try:
        tensors, metadata = load_tensors(path)
    except Exception as error:
        raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from error
    missing = [name for name in _PLAIN if f"purecc.{name}" not in metadata and name not in _SINCE]
    if missing:
        raise ValueError(
            f"{path.name} is not a PureCC concept: its metadata lacks {', '.join(missing)}. "
            "A plain LoRA goes into the stock Load LoRA node."
        )
    plain = _SINCE | {name: json.loads(metadata[f"purecc.{name}"]) for name in _PLAIN if f"purecc.{name}" in metadata}
    if plain["kind"] not in KINDS:
        raise ValueError(f'{path.name} is of kind "{plain["kind"]}"; this version knows {", ".join(KINDS)}.')
    if plain["gate"] not in GATES:
        raise ValueError(f'{path.name} has the gate "{plain["gate"]}"; this version knows {", ".join(GATES)}.')
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    alphas = set()
    for key, value in tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key[len("transformer.") : -len(".lora_A.weight")]
            matrices[module] = (value, tensors[f"transformer.{module}.lora_B.weight"])
            alphas.add(float(tensors[f"transformer.{module}.alpha"]))
    if len(alphas) > 1:
        raise ValueError(f"{path.name} has LoRA modules of different alpha ({sorted(alphas)}); one is expected.")
    embeddings = None
    if "concept.clip" in tensors:
        mode = json.loads(metadata["purecc.embedding_mode"])
        embeddings = ConceptEmbeddings(tensors["concept.clip"], tensors.get("concept.t5"), mode)
    lora = LoraWeights(matrices, alphas.pop()) if matrices else None
    of_tokens = {key[len(_TOKEN) :]: value for key, value in tensors.items() if key.startswith(_TOKEN)}
    return Concept(lora=lora, embeddings=embeddings, token_embeddings=of_tokens or None, **plain)
