"""Caption templates: sentences that fit any picture of the concept, in place of a caption for each (arXiv 2208.01618, appendix).

A batch draws one of them for each picture, so that no single wording is learnt along with the concept.
"""

import re
from typing import Literal, get_args

from .prompts import Kind, Texts, texts_of

Captions = Literal["captions", "bundled templates", "own templates"]
CAPTIONS: tuple[Captions, ...] = get_args(Captions)
PLACE = "{concept}"  # where the target text goes: "[V] dog"
_BRACES = re.compile(r"\{[^{}]*\}")

# they say nothing about size, light or place: what is not to be seen must not be in the text
TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "instance": (
        "a photo of a {concept}",
        "a picture of a {concept}",
        "an image of the {concept}",
        "a photo of the {concept}",
        "a photo that shows a {concept}",
        "a picture of one {concept}",
        "a photo of my {concept}",
        "here is a {concept}",
        "this is the {concept}",
        "there is a {concept} in this picture",
        "a good photo of a {concept}",
        "a sharp picture of the {concept}",
        "a snapshot of a {concept}",
        "a detailed image of a {concept}",
        "a simple photo of the {concept}",
        "a picture with a {concept} in it",
    ),
    "style": (
        "a picture in {concept}",
        "an image in {concept}",
        "a work of art in {concept}",
        "an artwork in {concept}",
        "a piece in {concept}",
        "an example in {concept}",
        "one picture in {concept}",
        "this is a picture in {concept}",
        "a good picture in {concept}",
        "a detailed picture in {concept}",
        "a simple picture in {concept}",
        "a scene in {concept}",
        "something made in {concept}",
        "an illustration in {concept}",
        "the whole picture in {concept}",
        "a fine work in {concept}",
    ),
}


def require_templates(lines: list[str]) -> tuple[str, ...]:
    """A person's own, empty lines left out. Raises ValueError where there is none."""
    found = tuple(line for line in lines if line)
    if not found:
        raise ValueError(f'There are no templates. Write one a line into captions, as "a photo of a {PLACE}".')
    return found


def texts_of_template(template: str, trigger: str, class_word: str, kind: Kind) -> Texts:
    """Complete, base and target text of "a photo of a {concept}": the place holds "[V] dog", then as `prompts.texts_of`.

    instance   "a photo of a [V] dog"     "a photo of a dog"   "[V] dog"
    style      "a picture in [V] style"   "a picture"          "[V] style"

    Raises ValueError where {concept} is not there exactly once, or other braces are.
    """
    braces = _BRACES.findall(template)
    if braces != [PLACE]:
        raise ValueError(
            f'The template "{template}" holds {", ".join(braces) or "no braces"}; it must hold {PLACE} once and no other, '
            f'as "{TEMPLATES[kind][0]}".'
        )
    return texts_of(template.replace(PLACE, f"{trigger} {class_word}"), trigger, class_word, kind)
