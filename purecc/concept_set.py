"""A concept set: the pictures and texts that a concept is learnt from, encoded once, before training."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .encoding import EncodedText, TextBatch, TextEncoder, sketch_of_texts
from .fingerprint import bytes_of, digest_of, sketch_of
from .flow import LatentScaling
from .mask_weights import covered, outside_of
from .prompts import KINDS, Kind, Placeholder, SceneTexts, Texts, class_text, find_trigger, texts_of, words_of
from .templates import texts_of_template

NULL = ""


@dataclass(frozen=True)
class Example:
    """One picture: its texts and its latent as the autoencoder gave it (no model's scale or shift applied)."""

    texts: Texts
    latent: Tensor  # [channels, height, width]
    flipped: Tensor | None = None  # latent of the mirrored picture, where pictures may be flipped
    others: tuple[Texts, ...] = ()  # further texts, of templates
    source: str = ""  # digest of the picture's pixels and the autoencoder's fingerprint; empty: the latents alone tell

    @property
    def identity(self) -> bytes:
        """Tells its latents from others: by what they were made of, whose rounding does not count, or by their bits."""
        flipped = self.flipped is not None
        if self.source:
            return f"{self.source} {flipped}".encode()
        return bytes_of(self.latent) + (b"flipped" + bytes_of(self.flipped) if flipped else b"")

    @property
    def all_texts(self) -> tuple[Texts, ...]:
        return (self.texts, *self.others)


@dataclass(frozen=True)
class View:
    """An example as one forward sees it: one of its texts, one of its two orientations."""

    index: int
    texts: Texts
    latent: Tensor  # [channels, height, width]
    flipped: bool = False


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
    scenes: tuple[
        SceneTexts, ...
    ] = ()  # with other things beside the class, where they are asked for: `scenes.with_scenes`

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

    def with_texts_on(self, device: torch.device | str, dtype: torch.dtype) -> "ConceptSet":
        """The same with its encoded texts on a device, as a network reads them: a batch then takes them from there. Their marks stay on the CPU."""
        there = lambda text: replace(text, rows=text.rows.to(device, dtype), pooled=text.pooled.to(device, dtype))  # noqa: E731
        return replace(self, encoded={name: there(text) for name, text in self.encoded.items()})

    def null(self, count: int, device: torch.device | str = "cpu") -> TextBatch:
        return self.repeated(NULL, count, device)

    def view(self, index: int, text: int = 0, flipped: bool = False) -> View:
        """Example `index` with its text number `text`; mirrored with `flipped`, which needs a set that may be flipped."""
        example = self.examples[index]
        return View(index, example.all_texts[text], example.flipped if flipped else example.latent, flipped)

    def require_readable(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError where texts or latents are of another width than a transformer of this configuration reads."""
        text = next(iter(self.encoded.values()))
        widths = text.rows.shape[-1], len(text.pooled)
        expected = config["joint_attention_dim"], config["pooled_projection_dim"]
        if widths != expected:
            raise ValueError(
                f"This model reads texts of width {expected[0]} and {expected[1]}; those of Concept Set's CLIP are {widths[0]} and "
                f"{widths[1]} wide, as other types have them. Connect the text encoders that belong to this MODEL."
            )
        channels = {example.latent.shape[0] for example in self.examples}
        if channels != {config["in_channels"]}:
            raise ValueError(
                f"This model reads latents of {config['in_channels']} channels; those of Concept Set's VAE have {channels.pop()}. "
                "Connect the VAE that belongs to this MODEL."
            )

    def spread(self, scaling: LatentScaling) -> float:
        """The root mean square of the latents as the model reads them: about 1 where they are of its own autoencoder."""
        found = [scaling.to_model(example.latent.float()).square().mean() for example in self.examples]
        return float(torch.stack(found).mean().sqrt())

    def loss_weights(self, indices: list[int], background: float, flipped: Sequence[bool] = ()) -> Tensor:
        """[batch, 1, height, width] on the latents' grid: 1 inside the masks, `background` outside, brought to mean 1.

        `flipped`: for each of `indices`, whether its picture, and so its mask, is mirrored; empty: none is. Raises ValueError where pictures have no masks, or where everything weighs nothing.
        """
        if not self.masked:
            raise ValueError(
                f"The loss is to weigh {background:g} outside the masks, but there are {len(self.masks)} masks for "
                f"{len(self.examples)} pictures. Connect a mask for each, or set the background's weight to 1."
            )
        found = []
        for i, share in zip(indices, self._shares(indices, flipped), strict=True):
            weights = background + (1 - background) * share
            if not weights.mean() > 0:
                raise ValueError(
                    f"The mask of picture {i + 1} is empty and the background weighs 0: nothing of it would be learnt. "
                    "Paint the concept in the mask, or raise the background's weight."
                )
            found.append(weights / weights.mean())
        return torch.stack(found)

    def outside_weights(self, indices: list[int], flipped: Sequence[bool] = ()) -> Tensor:
        """[batch, 1, height, width] as `loss_weights`, the other way round: 0 on the masks and their rims; 0 all over where all is inside."""
        return outside_of(self._shares(indices, flipped))

    def _shares(self, indices: list[int], flipped: Sequence[bool]) -> Tensor:
        """How much of each latent's pixel is inside its mask, [batch, 1, height, width]."""
        found = []
        for i, mirrored in zip(indices, flipped or [False] * len(indices), strict=True):
            mask = self.masks[i].flip(1) if mirrored else self.masks[i]  # [height, width]
            found.append(adaptive_avg_pool2d(mask.float()[None], self.examples[i].latent.shape[1:]))
        return torch.stack(found)

    @property
    def concept_share(self) -> float:
        """How much of the pictures is on the masks and their rims, 0..1."""
        every = range(len(self.examples))  # one by one: they may be of several sizes
        return sum(float(covered(self._shares([i], ())).mean()) for i in every) / len(every)

    @property
    def masked(self) -> bool:
        """Whether there is a mask for each picture."""
        return len(self.masks) == len(self.examples)

    @property
    def class_text(self) -> str | None:
        """ "a dog", or None for a style."""
        return class_text(self.class_word, self.kind)

    @property
    def mask_fingerprint(self) -> str:
        return hashlib.sha256(b"".join(bytes_of(mask) for mask in self.masks)).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any text, and with what texts and pictures were encoded from and by; the scenes' own are left aside."""
        digest = hashlib.sha256(f"{self.trigger}|{self.class_word}|{self.kind}|{self.tokens}".encode())
        for example in self.examples:
            digest.update(repr(example.texts).encode())
            digest.update(example.identity)
            if example.others:
                digest.update(repr(example.others).encode())
        digest.update(self._encodings(self._own))
        return digest.hexdigest()[:16]

    @cached_property
    def sketch(self) -> list[float]:
        """What latents and texts are, the scenes' aside: see `fingerprint.differ_by_rounding`. It guards what `fingerprint` cannot tell, as encoders that other code changed."""
        latents = [t for e in self.examples for t in (e.latent, e.flipped) if t is not None]
        return sketch_of(latents) + sketch_of_texts(self.encoded[text] for text in sorted(self._own))

    @property
    def _own(self) -> set[str]:
        """The encoded texts but for those of scenes."""
        of_pictures = {text for example in self.examples for texts in example.all_texts for text in astuple(texts)}
        return (of_pictures | {NULL, self.class_word, self.class_text}) & set(self.encoded)

    @cached_property
    def scene_fingerprint(self) -> str:
        """As `fingerprint`, of the scenes' texts."""
        asked = {text for scene in self.scenes for text in astuple(scene)}
        return hashlib.sha256(repr(self.scenes).encode() + self._encodings(asked)).hexdigest()[:16]

    def _encodings(self, texts: set[str]) -> bytes:
        return b"".join(text.encode() + self.encoded[text].identity for text in sorted(texts))


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
    autoencoder: str = "",
    masks: list[Tensor] | None = None,
    templates: tuple[str, ...] = (),
    flip: bool = False,
    stated: list[Mapping[str, str]] | None = None,
) -> ConceptSet:
    """Encodes pictures ([height, width, 3] in 0..1) and the texts made of their captions (`prompts.texts_of`).

    With `templates`, each picture has the texts of all of them (`templates.texts_of_template`) and captions are left
    aside. With `flip`, each picture is encoded mirrored too. `autoencoder`: which one `encode_picture` has; the same pictures are then the same set
    even where it rounds otherwise. `stated`: of each picture, the texts ("base", "target") that stand in
    place of those made of its caption.

    Raises ValueError, before anything is encoded, for no pictures, a caption too many or too few, an empty trigger or
    class word, a caption that holds neither, or a template without its place for the concept.
    """
    trigger, class_word = words_of(trigger, class_word)
    if not pictures:
        raise ValueError("There are no pictures. Connect 3 to 5 of the concept, or choose a folder that holds them.")
    if len(captions) != len(pictures):
        raise ValueError(f"Pictures: {len(pictures)}, captions: {len(captions)}. One line for each is needed.")
    if kind not in KINDS:
        raise ValueError(f'The kind is "{kind}"; it must be one of {", ".join(KINDS)}.')
    if templates:
        every = [texts_of_template(template, trigger, class_word, kind) for template in templates]
        # each begins at another, so that what reads the first text alone (probes, previews) has seen several
        of_pictures = [[*every[i % len(every) :], *every[: i % len(every)]] for i in range(len(pictures))]
    else:
        made = [texts_of(caption, trigger, class_word, kind) for caption in captions]
        of_pictures = [[replace(t, **own)] for t, own in zip(made, stated or [{}] * len(made), strict=True)]
    texts = [t for of_picture in of_pictures for t in of_picture]
    for t in texts:
        if find_trigger(trigger, t.base):
            raise ValueError(
                f'The text of a picture without the concept, "{t.base}", holds the trigger "{trigger}". Choose another trigger, or write the '
                "caption without it."
            )
    encoder = text_encoder(trigger, Placeholder(1, " ".join([class_word] * tokens)))
    wanted = {NULL, class_word, class_text(class_word, kind) or NULL}
    wanted |= {text for t in texts for text in astuple(t)}
    encoded = {text: encoder.encode(text) for text in sorted(wanted)}
    for t in texts:
        for text in (t.complete, t.target):
            if not encoded[text].marks.any():
                raise ValueError(f'The trigger was cut off: "{text}" is too long for the text encoders.')
    examples = tuple(
        Example(
            own[0],
            encode_picture(picture),
            encode_picture(picture.flip(1)) if flip else None,
            tuple(own[1:]),
            digest_of(autoencoder, picture) if autoencoder else "",
        )
        for own, picture in zip(of_pictures, pictures, strict=True)
    )
    return ConceptSet(trigger, class_word, kind, tokens, examples, encoded, tuple(pictures), tuple(masks or ()))
