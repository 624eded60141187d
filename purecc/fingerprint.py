"""Which base model is it? A short text that is the same for the same weights, in any dtype, in the host or in diffusers.

And digests of whatever else a run depends on.
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

_SAMPLED = (
    "pos_embed.proj.weight",
    "context_embedder.weight",
    "time_text_embed.timestep_embedder.linear_1.weight",
    "proj_out.weight",
)
_SAMPLED_OF_BLOCKS = ("attn.to_q.weight", "attn.add_v_proj.weight", "ff.net.2.weight")
_VALUES = 2048  # of each weight
_BUCKETS = 64
SKETCH = "sketch"  # its name in files
_ROUNDING = 0.05  # of the length: ten times what bfloat16 in place of float32 moves what the Pocket's encoders give


def fingerprint(weight: Callable[[str], Tensor], blocks: int) -> str:
    """16 hexadecimal digits from shapes and signs of a few weights of every block; `weight` maps diffusers' names to tensors.

    Signs tell the model, because rounding to float16, bfloat16 or float8 never turns one, while values rounded twice differ.
    """
    signs = hashlib.sha256()
    of_blocks = [f"transformer_blocks.{block}.{name}" for block in range(blocks) for name in _SAMPLED_OF_BLOCKS]
    for name in (*_SAMPLED, *of_blocks):
        value = weight(name).detach()
        signs.update(f"{name} {tuple(value.shape)}".encode())
        flat = value.reshape(-1)
        some = flat[:: max(1, flat.numel() // _VALUES)].float().cpu()
        signs.update(torch.signbit(some).numpy().tobytes())
    return signs.hexdigest()[:16]


def is_same(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model, whatever words stand behind them."""
    return one.partition(" ")[0] == other.partition(" ")[0]


def transformer_fingerprint(transformer: SD3Transformer2DModel) -> str:
    """The fingerprint of a diffusers transformer's base weights, with LoRA adapters on it or not."""

    def weight(name: str) -> Tensor:
        module = transformer.get_submodule(name.removesuffix(".weight"))
        return getattr(module, "base_layer", module).weight  # peft keeps the Linear that it wraps as base_layer

    return fingerprint(weight, len(transformer.transformer_blocks))


def sketch_of(tensors: Iterable[Tensor]) -> list[float]:
    """64 numbers which are, of tensors of the same sizes, as far apart as these are, to a fifth or so (a count sketch)."""
    found = torch.zeros(_BUCKETS, dtype=torch.float64)
    for number, tensor in enumerate(tensors):
        values = tensor.detach().cpu().double().flatten()
        signs = torch.randint(2, values.shape, generator=torch.Generator().manual_seed(number)) * 2 - 1
        found += nn.functional.pad(values * signs, (0, -len(values) % _BUCKETS)).view(-1, _BUCKETS).sum(0)
    return [float(f"{value:.5g}") for value in found.tolist()]


def differ_by_rounding(one: list[float], other: list[float]) -> bool:
    """Whether sketches, one after the other, are of what is the same but for a device's or a format's arithmetic."""
    if len(one) != len(other) or not one:
        return one == other
    ours, theirs = (torch.tensor(sketch, dtype=torch.float64).view(-1, _BUCKETS) for sketch in (one, other))
    return bool(((ours - theirs).norm(dim=1) <= _ROUNDING * theirs.norm(dim=1)).all())


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's values in float32."""
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()


def digest_of(*parts: str | Tensor) -> str:
    """32 hexadecimal digits of texts, and of tensors with their shapes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(str(tuple(part.shape)).encode())
        content = bytes_of(part) if isinstance(part, Tensor) else part.encode()
        digest.update(f"|{len(content)}|".encode() + content)
    return digest.hexdigest()[:32]
