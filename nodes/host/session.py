"""What a training node needs of the host: device, pictures in and out, interruption, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

log = logging.getLogger(__name__)


@contextmanager
def outside_inference() -> Iterator[None]:
    """Gradients are recorded inside. The host runs every node in inference mode, which `enable_grad` does not leave."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def as_the_host() -> Iterator[None]:
    """The host's own mode inside, for all that may move its models.

    Their weights are inference tensors: moved to another device or dtype outside this mode, they fail in the stock nodes that follow.
    """
    with torch.inference_mode():
        yield


def kept(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A copy on the CPU that training may keep: gradients cannot pass what was made in the host's mode."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().to("cpu", dtype).clone()


def training_device() -> torch.device:
    return comfy.model_management.get_torch_device()


def training_dtype(device: torch.device | None = None, wanted: str = "auto") -> torch.dtype:
    """The dtype of the frozen weights: the wanted one, or for "auto" what the host would take on this device, bfloat16 or float32.

    Never float16 or float8, whatever the command line says: gradients need bfloat16's range.
    """
    device = device or training_device()
    if wanted != "auto":
        return getattr(torch, wanted)
    allowed = [torch.bfloat16, torch.float32]
    chosen = comfy.model_management.unet_dtype(device=device, model_params=0, supported_dtypes=allowed)
    if chosen not in allowed:  # --fp16-unet and its kind, of people with small cards
        chosen = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    return chosen


def encode_pictures(vae: comfy.sd.VAE, images: Tensor) -> Tensor:
    """Pictures [batch, height, width, 3] in [0, 1] -> latents [batch, channels, height / 8, width / 8], float32, on the CPU.

    Sides that the VAE's downscale does not divide are cropped by the host, about the centre. What overflows in half
    precision is done once more in float32. Raises ValueError where the latents are not finite even so.
    """
    check_interrupted()
    latents = _finite(vae, lambda: vae.encode(images[..., :3]))
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The VAE gave latents that are not finite, in float32 too: its file is damaged, or is not SD3's. Load another file of SD3's VAE."
        )
    return latents


def decode_latents(vae: comfy.sd.VAE, latents: Tensor) -> Tensor:
    """The VAE's own latents -> pictures [batch, height, width, 3] in [0, 1], on the CPU; never black by an overflow.

    Raises ValueError where the latents are not finite, or the pictures in float32 too.
    """
    if not torch.isfinite(latents).all():
        raise ValueError("The model's picture is not finite: training has diverged. Lower the learning rates.")
    pictures = _finite(vae, lambda: vae.decode(latents.detach()))
    if not torch.isfinite(pictures).all():
        raise ValueError("The VAE gave pictures that are not finite, in float32 too. Load another file of SD3's VAE.")
    return pictures


def _finite(vae: comfy.sd.VAE, work: Callable[[], Tensor]) -> Tensor:
    """What a call of the VAE gives, float32, on the CPU; where values overflow, once more with the VAE in float32."""

    dtype = vae.vae_dtype
    with as_the_host():
        made = kept(work())
        if torch.isfinite(made).all() or dtype == torch.float32:
            return made
        log.warning("PureCC: the VAE overflows in %s; once more in float32.", str(dtype).removeprefix("torch."))
        whole = not getattr(vae.patcher, "is_dynamic", bool)()  # else the host widens weights as it computes
        try:
            vae.vae_dtype = torch.float32
            if whole:
                vae.first_stage_model.to(torch.float32)
            return kept(work())
        finally:
            vae.vae_dtype = dtype
            if whole:
                vae.first_stage_model.to(dtype)


def check_interrupted() -> None:
    """Raises the host's own exception where the user pressed cancel; let it pass through."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def free_for_training() -> None:
    """Every model of the host leaves the device."""
    with as_the_host():
        comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def watch_peak(device: torch.device) -> int:
    """From here on `peak` tells the most that was allocated. Bytes that are now; 0 where no allocator counts them."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int | None:
    """Bytes, by the allocator, since `watch_peak`; None where no allocator counts them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
