"""The frozen base in float8, in NF4 and in main memory: what it stores, what LoRAs learn on it, what is alive."""

from __future__ import annotations

import operator

import pytest
import torch
from diffusers import SD3Transformer2DModel
from tiny import SCALING, SETTINGS, concept_set, noise, strengthen, transformer
from torch import Tensor, nn

from benchmarks.live_bytes import LiveBytes
from purecc.batches import draw_batch
from purecc.frozen import NF4, Form, FrozenLinear, bytes_of, linears, packed, store, stored, stream
from purecc.network import EXTRACTOR, PURE, AdaptedNetwork
from purecc.settings import PureSettings
from purecc.targets import TARGETS
from purecc.terms import pure_objective

WEIGHT = noise(48, 128) * torch.logspace(-4, 2, 48)[:, None]  # rows of very different sizes


def test_float8_widens_to_bfloat16_exactly() -> None:
    parts = packed(WEIGHT, "float8", torch.float32)
    assert parts[0].dtype == torch.float8_e4m3fn and parts[1].shape == (48, 1)
    wide = Form("float8", WEIGHT.shape, torch.float32).widened(*parts)
    assert torch.equal(Form("float8", WEIGHT.shape, torch.bfloat16).widened(*parts).float(), wide)
    errors = (wide - WEIGHT).norm(dim=1) / WEIGHT.norm(dim=1)
    assert 0.01 < errors.min() and errors.max() < 0.04  # three bits after the point, in every row


def test_float8_keeps_what_is_float8_already() -> None:
    values = (WEIGHT.clamp(-100, 100) / 4).to(torch.float8_e4m3fn).float()
    assert torch.equal(
        Form("float8", values.shape, torch.float32).widened(*packed(values, "float8", torch.float32)), values
    )


@pytest.mark.parametrize("storage", ["float8", "nf4"])
def test_nothing_stays_nothing(storage) -> None:
    zeros = torch.zeros(4, 64)
    assert torch.equal(Form(storage, zeros.shape, torch.float32).widened(*packed(zeros, storage, torch.float32)), zeros)


def test_nf4_takes_the_nearest_of_its_sixteen() -> None:
    parts = packed(WEIGHT, "nf4", torch.float32)
    assert parts[0].dtype == torch.uint8 and parts[0].numel() == WEIGHT.numel() // 2
    groups = WEIGHT.reshape(-1, 64)
    scale = groups.abs().amax(1, keepdim=True)
    candidates = torch.tensor(NF4) * scale[..., None]  # [groups, 1, 16]
    nearest = candidates.expand(-1, 64, -1).gather(2, (candidates - groups[..., None]).abs().argmin(2, keepdim=True))
    assert torch.equal(Form("nf4", WEIGHT.shape, torch.float32).widened(*parts), nearest[..., 0].view(WEIGHT.shape))


def test_nf4_packs_as_bitsandbytes_does() -> None:
    """First value in the upper four bits; these bytes are quantize_4bit's (bitsandbytes 0.50.2)."""
    stored, scale = packed(torch.linspace(-1, 1, 64)[None], "nf4", torch.float32)
    assert bytes(stored.tolist()).hex() == "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff"
    assert scale.item() == 1


def test_nf4_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\) has no whole groups of 64"):
        packed(torch.ones(3, 5), "nf4", torch.float32)


def test_a_product_and_its_gradient_are_those_of_the_widened_weight() -> None:
    plain = nn.Linear(128, 48).requires_grad_(False)
    for storage in ("float8", "nf4"):
        parts = packed(plain.weight, storage, torch.float32)
        frozen = FrozenLinear(128, 48, plain.bias, parts, storage, torch.float32)
        wide = Form(storage, plain.weight.shape, torch.float32).widened(*parts)
        x, y = (noise(5, 7, 128, seed=1).requires_grad_() for _ in range(2))
        (a, b), weights = (frozen(x), nn.functional.linear(y, wide, plain.bias)), noise(5, 7, 48, seed=2)
        (a * weights).sum().backward()
        (b * weights).sum().backward()
        assert torch.equal(a, b) and torch.equal(x.grad, y.grad)


def test_every_linear_of_the_blocks_but_adalns() -> None:
    one = transformer()
    names = [name for name, _ in linears(one)]
    assert not any("norm" in name for name in names)
    everything = [name for name, m in one.transformer_blocks.named_modules() if isinstance(m, nn.Linear)]
    assert len(names) == len([name for name in everything if "norm" not in name])
    store(one, "float8")
    assert [name for name, module in linears(one) if isinstance(module, FrozenLinear)] == names


def stage_two(
    storage: str,
    streamed: bool = False,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
) -> AdaptedNetwork:
    one = transformer(layers=layers).to(dtype)
    store(one, storage)
    if streamed:
        stream(one, "cpu")
    network = adapted(one)
    network.checkpoint_activations(checkpointing)
    return network


def adapted(one: SD3Transformer2DModel) -> AdaptedNetwork:
    network = AdaptedNetwork(one)
    for seed, model in enumerate((PURE, EXTRACTOR)):
        network.add_new(model, 2, 4.0, TARGETS["attention"], seed)
        strengthen(network, model, seed + 2)
    for parameter in network.lora_parameters(PURE):
        parameter.requires_grad_(True)
    return network


def gradient(network: AdaptedNetwork, original: str = "frozen base") -> Tensor:
    batch = draw_batch(concept_set(), SETTINGS, SCALING, 1, "cpu")
    pure_objective(PureSettings(original=original)).terms(network, batch).loss.backward()
    parameters = network.lora_parameters(PURE)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    reached = sum(bool(one.norm() > 0) for one in found)
    assert reached == len(found) - 2  # nothing reads what the text asks for in the last block's attention
    return torch.cat([one.flatten() for one in found])


def plain_gradient(original: str = "frozen base") -> Tensor:
    return gradient(adapted(transformer()), original)


@pytest.mark.parametrize("original", ["frozen base", "trainable"])
def test_whole_is_the_plain_network_bit_for_bit(original: str) -> None:
    assert torch.equal(gradient(stage_two("whole"), original), plain_gradient(original))


@pytest.mark.parametrize(("storage", "least"), [("float8", 0.99), ("nf4", 0.9)])
def test_the_gradient_reaches_the_lora_and_points_the_same_way(storage: str, least: float) -> None:
    exact, found = plain_gradient(), gradient(stage_two(storage))
    cosine = float(exact @ found / exact.norm() / found.norm())
    print(f"{storage}: cosine {cosine:.4f}")
    assert least < cosine < 1 - 1e-6


@pytest.mark.parametrize("storage", ["whole", "float8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_and_streaming_change_no_bit(storage: str, dtype: torch.dtype) -> None:
    here = gradient(stage_two(storage, dtype=dtype))
    for streamed, checkpointing in ((False, True), (True, False), (True, True)):
        assert torch.equal(gradient(stage_two(storage, streamed, checkpointing, dtype)), here), (
            streamed,
            checkpointing,
        )


def block_bytes(network: AdaptedNetwork, storage: str) -> float:
    own = [m for m in network.transformer.transformer_blocks[1].modules() if isinstance(m, FrozenLinear)]
    return sum(bytes_of(m.in_features * m.out_features, m.out_features, storage, 4) for m in own)


@pytest.mark.parametrize("storage", ["whole", "float8"])
def test_streaming_holds_one_blocks_weights_at_a_time(storage: str) -> None:
    """On the CPU the copies are real ones too, so that what is alive can be counted."""
    peaks = {}
    for streamed in (False, True):
        network = stage_two(storage, streamed, checkpointing=True, layers=6)
        with LiveBytes() as live:
            gradient(network)
        peaks[streamed] = live.peak
        assert all(m.here is None for m in network.transformer.modules() if isinstance(m, FrozenLinear))
    copies, block = peaks[True] - peaks[False], block_bytes(network, storage)
    print(f"{storage}: {copies / 1e3:.0f} kB of copies, a block has {block / 1e3:.0f} kB")
    assert 0.5 * block < copies < 1.5 * block  # of six blocks


@pytest.mark.parametrize("reader", ["purecc.lora", "purecc.frozen"], ids=["attention", "MLP"])
def test_a_blocks_weights_are_there_whenever_it_computes(reader: str, monkeypatch) -> None:
    """In the backward pass too, where a checkpointed block computes again: a GPU could not reach those at home."""
    there = []

    def look(linear):
        form, *parts = stored(linear)
        if isinstance(linear, FrozenLinear):
            there.append((torch._C._current_graph_task_id() >= 0, linear.here, parts))
        return form, *parts

    monkeypatch.setattr(f"{reader}.stored", look)
    gradient(stage_two("float8", streamed=True, checkpointing=True))
    assert {backward for backward, *_ in there} == {False, True}
    assert all(here is not None and all(map(operator.is_, here, parts)) for _, here, parts in there)


@pytest.mark.parametrize(("storage", "bytes_each"), [("float8", 1.0), ("nf4", 0.5625)])
def test_stored_bytes_are_what_is_told(storage: str, bytes_each: float) -> None:
    one = transformer()
    count = sum(linear.weight.numel() for _, linear in linears(one))
    store(one, storage)
    own = [module for _, module in linears(one)]
    found = sum(m.weight.nbytes + m.scale.nbytes for m in own)
    assert found == sum(bytes_of(m.in_features * m.out_features, m.out_features, storage, 4) for m in own)
    assert found == pytest.approx(bytes_each * count, rel=0.05)


def test_widened_weights_do_not_wait_for_the_backward_pass() -> None:
    kept = {}
    for storage in ("whole", "float8"):
        network = stage_two(storage, layers=4)
        with LiveBytes() as live:
            batch = draw_batch(concept_set(), SETTINGS, SCALING, 1, "cpu")
            v = network.velocity(batch.x_t, batch.t, batch.complete, PURE)
            kept[storage] = live.now
            del v
    assert kept["float8"] == pytest.approx(kept["whole"], rel=0.01)
