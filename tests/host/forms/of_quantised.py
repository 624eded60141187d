"""Files whose metadata names quantised layers: their Linears are the host's own kind."""

from __future__ import annotations

import json

import torch
from comfy.model_management import load_models_gpu, unload_all_models
from comfy.model_patcher import ModelPatcher
from common import apart, check, compared, noise, predicted, refused, trained, write
from purecc_pack.nodes.host import convert, lora
from purecc_pack.purecc.concept import Concept, LoraWeights
from purecc_pack.purecc.targets import lora_modules
from sd3_files import REDUCED, SINGLE_FILE, prefixed, quantised, weights

import nodes


@check
def quantised_layers() -> dict:
    """A file whose Linears are the host's own kind, quantised; and the same as hosts after 0.3.75 write its state dict."""
    values, metadata = quantised(weights(REDUCED["SD3.5 Medium"], torch.float16))
    name = write("diffusion_models", "quantised.safetensors", values, metadata)
    (model,) = nodes.UNETLoader().load_unet(name, "default")
    linears = [one for one in model.model.diffusion_model.modules() if hasattr(one, "layout_type")]
    seen = {"linears": len(linears), "kind": type(linears[0].weight).__name__, "read": compared(model)}
    for one in linears:  # what they put into it are no attributes of theirs
        one.register_state_dict_post_hook(
            lambda module, found, prefix, _: found.update({f"{prefix}comfy_quant": torch.zeros(8, dtype=torch.uint8)})
        )
    seen["newer"] = compared(model)
    seen["trained"] = trained(model)

    told = json.loads(metadata["_quantization_metadata"])
    told["layers"] |= prefixed(told["layers"], SINGLE_FILE)  # as newer hosts name them, beside the older names
    metadata = {"_quantization_metadata": json.dumps(told)}
    whole = write("checkpoints", "quantised.safetensors", prefixed(values, SINGLE_FILE), metadata)
    seen["in a whole checkpoint"] = compared(nodes.CheckpointLoaderSimple().load_checkpoint(whole)[0])

    concept = some_concept(model)
    patched = model.clone()
    lora.add_lora(patched, concept, 1.0)
    seen["with a concept"] = compared(patched) | {"base": compared(model)["fingerprint"]}
    base, copy = predicted(model), convert.to_diffusers(patched)
    load_models_gpu([patched])
    drawn = predicted(patched)
    unload_all_models()
    seen["in the weights"] = {"error": apart(drawn, predicted(copy)), "effect": apart(drawn, base)}
    rows = lora.row_loras(model, concept, 1.0, "picture")
    here = torch.ones(1, 90, dtype=torch.bool)
    network = model.model.diffusion_model
    handles = [
        network.get_submodule(one.module).register_forward_hook(one.hook(lora.Where.of(here, "picture", here.device)))
        for one in rows
    ]
    gated = predicted(model)
    for handle in handles:
        handle.remove()
    seen["gate"] = {"error": apart(gated, predicted(copy)), "effect": apart(gated, base)}

    smoothed = linears[0]
    smoothed.pre_quant_scale = torch.ones(smoothed.in_features)
    seen["smoothed"] = refused(model)
    return seen


def some_concept(model: ModelPatcher) -> Concept:
    """One with a LoRA that shows, on every Linear of attention."""
    copy, matrices = convert.to_diffusers(model), {}
    for seed, module in enumerate(lora_modules(copy, "attention")):
        linear = copy.get_submodule(module)
        a, b = noise(4, linear.in_features, seed=seed), noise(linear.out_features, 4, seed=seed + 1)
        matrices[module] = (0.1 * a, 0.05 * b)
    return Concept("[V]", "dog", "instance", "concept", "", LoraWeights(matrices, 4.0), None)
