"""Concepts among stock nodes and other packs; and what a person reads where something is not wired, or does not fit."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace

import torch
import torch._dynamo.eval_frame
from comfy.model_management import unload_all_models
from comfy_api.torch_helpers import set_torch_compile_wrapper
from common import Result, check, encode, host, picture, predict, random_concept, warnings_of
from of_concepts import NEGATIVE, PLAIN, PROMPT, TIMES, encoded, expected
from purecc_pack.nodes.host import acting, convert, loras, page
from purecc_pack.nodes.host.apply import apply_concept, base_warning
from purecc_pack.nodes.host.marks import CONCEPTS
from purecc_pack.nodes.host.weights import fingerprint
from purecc_pack.purecc.concept import ConceptEmbeddings, LoraWeights
from purecc_pack.purecc.encoding import EncodedText
from purecc_pack.purecc.files import save_tensors

import nodes


@check
def other_nodes() -> Result:
    """What stock nodes do to conditionings, and what other packs do to blocks."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept()
    patched, marking = apply_concept(model, clip, concept, gate="conditioning")
    positive, negative, text = encode(marking, PROMPT), encode(marking, NEGATIVE), encoded(PROMPT, concept)

    concat = nodes.ConditioningConcat().concat(encode(marking, NEGATIVE), positive)[0]
    got = predict(patched, concat, negative, TIMES)
    other = encoded(NEGATIVE)
    long = EncodedText(torch.cat([other.rows, text.rows]), other.pooled, torch.cat([other.marks, text.marks]))
    result.figure("Concat, second part", got.positive, expected(concept, got.x, long), expected(None, got.x, long))

    zero = nodes.ConditioningZeroOut().zero_out(positive)[0]
    got = predict(patched, positive, zero, TIMES)
    nothing = EncodedText(torch.zeros_like(text.rows), torch.zeros_like(text.pooled), torch.zeros_like(text.marks))
    result.figure("Zero Out as the negative", got.negative, expected(None, got.x, nothing), got.positive)
    result.figure("beside it", got.positive, expected(concept, got.x, text), expected(None, got.x, text))

    average = nodes.ConditioningAverage().addWeighted(positive, negative, 0.6)[0]
    got = predict(patched, average, negative, TIMES)
    mixed = EncodedText(0.6 * text.rows + 0.4 * other.rows, 0.6 * text.pooled + 0.4 * other.pooled, text.marks)
    result.figure("Average", got.positive, expected(concept, got.x, mixed), expected(None, got.x, mixed))

    left = nodes.ConditioningSetArea().append(positive, 64, 128, 0, 0, 1.0)[0]
    right = nodes.ConditioningSetArea().append(encode(marking, PLAIN), 64, 128, 64, 0, 1.0)[0]
    got = predict(patched, nodes.ConditioningCombine().combine(left, right)[0], negative, TIMES)
    base = predict(model, nodes.ConditioningCombine().combine(left, right)[0], negative, TIMES)
    half = got.x[..., :8]
    result.figure("area with the trigger", got.positive[..., :8], expected(concept, half, text), base.positive[..., :8])
    result.sentences["area without it: bit for bit"] = torch.equal(got.positive[..., 8:], base.positive[..., 8:])

    alone = predict(patched, positive, negative, TIMES).positive
    for order in ("before", "after"):
        calls: list[int] = []
        count = lambda args, extra: (calls.append(1), extra["original_block"](args))[1]  # noqa: E731, B023
        chain = model.clone()
        if order == "before":
            chain.set_model_patch_replace(count, "dit", "double_block", 1)
        chain, _ = apply_concept(chain, clip, concept, gate="conditioning")
        if order == "after":
            chain.set_model_patch_replace(count, "dit", "double_block", 1)
        got = predict(chain, positive, negative, TIMES)
        result.sentences[f"another pack's patch {order} ours runs, so does ours"] = calls == [1] and torch.equal(
            got.positive, alone
        )
    return result


@check
def compiled_networks() -> Result:
    """A LoRA behind a gate acts in a network that was compiled before it acted (the stock TorchCompileModel)."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(embeddings=False)
    for gate in ("picture", "conditioning"):
        applied, knows = apply_concept(model, clip, concept, gate=gate)
        texts = encode(knows, PROMPT), encode(knows, NEGATIVE)
        compiled = applied.clone()
        set_torch_compile_wrapper(compiled, backend="eager")
        free = predict(compiled, encode(knows, PLAIN), texts[1], TIMES)
        result.sentences[f"{gate}: without the trigger the base's"] = torch.equal(
            free.positive, predict(model, encode(clip, PLAIN), encode(clip, NEGATIVE), TIMES).positive
        )
        base = predict(model, encode(clip, PROMPT.replace("[V] ", "")), encode(clip, NEGATIVE), TIMES)
        got, expected_ = predict(compiled, *texts, TIMES), predict(applied, *texts, TIMES)
        result.figure(f"{gate}, with it", got.positive, expected_.positive, base.positive)

    stances, calls = [], [ExitStack(), ExitStack()]  # as two threads, of two GPUs, call the model
    for call, ends in ((0, False), (1, False), (0, True), (1, True)):
        calls[call].close() if ends else calls[call].enter_context(acting._UNCOMPILED)
        stances.append(torch._dynamo.eval_frame._stance.stance)
    result.sentences[f"compiled again after the last of two calls: {stances}"] = stances == [
        *["force_eager"] * 3,
        "default",
    ]
    return result


@check
def packed_weights() -> Result:
    """As GGUF files have them: the pack that loaded them reads them, and a concept acts on what comes out."""
    unload_all_models()  # or what an earlier check patched is kept beside it
    result, (model, clip, _) = Result(), host()
    concept = random_concept(base="0123456789abcdef")
    linear = model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    own, packed = linear.weight, torch.zeros(len(linear.weight), linear.in_features + 16, dtype=torch.uint8)
    linear.weight = torch.nn.Parameter(packed, requires_grad=False)
    try:
        applied, _ = apply_concept(model, clip, concept, gate="picture")
        (carried,) = applied.model_options["transformer_options"][CONCEPTS].values()
        result.sentences["all of the LoRA"] = sum(len(one.parts) for one in carried.row_loras) == len(
            concept.lora.matrices
        )
        result.sentences["which base it is cannot be told"] = base_warning(model, concept) == ""
        result.raises("to train on them", "packed", lambda: convert.to_diffusers(model))
    finally:
        linear.weight = own
    result.sentences["and it can where they are not"] = "another base" in base_warning(model, concept)

    own._qdata = torch.zeros(1, dtype=torch.int8)  # as newer hosts keep weights of 8 bits, whose signs may have turned
    result.sentences["nor of int8 weights"] = base_warning(model, concept) == ""
    del own._qdata
    injected = model.clone()
    injected.set_injections("bypass_lora", [])  # as LoRAs in bypass mode are
    told = [any("bypass" in remark for remark in convert.remarks(one, torch.float32)) for one in (model, injected)]
    result.sentences[f"what is injected is told: {told}"] = told == [False, True]
    return result


@check
def messages() -> Result:
    """What a person reads where something is not wired, or does not fit."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(base=fingerprint(model))
    patched, marking = apply_concept(model, clip, concept, gate="picture")
    run = lambda one: lambda: picture(patched, encode(one, PLAIN), encode(one, NEGATIVE), steps=3)  # noqa: E731
    said = warnings_of(run(clip))
    result.sentences[f"CLIP not wired, said once: {said}"] = (
        len(said) == 1 and '"[V]"' in said[0] and "Connect the CLIP" in said[0]
    )
    said = warnings_of(run(marking))
    result.sentences[f"no trigger, said once: {said}"] = said == [
        'PureCC: no "[V]" in these prompts, so its concept does nothing.'
    ]
    said = warnings_of(lambda: picture(patched, encode(marking, PROMPT), encode(marking, ""), steps=2))
    result.sentences[f"silent where all is well: {said}"] = said == []

    plain, knows = apply_concept(model, clip, random_concept(embeddings=False), gate="off")
    said = warnings_of(lambda: picture(plain, encode(knows, PLAIN), encode(knows, ""), steps=2))
    result.sentences[f"a LoRA that acts everywhere waits for no trigger: {said}"] = said == []
    for name, count, changed in (
        ("a LoRA everywhere, for a part of the sampling", 0, {"gate": "off", "span": (0.0, 0.5)}),
        ("its embeddings off", 0, {"gate": "off", "embedding_strength": 0.0}),
        ("a gated LoRA", 1, {"gate": "picture", "embedding_strength": 0.0}),
        ("embeddings alone", 1, {"gate": "off", "strength": 0.0}),
        ("embeddings beside a LoRA everywhere", 0, {"gate": "off"}),
    ):
        one = random_concept(embeddings=name != "a LoRA everywhere, for a part of the sampling")
        given, knows = apply_concept(model, clip, one, **changed)
        said = warnings_of(lambda: picture(given, encode(knows, PLAIN), encode(knows, ""), steps=2))  # noqa: B023
        result.sentences[f"{name}: {said}"] = len(said) == count

    said = warnings_of(lambda: apply_concept(model, clip, concept))
    result.sentences[f"its own base: {said}"] = said == [] and base_warning(model, concept) == ""
    loaded, _ = apply_concept(model, clip, random_concept("<x>", 7, embeddings=False))  # any LoRA on the MODEL
    on_top = replace(concept, base=fingerprint(loaded, with_patches=True))
    result.sentences["a base with a LoRA on it"] = base_warning(loaded, on_top) == "" != base_warning(model, on_top)
    strange = replace(concept, base="0123456789abcdef")
    sent, send = [], page.send_event
    page.send_event = lambda name, detail: sent.append(name)
    said = warnings_of(lambda: apply_concept(model, clip, strange))
    page.send_event = send
    result.sentences[f"another base: {said}"] = len(said) == 1 and "another base" in said[0]
    result.sentences["over the canvas too"] = sent == [page.MISTAKE]

    other = random_concept("<w>", 6)
    _, both = apply_concept(*apply_concept(model, clip, concept), other)
    result.raises(
        "not on the MODEL", "does not carry", lambda: picture(patched, encode(both, "a <w>"), encode(both, ""))
    )
    result.raises("twice", "already applied", lambda: apply_concept(patched, marking, concept))
    off = apply_concept(*apply_concept(model, clip, concept), concept, 0.0, 0.0)
    on = apply_concept(*apply_concept(model, clip, concept, 0.0, 0.0), concept)
    same = [
        picture(one, encode(knows, PROMPT), encode(knows, ""), steps=2)
        for one, knows in (off, on, apply_concept(model, clip, concept))
    ]
    result.sentences["twice, once at strength 0"] = torch.equal(same[0], same[2]) and torch.equal(same[1], same[2])
    result.raises(
        "one trigger, two concepts", "Two concepts", lambda: apply_concept(patched, marking, random_concept("[v]", 9))
    )
    wide = ConceptEmbeddings(torch.zeros(24, 1, 1536))
    result.raises(
        "architecture",
        "24 joint blocks of width 1536",
        lambda: apply_concept(model, clip, replace(concept, embeddings=wide)),
    )
    a, b = torch.zeros(4, 256), torch.zeros(256, 4)
    wrong = {f"transformer_blocks.{i}.attn.to_q": (a[:, :128], b) for i in range(3)} | {
        "transformer_blocks.9.attn.to_q": (a, b),
        "transformer_blocks.3.attn2.to_q": (a, b),  # ComfyUI's map offers it in every block
    }
    matrices = concept.lora.matrices | wrong
    for gate in ("off", "conditioning"):
        misfit = replace(concept, lora=LoraWeights(matrices, 4.0))
        result.raises(
            f"LoRA, gate {gate}",
            "5 of the",
            lambda gate=gate, misfit=misfit: apply_concept(model, clip, misfit, gate=gate),
        )
    return result


@check
def lora_files() -> Result:
    """LoRAs of other trainers, imported: what the host's own loader makes of them. The largest of several ranks, text encoders left out."""
    result, (model, clip, _) = Result(), host()
    network = model.model.diffusion_model
    shapes = {
        name: module.weight.shape
        for name, module in network.joint_blocks.named_modules(prefix="joint_blocks")
        if name.endswith((".qkv", ".proj", ".fc1"))
    }
    generator = torch.Generator().manual_seed(0)
    for trainer, prefix, dots, ends in (
        ("kohya", "lora_unet_", "_", ("lora_down", "lora_up")),
        ("Train LoRA", "diffusion_model.", ".", ("lora_A", "lora_B")),
    ):
        tensors = {}
        for number, (name, (rows, width)) in enumerate(sorted(shapes.items())):
            own, rank = prefix + name.replace(".", dots), 4 + 4 * (number % 2)
            tensors[f"{own}.{ends[0]}.weight"] = torch.randn(rank, width, generator=generator) / width**0.5
            tensors[f"{own}.{ends[1]}.weight"] = torch.randn(rows, rank, generator=generator) / 8
            tensors[f"{own}.alpha"] = torch.tensor(2.0)
        if trainer == "Train LoRA":  # of q alone beside that of q, k and v
            for name, shape in (("A", (4, 256)), ("B", (256, 4))):
                key = f"transformer.transformer_blocks.0.attn.to_q.lora_{name}.weight"
                tensors[key] = torch.randn(*shape, generator=generator) / 16
        others = {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(()),
            "lora_te1_strange.alpha": torch.ones(()),
        }
        loha = f"{prefix}{'joint_blocks.0.context_block.mlp.fc2'.replace('.', dots)}.hada_w"
        others |= {f"{loha}{end}": torch.zeros(4, 1024) for end in ("1_b", "2_b")}
        others |= {f"{loha}{end}": torch.zeros(256, 4) for end in ("1_a", "2_a")}
        path = loras.loras_folder() / f"{trainer}.safetensors"
        save_tensors(path, tensors | others)
        lora, left_out = loras.lora_on(model, path)
        result.sentences[f"{trainer}: {left_out} left out, rank {lora.rank}"] = (left_out, lora.rank) == (3, 8)
        concept = replace(random_concept(embeddings=False), lora=lora)
        applied, marking = apply_concept(model, clip, concept, 0.8, gate="off")
        texts = encode(marking, PLAIN), encode(marking, NEGATIVE)
        stock = nodes.LoraLoaderModelOnly().load_lora_model_only(model, path.name, 0.8)[0]
        got, wanted, base = (predict(one, *texts, TIMES) for one in (applied, stock, model))
        result.figure(f"{trainer}, in the weights", got.positive, wanted.positive, base.positive)
        gated, marking = apply_concept(model, clip, concept, 0.8, gate="picture", hold_surroundings=False)
        texts = encode(marking, PROMPT), encode(marking, NEGATIVE)
        got, wanted, base = (predict(one, *texts, TIMES) for one in (gated, stock, model))
        result.figure(f"{trainer}, behind a gate", got.positive, wanted.positive, base.positive)
        got, base = (predict(one, encode(marking, PLAIN), texts[1], TIMES) for one in (gated, model))
        result.sentences[f"{trainer}, and without the word nothing"] = torch.equal(got.positive, base.positive)
    stated = {
        key: value for key, value in tensors.items() if not key.endswith(".alpha") and "0.x_block.attn.proj" in key
    }
    save_tensors(path, stated)
    beside, rank = path.with_name("adapter_config.json"), len(next(v for k, v in stated.items() if ends[0] in k))
    plain, _ = loras.lora_on(model, path)
    beside.write_text(json.dumps({"r": rank, "lora_alpha": 3 * rank}), encoding="utf-8")
    told, _ = loras.lora_on(model, path)
    beside.unlink()
    (module,) = plain.matrices
    result.sentences["an alpha that is told beside the file"] = torch.allclose(
        told.matrices[module][1], 3 * plain.matrices[module][1]
    ) and torch.equal(loras.lora_on(model, path, 3.0 * rank)[0].matrices[module][1], told.matrices[module][1])
    save_tensors(path, others)
    result.raises("a file of text encoders alone", "no LoRA of a Linear", lambda: loras.lora_on(model, path))
    return result
