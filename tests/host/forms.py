"""The forms in which people have SD3, written as files and read by the host's own loaders; see test_forms.py.

The last line is JSON: form -> {"error", "effect", "config", "notes", ...}.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import comfy.model_detection  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencodingEngine  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from diffusers import SD3Transformer2DModel  # noqa: E402
from purecc_pack.nodes import train  # noqa: E402
from purecc_pack.nodes.host import convert, lora, pocket, session, training  # noqa: E402
from purecc_pack.nodes.types import TrainingData  # noqa: E402
from purecc_pack.purecc.concept import Concept, LoraWeights  # noqa: E402
from purecc_pack.purecc.concept_set import build_concept_set  # noqa: E402
from purecc_pack.purecc.encoding import EncodedText  # noqa: E402
from purecc_pack.purecc.settings import TrainSettings  # noqa: E402
from purecc_pack.purecc.stages import ExtractorJob  # noqa: E402
from purecc_pack.purecc.targets import lora_modules  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sd3_files import (
    CHANNELS,
    JOINT,
    POOLED,
    REDUCED,
    SD35_MEDIUM,
    SINGLE_FILE,
    prefixed,
    quantised,
    scaled_float8,
    shapes,
    weights,
)  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
MODELS = Path(folder_paths.models_dir)
noise = lambda *shape, seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))  # noqa: E731


WORDS = noise(1, 90, JOINT, seed=2)


def write(folder: str, name: str, values: dict, metadata: dict[str, str] | None = None) -> str:
    """A file in one of the host's model folders, with a space in its name; its name."""
    path = MODELS / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path, metadata)
    folder_paths.filename_list_cache.clear()
    return name


def predicted(network: ModelPatcher | SD3Transformer2DModel, words: torch.Tensor | None = None) -> torch.Tensor:
    """What the host's network, or a copy, predicts for one noised latent."""
    x, pooled, t = noise(1, CHANNELS, 12, 16, seed=1), noise(1, POOLED, seed=3), torch.tensor([700.0])
    words = WORDS if words is None else words
    if isinstance(network, ModelPatcher):
        return network.model.diffusion_model(x, t, context=words, y=pooled)
    return network(x, words, pooled, t).sample


def compared(model: ModelPatcher, **options) -> dict:
    """The host's network against the copy on the same inputs, and against the copy of another text."""
    copy = convert.to_diffusers(model, **options)
    expected, got, other = predicted(model), predicted(copy), predicted(copy, WORDS.flip(1) * 0.5)
    size = expected.norm()
    config = {k: copy.config[k] for k in ("num_layers", "dual_attention_layers", "qk_norm", "pos_embed_max_size")}
    return {
        "error": float((got - expected).norm() / size),
        "effect": float((other - got).norm() / size),
        "config": config,
        "table": copy.pos_embed.pos_embed_max_size,
        "notes": convert.remarks(model, torch.float32),
        "fingerprint": convert.fingerprint(model, with_patches=True),
        "linears": {key: len(lora_modules(copy, key)) for key in ("attention", "attention and attn2")},
    }


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

    concept = some_concept(model)
    patched = model.clone()
    lora.add_lora(patched, concept, 1.0)
    seen["with a concept"] = compared(patched) | {"base": compared(model)["fingerprint"]}
    rows = lora.row_loras(model, concept, 1.0, "picture")
    here = torch.ones(1, 90, dtype=torch.bool)
    network = model.model.diffusion_model
    handles = [
        network.get_submodule(one.module).register_forward_hook(one.hook(lora.Where.of(here, "picture")))
        for one in rows
    ]
    gated = predicted(model)
    for handle in handles:
        handle.remove()
    copy = convert.to_diffusers(patched)
    seen["gate"] = {"error": apart(gated, predicted(copy)), "effect": apart(gated, predicted(model))}

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


def exact(model: ModelPatcher, values: dict) -> bool:
    copy = convert.to_diffusers(model).state_dict()
    width = REDUCED["SD3.5 Medium"].width
    return torch.equal(
        copy["transformer_blocks.1.attn2.to_k.weight"],
        values["joint_blocks.1.x_block.attn2.qkv.weight"][width : 2 * width].float(),
    )


def refused(model: ModelPatcher) -> str:
    try:
        convert.to_diffusers(model)
    except ValueError as error:
        return str(error)
    return "was taken"


class Words:
    """Rows of chance for each text, in SD3's widths; the trigger at row 3."""

    def __init__(self, trigger: str):
        self.trigger = trigger

    def encode(self, words: str) -> EncodedText:
        seed, marks = zlib.crc32(words.encode()), torch.zeros(20, dtype=torch.int64)
        marks[3] = int(self.trigger in words)
        return EncodedText(noise(20, JOINT, seed=seed), noise(POOLED, seed=seed + 1), marks)


def wire() -> TrainingData:
    """As Concept Set gives it."""
    data = build_concept_set(
        [noise(64, 64, 3, seed=7)] * 2, ["a [V] dog", ""], trigger="[V]", class_word="dog", kind="instance", tokens=1,
        encode_picture=lambda picture: noise(CHANNELS, 8, 8, seed=8), text_encoder=lambda word, _: Words(word),
    )  # fmt: skip
    return TrainingData(data, pocket.load_pocket()[2], Words(data.trigger))


def trained(model: ModelPatcher, **changed) -> dict:
    """Two steps of stage 1, as the node makes them; what stands in the concept's file."""
    settings = TrainSettings(steps=2, **changed)
    with session.outside_inference():
        data = wire()
        with training.prepared(model, data, settings) as it:
            job = ExtractorJob(it.network, data.concept_set, it.settings, it.scaling, Path(tempfile.mkdtemp()), it.base)
            losses = [record.loss for record in job]
    with safe_open(job.run.result, "pt") as file:
        written = {name: json.loads(file.metadata()[f"purecc.{name}"]) for name in ("base", "settings")}
        moved = max(float(file.get_tensor(key).abs().max()) for key in file.keys() if "lora_B" in key)
    return written | {"losses": losses, "moved": moved, "notes": it.notes}


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
    plain, found = compared(model), None
    from comfy.model_management import load_models_gpu

    load_models_gpu([patched])
    found = compared(patched)
    return {"without": plain, "with": found, "trained": trained(patched)}


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


def half_vae() -> dict:
    """SD3's VAE as the host builds it from a file, in float16, whose first layers overflow there and not in float32."""
    config = {"z_channels": 16, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    config |= {
        "double_z": True,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    made = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": config},
        decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": config},
    )
    values = {
        name: 0.02 * torch.randn(v.shape) if v.ndim > 1 else torch.ones_like(v) for name, v in made.state_dict().items()
    }
    for end in ("encoder", "decoder"):
        values[f"{end}.conv_in.weight"].mul_(5e5).clamp_(-6e4, 6e4)  # the weights themselves fit
    vaes = {dtype: comfy.sd.VAE(sd=dict(values), dtype=dtype) for dtype in (torch.float16, torch.float32)}
    half, whole = vaes[torch.float16], vaes[torch.float32]
    picture = torch.rand(1, 32, 32, 3)
    with session.outside_inference():  # as the nodes call it
        latents = session.encode_pictures(whole, picture)
        of_half = session.encode_pictures(half, picture)
        pictures = [session.decode_latents(vae, latents) for vae in (half, whole)]
    return {
        # and the stock nodes after it: a VAE that came back to float16 outside the host's mode would fail here
        "stock": bool(torch.isfinite(half.encode(picture)).all()),
        "stock picture": bool(torch.isfinite(half.decode(latents)).all()),
        "latents": apart(of_half, latents),
        "pictures": apart(*pictures),
        "dtype": [str(half.vae_dtype), str(next(half.first_stage_model.parameters()).dtype)],
    }


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def broken_vae() -> dict:
    """A VAE with a damaged file, and latents that are no numbers."""
    vae, said = pocket.load_pocket()[2], {}
    cases = {"diverged": lambda: session.decode_latents(vae, torch.full((1, 16, 8, 8), float("nan")))}
    cases["encode"] = lambda: session.encode_pictures(vae, torch.rand(1, 64, 64, 3))
    cases["decode"] = lambda: session.decode_latents(vae, torch.zeros(1, 16, 8, 8))
    for case, call in cases.items():
        try:
            call()
        except ValueError as error:
            said[case] = str(error)
        for parameter in vae.first_stage_model.parameters():
            parameter.fill_(float("nan"))
    return said


with torch.inference_mode():  # as the host runs every node
    print(
        json.dumps(
            {
                check.__name__: check()
                for check in (layouts, dtypes, quantised_layers, with_lora, full_size, others, half_vae, broken_vae)
            }
        )
    )
