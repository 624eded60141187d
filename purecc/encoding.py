"""Encoded texts: what the transformer reads, and which rows stand for the concept."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .concept import T5_SLOT
from .fingerprint import bytes_of, sketch_of
from .prompts import Placeholder, mark_tokens, substitute


@dataclass(frozen=True)
class EncodedText:
    """One text as the transformer reads it."""

    rows: Tensor  # [rows, width] the text stream's input
    pooled: Tensor  # [pooled width]
    marks: Tensor  # [rows] int64: 0 for an ordinary row, else 1 + slot (see `concept.T5_SLOT`)
    text: str = ""  # which one, for learned input embeddings (see `token_embeddings`)
    source: str = ""  # digest of its tokens and the encoders' fingerprint; empty: the values alone tell

    @property
    def identity(self) -> bytes:
        """Tells it from others: by what it was made of, whose rounding does not count, or by its bits."""
        return self.source.encode() or b"".join(map(bytes_of, (self.rows, self.pooled, self.marks)))


def sketch_of_texts(texts: Iterable[EncodedText]) -> list[float]:
    """One sketch of their rows, each at length 1 (CLIP's have values that are a hundred times as large as T5's), and one of their pooled texts."""
    texts = list(texts)
    evened = (nn.functional.normalize(text.rows.float(), dim=-1) for text in texts)
    return sketch_of(evened) + sketch_of(text.pooled for text in texts)


class TextEncoder(Protocol):
    """Encodes texts with a trigger in them; a host's CLIP or the pocket's own encoders."""

    def encode(self, text: str) -> EncodedText: ...


@dataclass(frozen=True)
class TextBatch:
    """Several encoded texts side by side. `marks` and `guided` stay on the CPU: what acts is asked before each forward,
    and asking a GPU would wait for all that it has yet to do.
    """

    rows: Tensor  # [batch, rows, width]
    pooled: Tensor  # [batch, pooled width]
    marks: Tensor  # [batch, rows]
    guided: Tensor | None = None  # [batch] bool: negatives of pictures whose prompt holds the trigger (gate "picture")
    words: tuple[str, ...] = ()  # [batch] the texts
    here: Tensor | None = None  # the marks where the rows are, for a forward that is recorded (see `recorded`)

    @staticmethod
    def of(
        texts: list[EncodedText], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> "TextBatch":
        """Stacks texts of one length. Raises ValueError where the lengths differ."""
        lengths = sorted({len(text.marks) for text in texts})
        if len(lengths) > 1:
            raise ValueError(f"texts of different lengths cannot be stacked: {lengths} rows")
        stack = lambda name: torch.stack([getattr(text, name) for text in texts])  # noqa: E731
        words = tuple(text.text for text in texts)
        rows, pooled = (stack(name).to(device).to(dtype) for name in ("rows", "pooled"))
        return TextBatch(rows, pooled, stack("marks").cpu(), words=words)

    def __add__(self, other: "TextBatch") -> "TextBatch":
        join = lambda name: torch.cat([getattr(self, name), getattr(other, name)])  # noqa: E731
        shows, words = torch.cat([self.shows, other.shows]), self.words + other.words
        here = None if self.here is None or other.here is None else join("here")
        return TextBatch(join("rows"), join("pooled"), join("marks"), shows, words, here)

    @property
    def shows(self) -> Tensor:
        """[batch] bool: whose picture shows the concept: its text holds the trigger, or it is such a text's negative."""
        holds = (self.marks > 0).any(1)
        return holds if self.guided is None else holds | self.guided

    def as_negative_of(self, conditional: "TextBatch") -> "TextBatch":
        """The same, remembering which of the pictures that it is taken away from show the concept."""
        return replace(self, guided=conditional.shows)


class PocketTextEncoder:
    """The pocket's two CLIPs, without a host."""

    def __init__(self, pocket, trigger: str, placeholder: Placeholder):
        self.pocket, self.triggers = pocket, {trigger: placeholder}

    @torch.no_grad()
    def encode(self, text: str) -> EncodedText:
        plain, spans = substitute(text, self.triggers)
        rows, pooled = self.pocket.encode_text([plain])
        offsets = self.pocket.tokenizer(plain, return_offsets_mapping=True).offset_mapping
        marks = torch.zeros(rows.shape[1], dtype=torch.int64)
        for i, mark in enumerate(mark_tokens(plain, spans, offsets)[: len(marks)]):
            if mark:
                marks[i] = 1 + mark[1] % T5_SLOT
        return EncodedText(rows[0], pooled[0], marks, text)
