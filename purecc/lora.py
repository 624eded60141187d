"""What LoRAs add to Linears: x W^T + b + scale * x A^T B^T, for each that acts.

peft holds the matrices; its own forward stays switched off. It keeps their input once for each of q, k and v; it applies the scale to whole
outputs, where B's inputs of the rank's width would do; it casts both matrices in each Linear, in each forward; and it switches adapters
Linear by Linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frozen import Form, stored

Scale = float | Tensor  # a number, or [batch, rows or 1, 1]


@dataclass(frozen=True, eq=False)
class Factors:
    """A LoRA's matrices of one Linear, or of some that read the same."""

    modules: tuple[str, ...]  # the Linears' names
    a: Tensor  # [Linears * rank, in], one below the other
    b: tuple[Tensor, ...]  # of each Linear, [out, rank]

    def of(self, module: str) -> "Factors":
        """Of one of them alone."""
        if len(self.modules) == 1:
            return self
        i = self.modules.index(module)
        return Factors((module,), self.a.chunk(len(self.b))[i], (self.b[i],))


@dataclass(frozen=True, eq=False)
class ActingLora:
    """A LoRA that acts in one forward, and what multiplies B A in either stream, alpha / rank in it."""

    factors: Mapping[str, Factors]  # by module; in the dtype of the forward
    in_pictures: Scale
    in_text: Scale
    samples: slice  # the only ones that it changes; with a gradient all

    def scale(self, in_text: bool) -> Scale:
        return self.in_text if in_text else self.in_pictures

    def acts(self, module: str, in_text: bool) -> bool:
        scale = self.scale(in_text)
        return module in self.factors and not (isinstance(scale, float) and scale == 0)

    def is_apart(self, modules: Sequence[str]) -> bool:
        """Whether it is on some of these Linears and not on all."""
        return any(module in self.factors and len(self.factors[module].b) != len(modules) for module in modules)


def changed(out: Tensor, x: Tensor, module: str, lora: ActingLora, in_text: bool) -> Tensor:
    """`out`, [batch, rows, channels], adaLN's without rows, with what the LoRA adds to one Linear that read `x`, in the dtype of `out`.

    Without a gradient it is added in place, to what nobody else has read yet, and rounded once: in bfloat16 not bit for bit what it is with one.
    """
    if not lora.acts(module, in_text):
        return out
    factors, scale = lora.factors[module].of(module), lora.scale(in_text)
    if torch.is_grad_enabled():
        return out + F.linear(_scaled(F.linear(x.to(out.dtype), factors.a), scale), factors.b[0])
    _add([out], x.to(out.dtype), factors.a, factors.b, scale, lora.samples)
    return out


def read_together(
    x: Tensor, linears: Sequence[nn.Linear], module: str, loras: Sequence[ActingLora], in_text: bool
) -> tuple[Tensor, ...]:
    """What each of some frozen Linears gives of `x`, [batch, rows, channels], and LoRAs add: nearly as few kernels as there are products.

    `module`: the name of one of the Linears; a LoRA that acts there is on all of them.
    """
    forms, weights, scales = zip(*map(stored, linears), strict=True)
    base = _Base(forms, [linear.bias for linear in linears])
    acting = [(lora.factors[module], lora.scale(in_text), lora.samples) for lora in loras if lora.acts(module, in_text)]
    if torch.is_grad_enabled():
        matrices = [matrix for own, _, _ in acting for matrix in (own.a, *own.b)]
        return _Together.apply(x, base, [scale for _, scale, _ in acting], *weights, *scales, *matrices)
    x = x.contiguous()
    outs = base.products(x, weights, scales)
    for factors, scale, samples in acting:
        _add(outs, x, factors.a, factors.b, scale, samples)
    return tuple(outs)


@dataclass(frozen=True, eq=False)
class _Base:
    """Frozen Linears that read the same, but for the parts of their weights."""

    forms: Sequence[Form]
    biases: Sequence[Tensor | None]

    def products(self, x: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor | None]) -> list[Tensor]:
        own = zip(self.forms, weights, scales, self.biases, strict=True)
        return [F.linear(x, form.widened(weight, scale), bias) for form, weight, scale, bias in own]

    def gradient(self, of_outs: Sequence[Tensor], weights: Sequence[Tensor], scales: Sequence[Tensor | None]) -> Tensor:
        """Of x, [batch * rows, channels]."""
        found = None
        for of_out, form, weight, scale in zip(of_outs, self.forms, weights, scales, strict=True):
            whole = form.widened(weight, scale)
            found = of_out @ whole if found is None else found.addmm_(of_out, whole)
        return found


class _Together(torch.autograd.Function):
    """`read_together` in a graph, once: of x and of each LoRA's A and B. What is large goes through PyTorch's hands: checkpointing drops it."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, base: _Base, lora_scales: Sequence[Scale], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        count = len(base.forms)
        weights, scales, matrices = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        whole = x.contiguous()  # of x, an attention's output, another holds the memory already
        outs = base.products(whole, weights, scales)
        loras = zip(_of_each(matrices, count), lora_scales, strict=True)
        read = [_add(outs, whole, *own, scale) for own, scale in loras]
        context.save_for_backward(x if read else None, *tensors, *read)
        context.base, context.lora_scales, context.shape = base, lora_scales, x.shape
        return tuple(outs)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        base, lora_scales, (x, *saved) = context.base, context.lora_scales, context.saved_tensors
        count, last = len(base.forms), len(saved) - len(lora_scales)
        weights, scales, matrices, read = saved[:count], saved[count : 2 * count], saved[2 * count : last], saved[last:]
        flat = [_flat(gradient) for gradient in gradients]
        of_x = base.gradient(flat, weights, scales) if context.needs_input_grad[0] else None
        of_matrices: list[Tensor] = []
        for (a, of_outs), scale, inner in zip(_of_each(matrices, count), lora_scales, read, strict=True):
            of_inner = _joined([gradient @ b for gradient, b in zip(flat, of_outs, strict=True)], -1)
            of_inner = _flat(_scaled(of_inner.view(*context.shape[:-1], -1), scale))
            if of_x is not None:
                of_x.addmm_(of_inner, a)
            of_matrices.append(of_inner.T @ _flat(x))
            of_matrices += [gradient.T @ part for gradient, part in zip(flat, inner.chunk(count, -1), strict=True)]
        of_x = None if of_x is None else of_x.view(context.shape)
        return of_x, None, None, *[None] * 2 * count, *of_matrices


def _of_each(matrices: Sequence[Tensor], linears: int) -> list[tuple[Tensor, Sequence[Tensor]]]:
    """A and B's of each LoRA, which came one after the other."""
    size = 1 + linears
    return [(matrices[i], matrices[i + 1 : i + size]) for i in range(0, len(matrices), size)]


def _add(
    outs: Sequence[Tensor], x: Tensor, a: Tensor, b: Sequence[Tensor], scale: Scale, samples: slice = slice(None)
) -> Tensor:
    """scale * x A^T B^T to each of `outs`, in place, rounded once; what B read, [samples * rows, Linears * rank]."""
    if samples != slice(None):
        outs, x = [out[samples] for out in outs], x[samples]
    inner = _flat(_scaled(F.linear(x, a), scale))
    for out, of_out, part in zip(outs, b, inner.chunk(len(outs), -1), strict=True):
        out.view(-1, out.shape[-1]).addmm_(part, of_out.T)
    return inner


def _scaled(inner: Tensor, scale: Scale) -> Tensor:
    """[batch, rows, rank's width], where it costs least; adaLN's inputs have no rows."""
    if isinstance(scale, Tensor):
        return (inner * scale.flatten(inner.ndim - 1)).to(inner.dtype)
    return inner if scale == 1 else inner * scale


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def narrowed(
    matrices: Mapping[str, tuple[nn.Parameter, nn.Parameter]], groups: Sequence[Sequence[str]], dtype: torch.dtype
) -> dict[str, Factors]:
    """All matrices of a LoRA in a forward's dtype: copied together, and their gradients come back together.

    `groups`: of modules that are read together, one or more; all are in `matrices`, A and B of each.
    """
    pairs = [[matrices[module] for module in group] for group in groups]
    if all(matrix.dtype == dtype for own in pairs for pair in own for matrix in pair):
        made = [(_joined([a for a, _ in own], 0), tuple(b for _, b in own)) for own in pairs]
    else:
        flat = [matrix for own in pairs for matrix in (*(a for a, _ in own), *(b for _, b in own))]
        copies = iter(_Narrowed.apply(dtype, [len(own) for own in pairs], *flat))
        made = [(next(copies), tuple(islice(copies, len(own)))) for own in pairs]
    factors = [Factors(tuple(group), a, b) for group, (a, b) in zip(groups, made, strict=True)]
    return {module: own for own in factors for module in own.modules}


class _Narrowed(torch.autograd.Function):
    """Copies in another dtype. As one cast for each, in a few kernels; without a gradient for those that nothing read."""

    @staticmethod
    def forward(context: Any, dtype: torch.dtype, counts: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        context.set_materialize_grads(False)
        context.counts, made, copies, own = counts, [], [], iter(tensors)
        for count in counts:
            a, b = list(islice(own, count)), list(islice(own, count))
            below = a[0].new_empty(count * len(a[0]), a[0].shape[1], dtype=dtype)
            made += [below, *(torch.empty_like(one, dtype=dtype) for one in b)]
            copies += [*below.chunk(count), *made[-count:]]
        torch._foreach_copy_(copies, list(tensors))
        return tuple(made)

    @staticmethod
    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        own, narrow = iter(gradients), []
        for count in context.counts:
            below = next(own)
            narrow += [*([None] * count if below is None else below.chunk(count)), *islice(own, count)]
        read = [one for one in narrow if one is not None]
        wide = [torch.empty_like(one, dtype=torch.float32) for one in read]
        torch._foreach_copy_(wide, read)
        found = iter(wide)
        return None, None, *(None if one is None else next(found) for one in narrow)
