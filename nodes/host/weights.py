"""The weights of the host's MODEL under diffusers' names, and which model they are.

Key names and layout come from the host's own map (`comfy.utils.mmdit_to_diffusers`), walked backwards.
"""

import hashlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...purecc.fingerprint import bytes_of
from ...purecc.fingerprint import fingerprint as _fingerprint
from ...purecc.positions import centre

PREFIX = "diffusion_model."
HEAD = 64  # the host's width of an attention head: it takes depth = heads = width / 64
# parameters beside quantised weights
_SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", "scaled_fp8")
_POSITIONS = PREFIX + "pos_embed"
_LARGE, _VALUES = 2**16, 256  # values: of a weight of so many, so few are looked at


def require_sd3(model: ModelPatcher) -> None:
    """Raises ValueError where the MODEL is not of the Stable Diffusion 3 type, or of a shape that the host cannot map."""
    if not isinstance(model.model, comfy.model_base.SD3):
        raise ValueError(
            f"This MODEL is of the type {_kind(model)}; PureCC works on Stable Diffusion 3 types. "
            "Load an SD3 or SD3.5 checkpoint, or use the Pocket Model node."
        )
    network = model.model.diffusion_model
    blocks, width = len(network.joint_blocks), network.hidden_size
    if width != HEAD * blocks:
        raise ValueError(
            f"This MODEL has {blocks} joint blocks of width {width}; ComfyUI's names for its weights need a width of "
            f"{HEAD} times the blocks ({HEAD * blocks}). Train on a checkpoint that keeps it, as SD3 and SD3.5 do."
        )


def _kind(model: ModelPatcher) -> str:
    """What the host took it for: SDXL, Flux, SD15, ..."""
    return type(getattr(model.model, "model_config", model.model)).__name__


class PackedError(ValueError):
    """Weights that are packed in a way that only the pack which loaded them can read."""


class HostWeights:
    """A MODEL's weights under diffusers' names, read one at a time: never from the live modules, which may be patched.

    `side`: of the table of positions, in patches; None for the whole table.
    """

    def __init__(self, model: ModelPatcher, with_patches: bool, side: int | None = None):
        require_sd3(model)
        self.with_patches, self.side = with_patches, side
        self.entries = entries(model, model.model.diffusion_model, PREFIX)
        blocks = len(model.model.diffusion_model.joint_blocks)
        names = comfy.utils.mmdit_to_diffusers({"depth": blocks}, output_prefix=PREFIX)
        # the map also offers what this network lacks, such as a second attention in every block
        self.places = {ours: place for ours, place in names.items() if self._key(place) in self.entries}

    @staticmethod
    def _key(place: str | tuple) -> str:
        return place if isinstance(place, str) else place[0]

    def __getitem__(self, name: str) -> Tensor:
        """One weight, where the host keeps it, in its dtype; with patches in float32."""
        return self._part(self.places[name], self._whole(self._key(self.places[name]), None, widen=self.with_patches))

    def items(self, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
        """Every (name, float32 weight), each weight of the host read once, though q, k and v are parts of one."""
        key, whole = None, None
        for name, place in sorted(self.places.items(), key=lambda item: self._key(item[1])):
            if key != self._key(place):
                key = self._key(place)
                whole = self._whole(key, device)
            yield name, self._part(place, whole)

    def shapes(self) -> dict[str, torch.Size]:
        """The host's key, less its prefix -> shape."""
        return {key[len(PREFIX) :]: entry[0][0].shape for key, entry in self.entries.items()}

    def strange(self) -> list[str]:
        """Weights of the host without a place in diffusers' transformer."""
        placed = {self._key(place) for place in self.places.values()}
        return sorted(key for key in self.entries if key not in placed and not key.endswith(_SCALES))

    def dtypes(self) -> set[torch.dtype]:
        """As the host keeps them; of a quantised weight the dtype of what is kept, not of what it stands for."""
        own = (entry[0][0] for key, entry in self.entries.items() if not key.endswith(_SCALES))
        return {getattr(weight, "_qdata", weight).dtype for weight in own}

    def is_quantised(self) -> bool:
        """Whether any weight has 8 bits or fewer."""
        return any(dtype.itemsize == 1 for dtype in self.dtypes())

    def _whole(self, key: str, device: torch.device | str | None, widen: bool = True) -> Tensor:
        (weight, convert), *patches = self.entries[key]
        weight = convert(_computing(weight), inplace=False)  # undoes fp8 scales and other quantisation
        if not weight.is_floating_point():
            raise PackedError(
                f"This MODEL's weights are packed ({key} is {str(weight.dtype).removeprefix('torch.')}, as in GGUF and NF4 files). "
                "Train on the same model in bfloat16, float16 or float8; the concept then works on the packed one too."
            )
        if key == _POSITIONS and self.side:
            weight = centre(weight, self.side)
        weight = weight.detach()
        if not widen:
            return weight
        if device is not None and torch.device(device).type == "cuda":
            weight = weight.to(device)  # as it is stored: PyTorch would widen it here first, and send twice the bytes
        weight = weight.to(device=device, dtype=torch.float32, copy=True)
        return comfy.lora.calculate_weight(patches, weight, key) if self.with_patches and patches else weight

    @staticmethod
    def _part(place: str | tuple, whole: Tensor) -> Tensor:
        _, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        value = whole if part is None else whole.narrow(*part)
        return value if change is None else change(value)  # swap_scale_shift is its own inverse


def entries(patcher: ModelPatcher, root: torch.nn.Module, prefix: str = "") -> dict[str, list[Any]]:
    """The weights of a MODEL's network, a CLIP or a VAE by the host's keys, as `ModelPatcher.get_key_patches` gives them: [(original, how it is read), *patches].

    That goes through the state dict and fails where quantised layers put more into it than they have as attributes.
    `root` is the patcher's model or a part of it, whose keys begin with `prefix`. Raises PackedError for what only other code can read.
    """
    found = {}
    with patcher.use_ejected():
        for place, module in root.named_modules():
            if getattr(module, "pre_quant_scale", None) is not None:
                raise PackedError(
                    f"This MODEL's weights are packed ({place} scales what comes in, as some NVFP4 files do). Use the same model in bfloat16, "
                    "float16 or float8."
                )
            own = dict(module.named_parameters(recurse=False))
            own |= {
                name: b
                for name, b in module.named_buffers(recurse=False)
                if name not in module._non_persistent_buffers_set
            }
            for name, weight in own.items():
                key = f"{prefix}{place}.{name}" if place else prefix + name
                if key in patcher.hook_backup:
                    weight = patcher.hook_backup[key][0]
                elif key in patcher.backup:
                    weight = patcher.backup[key].weight
                else:
                    weight = getattr(patcher, "backup_buffers", {}).get(key, weight)
                found[key] = [(weight, getattr(module, f"convert_{name}", _as_it_is)), *patcher.patches.get(key, [])]
    return found


def _computing(weight: Tensor) -> Tensor:
    """A quantised weight of the host's that does not say in what it is computed with (in a whole checkpoint), or in 8 bits: to be read in float32."""
    told = getattr(weight, "_layout_params", {})
    if "orig_dtype" not in told or getattr(told["orig_dtype"], "itemsize", 1) > 1:
        return weight
    return type(weight)(weight._qdata, weight._layout_type, {**told, "orig_dtype": torch.float32})


def _as_it_is(weight: Tensor, **_: Any) -> Tensor:
    return weight


def fingerprint(model: ModelPatcher, with_patches: bool = False) -> str:
    """Which base model it is: `purecc.fingerprint` of the copy without its LoRAs, and without a copy.

    `with_patches`: LoRAs loaded on the MODEL count, each with its values and strength.
    """
    with torch.inference_mode(False), torch.no_grad():
        weights = HostWeights(model, with_patches=False)
        base = _fingerprint(weights.__getitem__, len(model.model.diffusion_model.joint_blocks))
        if not (with_patches and model.patches):
            return base
        digest = hashlib.sha256(base.encode())
        update(digest, model.patches)
        return f"{digest.hexdigest()[:16]} (with LoRAs on it)"


def values_of(model: ModelPatcher) -> str:
    """16 hexadecimal digits from a few values of every weight as it is stored: merges and roundings of one model differ in them, and so does what is learnt."""
    digest = hashlib.sha256()
    with torch.inference_mode(False), torch.no_grad():
        add_values(digest, entries(model, model.model.diffusion_model, PREFIX))
    return digest.hexdigest()[:16]


def add_values(digest: "hashlib._Hash", found: dict[str, list[Any]]) -> None:
    """Adds a few values of every one of `entries`, without their patches."""
    for key, ((weight, _), *_) in sorted(found.items()):
        digest.update(f"{key} {tuple(weight.shape)}".encode() + bytes_of(some(weight)))


def some(weight: Tensor) -> Tensor:
    """A few values of a large weight, as they are stored."""
    flat = getattr(weight, "_qdata", weight).detach().as_subclass(Tensor).reshape(-1)
    return flat if flat.numel() < _LARGE else flat[:: flat.numel() // _VALUES | 1]  # odd: not always of one column


def update(digest: "hashlib._Hash", value: Any, of: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
    """Adds the host's weight patches: tensors, numbers and names, by key, in tuples and in adapters; `of` a tensor what is to be looked at.

    Of functions and other objects the names: an address would be another in each process.
    """
    if isinstance(value, Tensor):
        digest.update(bytes_of(of(value)))
    elif isinstance(value, dict):
        for key in sorted(value):
            digest.update(key.encode())
            update(digest, value[key], of)
    elif isinstance(value, (list, tuple)):
        for part in value:
            update(digest, part, of)
    elif hasattr(value, "weights"):  # an adapter: LoRA, LoHa, ...
        update(digest, (type(value).__name__, value.weights), of)
    elif isinstance(value, numbers.Number):  # NumPy's too
        digest.update(repr(value.item() if hasattr(value, "item") else value).encode())
    elif isinstance(value, (str, torch.dtype, type(None))):
        digest.update(repr(value).encode())
    else:
        digest.update((getattr(value, "__qualname__", None) or type(value).__qualname__).encode())
