"""The attention in the place of diffusers': the same values and gradients, whatever carries a LoRA."""

from __future__ import annotations

import pytest
import torch
from tiny import CHANNELS, SETTINGS, SIDE, noise, strengthen, text, transformer
from torch import Tensor, nn

from benchmarks.stand_ins import ByPeft
from purecc.attention import join_attention
from purecc.frozen import STORAGES, store
from purecc.network import PURE, AdaptedNetwork
from purecc.targets import TARGETS, groups

X, T, WORDS = noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8]), text("a [V] dog", count=2)


def test_the_same_values_as_diffusers() -> None:
    plain, joined = transformer(), transformer()
    join_attention(joined, lambda: ())
    assert joined.state_dict().keys() == plain.state_dict().keys()
    asked = X, WORDS.rows, WORDS.pooled, 1000 * T
    with torch.no_grad():
        torch.testing.assert_close(joined(*asked).sample, plain(*asked).sample, rtol=1e-5, atol=1e-6)


def gradients(adapted: AdaptedNetwork, modules: tuple[str, ...]) -> tuple[Tensor, list[Tensor]]:
    adapted.add_new(PURE, SETTINGS.rank, SETTINGS.alpha, modules, seed=1)
    strengthen(adapted, PURE)
    learnt = adapted.lora_parameters(PURE)
    for parameter in learnt:
        parameter.requires_grad_(True)
    v = adapted.velocity(X, T, WORDS, PURE)
    v.square().mean().backward()
    return v.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in learnt]


@pytest.mark.parametrize(
    "modules",
    [*TARGETS.values(), ("attn.to_q", "attn.to_v", "attn.add_k_proj"), ("attn.to_v", "attn.to_out.0")],
    ids=[*TARGETS, "queries and values", "values and output"],
)
def test_the_same_gradients_as_pefts(modules: tuple[str, ...]) -> None:
    """An imported LoRA may be on some of the Linears that are read together."""
    found, expected = (gradients(of(transformer()), modules) for of in (AdaptedNetwork, ByPeft))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_stored_base_is_read_together_too(storage: str) -> None:
    stored, seen = transformer(), []
    store(stored, storage)
    for name, module in stored.named_modules():
        if isinstance(module, nn.Linear) and ".attn" in name:
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    modules = TARGETS["attention and attn2"]
    found = gradients(AdaptedNetwork(stored), modules)
    assert not seen  # one by one they would have been called
    widened = transformer()
    for name, linear in stored.named_modules():
        if hasattr(linear, "form"):
            widened.get_submodule(name.removesuffix(".base_layer")).weight.data = linear.form.widened(
                linear.weight, linear.scale
            )
    torch.testing.assert_close(found, gradients(AdaptedNetwork(widened), modules), rtol=1e-5, atol=1e-7)


def test_what_is_read_together() -> None:
    attention = [f"transformer_blocks.0.attn.{name}" for name in ("to_k", "to_q", "to_out.0", "to_v", "add_q_proj")]
    k, q, out, v, text_q = attention
    assert groups(attention) == [(q, k, v), (out,), (text_q,)]
    assert groups([q, v]) == [(q,), (v,)]
