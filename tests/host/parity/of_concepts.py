"""apply.py, lora.py and acting.py: concepts in sampling against the core's own network."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import folder_paths
import torch
from common import LATENT, Result, check, encode, host, picture, predict, pure, random_concept, rel
from purecc_pack.nodes.host import convert
from purecc_pack.nodes.host.apply import apply_concept
from purecc_pack.purecc.concept import Concept, ConceptEmbeddings, LoraWeights, save_concept
from purecc_pack.purecc.encoding import EncodedText, PocketTextEncoder, TextBatch
from purecc_pack.purecc.network import AdaptedNetwork

import nodes

PROMPT, PLAIN, NEGATIVE = "a [V] on the beach", "a dog on the beach", "a small cat in snow"
TIMES = 0.7


def encoded(prompt: str, *concepts: Concept) -> EncodedText:
    """By the pocket's own encoders; of several concepts, the later ones' slots come after the earlier ones'."""
    marks, slots, plain = 0, 0, prompt
    for concept in concepts:
        others = {c.trigger: c.placeholder for c in concepts if c is not concept}
        encoder = PocketTextEncoder(pure(), concept.trigger, concept.placeholder)
        own = prompt
        for trigger, placeholder in others.items():
            own = own.replace(trigger, placeholder.words)
        made = encoder.encode(own)
        marks = marks + torch.where(made.marks > 0, made.marks + slots, 0)
        slots, plain = slots + concept.tokens, plain.replace(concept.trigger, concept.placeholder.words)
    rows, pooled = pure().encode_text([plain])
    return EncodedText(rows[0], pooled[0], torch.zeros(rows.shape[1], dtype=torch.int64) + marks)


def adapted(concept: Concept | None) -> AdaptedNetwork:
    network = AdaptedNetwork(convert.to_diffusers(host()[0]))
    if concept:
        network.add_concept("concept", concept)
    return network


@cache
def plain_network() -> AdaptedNetwork:
    return adapted(None)


def expected(concept: Concept | None, x: torch.Tensor, *texts: EncodedText) -> torch.Tensor:
    """The core's velocity for the texts side by side (one for each picture of `x`, or one for all)."""
    with torch.inference_mode(False), torch.no_grad():
        network = adapted(concept) if concept else plain_network()
        batch = TextBatch.of(list(texts) if len(texts) == len(x) else [texts[0]] * len(x))
        return network.velocity(x.clone(), torch.full((len(x),), TIMES), batch, "concept" if concept else None)


def scaled(concept: Concept, strength: float) -> Concept:
    return replace(concept, lora=LoraWeights(concept.lora.matrices, concept.lora.alpha * strength))


def joined(one: Concept, two: Concept) -> Concept:
    """Both at once, as one concept: LoRA of the summed rank, embeddings one after the other."""
    matrices = {
        module: (torch.cat([a, two.lora.matrices[module][0]]), torch.cat([b, two.lora.matrices[module][1]], 1))
        for module, (a, b) in one.lora.matrices.items()
    }
    table = torch.cat([one.embeddings.clip, two.embeddings.clip], 1)
    lora = LoraWeights(matrices, one.lora.scale * 2 * one.lora.rank)
    return replace(one, lora=lora, embeddings=ConceptEmbeddings(table, None, one.embeddings.mode))


@check
def lora() -> Result:
    """As weight patches and in chosen rows."""
    result, (model, clip, _) = Result(), host()
    concept, plain = random_concept(embeddings=False), encoded(PLAIN)
    for strength in (1.0, 0.5, -0.3):
        weights, marking = apply_concept(model, clip, concept, strength)
        got = predict(weights, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES)
        acted, without = expected(scaled(concept, strength), got.x, plain), expected(None, got.x, plain)
        result.figure(f"patches, {strength}", got.positive, acted, without)
        rows, marking = apply_concept(model, clip, concept, strength, gate="conditioning")
        got = predict(rows, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES, batch=2)
        acted, without = expected(scaled(concept, strength), got.x, plain), expected(None, got.x, plain)
        result.figure(f"gated, {strength}", got.positive, acted, without)
        base = predict(model, encode(clip, PLAIN), encode(clip, NEGATIVE), TIMES, batch=2)
        result.sentences[f"gated, {strength}: the negative is the base's, bit for bit"] = torch.equal(
            got.negative, base.negative
        )
        result.sentences[f"gated, {strength}: one forward ({got.batches})"] = got.batches == [4]
    with tempfile.TemporaryDirectory() as folder:
        save_concept(concept, Path(folder) / "c.safetensors")
        folder_paths.folder_names_and_paths["loras"] = ([folder], {".safetensors"})
        stock = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "c.safetensors", 0.5)[0]
    ours, marking = apply_concept(model, clip, concept, 0.5)
    pairs = [predict(one, encode(clip, PLAIN), encode(clip, NEGATIVE), TIMES) for one in (ours, stock)]
    result.sentences["the stock loader reads the file, and does the same"] = torch.equal(
        pairs[0].positive, pairs[1].positive
    )
    return result


@check
def embeddings() -> Result:
    """Both modes, several tokens, blended, and together with a LoRA."""
    result, (model, clip, _) = Result(), host()
    for mode, tokens in (("replace", 1), ("replace", 2), ("offset", 2)):
        concept = random_concept(lora=False, mode=mode, tokens=tokens)
        patched, marking = apply_concept(model, clip, concept)
        got = predict(patched, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES, batch=2)
        text = encoded(PROMPT, concept)
        without = expected(None, got.x, text)
        result.figure(f"{mode}, {tokens} tokens", got.positive, expected(concept, got.x, text), without)
        base = predict(model, encode(clip, PLAIN), encode(clip, NEGATIVE), TIMES, batch=2)
        result.sentences[f"{mode}, {tokens}: the negative is the base's, bit for bit"] = torch.equal(
            got.negative, base.negative
        )
        result.sentences[f"{mode}, {tokens}: one forward ({got.batches})"] = got.batches == [4]
        for strength in (0.4, 1.3):
            part, marking = apply_concept(model, clip, concept, embedding_strength=strength)
            got = predict(part, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES)
            acted, without = blended(concept, strength, got.x, text), expected(None, got.x, text)
            result.figure(f"{mode}, {tokens} tokens at {strength}", got.positive, acted, without)
    for mode in ("replace", "offset"):
        concept = random_concept(mode=mode, tokens=2)
        text = encoded(PROMPT, concept)
        for gate in ("off", "conditioning"):
            both, marking = apply_concept(model, clip, concept, gate=gate)
            got = predict(both, encode(marking, PROMPT), encode(marking, NEGATIVE), TIMES)
            part = expected(replace(concept, embeddings=None), got.x, text)
            result.figure(f"{mode} and LoRA, gate {gate}", got.positive, expected(concept, got.x, text), part)
    return result


def blended(concept: Concept, strength: float, x: torch.Tensor, text: EncodedText) -> torch.Tensor:
    """row + s (embedding - row), or row + s embedding, by hooks of this test's own."""
    transformer, handles = pure().transformer, []
    for block, module in enumerate(transformer.transformer_blocks):

        def act(module, args, kwargs, block=block):
            stream = kwargs["encoder_hidden_states"].clone()
            for row, mark in enumerate(text.marks.tolist()):
                if mark:
                    vector = concept.embeddings.clip[block, mark - 1]
                    held = stream[:, row] if concept.embeddings.mode == "replace" else 0
                    stream[:, row] += strength * (vector - held)
            return args, {**kwargs, "encoder_hidden_states": stream}

        handles.append(module.register_forward_pre_hook(act, with_kwargs=True))
    try:
        rows, pooled = text.rows[None].expand(len(x), -1, -1), text.pooled[None].expand(len(x), -1)
        return transformer(x, rows, pooled, torch.full((len(x),), 1000 * TIMES)).sample
    finally:
        for handle in handles:
            handle.remove()


@check
def base_is_kept() -> Result:
    """Prompts without a trigger, and strength 0: the base model's picture bit for bit."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(tokens=2)
    base = picture(model, encode(clip, PLAIN), encode(clip, NEGATIVE), batch=2)
    gated, marking = apply_concept(model, clip, concept, gate="conditioning")
    for name, one in (("conditionings of Apply Concept's CLIP", marking), ("of the CLIP before it", clip)):
        same = picture(gated, encode(one, PLAIN), encode(one, NEGATIVE), batch=2)
        result.sentences[f"gated, {name}: the base's picture"] = torch.equal(same, base)
    acted = picture(gated, encode(marking, PROMPT), encode(marking, NEGATIVE), batch=2)
    result.figures["with the trigger it is another picture"] = (0.0, float((acted - base).norm() / base.norm()))
    for gate in ("off", "conditioning"):
        off, marking = apply_concept(model, clip, concept, 0.0, 0.0, gate)
        plain = PLAIN.replace("dog", concept.placeholder.words)
        expected_picture = picture(model, encode(clip, plain), encode(clip, NEGATIVE))
        none = picture(off, encode(marking, PROMPT), encode(marking, NEGATIVE))
        result.sentences[f"strengths 0, gate {gate}: the class word's picture"] = torch.equal(none, expected_picture)
    applied, _ = apply_concept(model, clip, concept)  # weights patched, loaded, unloaded
    picture(applied, encode(clip, PLAIN), encode(clip, NEGATIVE))
    after = picture(model, encode(clip, PLAIN), encode(clip, NEGATIVE), batch=2)
    result.sentences["the given MODEL is the base afterwards"] = torch.equal(after, base)
    return result


@check
def span() -> Result:
    """A part of the sampling: inside it all as without a span, outside it the base reading the class word, bit for bit."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(tokens=2)
    at = 0.5625  # where this schedule of shift 3 has the noise level TIMES
    for gate in ("off", "picture", "conditioning", "rows"):
        whole, marking = apply_concept(model, clip, concept, gate=gate)
        texts = [encode(marking, PROMPT), encode(marking, NEGATIVE)]
        full, base = predict(whole, *texts, TIMES), predict(model, *texts, TIMES)
        for ends, name in (
            ((at - 0.1, at + 0.1), "inside"),
            ((0.0, at - 0.1), "ended"),
            ((at + 0.1, 1.0), "not begun"),
        ):
            got = predict(apply_concept(model, clip, concept, gate=gate, span=ends)[0], *texts, TIMES)
            wanted, other = (full, base) if name == "inside" else (base, full)
            if name == "inside":
                result.figure(f"{gate}, inside", got.positive, wanted.positive, other.positive)
                negative_moves = gate in ("off", "picture")
                same = torch.equal(got.negative, base.negative)
                result.sentences[f"{gate}: the negative moves: {negative_moves}"] = same != negative_moves
            else:
                for side in ("positive", "negative"):
                    result.sentences[f"{gate}, {name}: {side}"] = torch.equal(getattr(got, side), getattr(wanted, side))
    above = 1.0000001  # where some shifts begin by rounding, and every sampler that churns
    for ends in ((0.0, 1.0), (0.0, 0.5)):
        patched, marking = apply_concept(model, clip, concept, gate="conditioning", span=ends)
        texts = [encode(marking, PROMPT), encode(marking, NEGATIVE)]
        moved = rel(predict(patched, *texts, above).positive, predict(model, *texts, above).positive)
        result.sentences[f"from the first noise level on, also above 1: {ends}, {moved:.3f}"] = moved > 1e-3
    result.raises("empty", "the end must be later", lambda: apply_concept(model, clip, concept, span=(0.5, 0.5)))
    return result


@check
def several_concepts() -> Result:
    """Two in one prompt, each at its own rows; one in each conditioning; in any order."""
    result, (model, clip, _) = Result(), host()
    one, two = random_concept("[V]", 5, tokens=2), random_concept("<w>", 6, tokens=1)
    prompt = "a <w> and a [V] on the beach"
    for order in ((one, two), (two, one)):
        chained, marking = model, clip
        for concept in order:
            chained, marking = apply_concept(chained, marking, concept, gate="conditioning")
        got = predict(chained, encode(marking, prompt), encode(marking, NEGATIVE), TIMES)
        first = expected(one, got.x, encoded(prompt.replace("<w>", "dog"), one))
        both = expected(joined(one, two), got.x, encoded(prompt, one, two))
        result.figure(f"both, {order[0].trigger} first", got.positive, both, first)
        got = predict(chained, encode(marking, "a [V] at night"), encode(marking, "a <w> at night"), TIMES)
        alone = expected(one, got.x, encoded("a [V] at night", one))
        result.figure(
            f"positive one, {order[0].trigger} first",
            got.positive,
            alone,
            expected(None, got.x, encoded("a [V] at night", one)),
        )
        alone = expected(two, got.x, encoded("a <w> at night", two))
        result.figure(
            f"negative the other, {order[0].trigger} first",
            got.negative,
            alone,
            expected(None, got.x, encoded("a <w> at night", two)),
        )
        result.sentences[f"one forward, {order[0].trigger} first: {got.batches}"] = got.batches == [2]
    return result


@check
def shapes() -> Result:
    """Other latent sizes and long prompts."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept()
    patched, marking = apply_concept(model, clip, concept, gate="conditioning")
    long = "a big tree and a small house and " * 3 + "a [V]"
    got = predict(patched, encode(marking, long), encode(marking, NEGATIVE), TIMES)
    rows = encode(marking, long)[0][0]
    result.sentences[f"a prompt of {rows.shape[1]} rows, two forwards: {got.batches}"] = rows.shape[
        1
    ] == 48 and got.batches == [1, 1]
    base = predict(model, encode(marking, long), encode(marking, NEGATIVE), TIMES)
    result.figures["its concept acts"] = (0.0, float((got.positive - base.positive).norm() / base.positive.norm()))
    result.sentences["and the negative is the base's"] = torch.equal(got.negative, base.negative)
    latent = {"samples": torch.zeros(1, LATENT[0], 8, 14)}
    made = nodes.KSampler().sample(
        patched, 1, 2, 4.0, "euler", "normal", encode(marking, PROMPT), encode(marking, ""), latent
    )[0]["samples"]
    result.sentences["8 x 14 latents"] = made.shape == (1, 16, 8, 14) and bool(made.isfinite().all())
    return result
