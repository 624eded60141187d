"""PyTorch's norms in the dtype of what comes in: CUDA's autocast would widen them to float32, and with them what reads them.

So each is one kernel (RMS norms from PyTorch 2.9 on) with statistics in float32, as where a model samples in bfloat16.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn import functional

if torch.__version__ < (2, 5):
    raise ImportError(f"PureCC needs PyTorch 2.5 or newer; this is {torch.__version__}.")


def _unwidened(x: Tensor) -> AbstractContextManager:
    device = x.device.type
    widens = device != "meta" and torch.is_autocast_enabled(device)  # meta has no autocast
    return torch.autocast(device, enabled=False) if widens else nullcontext()


class NarrowRMSNorm(nn.RMSNorm):
    """The norms of queries and keys: in one kernel in place of diffusers' six, and rounded once where the dtype is narrow."""

    def forward(self, x: Tensor) -> Tensor:
        with _unwidened(x):
            return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class NarrowLayerNorm(nn.LayerNorm):
    """The norms before adaLN's scale and shift, which have no weights of their own."""

    def forward(self, x: Tensor) -> Tensor:
        with _unwidened(x):
            return functional.layer_norm(x, self.normalized_shape, None, None, self.eps)


def narrow_norms(transformer: SD3Transformer2DModel) -> None:
    """Puts these in the place of the transformer's own norms; the same weights, under the same names."""
    for module in list(transformer.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, RMSNorm) and norm.weight is not None and norm.bias is None:
                narrow = NarrowRMSNorm(norm.dim, norm.eps, device="meta")
                narrow.weight = norm.weight
                setattr(module, name, narrow)
            elif isinstance(norm, nn.LayerNorm) and norm.weight is None:
                setattr(module, name, NarrowLayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False))
