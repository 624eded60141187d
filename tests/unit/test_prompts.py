"""The four texts of a picture, and how a trigger becomes marked tokens."""

from __future__ import annotations

import re

import pytest

from purecc.prompts import (
    Placeholder,
    Texts,
    find_trigger,
    find_word,
    mark_tokens,
    require_apart,
    substitute,
    texts_of,
)

DOG, CATS = Placeholder(11, "dog"), Placeholder(12, "cat cat")
TRIGGERS = {"<dog1>": DOG, "[V]": CATS}


def words(text: str) -> list[tuple[int, int]]:
    """Offsets of words and punctuation, as a tokenizer of one token a word gives them, with <start> and <end>."""
    return [(0, 0), *(m.span() for m in re.finditer(r"\w+|[^\w\s]", text)), (0, 0)]


def marked(prompt: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """The substituted text, and what is marked: "word@start" -> mark."""
    text, spans = substitute(prompt, TRIGGERS)
    offsets = words(text)
    marks = mark_tokens(text, spans, offsets)
    assert len(marks) == len(offsets)
    return text, {f"{text[a:b]}@{a}": mark for (a, b), mark in zip(offsets, marks, strict=True) if mark}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", Texts("a [V] dog", "a dog", "[V] dog")),
        ("   ", Texts("a [V] dog", "a dog", "[V] dog")),
        ("a dog on the beach", Texts("a [V] dog on the beach", "a dog on the beach", "[V] dog")),
        ("A Dog on the beach", Texts("A [V] dog on the beach", "A Dog on the beach", "[V] dog")),
        ("a [V] dog\non  the beach", Texts("a [V] dog on the beach", "a dog on the beach", "[V] dog")),
        ("a [v] dog", Texts("a [v] dog", "a dog", "[V] dog")),
        ("a [V] on the beach", Texts("a [V] on the beach", "a dog on the beach", "[V] dog")),
        ("a [V] dog by a [V] dog", Texts("a [V] dog by a [V] dog", "a dog by a dog", "[V] dog")),
        ("a hotdog and a dog", Texts("a hotdog and a [V] dog", "a hotdog and a dog", "[V] dog")),
        ("a [V]dog on sand", Texts("a [V] dog on sand", "a dog on sand", "[V] dog")),
        ("a red[v]dog", Texts("a red [v] dog", "a red dog", "[V] dog")),
        ("a ([V]:1.3) dog in snow", Texts("a ([V]:1.3) dog in snow", "a dog in snow", "[V] dog")),
        ("a (([v])) dog, small (old)", Texts("a (([v])) dog, small (old)", "a dog, small (old)", "[V] dog")),
        ("a [V] next to a dog", Texts("a [V] next to a dog", "a dog next to a dog", "[V] dog")),
        ("a [V] behind another dog", Texts("a [V] behind another dog", "a dog behind another dog", "[V] dog")),
        ("a [V] beside a [V] old dog", Texts("a [V] beside a [V] old dog", "a dog beside a old dog", "[V] dog")),
        ("a dog and a [V]", Texts("a dog and a [V]", "a dog and a dog", "[V] dog")),
        ("a [V] sitting beside a dog", Texts("a [V] sitting beside a dog", "a dog sitting beside a dog", "[V] dog")),
        ("a dog with a [V] collar", Texts("a dog with a [V] collar", "a dog with a collar", "[V] dog")),
        ("a dog beside a [V] on sand", Texts("a dog beside a [V] on sand", "a dog beside a dog on sand", "[V] dog")),
        ("a [V]. A dog", Texts("a [V]. A dog", "a dog. A dog", "[V] dog")),
        ("a [V] black and white dog", Texts("a [V] black and white dog", "a black and white dog", "[V] dog")),
        ("a [V] cute, small dog", Texts("a [V] cute, small dog", "a cute, small dog", "[V] dog")),
        ("a [V] St. Bernard dog", Texts("a [V] St. Bernard dog", "a St. Bernard dog", "[V] dog")),
        ("a photo of [V] the dog", Texts("a photo of [V] the dog", "a photo of the dog", "[V] dog")),
        ("a ([V]:1.3) in snow", Texts("a ([V]:1.3) in snow", "a (dog:1.3) in snow", "[V] dog")),
    ],
)
def test_texts_of_an_instance(caption: str, expected: Texts) -> None:
    assert texts_of(caption, "[V]", "dog", "instance") == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", Texts("[V] style", "", "[V] style")),
        ("a dog on the beach", Texts("a dog on the beach in [V] style", "a dog on the beach", "[V] style")),
        ("a dog in [V] style", Texts("a dog in [V] style", "a dog", "[V] style")),
        ("a dog, [V] style", Texts("a dog, [V] style", "a dog", "[V] style")),
        ("a [v] style dog", Texts("a [v] style dog", "a dog", "[V] style")),
        ("a dog in the [V] style", Texts("a dog in the [V] style", "a dog", "[V] style")),
        ("in [V] style, a dog", Texts("in [V] style, a dog", "a dog", "[V] style")),
        ("a painting of a dog by [V]", Texts("a painting of a dog by [V]", "a painting of a dog", "[V] style")),
        ("a [V] dog in the rain", Texts("a [V] dog in the rain", "a dog in the rain", "[V] style")),
        ("a dog in a [V] style.", Texts("a dog in a [V] style.", "a dog.", "[V] style")),
        ("a dog in an [V] style", Texts("a dog in an [V] style", "a dog", "[V] style")),
        ("a dog in the style of [V]", Texts("a dog in the style of [V]", "a dog", "[V] style")),
        ("a girl in a [V] style dress", Texts("a girl in a [V] style dress", "a girl in a dress", "[V] style")),
        ("a boat by the [V] lake", Texts("a boat by the [V] lake", "a boat by the lake", "[V] style")),
        ("a dog, [V], at night", Texts("a dog, [V], at night", "a dog, at night", "[V] style")),
        ("a red[V]dog", Texts("a red [V] dog", "a red dog", "[V] style")),
    ],
)
def test_texts_of_a_style(caption: str, expected: Texts) -> None:
    assert texts_of(caption, "[V]", "style", "style") == expected


def test_a_caption_without_class_word_and_trigger_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r'"a hotdog".*"\[V\]".*"dog".*"a \[V\] dog'):
        texts_of("a hotdog", "[V]", "dog", "instance")


@pytest.mark.parametrize("kind", ["instance", "style"])
def test_the_base_text_never_holds_the_trigger(kind: str) -> None:
    for caption in ("", "a [V] dog", "a dog", "the [v] dog, in [V] style", "[V]"):
        texts = texts_of(caption, "[V]", "dog" if kind == "instance" else "style", kind)
        assert not find_word("[V]", texts.base), texts
        assert find_word("[V]", texts.complete) and find_word("[V]", texts.target)


def test_find_word() -> None:
    assert find_word("dog", "a Dog.").group() == "Dog"
    assert find_word("[v]", "([V])").span() == (1, 4)
    assert find_word("dog", "a hotdog, dogs") is None
    assert find_word("a.b", "axb") is None


@pytest.mark.parametrize(
    ("prompt", "text", "marks"),
    [
        ("a dog", "a dog", {}),
        ("a <dog1> and a dog", "a dog and a dog", {"dog@2": (11, 0)}),
        ("a <DOG1>", "a dog", {"dog@2": (11, 0)}),
        ("[v]house", "cat cat house", {"cat@0": (12, 0), "cat@4": (12, 1)}),
        ("big[V]", "big cat cat", {"cat@4": (12, 0), "cat@8": (12, 1)}),
        ("<dog1>'s, ([V]).", "dog's, (cat cat).", {"dog@0": (11, 0), "cat@8": (12, 0), "cat@12": (12, 1)}),
        ("<dog1><dog1>", "dog dog", {"dog@0": (11, 0), "dog@4": (11, 0)}),
        ("", "", {}),
    ],
)
def test_triggers_become_marked_tokens(prompt: str, text: str, marks: dict) -> None:
    assert marked(prompt) == (text, marks)


@pytest.mark.parametrize(("trigger", "prompt"), [("İris", "an İris dog"), ("ışık", "a işik dog"), ("sks", "a ſks dog")])
def test_letters_that_differ_from_their_lower_case_are_found(trigger: str, prompt: str) -> None:
    text, (span,) = substitute(prompt, {trigger: Placeholder(11, "teapot")})
    assert text[span.start : span.end] == "teapot" and find_trigger(trigger, prompt)


@pytest.mark.parametrize(
    ("trigger", "class_word"), [("dog", "Dog"), ("dog", "guide dog"), ("Rex", "t-rex"), ("a", "dog")]
)
def test_a_trigger_that_the_class_holds_is_refused(trigger: str, class_word: str) -> None:
    with pytest.raises(ValueError, match=rf'"a {class_word}" holds the trigger "{trigger}"'):
        require_apart(trigger, class_word)
    require_apart("do", class_word)


def test_of_two_triggers_that_begin_alike_the_longer_is_taken() -> None:
    text, spans = substitute("a sks two and a sks", {"sks": DOG, "sks two": CATS})
    assert text == "a cat cat and a dog"
    assert [(text[s.start : s.end], s.concept) for s in spans] == [("cat cat", 12), ("dog", 11)]


def test_without_triggers_a_text_is_itself() -> None:
    assert substitute("a <dog1>", {}) == ("a <dog1>", [])


def test_a_token_that_takes_the_space_before_the_word_is_marked() -> None:
    text, spans = substitute("a <dog1> runs", TRIGGERS)
    offsets = [(0, 1), (1, 5), (5, 10), (0, 0)]  # "a", " dog", " runs", </s>
    assert mark_tokens(text, spans, offsets) == [None, (11, 0), None, None]


def test_a_token_that_reaches_into_the_trigger_from_the_word_before_is_not_marked() -> None:
    text, spans = substitute("(<dog1>) runs", TRIGGERS)
    assert text[1:4] == "dog"
    assert mark_tokens(text, spans, [(0, 2), (2, 4), (4, 5)]) == [None, (11, 0), None]  # "(d", "og", ")"


def test_a_word_of_several_tokens_has_several_marks() -> None:
    text, spans = substitute("a <dog1>", {"<dog1>": Placeholder(11, "teapot")})
    assert mark_tokens(text, spans, [(0, 1), (2, 5), (5, 8)]) == [None, (11, 0), (11, 1)]


def test_a_trigger_of_letters_is_no_part_of_a_longer_word() -> None:
    triggers = {"zen": Placeholder(7, "dog")}
    assert substitute("a frozen lake and zens", triggers) == ("a frozen lake and zens", [])
    text, spans = substitute("a Zen dog, (zen:1.2)", triggers)
    assert text == "a dog dog, (dog:1.2)" and [s.concept for s in spans] == [7, 7]


def test_a_styles_trigger_inside_another_word_is_left_alone() -> None:
    texts = texts_of("a cartoon of a house in art style", "art", "style", "style")
    assert texts.base == "a cartoon of a house"
    assert texts.complete == "a cartoon of a house in art style"


@pytest.mark.parametrize(
    ("caption", "base"),
    [
        ("two [V] dogs", "two dogs"),
        ("three small [V] dogs on a beach", "three small dogs on a beach"),
        ("a photo of [V] chasing dogs", "a photo of dog chasing dogs"),
        ("[V] watching dogs play", "dog watching dogs play"),
        ("a photo of [V] among dogs", "a photo of dog among dogs"),
        ("two [V] dogs and a dog", "two dogs and a dog"),
    ],
)
def test_several_of_the_class_keep_their_word(caption: str, base: str) -> None:
    assert texts_of(caption, "[V]", "dog", "instance").base == base
