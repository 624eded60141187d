"""encoders.py: a concept set is known by what it was made of, not by how the encoders rounded."""

from __future__ import annotations

import copy

import comfy.hooks
import comfy.sd
import torch
from common import Result, check, host
from purecc_pack.nodes import concept_set as node
from purecc_pack.nodes.host import encoders
from purecc_pack.purecc.concept_set import ConceptSet
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

    with torch.inference_mode(False):
        rounded = first.register_forward_hook(lambda _, __, out: out * (1 + 1e-4))
        layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1
        texts_too = layer.register_forward_hook(lambda _, __, out: out * (1 + 1e-4))
    other = made(clip, vae, pictures)
    rounded.remove(), texts_too.remove()
    same_bits = torch.equal(other.examples[0].latent, data.examples[0].latent)
    same_text = torch.equal(other.encoded["a [V] dog"].rows, data.encoded["a [V] dog"].rows)
    result.sentences["a hook changes latents"], result.sentences["and texts"] = not same_bits, not same_text
    result.sentences["other bits of the same are the same set"] = alike(other)
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
    skipping = clip.clone()
    skipping.clip_layer(-2)
    result.sentences["another CLIP layer"] = not alike(made(skipping, vae, pictures))
    result.sentences["and back without any"] = alike(made(clip, vae, pictures))

    weight, before = first.weight, first.weight.clone()
    weight.mul_(1.01)
    result.sentences["another VAE"] = not alike(made(clip, vae, pictures))
    weight.copy_(before)
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
    result.sentences["texts by what they are made of"] = all(text.source for text in data.encoded.values())
    return result
