"""PyTorch's own norms in the place of diffusers': nothing else changes."""

from __future__ import annotations

import importlib

import pytest
import torch
from tiny import CHANNELS, SIDE, noise, text, transformer
from torch import nn
from torch.nn import functional
from torch.torch_version import TorchVersion

from purecc import norms
from purecc.network import BASE, AdaptedNetwork
from purecc.norms import narrow_norms


def test_the_same_values_names_and_weights() -> None:
    plain, narrow = transformer(), transformer()
    narrow_norms(narrow)
    assert narrow.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(module, nn.RMSNorm) for module in narrow.modules()) >= 4 * len(narrow.transformer_blocks) - 1
    read = text("a dog", count=2)
    asked = noise(2, CHANNELS, SIDE, SIDE, seed=4), read.rows, read.pooled, torch.tensor([300.0, 800.0])
    assert torch.equal(narrow(*asked).sample, plain(*asked).sample)


@pytest.mark.parametrize(("kind", "name"), [(nn.RMSNorm, "rms_norm"), (nn.LayerNorm, "layer_norm")])
def test_under_autocast_none_is_widened(monkeypatch, kind: type, name: str) -> None:
    """CUDA's autocast computes both in float32, and what reads them would follow; a CPU's does not, so that is read here."""
    adapted, seen, plain = AdaptedNetwork(transformer().to(torch.bfloat16)), [], getattr(functional, name)

    def norm(x, *args):
        made = plain(x, *args)
        seen.append((torch.is_autocast_enabled("cpu"), x.dtype, made.dtype))
        return made

    monkeypatch.setattr(functional, name, norm)
    adapted.velocity(noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8]), text("a dog", count=2), BASE)
    assert set(seen) == {(False, torch.bfloat16, torch.bfloat16)}
    assert len(seen) == sum(isinstance(module, kind) for module in adapted.transformer.modules())


def test_an_older_pytorch_is_named(monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.4.1+cpu"))
    with pytest.raises(ImportError, match="needs PyTorch 2.5 or newer; this is 2.4.1"):
        importlib.reload(norms)
