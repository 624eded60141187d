"""Pure Guider: the stock guider at lambda 0, and v_PureCC of the core's own network otherwise."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from common import LATENT, Result, check, encode, host, noise, picture, predict, random_concept, rel
from of_concepts import NEGATIVE, PLAIN, adapted, encoded, plain_network
from purecc_pack.nodes.host.apply import apply_concept
from purecc_pack.nodes.host.guider import GuidedTexts, Scale, pure_guider
from purecc_pack.purecc.concept import Concept
from purecc_pack.purecc.encoding import TextBatch
from torch import Tensor

PROMPT, CFG = "a [V] dog on the beach", 4.0
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


def guider(extractor: Concept, scale: Scale, target: str = "null-relative", **changed) -> comfy.samplers.CFGGuider:
    model, clip, _ = host()
    return pure_guider(
        changed.pop("model", model), clip, extractor, GuidedTexts.of(PROMPT, extractor, target), CFG, scale, **changed
    )


def sampled(guider: comfy.samplers.CFGGuider, batch: int = 1) -> Tensor:
    """Four Euler steps of the stock sampler."""
    x = noise(batch, *LATENT, seed=4)
    return guider.sample(x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), SIGMAS)


def by_the_core(extractor: Concept, scale: Scale, batch: int = 1, texts: tuple[str, str] = ("[V] dog", "")) -> Tensor:
    """The same by the core's network and the paper's equations, as the host's latents."""
    with torch.inference_mode(False), torch.no_grad():
        theta1, theta3 = adapted(extractor), plain_network()
        text = lambda one: TextBatch.of([one] * batch)  # noqa: E731
        with_concept, without = (text(encoded(one, extractor)) for one in texts)
        base, null = text(encoded(PLAIN)), text(encoded(""))
        x = noise(batch, *LATENT, seed=4)
        for now, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
            t = now.expand(batch)
            v_null = theta3.velocity(x, t, null, None)
            direction = theta1.velocity(x, t, with_concept, "concept") - theta1.velocity(x, t, without, "concept")
            scaled = scale.end + (scale.start - scale.end) * float(now)
            v_pure = theta3.velocity(x, t, base, None) + scaled * direction
            x = x + (after - now) * (v_null + CFG * (v_pure - v_null))
        return host()[0].model.process_latent_out(x)


@check
def guider_without_lambda() -> Result:
    """The base model's guidance, bit for bit, with one forward a step."""
    result, (model, clip, _) = Result(), host()
    extractor = replace(random_concept(), role="extractor")
    stock = comfy.samplers.CFGGuider(model)
    stock.set_conds(encode(clip, PLAIN), encode(clip, ""))
    stock.set_cfg(CFG)
    expected, seen = sampled(stock, 2), []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        result.sentences["lambda 0 is the stock CFGGuider"] = torch.equal(
            sampled(guider(extractor, Scale(0, 0)), 2), expected
        )
        result.sentences[f"one forward a step: {seen}"] = seen == [4] * 4
        acted = sampled(guider(extractor, Scale(1, 1)), 2)
        result.sentences[f"lambda 1: two forwards a step: {seen[4:]}"] = seen[4:] == [4] * 8
    finally:
        handle.remove()
    result.figures["lambda 1 draws another picture"] = (0.0, rel(acted, expected))
    result.sentences["afterwards the MODEL is the base"] = torch.equal(sampled(stock, 2), expected)
    stock.set_conds(encode(clip, "a red house"), encode(clip, NEGATIVE))
    wired = guider(extractor, Scale(0, 0), base=encode(clip, "a red house"), negative=encode(clip, NEGATIVE))
    result.sentences["conditionings in place of the texts"] = torch.equal(sampled(wired, 2), sampled(stock, 2))
    return result


@check
def guider_integrates_v_purecc() -> Result:
    """Against the core, for every gate of an extractor, constant lambda and a falling one."""
    result = Result()
    for gate, tokens in (("off", 1), ("conditioning", 2), ("picture", 1), ("rows", 1)):
        extractor = replace(random_concept(tokens=tokens), role="extractor", gate=gate)
        for scale in (Scale(1.0, 1.0), Scale(1.5, 0.0)) if gate == "off" else (Scale(0.7, 0.7),):
            case = f"gate {gate}, lambda {scale.start} to {scale.end}"
            got = sampled(guider(extractor, scale), 2)
            result.figure(case, got, by_the_core(extractor, scale, 2), by_the_core(extractor, Scale(0.0, 0.0), 2))
    extractor = replace(random_concept(), role="extractor")
    for target, texts in (("class-relative", ("[V] dog", "dog")), ("in-context", (PROMPT, PLAIN))):
        got, without = sampled(guider(extractor, Scale(1, 1), target)), by_the_core(extractor, Scale(0, 0))
        result.figure(target, got, by_the_core(extractor, Scale(1, 1), texts=texts), without)
    embeddings_alone = replace(random_concept(lora=False), role="extractor")
    got = sampled(guider(embeddings_alone, Scale(1.0, 1.0)))
    without = by_the_core(embeddings_alone, Scale(0.0, 0.0))
    result.figure("embeddings alone", got, by_the_core(embeddings_alone, Scale(1.0, 1.0)), without)
    return result


@check
def guider_beside_concepts_and_messages() -> Result:
    """On a MODEL that carries another concept; texts; what cannot be."""
    result, (model, clip, _) = Result(), host()
    extractor, other = replace(random_concept(), role="extractor"), random_concept("<w>", 6)
    beside, marking = apply_concept(model, clip, other, gate="picture")
    positive, negative = encode(marking, "a <w> at night"), encode(marking, "")
    stock = comfy.samplers.CFGGuider(beside)
    stock.set_conds(positive, negative)
    stock.set_cfg(CFG)
    same = guider(extractor, Scale(0, 0), model=beside, base=positive, negative=negative)
    acted = guider(extractor, Scale(1, 1), model=beside, base=positive, negative=negative)
    result.sentences["lambda 0 beside another concept: its own picture"] = torch.equal(sampled(same), sampled(stock))
    result.figures["lambda 1 beside it acts"] = (0.0, rel(sampled(acted), sampled(stock)))
    texts = GuidedTexts.of(PROMPT, extractor)
    result.sentences[f"texts: {texts}"] = (texts.base, texts.with_concept, texts.without) == (PLAIN, "[V] dog", "")
    result.sentences["a prompt without the trigger stays"] = (
        GuidedTexts.of("a red house", extractor).base == "a red house"
    )
    result.sentences["no prompt is the null text"] = GuidedTexts.of(" ", extractor).base == ""
    result.sentences["lambda over the time"] = [Scale(2, 1).at(t) for t in (1.0, 0.5, 0.0)] == [2, 1.5, 1]
    result.raises("in-context", "neither the trigger", lambda: GuidedTexts.of("a red house", extractor, "in-context"))
    applied, _ = apply_concept(model, clip, extractor)
    result.raises("applied already", "is no base", lambda: guider(extractor, Scale(1, 1), model=applied))
    matrices = {"transformer_blocks.7.attn.to_q": next(iter(extractor.lora.matrices.values()))}
    foreign = replace(extractor, embeddings=None, lora=replace(extractor.lora, matrices=matrices))
    result.raises("of another model", "fit no weight", lambda: guider(foreign, Scale(1, 1)))
    learned = replace(
        extractor, token_embeddings={name: noise(1, 128, seed=i) for i, name in enumerate(("clip_l", "clip_g"))}
    )
    _, knows = apply_concept(model, clip, learned)
    reads, without = (
        guider(one, Scale(1, 1)).original_conds["purecc_with"][0]["cross_attn"] for one in (learned, extractor)
    )
    result.figure("its input embeddings are read", reads, encode(knows, "[V] dog")[0][0], without)
    narrow = replace(extractor, token_embeddings={"clip_l": noise(1, 4)})
    result.raises("of another CLIP", "of width 4 for clip_l", lambda: guider(narrow, Scale(1, 1)))
    plain = picture(model, encode(clip, PLAIN), encode(clip, ""))
    gated = predict(beside, encode(marking, PLAIN), encode(marking, ""))
    result.sentences["the given MODELs work on"] = bool(plain.isfinite().all() and gated.positive.isfinite().all())
    return result
