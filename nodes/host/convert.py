"""The host's MODEL read: as diffusers' transformer, its latent scale, its sampling shift, its fingerprint.

Key names and layout come from the host's own map (`comfy.utils.mmdit_to_diffusers`), walked backwards.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_sampling
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import SD3Transformer2DModel
from torch import Tensor

from ...purecc.adaln_table import is_modulation
from ...purecc.fingerprint import fingerprint as _fingerprint
from ...purecc.frozen import Storage, linears, packed, store, stream
from ...purecc.positions import centre, set_table, side_for
from .marks import CONCEPTS

log = logging.getLogger(__name__)
PREFIX = "diffusion_model."
_HEAD = 64  # the host's width of an attention head: it takes depth = heads = width / 64
# parameters beside quantised weights
_SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", "scaled_fp8")
_HARMLESS_PATCHES = {"latent_format", "model_sampling", "manual_cast_dtype"}  # not part of the network
_POSITIONS = PREFIX + "pos_embed"
_ATTACHED = ("patches", "patches_replace", "wrappers")  # entries of transformer_options that change a forward


def require_sd3(model: ModelPatcher) -> None:
    """Raises ValueError where the MODEL is not of the Stable Diffusion 3 type, or of a shape that the host cannot map."""
    if not isinstance(model.model, comfy.model_base.SD3):
        raise ValueError(
            f"This MODEL is of the type {_kind(model)}; PureCC works on Stable Diffusion 3 types. "
            "Load an SD3 or SD3.5 checkpoint, or use the Pocket Model node."
        )
    network = model.model.diffusion_model
    blocks, width = len(network.joint_blocks), network.hidden_size
    if width != _HEAD * blocks:
        raise ValueError(
            f"This MODEL has {blocks} joint blocks of width {width}; ComfyUI's names for its weights need a width of "
            f"{_HEAD} times the blocks ({_HEAD * blocks}). Train on a checkpoint that keeps it, as SD3 and SD3.5 do."
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
        self.entries = _entries(model)
        blocks = len(model.model.diffusion_model.joint_blocks)
        names = comfy.utils.mmdit_to_diffusers({"depth": blocks}, output_prefix=PREFIX)
        # the map also offers what this network lacks, such as a second attention in every block
        self.places = {ours: place for ours, place in names.items() if self._key(place) in self.entries}

    @staticmethod
    def _key(place: str | tuple) -> str:
        return place if isinstance(place, str) else place[0]

    def __getitem__(self, name: str) -> Tensor:
        """One weight, float32, where the host keeps it."""
        return self._part(self.places[name], self._whole(self._key(self.places[name]), None))

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

    def _whole(self, key: str, device: torch.device | str | None) -> Tensor:
        (weight, convert), *patches = self.entries[key]
        weight = convert(weight, inplace=False)  # undoes fp8 scales and other quantisation
        if not weight.is_floating_point():
            raise PackedError(
                f"This MODEL's weights are packed ({key} is {str(weight.dtype).removeprefix('torch.')}, as in GGUF and NF4 files). "
                "Train on the same model in bfloat16, float16 or float8; the concept then works on the packed one too."
            )
        if key == _POSITIONS and self.side:
            weight = centre(weight, self.side)
        weight = weight.detach()
        if device is not None and torch.device(device).type == "cuda":
            weight = weight.to(device)  # as it is stored: PyTorch would widen it here first, and send twice the bytes
        weight = weight.to(device=device, dtype=torch.float32, copy=True)
        return comfy.lora.calculate_weight(patches, weight, key) if self.with_patches and patches else weight

    @staticmethod
    def _part(place: str | tuple, whole: Tensor) -> Tensor:
        _, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        value = whole if part is None else whole.narrow(*part)
        return value if change is None else change(value)  # swap_scale_shift is its own inverse


def _entries(model: ModelPatcher) -> dict[str, list[Any]]:
    """The network's weights by the host's keys, as `ModelPatcher.get_key_patches` gives them: [(original, how it is read), *patches].

    That goes through the state dict and fails where quantised layers put more into it than they have as attributes.
    """
    found = {}
    with model.use_ejected():
        for place, module in model.model.diffusion_model.named_modules():
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
                key = f"{PREFIX}{place}.{name}" if place else PREFIX + name
                if key in model.hook_backup:
                    weight = model.hook_backup[key][0]
                elif key in model.backup:
                    weight = model.backup[key].weight
                else:
                    weight = getattr(model, "backup_buffers", {}).get(key, weight)
                found[key] = [(weight, getattr(module, f"convert_{name}", _as_it_is)), *model.patches.get(key, [])]
    return found


def _as_it_is(weight: Tensor, **_: Any) -> Tensor:
    return weight


def to_diffusers(
    model: ModelPatcher,
    with_patches: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    largest: int | None = None,
    modulation_device: torch.device | str | None = None,
    storage: Storage = "whole",
    streamed: bool = False,
) -> SD3Transformer2DModel:
    """A copy of an SD3-type MODEL as diffusers' transformer, frozen, in eval mode, with weights that can be trained.

    `with_patches`: LoRAs loaded on the MODEL become part of the copy. `largest`: the longest side of the latents to come; the
    table of positions is cut to it, the configuration still tells its full size. `modulation_device`: where the adaLN layers
    are kept, if elsewhere. `storage`, `streamed`: of the blocks' Linears, see `purecc.frozen`; each weight is stored as it
    comes, so that the whole model is never on the device in more bytes. Raises ValueError with what a person at the canvas
    can change where the MODEL cannot be copied.
    """
    with torch.inference_mode(False), torch.no_grad():
        config = configuration(model)
        full = config["pos_embed_max_size"]
        side = side_for(full, -(-largest // config["patch_size"])) if largest else full
        weights = HostWeights(model, with_patches, side if side < full else None)
        strange = weights.strange()
        if strange:
            raise ValueError(
                f"This MODEL has {len(strange)} weights that diffusers' SD3 transformer has no place for, "
                f"such as {', '.join(strange[:3])}. Train on a plain SD3 or SD3.5 checkpoint."
            )
        _warn(model, weights)
        with torch.device("meta"):
            transformer = SD3Transformer2DModel(**config).to(dtype)
        own = storage != "whole" or streamed
        stored = {f"{name}.weight" for name, _ in linears(transformer)} if own else set()
        if own:
            store(transformer, storage)
        values = {}
        for name, value in weights.items(device):
            if name in stored:
                weight, scale = packed(value, storage, dtype)
                home = "cpu" if streamed else device
                values[name] = weight.to(home, copy=weight is value)
                if scale is not None:
                    values[name.removesuffix("weight") + "scale"] = scale.to(home)
                continue
            place = modulation_device if modulation_device and is_modulation(name) else value.device
            values[name] = value.to(place, dtype, copy=True)
        set_table(transformer.pos_embed, values["pos_embed.pos_embed"])
        transformer.load_state_dict(values, strict=True, assign=True)
        values.clear()  # what waits in main memory is pinned below, one by one in place of these
        if streamed:
            stream(transformer, device)
    return transformer.requires_grad_(False).eval()


def latent_scaling(model: ModelPatcher) -> tuple[float, float]:
    """(scale, shift) of the MODEL's latents: what the network sees is (latent - shift) * scale."""
    latent_format = model.get_model_object("latent_format")
    return float(latent_format.scale_factor), float(getattr(latent_format, "shift_factor", 0.0))


def sampling_shift(model: ModelPatcher) -> float:
    """The shift of the MODEL's flow-matching schedule. Raises ValueError for a MODEL of another type, or another kind of schedule."""
    require_sd3(model)
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        kind = type(sampling).__mro__[1].__name__  # the class itself is made by the host, its first base has the name
        raise ValueError(
            f"This MODEL samples with {kind}; an SD3 type samples with ModelSamplingDiscreteFlow. "
            "Remove the model sampling node that was put on it."
        )
    return float(sampling.shift)


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
        for key in sorted(model.patches):
            digest.update(key.encode())
            _update(digest, model.patches[key])
        count = loras(model)
        return f"{digest.hexdigest()[:16]} (with {count} LoRA{'s' * (count > 1)} on it)"


def loras(model: ModelPatcher) -> int:
    """How many LoRAs, or other changes of its weights, other nodes put on the MODEL.

    One LoRA is several patches of a weight that is q, k and v in one: a patch's fourth entry says of which part it is.
    """
    parts = (Counter(repr(patch[3:4]) for patch in patches) for patches in model.patches.values())
    return max((max(of_part.values()) for of_part in parts if of_part), default=0)


def remarks(model: ModelPatcher, dtype: torch.dtype) -> list[str]:
    """What the user may want to know of training on this MODEL in a dtype; sentences for the node."""
    found, weights = [], HostWeights(model, with_patches=False)
    if torch.float16 in weights.dtypes() and dtype != torch.float16:
        name = str(dtype).removeprefix("torch.")
        found.append(f"The model is float16; it trains as {name}, since small gradients vanish in float16.")
    if weights.is_quantised():
        found.append(
            "The model is float8 or quantised otherwise, a few percent away from the original; the concept fits the original less well."
        )
    if count := loras(model):
        found.append(
            f"{count} LoRA{'s' * (count > 1)} on the model count{'s' * (count == 1)} as part of the base: apply the concept to the same."
        )
    return found + _left_out(model)


def _left_out(model: ModelPatcher) -> list[str]:
    """What of the concepts on a MODEL a training on it leaves out. LoRAs in the weights take part."""
    found, carried = [], model.model_options["transformer_options"].get(CONCEPTS, {})
    for one in carried.values():
        concept = one.concept
        name = f'"{concept.trigger} {concept.class_word}"'
        if one.row_loras:
            found.append(
                f"{name} on this MODEL acts in some prompts or for a part of the sampling only, so it is no part of the base here. "
                "For its LoRA to count, set the gate of Apply Concept to off, start_percent to 0 and end_percent to 1."
            )
        elif one.embedding_strength and (concept.embeddings is not None or concept.token_embeddings is not None):
            found.append(f"The embeddings of {name} on this MODEL are no part of the base here.")
    return found


def _update(digest: "hashlib._Hash", value: Any) -> None:
    """Adds one of the host's weight patches: tensors, numbers and names, in tuples and in adapters."""
    if isinstance(value, Tensor):
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for part in value:
            _update(digest, part)
    elif hasattr(value, "weights"):  # an adapter: LoRA, LoHa, ...
        _update(digest, (type(value).__name__, value.weights))
    else:
        digest.update((getattr(value, "__qualname__", None) or repr(value)).encode())


def configuration(model: ModelPatcher) -> dict[str, Any]:
    """The configuration of the copy, read from the shapes of the MODEL's weights."""
    shapes = HostWeights(model, with_patches=False).shapes()
    if "pos_embed" not in shapes:
        raise ValueError("This MODEL has no table of positions (pos_embed). Train on an SD3 or SD3.5 checkpoint.")
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    side = round(shapes["pos_embed"][1] ** 0.5)  # in patches
    second = [key for key in shapes if key.endswith("x_block.attn2.qkv.weight")]
    return {
        "sample_size": side,  # only a pipeline's default size; the weights do not tell it
        "pos_embed_max_size": side,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": width // _HEAD,
        "num_attention_heads": width // _HEAD,
        "attention_head_dim": _HEAD,
        "caption_projection_dim": width,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "dual_attention_layers": tuple(sorted(int(key.split(".")[1]) for key in second)),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _warn(model: ModelPatcher, weights: HostWeights) -> None:
    """Says what the copy does not have, or has less exactly."""
    if weights.is_quantised():
        log.warning(
            "PureCC: this MODEL's weights are float8, or quantised otherwise, a few percent away from the original; a concept trained on it "
            "fits the original less well. Train on a file in bfloat16 or float16, with weight_dtype default, if you have one."
        )
    options = model.model_options["transformer_options"]
    attached = sorted(model.object_patches.keys() - _HARMLESS_PATCHES)
    attached += [name for name in _ATTACHED if options.get(name)]
    attached += getattr(model, "injections", {})  # such as LoRAs that are not patches
    attached += [f"{name} ({', '.join(map(str, by_key))})" for name, by_key in model.wrappers.items() if by_key]
    if attached:
        log.warning(
            "PureCC: other nodes attached %s to this MODEL; only weights take part in training, that does not.",
            ", ".join(dict.fromkeys(attached)),
        )
