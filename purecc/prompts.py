"""The texts of a picture, and how a trigger word in a prompt becomes marked tokens.

complete  "a [V] dog on the beach"     what the picture shows
base      "a dog on the beach"         the same without the concept
target    "[V] dog"                    the concept alone
null      ""

and of the whole set, where a class is meant without the concept:

class word   "dog"     the target text less the trigger
class text   "a dog"   a prompt for pictures of the class; a style has none
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["instance", "style"]
KINDS: tuple[Kind, ...] = ("instance", "style")


@dataclass(frozen=True)
class Texts:
    """The texts of one picture, by the names of the paper."""

    complete: str
    base: str
    target: str


@dataclass(frozen=True)
class SceneTexts:
    """The texts of a scene that shows the class beside another thing."""

    complete: str  # "a [V] dog on the left and a cat on the right"
    base: str  # "a dog on the left and a cat on the right"
    without: str  # "a cat on the right"
    alone: str  # "a [V] dog on the left"
    class_alone: str  # "a dog on the left"


#: what stands beside the concept in scenes: common things, of many colours and shapes
OTHERS = (
    "cat", "car", "tree", "flower", "house", "boat", "horse", "fish", "apple", "cake", "robot", "umbrella", "butterfly",
    "mushroom", "bus", "duck",
)  # fmt: skip


@dataclass(frozen=True)
class Placeholder:
    """What stands in a trigger's place when the text is encoded: words close in meaning, whose tokens get marked."""

    concept: int  # the concept's number, `Concept.uid`
    words: str  # the class word, once for each embedding
    vectors: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)  # see `token_embeddings`
    strength: float = field(default=1.0, compare=False)  # of the vectors


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a substituted text that stand for a concept."""

    start: int
    end: int
    concept: int


def _whole(word: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def find_word(word: str, text: str) -> re.Match | None:
    """`word` as a whole word of `text`, upper or lower case, also where it begins or ends in a bracket."""
    return _whole(word).search(text)


def texts_of(caption: str, trigger: str, class_word: str, kind: Kind) -> Texts:
    """Complete, base and target text of a caption, which may hold the trigger or not, or be empty.

    Raises ValueError where an instance's caption does not hold the class word: nothing tells where the trigger belongs.
    """
    caption = " ".join(caption.split())
    held = find_word(trigger, caption)
    if kind == "style":
        target = f"{trigger} {class_word}"
        phrase = re.compile(
            rf",?\s*(?:\bin\s+)?(?<!\w){re.escape(trigger)}(?!\w)(?:\s+{re.escape(class_word)}\b)?", re.IGNORECASE
        )
        base = " ".join(phrase.sub("", caption).split()) if held else caption
        complete = caption if held else " ".join(f"{caption} in {target}".split()) if caption else target
        return Texts(complete, base, target)
    target = f"{trigger} {class_word}"
    if not caption:
        return Texts(f"a {target}", class_text(class_word, kind), target)
    if held:
        base = " ".join(_whole(trigger).sub("", caption).split())
        if not find_word(class_word, base):
            base = " ".join(_whole(trigger).sub(lambda _: class_word, caption).split())
        return Texts(caption, base, target)
    word = find_word(class_word, caption)
    if not word:
        raise ValueError(
            f'The caption "{caption}" holds neither the trigger "{trigger}" nor the class word "{class_word}". '
            f'Write where the concept is, for example "a {target} ...", or leave the caption empty.'
        )
    return Texts(caption[: word.start()] + target + caption[word.end() :], caption, target)


def scene_texts(trigger: str, class_word: str, others: tuple[str, ...] = OTHERS) -> tuple[SceneTexts, ...]:
    """Scenes with the class on one side and each of `others` on the other, left and right in turn; none that class or trigger hold.

    The article is "a" with the trigger and without ("a [V] owl", "a owl"): the trigger alone is to tell the two apart.
    """
    found = []
    others = tuple(other for other in others if not find_word(other, f"{trigger} {class_word}"))
    for i, other in enumerate(others):
        own, side = ("left", "right") if i % 2 == 0 else ("right", "left")
        beside = f"{'an' if other[0] in 'aeiou' else 'a'} {other} on the {side}"
        both = "a {} on the left and {}" if own == "left" else "{1} and a {0} on the right"
        names = f"{trigger} {class_word}", class_word
        together, alone = (both.format(name, beside) for name in names), (f"a {name} on the {own}" for name in names)
        found.append(SceneTexts(*together, beside, *alone))
    return tuple(found)


def class_text(class_word: str, kind: Kind) -> str | None:
    """A prompt for pictures of the class ("a dog"), None for a style: all pictures have some style."""
    return f"a {class_word}" if kind == "instance" else None


def _trigger_pattern(trigger: str) -> str:
    """The pattern of a trigger: not inside a longer word, on those sides where the trigger itself ends in a letter."""
    before = r"(?<!\w)" if trigger[0].isalnum() else ""
    return before + re.escape(trigger) + (r"(?!\w)" if trigger[-1].isalnum() else "")


def substitute(text: str, triggers: Mapping[str, Placeholder]) -> tuple[str, list[Span]]:
    """Puts each trigger's placeholder words in its place; returns the text and where they stand.

    A trigger is found in upper or lower case, as a whole word ("zen" not in "frozen"). One that ends in a bracket is also
    found where it touches another word ("[v]house"), which is then set off by a space. Of two triggers that begin alike
    the longer one is taken.
    """
    if not triggers:
        return text, []
    by_lower = {trigger.lower(): placeholder for trigger, placeholder in triggers.items()}
    pattern = "|".join(_trigger_pattern(trigger) for trigger in sorted(by_lower, key=len, reverse=True))
    done, at, spans = "", 0, []
    for match in re.finditer(pattern, text, re.IGNORECASE):
        placeholder = by_lower[match[0].lower()]
        done += text[at : match.start()]
        if done and done[-1].isalnum():
            done += " "
        spans.append(Span(len(done), len(done) + len(placeholder.words), placeholder.concept))
        done, at = done + placeholder.words, match.end()
        if at < len(text) and text[at].isalnum():
            done += " "
    return done + text[at:], spans


def mark_tokens(text: str, spans: list[Span], offsets: list[tuple[int, int]]) -> list[tuple[int, int] | None]:
    """For each token, (concept, which of the concept's tokens) or None, from the tokens' character offsets in `text`."""
    marks: list[tuple[int, int] | None] = [None] * len(offsets)
    for span in spans:
        count = 0
        for i, (start, end) in enumerate(offsets):
            inside = start < end and start < span.end and end > span.start
            # a sentencepiece token may take the space before the word with it
            if inside and (start >= span.start or text[start : span.start].isspace()):
                marks[i] = (span.concept, count)
                count += 1
    return marks
