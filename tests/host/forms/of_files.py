"""Layouts and dtypes of files, a LoRA on the MODEL, the full size, and models of other types."""

from __future__ import annotations

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import torch
from comfy.model_management import load_models_gpu
from comfy.model_patcher import ModelPatcher
from common import check, compared, noise, refused, trained, wire, write
from purecc_pack.nodes import train
from purecc_pack.nodes.host import convert
from purecc_pack.purecc.targets import lora_modules
from sd3_files import REDUCED, SD35_MEDIUM, SINGLE_FILE, prefixed, scaled_float8, shapes, weights

import nodes


@check
def layouts() -> dict:
    """Each kind as a single file without encoders and as a file of the diffusion model alone."""
    seen = {}
    for name, kind in REDUCED.items():
        values = weights(kind)
        checkpoint = write("checkpoints", f"{name} single.safetensors", prefixed(values, SINGLE_FILE))
        model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint)
        seen[f"{name}, single file"] = compared(model) | {"clip": clip is not None}
        alone = write("diffusion_models", f"{name} alone.safetensors", values)
        (model,) = nodes.UNETLoader().load_unet(alone, "default")
        seen[f"{name}, diffusion model alone"] = compared(model, largest=16)
    return seen


@check
def dtypes() -> dict:
    """The same weights in the dtypes that files and loaders have."""
    kind, seen = REDUCED["SD3.5 Medium"], {}
    values = weights(kind, torch.float16)
    half = comfy.sd.load_diffusion_model_state_dict(dict(values), model_options={"dtype": torch.float16})
    seen["float16"] = {"notes": convert.remarks(half, torch.float32), "exact": exact(half, values)}
    name = write("diffusion_models", "e4m3.safetensors", values)
    (model,) = nodes.UNETLoader().load_unet(name, "fp8_e4m3fn")
    seen["float8 by the loader"] = compared(model)
    name = write("diffusion_models", "scaled.safetensors", scaled_float8(values))
    (model,) = nodes.UNETLoader().load_unet(name, "default")
    seen["scaled float8 file"] = compared(model)
    seen["trained"] = {storage: trained(model, frozen_weights=storage) for storage in ("whole", "float8")}
    whole = comfy.sd.load_diffusion_model_state_dict(dict(values), model_options={"dtype": torch.float32})
    for storage in ("whole", "float8", "nf4"):
        for streamed in (False, True):
            form = f"stored as {storage}{', streamed' if streamed else ''}"
            seen[form] = compared(whole, storage=storage, streamed=streamed)
    packed = comfy.sd.load_diffusion_model_state_dict(dict(values), model_options={"dtype": torch.float32})
    linear = packed.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1
    linear.weight = torch.nn.Parameter(torch.zeros(linear.weight.shape, dtype=torch.uint8), requires_grad=False)
    seen["packed"] = refused(packed)
    return seen


def exact(model: ModelPatcher, values: dict) -> bool:
    copy = convert.to_diffusers(model).state_dict()
    width = REDUCED["SD3.5 Medium"].width
    return torch.equal(
        copy["transformer_blocks.1.attn2.to_k.weight"],
        values["joint_blocks.1.x_block.attn2.qkv.weight"][width : 2 * width].float(),
    )


@check
def with_lora() -> dict:
    """A LoRA on MODEL by the stock loader: trained on top of it, and told."""
    kind = REDUCED["SD3 Medium"]
    name = write("diffusion_models", "for lora.safetensors", weights(kind))
    (model,) = nodes.UNETLoader().load_unet(name, "default")
    module = "transformer.transformer_blocks.1.attn.to_q"
    matrices = {
        f"{module}.lora_A.weight": noise(4, kind.width, seed=5),
        f"{module}.lora_B.weight": noise(kind.width, 4, seed=6),
    }
    file = write("loras", "style.safetensors", {**matrices, f"{module}.alpha": torch.tensor(4.0)})
    patched, _ = nodes.LoraLoader().load_lora(model, None, file, 0.7, 0.0)
    plain = compared(model)
    load_models_gpu([patched])
    return {"without": plain, "with": compared(patched), "trained": trained(patched)}


@check
def full_size() -> dict:
    """SD3.5 Medium at full size, on the meta device: configuration, key map, targets."""
    values = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes(SD35_MEDIUM).items()
    }
    config = comfy.model_detection.model_config_from_unet(values, "")
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model(values, "", device="meta")
    model.load_model_weights(dict(values), "")
    patcher = ModelPatcher(model, torch.device("meta"), torch.device("meta"))
    copy = convert.to_diffusers(patcher, dtype=torch.bfloat16, device="meta", largest=96)
    return {
        "config": {k: v for k, v in copy.config.items() if k[0] != "_"},
        "parameters": sum(p.numel() for p in copy.parameters()),
        "linears": {key: len(lora_modules(copy, key)) for key in ("attention", "attention and attn2")},
        "table": list(copy.pos_embed.pos_embed.shape),
        "kind": type(config).__name__,
    }


@check
def others() -> dict:
    """Models of other types, made by the host on the meta device."""
    flux = {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64), "txt_in.weight": (3072, 4096),
        "vector_in.in_layer.weight": (3072, 768), "guidance_in.in_layer.weight": (3072, 256),
    }  # fmt: skip
    made = comfy.model_detection.model_config_from_unet({k: torch.empty(v, device="meta") for k, v in flux.items()}, "")
    sdxl = comfy.supported_models.SDXL(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
            "num_classes": "sequential", "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
            "num_head_channels": 64, "num_heads": -1, "use_temporal_attention": False,
        }
    )  # fmt: skip
    seen = {}
    for config in (made, sdxl):
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device="meta")
        model = ModelPatcher(model, torch.device("meta"), torch.device("meta"))
        seen[type(config).__name__] = [refused(model), *by_nodes(model)]
    return seen


def by_nodes(model: ModelPatcher) -> list[str]:
    """What the two nodes that train say of it."""
    face = {"steps": 1, "batch_size": 1, "learning_rate": 1e-4, "embedding_rate": 5e-3, "rank": 4, "seed": 0}
    pure = {"method": "PureCC", "eta": 0.0, "fixed_lambda": 0.0, "original": "frozen base"}
    said = []
    for node, own in ((train.TrainExtractor, {"embeddings": "replace"}), (train.PureLearning, pure)):
        try:
            node.execute(model, wire(), **face, **own)
        except ValueError as error:
            said.append(str(error))
    return said
