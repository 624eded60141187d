"""Which text encoders and which autoencoder: short texts that stay the same where what they give differs by rounding.

The same weights give other bits on another device, with other threads, in tiles, with another PyTorch. A run that was
begun must be found again all the same, so it is known by these and by what went in.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...purecc.fingerprint import bytes_of, digest_of
from .weights import entries, update

log = logging.getLogger(__name__)
_VALUES = 256  # of each weight
_POCKET = f"{__package__}.pocket"  # the only subclasses whose code is known
# what of the patcher's lists may not be there: code of others, which no digest can tell
_CODE = (
    "object_patches",
    "weight_wrapper_patches",
    "hook_patches",
    "callbacks",
    "wrappers",
    "injections",
    "additional_models",
)


def autoencoder(vae: comfy.sd.VAE) -> str:
    """32 hexadecimal digits of a VAE's weights and dtype; empty where other packs changed how it works, or it cannot be told."""
    return _told(vae, comfy.sd.VAE, lambda: (str(vae.vae_dtype), _weights(vae.patcher)))


def text_encoders(clip: comfy.sd.CLIP, own: type) -> str:
    """32 hexadecimal digits of a CLIP's weights, the LoRAs on them and its settings; empty as in `autoencoder`.

    `own`: of object patches that do not count, for their caller tells what they do.
    """
    settings = clip.layer_idx, sorted(clip.tokenizer_options.items()), clip.use_clip_schedule
    if clip.apply_hooks_to_conds is not None:
        return ""
    return _told(clip, comfy.sd.CLIP, lambda: (repr(settings), _weights(clip.patcher)), (own,))


def _told(one: Any, kind: type, parts: Callable[[], tuple[str, str]], own: tuple[type, ...] = ()) -> str:
    found = {name: getattr(one.patcher, name, None) for name in _CODE}
    found["object_patches"] = [patch for patch in one.patcher.object_patches.values() if not isinstance(patch, own)]
    if type(one).__module__ not in (kind.__module__, _POCKET) or _has_any(found):
        return ""
    try:
        return digest_of(*parts())
    except Exception as error:  # noqa: BLE001  weights in some other pack's form; what they give tells then
        log.debug("PureCC: which %s it is cannot be told from its weights: %s", kind.__name__, error)
        return ""


def _has_any(found: Any) -> bool:
    """Whether there is anything in dicts of dicts of lists."""
    return any(map(_has_any, found.values())) if isinstance(found, dict) else bool(found)


def _weights(patcher: ModelPatcher) -> str:
    digest = hashlib.sha256()
    with torch.inference_mode(False), torch.no_grad():
        for key, ((weight, _), *_) in sorted(entries(patcher, patcher.model).items()):
            digest.update(f"{key} {tuple(weight.shape)}".encode() + bytes_of(_some(weight)))
        update(digest, patcher.patches)
    return digest.hexdigest()


def _some(weight: Tensor) -> Tensor:
    """A few of a weight's values as they are stored."""
    flat = getattr(weight, "_qdata", weight).detach().as_subclass(Tensor).reshape(-1)
    return flat[:: max(1, flat.numel() // _VALUES)]
