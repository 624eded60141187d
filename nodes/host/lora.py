"""A concept's LoRA on the host's MODEL: as native weight patches, or in forward hooks where a prompt asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import comfy.lora
import torch
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

    runs: tuple[slice, ...]  # of samples that follow one another; with the gate "rows" none
    rows: Tensor | None  # with the gate "rows": indices into [batch * rows], on the device
    shape: tuple[int, ...]  # that the indexed axes must have

    @staticmethod
    def of(here: Tensor, gate: Gate, device: torch.device) -> Where:
        """`here` [batch, rows] bool on the CPU, the trigger's text rows: these with the gate "rows", else the samples that have some."""
        if gate == "rows":
            return Where((), here.flatten().nonzero().flatten().to(device), tuple(here.shape))
        flags, at, runs = here.any(-1).tolist(), 0, []
        for chosen, run in groupby(flags):
            start, at = at, at + len(list(run))
            runs += [slice(start, at)] if chosen else []
        return Where(tuple(runs), None, (len(flags),))

    def flat(self, x: Tensor) -> list[slice | Tensor]:
        """The same in x [batch, ..., width] with all but its last axis flattened. Raises RuntimeError where its axes are others."""
        got = tuple(x.shape[: len(self.shape)])
        if got != self.shape:
            raise RuntimeError(
                f"Another node changed the batch or the text inside the model ({self.shape} to {got}), so PureCC cannot "
                'tell where the trigger is. Set the gate of Apply Concept to "off".'
            )
        if self.rows is not None:
            return [self.rows]
        each = x[0, ..., 0].numel()
        return [slice(run.start * each, run.stop * each) for run in self.runs]


@dataclass(frozen=True)
class RowLora:
    """A LoRA that acts in a forward hook of one of the host's Linears, in some pictures or text rows.

    q, k and v are parts of one Linear. Few kernels: on a fast GPU it is their number that takes the time.
    """

    module: str  # the host's Linear, below its diffusion_model
    a: Moved  # [ranks, in]: those of the parts, one below the other
    parts: tuple[tuple[int, Moved], ...]  # where outputs begin; B [outputs, rank] times alpha / rank and strength

    def hook(self, where: Where):
        """A forward hook that adds the LoRA's change there."""

        def add(linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x, flat = args[0], output.flatten(0, -2)  # a copy where the output does not lie together
            for rows in where.flat(x):
                inner = x.flatten(0, -2)[rows].to(output.dtype) @ self.a.like(output).T
                rank = 0
                for start, moved in self.parts:
                    b = moved.like(output)
                    part, read = flat[:, start : start + len(b)], inner[:, rank : rank + b.shape[1]]
                    rank += b.shape[1]
                    if isinstance(rows, slice):
                        part[rows].addmm_(read, b.T)
                    else:
                        part.index_add_(0, rows, read @ b.T)
            return flat.view(output.shape)

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
    found: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for module, place in lora_places(model, concept).items():
        if gate == "rows" and not in_text_stream(module):
            continue
        key, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        if change is not None:
            raise ValueError(f'{module} cannot be gated: its weight lies otherwise in ComfyUI. Set the gate to "off".')
        name = key[len(PREFIX) :].removesuffix(".weight")
        found.setdefault(name, []).append((part[1] if part else 0, *concept.lora.matrices[module]))
    if not found:
        raise ValueError(
            f'The LoRA of "{concept.trigger} {concept.class_word}" is in the picture stream only, so with the gate "rows" it '
            'would do nothing. Set the gate to "picture".'
        )
    scale = concept.lora.scale * strength
    return tuple(
        RowLora(
            name,
            Moved(torch.cat([a.float() for _, a, _ in parts])),
            tuple((start, Moved(b.float() * scale)) for start, _, b in parts),
        )
        for name, parts in found.items()
    )


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
