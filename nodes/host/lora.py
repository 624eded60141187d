"""A concept's LoRA on the host's MODEL: as native weight patches, or in forward hooks where a prompt asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.lora
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...purecc.concept import Concept, Gate, LoraWeights
from ...purecc.targets import in_text_stream
from .weights import PREFIX, HostWeights


class Moved:
    """A tensor and its last copy on another device and in another dtype."""

    def __init__(self, tensor: Tensor):
        self._tensor = self._copy = tensor

    def like(self, other: Tensor) -> Tensor:
        copy = self._copy
        if (copy.device, copy.dtype) != (other.device, other.dtype):
            copy = self._copy = self._tensor.to(other)  # another thread, with another GPU, may set it too
        return copy


@dataclass(frozen=True)
class Where:
    """Places in what a Linear reads, [batch, rows, width]."""

    indices: tuple[Tensor, ...]  # (samples [n],) or (samples [n], text rows [n])
    shape: tuple[int, ...]  # that the indexed axes must have

    @staticmethod
    def of(here: Tensor, gate: Gate) -> Where:
        """`here` [batch, rows] bool, the trigger's text rows: these with the gate "rows", else the samples that have some."""
        if gate == "rows":
            return Where(here.nonzero(as_tuple=True), tuple(here.shape))
        return Where((here.any(-1).nonzero().flatten(),), (len(here),))


@dataclass(frozen=True)
class RowLora:
    """One LoRA module that acts in a forward hook of the host's Linear, in some pictures or text rows."""

    module: str  # the host's Linear, below its diffusion_model
    start: int  # its outputs [start, start + length): q, k and v are parts of one Linear
    length: int
    a: Moved  # [rank, in]
    b: Moved  # [length, rank], times alpha / rank and strength

    def hook(self, where: Where):
        """A forward hook that adds the LoRA's change there."""

        def add(linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            got = tuple(x.shape[: len(where.shape)])
            if got != where.shape:
                raise RuntimeError(
                    f"Another node changed the batch or the text inside the model ({where.shape} to {got}), so PureCC cannot "
                    'tell where the trigger is. Set the gate of Apply Concept to "off".'
                )
            change = x[where.indices] @ self.a.like(x).T @ self.b.like(x).T
            output[(*where.indices, ..., slice(self.start, self.start + self.length))] += change.to(output.dtype)

        return add


def add_lora(model: ModelPatcher, concept: Concept, strength: float) -> None:
    """Adds the LoRA to a MODEL (a clone) as weight patches. Raises ValueError where any module does not fit."""
    places = lora_places(model, concept)
    names = {f"transformer.{module}": place for module, place in places.items()}
    patches = comfy.lora.load_lora(concept.tensors(), names, log_missing=False)
    added = model.add_patches(patches, strength)
    if not len(added) == len(patches) == len(places):
        raise ValueError(
            f"ComfyUI took {len(added)} of the concept's {len(places)} LoRA modules; it may be of a newer kind. Update ComfyUI."
        )


def row_loras(model: ModelPatcher, concept: Concept, strength: float, gate: Gate) -> tuple[RowLora, ...]:
    """The LoRA for `RowLora.hook`; with the gate "rows" that of the text stream alone.

    Raises ValueError where any module does not fit, or none would act.
    """
    made = []
    for module, place in lora_places(model, concept).items():
        if gate == "rows" and not in_text_stream(module):
            continue
        key, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        a, b = concept.lora.matrices[module]
        if change is not None:
            raise ValueError(f'{module} cannot be gated: its weight lies otherwise in ComfyUI. Set the gate to "off".')
        start = part[1] if part else 0
        name = key[len(PREFIX) :].removesuffix(".weight")
        made.append(RowLora(name, start, len(b), Moved(a.float()), Moved(b.float() * concept.lora.scale * strength)))
    if not made:
        raise ValueError(
            f'The LoRA of "{concept.trigger} {concept.class_word}" is in the picture stream only, so with the gate "rows" it '
            'would do nothing. Set the gate to "picture".'
        )
    return tuple(made)


def lora_places(model: ModelPatcher, concept: Concept) -> dict[str, str | tuple]:
    """Each LoRA module's place in the host's weights. Raises ValueError naming the first three that do not fit."""
    lora: LoraWeights = concept.lora
    places = HostWeights(model, with_patches=False).places
    found, wrong = {}, []
    for module, (a, b) in lora.matrices.items():
        place = places.get(f"{module}.weight")
        key, part = (place, None) if isinstance(place, str | None) else place[:2]
        linear = None if key is None else model.model.get_submodule(key.removesuffix(".weight"))
        if not hasattr(linear, "out_features"):  # quantised ones are Linears of the host's own
            wrong.append(f"{module} (not there)")
            continue
        # not the weight's own shape: it may be packed
        expected = (part[2] if part else linear.out_features, linear.in_features)
        got = (b.shape[0], a.shape[1])
        if expected != got:
            wrong.append(f"{module} ({got[0]} x {got[1]} for {' x '.join(map(str, expected))})")
        found[module] = place
    if wrong:
        raise ValueError(
            f'{len(wrong)} of the {len(lora.matrices)} LoRA modules of "{concept.trigger} {concept.class_word}" fit no '
            f"weight of this MODEL: {', '.join(wrong[:3])}. Load the model that the concept was trained on."
        )
    return found
