"""An SD3 transformer, text encoders and an autoencoder with random weights, of a given size: what the benchmarks of speed and memory run.

And how they are counted and timed: FLOPs, seconds, the rate of a large matrix product.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from purecc.batches import Batch, Scene
from purecc.encoding import TextBatch
from purecc.lora import ActingLora
from purecc.network import AdaptedNetwork


@dataclass(frozen=True)
class Clip:
    """A text encoder of CLIP's kind."""

    width: int
    mlp: int
    layers: int
    heads: int
    pooled: int


@dataclass(frozen=True)
class Size:
    """What is measured."""

    name: str
    layers: int
    dual: int
    pixels: int
    clip_tokens: int
    t5_tokens: int
    dtype: torch.dtype
    device: str
    clips: tuple[Clip, ...] = (Clip(768, 3072, 12, 12, 768), Clip(1280, 5120, 32, 20, 1280))
    joint: int = 4096  # T5's width
    t5_mlp: int = 10240
    t5_layers: int = 24
    vocabulary: int = 500
    channels: tuple[int, ...] = (128, 256, 512, 512)  # of the autoencoder
    heads: int = 24
    positions: int = 384
    batch: int = 2

    @property
    def pooled(self) -> int:
        return sum(clip.pooled for clip in self.clips)


REAL = Size("real", 24, 13, 512, 77, 77, torch.bfloat16, "cuda", vocabulary=49408)
SLICE = Size(
    "slice", 2, 1, 512, 77, 77, torch.float32, "cpu",
    clips=(Clip(768, 3072, 1, 12, 768), Clip(1280, 5120, 3, 20, 1280)), t5_layers=2, channels=(32, 64, 128, 160),
)  # fmt: skip
TINY = Size(
    "tiny", 2, 1, 64, 8, 8, torch.float32, "cpu", clips=(Clip(64, 256, 1, 2, 32),) * 2, joint=64, t5_mlp=288,
    t5_layers=2, channels=(8, 16, 40, 40), heads=4, positions=4,
)  # of the tests  # fmt: skip


class ByPeft(AdaptedNetwork):
    """The reference's: LoRAs by peft's own forward, of which the one added last acts; norms as diffusers has them."""

    def _add_lora(self, name: str, rank: int, alpha: float, targets: list[str]) -> None:
        super()._add_lora(name, rank, alpha, targets)
        for layer in self._layers.values():
            layer.enable_adapters(True)
            layer.set_adapter([name])

    def _precision(self) -> AbstractContextManager:
        """Autocast: peft's matrices are in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _lora(self, *_: object) -> list[ActingLora]:
        return []  # peft's acts

    def _fuse(self) -> None:
        pass


class Encoders:
    """Text encoders and autoencoder; random weights, real classes."""

    def __init__(self, size: Size):
        self.size = size
        with torch.device(size.device):  # made there: a T5 of 4.7 billion values takes a processor a minute
            self.clips = [
                self._placed(
                    CLIPTextModelWithProjection(
                        CLIPTextConfig(
                            vocab_size=size.vocabulary, hidden_size=clip.width, intermediate_size=clip.mlp,
                            num_hidden_layers=clip.layers, num_attention_heads=clip.heads, projection_dim=clip.pooled,
                        )
                    )
                )
                for clip in size.clips
            ]  # fmt: skip
            self.t5 = self._placed(
                T5EncoderModel(
                    T5Config(
                        vocab_size=min(size.vocabulary, 32128), d_model=size.joint, d_ff=size.t5_mlp,
                        num_layers=size.t5_layers, num_heads=size.joint // 64, d_kv=64, feed_forward_proj="gated-gelu",
                    )
                )
            )  # fmt: skip
            self.vae = self._placed(
                AutoencoderKL(
                    latent_channels=16, block_out_channels=size.channels, layers_per_block=2,
                    norm_num_groups=min(size.channels[0], 32),
                    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                    use_quant_conv=False, use_post_quant_conv=False,
                ),
                torch.float32,
            )  # fmt: skip

    @torch.no_grad()
    def text(self, words: Tensor) -> TextBatch:
        """`words` [batch, tokens] of any vocabulary -> as SD3 reads them."""
        size = self.size
        made = [clip(words[:, : size.clip_tokens] % clip.config.vocab_size) for clip in self.clips]
        rows = torch.cat([one.last_hidden_state for one in made], -1)
        rows = nn.functional.pad(rows, (0, size.joint - rows.shape[-1]))
        of_t5 = self.t5(words[:, : size.t5_tokens] % self.t5.config.vocab_size).last_hidden_state
        rows, pooled = torch.cat([rows, of_t5], 1).float(), torch.cat([one.text_embeds for one in made], -1).float()
        return TextBatch(rows, pooled, torch.zeros(rows.shape[:2], dtype=torch.int64, device="cpu"))

    @torch.no_grad()
    def picture(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent_dist.mode()

    def _placed(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return model.to(self.size.device, dtype or self.size.dtype).requires_grad_(False).eval()


def transformer_of(size: Size) -> SD3Transformer2DModel:
    """Random weights."""
    side, usual = size.pixels // 16, torch.get_default_dtype()
    try:
        torch.set_default_dtype(size.dtype)  # cast afterwards, they would lie in pieces of memory that float32 left
        with torch.device(size.device):
            transformer = SD3Transformer2DModel(
                sample_size=2 * side, patch_size=2, in_channels=16, out_channels=16, num_layers=size.layers,
                attention_head_dim=64, num_attention_heads=size.heads, joint_attention_dim=size.joint,
                caption_projection_dim=64 * size.heads, pooled_projection_dim=size.pooled,
                pos_embed_max_size=size.positions, dual_attention_layers=tuple(range(size.dual)),
                qk_norm="rms_norm",
            )  # fmt: skip
    finally:
        torch.set_default_dtype(usual)
    return transformer.to(size.dtype)


def with_anchors(batch: Batch) -> Batch:
    """With what the anchors read: half as many scenes as pictures, of their size and length; nothing is masked."""
    half = -(-len(batch.t) // 2)
    first = lambda text: TextBatch(text.rows[:half], text.pooled[:half], text.marks[:half])  # noqa: E731
    outside = torch.ones_like(batch.x_t[:, :1])
    own, plain = first(batch.complete), first(batch.base)
    scene = Scene(batch.x_t[:half], batch.t[:half], own, plain, own, plain, outside[:half])
    return replace(batch, outside=outside, scene=scene)


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(gradient: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)


def _product(_: torch.Size, a: torch.Size, b: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


# attention on a CPU and products in place, which PyTorch's counter does not know
_UNKNOWN = {
    torch.ops.aten.addmm_: _product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flops_of(work: Callable[[], object]) -> int:
    """FLOPs of products, convolutions and attention, those computed again among them."""
    with FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as counter:
        work()
    return counter.get_total_flops()


def seconds_of(work: Callable[[], object], device: str) -> float:
    """CPU time, or the time of CUDA's events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.process_time()
    work()
    return time.process_time() - begun


def kernels_of(work: Callable[[], object]) -> int:
    """Kernels that ran on a CUDA GPU, copies and fillings aside."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)


def matrix_rate(size: Size) -> float:
    """FLOPs a second of a large matrix product in the size's dtype; the best of five."""
    n = 8192 if size.device == "cuda" else 1024
    a = torch.randn(n, n, device=size.device, dtype=size.dtype)
    return 2 * n**3 / min(seconds_of(lambda: a @ a, size.device) for _ in range(5))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def device_name(size: Size) -> str:
    return torch.cuda.get_device_name() if size.device == "cuda" else "CPU"
