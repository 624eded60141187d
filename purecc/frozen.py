"""The frozen base in fewer bytes: its Linears stored in float8 or NF4 and widened for each product, or kept in main memory.

    "whole"    in the network's dtype, as loaded
    "float8"   e4m3 with a scale for each output row, a power of two, so that widening to bfloat16 is exact: 1 byte a weight
    "nf4"      4 bits with the greatest of each 64 values (QLoRA, arXiv 2305.14314, section 3): 0.56 bytes a weight

The widened weights live for one product, in the forward and again in the backward pass; only the stored bytes are kept
between. LoRAs go on top as on any Linear. adaLN's layers are left alone: `adaln_table` takes them off the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .adaln_table import is_modulation

Storage = Literal["whole", "float8", "nf4"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

_GREATEST = 448.0  # of float8 e4m3
_GROUP = 64  # values of NF4 that share a scale
# QLoRA's appendix E: quantiles of a normal distribution, with an exact 0
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
Parts = tuple[Tensor, Tensor | None]  # what is stored of a weight, and its scales


@torch.no_grad()
def packed(weight: Tensor, storage: Storage, dtype: torch.dtype) -> Parts:
    """A weight [out, in] as it is stored; `dtype`: of "whole". Raises ValueError where NF4's groups do not fit."""
    if storage == "whole":
        return weight.to(dtype), None
    if storage == "float8":
        greatest = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * _GREATEST)
        scale = torch.exp2(torch.ceil(torch.log2(greatest / _GREATEST)))  # [out, 1]
        return (weight.float() / scale).clamp(-_GREATEST, _GREATEST).to(torch.float8_e4m3fn), scale
    if weight.numel() % _GROUP:
        raise ValueError(f"A weight of {tuple(weight.shape)} has no whole groups of {_GROUP} values; NF4 needs them.")
    groups = weight.float().reshape(-1, _GROUP)
    scale = groups.abs().amax(dim=1, keepdim=True)  # [groups, 1]
    code = torch.tensor(NF4, device=weight.device)
    numbers = torch.bucketize(groups / scale.clamp(min=1e-30), (code[1:] + code[:-1]) / 2, out_int32=True)
    pairs = numbers.view(-1, 2).to(torch.uint8)
    return pairs[:, 0] * 16 + pairs[:, 1], scale


@cache
def _two_values(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a byte of NF4 stands for, [256, 2]; made once, for a copy to a GPU waits for it."""
    code = torch.tensor(NF4, dtype=dtype, device=device)
    return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1)


def bytes_of(weights: int, rows: int, storage: Storage, itemsize: int) -> float:
    """That a matrix of so many weights and rows takes as stored; `itemsize`: of the network's dtype."""
    if storage == "whole":
        return weights * itemsize
    return weights + 4 * rows if storage == "float8" else weights / 2 + 4 * weights / _GROUP


@dataclass(frozen=True)
class Form:
    """What parts of a weight stand for."""

    storage: Storage
    shape: torch.Size
    dtype: torch.dtype  # of products with it

    def widened(self, parts: Tensor, scale: Tensor | None) -> Tensor:
        """[out, in]: what the stored parts stand for."""
        if self.storage == "whole":
            return parts
        if self.storage == "float8":
            return parts.to(self.dtype).mul_(scale.to(self.dtype))
        values = functional.embedding(parts.int(), _two_values(parts.device, self.dtype))
        return values.view(-1, _GROUP).mul_(scale.to(self.dtype)).view(self.shape)


class FrozenLinear(nn.Linear):
    """A Linear whose weight never learns, stored by one of `STORAGES`; peft puts LoRAs on it as on any other.

    `width`: the dtype of its products.
    """

    def __init__(self, inner: int, outer: int, bias: Tensor | None, parts: Parts, storage: Storage, width: torch.dtype):
        with torch.device("meta"):
            super().__init__(inner, outer, bias=bias is not None)
        self.form = Form(storage, torch.Size((outer, inner)), width)
        self.weight = nn.Parameter(parts[0], requires_grad=False)
        self.register_buffer("scale", parts[1])
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.here: Parts | None = None  # a copy on the device, while its block computes (`stream`)

    def forward(self, x: Tensor) -> Tensor:
        form, *parts = stored(self)
        return _Product.apply(x.to(form.dtype), self.bias, form, *parts)


def stored(linear: nn.Linear) -> tuple[Form, Tensor, Tensor | None]:
    """The form of a frozen Linear's weight, and its parts: where they are now, so ask anew in each forward."""
    if isinstance(linear, FrozenLinear):
        return linear.form, *(linear.here or (linear.weight, linear.scale))
    weight = linear.weight
    return _whole(weight.shape, weight.dtype), weight, None


@cache
def _whole(shape: torch.Size, dtype: torch.dtype) -> Form:
    return Form("whole", shape, dtype)


class _Product(torch.autograd.Function):
    """x W^T + b. Keeps the stored parts for the backward pass, not the widened weight."""

    @staticmethod
    def forward(context: Any, x: Tensor, bias: Tensor | None, form: Form, *parts: Tensor | None):
        context.save_for_backward(*parts)
        context.form = form
        return functional.linear(x, form.widened(*parts), bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor):
        return gradient @ context.form.widened(*context.saved_tensors), None, None, None, None


def linears(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The Linears that are stored in fewer bytes: those of the joint blocks less adaLN's, without LoRAs on them yet."""
    for name, module in transformer.transformer_blocks.named_modules(prefix="transformer_blocks"):
        if isinstance(module, nn.Linear) and not is_modulation(f"{name}.weight"):
            yield name, module


def store(transformer: nn.Module, storage: Storage) -> None:
    """Replaces the Linears of a transformer without LoRAs; on the meta device too."""
    for name, linear in list(linears(transformer)):
        parts = packed(linear.weight.data, storage, linear.weight.dtype)
        frozen = FrozenLinear(linear.in_features, linear.out_features, linear.bias, parts, storage, linear.weight.dtype)
        owner, _, last = name.rpartition(".")
        setattr(transformer.get_submodule(owner), last, frozen)


def storage_of(transformer: nn.Module) -> Storage:
    """How its Linears are stored."""
    return next((m.form.storage for m in transformer.modules() if isinstance(m, FrozenLinear)), "whole")


def stream(transformer: nn.Module, device: torch.device | str) -> None:
    """Leaves the weights of stored Linears in main memory; a block's are copied to `device` while the block computes.

    They go when its forward ends, or, where a checkpointed block is computed again, when its backward pass has read them:
    without checkpointing every block's copy would wait for the backward pass. On CUDA they are pinned, so that copies do
    not hold the processor up.
    """
    device = torch.device(device)
    for block in transformer.transformer_blocks:
        own = [module for module in block.modules() if isinstance(module, FrozenLinear)]
        for linear in own:
            linear.weight.data = _at_home(linear.weight.data, device)
            linear.scale = None if linear.scale is None else _at_home(linear.scale, device)
        block.register_forward_pre_hook(_Bring(own, device))
        block.register_forward_hook(_Release(own), always_call=True)  # computing again ends with an exception


def _at_home(value: Tensor, device: torch.device) -> Tensor:
    value = value.cpu()
    return value.pin_memory() if device.type == "cuda" else value


class _Bring:
    def __init__(self, own: list[FrozenLinear], device: torch.device):
        self.own, self.device = own, device

    def __call__(self, module: nn.Module, args: tuple) -> None:
        for linear in self.own:
            parts = (linear.weight.data, linear.scale)
            linear.here = tuple(
                None if part is None else part.to(self.device, non_blocking=True, copy=True) for part in parts
            )


class _Release:
    def __init__(self, own: list[FrozenLinear]):
        self.own = own

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        for linear in self.own:
            linear.here = None
