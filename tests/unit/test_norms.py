"""PyTorch's own norms in the place of diffusers': nothing else changes."""

from __future__ import annotations

import pytest
import torch
from tiny import CHANNELS, SIDE, noise, text, transformer
from torch import nn
from torch.nn import functional
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from purecc.frozen import store
from purecc.network import PURE, AdaptedNetwork
from purecc.norms import fuse_norms
from purecc.targets import TARGETS


def test_the_same_values_names_and_weights() -> None:
    plain, narrow = transformer(), transformer()
    fuse_norms(narrow)
    assert narrow.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(module, nn.RMSNorm) for module in narrow.modules()) >= 4 * len(narrow.transformer_blocks) - 1
    read = text("a dog", count=2)
    asked = noise(2, CHANNELS, SIDE, SIDE, seed=4), read.rows, read.pooled, torch.tensor([300.0, 800.0])
    assert torch.equal(narrow(*asked).sample, plain(*asked).sample)


class Wide(TorchDispatchMode):
    """`seen`: operations that give a stream's rows, or heads, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32 and made.ndim > 2 and made.shape[-1] >= 64:
            self.seen.add(str(operation))
        return made


@pytest.mark.parametrize("storage", ["whole", "float8"])
def test_a_forward_in_bfloat16_widens_nothing(storage: str, monkeypatch) -> None:
    """Autocast would: CUDA's computes norms in float32, and what reads them would follow."""
    one, read = transformer().to(torch.bfloat16), text("a [V] dog", count=2)
    store(one, storage)
    adapted = AdaptedNetwork(one)
    adapted.add_new(PURE, 2, 4.0, TARGETS["attention, attn2 and mlp"], seed=0)
    asked = noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8]), read, PURE
    with Wide() as wide, torch.no_grad():
        adapted.velocity(*asked)
    assert wide.seen  # a CPU takes RMS norms apart, in float32; CUDA has a kernel
    monkeypatch.setattr(functional, "rms_norm", lambda x, shape, weight, eps: x * weight)
    with Wide() as wide, torch.no_grad():
        adapted.velocity(*asked)
    assert not wide.seen


def test_an_older_pytorch_keeps_diffusers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its RMS norm is another one; and nothing is refused while the pack loads."""
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.4.1+cpu"))
    one = transformer()
    before = list(map(type, one.modules()))
    fuse_norms(one)
    assert list(map(type, one.modules())) == before
    monkeypatch.undo()
    fuse_norms(one)
    assert list(map(type, one.modules())) != before
