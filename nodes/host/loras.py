"""Plain LoRA files: where the host keeps them, and whether its own loader takes every key."""

from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...purecc.concept import Concept
from .folders import file_of, files_of
from .lora import lora_places


def loras_folder() -> Path:
    """models/loras, the first of the host's folders for them."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def embeddings_folder() -> Path:
    """models/embeddings, where `embedding:name` in prompts is looked for; made where it is not there yet."""
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lora_files() -> list[str]:
    """Names of the LoRA files, relative to their folders, for a combo."""
    return files_of("loras")


def token_files() -> list[str]:
    """Names of the `learned_embeds.pt` of the public code, in the folders of LoRAs."""
    return [name for name in lora_files() if Path(name).suffix.lower() == ".pt"]


def lora_file(name: str) -> Path | None:
    """The file of a name from `lora_files`; None where there is none."""
    return file_of("loras", name)


def lora_path(name: str) -> Path:
    """The same. Raises ValueError where there is none: the host does not check combos."""
    if path := lora_file(name):
        return path
    raise ValueError(f'There is no LoRA "{name}" in models/loras. Refresh the list (R) and choose another.')


def require_loadable(model: ModelPatcher, concept: Concept, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the stock LoRA loader would leave a key of `tensors` out on this MODEL: it only warns."""
    places = lora_places(model, concept)  # raises where a module or its shape does not fit
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(dict(tensors), names, log_missing=False)
    taken = set().union(*(patch.loaded_keys for patch in patches.values()))
    left = sorted(tensors.keys() - taken)
    added = model.clone().add_patches(patches, 1.0)
    if left or not len(added) == len(patches) == len(places):
        raise ValueError(
            f"ComfyUI's LoRA loader would leave {len(left)} of {len(tensors)} keys out ({', '.join(left[:3])}), and take "
            f"{len(added)} of {len(places)} modules. Export with the MODEL that the concept was trained on."
        )
