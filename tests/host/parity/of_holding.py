"""Surroundings held at the base model's while the host samples, against the core."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from common import Prediction, Result, check, encode, host, noise, picture, predict, random_concept
from of_concepts import NEGATIVE, PLAIN, PROMPT, TIMES, adapted, encoded, expected, joined, scaled
from purecc_pack.nodes.follow import Validation
from purecc_pack.nodes.host import holding, session
from purecc_pack.nodes.host.acting import Places
from purecc_pack.nodes.host.apply import apply_concept
from purecc_pack.nodes.host.text import HostTextEncoder
from purecc_pack.nodes.types import Advanced, TrainingData
from purecc_pack.purecc.concept_set import build_concept_set
from purecc_pack.purecc.encoding import TextBatch
from purecc_pack.purecc.flow import LatentScaling
from purecc_pack.purecc.place import LAYOUT, kept_in_place
from purecc_pack.purecc.sampling import euler, guided_velocity

import nodes


def _seen(model, clip, prompt: str = PROMPT, batch: int = 2) -> Prediction:
    return predict(model, encode(clip, prompt), encode(clip, NEGATIVE), TIMES, batch=batch)


@check
def surroundings() -> Result:
    """In the place the concept's velocities, around it the base's, for prompt and negative; nothing where no trigger is."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(tokens=2)
    texts = encoded(NEGATIVE, concept), encoded(PROMPT, concept)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    free, _ = apply_concept(model, clip, concept, gate="picture")
    got, acted = _seen(held, knows), _seen(free, knows)
    ours, base = ([expected(one, got.x, text) for text in texts] for one in (concept, None))
    negative, positive = kept_in_place(ours, base, [False, True])
    result.figure("picture: the prompt's", got.positive, positive, acted.positive)
    result.figure("picture: the negative's", got.negative, negative, acted.negative)
    result.figure("picture: not the base's either", got.positive, positive, base[1])
    result.sentences[f"picture: two forwards ({got.batches})"] = got.batches == [4, 4]

    held, knows = apply_concept(model, clip, concept, gate="conditioning", hold_surroundings=True)
    got = _seen(held, knows)
    ours, base = (expected(one, got.x, texts[1]) for one in (concept, None))
    result.figure("conditioning: the prompt's", got.positive, kept_in_place([ours], [base], [True])[0], ours)
    plain = _seen(model, clip, PLAIN)
    result.sentences["conditioning: the negative is the base's"] = torch.equal(got.negative, plain.negative)
    result.sentences[f"conditioning: the base reads the prompt alone ({got.batches})"] = got.batches == [4, 2]

    base = picture(model, encode(clip, PLAIN), encode(clip, NEGATIVE), batch=2)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    same = picture(held, encode(knows, PLAIN), encode(knows, NEGATIVE), batch=2)
    result.sentences["without the trigger: the base's picture"] = torch.equal(same, base)
    once = _seen(held, knows, PLAIN)
    result.sentences[f"without the trigger: one forward ({once.batches})"] = once.batches == [4]
    early = predict(held, encode(knows, PROMPT), encode(knows, NEGATIVE), LAYOUT + 0.01)
    base = predict(model, encode(knows, PROMPT), encode(knows, NEGATIVE), LAYOUT + 0.01)
    result.sentences["while the picture is laid out: the base's"] = torch.equal(early.positive, base.positive)
    result.sentences[f"while the picture is laid out: one forward ({early.batches})"] = early.batches == [2]
    after = predict(held, encode(knows, PROMPT), encode(knows, NEGATIVE), LAYOUT - 0.01)
    result.sentences[f"after it: two ({after.batches})"] = after.batches == [2, 2]
    later, _ = apply_concept(model, clip, concept, gate="picture", span=(0.5, 1.0), hold_surroundings=True)
    before = predict(later, encode(knows, PROMPT), encode(knows, NEGATIVE), 0.99)
    result.sentences[f"before its span: one forward ({before.batches})"] = before.batches == [2]
    off, knows_too = apply_concept(model, clip, concept, gate="off", hold_surroundings=True)
    result.sentences["the gate off is a plain LoRA"] = _seen(off, knows_too).batches == [4]
    style, _ = apply_concept(model, clip, replace(concept, kind="style"), gate="picture", hold_surroundings=True)
    result.sentences["a style has no surroundings"] = _seen(style, knows).batches == [4]
    return result


@check
def surroundings_of_two() -> Result:
    """Two concepts have one place if both hold; one that does not goes on acting in the surroundings too."""
    result, (model, clip, _) = Result(), host()
    one, two = (scaled(random_concept(word, seed), 0.5) for word, seed in (("[V]", 5), ("<w>", 6)))
    prompt = "a [V] and a <w> on the beach"
    texts = encoded(NEGATIVE, one, two), encoded(prompt, one, two)
    for holds, around in (((True, True), None), ((True, False), two), ((False, True), one)):
        chain = apply_concept(model, clip, one, gate="picture", hold_surroundings=holds[0])
        chain, knows = apply_concept(*chain, two, gate="picture", hold_surroundings=holds[1])
        got = _seen(chain, knows, prompt)
        ours = [expected(joined(one, two), got.x, text) for text in texts]
        base = [expected(None, got.x, text) for text in texts]
        if around:
            silent = two.trigger if around is one else one.trigger
            read = [encoded(text.replace(silent, "dog"), around) for text in (NEGATIVE, prompt)]
            base = [expected(around, got.x, text) for text in read]
        result.figure(f"hold: {holds}", got.positive, kept_in_place(ours, base, [False, True])[1], ours[1])
        result.sentences[f"hold: {holds}: two forwards ({got.batches})"] = got.batches == [4, 4]
    return result


@check
def surroundings_whoever_asks() -> Result:
    """A text that names the concept is told from one that does not, also where the host copies it or a node asks for it apart."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(tokens=2)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    positive, negative = encode(knows, PROMPT), encode(knows, NEGATIVE)
    plain = predict(held, positive, negative, TIMES)
    free = predict(apply_concept(model, clip, concept, gate="picture")[0], positive, negative, TIMES)

    whole = nodes.ConditioningSetArea().append(positive, 128, 128, 0, 0, 1.0)[0]
    area = predict(held, whole, negative, TIMES)
    result.figure("of an area, the prompt's", area.positive, plain.positive, free.positive)
    result.figure("of an area, the negative's", area.negative, plain.negative, free.negative)

    apart: dict[str, torch.Tensor] = {}

    def ask(args: dict) -> torch.Tensor:
        for name in ("uncond", "cond"):
            asked = (args["model"], [args[name]], args["input"], args["sigma"], args["model_options"])
            apart[name] = (args["input"] - comfy.samplers.calc_cond_batch(*asked)[0]) / TIMES
        return args["denoised"]

    asking = held.clone()
    asking.set_model_sampler_post_cfg_function(ask)
    predict(asking, positive, negative, TIMES)
    result.figure("asked for apart, the prompt's", apart["cond"], plain.positive, free.positive)
    result.figure("asked for apart, the negative's", apart["uncond"], plain.negative, free.negative)

    both = predict(held, positive, encode(knows, "a [V] in snow"), TIMES)
    texts = encoded("a [V] in snow", concept), encoded(PROMPT, concept)
    ours, base = ([expected(one, both.x, text) for text in texts] for one in (concept, None))
    negative_too, prompt = kept_in_place(ours, base, [True, True])
    result.figure("named in both, the prompt's", both.positive, prompt, ours[1])
    result.figure("named in both, the negative's", both.negative, negative_too, ours[0])

    weak, _ = apply_concept(model, clip, concept, 0.0, gate="picture", hold_surroundings=True)
    batches = predict(weak, positive, negative, TIMES).batches
    result.sentences[f"without its LoRA the negative is not asked for again ({batches})"] = batches == [2, 1]
    seen, place = torch.ones(1, 16, 4, 4), torch.ones(1, 1, 4, 4)
    last = Places(x_t=seen, place=place)
    result.sentences["the place of the same x_t, of no other"] = last.of(seen) is place and last.of(2 * seen) is None
    result.sentences["nor of one on another device"] = last.of(seen.to("meta")) is None
    return result


@check
def inpainting() -> Result:
    """The place is looked for in the noise mask; a part of the picture, as of tiles, has none."""
    result, (model, clip, _) = Result(), host()
    held, knows = apply_concept(model, clip, random_concept(), gate="picture", hold_surroundings=True)
    asked, own = [], holding.place_of
    latent = {"samples": torch.zeros(2, 16, 16, 16), "noise_mask": torch.zeros(1, 128, 128)}
    latent["noise_mask"][..., :64] = 1
    texts = encode(knows, PROMPT), encode(knows, NEGATIVE)
    for drawn in (latent, {"samples": latent["samples"]}):
        holding.place_of = lambda *args: asked.append(args[3]) or own(*args)
        try:
            nodes.KSampler().sample(held, 3, 3, 4.0, "euler", "normal", *texts, drawn)
        finally:
            holding.place_of = own
    masked, plain = [one for one in asked if one is not None], [one for one in asked if one is None]
    halves = [bool((one[..., :8] > 0).all()) and not bool((one[..., 8:] > 0).any()) for one in masked]
    result.sentences[f"each step that is not laid out ({len(masked)})"] = len(masked) == len(plain) > 0
    result.sentences["the half that is drawn"] = all(halves) and masked[0].shape == (2, 1, 16, 16)
    places = Places(torch.ones(1, 16, 16, 16))
    result.sentences["of a tile nothing is known"] = places.drawn_in(torch.zeros(1, 16, 8, 8)) is None
    return result


@check
def training_previews() -> Result:
    """The pictures of a training show a thing as Apply Concept comes, its surroundings held; a style, which has none, not."""
    result, (_, clip, vae) = Result(), host()
    for kind in ("instance", "style"):
        concept = replace(random_concept(tokens=2), kind=kind)
        with session.outside_inference():
            data = build_concept_set(
                [torch.rand(128, 128, 3, generator=torch.Generator().manual_seed(1))], ["a dog on the beach"], trigger="[V]", class_word="dog",
                kind=kind, tokens=2, encode_picture=lambda picture: session.encode_pictures(vae, picture[None])[0],
                text_encoder=lambda trigger, placeholder: HostTextEncoder(clip, trigger, placeholder),
            )  # fmt: skip
            network, scaling = adapted(concept), LatentScaling(1.0, 0.0)
            shown = Validation(TrainingData(data, vae, None), 3.0, Advanced())
            text, null = data.encoded[data.examples[0].texts.complete], data.encoded[""]
            got = shown._draw(network, scaling, text, "concept", 3)
            words = [TextBatch.of([one]) for one in (text, null)]
            start = noise(1, *data.examples[0].latent.shape, seed=3)
            pictures = {}
            for holds in (True, False):
                with network.gated("concept", concept.sampling_gate), torch.no_grad():
                    velocity = guided_velocity(network, *words, 4.0, "concept", hold_surroundings=holds)
                    pictures[holds] = session.decode_latents(vae, euler(velocity, start, 16, 3.0))
        held = kind == "instance"
        result.figure(f"{kind}: surroundings held: {held}", got, pictures[held], pictures[not held])
    return result
