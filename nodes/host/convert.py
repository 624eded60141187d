"""The host's MODEL copied as diffusers' transformer; its latent scale, its sampling shift, what a person may want to know of it."""

import logging
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import SD3Transformer2DModel

from ...purecc.adaln_table import is_modulation
from ...purecc.frozen import Storage, linears, packed, store, stream
from ...purecc.positions import set_table, side_for
from .marks import CONCEPTS
from .weights import HEAD, HostWeights, require_sd3

log = logging.getLogger(__name__)
_HARMLESS_PATCHES = {"latent_format", "model_sampling", "manual_cast_dtype"}  # not part of the network
_ATTACHED = ("patches", "patches_replace", "wrappers")  # entries of transformer_options that change a forward


def to_diffusers(
    model: ModelPatcher,
    with_patches: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    largest: int | None = None,
    modulation_device: torch.device | str | None = None,
    storage: Storage = "whole",
    streamed: bool = False,
) -> SD3Transformer2DModel:
    """A copy of an SD3-type MODEL as diffusers' transformer, frozen, in eval mode, with weights that can be trained.

    `with_patches`: LoRAs loaded on the MODEL become part of the copy. `largest`: the longest side of the latents to come; the
    table of positions is cut to it, the configuration still tells its full size. `modulation_device`: where the adaLN layers
    are kept, if elsewhere. `storage`, `streamed`: of the blocks' Linears, see `purecc.frozen`; each weight is stored as it
    comes, so that the whole model is never on the device in more bytes. Raises ValueError with what a person at the canvas
    can change where the MODEL cannot be copied.
    """
    with torch.inference_mode(False), torch.no_grad():
        config = configuration(model)
        full = config["pos_embed_max_size"]
        side = side_for(full, -(-largest // config["patch_size"])) if largest else full
        weights = HostWeights(model, with_patches, side if side < full else None)
        strange = weights.strange()
        if strange:
            raise ValueError(
                f"This MODEL has {len(strange)} weights that diffusers' SD3 transformer has no place for, "
                f"such as {', '.join(strange[:3])}. Train on a plain SD3 or SD3.5 checkpoint."
            )
        _warn(model, weights)
        with torch.device("meta"):
            transformer = SD3Transformer2DModel(**config).to(dtype)
        own = storage != "whole" or streamed
        stored = {f"{name}.weight" for name, _ in linears(transformer)} if own else set()
        if own:
            store(transformer, storage)
        values = {}
        for name, value in weights.items(device):
            if name in stored:
                weight, scale = packed(value, storage, dtype)
                home = "cpu" if streamed else device
                values[name] = weight.to(home, copy=weight is value)
                if scale is not None:
                    values[name.removesuffix("weight") + "scale"] = scale.to(home)
                continue
            place = modulation_device if modulation_device and is_modulation(name) else value.device
            values[name] = value.to(place, dtype, copy=True)
        set_table(transformer.pos_embed, values["pos_embed.pos_embed"])
        transformer.load_state_dict(values, strict=True, assign=True)
        values.clear()  # what waits in main memory is pinned below, one by one in place of these
        if streamed:
            stream(transformer, device)
    return transformer.requires_grad_(False).eval()


def latent_scaling(model: ModelPatcher) -> tuple[float, float]:
    """(scale, shift) of the MODEL's latents: what the network sees is (latent - shift) * scale."""
    latent_format = model.get_model_object("latent_format")
    return float(latent_format.scale_factor), float(getattr(latent_format, "shift_factor", 0.0))


def sampling_shift(model: ModelPatcher) -> float:
    """The shift of the MODEL's flow-matching schedule. Raises ValueError for a MODEL of another type, or another kind of schedule."""
    require_sd3(model)
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        kind = type(sampling).__mro__[1].__name__  # the class itself is made by the host, its first base has the name
        raise ValueError(
            f"This MODEL samples with {kind}; an SD3 type samples with ModelSamplingDiscreteFlow. "
            "Remove the model sampling node that was put on it."
        )
    return float(sampling.shift)


def remarks(model: ModelPatcher, dtype: torch.dtype) -> list[str]:
    """What the user may want to know of training on this MODEL in a dtype; sentences for the node."""
    found, weights = [], HostWeights(model, with_patches=False)
    if torch.float16 in weights.dtypes() and dtype != torch.float16:
        name = str(dtype).removeprefix("torch.")
        found.append(f"The model is float16; it trains as {name}, since small gradients vanish in float16.")
    if weights.is_quantised():
        found.append(
            "The model is float8 or quantised otherwise, a few percent away from the original; the concept fits the original less well."
        )
    if model.patches:
        found.append("LoRAs on the model count as part of the base: apply the concept to the same.")
    if getattr(model, "injections", {}):
        found.append(
            "What other nodes injected into the model, such as LoRAs in bypass mode, takes no part in training."
        )
    return found + _left_out(model)


def _left_out(model: ModelPatcher) -> list[str]:
    """What of the concepts on a MODEL a training on it leaves out. LoRAs in the weights take part."""
    found, carried = [], model.model_options["transformer_options"].get(CONCEPTS, {})
    for one in carried.values():
        concept = one.concept
        name = f'"{concept.trigger} {concept.class_word}"'
        if one.row_loras:
            found.append(
                f"{name} on this MODEL acts in some prompts or for a part of the sampling only, so it is no part of the base here. "
                "For its LoRA to count, set the gate of Apply Concept to off, start_percent to 0 and end_percent to 1."
            )
        elif one.embedding_strength and (concept.embeddings is not None or concept.token_embeddings is not None):
            found.append(f"The embeddings of {name} on this MODEL are no part of the base here.")
    return found


def configuration(model: ModelPatcher) -> dict[str, Any]:
    """The configuration of the copy, read from the shapes of the MODEL's weights."""
    shapes = HostWeights(model, with_patches=False).shapes()
    if "pos_embed" not in shapes:
        raise ValueError("This MODEL has no table of positions (pos_embed). Train on an SD3 or SD3.5 checkpoint.")
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    side = round(shapes["pos_embed"][1] ** 0.5)  # in patches
    second = [key for key in shapes if key.endswith("x_block.attn2.qkv.weight")]
    return {
        "sample_size": side,  # only a pipeline's default size; the weights do not tell it
        "pos_embed_max_size": side,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": width // HEAD,
        "num_attention_heads": width // HEAD,
        "attention_head_dim": HEAD,
        "caption_projection_dim": width,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "dual_attention_layers": tuple(sorted(int(key.split(".")[1]) for key in second)),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _warn(model: ModelPatcher, weights: HostWeights) -> None:
    """Says what the copy does not have, or has less exactly."""
    if weights.is_quantised():
        log.warning(
            "PureCC: this MODEL's weights are float8, or quantised otherwise, a few percent away from the original; a concept trained on it "
            "fits the original less well. Train on a file in bfloat16 or float16, with weight_dtype default, if you have one."
        )
    options = model.model_options["transformer_options"]
    attached = sorted(model.object_patches.keys() - _HARMLESS_PATCHES)
    attached += [name for name in _ATTACHED if options.get(name)]
    attached += getattr(model, "injections", {})  # such as LoRAs that are not patches
    attached += [f"{name} ({', '.join(map(str, by_key))})" for name, by_key in model.wrappers.items() if by_key]
    if attached:
        log.warning(
            "PureCC: other nodes attached %s to this MODEL; only weights take part in training, that does not.",
            ", ".join(dict.fromkeys(attached)),
        )
