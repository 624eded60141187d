"""What LoRAs add to a Linear: out + B A x * scale, for each that acts.

peft holds the matrices; its own forward stays switched off. Under autocast peft's keeps a copy of their input for each of q, k and v; it applies
the scale to whole outputs, where B's inputs of the rank's width would do; it casts both matrices in each Linear, in each forward; and it
switches adapters Linear by Linear.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scale = float | Tensor  # a number, or [batch, rows or 1, 1]
Matrices = Mapping[str, tuple[Tensor, Tensor]]  # module -> A, B


@dataclass(frozen=True, eq=False)
class ActingLora:
    """A LoRA that acts in one forward, and what multiplies B A in either stream, alpha / rank in it."""

    matrices: Matrices  # in the dtype of the forward
    in_pictures: Scale
    in_text: Scale
    samples: slice  # the only ones that it changes; with a gradient all


def changed(out: Tensor, x: Tensor, module: str, lora: ActingLora, scale: Scale) -> Tensor:
    """out + B A x * scale, in the dtype of `out`; `out` where there is no LoRA here. Both [batch, rows, channels], adaLN's without rows.

    Without a gradient it is added in place, to what nobody else has read yet, and rounded once: in bfloat16 not bit for bit what it is with one.
    """
    if module not in lora.matrices or (isinstance(scale, float) and scale == 0):
        return out
    a, b = lora.matrices[module]
    part, read = (out, x) if lora.samples == slice(None) else (out[lora.samples], x[lora.samples])
    inner = F.linear(read.to(out.dtype), a)
    if isinstance(scale, Tensor):
        inner = (inner * scale.flatten(inner.ndim - 1)).to(out.dtype)  # adaLN's inputs have no rows
    elif scale != 1 and torch.is_grad_enabled():
        inner = inner * scale
    if torch.is_grad_enabled():
        return out + F.linear(inner, b)
    alpha = scale if isinstance(scale, float) else 1.0
    part.view(-1, part.shape[-1]).addmm_(inner.flatten(0, -2), b.T, alpha=alpha)
    return out


def narrowed(matrices: Mapping[str, tuple[nn.Parameter, nn.Parameter]], dtype: torch.dtype) -> Matrices:
    """All matrices of a LoRA in a forward's dtype: copied together, and their gradients come back together."""
    flat = [matrix for pair in matrices.values() for matrix in pair]
    if all(matrix.dtype == dtype for matrix in flat):
        return matrices
    copies: Iterable[Tensor] = iter(_Narrowed.apply(dtype, *flat))
    return dict(zip(matrices, zip(copies, copies, strict=True), strict=True))


class _Narrowed(torch.autograd.Function):
    """Copies in another dtype. As one cast for each, in a few kernels; without a gradient for those that nothing read."""

    @staticmethod
    def forward(context: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        context.set_materialize_grads(False)
        return _copied(tensors, dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(_copied([one for one in gradients if one is not None], torch.float32))
        return None, *(None if one is None else next(wide) for one in gradients)


def _copied(tensors: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(one, dtype=dtype) for one in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
