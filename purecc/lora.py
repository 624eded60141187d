"""What LoRAs add to a Linear: out + B A x * scale, for each that acts.

peft holds the matrices; its own forward stays switched off. Under autocast peft's keeps a copy of their input for each of q, k and v; it applies
the scale to whole outputs, where B's inputs of the rank's width would do; and it switches adapters Linear by Linear.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

Scale = float | Tensor  # a number, or [batch, rows or 1, 1]


@dataclass(frozen=True, eq=False)
class ActingLora:
    """A model whose LoRA acts, and what multiplies B A in either stream, alpha / rank in it."""

    model: str
    in_pictures: Scale
    in_text: Scale


def changed(out: Tensor, x: Tensor, layer: BaseTunerLayer, model: str, scale: Scale) -> Tensor:
    """out + B A x * scale, in the dtype of `out`; `out` where the model has no LoRA here. Both [batch, rows, channels], adaLN's without rows."""
    if model not in layer.lora_A or (isinstance(scale, float) and scale == 0):
        return out
    a, b = (of[model].weight.to(out.dtype) for of in (layer.lora_A, layer.lora_B))
    inner = F.linear(x.to(out.dtype), a)
    if isinstance(scale, Tensor):
        inner = (inner * scale.flatten(inner.ndim - 1)).to(out.dtype)  # adaLN's inputs have no rows
    elif scale != 1:
        inner = inner * scale
    return out + F.linear(inner, b)
