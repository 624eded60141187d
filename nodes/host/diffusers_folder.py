"""A diffusers folder of Stable Diffusion 3 as the host's MODEL, CLIP and VAE, through the host's own loading of weights.

    models/diffusers/<name>/model_index.json, scheduler/, transformer/, text_encoder/, text_encoder_2/, text_encoder_3/, vae/

Any of the text encoders may be missing. Only .safetensors files are read: the others can run code.
"""

import json
import os
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import comfy.utils
import folder_paths
import safetensors
from comfy.model_patcher import ModelPatcher
from torch import Tensor

_PIPELINE = "StableDiffusion3"  # how the names of its pipelines begin
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def folders() -> list[str]:
    """The folders in models/diffusers that hold a pipeline, by their relative names."""
    return sorted(_paths())


def load(name: str) -> tuple[ModelPatcher, comfy.sd.CLIP | None, comfy.sd.VAE]:
    """MODEL, CLIP (None where there is no text encoder) and VAE. Raises ValueError with what is wrong with the folder."""
    folder = _paths().get(name)
    if folder is None:
        raise ValueError(
            f'There is no diffusers folder "{name}" in models/diffusers. Refresh the list (R), choose another.'
        )
    pipeline = _json(folder / "model_index.json").get("_class_name", "of no known kind")
    if not str(pipeline).startswith(_PIPELINE):
        raise ValueError(f'The folder "{name}" holds a {pipeline}; this node loads StableDiffusion3Pipeline.')
    return _model(folder), _clip(folder), _vae(folder)


def _model(folder: Path, **options: Any) -> ModelPatcher:
    model = comfy.sd.load_diffusion_model_state_dict(_weights(folder / "transformer"), **options)
    if model is None or not isinstance(model.model, comfy.model_base.SD3):
        raise ValueError(f'ComfyUI does not take the transformer of "{folder.name}" for one of Stable Diffusion 3.')
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        model.model.model_sampling.set_parameters(shift=float(_json(scheduler).get("shift", 3.0)))
    # newer hosts load it anew by this, in ways that they name in options
    model.cached_patcher_init = (_model, (folder,))
    return model


def _clip(folder: Path, **options: Any) -> comfy.sd.CLIP | None:
    found = [_weights(folder / part) for part in _ENCODERS if (folder / part).is_dir()]
    if not found:
        return None
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.load_text_encoder_state_dicts(found, embeddings, comfy.sd.CLIPType.SD3, **options)
    clip.patcher.cached_patcher_init = (_text_patcher, (folder,))
    return clip


def _text_patcher(folder: Path, **options: Any) -> ModelPatcher:
    return _clip(folder, **options).patcher


def _vae(folder: Path) -> comfy.sd.VAE:
    vae = comfy.sd.VAE(sd=_weights(folder / "vae"))
    vae.patcher.cached_patcher_init = (_vae_patcher, (folder,))
    return vae


def _vae_patcher(folder: Path, **_: Any) -> ModelPatcher:
    return _vae(folder).patcher


def _weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a model's folder: the whole files rather than the variants, shards joined."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    plain = [name for name in names if name.count(".") == 1]  # a variant is called model.fp16.safetensors
    if not names:
        raise ValueError(
            f"There is no .safetensors file in {folder.parent.name}/{folder.name}. Download the folder again, with its weights; "
            ".bin files are not read."
        )
    chosen = plain or [name for name in names if _variant(name) == _variant(names[0])]
    weights: dict[str, Tensor] = {}
    for name in chosen:
        try:
            weights |= comfy.utils.load_torch_file(str(folder / name), safe_load=True)
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(
                f"{folder.parent.name}/{folder.name}/{name} is not whole; download it again. ({error})"
            ) from error
    # of a variant it is called model.safetensors.index.fp16.json
    for index in folder.glob("*.safetensors.index*.json"):
        files = set(_json(index)["weight_map"].values())
        missing = sorted(file for file in files if files & set(chosen) and file not in chosen)
        if missing:
            raise ValueError(f"{folder.parent.name}/{folder.name} lacks {', '.join(missing)}: download it again.")
    return weights


def _variant(name: str) -> str:
    """fp16 of model.fp16.safetensors and of model.fp16-00001-of-00002.safetensors."""
    return name.split(".")[1].split("-")[0]


def _paths() -> dict[str, Path]:
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    return {
        Path(folder).relative_to(root).as_posix(): Path(folder)
        for root in reversed(roots)
        for folder, _, files in os.walk(root, followlinks=True)  # as the host does: models are often linked
        if "model_index.json" in files
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
