"""PyTorch's own RMS norm for queries and keys: one kernel (from PyTorch 2.9 on) in place of diffusers' six, rounded once."""

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm
from torch import nn


def fuse_norms(transformer: SD3Transformer2DModel) -> None:
    """Puts it in the place of the transformer's own; the same weights, under the same names. Before PyTorch 2.5 all stays as it is."""
    if torch.__version__ < (2, 5):
        return
    for module in list(transformer.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, RMSNorm) and norm.weight is not None and norm.bias is None:
                fused = nn.RMSNorm(norm.dim, norm.eps, device="meta")
                fused.weight = norm.weight
                setattr(module, name, fused)
