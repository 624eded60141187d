"""SD3 weights as people have them: the names and shapes of the published files, written down here, with random values.

Native names are those of SD3's single files and of models/diffusion_models. The width is 64 times the blocks, as in all of them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

JOINT, POOLED, CHANNELS, PATCH, HEAD = 4096, 2048, 16, 2, 64  # all SD3 models have these
SINGLE_FILE, VAE = "model.diffusion_model.", "first_stage_model."  # prefixes of the parts of single files


@dataclass(frozen=True)
class Kind:
    """What tells the models apart."""

    blocks: int
    positions: int  # side of the table
    dual: tuple[int, ...]
    qk_norm: bool

    @property
    def width(self) -> int:
        return HEAD * self.blocks


SD35_MEDIUM = Kind(24, 384, tuple(range(13)), True)
REDUCED = {
    "SD3 Medium": Kind(4, 192, (), False),
    "SD3.5 Large": Kind(5, 192, (), True),
    "SD3.5 Medium": Kind(4, 384, (0, 1), True),
}


def shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    """Native name -> shape."""
    width = kind.width
    found: dict[str, tuple[int, ...]] = {"pos_embed": (1, kind.positions**2, width)}

    def linear(name: str, inner: int, outer: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outer, inner), (outer,)

    def attention(name: str, out: bool) -> None:
        linear(f"{name}.qkv", width, 3 * width)
        if kind.qk_norm:
            found[f"{name}.ln_q.weight"] = found[f"{name}.ln_k.weight"] = (HEAD,)
        if out:
            linear(f"{name}.proj", width, width)

    found["x_embedder.proj.weight"], found["x_embedder.proj.bias"] = (width, CHANNELS, PATCH, PATCH), (width,)
    linear("context_embedder", JOINT, width)
    for name, inner in (("t_embedder", 256), ("y_embedder", POOLED)):
        linear(f"{name}.mlp.0", inner, width)
        linear(f"{name}.mlp.2", width, width)
    for index in range(kind.blocks):
        block, last = f"joint_blocks.{index}", index == kind.blocks - 1
        for stream in ("x_block", "context_block"):
            name, ends = f"{block}.{stream}", last and stream == "context_block"
            dual = stream == "x_block" and index in kind.dual
            linear(f"{name}.adaLN_modulation.1", width, width * (2 if ends else 9 if dual else 6))
            attention(f"{name}.attn", out=not ends)
            if dual:
                attention(f"{name}.attn2", out=True)
            if not ends:
                linear(f"{name}.mlp.fc1", width, 4 * width)
                linear(f"{name}.mlp.fc2", 4 * width, width)
    linear("final_layer.linear", width, PATCH**2 * CHANNELS)
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return found


def weights(kind: Kind, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Values of a size at which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes(kind).items():
        if ".ln_" in name:
            value = 1 + 0.1 * torch.randn(shape, generator=generator)
        elif name == "pos_embed":
            value = torch.rand(1, 1, shape[2], generator=generator) * torch.linspace(-1, 1, shape[1])[None, :, None]
        elif len(shape) > 1:
            value = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        else:
            value = 0.1 * torch.randn(shape, generator=generator)
        made[name] = value.to(dtype)
    return made


def prefixed(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in values.items()}


def scaled_float8(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the scaled fp8 files: weights of Linears divided by a scale of their own, in float8. T5's two tables stay as they are."""
    made: dict[str, Tensor] = {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}
    for name, value in values.items():
        made[name] = value
        table = name == "shared.weight" or name.endswith("relative_attention_bias.weight")
        if value.ndim == 2 and name.endswith(".weight") and not table:
            scale = value.float().abs().max() / 448
            made[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            made[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
    return made


def quantised(values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As the files whose metadata names the quantised layers: each Linear's weight in float8 beside its scale; and that metadata."""
    made, layers = dict(values), {}
    for name, value in scaled_float8(values).items():
        if name.endswith("scale_weight"):
            layer = name.removesuffix(".scale_weight")
            made |= {f"{layer}.weight_scale": value, f"{layer}.input_scale": torch.tensor(1.0)}
            layers[layer] = {"format": "float8_e4m3fn"}
        elif name in made:
            made[name] = value
    return made, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def cast(values: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """As the fp16 files, and the fp8 ones without scales: all tensors in one dtype."""
    return {name: value.to(dtype) for name, value in values.items()}


def clip_shapes(width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """CLIP-L (768, 12 layers in the files) and CLIP-G (1280, 32 layers)."""
    found: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_projection.weight": (width, width),
    }
    linears = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    norms = ["text_model.final_layer_norm"]
    for layer in range(layers):
        name = f"text_model.encoder.layers.{layer}"
        for part, shape in linears.items():
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = shape, shape[:1]
        norms += [f"{name}.layer_norm1", f"{name}.layer_norm2"]
    for norm in norms:
        found[f"{norm}.weight"] = found[f"{norm}.bias"] = (width,)
    return found


T5_XXL = {"num_layers": 24, "d_ff": 10240, "num_heads": 64}
T5_SMALL = {"num_layers": 1, "d_ff": 64, "num_heads": 4}


def t5_shapes(num_layers: int, d_ff: int, num_heads: int) -> dict[str, tuple[int, ...]]:
    """T5 of T5-XXL's width; a key of the latter's last layer, by which loaders know it, where it has fewer."""
    width = 4096
    found = {
        "shared.weight": (32128, width),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, num_heads),
        "encoder.final_layer_norm.weight": (width,),
        "encoder.block.23.layer.1.DenseReluDense.wi_1.weight": (10240, width),
    }
    for index in range(num_layers):
        layer = f"encoder.block.{index}.layer"
        found |= {f"{layer}.0.SelfAttention.{name}.weight": (num_heads * 64, width) for name in "qkv"}
        found |= {f"{layer}.1.DenseReluDense.{name}.weight": (d_ff, width) for name in ("wi_0", "wi_1")}
        found |= {f"{layer}.{part}.layer_norm.weight": (width,) for part in range(2)}
        found[f"{layer}.0.SelfAttention.o.weight"] = (width, num_heads * 64)
        found[f"{layer}.1.DenseReluDense.wo.weight"] = (width, d_ff)
    return found


def vae_shapes() -> dict[str, tuple[int, ...]]:
    """SD3's VAE at full size, by the names of single files, without their prefix `VAE`."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inner: int, outer: int, side: int = 3) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outer, inner, side, side), (outer,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    def block(name: str, inner: int, outer: int) -> None:
        norm(f"{name}.norm1", inner)
        conv(f"{name}.conv1", inner, outer)
        norm(f"{name}.norm2", outer)
        conv(f"{name}.conv2", outer, outer)
        if inner != outer:
            conv(f"{name}.nin_shortcut", inner, outer, 1)

    def middle(name: str) -> None:
        block(f"{name}.block_1", 512, 512)
        block(f"{name}.block_2", 512, 512)
        norm(f"{name}.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", 512, 512, 1)

    widths = (128, 256, 512, 512)
    conv("encoder.conv_in", 3, 128)
    conv("decoder.conv_in", CHANNELS, 512)
    for level, width in enumerate(widths):
        for index in range(2):
            block(f"encoder.down.{level}.block.{index}", widths[max(level - 1, 0)] if index == 0 else width, width)
        for index in range(3):
            block(f"decoder.up.{level}.block.{index}", widths[min(level + 1, 3)] if index == 0 else width, width)
        if level < 3:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    for half, width, outer in (("encoder", 512, 2 * CHANNELS), ("decoder", 128, 3)):
        middle(f"{half}.mid")
        norm(f"{half}.norm_out", width)
        conv(f"{half}.conv_out", width, outer)
    return found


def random_values(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16, device: str = "cpu"
) -> dict[str, Tensor]:
    """Norms near 1, the rest small; large tables repeat their first rows. Made on `device`."""
    generator, made = torch.Generator(device).manual_seed(1), {}
    for name, shape in shapes.items():
        normal = lambda *of: torch.randn(*of, generator=generator, device=device)  # noqa: E731
        if len(shape) == 1:
            value = 0.1 * normal(*shape) + (0.0 if name.endswith("bias") else 1.0)
        else:
            rows = normal(min(shape[0], 997), *shape[1:]) / math.sqrt(math.prod(shape[1:]))
            value = rows[torch.arange(shape[0]) % len(rows)]
        made[name] = value.to(dtype)
    return made
