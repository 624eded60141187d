"""Learned input embeddings of the trigger in the CLIPs (textual inversion, arXiv 2208.01618), as the paper's public code has them.

Unlike the layer-wise embeddings (eq. 7) they pass through the text encoders: the trigger's rows, those after it and the
pooled text all change. T5 reads the class word, as in the public code. Texts without the trigger stay as they were encoded.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .encoding import TextBatch
from .prompts import Placeholder, mark_tokens, substitute

Vectors = Mapping[str, Tensor]  # "clip_l", "clip_g" -> [tokens, width of that encoder]


class TokenEncoder(Protocol):
    """The CLIPs as modules that a gradient passes through; their weights are frozen."""

    def initial(self) -> dict[str, Tensor]:
        """Where learning starts: what the class word's tokens are, [tokens, width] for each encoder, float32, on the CPU."""
        ...

    def read(self, text: str, vectors: Vectors, strength: float) -> tuple[Tensor, Tensor]:
        """The CLIP part of a text's rows [rows, width of the CLIPs] and its pooled text.

        In the place of each of the trigger's tokens stands lerp(the class word's token, vector, strength).
        """
        ...


class TokenEmbeddings(nn.Module):
    """The input embeddings as parameters (float32), with the encoders that read them."""

    def __init__(self, vectors: Vectors, encoder: TokenEncoder):
        super().__init__()
        self.vectors = nn.ParameterDict({name: nn.Parameter(v.float().clone()) for name, v in sorted(vectors.items())})
        self._encoder = encoder

    def read(self, text: TextBatch, strength: float = 1.0) -> TextBatch:
        """The texts that hold the trigger encoded anew, with the vectors at a strength in the trigger's place.

        Raises ValueError where an encoded text does not say which text it is.
        """
        held = (text.marks > 0).any(1).tolist()
        if not any(held) or strength == 0:
            return text
        rows, pooled, read = list(text.rows), list(text.pooled), {}
        for i, words in enumerate(text.words):
            if not held[i]:
                continue
            if not words:
                raise ValueError("This encoded text does not say which text it is, so it cannot be read anew.")
            if words not in read:
                read[words] = self._encoder.read(words, self.vectors, strength)
            part, pooled[i] = (made.to(text.rows) for made in read[words])
            count, width = part.shape
            rows[i] = torch.cat([torch.cat([part, rows[i][:count, width:]], 1), rows[i][count:]])
        return replace(text, rows=torch.stack(rows), pooled=torch.stack(pooled))

    def snapshot(self) -> dict[str, Tensor]:
        return {name: v.detach().cpu().clone() for name, v in self.vectors.items()}


class PocketTokenEncoder:
    """The pocket's two CLIPs, without a host."""

    def __init__(self, pocket, trigger: str, placeholder: Placeholder, tokens: int = 1):
        self.pocket, self.triggers = pocket, {trigger: placeholder}
        self.trigger, self.tokens = trigger, tokens
        self.encoders = {"clip_l": pocket.text_encoder, "clip_g": pocket.text_encoder_2}

    def initial(self) -> dict[str, Tensor]:
        ids, marks = self._tokens(self.trigger)
        tables = {name: encoder.get_input_embeddings().weight.detach() for name, encoder in self.encoders.items()}
        return {name: start_of(table[ids], marks, self.tokens) for name, table in tables.items()}

    def read(self, text: str, vectors: Vectors, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        plain, _ = substitute(text, self.triggers)
        _, marks = self._tokens(text)
        handles = []

        def put(of_encoder: Tensor):
            def hook(module: nn.Module, args: tuple, held: Tensor) -> Tensor:
                return torch.stack([in_place(one, marks, of_encoder, strength) for one in held])

            return hook

        try:
            for name, encoder in self.encoders.items():
                handles.append(encoder.get_input_embeddings().register_forward_hook(put(vectors[name])))
            rows, pooled = self.pocket.encode_text([plain])
        finally:
            for handle in handles:
                handle.remove()
        return rows[0], pooled[0]

    def _tokens(self, text: str) -> tuple[list[int], list[int | None]]:
        """The ids of a text and which of the concept's tokens each is."""
        plain, spans = substitute(text, self.triggers)
        made = self.pocket.tokenizer(plain, return_offsets_mapping=True)
        marks = mark_tokens(plain, spans, made.offset_mapping)
        return made.input_ids, [mark[1] if mark else None for mark in marks]


def start_of(held: Tensor, marks: list[int | None], count: int) -> Tensor:
    """[count, width]: the mean of what stands in each token's places among `held` [tokens of the text, width]."""
    return torch.stack(
        [
            torch.stack([held[i] for i, mark in enumerate(marks) if mark is not None and mark % count == j]).mean(0)
            for j in range(count)
        ]
    ).float()


def in_place(held: Tensor, marks: list[int | None], vectors: Tensor, strength: float) -> Tensor:
    """`held` [rows, width] with lerp(held, vector, strength) where the marks say, of the vectors [count, width]; tokens beyond the
    last repeat from the first."""
    rows = list(held)
    for i, mark in enumerate(marks[: len(rows)]):
        if mark is not None:
            rows[i] = torch.lerp(held[i], vectors[mark % len(vectors)].to(held), strength)  # exact at 1
    return torch.stack(rows)
