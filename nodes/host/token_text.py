"""The host's CLIP-L and CLIP-G as modules that a gradient passes through, for learning input embeddings."""

import copy

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...purecc.token_embeddings import Vectors, start_of
from .session import as_the_host, free_for_training
from .text import HostTextEncoder, MarkedToken, with_vectors

_KEYS = {"clip_l": "l", "clip_g": "g"}  # encoder -> key in the host's tokens
Chunks = list[list[tuple]]


class HostTokenEncoder:
    """Copies of the host's two CLIPs as they are (with LoRAs on CLIP), on the training device; `TokenEncoder` of the core.

    All of the host's own models leave the device.
    """

    def __init__(self, encoder: HostTextEncoder, trigger: str, tokens: int, device: torch.device):
        """Raises ValueError where the CLIP has not both encoders."""
        missing = [name for name in _KEYS if getattr(encoder.clip.cond_stage_model, name, None) is None]
        if missing:
            raise ValueError(
                f"token_embeddings learns in CLIP-L and CLIP-G; this CLIP has no {' and no '.join(missing)}. Load both, or turn "
                "token_embeddings off in Settings."
            )
        self.clip, self.concept, self.trigger, self.tokens = encoder.clip, encoder.concept, trigger, tokens
        patcher = _with_lora_in_its_weights(encoder.clip)
        with as_the_host():
            comfy.model_management.load_models_gpu([patcher], force_patch_weights=True)
        whole = patcher.model
        whole.reset_clip_options()  # all CLIPs of one loader share it: the last text that was encoded left its own layer
        if self.clip.layer_idx is not None:
            whole.set_clip_options({"layer": self.clip.layer_idx})
        with torch.inference_mode(False), torch.no_grad():
            copies = {name: _copy_of(getattr(whole, name)) for name in _KEYS}
            free_for_training()  # T5 too, which is not copied
            self.parts = {name: part.to(device) for name, part in copies.items()}
        self.device, self._saved = device, None  # what readings keep for backward passes, while that is counted

    @property
    def size(self) -> int:
        """Bytes of the copies' weights on the device."""
        return sum(weight.nbytes for part in self.parts.values() for weight in part.parameters())

    def kept_by(self, text: str) -> int:
        """Bytes that reading a text keeps for its backward pass beside the weights: counted in a reading."""
        weights = {weight.untyped_storage().data_ptr() for p in self.parts.values() for weight in p.parameters()}
        with torch.inference_mode(False), torch.enable_grad():
            vectors, self._saved = {name: v.requires_grad_() for name, v in self.initial().items()}, []
            self.read(text, vectors)
            saved, self._saved = {tensor.untyped_storage().data_ptr(): tensor for tensor in self._saved}, None
        return sum(t.untyped_storage().nbytes() for where, t in saved.items() if where not in weights)

    def initial(self) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            made = self.clip.tokenize(self.trigger)
            return {name: self._start(part, made[_KEYS[name]]) for name, part in self.parts.items()}

    def _start(self, part: torch.nn.Module, chunks: Chunks) -> Tensor:
        """[count, width]: what the class word's tokens are."""
        ids = [token[0] for chunk in chunks for token in chunk]
        table = part.transformer.get_input_embeddings().weight
        marks = [token.index if self._is_ours(token) else None for token in ids]
        return start_of(table[[int(token) for token in ids]], marks, self.tokens).cpu().clone()

    def read(self, text: str, vectors: Vectors, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        made, found = self.clip.tokenize(text), []
        for name, part in self.parts.items():
            key, own = _KEYS[name], vectors[name]
            table = part.transformer.get_input_embeddings().weight

            def read(token: object, own: Tensor = own, table: Tensor = table) -> object:
                if not self._is_ours(token):
                    return token
                return torch.lerp(table[int(token)].to(own), own[token.index % len(own)], strength)  # exact at 1

            chunks = [[(read(one[0]), *one[1:]) for one in chunk] for chunk in made[key]]
            chunks = with_vectors({key: chunks}, self.clip.cond_stage_model)[key]  # of other concepts
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                found.append(part.encode_token_weights(chunks)[:2])
        count = min(rows.shape[1] for rows, _ in found)
        rows = torch.cat([rows[:, :count].to(self.device) for rows, _ in found], -1)[0]
        return rows, torch.cat([pooled.to(self.device) for _, pooled in found], -1)[0]

    def _keep(self, tensor: Tensor) -> Tensor:
        """What the backward pass needs of an activation: a copy, as the host's CLIP adds to its stream in place."""
        saved = tensor if tensor.grad_fn is None else tensor.clone()
        if self._saved is not None:
            self._saved.append(saved)
        return saved

    def _is_ours(self, token: object) -> bool:
        """Not one of another concept that the CLIP knows."""
        return isinstance(token, MarkedToken) and token.concept == self.concept


def t5_words(clip: comfy.sd.CLIP, words: str) -> Tensor | None:
    """What T5 reads at its input for some words, [pieces, width] float32; None where the CLIP has no T5."""
    part = getattr(clip.cond_stage_model, "t5xxl", None)
    chunks = clip.tokenize(words).get("t5xxl") if part is not None else None
    if not chunks:
        return None
    special = set(part.special_tokens.values())
    ids = [int(token[0]) for chunk in chunks for token in chunk if int(token[0]) not in special]
    with torch.inference_mode(False), torch.no_grad():
        return part.transformer.get_input_embeddings().weight[ids].float().cpu().clone()


def _with_lora_in_its_weights(clip: comfy.sd.CLIP) -> ModelPatcher:
    """The CLIP's patcher, or one that loads the CLIP anew where the host adds LoRAs as it computes ("dynamic VRAM")."""
    if not getattr(clip.patcher, "is_dynamic", bool)():
        return clip.patcher
    if clip.patcher.injections:
        raise ValueError(
            "token_embeddings learns in a copy of the text encoders, which cannot have what other nodes injected into this CLIP, such as LoRAs "
            "in bypass mode. Load those LoRAs otherwise, or turn token_embeddings off in Settings."
        )
    if clip.patcher.cached_patcher_init is None:
        raise ValueError(
            "token_embeddings learns in a copy of the text encoders, and this CLIP's loader cannot make one. Load the text encoders by "
            "one of ComfyUI's own nodes, or turn token_embeddings off in Settings."
        )
    return clip.patcher.clone(disable_dynamic=True)


def _copy_of(part: torch.nn.Module) -> torch.nn.Module:
    """A frozen copy in main memory, in float32: from fewer bytes each product would widen, and keep, a copy of its own."""
    weights = list(part.parameters())
    widens = all(weight.dtype in (torch.float16, torch.bfloat16, torch.float32) for weight in weights)
    copies = [w.detach().to("cpu", torch.float32 if widens else w.dtype, copy=True) for w in weights]
    own = {id(w): torch.nn.Parameter(one, requires_grad=False) for w, one in zip(weights, copies, strict=True)}
    return copy.deepcopy(part, own)  # which finds its weights copied already
