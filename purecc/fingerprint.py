"""Which base model is it? A short text that is the same for the same weights, in any dtype, in the host or in diffusers."""

import hashlib
from collections.abc import Callable

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

_SAMPLED = (
    "pos_embed.proj.weight",
    "context_embedder.weight",
    "time_text_embed.timestep_embedder.linear_1.weight",
    "transformer_blocks.0.attn.to_q.weight",
    "transformer_blocks.0.attn.add_v_proj.weight",
    "transformer_blocks.0.ff.net.2.weight",
    "proj_out.weight",
)
_VALUES = 2048  # of each weight


def fingerprint(weight: Callable[[str], Tensor]) -> str:
    """16 hexadecimal digits from shapes and signs of a few weights; `weight` maps a name of diffusers' to a tensor.

    Signs, because rounding to float16, bfloat16 or float8 never turns one, while values rounded twice differ.
    """
    digest = hashlib.sha256()
    for name in _SAMPLED:
        value = weight(name).detach()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        flat = value.reshape(-1)
        digest.update(torch.signbit(flat[:: max(1, flat.numel() // _VALUES)].float()).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def transformer_fingerprint(transformer: SD3Transformer2DModel) -> str:
    """The fingerprint of a diffusers transformer's base weights, with LoRA adapters on it or not."""

    def weight(name: str) -> Tensor:
        module = transformer.get_submodule(name.removesuffix(".weight"))
        return getattr(module, "base_layer", module).weight  # peft keeps the Linear that it wraps as base_layer

    return fingerprint(weight)
