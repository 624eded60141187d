"""A concept's LoRA on the host's MODEL: as native weight patches, or for chosen rows of the batch only."""

from dataclasses import dataclass

import comfy.lora
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...purecc.concept import Concept, LoraWeights
from .convert import PREFIX, HostWeights


class Moved:
    """A tensor and its last copy on another device and in another dtype."""

    def __init__(self, tensor: Tensor):
        self._tensor = self._copy = tensor

    def like(self, other: Tensor) -> Tensor:
        if (self._copy.device, self._copy.dtype) != (other.device, other.dtype):
            self._copy = self._tensor.to(other)
        return self._copy


@dataclass(frozen=True)
class RowLora:
    """One LoRA module that acts in a forward hook of the host's Linear, on some rows of the batch."""

    module: str  # the host's Linear, below its diffusion_model
    start: int  # its outputs [start, start + length): q, k and v are parts of one Linear
    length: int
    a: Moved  # [rank, in]
    b: Moved  # [length, rank], times alpha / rank and strength

    def hook(self, rows: Tensor, batch: int):
        """A forward hook for `rows` [n], indices into the batch."""

        def add(linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            if x.shape[0] != batch:
                raise RuntimeError(
                    f"Another node changed the batch inside the model ({batch} to {x.shape[0]}), so PureCC cannot tell "
                    'which pictures have the trigger. Set the gate of Apply Concept to "off".'
                )
            change = x[rows] @ self.a.like(x).T @ self.b.like(x).T
            output[rows, ..., self.start : self.start + self.length] += change.to(output.dtype)

        return add


def add_lora(model: ModelPatcher, concept: Concept, strength: float) -> None:
    """Adds the LoRA to a MODEL (a clone) as weight patches. Raises ValueError where any module does not fit."""
    places = _places(model, concept)
    names = {f"transformer.{module}": place for module, place in places.items()}
    patches = comfy.lora.load_lora(concept.tensors(), names, log_missing=False)
    added = model.add_patches(patches, strength)
    if not len(added) == len(patches) == len(places):
        raise ValueError(
            f"ComfyUI took {len(added)} of the concept's {len(places)} LoRA modules; it may be of a newer kind. Update ComfyUI."
        )


def row_loras(model: ModelPatcher, concept: Concept, strength: float) -> tuple[RowLora, ...]:
    """The LoRA for `RowLora.hook`. Raises ValueError where any module does not fit."""
    made = []
    for module, place in _places(model, concept).items():
        key, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        a, b = concept.lora.matrices[module]
        if change is not None:
            raise ValueError(f'{module} cannot be gated: its weight lies otherwise in ComfyUI. Set the gate to "off".')
        start = part[1] if part else 0
        name = key[len(PREFIX) :].removesuffix(".weight")
        made.append(RowLora(name, start, len(b), Moved(a.float()), Moved(b.float() * concept.lora.scale * strength)))
    return tuple(made)


def _places(model: ModelPatcher, concept: Concept) -> dict[str, str | tuple]:
    """Each LoRA module's place in the host's weights. Raises ValueError naming the first three that do not fit."""
    lora: LoraWeights = concept.lora
    places, shapes = HostWeights(model, with_patches=False).places, model.model.state_dict()
    found, wrong = {}, []
    for module, (a, b) in lora.matrices.items():
        place = places.get(f"{module}.weight")
        if place is None:
            wrong.append(f"{module} (not there)")
            continue
        key, part = (place, None) if isinstance(place, str) else place[:2]
        expected = (part[2] if part else shapes[key].shape[0], *shapes[key].shape[1:])
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
