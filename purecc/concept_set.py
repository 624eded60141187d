"""A concept set: the pictures and texts that a concept is learnt from, encoded once, before training."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .encoding import EncodedText, TextBatch, TextEncoder
from .prompts import Kind, Placeholder, Texts, class_text, texts_of

NULL = ""


@dataclass(frozen=True)
class Example:
    """One picture: its texts and its latent as the autoencoder gave it (no model's scale or shift applied)."""

    texts: Texts
    latent: Tensor  # [channels, height, width]


@dataclass(frozen=True)
class ConceptSet:
    """What both stages train on. Latents may differ in size; a batch is made of pictures of one size."""

    trigger: str
    class_word: str
    kind: Kind
    tokens: int  # embeddings for the trigger in each block
    examples: tuple[Example, ...]
    encoded: dict[str, EncodedText]  # every text of the examples, the null text, the class word and the class text
    pictures: tuple[Tensor, ...] = field(default=(), repr=False)  # [height, width, 3] in 0..1, for reports
    masks: tuple[Tensor, ...] = field(default=(), repr=False)  # [height, width] in 0..1, or none

    def texts(self, which: str, indices: list[int]) -> list[EncodedText]:
        """The encoded texts of some examples; `which` is "complete", "base" or "target"."""
        return [self.encoded[getattr(self.examples[i].texts, which)] for i in indices]

    def batch(self, which: str, indices: list[int], device: torch.device | str = "cpu") -> TextBatch:
        return TextBatch.of(self.texts(which, indices), device)

    def repeated(self, text: str, count: int, device: torch.device | str = "cpu") -> TextBatch:
        """One encoded text for all samples. Raises ValueError where it was not encoded with the set."""
        if text not in self.encoded:
            raise ValueError(f'The concept set does not hold the text "{text}". Make it again with Concept Set.')
        return TextBatch.of([self.encoded[text]] * count, device)

    def null(self, count: int, device: torch.device | str = "cpu") -> TextBatch:
        return self.repeated(NULL, count, device)

    def loss_weights(self, indices: list[int], background: float) -> Tensor:
        """[batch, 1, height, width] on the latents' grid: 1 inside the masks, `background` outside, brought to mean 1.

        Raises ValueError where pictures have no masks, or where everything weighs nothing.
        """
        if len(self.masks) != len(self.examples):
            raise ValueError(
                f"The loss is to weigh {background:g} outside the masks, but there are {len(self.masks)} masks for "
                f"{len(self.examples)} pictures. Connect a mask for each, or set the background's weight to 1."
            )
        found = []
        for i in indices:
            share = adaptive_avg_pool2d(self.masks[i].float()[None], self.examples[i].latent.shape[1:])
            weights = background + (1 - background) * share
            if not weights.mean() > 0:
                raise ValueError(
                    f"The mask of picture {i + 1} is empty and the background weighs 0: nothing of it would be learnt. "
                    "Paint the concept in the mask, or raise the background's weight."
                )
            found.append(weights / weights.mean())
        return torch.stack(found)

    @property
    def class_text(self) -> str | None:
        """ "a dog", or None for a style."""
        return class_text(self.class_word, self.kind)

    @property
    def mask_fingerprint(self) -> str:
        return hashlib.sha256(b"".join(_bytes(mask) for mask in self.masks)).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Changes with any text, embedding of a text, or latent."""
        digest = hashlib.sha256(f"{self.trigger}|{self.class_word}|{self.kind}|{self.tokens}".encode())
        for example in self.examples:
            digest.update(repr(example.texts).encode())
            digest.update(_bytes(example.latent))
        for text, encoded in sorted(self.encoded.items()):
            digest.update(text.encode())
            for tensor in (encoded.rows, encoded.pooled, encoded.marks):
                digest.update(_bytes(tensor))
        return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()


def build_concept_set(
    pictures: list[Tensor],
    captions: list[str],
    *,
    trigger: str,
    class_word: str,
    kind: Kind,
    tokens: int,
    encode_picture: Callable[[Tensor], Tensor],
    text_encoder: Callable[[str, Placeholder], TextEncoder],
    masks: list[Tensor] | None = None,
) -> ConceptSet:
    """Encodes pictures ([height, width, 3] in 0..1) and the texts made of their captions (`prompts.texts_of`).

    Raises ValueError, before anything is encoded, for no pictures, a caption too many or too few, an empty trigger or
    class word, or a caption that holds neither.
    """
    trigger, class_word = " ".join(trigger.split()), " ".join(class_word.split())
    if not pictures:
        raise ValueError("There are no pictures. Connect 3 to 5 of the concept, or choose a folder that holds them.")
    if len(captions) != len(pictures):
        raise ValueError(
            f"There are {len(pictures)} pictures but {len(captions)} captions; one line for each is needed."
        )
    if not trigger or not class_word:
        raise ValueError(f'The trigger is "{trigger}" and the class word "{class_word}"; neither may be empty.')
    if trigger.lower() == class_word.lower():
        raise ValueError(
            f'Trigger and class word are both "{trigger}"; choose a trigger that prompts do not use, as ohwx.'
        )
    texts = [texts_of(caption, trigger, class_word, kind) for caption in captions]
    encoder = text_encoder(trigger, Placeholder(1, " ".join([class_word] * tokens)))
    wanted = {NULL, class_word, class_text(class_word, kind) or NULL}
    wanted |= {text for t in texts for text in (t.complete, t.base, t.target)}
    encoded = {text: encoder.encode(text) for text in sorted(wanted)}
    for t in texts:
        for text in (t.complete, t.target):
            if not encoded[text].marks.any():
                raise ValueError(f'The trigger was cut off: "{text}" is too long for the text encoders.')
    examples = tuple(Example(t, encode_picture(picture)) for t, picture in zip(texts, pictures, strict=True))
    return ConceptSet(trigger, class_word, kind, tokens, examples, encoded, tuple(pictures), tuple(masks or ()))
