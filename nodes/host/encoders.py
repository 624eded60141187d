"""Which text encoders and which autoencoder: short texts that stay the same where what they give differs by rounding.

The same weights give other bits on another device, with other threads, with another PyTorch. A run that was
begun must be found again all the same, so it is known by these and by what went in. Code of other packs is looked for
where it is usually put; what is not found here shows in `ConceptSet.sketch`.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...purecc.fingerprint import digest_of
from .weights import add_values, entries, some, update

log = logging.getLogger(__name__)
_DECODER = ("decoder.", "post_quant_conv.")
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
    """32 hexadecimal digits of a VAE's encoder; empty where other packs changed how it works, or it cannot be told."""
    return _told(vae, comfy.sd.VAE, "first_stage_model", lambda: str(vae.vae_dtype))


def text_encoders(clip: comfy.sd.CLIP, own: type) -> str:
    """32 hexadecimal digits of a CLIP's weights, the LoRAs on them and its settings; empty as in `autoencoder`.

    `own`: of object patches that do not count, for their caller tells what they do.
    """

    def settings() -> str:
        if clip.apply_hooks_to_conds is not None:
            raise ValueError("it has hooks")
        return repr((clip.layer_idx, sorted(clip.tokenizer_options.items()), clip.use_clip_schedule))

    return _told(clip, comfy.sd.CLIP, "cond_stage_model", settings, (own,))


def _told(one: Any, kind: type, model: str, settings: Callable[[], str], own: tuple[type, ...] = ()) -> str:
    try:
        if type(one).__module__ not in (kind.__module__, _POCKET) or getattr(one, model) is not one.patcher.model:
            raise ValueError("its class is not ComfyUI's")
        found = {name: getattr(one.patcher, name, None) for name in _CODE}
        # newer hosts put the dtype to compute in there, which rounding alone depends on
        found["object_patches"] = [
            p for p in one.patcher.object_patches.values() if not isinstance(p, (*own, torch.dtype))
        ]
        if _has_any(found):
            raise ValueError("other code is attached to it")
        return digest_of(settings(), _weights(one.patcher))
    except Exception as error:  # noqa: BLE001  or weights in some other pack's form; what they give tells then
        log.debug("PureCC: which %s it is cannot be told: %s", kind.__name__, error)
        return ""


def _has_any(found: Any) -> bool:
    """Whether there is anything in dicts of dicts of lists."""
    return any(map(_has_any, found.values())) if isinstance(found, dict) else bool(found)


def _weights(patcher: ModelPatcher) -> str:
    """Of what encodes: a VAE's decoder takes no part."""
    digest = hashlib.sha256()
    with torch.inference_mode(False), torch.no_grad():
        for name, module in patcher.model.named_modules():
            if (module._forward_hooks or module._forward_pre_hooks) and not f"{name}.".startswith(_DECODER):
                raise ValueError(f"{name} has hooks")
        of_encoder = lambda found: {key: found[key] for key in found if not key.startswith(_DECODER)}  # noqa: E731
        add_values(digest, of_encoder(entries(patcher, patcher.model)))
        update(digest, of_encoder(patcher.patches), some)
    return digest.hexdigest()
