"""The gates of Apply Concept: "rows" against the core, and every gate beside another LoRA."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import folder_paths
import torch
from common import Result, check, encode, host, noise, picture, predict, random_concept, rel
from of_concepts import NEGATIVE, PLAIN, PROMPT, TIMES, encoded, expected, joined, scaled
from purecc_pack.nodes.host.apply import apply_concept, gate_of
from purecc_pack.nodes.host.lora import Moved, RowLora, Where
from purecc_pack.nodes.host.marks import CONCEPTS
from purecc_pack.purecc.concept import LoraWeights, save_concept

import nodes
from benchmarks.counted import Kernels


@check
def gate_rows() -> Result:
    """The LoRA at the trigger's rows of the text stream only, as the core's network has it."""
    result, (model, clip, _) = Result(), host()
    for tokens, embeddings in ((1, False), (2, True)):
        concept = replace(random_concept(tokens=tokens, embeddings=embeddings), gate="rows")
        text, name = encoded(PROMPT, concept), f"{tokens} tokens, embeddings {embeddings}"
        for strength in (1.0, -0.4):
            patched, marking = apply_concept(model, clip, concept, strength, gate="as trained")
            got = predict(patched, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES, batch=2)
            acted = expected(scaled(concept, strength), got.x, text)
            without = expected(replace(concept, lora=None) if embeddings else None, got.x, text)
            result.figure(f"{name}, {strength}", got.positive, acted, without)
            error = rel(got.positive, acted)
            result.sentences[f"{name}, {strength}: error {error:.1e}, below 1e-6"] = error < 1e-6
            base = predict(model, encode(clip, PLAIN), encode(clip, NEGATIVE), TIMES, batch=2)
            result.sentences[f"{name}, {strength}: the negative is the base's, bit for bit"] = torch.equal(
                got.negative, base.negative
            )
            result.sentences[f"{name}, {strength}: one forward ({got.batches})"] = got.batches == [4]
        whole = expected(replace(concept, gate="conditioning"), got.x, text)
        result.figures[f"{name}: other than the gate conditioning"] = (0.0, rel(whole, acted))

    one, two = (replace(random_concept(word, seed), gate="rows") for word, seed in (("[V]", 5), ("<w>", 6)))
    chained, marking = apply_concept(*apply_concept(model, clip, one, gate="as trained"), two, gate="as trained")
    prompt = "a <w> and a [V] on the beach"
    got = predict(chained, encode(marking, prompt), encode(marking, NEGATIVE), TIMES)
    result.figures["two concepts, each at its own rows, differ from both at both"] = (
        0.0,
        rel(expected(joined(one, two), got.x, encoded(prompt, one, two)), got.positive),
    )
    alone = predict(chained, encode(marking, PROMPT), encode(marking, "a <w>"), TIMES)
    text = encoded(PROMPT, one)
    result.figure(
        "of two, one in its own prompt", alone.positive, expected(one, alone.x, text), expected(None, alone.x, text)
    )
    return result


@check
def gate_picture() -> Result:
    """With the trigger the picture is the ungated one, negative and all; without it the base model's, bit for bit."""
    result, (model, clip, _) = Result(), host()
    concept = scaled(random_concept(tokens=2), 0.3)
    everywhere, marking = apply_concept(model, clip, concept, gate="off")
    gated, _ = apply_concept(model, clip, concept, gate="picture")
    base = picture(model, encode(clip, PLAIN), encode(clip, NEGATIVE), batch=2)
    same = picture(gated, encode(marking, PLAIN), encode(marking, NEGATIVE), batch=2)
    result.sentences["without the trigger: the base's picture"] = torch.equal(same, base)
    apart = predict(gated, encode(marking, PLAIN), encode(clip, NEGATIVE), TIMES, batch=2)
    result.sentences[f"a negative of the loader's CLIP is drawn with it ({apart.batches})"] = apart.batches == [4]
    positive, negative = encode(marking, PROMPT), encode(marking, NEGATIVE)
    wanted, got = (predict(one, positive, negative, TIMES, batch=2) for one in (everywhere, gated))
    plain = predict(model, encode(clip, PLAIN), negative, TIMES, batch=2)
    result.figure("with the trigger: as ungated", got.positive, wanted.positive, plain.positive)
    result.figure("its negative: as ungated", got.negative, wanted.negative, plain.negative)
    result.sentences[f"one forward ({got.batches})"] = got.batches == [4]
    again = picture(gated, encode(marking, PLAIN), encode(marking, NEGATIVE), batch=2)
    result.sentences["afterwards, without the trigger: the base's picture"] = torch.equal(again, base)
    return result


@check
def gate_in_a_linear() -> Result:
    """The LoRA on parts of one Linear's outputs: at chosen samples, apart or together, and at rows; whatever way the output lies."""
    result, x, own = Result(), noise(5, 3, 6), noise(12, 6, seed=2)
    first, last = ((noise(rank, 6, seed=rank), noise(4, rank, seed=10 + rank)) for rank in (2, 3))
    lora = RowLora("qkv", Moved(torch.cat([first[0], last[0]])), ((0, Moved(first[1])), (8, Moved(last[1]))))
    change = torch.zeros(5, 3, 12)
    change[..., :4], change[..., 8:] = (x @ a.T @ b.T for a, b in (first, last))
    layers = {
        "as a Linear has it": lambda out: out.clone(),
        "within a wider one": lambda out: torch.cat([out, out], -1)[..., :12],
        "channels first": lambda out: out.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "rows first": lambda out: out.transpose(0, 1).contiguous().transpose(0, 1),  # lies in no one row after another
    }
    here = torch.zeros(5, 3, dtype=torch.bool)
    here[[0, 1, 1, 3], [2, 0, 1, 1]] = True
    for gate in ("conditioning", "rows"):
        where = Where.of(here, gate, x.device)
        places = here if gate == "rows" else here.any(-1, keepdim=True).expand(-1, 3)
        for case, lies in layers.items():
            out = x @ own.T
            got, expected = lora.hook(where)(None, (x,), lies(out)), out + change * places[..., None]
            result.figure(f"{gate}, {case}", got, expected, out)
            result.sentences[f"{gate}, {case}: elsewhere nothing, bit for bit"] = torch.equal(
                got[~places], out[~places]
            )
    without_rows = x[:, 0], (x @ own.T)[:, 0]  # as adaLN's
    got = lora.hook(Where.of(here, "conditioning", x.device))(None, without_rows[:1], without_rows[1].clone())
    chosen = here.any(-1)[:, None]
    result.figure("without rows", got, without_rows[1] + change[:, 0] * chosen, without_rows[1])
    result.raises(
        "another batch", "Another node changed", lambda: lora.hook(Where.of(here[:4], "rows", x.device))(None, (x,), x)
    )
    return result


@check
def gate_in_few_kernels() -> Result:
    """One operation for each Linear that has a LoRA, one for each part of its outputs, one for each block's embeddings."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept()

    def operations(gate: str) -> int:
        patched, marking = apply_concept(model, clip, concept, gate=gate)
        texts, counts = (encode(marking, PROMPT), encode(marking, NEGATIVE)), []
        picture(patched, *texts, steps=1)  # puts weights and matrices where they are to be
        for steps in (2, 4):
            with Kernels() as counting:
                picture(patched, *texts, steps=steps)
            counts.append(counting.count)
        return (counts[1] - counts[0]) // 2

    (carried,) = (
        apply_concept(model, clip, concept, gate="picture")[0].model_options["transformer_options"][CONCEPTS].values()
    )
    parts = sum(len(one.parts) for one in carried.row_loras)
    added = operations("conditioning") - operations("off")  # whose LoRA is in the weights
    result.sentences[f"{added} operations a step for {len(carried.row_loras)} Linears with {parts} parts"] = (
        parts < added <= len(carried.row_loras) + parts
    )
    return result


@check
def gate_choices() -> Result:
    """What "as trained" means, and a LoRA that the gate "rows" would silence."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept()
    meant = {gate: gate_of(replace(concept, gate=gate), "as trained") for gate in ("off", "picture", "rows")}
    result.sentences[f"as trained: {meant}"] = list(meant.values()) == ["picture", "picture", "rows"]
    result.sentences["a chosen gate stays"] = gate_of(replace(concept, gate="rows"), "off") == "off"
    matrices = {module: pair for module, pair in concept.lora.matrices.items() if module.endswith(".to_q")}
    pictures_only = replace(concept, lora=LoraWeights(matrices, 8.0))
    result.raises(
        "nothing in the text", "would do nothing", lambda: apply_concept(model, clip, pictures_only, gate="rows")
    )
    return result


@check
def gate_beside_a_lora() -> Result:
    """A stock LoRA on the MODEL and CLIP, before and after: without the trigger the picture is that LoRA's, bit for bit."""
    result, (model, clip, _) = Result(), host()
    concept, other = random_concept(tokens=2), random_concept("<o>", 9, embeddings=False)
    other = scaled(other, 0.3)
    folder = tempfile.mkdtemp()
    save_concept(other, Path(folder) / "other.safetensors")
    folder_paths.folder_names_and_paths["loras"] = ([folder], {".safetensors"})
    stock = lambda model, clip: nodes.LoraLoader().load_lora(model, clip, "other.safetensors", 1.0, 1.0)  # noqa: E731
    beside, beside_clip = stock(model, clip)
    plain = picture(beside, encode(beside_clip, PLAIN), encode(beside_clip, NEGATIVE), batch=2)
    base = picture(model, encode(clip, PLAIN), encode(clip, NEGATIVE), batch=2)
    result.figures["the other LoRA acts"] = (0.0, rel(plain, base))
    for gate in ("picture", "conditioning", "rows"):
        before = apply_concept(beside, beside_clip, concept, gate=gate)
        after = stock(*apply_concept(model, clip, concept, gate=gate))
        for name, (patched, marking) in (("before", before), ("after", after)):
            same = picture(patched, encode(marking, PLAIN), encode(marking, NEGATIVE), batch=2)
            result.sentences[f"{gate}, the LoRA {name}: without the trigger it is as without us"] = torch.equal(
                same, plain
            )
            got = predict(patched, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES, batch=2)
            alone = predict(beside, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES, batch=2)
            result.sentences[f"{gate}, the LoRA {name}: one forward ({got.batches})"] = got.batches == [4]
            if gate != "picture":
                result.sentences[f"{gate}, the LoRA {name}: the negative too"] = torch.equal(
                    got.negative, alone.negative
                )
            result.figures[f"{gate}, the LoRA {name}: with the trigger it acts"] = (
                0.0,
                rel(got.positive, alone.positive),
            )
    return result
