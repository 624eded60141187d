"""Triggers in stock text nodes: a CLIP that knows them, and the same CLIP as a text encoder for training.

The tokenizers put the class word in the trigger's place and return its ids as `MarkedToken`, so that the mark survives
weights, chunks, padding and other nodes' surgery on token lists; the CLIP's encode turns marks into the conditioning's map.
"""

import copy
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import comfy.conds
import comfy.sd
import torch
from torch import Tensor

from ...purecc.concept import T5_SLOT
from ...purecc.encoding import EncodedText
from ...purecc.fingerprint import digest_of
from ...purecc.prompts import Placeholder, Span, mark_tokens, substitute
from .encoders import text_encoders
from .marks import MAP, concept_of, number, slot_of, write_code
from .session import as_the_host, check_interrupted, kept

log = logging.getLogger(__name__)
_TOKENIZERS = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5xxl"}  # key in the host's tokens -> attribute
Tokens = dict[str, list[list[tuple[Any, ...]]]]  # key -> chunks of (token, weight, ...)


class MarkedToken(int):
    """A token's id that knows which concept it stands for, and as which of its tokens; and what to read in its place."""

    concept: int
    index: int
    meaning: Placeholder | None = None  # where it has learned input embeddings

    @classmethod
    def of(cls, token: int, concept: int, index: int, meaning: Placeholder | None = None) -> "MarkedToken":
        marked = cls(token)
        marked.concept, marked.index, marked.meaning = concept, index, meaning
        return marked


class MarkingTokenizer:
    """Stands in for the tokenizer inside one of the host's: substitutes triggers and marks their tokens."""

    def __init__(self, inner: Any, triggers: Mapping[str, Placeholder]):
        self.inner, self.triggers = inner, triggers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":  # copying asks before `inner` is there
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, text: str, **options: Any) -> Any:
        plain, spans = substitute(text, self.triggers)
        if not spans:
            return self.inner(text, **options)
        if getattr(self.inner, "is_fast", False):
            encoded = self.inner(plain, return_offsets_mapping=True, **options)
            marks = mark_tokens(plain, spans, encoded["offset_mapping"])
        else:
            encoded = self.inner(plain, **options)
            marks = self._count(plain, spans, len(encoded["input_ids"]), options)
        learned = {one.concept: one for one in self.triggers.values() if one.vectors}
        ids = [
            MarkedToken.of(token, *mark, learned.get(mark[0])) if mark and mark[0] else token
            for token, mark in zip(encoded["input_ids"], marks, strict=True)
        ]
        return {**encoded, "input_ids": ids}

    def _count(self, plain: str, spans: list[Span], total: int, options: dict) -> list[tuple[int, int] | None]:
        """Marks without offsets, for tokenizers written in Python: by counting the tokens of each piece of the text."""
        special = self.inner("", **options)["input_ids"]  # <start> and <end>
        marks: list[tuple[int, int] | None] = [None] * (len(special) - 1)
        at = 0
        for span in spans:
            for piece, concept in ((plain[at : span.start], None), (plain[span.start : span.end], span.concept)):
                tokens = len(self.inner(piece, **options)["input_ids"]) - len(special)
                marks += [None if concept is None else (concept, i) for i in range(tokens)]
            at = span.end
        marks += [None] * (len(self.inner(plain[at:], **options)["input_ids"]) - len(special) + 1)
        if len(marks) != total:
            raise RuntimeError(
                f'Where the concept stands in "{plain}" cannot be told: its pieces have {len(marks)} tokens, the whole '
                f"has {total}. Put spaces around the trigger word."
            )
        return marks


def with_triggers(clip: comfy.sd.CLIP, triggers: Mapping[str, Placeholder]) -> comfy.sd.CLIP:
    """A CLIP whose prompts may hold the triggers, on top of those that it knows; the given CLIP stays as it is.

    Every prompt's CONDITIONING gets a map, also where it is all zero: two conditionings are batched only if both have one.
    A placeholder of concept 0 is substituted and not marked, and gives way to a concept of its trigger. Raises ValueError where a trigger has another meaning
    already, and where the CLIP has no tokenizer that is known here.
    """
    found = [name for name in _TOKENIZERS.values() if getattr(clip.tokenizer, name, None) is not None]
    if not found:
        raise ValueError(
            f"This CLIP has the tokenizer {type(clip.tokenizer).__name__}; PureCC knows those of SD3 "
            f"({', '.join(_TOKENIZERS.values())}). Load the text encoders of an SD3 type."
        )
    known: dict[str, Placeholder] = getattr(clip.tokenizer, "purecc_triggers", {})
    joined = _joined(known, triggers)
    marking = clip.clone()
    # with dynamic VRAM, nodes that set hooks or a device leave the one that was loaded first here
    model = marking.cond_stage_model = marking.patcher.model
    marking.tokenizer = copy.copy(clip.tokenizer)
    marking.tokenizer.purecc_triggers = joined
    for name in found:
        tokenizer = copy.copy(getattr(clip.tokenizer, name))
        inner = tokenizer.tokenizer.inner if isinstance(tokenizer.tokenizer, MarkingTokenizer) else tokenizer.tokenizer
        tokenizer.tokenizer = MarkingTokenizer(inner, joined)
        setattr(marking.tokenizer, name, tokenizer)
    encode = marking.patcher.get_model_object("encode_token_weights")
    if isinstance(encode, _MarkingEncode) and encode.text_model is not model:  # from before such a node
        encode = type(model).encode_token_weights.__get__(model)
    if not isinstance(encode, _MarkingEncode):
        # not a subclass of CLIP: the host's clone() makes a plain one
        marking.patcher.add_object_patch("encode_token_weights", _MarkingEncode(encode, model))
    return marking


def _joined(known: Mapping[str, Placeholder], triggers: Mapping[str, Placeholder]) -> dict[str, Placeholder]:
    """Both, upper and lower case alike. Raises ValueError where two concepts have one trigger."""
    joined = dict(known)
    for trigger, placeholder in triggers.items():
        same = next((one for one in joined if one.lower() == trigger.lower()), trigger)
        before = joined.get(same, placeholder)
        if before.concept and placeholder.concept and before != placeholder:
            raise ValueError(
                f'The trigger "{trigger}" already stands for another concept on this CLIP. Rename one of them.'
            )
        joined[same] = placeholder if placeholder.concept else before
    return joined


class _MarkingEncode:
    """Stands in for the text model's `encode_token_weights`: adds map and code to what it returns."""

    def __init__(self, encode: Any, text_model: torch.nn.Module):
        self.encode, self.text_model = encode, text_model

    def __call__(self, tokens: Tokens) -> tuple[Tensor, Tensor, dict]:
        rows, pooled, *more = self.encode(with_vectors(tokens, self.text_model))
        extra = dict(more[0]) if more else {}
        marks = _row_marks(tokens, self.text_model, rows.shape[1]).to(rows.device)
        extra["model_conds"] = {**extra.get("model_conds", {}), MAP: comfy.conds.CONDRegular(marks)}
        return write_code(rows, marks), pooled, extra


def with_vectors(tokens: Tokens, text_model: torch.nn.Module) -> Tokens:
    """The tokens with learned input embeddings in the marked ones' places, as the host has those of `embedding:name`."""

    def read(key: str, token: Any) -> Any:
        meaning = token.meaning if isinstance(token, MarkedToken) else None
        if meaning is None or _TOKENIZERS.get(key) not in meaning.vectors:
            return token
        vectors = meaning.vectors[_TOKENIZERS[key]]
        vector = vectors[token.index % len(vectors)].float()
        if meaning.strength == 1:
            return vector
        table = getattr(text_model, _TOKENIZERS[key]).transformer.get_input_embeddings().weight
        return torch.lerp(table[int(token)].float().to(vector.device), vector, meaning.strength)

    return {
        key: [[(read(key, token[0]), *token[1:]) for token in chunk] for chunk in chunks]
        for key, chunks in tokens.items()
    }


def _row_marks(tokens: Tokens, text_model: torch.nn.Module, rows: int) -> Tensor:
    """The numbers [1, rows] of the rows that SD3's text model makes of `tokens`: CLIP's, then T5's.

    CLIP-L and CLIP-G share a row; where their texts differ, rows on which both agree count, or else G's.
    """
    here = {
        key: tokens.get(key) or [] for key, name in _TOKENIZERS.items() if getattr(text_model, name, None) is not None
    }
    flat = {key: [token[0] for chunk in chunks for token in chunk] for key, chunks in here.items()}
    if not any(flat.values()):  # CLIP Text Encode SD3 without padding and without text: the host makes rows of zeros
        return torch.zeros(1, rows, dtype=torch.int64)
    clips = [flat[key] for key in ("l", "g") if flat.get(key)]
    clip_rows = min(map(len, clips), default=0)
    if clip_rows + len(flat.get("t5xxl", ())) != rows:
        lengths = {key: len(ids) for key, ids in flat.items()}
        raise RuntimeError(
            f"This CLIP made {rows} rows of tokens that are {lengths} long; SD3's lays CLIP's and T5's rows end to end. "
            "PureCC needs the text encoders of an SD3 type."
        )
    of_clip = [{row: token for row, token in enumerate(ids) if isinstance(token, MarkedToken)} for ids in clips]
    chosen = of_clip[-1] if of_clip else {}
    if len(of_clip) == 2:
        same = lambda a, b: b is not None and (a.concept, a.index) == (b.concept, b.index)  # noqa: E731
        agreed = {row: token for row, token in of_clip[0].items() if same(token, of_clip[1].get(row))}
        chosen = agreed or of_clip[1] or of_clip[0]
    marks = torch.zeros(1, rows, dtype=torch.int64)
    for row, token in chosen.items():
        if row < clip_rows:
            marks[0, row] = number(token.concept, token.index % T5_SLOT)
    for row, token in enumerate(flat.get("t5xxl", ())):
        if isinstance(token, MarkedToken):
            marks[0, clip_rows + row] = number(token.concept, T5_SLOT + token.index % T5_SLOT)
    return marks


class HostTextEncoder:
    """The host's CLIP as `purecc.encoding.TextEncoder`: what a prompt becomes in sampling is what training sees."""

    def __init__(self, clip: comfy.sd.CLIP, trigger: str, placeholder: Placeholder):
        self.clip, self.concept = with_triggers(clip, {trigger: placeholder}), placeholder.concept
        self._read: dict[str, EncodedText] = {}

    def encode(self, text: str) -> EncodedText:
        """One text, on the CPU, float32, in tensors that training may keep. Raises ValueError where it is not finite.

        Each text is read once: scenes have some fifty, which a training at another eta asks for again.
        """
        if text not in self._read:
            check_interrupted()
            self._read[text] = self._encode(text)
        return self._read[text]

    @property
    def size(self) -> int:
        """Bytes of the texts that were read."""
        return sum(one.rows.nbytes + one.pooled.nbytes for one in self._read.values())

    def _encode(self, text: str) -> EncodedText:
        with as_the_host():
            tokens = self.clip.tokenize(text)
            made = self.clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
            marks = made["model_conds"][MAP].cond[0]
            ours = (marks > 0) & (concept_of(marks) == self.concept)
            slots = kept(torch.where(ours, slot_of(marks) + 1, torch.zeros_like(marks)), marks.dtype)
        rows, pooled = kept(made["cond"][0]), kept(made["pooled_output"][0])
        if not (torch.isfinite(rows).all() and torch.isfinite(pooled).all()):
            raise ValueError(
                f'The text encoders gave values that are not finite for "{text}", as T5 does in float16. Start ComfyUI with '
                "--bf16-text-enc, or load T5 in bfloat16 or scaled float8."
            )
        return EncodedText(rows, pooled, slots, text, self._source(tokens, slots))

    @cached_property
    def _encoders(self) -> str:
        return text_encoders(self.clip, own=_MarkingEncode)

    def _source(self, tokens: Tokens, slots: Tensor) -> str:
        """What a text's rows are made of, of rows with these marks; empty where the rows alone tell."""
        parts: list[str | Tensor] = [slots]
        for key, chunks in sorted(with_vectors(tokens, self.clip.cond_stage_model).items()):
            for place, chunk in enumerate(chunks):
                for token, *weight in chunk:
                    if not isinstance(token, (int, Tensor)):
                        return ""
                    parts += [f"{key} {place} {weight}", token if isinstance(token, Tensor) else str(int(token))]
        return digest_of(self._encoders, *parts) if self._encoders else ""
