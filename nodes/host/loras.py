"""Plain LoRA files: where the host keeps them, and whether its own loader takes every key."""

from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn.functional import pad

from ...purecc.concept import Concept, LoraWeights, lora_of
from ...purecc.files import load_tensors
from ...purecc.public_code import told_alpha
from .folders import file_of, files_of
from .lora import lora_places
from .weights import HostWeights


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


def lora_on(model: ModelPatcher, path: Path, alpha: float = 0.0) -> tuple[LoraWeights, int]:
    """A LoRA file in any names that the host's loader knows (kohya's, ComfyUI's Train LoRA, ...), on diffusers' modules; and how
    many of its parts are left out: keys that name nothing of the MODEL, as of text encoders, and weights whose change is no LoRA of a Linear.

    `alpha` 0: what the file says, or the text beside it (`told_alpha`). Of a Linear that is q, k and v in one, each has the whole A and
    its rows of B. All modules get the largest rank, and alpha = rank.
    Raises ValueError where nothing is left, or for what is no file of tensors.
    """
    tensors, metadata = load_tensors(path)
    states = any(key.endswith(".alpha") for key in tensors)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(tensors, names, log_missing=False)
    modules: dict[str, list[tuple[str, int, int | None]]] = {}  # by the host's weight: name, its first row, its rows
    for name, place in HostWeights(model, with_patches=False).places.items():
        key, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        if change is None:
            modules.setdefault(key, []).append((name.removesuffix(".weight"), *(part[1:] if part else (0, None))))
    found, left_out = {}, set(tensors)
    for target, adapter in patches.items():
        key, own = (target, None) if isinstance(target, str) else target[:2]
        up, down, told, *more = adapter.weights if getattr(adapter, "name", "") == "lora" else (None,) * 3
        linear = model.model.get_submodule(key.rpartition(".")[0])
        left_out -= getattr(adapter, "loaded_keys", set())  # of all adapters together
        parts = modules.get(key, []) if up is not None and hasattr(linear, "out_features") else []
        parts = [part for part in parts if own is None or own[1:] == part[1:]]
        if not parts or any(one is not None for one in more):
            left_out.add(target)
            continue
        if alpha:
            told = alpha
        elif told is None:
            told = len(down) if states else told_alpha(path, metadata, len(down))
        a, b = (matrix.float().flatten(1) for matrix in (down, up))  # some keep them as 1 x 1 convolutions
        b = b * (told / len(down))
        for name, first, rows in parts:
            pair = a, b if own or rows is None else b[first : first + rows]
            if name in found:  # of q alone, beside one of q, k and v
                pair = torch.cat([found[name][0], pair[0]]), torch.cat([found[name][1], pair[1]], 1)
            found[name] = pair
    if not found:
        raise ValueError(f"{path.name} has no LoRA of a Linear of this MODEL.")
    rank = max(a.shape[0] for a, _ in found.values())
    widened = {
        name: (pad(a, (0, 0, 0, rank - a.shape[0])), pad(b, (0, rank - b.shape[1])))
        for name, (a, b) in sorted(found.items())
    }
    return lora_of(path.name, widened, [float(rank)]), len(left_out)
