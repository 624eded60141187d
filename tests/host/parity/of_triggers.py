"""text.py and marks.py: triggers in stock text nodes."""

from __future__ import annotations

import comfy.text_encoders.sd3_clip
import torch
from comfy_extras.nodes_sd3 import CLIPTextEncodeSD3
from common import FOLDER, Result, check, encode, host, noise, pure
from purecc_pack.nodes.host import marks, text
from purecc_pack.nodes.host import pocket as host_pocket
from purecc_pack.purecc.encoding import PocketTextEncoder
from purecc_pack.purecc.prompts import Placeholder

import nodes

DOG, CAT = Placeholder(11, "dog"), Placeholder(2**29 - 1, "cat cat")
TRIGGERS = {"<dog1>": DOG, "[V]": CAT}


def map_of(conditioning: list) -> torch.Tensor:
    return conditioning[0][1]["model_conds"][marks.MAP].cond


def held(numbers: torch.Tensor) -> dict[int, tuple[int, int]]:
    """row -> (concept, slot)"""
    split = lambda n: (int(marks.concept_of(n)), int(marks.slot_of(n)))  # noqa: E731
    return {row: split(n) for row, n in enumerate(numbers[0]) if n}


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the lowest bit."""
    return torch.equal(a.view(torch.int32) & ~1, b.view(torch.int32) & ~1)


@check
def triggers() -> Result:
    """The rows are those of the placeholder text, and the right ones are marked."""
    result, base = Result(), host()[1]
    clip = text.with_triggers(text.with_triggers(base, {"<dog1>": DOG}), {"[V]": CAT})  # two nodes in a row
    d, c = (11, 0), lambda i: (2**29 - 1, i)
    many = "a big tree and a small house and " * 3
    for prompt, plain, expected in (
        ("a <dog1> on the beach", "a dog on the beach", {2: d}),
        ("a dog and a <DOG1>, [v]", "a dog and a dog, cat cat", {5: d, 7: c(0), 8: c(1)}),
        ("a (<dog1>:1.3) in (a ([V]) house)", "a (dog:1.3) in (a (cat cat) house)", {2: d, 5: c(0), 6: c(1)}),
        ("<dog1>'s [v]house", "dog's cat cat house", {1: d, 4: c(0), 5: c(1)}),
        (many + "with <dog1>", many + "with dog", {24 + 4: d}),
        ("\\(a\\) <dog1>\n[V]", "\\(a\\) dog\ncat cat", {4: d, 5: c(0), 6: c(1)}),
        ("a plain dog", "a plain dog", {}),
    ):
        rows, other = encode(clip, prompt), encode(base, plain)
        result.sentences[f"rows of {prompt!r}"] = near(rows[0][0], other[0][0])
        result.sentences[f"pooled of {prompt!r}"] = torch.equal(*(one[0][1]["pooled_output"] for one in (rows, other)))
        result.sentences[f"marks of {prompt!r}: {held(map_of(rows))}"] = held(map_of(rows)) == expected
        result.sentences[f"code of {prompt!r}"] = torch.equal(marks.read_code(rows[0][0]), map_of(rows))
        if not expected:
            result.sentences["a prompt without a trigger has the CLIP's own bits"] = torch.equal(
                rows[0][0], other[0][0]
            )
    moved = base.clone()  # as Set CLIP Hooks and Select CLIP Device leave it where VRAM is dynamic
    moved.patcher = host_pocket.load_pocket(FOLDER[0])[1].patcher
    rows, other = (
        encode(text.with_triggers(moved, {"<dog1>": DOG}), "a <dog1> on the beach"),
        encode(base, "a dog on the beach"),
    )
    result.sentences["marks by a CLIP whose patcher has a model of its own"] = held(map_of(rows)) == {2: d}
    result.sentences["and its rows"] = near(rows[0][0], other[0][0])
    moved = text.with_triggers(base, {"[V]": CAT})  # and after a first Apply Concept
    ours, moved.patcher = moved.patcher, host_pocket.load_pocket(FOLDER[0])[1].patcher
    moved.patcher.object_patches = dict(ours.object_patches)
    table = moved.patcher.model.clip_l.transformer.get_input_embeddings().weight
    table.mul_(2)
    again = text.with_triggers(moved, {"<dog1>": DOG})
    result.sentences["encoded by its own model, after a first concept"] = not near(
        encode(again, "a dog")[0][0], encode(base, "a dog")[0][0]
    )
    result.sentences["the given CLIP knows nothing of it"] = "model_conds" not in encode(base, "a <dog1>")[0][1]
    after = encode(nodes.CLIPSetLastLayer().set_last_layer(clip, -1)[0], "a <dog1>")
    result.sentences["it survives another node's clone"] = held(map_of(after)) == {2: d}
    unmarked = text.with_triggers(base, {"<dog1>": Placeholder(0, "dog")})
    rows = encode(unmarked, "a <dog1>")
    result.sentences["concept 0 is substituted, not marked"] = (
        torch.equal(rows[0][0], encode(base, "a dog")[0][0]) and not map_of(rows).any()
    )
    held_back = (
        text.with_triggers(clip, {"<Dog1>": Placeholder(0, "dog")}),
        text.with_triggers(unmarked, {"<DOG1>": DOG}),
    )
    for name, either in zip(("after", "before"), held_back, strict=True):
        result.sentences[f"concept 0 gives way to one {name} it"] = held(map_of(encode(either, "a <dog1>"))) == {2: d}
    separate = CLIPTextEncodeSD3.execute(clip, "<dog1> on", "a photo, <dog1>", "", "none").result[0]
    result.sentences[f"CLIP-L and -G of their own: {held(map_of(separate))}"] = held(map_of(separate)) == {4: d}
    result.raises("two meanings", "already stands", lambda: text.with_triggers(clip, {"<DOG1>": CAT}))
    return result


@check
def codes() -> Result:
    """The code in the rows: every number comes back, chance does not make one."""
    result, rows = Result(), noise(1, 300, 256)
    numbers = torch.zeros(1, 300, dtype=torch.int64)
    for row, number in enumerate((1, marks.number(1, 0), marks.number(2**29 - 1, 63), marks.number(12345, 32))):
        numbers[0, 10 + row] = number
    coded = marks.write_code(rows, numbers)
    result.sentences["numbers come back"] = torch.equal(marks.read_code(coded), numbers)
    result.sentences["only lowest bits change"] = near(coded, rows) and not torch.equal(coded, rows)
    result.sentences["no code by chance"] = not marks.read_code(noise(40, 1000, 128)).any()
    result.sentences["nor in zeros"] = not marks.read_code(torch.zeros(1, 9, 256)).any()
    result.sentences["zeroed rows are off"] = not marks.marks_of(torch.zeros(1, 300, 256), numbers).any()
    longer = marks.marks_of(torch.cat([rows, coded], 1), numbers)
    result.sentences["map for the first part, code for the second"] = torch.equal(
        longer, torch.cat([numbers, numbers], 1)
    )
    return result


@check
def training_text() -> Result:
    """HostTextEncoder = the pocket's own encoder."""
    result, clip = Result(), host()[1]
    of_host, of_pocket = text.HostTextEncoder(clip, "[V]", CAT), PocketTextEncoder(pure(), "[V]", CAT)
    for prompt in ("a [V] on the beach", "", "[V]", "a dog"):
        got, expected, other = (
            of_host.encode(prompt),
            of_pocket.encode(prompt),
            of_pocket.encode("a big rocket at night"),
        )
        result.figure(f"rows of {prompt!r}", got.rows, expected.rows, other.rows)
        result.figure(f"pooled of {prompt!r}", got.pooled, expected.pooled, other.pooled)
        result.sentences[f"marks {got.marks.tolist()}"] = torch.equal(got.marks, expected.marks)
        result.sentences[f"{prompt!r} can be kept"] = not any(
            t.is_inference() for t in (got.rows, got.pooled, got.marks)
        )
    asked: list[int] = []
    read = of_host.clip.encode_from_tokens
    of_host.clip.encode_from_tokens = lambda *tokens, **options: asked.append(1) or read(*tokens, **options)
    again, first = of_host.encode("a dog"), of_host.encode("a cat")
    result.sentences["a text is read once"] = len(asked) == 1 and not torch.equal(again.rows, first.rows)
    result.sentences["others' triggers are not ours"] = (
        not text.HostTextEncoder(text.with_triggers(clip, {"<dog1>": DOG}), "[V]", CAT).encode("a <dog1>").marks.any()
    )
    return result


class Slow:
    """A tokenizer that, like those written in Python, gives no offsets."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, text: str, **options):
        assert not options, options
        return {"input_ids": self.inner(text)["input_ids"]}


@check
def real_tokenizers() -> Result:
    """SD3's own three tokenizers, with the layout of their rows; no text model, its weights are too large."""
    result, tokenizer = Result(), comfy.text_encoders.sd3_clip.SD3Tokenizer()

    class Clip:
        """What with_triggers touches of a CLIP."""

        def __init__(self):
            self.tokenizer, self.patcher, self.model, self.cond_stage_model = tokenizer, self, self, self

        def clone(self):
            return Clip()

        def get_model_object(self, name):
            return None

        def add_object_patch(self, name, value):
            pass

    class TextModel:
        clip_l = clip_g = t5xxl = True

    marking = text.with_triggers(Clip(), TRIGGERS).tokenizer
    filler = "a very detailed picture of a garden with flowers and trees under blue sky, "
    for prompt, plain in (
        ("a photo of <dog1>, sitting", "a photo of dog, sitting"),
        ("<dog1>'s [v]house", "dog's cat cat house"),
        (filler * 6 + "with <dog1> at the end", filler * 6 + "with dog at the end"),
        ("a dog beside (<dog1>:1.2).", "a dog beside (dog:1.2)."),
    ):
        tokens, other = marking.tokenize_with_weights(prompt), tokenizer.tokenize_with_weights(plain)
        result.sentences[f"ids of {prompt[-30:]!r}"] = tokens == other
        rows = len(tokens["l"]) * 77 + sum(map(len, tokens["t5xxl"]))
        of_rows = held(text._row_marks(tokens, TextModel(), rows))
        flat = [i for chunk in tokens["l"] for i, _ in chunk] + [i for chunk in tokens["t5xxl"] for i, _ in chunk]
        border = len(tokens["l"]) * 77
        spell = lambda row: (tokenizer.clip_l if row < border else tokenizer.t5xxl).inv_vocab[int(flat[row])]  # noqa: E731, B023
        words = {(spell(row).strip("▁").removesuffix("</w>"), slot >= 32) for row, (_, slot) in of_rows.items()}
        expected = {("dog", False), ("dog", True)} | ({("cat", False), ("cat", True)} if "[v]" in prompt else set())
        result.sentences[f"marked words {words}"] = words == expected
        for name in ("clip_l", "clip_g"):  # as in hosts whose CLIP tokenizer is written in Python
            inner = getattr(tokenizer, name).tokenizer
            same = lambda a: [(int(i), getattr(i, "concept", 0), getattr(i, "index", 0)) for i in a["input_ids"]]  # noqa: E731
            fast, slow = (text.MarkingTokenizer(one, TRIGGERS)(prompt) for one in (inner, Slow(inner)))
            result.sentences[f"{name} without offsets, {prompt[-30:]!r}"] = same(fast) == same(slow)
    t5_only = {"l": [], "g": [], "t5xxl": marking.tokenize_with_weights("a <dog1>")["t5xxl"]}
    result.sentences["T5 alone"] = list(held(text._row_marks(t5_only, TextModel(), 77)).values()) == [(11, 32)]
    none = text._row_marks({"l": [], "g": [], "t5xxl": []}, TextModel(), 77)
    result.sentences["no text at all"] = none.shape == (1, 77) and not none.any()
    result.raises("another layout", "SD3", lambda: text._row_marks(tokens, TextModel(), 256))
    return result
