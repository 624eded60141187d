"""encoders.py: a concept set is known by what it was made of, not by how the encoders rounded."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import comfy.hooks
import comfy.sd
import folder_paths
import torch
from common import FOLDER, Result, check, host
from of_tokens import learned
from purecc_pack.nodes import concept_set as node
from purecc_pack.nodes.host import apply, encoders, session, text
from purecc_pack.nodes.host import pocket as host_pocket
from purecc_pack.purecc.concept_set import ConceptSet
from purecc_pack.purecc.files import save_tensors
from purecc_pack.purecc.fingerprint import differ_by_rounding
from purecc_pack.purecc.prompts import Placeholder
from torch import Tensor

CAPTIONS = "a [V] dog\na [V] dog in (snow:1.3)\na [V] dog on the beach"


def made(
    clip: comfy.sd.CLIP, vae: comfy.sd.VAE, pictures: Tensor, flip: bool = False, captions: str = CAPTIONS
) -> ConceptSet:
    values = (clip, vae, node.WIRED, "[V]", "dog", "instance", captions, 128, 1)
    return node.ConceptSetNode.execute(*([value] for value in values), pictures=[pictures], flip=[flip])[0].concept_set


def lora_on(clip: comfy.sd.CLIP, strength: float) -> comfy.sd.CLIP:
    found = clip.clone()
    key = next(k for k in clip.cond_stage_model.state_dict() if k.endswith("mlp.fc1.weight"))
    torch.manual_seed(0)
    found.add_patches({key: ("diff", (torch.randn_like(clip.cond_stage_model.state_dict()[key]),))}, strength)
    return found


@contextmanager
def rounding() -> Iterator[None]:
    """What the encoders give is a little different."""
    kept = session.kept
    session.kept = text.kept = lambda tensor, *dtype: kept(
        tensor * (1 + 1e-4) if tensor.is_floating_point() else tensor, *dtype
    )
    try:
        yield
    finally:
        session.kept = text.kept = kept


@check
def identity_of_a_concept_set() -> Result:
    """Rounding keeps it; whatever changes what is learnt makes another."""
    result, (_, clip, vae) = Result(), host()
    torch.manual_seed(0)
    pictures = torch.rand(3, 128, 128, 3)
    data = made(clip, vae, pictures)
    first = next(module for module in vae.first_stage_model.modules() if isinstance(module, torch.nn.Conv2d))

    def alike(other: ConceptSet) -> bool:
        return other.fingerprint == data.fingerprint

    with rounding():
        other = made(clip, vae, pictures)
    same_bits = torch.equal(other.examples[0].latent, data.examples[0].latent)
    same_text = torch.equal(other.encoded["a [V] dog"].rows, data.encoded["a [V] dog"].rows)
    result.sentences["rounding changes latents"], result.sentences["and texts"] = not same_bits, not same_text
    result.sentences["other bits of the same are the same set"] = alike(other)
    result.sentences["and their sketches are alike"] = differ_by_rounding(other.sketch, data.sketch)
    result.sentences["a clone of the CLIP too"] = alike(made(clip.clone(), vae, pictures))

    nearly = pictures.clone()
    nearly[1, 0, 0, 0] += 1 / 255
    result.sentences["a pixel"] = not alike(made(clip, vae, nearly))
    result.sentences["order"] = not alike(made(clip, vae, pictures.flip(0)))
    result.sentences["mirrored too"] = not alike(made(clip, vae, pictures, flip=True))
    result.sentences["a weight in a caption"] = not alike(
        made(clip, vae, pictures, captions=CAPTIONS.replace("1.3", "1.2"))
    )
    weak, strong = (made(lora_on(clip, strength), vae, pictures) for strength in (0.5, 1.0))
    result.sentences["a LoRA on the CLIP, and its strength"] = len({d.fingerprint for d in (data, weak, strong)}) == 3
    result.sentences["not one on a clone, while that is loaded"] = alike(made(clip, vae, pictures))
    skipping = clip.clone()
    skipping.clip_layer(-2)
    result.sentences["another CLIP layer"] = not alike(made(skipping, vae, pictures))
    result.sentences["and back without any"] = alike(made(clip, vae, pictures))
    computing = clip.clone()
    if not hasattr(clip.cond_stage_model, "manual_cast_dtype"):
        clip.cond_stage_model.manual_cast_dtype = None
    computing.patcher.add_object_patch("manual_cast_dtype", torch.float32)  # newer hosts do so with every CLIP
    result.sentences["a dtype to compute in keeps it"] = alike(made(computing, vae, pictures))

    weight, before = first.weight, first.weight.clone()
    weight.mul_(1.01)
    result.sentences["another VAE"] = not alike(made(clip, vae, pictures))
    weight.copy_(before)
    return result


@check
def identity_of_the_same_captions() -> Result:
    """What a text's tokens stand for counts, though it is written alike."""
    result, (model, clip, vae) = Result(), host()
    torch.manual_seed(0)
    pictures, captions = torch.rand(1, 128, 128, 3), "a [V] dog beside a embedding:one in a (garden:1.2) with [W]"

    def fingerprint(clip: comfy.sd.CLIP) -> str:
        return made(clip, vae, pictures, captions=captions).fingerprint

    with tempfile.TemporaryDirectory() as folder:
        kept = folder_paths.folder_names_and_paths["embeddings"]
        folder_paths.folder_names_and_paths["embeddings"] = ([folder], {".safetensors"})
        try:
            stock = host_pocket.load_pocket(FOLDER[0])[1]  # a CLIP notes the folder when it is made
            found = [fingerprint(stock)]
            for value in (0.1, 0.2, 0.1):
                vectors = {name: torch.full((1, 128), value) for name in ("clip_l", "clip_g")}
                save_tensors(Path(folder) / "one.safetensors", vectors)
                found.append(fingerprint(stock))
        finally:
            folder_paths.folder_names_and_paths["embeddings"] = kept
    result.sentences["the file of an embedding, which was there and is there again"] = (
        len(set(found)) == 3 and found[1] == found[3]
    )
    other = replace(learned(), trigger="[W]")
    at = [fingerprint(apply.apply_concept(model, clip, other, embedding_strength=s)[1]) for s in (0.5, 1.0, 1.0)]
    result.sentences["another concept in the CLIPs, and its strength"] = at[0] != at[1] == at[2] != fingerprint(clip)
    return result


@check
def identity_where_code_of_others_takes_part() -> Result:
    """What no digest can tell is known by its bits, as long as that code is there."""
    result, (_, clip, vae) = Result(), host()
    torch.manual_seed(0)
    pictures = torch.rand(3, 128, 128, 3)
    own = type(
        node.text.with_triggers(clip, {"[V]": Placeholder(1, "dog")}).patcher.object_patches["encode_token_weights"]
    )

    patched = clip.clone()
    patched.patcher.add_object_patch(
        "encode_token_weights", lambda tokens: clip.cond_stage_model.encode_token_weights(tokens)
    )
    hooked = clip.clone()
    hooked.apply_hooks_to_conds = comfy.hooks.HookGroup()

    class OthersVAE(comfy.sd.VAE):
        pass

    others = copy.copy(vae)
    others.__class__ = OthersVAE
    result.sentences["known"] = len(encoders.text_encoders(clip, own)) == 32 == len(encoders.autoencoder(vae))
    result.sentences["object patches"] = encoders.text_encoders(patched, own) == ""
    result.sentences["hooks"] = encoders.text_encoders(hooked, own) == ""
    result.sentences["another class"] = encoders.autoencoder(others) == ""
    data = made(clip, others, pictures)
    result.sentences["latents are told by their bits"] = all(not example.source for example in data.examples)
    result.sentences["texts by what they are made of"] = all(one.source for one in data.encoded.values())

    plain, replaced = made(clip, vae, pictures), copy.copy(vae)
    replaced.encode = lambda pixels: vae.encode(pixels).roll(1, -1)
    other = made(clip, replaced, pictures)
    result.sentences["what is not found is not alike"] = not differ_by_rounding(other.sketch, plain.sketch)
    encode = clip.cond_stage_model.clip_l.encode_token_weights
    clip.cond_stage_model.clip_l.encode_token_weights = lambda tokens: [t.flip(-1) for t in encode(tokens)]
    result.sentences["nor in a CLIP"] = not differ_by_rounding(made(clip, vae, pictures).sketch, plain.sketch)
    del clip.cond_stage_model.clip_l.encode_token_weights
    result.sentences["alike again"] = differ_by_rounding(made(clip, vae, pictures).sketch, plain.sketch)
    return result
