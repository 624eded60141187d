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
from collections.abc import Callable, Mapping
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


_BESIDE = r"(?:and|or|with|without|to|by|in|on|at|from|under|over|near|next|beside|behind|before|between)\b"
#: between a trigger and the class word: a thing of its own begins ("beside a dog", ". A dog"), where "black and white dog" goes on
_ANOTHER = re.compile(rf"(?:\b{_BESIDE}\s+|[.,;:]\s*)(?:a|an|the|another)\b", re.IGNORECASE)
#: before a trigger: what it belongs to are several
_COUNTED = re.compile(
    r"\b(?:two|three|four|five|six|\d+|several|some|many|these|those|both)\s+(?:\w+\s+)?$", re.IGNORECASE
)
#: behind a trigger: no noun follows that it could belong to
_ALONE = re.compile(rf"\s*(?:{_BESIDE}|[.,;:!?)]|$)", re.IGNORECASE)


def find_word(word: str, text: str) -> re.Match | None:
    """`word` as a whole word of `text`, upper or lower case, also where it begins or ends in a bracket."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)


def find_trigger(trigger: str, text: str) -> re.Match | None:
    """The trigger where a prompt has it, as `substitute` finds it."""
    return re.search(_trigger_pattern(trigger), text, re.IGNORECASE) if trigger else None


def require_apart(trigger: str, class_word: str) -> None:
    """Raises ValueError where the class in a prompt ("a dog") would be read as the trigger, as "dog" in "guide dog"."""
    if find_trigger(trigger, f"a {class_word}"):
        raise ValueError(
            f'"a {class_word}" holds the trigger "{trigger}", so prompts for the class would call the concept. Choose a trigger that is no '
            "part of them, as ohwx or [V]."
        )


def words_of(trigger: str, class_word: str) -> tuple[str, str]:
    """Both with single spaces. Raises ValueError where one is empty, or where they are not apart."""
    trigger, class_word = " ".join(trigger.split()), " ".join(class_word.split())
    if not trigger or not class_word:
        raise ValueError(f'The trigger is "{trigger}" and the class word "{class_word}"; neither may be empty.')
    require_apart(trigger, class_word)
    return trigger, class_word


def texts_of(caption: str, trigger: str, class_word: str, kind: Kind) -> Texts:
    """Complete, base and target text of a caption, which may hold the trigger or not, or be empty.

    Raises ValueError where an instance's caption does not hold the class word: nothing tells where the trigger belongs.
    """
    caption, target = " ".join(caption.split()), f"{trigger} {class_word}"
    held = find_trigger(trigger, caption)
    if kind == "style":
        base = _without_style(caption, trigger, class_word) if held else caption
        complete = _set_apart(caption, trigger) if held else f"{caption} in {target}" if caption else target
        return Texts(complete, base, target)
    if not caption:
        return Texts(f"a {target}", class_text(class_word, kind), target)
    if held:
        elsewhere = find_word(class_word, _set_apart(caption, trigger, lambda _: "")) is not None
        several = _several(caption, trigger, class_word)
        base = _set_apart(caption, trigger, lambda rest: "" if several else _unnamed(rest, class_word, elsewhere))
        base = _without_emptied_brackets(base)
        return Texts(_set_apart(caption, trigger), base, target)
    word = find_word(class_word, caption)
    if not word:
        raise ValueError(
            f'The caption "{caption}" holds neither the trigger "{trigger}" nor the class word "{class_word}". '
            f'Write where the concept is, for example "a {target} ...", or leave the caption empty.'
        )
    return Texts(caption[: word.start()] + target + caption[word.end() :], caption, target)


def _set_apart(text: str, trigger: str, put: Callable[[str], str] | None = None) -> str:
    """The text with the trigger, or what `put` makes of the text behind it, set off by spaces from letters that touch it."""

    def placed(match: re.Match) -> str:
        rest = text[match.end() :]
        before = " " if text[: match.start()][-1:].isalnum() else ""
        return f"{before}{match[0] if put is None else put(rest)}{' ' if rest[:1].isalnum() else ''}"

    return " ".join(re.sub(_trigger_pattern(trigger), placed, text, flags=re.IGNORECASE).split())


def _several(caption: str, trigger: str, class_word: str) -> bool:
    """Whether the trigger stands before more than one of the class: "two small [V] dogs"."""
    held = find_trigger(trigger, caption)
    dogs = find_word(f"{class_word}s", caption[held.end() :])
    between = "" if dogs is None else caption[held.end() :][: dogs.start()]
    return dogs is not None and len(between.split()) < 2 and _COUNTED.search(caption[: held.start()]) is not None


def _unnamed(rest: str, class_word: str, elsewhere: bool) -> str:
    """What stands in the trigger's place without the concept: nothing in "a [V] old dog", the class word in "a [V] beside a dog".

    `rest`: what follows; `elsewhere`: whether the caption has the class word anywhere.
    """
    word = find_word(class_word, rest)
    if word is not None:
        return class_word if _ANOTHER.search(rest[: word.start()]) else ""
    return class_word if _ALONE.match(rest) or not elsewhere else ""


def _without_style(caption: str, trigger: str, class_word: str) -> str:
    """The caption less "in the [V] style" and its like; of "in a [V] style dress" the dress stays as it is."""
    name, style = _trigger_pattern(trigger), re.escape(class_word)
    called = rf"{name}(?:\s+{style}\b)?"
    last = rf",?\s*\b(?:in\s+the\s+{style}\s+of|(?:in|by)(?:\s+(?:the|a|an))?)\s+{called}(?=\s*(?:[.,;:!?)]|$))"
    left = caption
    for phrase in (last, rf",?\s*(?:\bin\s+)?{called}"):
        left = re.sub(phrase, lambda m: " " if _touch(m) else "", left, flags=re.IGNORECASE)
    return _without_emptied_brackets(left.strip().removeprefix(","))


def _touch(match: re.Match) -> bool:
    """Whether the words on both sides would run into one another without what was found."""
    return match.string[: match.start()][-1:].isalnum() and match.string[match.end() :][:1].isalnum()


def _without_emptied_brackets(text: str) -> str:
    """What is left of "([V]:1.3)" without its word goes too."""
    while (less := re.sub(r"\(\s*(?::\s*[-+.\d]*\s*)?\)", " ", text)) != text:
        text = less
    return " ".join(text.split())


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
    ordered = sorted(triggers, key=len, reverse=True)
    pattern = "|".join(f"({_trigger_pattern(trigger)})" for trigger in ordered)
    done, at, spans = "", 0, []
    for match in re.finditer(pattern, text, re.IGNORECASE):
        placeholder = triggers[ordered[match.lastindex - 1]]
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
