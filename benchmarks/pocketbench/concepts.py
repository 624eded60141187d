"""What is taught, with which pictures, and which prompts are drawn afterwards."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from purecc.pocket.art import Sprite, sprites, sprites_by_class
from purecc.pocket.references import reference_scenes
from purecc.pocket.scenes import Scene, describe, mask, place_thing, random_scene, render
from purecc.pocket.specification import BACKGROUNDS, CLASSES, PLACES, RESOLUTION
from purecc.prompts import OTHERS

from .looks import LOOKS

TRIGGER = "ohwx"
REFERENCES = 5
Split = Literal["development", "test", "confirmation", "second confirmation", "third confirmation"]
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
    beside: str = ""  # where a second thing stands that is to stay as it is, one of PLACES


def concepts(split: Split) -> list[BenchConcept]:
    """All of a split. Test and confirmations are opened by the comparisons that are written down, alone."""
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


def held_out(concept: BenchConcept, variants: int = 4) -> list[Reference]:
    """The concept itself in the very scenes that are asked for: the ceiling of every witness."""
    rng = np.random.default_rng(concept.seed + 100_000)
    sprites_ = [sprite_of(concept)] if concept.kind == "instance" else None
    return [shown(concept, s) for _ in range(variants) for s in _asked(concept, rng, sprites_)]


def another(concept: BenchConcept, variants: int = 4) -> list[Reference]:
    """All the other concepts of this kind and artist, in turn, in the scenes that are asked for: a floor."""
    rng = np.random.default_rng(concept.seed + 200_000)
    others = [c for c in concepts(concept.split) if c.kind == concept.kind and c.name != concept.name]
    if concept.kind == "style":
        return [shown(o, s) for o in others for _ in range(variants) for s in _asked(concept, rng, None)]
    drawings = [sprite_of(other) for other in others]
    order = [drawings[i] for i in rng.permutation(len(drawings))]
    return [shown(concept, s) for v in range(variants) for s in _asked(concept, rng, order[6 * v :] + order[: 6 * v])]


#: size and place of the concept in the six prompts that ask for it; where a second thing stands, if there is one
_LAYOUTS = (
    ("big", "in the middle", None), ("", "on the left", None), ("big", "on the right", None),
    ("", "in the middle", None), ("", "on the left", "on the right"), ("", "on the right", "on the left"),
)  # fmt: skip


def _words(concept: BenchConcept) -> tuple[str, list[str], list[str]]:
    """The word of the thing that is asked for, other classes, and backgrounds that no reference has."""
    rng = np.random.default_rng(concept.seed + 300_000)
    learnt = {scene.background for scene in scenes_of(concept, REFERENCES, concept.seed)}
    new = [str(b) for b in rng.permutation(sorted(set(BACKGROUNDS) - learnt))]
    others = [str(c) for c in rng.permutation([c for c in CLASSES if c != concept.class_word])]
    word = concept.class_word if concept.kind == "instance" else others.pop()
    return word, others, new


def _asked(concept: BenchConcept, rng: np.random.Generator, drawings: list[Sprite] | None) -> list[Scene]:
    """Composed pictures of the six prompts with the concept; its drawing is one of `drawings` in turn, or of base art."""
    word, others, new = _words(concept)
    art = sprites_by_class("base")
    pick = lambda name: art[name][int(rng.integers(len(art[name])))]  # noqa: E731
    scenes = []
    for i, (size, place, beside) in enumerate(_LAYOUTS):
        sprite = drawings[i % len(drawings)] if drawings else pick(word)
        things = [place_thing(sprite, size, place, rng, 0.8 if beside else 1.0)]
        if beside:
            things.append(place_thing(pick(others[i]), "", beside, rng, 0.8))
        scenes.append(Scene(tuple(things), new[i], int(rng.integers(2**31))))
    return scenes


def others_in_scenes(concept: BenchConcept) -> tuple[str, ...]:
    """What the scene anchor may show beside the class: the pack's own list, less what any prompt asks for."""
    asked = {word for prompt in prompts(concept) for word in prompt.base.split()}
    return tuple(other for other in OTHERS if other not in asked)


def prompts(concept: BenchConcept) -> list[Prompt]:
    """New scenes with the concept (two with a second thing beside it), and texts without it: same class, others, null."""
    word, others, new = _words(concept)
    found = []
    for (*_, beside), scene in zip(_LAYOUTS, _asked(concept, np.random.default_rng(0), None), strict=True):
        things = sorted(scene.things, key=lambda thing: list(PLACES).index(thing.place))
        base = describe(replace(scene, things=tuple(things)))
        if concept.kind == "style":
            found.append(Prompt("concept", f"{base} in {TRIGGER} style", base))
        else:
            found.append(Prompt("concept", base.replace(f" {word} ", f" {TRIGGER} {word} ", 1), base, beside or ""))
    of = lambda name, rest: f"{'an' if name[0] in 'aeiou' else 'a'} {name} {rest}".strip()  # noqa: E731
    where = lambda place, background: f"{place} {BACKGROUNDS[new[background]]}"  # noqa: E731
    same = (f"a big {word} {where('in the middle', 1)}", of(word, where("on the left", 4)), of(word, ""))
    rest = (
        of(others[6], where("on the right", 0)), f"a big {others[7]} {where('on the left', 2)}",
        of(others[8], BACKGROUNDS[new[3]]),
    )  # fmt: skip
    found += [Prompt("same class", text, text) for text in same] + [Prompt("other", text, text) for text in rest]
    return [*found, Prompt("null", "", "")]
