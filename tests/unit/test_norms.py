"""PyTorch's own RMS norms in the place of diffusers': nothing else changes."""

from __future__ import annotations

import torch
from tiny import CHANNELS, SIDE, noise, text, transformer
from torch import nn

from purecc.network import BASE, AdaptedNetwork
from purecc.norms import fuse_norms


def test_the_same_values_names_and_weights() -> None:
    plain, fused = transformer(), transformer()
    fuse_norms(fused)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(module, nn.RMSNorm) for module in fused.modules()) >= 4 * len(fused.transformer_blocks) - 1
    asked = noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8]), text("a dog", count=2), BASE
    assert torch.equal(AdaptedNetwork(fused).velocity(*asked), AdaptedNetwork(plain).velocity(*asked))
