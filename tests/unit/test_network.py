"""Three models on one real transformer: each is itself alone, and the base stays the base."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from tiny import (
    CHANNELS,
    SETTINGS,
    SIDE,
    WIDTH,
    concept_set,
    extractor,
    learned,
    network,
    noise,
    stage_two,
    strengthen,
    text,
    transformer,
)
from torch import Tensor, nn

from purecc.batches import draw_batch
from purecc.concept import T5_SLOT, ConceptEmbeddings
from purecc.encoding import TextBatch
from purecc.initial import stream_at_marks
from purecc.layerwise import LayerwiseEmbeddings
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.targets import TARGETS, lora_modules

X, T = noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8])
MARKED, PLAIN = text("a [V] dog on the beach", count=2), text("a dog on the beach", count=2)


def v(adapted: AdaptedNetwork, model: str | None, words: TextBatch = MARKED) -> Tensor:
    with torch.no_grad():
        return adapted.velocity(X, T, words, model)


def add_lora(adapted: AdaptedNetwork, name: str, seed: int | None = None, targets: str = "attention") -> None:
    """A fresh LoRA, or with a seed a strong one."""
    adapted.add_new(name, rank=2, alpha=8.0, targets=TARGETS[targets], seed=0)
    if seed is not None:
        strengthen(adapted, name, seed)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def streams(adapted: AdaptedNetwork, model: str | None, words: TextBatch) -> list[Tensor]:
    """The text stream as each joint block reads it."""
    seen: list[Tensor] = []
    look = lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"])  # noqa: E731
    handles = [b.register_forward_pre_hook(look, with_kwargs=True) for b in adapted.transformer.transformer_blocks]
    v(adapted, model, words)
    for handle in handles:
        handle.remove()
    return seen


def test_the_base_is_the_transformer_and_the_times_count_to_1000() -> None:
    plain = transformer()
    with torch.no_grad():
        expected = plain(X, MARKED.rows, MARKED.pooled, 1000 * T).sample
    assert torch.equal(v(network(), BASE), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_lora_is_the_base_exactly(dtype: torch.dtype) -> None:
    adapted = AdaptedNetwork(transformer().to(dtype))
    before = v(adapted, BASE)
    add_lora(adapted, PURE)
    assert torch.equal(v(adapted, PURE), before)
    assert all(p.dtype == torch.float32 for p in adapted.lora_parameters(PURE))
    strengthen(adapted, PURE)
    assert distance(v(adapted, PURE), before) > 0.1
    assert torch.equal(v(adapted, BASE), before)


def test_a_fresh_loras_matrices_come_from_the_seed_alone() -> None:
    made = []
    for seed in (0, 0, 1):
        adapted = network()
        adapted.add_new(PURE, 2, 2.0, TARGETS["attention"], seed)
        made.append(adapted.lora_weights(PURE, 2.0).matrices)
    first = next(iter(made[0]))
    assert all(torch.equal(made[0][name][0], made[1][name][0]) for name in made[0])
    assert not torch.equal(made[0][first][0], made[2][first][0])
    assert all(not b.any() for _, b in made[0].values())


def test_targets_are_the_attention_projections_of_every_block() -> None:
    names = {}
    for targets in TARGETS:
        adapted = network()
        add_lora(adapted, PURE, targets=targets)
        names[targets] = set(adapted.lora_weights(PURE, 1.0).matrices)
    expected = {
        name
        for name, module in transformer().named_modules()
        if isinstance(module, nn.Linear) and ".attn." in name and name.startswith("transformer_blocks.")
    }
    assert names["attention"] == expected and len(expected) == 15  # the last block has no to_add_out
    more = names["attention and attn2"] - names["attention"]
    assert more == {f"transformer_blocks.0.attn2.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")}
    mlp = names["attention, attn2 and mlp"] - names["attention and attn2"]
    assert mlp == {
        name
        for name, module in transformer().named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[2:3] in (["ff"], ["ff_context"])
    }
    assert len(mlp) == 6 and all("_add_" in name or ".add_" in name for name in names["text stream only"])
    assert len(names["text stream only"]) == 7
    for targets, found in names.items():
        assert set(lora_modules(transformer(), targets)) == found


def test_extractor_and_pure_do_not_leak_into_one_another() -> None:
    concept = extractor()
    alone = network()
    alone.add_concept(EXTRACTOR, concept)
    adapted = network()
    adapted.add_concept(EXTRACTOR, concept)
    add_lora(adapted, PURE)
    for one in (alone, adapted):  # torch multiplies in another order where a weight asks for a gradient
        one.transformer.requires_grad_(False)
    of_base, of_extractor = v(network(), BASE), v(alone, EXTRACTOR)
    assert distance(of_extractor, of_base) > 0.1
    for model, expected in ((PURE, of_base), (EXTRACTOR, of_extractor), (BASE, of_base), (PURE, of_base)):
        assert torch.equal(v(adapted, model), expected)
    strengthen(adapted, PURE, seed=3)
    only_pure = network()
    add_lora(only_pure, PURE, seed=3)
    only_pure.transformer.requires_grad_(False)
    of_pure = v(only_pure, PURE)
    assert distance(of_pure, of_extractor) > 0.1 and distance(of_pure, of_base) > 0.1
    for model, expected in ((EXTRACTOR, of_extractor), (PURE, of_pure), (BASE, of_base), (EXTRACTOR, of_extractor)):
        assert torch.equal(v(adapted, model), expected)


def test_a_model_is_what_its_concept_says_after_add_and_copy() -> None:
    concept, adapted = extractor(), network()
    adapted.add_concept(EXTRACTOR, concept)
    copy = adapted.lora_weights(EXTRACTOR, concept.lora.alpha)
    assert copy.alpha == concept.lora.alpha and copy.rank == concept.lora.rank
    assert all(
        torch.equal(m, n)
        for name in copy.matrices
        for m, n in zip(copy.matrices[name], concept.lora.matrices[name], strict=True)
    )
    assert torch.equal(adapted.embeddings[EXTRACTOR].snapshot().clip, concept.embeddings.clip)


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2.0), (2, 8.0), (4, 1.0)])
def test_merged_is_unmerged(rank: int, alpha: float) -> None:
    """W + alpha / rank B A as one weight."""
    adapted = network()
    adapted.add_new(PURE, rank, alpha, TARGETS["attention and attn2"], seed=0)
    strengthen(adapted, PURE)
    lora, merged = adapted.lora_weights(PURE, alpha), transformer()
    assert lora.scale == alpha / rank
    with torch.no_grad():
        for name, (a, b) in lora.matrices.items():
            merged.get_submodule(name).weight.add_(alpha / rank * b @ a)
    of_merged = v(AdaptedNetwork(merged), BASE)
    assert distance(of_merged, v(adapted, BASE)) > 0.05
    torch.testing.assert_close(v(adapted, PURE), of_merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["replace", "offset"])
def test_embeddings_act_at_marked_rows_alone(mode: str) -> None:
    adapted = network()
    adapted.add_embeddings(PURE, ConceptEmbeddings(noise(2, 1, WIDTH), mode=mode))
    of_base, of_pure = streams(adapted, BASE, MARKED), streams(adapted, PURE, MARKED)
    marked = MARKED.marks > 0
    assert marked.sum() == 2
    assert torch.equal(of_pure[0][~marked], of_base[0][~marked])
    for block in range(2):
        own = adapted.embeddings[PURE].clip[block].expand(2, -1)
        if mode == "replace":
            assert torch.equal(of_pure[block][marked], own)
    if mode == "offset":
        assert torch.equal(of_pure[0][marked], of_base[0][marked] + adapted.embeddings[PURE].clip[0])
    assert not torch.equal(of_pure[1][~marked], of_base[1][~marked])  # the other rows have read it
    assert distance(v(adapted, PURE), v(adapted, BASE)) > 0.01
    assert torch.equal(v(adapted, PURE, PLAIN), v(adapted, BASE, PLAIN))


def test_an_offset_in_the_second_block_is_added_to_what_stands_there() -> None:
    adapted = network()
    adapted.add_embeddings(
        PURE, ConceptEmbeddings(torch.stack([torch.zeros(1, WIDTH), noise(1, WIDTH)]), mode="offset")
    )
    of_base, of_pure = streams(adapted, BASE, MARKED), streams(adapted, PURE, MARKED)
    marked = (MARKED.marks > 0)[..., None]
    assert torch.equal(of_pure[0], of_base[0])
    assert torch.equal(of_pure[1], of_base[1] + marked * adapted.embeddings[PURE].clip[1])


def test_an_offset_of_zeros_is_the_base_exactly() -> None:
    adapted = network()
    adapted.add_embeddings(PURE, ConceptEmbeddings(torch.zeros(2, 1, WIDTH), mode="offset"))
    assert torch.equal(v(adapted, PURE), v(adapted, BASE))


def test_samples_of_a_batch_are_marked_each_for_itself() -> None:
    adapted = network()
    adapted.add_concept(PURE, extractor())
    mixed = text("a [V] dog on the beach") + text("")
    both = v(adapted, PURE, mixed)
    torch.testing.assert_close(both[:1], v(adapted, PURE, MARKED)[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1:], v(adapted, PURE, text("", count=2))[1:], rtol=1e-4, atol=1e-4)


def test_each_slot_reads_its_own_embedding() -> None:
    clip, t5 = noise(2, 3, WIDTH, seed=1), noise(2, 2, WIDTH, seed=2)
    marks = torch.tensor([[0, 1, 2, 3, 4, 1 + T5_SLOT, 2 + T5_SLOT, 3 + T5_SLOT]])
    stream = noise(1, 8, WIDTH, seed=3)
    acted = LayerwiseEmbeddings(ConceptEmbeddings(clip, t5)).act(1, stream, marks)[0]
    rows = [stream[0, 0], clip[1, 0], clip[1, 1], clip[1, 2], clip[1, 0], t5[1, 0], t5[1, 1], t5[1, 0]]
    assert torch.equal(acted, torch.stack(rows))
    table = ConceptEmbeddings(clip, t5)
    for row, mark in zip(acted[1:], marks[0, 1:].tolist(), strict=True):
        assert torch.equal(row, table.slot(mark - 1)[1])
    without = LayerwiseEmbeddings(ConceptEmbeddings(clip)).act(1, stream, marks)[0]
    assert torch.equal(without[:5], acted[:5]) and torch.equal(without[5:], stream[0, 5:])  # there the class word stays


def test_the_stream_at_marks_is_the_base_streams_mean_for_each_slot() -> None:
    adapted, words = network(), text("a [V] dog in the snow", concept_set(tokens=2), count=2)
    adapted.add_concept(EXTRACTOR, extractor())
    held = stream_at_marks(adapted, X, T, words)
    assert held.keys() == {0, 1} and held[0].shape == (2, WIDTH)
    for block, stream in enumerate(streams(network(), BASE, words)):
        for slot in (0, 1):
            torch.testing.assert_close(held[slot][block], stream[words.marks == slot + 1].mean(0))


def test_routing_leaves_what_asks_for_a_gradient_as_it_was() -> None:
    adapted = network()
    adapted.add_concept(EXTRACTOR, extractor())
    add_lora(adapted, PURE)
    for model, (learns, others) in product((BASE, EXTRACTOR, PURE, BASE), ((PURE, EXTRACTOR), (EXTRACTOR, PURE))):
        for parameter in adapted.transformer.parameters():
            parameter.requires_grad_(False)
        for parameter in adapted.lora_parameters(learns):
            parameter.requires_grad_(True)
        v(adapted, model)
        assert all(p.requires_grad for p in adapted.lora_parameters(learns))
        assert not any(p.requires_grad for p in adapted.lora_parameters(others))
        assert sum(p.requires_grad for p in adapted.transformer.parameters()) == 30


def idle(adapted: AdaptedNetwork) -> set[int]:
    """The text stream's queries in the last block: SD3 has them, and drops what they yield."""
    layer = adapted.transformer.transformer_blocks[-1].attn.add_q_proj
    return {id(layer.lora_A[PURE].weight), id(layer.lora_B[PURE].weight)}


def test_gradients_of_stage_two_reach_the_pure_model_alone() -> None:
    """Also where everything else would take one: the guidance and the frozen base are outside the graph."""
    job, adapted = stage_two()
    extractors = adapted.lora_parameters(EXTRACTOR) + list(adapted.embeddings[EXTRACTOR].parameters())
    for parameter in extractors:
        parameter.requires_grad_(True)
    batch = draw_batch(job.data, SETTINGS, job.scaling, 1, "cpu")
    job.objective().terms(adapted, batch).loss.backward()
    assert all(float(p.grad.norm()) > 0 for p in learned(adapted) if id(p) not in idle(adapted))
    own = {id(p) for p in learned(adapted)}
    everything = [*adapted.transformer.parameters(), *extractors]
    assert all(p.grad is None for p in everything if id(p) not in own)


def gradients(checkpointing: bool, embeddings: bool, original: str) -> list[Tensor]:
    job, adapted = stage_two(original)
    if not embeddings:
        adapted.embeddings.clear()
    if checkpointing:
        adapted.transformer.enable_gradient_checkpointing()
    batch = draw_batch(job.data, SETTINGS, job.scaling, 1, "cpu")
    job.objective().terms(adapted, batch).loss.backward()
    return [p.grad for p in learned(adapted) if id(p) not in idle(adapted)]


@pytest.mark.parametrize("original", ["frozen base", "trainable"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_gradient_checkpointing_changes_no_gradient(embeddings: bool, original: str) -> None:
    pairs = zip(gradients(False, embeddings, original), gradients(True, embeddings, original), strict=True)
    for kept, recomputed in pairs:
        assert float(kept.norm()) > 0
        torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-5 * float(kept.abs().max()))


def test_a_model_added_after_the_base_was_asked_acts() -> None:
    adapted = network()
    add_lora(adapted, EXTRACTOR, seed=1)
    before = v(adapted, BASE)
    add_lora(adapted, PURE, seed=2)
    assert distance(v(adapted, PURE), before) > 0.1


def test_a_model_that_is_not_there_is_not_the_base() -> None:
    adapted = network()
    add_lora(adapted, EXTRACTOR)
    with pytest.raises(ValueError, match=r"no model pure here; there are \['extractor'\]"):
        v(adapted, PURE)


def test_a_half_precision_base_hears_the_exact_time() -> None:
    """bf16 has 8 bits: 713.1 of 1000 would be told as 716, and x_t is of 713.1."""
    adapted, heard = AdaptedNetwork(transformer().to(torch.bfloat16)), []
    adapted.transformer.time_text_embed.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    adapted.velocity(X, torch.tensor([0.7131, 0.333]), MARKED, BASE)
    torch.testing.assert_close(heard[0].float(), torch.tensor([713.1, 333.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("heads", "layers"), [(3, 2), (1, 2), (2, 1), (2, 3)])
def test_a_concept_of_another_models_size_is_refused(heads: int, layers: int) -> None:
    with pytest.raises(ValueError, match="made for another model|embeddings are for 2 blocks of width 128"):
        network(heads, layers).add_concept(EXTRACTOR, extractor())


def test_the_refusal_names_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"to_q is \(192, 192\) here, \(128, 128\) in the concept"):
        network(heads=3).add_concept(EXTRACTOR, replace(extractor(), embeddings=None))
    with pytest.raises(ValueError, match=r"for 2 blocks of width 128; this model has 2 of width 192"):
        network(heads=3).add_concept(EXTRACTOR, replace(extractor(), lora=None))
    with pytest.raises(ValueError, match=r"this one has no transformer_blocks\.\d\."):
        network(layers=1).add_concept(EXTRACTOR, extractor())


def test_a_refused_concept_leaves_the_network_as_it_was() -> None:
    adapted = network(heads=3)
    for _ in range(2):
        with pytest.raises(ValueError, match="made for another model"):
            adapted.add_concept(EXTRACTOR, extractor())
    assert torch.equal(v(adapted, BASE), v(network(heads=3), BASE))
