"""Surroundings held at the base model's while the host samples, against the core."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from common import LATENT, Prediction, Result, check, encode, host, noise, picture, predict, random_concept
from of_concepts import NEGATIVE, PLAIN, PROMPT, TIMES, adapted, encoded, expected, joined, scaled
from purecc_pack.nodes.follow import Validation
from purecc_pack.nodes.host import holding, session
from purecc_pack.nodes.host.acting import Places, _drawn
from purecc_pack.nodes.host.apply import apply_concept
from purecc_pack.nodes.host.text import HostTextEncoder
from purecc_pack.nodes.types import Advanced, TrainingData
from purecc_pack.purecc.concept_set import build_concept_set
from purecc_pack.purecc.encoding import TextBatch
from purecc_pack.purecc.flow import LatentScaling
from purecc_pack.purecc.place import LAYOUT, LOOK_SHARE, Held, left_to_base, places_of
from purecc_pack.purecc.sampling import euler, guided_velocity

import nodes


def _seen(model, clip, prompt: str = PROMPT, batch: int = 2) -> Prediction:
    return predict(model, encode(clip, prompt), encode(clip, NEGATIVE), TIMES, batch=batch)


def kept_in_place(ours: list, base: list, names: list[bool]) -> list[torch.Tensor]:
    """Of one thing."""
    held = Held(ours, names)
    return left_to_base(base, [replace(held, place=places_of([held.change(base)])[0])])


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
    result.sentences[f"conditioning: the concept is asked of the prompt alone ({got.batches})"] = got.batches == [4, 2]

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
    return result


@check
def a_look() -> Result:
    """A style changes the picture by a share, in the texts where its gate lets it act; the base lays the picture out."""
    result, (model, clip, _) = Result(), host()
    concept = replace(random_concept(tokens=2), kind="style")
    texts = encoded(NEGATIVE, concept), encoded(PROMPT, concept)
    held, knows = apply_concept(model, clip, concept, gate="conditioning", hold_surroundings=True)
    got, plain = _seen(held, knows), _seen(model, clip, PLAIN)
    ours, base = (expected(one, got.x, texts[1]) for one in (concept, None))
    result.figure("conditioning: the prompt's", got.positive, torch.lerp(base, ours, LOOK_SHARE), ours)
    result.sentences["conditioning: the negative is the base's"] = torch.equal(got.negative, plain.negative)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    got = _seen(held, knows)
    ours, base = (expected(one, got.x, texts[0]) for one in (concept, None))
    result.figure("picture: the negative's", got.negative, torch.lerp(base, ours, LOOK_SHARE), ours)
    early = predict(held, encode(knows, PROMPT), encode(knows, NEGATIVE), LAYOUT + 0.01)
    base = predict(model, encode(knows, PROMPT), encode(knows, NEGATIVE), LAYOUT + 0.01)
    result.sentences["while the picture is laid out: the base's"] = torch.equal(early.positive, base.positive)
    free, knows = apply_concept(model, clip, concept, gate="conditioning")
    result.figure("not held: all of it", _seen(free, knows).positive, expected(concept, got.x, texts[1]), base.positive)
    return result


@check
def surroundings_of_two() -> Result:
    """Each is asked alone and has a place of its own; one that does not hold acts beside each, and in the surroundings too."""
    result, (model, clip, _) = Result(), host()
    one, two = (scaled(random_concept(word, seed), 0.5) for word, seed in (("[V]", 5), ("<w>", 6)))
    look = replace(two, kind="style")
    prompt = "a [V] and a <w> on the beach"
    silent = {
        concept.trigger: [text.replace(concept.trigger, "dog") for text in (NEGATIVE, prompt)] for concept in (one, two)
    }
    alone = {
        concept.trigger: [encoded(text, concept) for text in silent[other.trigger]]
        for concept, other in ((one, two), (two, one))
    }

    def applied(first, second, gates=("picture", "picture"), holds=(True, True)):
        chain = apply_concept(model, clip, first, gate=gates[0], hold_surroundings=holds[0])
        return apply_concept(*chain, second, gate=gates[1], hold_surroundings=holds[1])

    got, free = (_seen(*applied(one, two, holds=(holds, holds)), prompt) for holds in (True, False))
    plain = [expected(None, got.x, text) for text in (encoded(NEGATIVE, one, two), encoded(prompt, one, two))]
    things = [Held([expected(c, got.x, text) for text in alone[c.trigger]], [False, True]) for c in (one, two)]
    places = places_of([thing.change(plain) for thing in things])
    things = [replace(thing, place=place) for thing, place in zip(things, places, strict=True)]
    negative, positive = left_to_base(plain, things)
    result.figure("two things, the prompt's", got.positive, positive, free.positive)
    result.figure("two things, the negative's", got.negative, negative, free.negative)
    shared = left_to_base(plain, [replace(thing, place=sum(places)) for thing in things])[1]
    result.figure("two things, not in one place", got.positive, positive, shared)
    result.sentences[f"the base, then each ({got.batches})"] = got.batches == [4, 4, 4]

    chain, knows = applied(one, two)
    got = predict(chain, encode(knows, "a [V] on the beach"), encode(knows, "a <w> in snow"), TIMES, batch=2)
    read = ("a <w> in snow", "a [V] on the beach")
    plain_ = [expected(None, got.x, text) for text in (encoded(text, one, two) for text in read)]
    held = []
    for concept, other, names in ((one, two, [False, True]), (two, one, [True, False])):
        words = [encoded(text.replace(other.trigger, "dog"), concept) for text in read]
        held.append(Held([expected(concept, got.x, text) for text in words], names))
    of_each = places_of([each.change(plain_) for each in held])
    crossed = left_to_base(plain_, [replace(each, place=place) for each, place in zip(held, of_each, strict=True)])
    named = left_to_base(plain_, [Held(e.found, [True, True], place) for e, place in zip(held, of_each, strict=True)])
    result.figure("the negative names the other, the prompt's", got.positive, crossed[1], named[1])
    result.figure("the negative names the other, the negative's", got.negative, crossed[0], named[0])

    got = _seen(*applied(one, look, ("picture", "conditioning")), prompt)
    thing = replace(things[0], place=places_of([things[0].change(plain)])[0])
    expected_ = left_to_base(plain, [thing, Held([None, things[1].found[1]], [False, True])])
    result.figure("a thing in a look, the prompt's", got.positive, expected_[1], plain[1])
    result.figure("a thing in a look, the negative's", got.negative, expected_[0], plain[0])
    result.sentences[f"the look is not asked of the negative ({got.batches})"] = got.batches == [4, 4, 2]

    for holds, around in (((True, False), two), ((False, True), one)):
        got = _seen(*applied(one, two, holds=holds), prompt)
        both = [
            expected(joined(one, two), got.x, text) for text in (encoded(NEGATIVE, one, two), encoded(prompt, one, two))
        ]
        base = [expected(around, got.x, text) for text in alone[around.trigger]]
        result.figure(f"hold: {holds}", got.positive, kept_in_place(both, base, [False, True])[1], both[1])
        result.sentences[f"hold: {holds}: two forwards ({got.batches})"] = got.batches == [4, 4]
    return result


class _Apart(comfy.samplers.CFGGuider):
    """Asks for the negative alone, and first."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        self.seen = {}
        for name in ("negative", "positive"):
            texts = [self.conds[name]]
            (found,) = comfy.samplers.calc_cond_batch(self.inner_model, texts, x, timestep, model_options)
            self.seen[name] = (x - found) / timestep.flatten()[0]
        return found


def _negative_first(model, positive: list, negative: list) -> dict[str, torch.Tensor]:
    """The velocities at TIMES."""
    guider = _Apart(model)
    guider.set_conds(positive, negative)
    x = noise(1, *LATENT, seed=1)
    probe = lambda model_fn, x, sigmas, extra_args=None, **_: model_fn(x, sigmas[0].expand(len(x)), **extra_args)  # noqa: E731
    guider.sample(x, torch.zeros_like(x), comfy.samplers.KSAMPLER(probe), torch.tensor([TIMES, 0.0]))
    return guider.seen


@check
def surroundings_whoever_asks() -> Result:
    """A text that names the concept is told from one that does not, also where the host copies it or a node asks for it apart."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(tokens=2)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    positive, negative = encode(knows, PROMPT), encode(knows, NEGATIVE)
    encoded_both = encoded(NEGATIVE, concept), encoded(PROMPT, concept)
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

    first = _negative_first(held, positive, negative)
    ours, base = ([expected(one, plain.x, text) for text in encoded_both] for one in (concept, None))
    alone = kept_in_place(ours, base, [False, True])
    by_itself = left_to_base(
        base[:1], [Held(ours[:1], [False], places_of([Held(ours[:1], [True]).change(base[:1])])[0])]
    )
    result.figure("the negative first, by what changes in it", first["negative"], by_itself[0], alone[0])
    result.figure("then the prompt, by what changes in that", first["positive"], alone[1], ours[1])

    both = predict(held, positive, encode(knows, "a [V] in snow"), TIMES)
    texts = encoded("a [V] in snow", concept), encoded(PROMPT, concept)
    ours, base = ([expected(one, both.x, text) for text in texts] for one in (concept, None))
    negative_too, prompt = kept_in_place(ours, base, [True, True])
    result.figure("named in both, the prompt's", both.positive, prompt, ours[1])
    result.figure("named in both, the negative's", both.negative, negative_too, ours[0])

    weak, _ = apply_concept(model, clip, concept, 0.0, gate="picture", hold_surroundings=True)
    batches = predict(weak, positive, negative, TIMES).batches
    result.sentences[f"without its LoRA the negative is not asked for again ({batches})"] = batches == [2, 1]
    seen, places = torch.ones(1, 16, 4, 4), {1: torch.ones(1, 1, 4, 4)}
    for case, other in (
        ("of another x_t", 2 * seen),
        ("on another device", seen.to("meta")),
        ("of another size", seen[:, :8]),
    ):
        last = Places(x_t=seen, places=places)
        result.sentences[f"the places of the same x_t, none {case}"] = last.of(seen) is places and last.of(other) == {}
    return result


@check
def inpainting() -> Result:
    """The place is looked for in the noise mask; a part of the picture, as of tiles, has none."""
    result, (model, clip, _) = Result(), host()
    held, knows = apply_concept(model, clip, random_concept(), gate="picture", hold_surroundings=True)
    asked, own = [], holding.places_of
    latent = {"samples": torch.zeros(2, 16, 16, 16), "noise_mask": torch.zeros(1, 128, 128)}
    latent["noise_mask"][..., :64] = 1
    texts = encode(knows, PROMPT), encode(knows, NEGATIVE)
    for drawn in (latent, {"samples": latent["samples"]}):
        holding.places_of = lambda *args: asked.append(args[1]) or own(*args)
        try:
            nodes.KSampler().sample(held, 3, 3, 4.0, "euler", "normal", *texts, drawn)
        finally:
            holding.places_of = own
    masked, plain = [one for one in asked if one is not None], [one for one in asked if one is None]
    halves = [bool((one[..., :8] > 0).all()) and not bool((one[..., 8:] > 0).any()) for one in masked]
    result.sentences[f"each step that is not laid out ({len(masked)})"] = len(masked) == len(plain) > 0
    result.sentences["the half that is drawn"] = all(halves) and masked[0].shape == (2, 1, 16, 16)
    of_each = torch.zeros(2, 16, 16, 16)
    of_each[0, ..., :8], of_each[1, ..., 8:] = 1, 1
    for name, mask in (("of each picture", of_each[:, :1]), ("as newer hosts give it", of_each)):
        result.sentences[f"masks {name}"] = torch.equal(_drawn(mask, torch.zeros(2, 16, 16, 16)), of_each)
    places = Places(torch.ones(1, 16, 16, 16))
    result.sentences["of a tile nothing is known"] = places.drawn_in(torch.zeros(1, 16, 8, 8)) is None
    return result


@check
def training_previews() -> Result:
    """The pictures of a training show a concept as Apply Concept comes, held as its kind is."""
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
            for held in ("instance", "style", None):
                with network.gated("concept", concept.sampling_gate), torch.no_grad():
                    velocity = guided_velocity(network, *words, 4.0, "concept", held=held)
                    pictures[held] = session.decode_latents(vae, euler(velocity, start, 16, 3.0))
        for other in pictures.keys() - {kind}:
            result.figure(f"{kind}, not as {other}", got, pictures[kind], pictures[other])
    return result
