"""PyTorch's own RMS norms in the place of diffusers': nothing else changes."""

from __future__ import annotations

import torch
from tiny import CHANNELS, SIDE, noise, text, transformer
from torch import nn
from torch.nn import functional

from purecc.network import BASE, AdaptedNetwork
from purecc.norms import fuse_norms


def test_the_same_values_names_and_weights() -> None:
    plain, fused = transformer(), transformer()
    fuse_norms(fused)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(module, nn.RMSNorm) for module in fused.modules()) >= 4 * len(fused.transformer_blocks) - 1
    asked = noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8]), text("a dog", count=2), BASE
    assert torch.equal(AdaptedNetwork(fused).velocity(*asked), AdaptedNetwork(plain).velocity(*asked))


def test_under_autocast_it_stays_in_the_dtype_that_comes_in(monkeypatch) -> None:
    """CUDA's autocast has rms_norm among what it computes in float32, and attention would follow; a CPU's has not, so that is read here."""
    fused = transformer()
    fuse_norms(fused)
    norm = next(module for module in fused.modules() if isinstance(module, nn.RMSNorm))
    seen, plain = [], functional.rms_norm

    def rms_norm(*args):
        seen.append((torch.is_autocast_enabled("cpu"), args[0].dtype, args[2].dtype))
        return plain(*args)

    monkeypatch.setattr(functional, "rms_norm", rms_norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(torch.randn(2, *norm.normalized_shape, dtype=torch.bfloat16))
    assert seen == [(False, torch.bfloat16, torch.bfloat16)] and out.dtype == torch.bfloat16
