"""Kernels and FLOPs of a step of SD3.5 Medium, counted without weights and without a GPU.

    python -m benchmarks.counted [--pixels 512|1024] [--text-rows 154|333]

And how far bfloat16 gradients are from float32's.

The arms are those of `speed.py`. FLOPs: on tensors without storage, at the real size. That a step runs there at all shows that nothing in it reads from the
device: a tensor without storage has no value to read. Kernels: in bfloat16 at a small width and the real depth, on a CPU, with what CUDA's autocast casts for R.
A kernel is an operation that computes: views are none. Attention is one and torch.nn.RMSNorm is one, as CUDA has them; a library may fuse more, or need several for
one operation. So read the ratios.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from purecc.network import AdaptedNetwork
from purecc.targets import lora_modules

from .speed import RANK, REFERENCES, Bench
from .stand_ins import REAL, TINY, Size, flops_of

NARROW = replace(
    TINY, name="narrow", layers=REAL.layers, dual=REAL.dual, t5_layers=REAL.t5_layers, dtype=torch.bfloat16,
    clips=tuple(replace(narrow, layers=real.layers) for narrow, real in zip(TINY.clips, REAL.clips, strict=True)),
)  # as many kernels as REAL  # fmt: skip
_NO_KERNEL = {
    "aten._unsafe_view.default",
    "aten.detach.default",
    "aten.empty.memory_format",
    "aten.empty_like.default",
    "aten.new_empty.default",
}


class Kernels(TorchDispatchMode):
    """`count` of the operations inside that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not (operation.is_view or str(operation) in _NO_KERNEL)
        return operation(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Counted:
    """Of one step."""

    kernels: int
    flops: int


class WithoutStorage(Bench):
    """The arms on meta tensors, which have no random numbers to draw."""

    def _adapted(self, network: AdaptedNetwork, *models: str) -> AdaptedNetwork:
        for model in models:
            network._add_lora(model, RANK, float(RANK), list(lora_modules(network.transformer, "attention")))
        network.transformer.requires_grad_(False)
        return network


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """One kernel, and one for its backward pass; a mask would change neither count."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]


class _FusedNorm(torch.autograd.Function):
    """Stands for CUDA's: one kernel, and one for the gradient of what comes in. Without a device PyTorch takes the norm apart."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.saved_tensors[0], None


def _fused_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return _FusedNorm.apply(x, weight)


_plain_layer_norm = functional.layer_norm


def layer_norm_as_on_cuda(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In float32 under autocast; a CPU's autocast leaves it alone."""
    return _plain_layer_norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)


@contextmanager
def _replaced(**of_torch_nn_functional: Any) -> Iterator[None]:
    with mock.patch.multiple(functional, **of_torch_nn_functional):
        yield


def flops(size: Size) -> dict[str, int]:
    """Arm -> what a step's forwards and its backward pass need."""
    with (
        mock.patch("torch.autocast", lambda *_, **__: nullcontext()),  # there is none of tensors without storage
        _replaced(scaled_dot_product_attention=_fused_attention, rms_norm=_fused_norm),
        torch.device("meta"),
    ):
        bench = WithoutStorage(replace(size, device="meta", dtype=torch.float32))
        return {arm: flops_of(lambda arm=arm: _forth_and_back(bench, arm)) for arm in _arms()}


def kernels(size: Size = NARROW) -> dict[str, int]:
    """The same; the optimiser's few kernels aside, CPU's bookkeeping with."""
    found, bench = {}, Bench(size)
    with _replaced(rms_norm=_fused_norm, layer_norm=layer_norm_as_on_cuda):
        for arm in _arms():
            with Kernels() as counting:
                _forth_and_back(bench, arm)
            found[arm] = counting.count
    return found


def counted(size: Size) -> dict[str, Counted]:
    """Both; kernels do not depend on widths."""
    of_kernels = kernels()
    return {arm: Counted(of_kernels[arm], count) for arm, count in flops(size).items()}


def gradients_apart(size: Size = NARROW) -> dict[str, float]:
    """Arm -> how far its bfloat16 gradient is from float32's at the same weights, of its length."""
    half, exact = Bench(size), Bench(replace(size, dtype=torch.float32))
    exact.product.transformer.load_state_dict({k: v.float() for k, v in half.product.transformer.state_dict().items()})
    exact.cached, found = half.cached, {}
    for arm in ("E", "L", "S"):
        expected = exact.gradient(arm)
        found[arm] = float((half.gradient(arm) - expected).norm() / expected.norm())
    return found


def _arms() -> list[str]:
    return [arm for reference, own in REFERENCES.items() for arm in (reference, *own)]


def _forth_and_back(bench: Bench, arm: str) -> None:
    bench.loss(arm).backward()
    bench.forget(arm)


def table(found: dict[str, Counted]) -> str:
    """As Markdown, the product's arms held against their stage's reference."""
    rows = []
    for reference, own in REFERENCES.items():
        r = found[reference]
        rows += [
            f"| {reference} and its arms | kernels a step | of {reference}'s | TFLOP a step | {reference}'s, of the arm's |",
            "|---|--:|--:|--:|--:|",
        ]
        for arm in (reference, *own):
            one = found[arm]
            rows.append(
                f"| {arm} | {one.kernels} | {one.kernels / r.kernels:.2f} | {one.flops / 1e12:.1f} | {r.flops / one.flops:.2f} |"
            )
        rows.append("")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, choices=[512, 1024], default=512, help="a side of the pictures")
    parser.add_argument("--text-rows", type=int, choices=[154, 333], default=154, help="CLIP's 77 and T5's 77 or 256")
    arguments = parser.parse_args()
    for arm, apart in gradients_apart().items():
        print(f"{arm}: gradient {apart:.2%} from float32's")
    print(table(counted(replace(REAL, pixels=arguments.pixels, t5_tokens=arguments.text_rows - 77))))


if __name__ == "__main__":
    main()
