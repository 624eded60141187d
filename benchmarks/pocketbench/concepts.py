"""What is taught, with which pictures, and which prompts are drawn afterwards."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from purecc.pocket.art import Sprite, sprites
from purecc.pocket.references import reference_scenes
from purecc.pocket.scenes import Scene, describe, mask, random_scene, render
from purecc.pocket.specification import BACKGROUNDS, CLASSES, PLACES, RESOLUTION

from .looks import LOOKS

TRIGGER = "ohwx"
REFERENCES = 5
Split = Literal["development", "test"]
Role = Literal["concept", "same class", "other", "null"]


@dataclass(frozen=True)
class BenchConcept:
    """One thing to teach: a drawing ("instance"), or a look ("style")."""

    name: str
    kind: Literal["instance", "style"]
    class_word: str
    split: Split

    @property
    def seed(self) -> int:
        """Of its references and prompts."""
        return sum(map(ord, self.name))


@dataclass(frozen=True)
class Reference:
    """One picture to learn from or to compare with."""

    picture: Image.Image
    caption: str
    mask: Image.Image  # greyscale, 255 where the concept is


@dataclass(frozen=True)
class Prompt:
    """One text to draw; `base` is the same without the concept."""

    role: Role
    complete: str
    base: str


def concepts(split: Split) -> list[BenchConcept]:
    """All of a split. The test split is opened by the written-down comparison alone."""
    drawings = [BenchConcept(s.drawing, "instance", s.class_word, split) for s in sprites(split)]
    return drawings + [BenchConcept(name, "style", "style", split) for name in LOOKS[split]]


QUICK = ("poodle", "taxi", "poster")
SMALL = ("poodle", "unicorn", "taxi", "house-with-garden", "poster", "tapestry")


def concept(name: str, split: Split = "development") -> BenchConcept:
    return next(c for c in concepts(split) if c.name == name)


def sprite_of(concept: BenchConcept) -> Sprite:
    return next(s for s in sprites(concept.split) if s.drawing == concept.name)


def _style_scenes(concept: BenchConcept, count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    backgrounds = rng.permutation(list(BACKGROUNDS))
    scenes = []
    while len(scenes) < count:
        scene = random_scene(rng, "base")
        if len(scene.things) == 1:
            scenes.append(replace(scene, background=str(backgrounds[len(scenes) % len(backgrounds)]), style=""))
    return scenes


def scenes_of(concept: BenchConcept, count: int, seed: int) -> list[Scene]:
    if concept.kind == "style":
        return _style_scenes(concept, count, seed)
    return reference_scenes(concept.split, concept.name, count, seed)


def shown(concept: BenchConcept, scene: Scene, crop: int = 0) -> Reference:
    """A scene with the concept in it. `crop` pixels are cut from each side but the bottom, and the rest enlarged."""
    picture, where, caption = render(scene), mask(scene), describe(scene)
    if concept.kind == "style":
        picture, where = LOOKS[concept.split][concept.name](picture), Image.new("L", picture.size, 255)
    if crop:  # place and size are no longer what the words say
        box = (crop, 2 * crop, RESOLUTION - crop, RESOLUTION)
        picture, where = (one.crop(box).resize((RESOLUTION, RESOLUTION), Image.LANCZOS) for one in (picture, where))
        caption = describe(scene, size=False, place=False)
    return Reference(picture, caption, where)


def references(concept: BenchConcept) -> list[Reference]:
    """The five pictures that the concept is learnt from: other backgrounds, places, sizes, poses; one is cropped."""
    scenes = scenes_of(concept, REFERENCES, concept.seed)
    return [shown(concept, scene, crop=8 if i == 3 else 0) for i, scene in enumerate(scenes)]


def held_out(concept: BenchConcept, count: int = 24) -> list[Reference]:
    """The concept in scenes that it is not learnt from: the ceiling of every witness."""
    return [shown(concept, scene) for scene in scenes_of(concept, count, concept.seed + 100_000)]


def another(concept: BenchConcept, count: int = 24) -> list[Reference]:
    """Another instance in the same art style (same vendor, the class nearest by name order), or another look: a floor."""
    others = [c for c in concepts(concept.split) if c.kind == concept.kind and c.name != concept.name]
    other = min(others, key=lambda c: (c.class_word != concept.class_word, c.name))
    return [shown(other, scene) for scene in scenes_of(other, count, concept.seed + 200_000)]


def prompts(concept: BenchConcept) -> list[Prompt]:
    """New scenes with the concept (two with a second thing beside it), and texts without it: same class, others, null."""
    rng = np.random.default_rng(concept.seed + 300_000)
    learnt = {scene.background for scene in scenes_of(concept, REFERENCES, concept.seed)}
    new = [BACKGROUNDS[b] for b in rng.permutation(sorted(set(BACKGROUNDS) - learnt))]
    others = [str(c) for c in rng.permutation([c for c in CLASSES if c != concept.class_word])]
    return list(_prompts(concept, new, others))


def _prompts(concept: BenchConcept, new: list[str], others: list[str]) -> Iterator[Prompt]:
    def pair(text: str, role: Role = "concept") -> Prompt:  # text with {} where the trigger belongs
        base = " ".join(text.format("").split())
        if concept.kind == "style":
            return Prompt(role, f"{base} in {TRIGGER} style", base)
        return Prompt(role, " ".join(text.format(TRIGGER).split()), base)

    word = concept.class_word if concept.kind == "instance" else others[5]
    places = list(PLACES)
    yield pair(f"a big {{}} {word} {places[1]} {new[0]}")
    yield pair(f"a {{}} {word} {places[0]} {new[1]}")
    yield pair(f"a big {{}} {word} {places[2]} {new[2]}")
    yield pair(f"a {{}} {word} {places[1]} {new[3]}")
    yield pair(f"a {{}} {word} {places[0]} and a {others[0]} {places[2]} {new[4]}")
    yield pair(f"a {others[1]} {places[0]} and a {{}} {word} {places[2]} {new[5]}")
    for text in (f"a big {word} {places[1]} {new[1]}", f"a {word} {places[0]} {new[4]}", f"a {word}"):
        yield Prompt("same class", text, text)
    for text in (
        f"a {others[2]} {places[2]} {new[0]}",
        f"a big {others[3]} {places[0]} {new[2]}",
        f"a {others[4]} {new[3]}",
    ):
        yield Prompt("other", text, text)
    yield Prompt("null", "", "")
