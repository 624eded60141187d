"""The pocket's art: what the base has seen, what judges it, and what is kept for development and for the bench."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from purecc.pocket.art import Sprite, sprites, sprites_by_class
from purecc.pocket.backgrounds import draw_background
from purecc.pocket.model import new_tokenizer
from purecc.pocket.scenes import Scene, describe, place_thing, random_caption, random_scene
from purecc.pocket.specification import BACKGROUNDS, CLASSES, PLACES, RESOLUTION, SIZES, SPLITS, STYLES, TEXT_ROWS

CONCEPTS = (
    "development",
    "test",
    "confirmation",
    "second confirmation",
    "third confirmation",
)  # splits that concepts are learnt from
ONE_VENDOR = set(combinations(CONCEPTS[1:4], 2))  # other things by one artist

# Unlikeness of two drawings: below the first they are one drawing, below the second a person takes them for variants of
# one. Red apples of any two vendors are that near; a *concept* must be further from everything that the base has seen.
SAME, ALIKE = 0.10, 0.15


@pytest.mark.parametrize("split", SPLITS)
def test_an_index_holds_what_the_split_allows(split: str) -> None:
    allowed = SPLITS[split]
    found = sprites(split)
    for sprite in found:
        assert sprite.vendor in allowed.vendors
        assert sprite.drawing in allowed.names[sprite.class_word]
    keys = [(s.vendor, s.drawing) for s in found]
    assert len(set(keys)) == len(keys)
    assert {s.vendor for s in found} == set(allowed.vendors)
    assert {s.class_word for s in found} == set(allowed.names) <= set(CLASSES)


@pytest.mark.parametrize("split", SPLITS)
def test_every_drawing_is_drawn(split: str) -> None:
    for sprite in sprites(split):
        alpha = np.asarray(sprite.image.getchannel("A"))
        assert (alpha > 128).mean() > 0.08, f"{sprite.vendor}/{sprite.drawing} is next to empty"


def test_no_vendor_is_in_two_splits() -> None:
    for a, b in set(combinations(SPLITS, 2)) - ONE_VENDOR:
        assert not set(SPLITS[a].vendors) & set(SPLITS[b].vendors), f"{a} and {b}"
        assert not {s.vendor for s in sprites(a)} & {s.vendor for s in sprites(b)}, f"{a} and {b}"


def test_splits_of_concepts_share_no_drawings_name() -> None:
    names = {split: {s.drawing for s in sprites(split)} for split in CONCEPTS}
    written = {split: {name for group in SPLITS[split].names.values() for name in group} for split in CONCEPTS}
    for a, b in combinations(CONCEPTS[:4], 2):  # the last is another artist's, whose crab is another drawing
        assert not names[a] & names[b] and not written[a] & written[b]


def pixels(sprite: Sprite, mirrored: bool = False) -> np.ndarray:
    """A drawing at a quarter of its size, colours times alpha, [24, 24, 4] in 0..1."""
    small = np.asarray(sprite.image.convert("RGBa").resize((24, 24), Image.BOX), dtype=np.float32) / 255
    return small[:, ::-1] if mirrored else small


def unlikeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean difference over the area that either drawing covers, for all pairs: 0 is the same, 1 black on white."""
    difference = np.abs(first[:, None] - second[None]).mean(-1).sum((-1, -2))
    return difference / np.maximum(first[:, None, ..., 3], second[None, ..., 3]).sum((-1, -2))


def nearest(split: str, other: str) -> list[tuple[float, str, str]]:
    """Pairs of drawings from two splits, either of them mirrored or not, the most alike first."""
    first = np.stack([pixels(s) for s in sprites(split)])
    ways = [np.stack([pixels(s, mirrored) for s in sprites(other)]) for mirrored in (False, True)]
    table = np.minimum(*(unlikeness(first, way) for way in ways))
    name = lambda s: f"{s.vendor}/{s.drawing}"  # noqa: E731
    pairs = [
        (float(table[i, j]), name(a), name(b))
        for (i, a), (j, b) in product(enumerate(sprites(split)), enumerate(sprites(other)))
    ]
    return sorted(pairs)


def test_the_measure_knows_a_copy_that_was_mirrored_tinted_or_scaled() -> None:
    for sprite in sprites("development"):
        small = sprite.image.resize((94, 94)).crop((-1, -1, 95, 95))
        tinted = Image.eval(sprite.image, lambda value: value * 19 // 20)
        for changed in (small, tinted):
            copy = Sprite(sprite.class_word, "", "", changed)
            assert unlikeness(pixels(copy)[None], pixels(sprite)[None]) < SAME
        assert unlikeness(pixels(sprite, True)[:, ::-1][None], pixels(sprite)[None]) == 0


@pytest.mark.parametrize(("split", "other"), list(combinations(SPLITS, 2)))
def test_no_drawing_of_one_split_nearly_equals_one_of_another(split: str, other: str) -> None:
    pairs = nearest(split, other)
    print(f"\nnearest of {split} and {other}:", *(f"{d:.3f} {a} {b}" for d, a, b in pairs[:5]), sep="\n    ")
    assert pairs[0][0] >= SAME, f"one drawing in two splits: {pairs[0]}"
    if other in CONCEPTS:
        alike = {(a, b) for distance, a, b in pairs if distance < ALIKE}
        assert not alike, f"a concept looks like what the base or another split has: {alike}"


def test_the_base_is_wide_enough() -> None:
    assert len(CLASSES) >= 30 and len(set(CLASSES)) == len(CLASSES)
    assert len(BACKGROUNDS) >= 10
    for word in CLASSES:
        assert len(sprites_by_class("base")[word]) >= 3, word
        assert sprites_by_class("judges")[word], word


def test_every_background_is_drawn_and_its_seed_varies_it() -> None:
    drawn = {}
    for name in BACKGROUNDS:
        one, again, other = (np.asarray(draw_background(name, np.random.default_rng(seed))) for seed in (1, 1, 2))
        assert one.shape == (RESOLUTION, RESOLUTION, 3)
        assert np.array_equal(one, again) and not np.array_equal(one, other)
        drawn[name] = one.astype(float)
    for a, b in combinations(drawn, 2):
        assert np.abs(drawn[a] - drawn[b]).mean() > 5, f"{a} looks like {b}"


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = np.random.default_rng(0)
    return [random_caption(random_scene(rng), rng) for _ in range(4000)]


def test_captions_fit_and_hold_no_unknown_word(captions: list[str]) -> None:
    tokenizer = new_tokenizer()
    for ids in tokenizer(sorted(set(captions))).input_ids:
        assert len(ids) <= TEXT_ROWS
        assert tokenizer.unk_token_id not in ids


def test_the_longest_caption_fits_with_four_tokens_for_a_trigger() -> None:
    """Every phrase of the grammar at its longest, in one picture of one object."""
    rng, tokenizer = np.random.default_rng(0), new_tokenizer()
    sprite = sprites("base")[0]
    for size, place, background, style in product(SIZES, PLACES, BACKGROUNDS, ("", *STYLES)):
        caption = describe(Scene((place_thing(sprite, size, place, rng),), background, 0, style))
        ids = tokenizer(caption.replace("dog", "dog dog dog dog dog")).input_ids
        assert len(ids) <= TEXT_ROWS and tokenizer.unk_token_id not in ids, caption


def test_a_tenth_of_the_captions_is_empty_and_all_words_occur(captions: list[str]) -> None:
    assert 0.08 < captions.count("") / len(captions) < 0.12
    words = {word for caption in captions for word in caption.split()}
    assert set(CLASSES) <= words and set(STYLES) <= words and {"small", "big"} <= words
    for phrase in (*BACKGROUNDS.values(), *PLACES):
        assert any(phrase in caption for caption in captions), phrase
    assert any(f"a {word}" in captions for word in CLASSES), "no bare class word"


def test_the_random_scenes_of_the_base_use_the_bases_drawings_alone() -> None:
    rng, own = np.random.default_rng(1), set(SPLITS["base"].vendors)
    scenes = [random_scene(rng) for _ in range(500)]
    assert {thing.sprite.vendor for scene in scenes for thing in scene.things} == own
    assert all(thing.sprite.class_word == thing.class_word for scene in scenes for thing in scene.things)
