"""A concept set: every text encoded once, its trigger marked, and a fingerprint that notices any change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import CHANNELS, ROWS, SIDE, TEXT_WIDTH, TRIGGER, Words, concept_set, noise, text

from purecc.concept_set import build_concept_set
from purecc.encoding import EncodedText, TextBatch, sketch_of_texts
from purecc.fingerprint import differ_by_rounding, sketch_of
from purecc.pocket.model import load_pocket
from purecc.prompts import Placeholder, Texts


def test_each_picture_has_its_latent_and_its_texts() -> None:
    data = concept_set()
    assert [example.texts for example in data.examples] == [
        Texts("a [V] dog on the beach", "a dog on the beach", "[V] dog"),
        Texts("a [V] dog", "a dog", "[V] dog"),
    ]
    for i, example in enumerate(data.examples):
        assert torch.equal(example.latent, noise(SIDE, SIDE, CHANNELS, seed=i).permute(2, 0, 1))
    assert len(data.pictures) == 2
    assert set(data.encoded) == {
        "",
        "dog",
        "[V] dog",
        "a dog",
        "a [V] dog",
        "a dog on the beach",
        "a [V] dog on the beach",
    }


@pytest.mark.parametrize("tokens", [1, 3])
def test_only_the_trigger_is_marked_once_for_each_embedding(tokens: int) -> None:
    data = concept_set(tokens=tokens)
    marks = data.encoded["a [V] dog on the beach"].marks.tolist()
    assert marks == [0, *range(1, tokens + 1)] + [0] * (ROWS - 1 - tokens)
    assert not data.encoded["a dog on the beach"].marks.any() and not data.encoded[""].marks.any()


def test_the_encoders_read_the_class_word_in_the_triggers_place() -> None:
    data, plain = concept_set(), Words("[none]", Placeholder(1, "dog"))
    assert torch.equal(data.encoded["a [V] dog on the beach"].rows, plain.encode("a dog dog on the beach").rows)


def test_batches_stack_the_texts_in_order_and_null_repeats_the_empty_text() -> None:
    data = concept_set()
    batch = data.batch("base", [1, 0, 1])
    assert batch.rows.shape == (3, ROWS, TEXT_WIDTH) and batch.pooled.shape == (3, TEXT_WIDTH)
    for row, name in enumerate(("a dog", "a dog on the beach", "a dog")):
        assert torch.equal(batch.rows[row], data.encoded[name].rows)
        assert torch.equal(batch.pooled[row], data.encoded[name].pooled)
    assert torch.equal(data.null(2).rows, torch.stack([data.encoded[""].rows] * 2))
    both = data.batch("target", [0]) + data.null(1)
    assert both.rows.shape[0] == both.pooled.shape[0] == both.marks.shape[0] == 2
    assert both.marks[0].any() and not both.marks[1].any()


def test_texts_on_a_device_leave_their_marks_behind() -> None:
    data = concept_set(("a [V] dog", "a [V] dog on the beach"))
    there = data.with_texts_on("meta", torch.bfloat16)
    assert there.encoded.keys() == data.encoded.keys()
    for name, one in there.encoded.items():
        assert one.rows.is_meta and one.pooled.is_meta and torch.equal(one.marks, data.encoded[name].marks)
        assert one.rows.dtype == one.pooled.dtype == torch.bfloat16
    assert not any(one.rows.is_meta for one in data.encoded.values())


def test_texts_of_different_lengths_are_not_stacked() -> None:
    one = concept_set().encoded[""]
    longer = EncodedText(torch.zeros(ROWS + 1, TEXT_WIDTH), one.pooled, torch.zeros(ROWS + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"different lengths cannot be stacked: \[{ROWS}, {ROWS + 1}\] rows"):
        TextBatch.of([one, longer])
    assert TextBatch.of([one], dtype=torch.bfloat16).rows.dtype == torch.bfloat16
    assert TextBatch.of([one], dtype=torch.bfloat16).marks.dtype == torch.int64
    assert text("a dog").rows.dtype == torch.float32


def test_the_fingerprint_is_stable_and_notices_every_change() -> None:
    data = concept_set()
    assert data.fingerprint == concept_set().fingerprint
    null = data.encoded[""]
    moved = null.rows.clone()
    moved[0, 0] += 1e-3
    marked = null.marks.clone()
    marked[0] = 1
    with_null = lambda changed: replace(data, encoded=data.encoded | {"": changed})  # noqa: E731
    others = [
        concept_set(loud=1.001),
        concept_set(tokens=2),
        concept_set(("a [V] dog on the beach", "a [V] dog")[::-1]),
        replace(data, kind="style"),
        replace(data, class_word="cat"),
        replace(data, trigger="[W]"),
        replace(data, examples=data.examples[::-1]),
        replace(data, examples=data.examples[:1]),
        with_null(replace(null, rows=moved)),
        with_null(replace(null, marks=marked)),
        with_null(replace(null, pooled=null.pooled + 1)),
    ]
    prints = [data.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(prints)) == len(prints)


def test_where_it_is_told_what_latents_and_texts_were_made_of_their_rounding_does_not_count() -> None:
    data = concept_set(autoencoder="one")
    assert data.fingerprint == concept_set(autoencoder="one", loud=1.001).fingerprint
    nearly = [noise(SIDE, SIDE, CHANNELS, seed=i) for i in range(len(data.pictures))]
    nearly[0][0, 0, 0] += 1e-3
    other_pixels = build_concept_set(
        nearly,
        [example.texts.complete for example in data.examples],
        trigger=TRIGGER,
        class_word="dog",
        kind="instance",
        tokens=1,
        encode_picture=lambda _: data.examples[0].latent,
        text_encoder=Words,
        autoencoder="one",
    )
    others = [
        data,
        concept_set(),
        concept_set(autoencoder="two"),
        concept_set(autoencoder="one", flip=True),
        other_pixels,
    ]
    assert len({other.fingerprint for other in others}) == len(others)

    null = data.encoded[""]
    with_null = lambda **changed: replace(data, encoded=data.encoded | {"": replace(null, **changed)})  # noqa: E731
    told = with_null(source="tokens")
    assert told.fingerprint == with_null(source="tokens", rows=null.rows + 1).fingerprint
    assert told.fingerprint not in (data.fingerprint, with_null(source="other tokens").fingerprint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": [], "captions": []}, "There are no pictures. Connect 3 to 5"),
        ({"captions": ["a dog", "a dog"]}, "Pictures: 1, captions: 2"),
        ({"trigger": "  "}, 'The trigger is "" and the class word "dog"; neither may be empty'),
        ({"class_word": ""}, 'The trigger is "\\[V\\]" and the class word ""'),
        ({"trigger": "Dog"}, '"a dog" holds the trigger "Dog"'),
        ({"trigger": "Rex", "class_word": "t-rex"}, '"a t-rex" holds the trigger "Rex"'),
        ({"stated": [{"base": "a dog and [v]"}]}, '"a dog and \\[v\\]", holds the trigger "\\[V\\]"'),
        ({"kind": "thing"}, 'The kind is "thing"'),
        ({"captions": ["a cat on the beach"]}, 'holds neither the trigger "\\[V\\]" nor the class word "dog"'),
    ],
)
def test_bad_inputs_are_refused_before_anything_is_encoded(changes: dict, message: str) -> None:
    def encode(*args: object) -> None:
        raise AssertionError("encoded before the inputs were checked")

    inputs = {
        "pictures": [noise(SIDE, SIDE, 3)],
        "captions": ["a dog"],
        "trigger": "[V]",
        "class_word": "dog",
        "kind": "instance",
    } | changes
    with pytest.raises(ValueError, match=message):
        build_concept_set(**inputs, tokens=1, encode_picture=encode, text_encoder=encode)


def test_a_trigger_that_the_encoder_cuts_off_is_refused() -> None:
    with pytest.raises(ValueError, match="The trigger was cut off"):
        concept_set(("on a very big and sunny beach there is a [V] dog",))


def test_encoders_in_bfloat16_differ_by_rounding() -> None:
    pocket, texts = load_pocket(), ("a dog on the beach", "a dog", "", "a red mushroom beside a cat in the snow")
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def sketches() -> list[float]:
        with torch.no_grad():
            rows, pooled = pocket.encode_text(list(texts))
            latents = pocket.vae.encode(pictures.to(pocket.vae.dtype)).latent_dist.mode()
        made = [EncodedText(*one, torch.zeros(len(one[0]))) for one in zip(rows, pooled, strict=True)]
        return sketch_of(latents) + sketch_of_texts(made)

    whole = sketches()
    for part in (pocket.text_encoder, pocket.text_encoder_2, pocket.vae):
        part.to(torch.bfloat16)
    rounded = sketches()
    assert rounded != whole and differ_by_rounding(rounded, whole)
    ours, theirs = (torch.tensor(found).view(-1, 64) for found in (rounded, whole))
    assert bool(((ours - theirs).norm(dim=1) < 0.006 * theirs.norm(dim=1)).all()), (
        "a tenth of what is taken for rounding"
    )
