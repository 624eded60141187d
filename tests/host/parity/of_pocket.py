"""The bundled model in the host's types against diffusers and transformers."""

from __future__ import annotations

import logging

import comfy.sd
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_sd3 import EmptySD3LatentImage
from common import (
    FOLDER,
    LATENT,
    Result,
    check,
    encode,
    host,
    noise,
    picture,
    predict,
    pure,
    random_concept,
    rel,
    warnings_of,
)
from purecc_pack.nodes.host import convert
from purecc_pack.nodes.host import pocket as host_pocket
from purecc_pack.nodes.host.apply import apply_concept
from purecc_pack.nodes.host.lora import add_lora
from purecc_pack.nodes.host.weights import fingerprint, values_of
from purecc_pack.purecc.encoding import TextBatch
from purecc_pack.purecc.fingerprint import transformer_fingerprint
from purecc_pack.purecc.network import AdaptedNetwork

import nodes

PROMPT, OTHER = "a dog on the beach", "a big rocket in space"


def velocity(transformer, x, sigma: float, text: str) -> torch.Tensor:
    rows, pooled = pure().encode_text([text] * len(x))
    return transformer(x, rows, pooled, torch.full((len(x),), 1000 * sigma)).sample


@check
def prediction() -> Result:
    """MODEL = transformer, with the text of each side's own encoders."""
    result, (model, clip, _) = Result(), host()
    for sigma in (1.0, 0.6, 0.2):
        got = predict(model, encode(clip, PROMPT), encode(clip, OTHER), sigma, batch=2)
        expected = velocity(pure().transformer, got.x, sigma, PROMPT)
        result.figure(f"sigma {sigma}", got.positive, expected, got.negative)
    return result


@check
def text() -> Result:
    """CLIP = text encoders."""
    result, clip = Result(), host()[1]
    for prompt in (PROMPT, "", "A Small cat, in the snow"):
        ((rows, extra),) = encode(clip, prompt)
        expected, pooled = pure().encode_text([prompt])
        other, other_pooled = pure().encode_text([OTHER])
        result.figure(f"rows of '{prompt}'", rows, expected, other)
        result.figure(f"pooled of '{prompt}'", extra["pooled_output"], pooled, other_pooled)
    long = encode(clip, "a dog and " * 10)[0][0]
    result.sentences[f"30 words become 48 rows ({long.shape[1]})"] = long.shape[1] == 48
    weighted = encode(clip, "a (dog:1.3) on the beach")[0][0]
    result.sentences["weights act on their words only"] = (
        torch.equal(weighted[:, :2], encode(clip, PROMPT)[0][0][:, :2])
        and rel(weighted, encode(clip, PROMPT)[0][0]) > 1e-3
    )
    return result


@check
def pictures() -> Result:
    """VAE = autoencoder, also tiled."""
    result, vae = Result(), host()[2]
    images = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(0))  # BHWC
    latents = nodes.VAEEncode().encode(vae, images)[0]["samples"]
    expected = pure().vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    result.figure("encode", latents, expected, expected.flip(0))
    wide = noise(1, 16, 24, 40) * latents.std()
    decoded = (pure().vae.decode(wide).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    result.figure("decode", nodes.VAEDecode().decode(vae, {"samples": wide})[0], decoded, decoded.flip(1))
    tiled = nodes.VAEDecodeTiled().decode(vae, {"samples": wide}, 128, 32)[0]
    result.sentences[f"tiled decode is near ({rel(tiled, decoded):.1e})"] = rel(tiled, decoded) < 0.03
    return result


@check
def sampling() -> Result:
    """CLIP Text Encode, Empty SD3 Latent, KSampler, VAE Decode = diffusers' pipeline, in units of 1/255.

    Both make the same sigmas: the host's scheduler "normal" runs evenly from timestep(sigma_max) to timestep(sigma_min)
    and shifts once more, as FlowMatchEulerDiscreteScheduler does. What differs: order of operations, so last digits.
    """
    result, (model, clip, vae) = Result(), host()
    latent = EmptySD3LatentImage.execute(128, 128, 1).result[0]
    sampled = nodes.KSampler().sample(
        model, 7, 8, 4.0, "euler", "normal", encode(clip, PROMPT), encode(clip, ""), latent
    )
    got = nodes.VAEDecode().decode(vae, sampled[0])[0]

    def expected(prompt: str) -> torch.Tensor:
        (rows, pooled), (null, null_pooled) = pure().encode_text([prompt]), pure().encode_text([""])
        made = pure().pipeline()(
            prompt_embeds=rows, pooled_prompt_embeds=pooled,
            negative_prompt_embeds=null, negative_pooled_prompt_embeds=null_pooled,
            latents=torch.randn(1, *LATENT, generator=torch.manual_seed(7)), num_inference_steps=8, guidance_scale=4.0,
            height=128, width=128, output_type="pt",
        )  # fmt: skip
        return made.images.movedim(1, -1)

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    mine, other = expected(PROMPT), expected(OTHER)
    result.figures["picture, levels of 255"] = (
        255 * float((got - mine).abs().max()),
        255 * float((other - mine).abs().max()),
    )
    result.figure("picture", got, mine, other)
    return result


@check
def previews() -> Result:
    """The KSampler's live preview: colours from the decoder's linear part."""
    result, (model, clip, _) = Result(), host()
    before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        picture(model, encode(clip, PROMPT), encode(clip, ""), steps=2)
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        flat = noise(1, 16, 1, 1).expand(1, *LATENT)  # one colour all over
        shown = previewer.decode_latent_to_preview(flat).getpixel((8, 8))
    finally:
        args.preview_method = before
    linear = pure().vae.decoder(model.model.latent_format.process_out(flat)).mean((0, 2, 3))
    expected = ((linear + 1) / 2).clamp(0, 1) * 255
    off = float((torch.tensor(shown, dtype=torch.float32) - expected).abs().max())
    result.sentences[f"a flat latent's colour is {shown}, {off:.1f} levels off"] = off < 1.5
    return result


@check
def conversion() -> Result:
    """MODEL -> transformer: the same bits, also with a LoRA on the MODEL and with a clone's LoRA applied."""
    result, (model, clip, _) = Result(), host()
    here, back = pure().transformer, convert.to_diffusers(model)
    same = lambda a, b: all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())  # noqa: E731
    result.sentences["weights are bit-equal"] = same(here, back) and same(back, here)
    result.sentences["configurations are equal"] = {k: v for k, v in here.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) and isinstance(here.config[k], list) else v
        for k, v in back.config.items()
        if k[0] != "_"
    }
    concept = random_concept(embeddings=False)
    patched = model.clone()
    add_lora(patched, concept, 1.0)
    got = predict(patched, encode(clip, PROMPT), encode(clip, OTHER), 0.6)  # the clone's weights are loaded now
    without = velocity(here, got.x, 0.6, PROMPT)
    result.figure("with its LoRA", velocity(convert.to_diffusers(patched), got.x, 0.6, PROMPT), got.positive, without)
    stripped = [convert.to_diffusers(model), convert.to_diffusers(patched, with_patches=False)]
    result.sentences["bit-equal without, while a clone's LoRA is applied"] = all(same(here, one) for one in stripped)
    applied, _ = apply_concept(model, clip, random_concept())
    said = warnings_of(lambda: convert.to_diffusers(applied))
    result.sentences[f"what does not travel is said: {said}"] = len(said) == 1 and "apply_model (purecc)" in said[0]
    said = warnings_of(lambda: convert.to_diffusers(ModelSamplingSD3().patch(patched, 5.0)[0]))
    result.sentences[f"what does is not: {said}"] = said == []
    half = convert.to_diffusers(model, dtype=torch.bfloat16)
    result.sentences["dtype"] = all(p.dtype == torch.bfloat16 for p in half.parameters())
    with torch.inference_mode(False), torch.enable_grad():
        network = AdaptedNetwork(back)
        network.add_new("new", 4, 4.0, ("attn.to_q", "attn.to_out.0"), seed=0)
        rows, pooled = (t.clone() for t in pure().encode_text([PROMPT]))
        text = TextBatch(rows, pooled, torch.zeros(rows.shape[:2], dtype=torch.int64))
        made = network.velocity(noise(1, *LATENT), torch.tensor([0.5]), text, "new")
        made.square().mean().backward()
        grads = [p.grad for p in network.lora_parameters("new") if p.grad is not None]
        result.sentences["converted in inference mode, it still trains"] = sum(float(g.abs().sum()) for g in grads) > 0
    return result


@check
def float8() -> Result:
    """A MODEL in float8: the copy predicts what the MODEL does, and says what is lost."""
    result, (model, clip, _) = Result(), host()
    weights = dict(pure().transformer.state_dict())
    small = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float8_e4m3fn})
    copies: list = []
    said = warnings_of(lambda: copies.append(convert.to_diffusers(small)))
    result.sentences[f"warning: {said}"] = len(said) == 1 and "float8" in said[0]
    got = predict(small, encode(clip, PROMPT), encode(clip, OTHER), 0.6)
    expected = velocity(pure().transformer, got.x, 0.6, PROMPT)
    result.figure("copy = MODEL", velocity(copies[0], got.x, 0.6, PROMPT), got.positive, expected)
    result.sentences["it is the same base model"] = fingerprint(small) == fingerprint(model)
    result.sentences["of other values: a run on it is another"] = values_of(small) != values_of(model)
    merged = host_pocket.load_pocket(FOLDER[0])[0]
    result.sentences["of the same ones: it is found"] = (
        values_of(merged) == values_of(model) == values_of(model.clone())
    )
    merged.model.diffusion_model.joint_blocks[1].x_block.attn.proj.weight.add_(1e-3)
    result.sentences["of a merge, in weights that do not tell the model"] = values_of(merged) != values_of(model)
    return result


@check
def loaded_anew() -> Result:
    """As newer hosts do, in Train LoRA or for another GPU: weights of their own, with the same values."""
    result, (model, clip, vae) = Result(), host_pocket.load_pocket(FOLDER[0])
    for name, patcher in {"MODEL": model, "CLIP": clip.patcher, "VAE": vae.patcher}.items():
        function, arguments, index = patcher.cached_patcher_init
        again = function(*arguments, disable_dynamic=True)[index].model
        values, others = patcher.model.state_dict(), again.state_dict()
        result.sentences[f"{name}: the same"] = values.keys() == others.keys() and all(
            torch.equal(value, others[key]) for key, value in values.items()
        )
        result.sentences[f"{name}: another"] = again is not patcher.model
    shift, scaling = convert.sampling_shift, convert.latent_scaling
    function, arguments, index = model.cached_patcher_init
    again = function(*arguments)[index]
    result.sentences["shift and scaling too"] = (shift(model), scaling(model)) == (shift(again), scaling(again))
    return result


@check
def facts() -> Result:
    """Fingerprint, latent scaling, shift; and what a person reads where a MODEL does not fit."""
    result, (model, _, _) = Result(), host()
    mark, transformer = fingerprint(model), pure().transformer
    result.sentences["fingerprints agree"] = mark == transformer_fingerprint(transformer)
    with torch.inference_mode(False):
        copies = {dtype: convert.to_diffusers(model, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)}
        result.sentences["in every dtype"] = all(transformer_fingerprint(one) == mark for one in copies.values())
        changed = convert.to_diffusers(model)
        changed.proj_out.weight[0] *= -1
    result.sentences["other weights have another"] = transformer_fingerprint(changed) != mark
    patched = model.clone()
    add_lora(patched, random_concept(embeddings=False), 1.0)
    result.sentences["a LoRA on the MODEL does not count"] = fingerprint(patched) == mark
    counted = [fingerprint(one, with_patches=True) for one in (model, patched, patched)]
    result.sentences[f"unless asked for: {counted}"] = counted[0] == mark != counted[1] == counted[2]
    weaker = model.clone()
    add_lora(weaker, random_concept(embeddings=False), 0.999)
    result.sentences["its strength counts"] = fingerprint(weaker, with_patches=True) not in counted
    adapted = AdaptedNetwork(copies[torch.float16])
    adapted.add_new("new", 4, 4.0, ("attn.to_q",), seed=0)
    result.sentences["nor an adapter of peft's"] = transformer_fingerprint(adapted.transformer) == mark

    config = pure().vae.config
    result.sentences["latent scaling"] = convert.latent_scaling(model) == (config.scaling_factor, config.shift_factor)
    other = model.clone()
    other.add_object_patch("latent_format", type("Other", (), {"scale_factor": 2.0, "shift_factor": 0.5})())
    result.sentences["of an object patch"] = convert.latent_scaling(other) == (2.0, 0.5)
    shifted = ModelSamplingSD3().patch(model, 5.0)[0]
    shifts = convert.sampling_shift(model), convert.sampling_shift(shifted)
    result.sentences[f"shifts {shifts}"] = shifts == (pure().scheduler.config.shift, 5.0)

    strange = ModelPatcher(torch.nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu"))
    result.raises("another type", "Linear", lambda: convert.to_diffusers(strange))
    network = model.model.diffusion_model
    before, network.hidden_size = network.hidden_size, 320
    result.raises("width and depth", "4 joint blocks of width 320", lambda: convert.to_diffusers(model))
    network.hidden_size = before
    other.add_object_patch("model_sampling", torch.nn.Sequential())
    result.raises("another schedule", "ModelSamplingDiscreteFlow", lambda: convert.sampling_shift(other))
    return result
