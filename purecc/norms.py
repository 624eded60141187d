"""The RMS norms of queries and keys as PyTorch's own: the same values, in one kernel where CUDA or MPS has one for it (from 2.9 on)."""

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn import functional


class FusedRMSNorm(nn.RMSNorm):
    """torch.nn.RMSNorm in the dtype of what comes in, as diffusers' is: CUDA's autocast would widen all of it to float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if x.device.type == "meta":  # has no autocast
            return functional.rms_norm(x, self.normalized_shape, weight, self.eps)
        with torch.autocast(x.device.type, enabled=False):
            return functional.rms_norm(x, self.normalized_shape, weight, self.eps)


def fuse_norms(transformer: SD3Transformer2DModel) -> None:
    """Puts a `FusedRMSNorm` with the same weight in the place of each of diffusers' norms, which computes it in six kernels."""
    for module in list(transformer.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, RMSNorm) and norm.weight is not None and norm.bias is None:
                fused = FusedRMSNorm(norm.dim, norm.eps, device="meta")
                fused.weight = norm.weight
                setattr(module, name, fused)
