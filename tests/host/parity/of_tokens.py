"""text.py, token_text.py and export: learned input embeddings in the host's CLIPs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from common import FOLDER, Result, check, encode, host, noise, predict, pure, random_concept
from of_concepts import TIMES, adapted
from purecc_pack.nodes import export
from purecc_pack.nodes.host import apply, text, token_text
from purecc_pack.nodes.host import pocket as host_pocket
from purecc_pack.purecc.concept import Concept
from purecc_pack.purecc.encoding import PocketTextEncoder, TextBatch
from purecc_pack.purecc.token_embeddings import PocketTokenEncoder

PROMPT, PLAIN, NEGATIVE = "a [V] dog on the beach", "a dog dog on the beach", "a small cat in snow"


def learned(tokens: int = 1, **changed) -> Concept:
    concept = replace(random_concept(lora=False, embeddings=False), **changed)
    return replace(
        concept, token_embeddings={name: noise(tokens, 128, seed=i) for i, name in enumerate(("clip_l", "clip_g"))}
    )


def core_encoder(concept: Concept) -> PocketTokenEncoder:
    return PocketTokenEncoder(pure(), concept.trigger, concept.placeholder, concept.tokens)


@check
def token_embeddings() -> Result:
    """A concept in the CLIPs, applied in the host, is what the core trains; other prompts keep the base's bits."""
    result, (model, clip, _) = Result(), host()
    for tokens, strength in ((1, 1.0), (1, 0.5), (2, 1.0)):
        concept = learned(tokens)
        patched, knows = apply.apply_concept(model, clip, concept, embedding_strength=strength)
        rows = encode(knows, PROMPT)
        network = adapted(None)
        network.token_encoder = core_encoder(concept)
        network.add_concept("concept", concept)
        made = PocketTextEncoder(pure(), "[V]", concept.placeholder).encode(PROMPT)
        name = f"{tokens} tokens, strength {strength}"
        got = predict(patched, rows, encode(knows, NEGATIVE), TIMES)
        with torch.inference_mode(False), torch.no_grad():
            words = TextBatch.of([made])
            read = network.tokens["concept"].read(words, strength)
            x, t = got.x.clone(), torch.tensor([TIMES])
            v = network.velocity(x, t, words, "concept", embedding_strength=strength)
            without = network.velocity(x, t, words, None)
        result.figure(f"rows, {name}", rows[0][0], read.rows, made.rows[None])
        result.figure(f"pooled, {name}", rows[0][1]["pooled_output"], read.pooled, made.pooled[None])
        result.figure(f"velocity, {name}", got.positive, v, without)
        base = predict(model, encode(clip, PROMPT), encode(clip, NEGATIVE), TIMES)
        result.sentences[f"{name}: the negative is the base's, bit for bit"] = torch.equal(got.negative, base.negative)
    return result


@check
def token_training() -> Result:
    """The host's CLIPs as modules read what the core's read, and a gradient comes back through both."""
    result, (_, clip, _) = Result(), host()
    concept = learned(2)
    encoder = text.HostTextEncoder(clip, "[V]", concept.placeholder)
    ours = token_text.HostTokenEncoder(encoder, "[V]", 2, torch.device("cpu"))
    for name, start in core_encoder(concept).initial().items():
        result.sentences[f"start of {name}"] = torch.equal(ours.initial()[name], start)
    with torch.inference_mode(False):
        vectors = {name: v.clone().requires_grad_() for name, v in concept.token_embeddings.items()}
        rows, pooled = ours.read(PROMPT, vectors)
        (rows.square().sum() + pooled.square().sum()).backward()
        with torch.no_grad():
            core_rows, core_pooled = core_encoder(concept).read(PROMPT, concept.token_embeddings)
            plain = encoder.encode("a dog dog dog on the beach")
    result.figure("rows", rows.detach(), core_rows, plain.rows)
    result.figure("pooled", pooled.detach(), core_pooled, plain.pooled)
    for name, vector in vectors.items():
        result.sentences[f"a gradient for each token of {name}"] = bool((vector.grad.abs().amax(1) > 0).all())
    shared = clip.clone()
    shared.clip_layer(-1)
    encode(shared, PLAIN)  # leaves its layer in what all CLIPs of this loader share
    after = token_text.HostTokenEncoder(encoder, "[V]", 2, torch.device("cpu"))
    shallow = token_text.HostTokenEncoder(
        text.HostTextEncoder(shared, "[V]", concept.placeholder), "[V]", 2, torch.device("cpu")
    )
    with torch.inference_mode(False), torch.no_grad():
        again, other = (one.read(PROMPT, concept.token_embeddings)[0] for one in (after, shallow))
    result.figure("the layer is this CLIP's own", again, rows.detach(), other)
    unlearned = [p.requires_grad for part in ours.parts.values() for p in part.parameters()]
    result.sentences["the encoders' own weights stay"] = not any(unlearned)
    return result


class _Dynamic(ModelPatcher):
    """As newer hosts' patcher of dynamic VRAM: patches are never in its weights, and what has them there is loaded anew."""

    anew: ModelPatcher  # what the loader gives once more

    def is_dynamic(self) -> bool:
        return True

    def load(self, *args, force_patch_weights: bool = False, **options) -> None:
        assert not force_patch_weights
        super().load(*args, **options)

    def clone(self, disable_dynamic: bool = False) -> ModelPatcher:
        if not disable_dynamic:
            return super().clone()
        self.anew.patches = dict(self.patches)
        return self.anew


@check
def token_training_under_dynamic_vram() -> Result:
    """A LoRA on such a CLIP is in what training reads, and the CLIP's own weights stay as they are."""
    result, clip, concept = Result(), host()[1].clone(), learned(2)
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    weight = clip.cond_stage_model.state_dict()[key].clone()
    plain = text.HostTextEncoder(clip.clone(), "[V]", concept.placeholder).encode(PROMPT)
    clip.patcher.add_patches({key: ("diff", (noise(*weight.shape),))}, 1.0)
    encoder = text.HostTextEncoder(clip, "[V]", concept.placeholder)
    wanted = encoder.encode(PROMPT)
    comfy.model_management.unload_all_models()  # the LoRA leaves the weights that both share
    encoder.clip.patcher.__class__ = _Dynamic
    encoder.clip.patcher.cached_patcher_init = None
    learning = lambda: token_text.HostTokenEncoder(encoder, "[V]", 2, torch.device("cpu"))  # noqa: E731
    result.raises("a loader that cannot load anew is told", "ComfyUI's own nodes", learning)
    encoder.clip.patcher.set_injections("others", [])
    result.raises("injections, which a copy cannot have", "bypass mode", learning)
    encoder.clip.patcher.remove_injections("others")
    encoder.clip.patcher.cached_patcher_init = (host_pocket.load_pocket, (FOLDER[0],), 1)
    encoder.clip.patcher.anew = host_pocket.load_pocket(FOLDER[0])[1].patcher
    with torch.inference_mode(False), torch.no_grad():
        rows, pooled = learning().read(PROMPT, concept.token_embeddings)
    result.figure("rows", rows, wanted.rows, plain.rows)
    result.figure("pooled", pooled, wanted.pooled, plain.pooled)
    result.sentences["its own weights"] = torch.equal(clip.cond_stage_model.state_dict()[key], weight)
    return result


@check
def token_training_beside_another() -> Result:
    """On a CLIP that knows another concept, texts that name both: each trigger is read as its own."""
    result, (model, clip, _) = Result(), host()
    ours, both = learned(1), "a [V] dog and a (<w>:1.3) dog " + "in the snow " * 40  # more than one chunk
    for case, other in (
        ("one in the CLIPs", replace(learned(1, trigger="<w>"), token_embeddings={"clip_l": noise(1, 128, seed=7)})),
        ("a layer-wise one", random_concept("<w>", 6)),
    ):
        _, knows = apply.apply_concept(model, clip, other)
        encoder = text.HostTextEncoder(knows, "[V]", replace(ours.placeholder, vectors=None))
        reads = token_text.HostTokenEncoder(encoder, "[V]", 1, torch.device("cpu"))
        with torch.inference_mode(False):
            vectors = {name: v.clone().requires_grad_() for name, v in ours.token_embeddings.items()}
            rows, pooled = reads.read(both, vectors)
            (rows.square().sum() + pooled.square().sum()).backward()
        _, applied = apply.apply_concept(*apply.apply_concept(model, clip, other), ours)
        wanted, without = encode(applied, both)[0], encode(knows, both)[0]
        result.figure(f"{case}: rows", rows.detach(), *(one[0][0, :, : rows.shape[1]] for one in (wanted, without)))
        result.figure(f"{case}: pooled", pooled.detach(), *(one[1]["pooled_output"][0] for one in (wanted, without)))
        result.sentences[f"{case}: a gradient"] = all(bool(v.grad.abs().max() > 0) for v in vectors.values())
    return result


@check
def token_export() -> Result:
    """The exported file, as `embedding:name` in a stock prompt, is what the trigger is here."""
    result, (model, clip, _) = Result(), host()
    concept = learned(1)
    _, knows = apply.apply_concept(model, clip, concept)
    with tempfile.TemporaryDirectory() as folder:
        kept = folder_paths.folder_names_and_paths["embeddings"]
        folder_paths.folder_names_and_paths["embeddings"] = ([folder], {".safetensors"})
        try:
            paths, lost = export.ExportConcept.execute(concept, model, "my concept (2), [V]").args
            stock = host_pocket.load_pocket(FOLDER[0])[1]  # a CLIP notes the folder when it is made
            named, ours = encode(stock, "a embedding:my_concept__2____V_ dog on the beach"), encode(knows, PROMPT)
        finally:
            folder_paths.folder_names_and_paths["embeddings"] = kept
        result.sentences["one file"] = [Path(path).name for path in paths.splitlines()] == [
            "my_concept__2____V_.safetensors"
        ]
    result.sentences["the way to call it is said"] = "embedding:my_concept__2____V_ dog" in lost
    plain = encode(clip, PLAIN)
    result.figure("rows", named[0][0], ours[0][0], plain[0][0])
    result.figure("pooled", *(one[0][1]["pooled_output"] for one in (named, ours, plain)))
    return result
