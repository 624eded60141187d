"""SD3 weights as people have them: the names and shapes of the published files, written down here, with random values.

Native names are those of SD3's single files and of models/diffusion_models. The width is 64 times the blocks, as in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

JOINT, POOLED, CHANNELS, PATCH, HEAD = 4096, 2048, 16, 2, 64  # all SD3 models have these
SINGLE_FILE = "model.diffusion_model."


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
    """As the scaled fp8 files: weights of Linears divided by a scale of their own, in float8."""
    made: dict[str, Tensor] = {"scaled_fp8": torch.tensor([], dtype=torch.float8_e4m3fn)}
    for name, value in values.items():
        made[name] = value
        if value.ndim == 2 and name.endswith(".weight"):
            scale = value.float().abs().max() / 448
            made[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            made[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
    return made
