"""The attention in the place of diffusers': the same values and gradients, whatever carries a LoRA."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from tiny import CHANNELS, SETTINGS, SIDE, noise, strengthen, text, transformer
from torch import Tensor, nn

from benchmarks.stand_ins import ByPeft
from purecc.attention import join_attention
from purecc.frozen import STORAGES, store
from purecc.network import EXTRACTOR, PURE, AdaptedNetwork
from purecc.targets import TARGETS, groups

QUERIES = ("attn.to_q",)
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
    [*TARGETS.values(), QUERIES, ("attn.to_q", "attn.to_v", "attn.add_k_proj"), ("attn.to_v", "attn.to_out.0")],
    ids=[*TARGETS, "queries", "queries and values", "values and output"],
)
def test_the_same_gradients_as_pefts(modules: tuple[str, ...]) -> None:
    """An imported LoRA may be on some of the Linears that are read together."""
    found, expected = (gradients(of(transformer()), modules) for of in (AdaptedNetwork, ByPeft))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_same_gradients_in_sd3_mediums_layout() -> None:
    """No norms of queries and keys, and no second attention."""
    config = dict(transformer().config) | {"qk_norm": None, "dual_attention_layers": ()}

    def medium() -> SD3Transformer2DModel:
        torch.manual_seed(0)
        return SD3Transformer2DModel(**config).eval()

    found, expected = (gradients(of(medium()), TARGETS["attention"]) for of in (AdaptedNetwork, ByPeft))
    assert float(expected[1][0].norm()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grad", [True, False], ids=["with a graph", "without"])
@pytest.mark.parametrize("models", [(PURE, EXTRACTOR), (EXTRACTOR, PURE)], ids=str)
def test_a_lora_on_some_beside_one_on_all(models: tuple[str, str], grad: bool) -> None:
    adapted = AdaptedNetwork(transformer())
    adapted.add_new(PURE, 2, 4.0, TARGETS["attention"], seed=1)
    adapted.add_new(EXTRACTOR, 2, 4.0, QUERIES, seed=2)
    for model in models:
        strengthen(adapted, model)
        for parameter in adapted.lora_parameters(model):
            parameter.requires_grad_(True)
    with torch.set_grad_enabled(grad):
        together = adapted.velocity(X, T, WORDS, models)
        alone = torch.cat([adapted.velocity(X, T, WORDS, model)[i : i + 1] for i, model in enumerate(models)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_what_diffusers_puts_in_its_place_is_right_too() -> None:
    """As where its classes are renamed, and nothing is joined."""
    found = []
    for plain in (False, True):
        adapted = AdaptedNetwork(transformer())
        if plain:
            adapted.transformer.set_attn_processor(JointAttnProcessor2_0())
        found.append(gradients(adapted, TARGETS["attention"]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_an_autocast_around_a_forward_changes_nothing() -> None:
    adapted = AdaptedNetwork(transformer())
    adapted.add_new(PURE, 2, 4.0, TARGETS["attention, attn2 and mlp"], seed=1)
    strengthen(adapted, PURE)
    with torch.no_grad():
        plain = adapted.velocity(X, T, WORDS, PURE)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(adapted.velocity(X, T, WORDS, PURE), plain)


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
