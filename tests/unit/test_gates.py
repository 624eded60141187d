"""Gates: without the trigger a model is the base bit for bit, and in a mixed batch each sample is itself alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch
from tiny import CHANNELS, SETTINGS, SIDE, extractor, network, noise, pure_job, run, strengthen, text, transformer
from torch import Tensor

from purecc.concept import load_concept, save_concept
from purecc.encoding import TextBatch
from purecc.files import load_tensors
from purecc.lora import read_together
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.sampling import guided_velocity
from purecc.settings import PureSettings
from purecc.targets import TARGETS, TOGETHER, in_text_stream

X, T = noise(2, CHANNELS, SIDE, SIDE, seed=4), torch.tensor([0.3, 0.8])
MARKED, PLAIN = text("a [V] dog on the beach", count=2), text("a dog on the beach", count=2)
MIXED = text("a [V] dog on the beach") + text("")
GATES = ["picture", "conditioning", "rows"]


def gated(gate: str, dtype: torch.dtype = torch.float32, targets: str = "attention, attn2 and mlp") -> AdaptedNetwork:
    """A strong LoRA and strong embeddings behind a gate."""
    adapted = AdaptedNetwork(transformer().to(dtype))
    adapted.add_embeddings(PURE, extractor().embeddings)
    adapted.add_new(PURE, 2, 8.0, TARGETS[targets], seed=0)
    strengthen(adapted, PURE, seed=3)
    adapted.gates[PURE] = gate
    return adapted


def v(adapted: AdaptedNetwork, model: str | None | list[str | None], words: TextBatch, **strengths: float) -> Tensor:
    with torch.no_grad():
        return adapted.velocity(X, T, words, model, **strengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", GATES)
def test_without_the_trigger_it_is_the_base_bit_for_bit(gate: str, dtype: torch.dtype) -> None:
    adapted = gated(gate, dtype)
    assert torch.equal(v(adapted, PURE, PLAIN), v(adapted, BASE, PLAIN))
    mixed, of_base = v(adapted, PURE, MIXED), v(adapted, BASE, MIXED)
    assert torch.equal(mixed[1], of_base[1])  # in a batch beside one with the trigger, too
    assert float((mixed[0] - of_base[0]).norm() / of_base[0].norm()) > 0.05
    without_gate = v(gated("off", dtype), PURE, MIXED)
    assert not torch.equal(without_gate[1], of_base[1])


@pytest.mark.parametrize("gate", ["off", *GATES])
def test_samples_that_are_said_to_be_the_bases_are_bit_for_bit(gate: str) -> None:
    """Even where the text holds the trigger, so that no gate would."""
    adapted = gated(gate)
    found = v(adapted, [BASE, PURE], MARKED)
    assert torch.equal(found[0], v(adapted, BASE, MARKED)[0])
    torch.testing.assert_close(found[1], v(adapted, PURE, MARKED)[1])
    assert torch.equal(v(adapted, [BASE, BASE], MARKED), v(adapted, BASE, MARKED))


@pytest.mark.parametrize("gate", ["off", *GATES])
@pytest.mark.parametrize("other", ["off", "conditioning"])
def test_samples_of_two_models_share_a_forward(gate: str, other: str) -> None:
    """Each is as its own model has it alone: LoRA, embeddings and gate."""
    adapted = gated(gate)
    start = extractor().embeddings
    adapted.add_embeddings(EXTRACTOR, replace(start, clip=start.clip + noise(*start.clip.shape, seed=7)))
    adapted.add_new(EXTRACTOR, 4, 2.0, TARGETS["attention"], seed=1)
    strengthen(adapted, EXTRACTOR, seed=5)
    adapted.gates[EXTRACTOR] = other
    # joined, as the terms do: it says whose pictures show the concept
    marked = text("a [V] dog on the beach") + text("a [V] dog on the beach")
    alone = {model: v(adapted, model, marked) for model in (BASE, EXTRACTOR, PURE)}
    for models in ([PURE, EXTRACTOR], [EXTRACTOR, PURE], [PURE, BASE]):
        found = v(adapted, models, marked)
        torch.testing.assert_close(found, torch.stack([alone[m][i] for i, m in enumerate(models)]))
        assert not torch.allclose(found, alone[PURE], atol=1e-2)


def test_a_list_of_models_names_one_for_each_sample() -> None:
    with pytest.raises(ValueError, match="1 models were named for 2 samples"):
        v(gated("off"), [PURE], MARKED)


def test_a_lora_on_adaln_acts_in_its_own_samples() -> None:
    """Its input has no rows."""
    adapted = gated("off")
    adapted.add_new(EXTRACTOR, 2, 8.0, ("norm1.linear",), seed=0)
    strengthen(adapted, EXTRACTOR, seed=3)
    found = v(adapted, [EXTRACTOR, BASE], MARKED)
    torch.testing.assert_close(found[0], v(adapted, EXTRACTOR, MARKED)[0])
    assert torch.equal(found[1], v(adapted, BASE, MARKED)[1])
    assert not torch.allclose(found[0], v(adapted, BASE, MARKED)[0], atol=1e-2)


def test_in_a_picture_with_the_trigger_the_negative_has_the_lora_too() -> None:
    adapted, ungated = gated("picture"), gated("off")
    null = text("", count=2)
    negative = null.as_negative_of(MIXED)  # of a picture with the trigger and of one without
    found, everywhere, base = v(adapted, PURE, negative), v(ungated, PURE, null), v(adapted, BASE, null)
    torch.testing.assert_close(found[0], everywhere[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1], base[1])
    assert not torch.allclose(found[0], base[0], atol=1e-2)
    both = negative + MIXED
    assert both.shows.tolist() == [True, False, True, False]


def test_guided_sampling_with_the_picture_gate_is_the_ungated_or_the_base() -> None:
    adapted, ungated = gated("picture"), gated("off")
    null = text("", count=2)
    x_t, t = X, T
    with torch.no_grad():
        found = guided_velocity(adapted, MIXED, null, 4.0, PURE)(x_t, t)
        off = guided_velocity(ungated, MIXED, null, 4.0, PURE)(x_t, t)
        base = guided_velocity(adapted, MIXED, null, 4.0, BASE)(x_t, t)
    torch.testing.assert_close(found[0], off[0], rtol=1e-4, atol=1e-3)
    assert torch.equal(found[1], base[1])


@pytest.mark.parametrize("gate", GATES)
def test_samples_of_a_mixed_batch_are_each_for_itself(gate: str) -> None:
    adapted = gated(gate)
    mixed = v(adapted, PURE, MIXED)
    torch.testing.assert_close(mixed[:1], v(adapted, PURE, MARKED)[:1], rtol=1e-4, atol=1e-4)
    swapped = v(adapted, PURE, text("") + text("a [V] dog on the beach"))
    assert torch.equal(swapped[0], v(adapted, BASE, text("", count=2))[0])


@pytest.mark.parametrize("gate", GATES)
def test_another_gate_for_a_while(gate: str) -> None:
    adapted = gated("off")
    with pytest.raises(KeyError), adapted.gated(PURE, gate):
        assert torch.equal(v(adapted, PURE, MIXED), v(gated(gate), PURE, MIXED))
        raise KeyError
    assert torch.equal(v(adapted, PURE, MIXED), v(gated("off"), PURE, MIXED))


def test_with_the_trigger_in_every_text_the_conditioning_gate_is_none() -> None:
    assert torch.equal(v(gated("conditioning"), PURE, MARKED), v(gated("off"), PURE, MARKED))


def outputs(adapted: AdaptedNetwork, model: str | None) -> dict[str, Tensor]:
    """What each Linear that carries the LoRA gives in block 0, whose inputs are the same for all but the embeddings."""
    seen: dict[str, Tensor] = {}

    def look(x, linears, module, *acting):
        found, (attention, _, first) = read_together(x, linears, module, *acting), module.rpartition(".")
        for own in TOGETHER:
            if attention == "transformer_blocks.0.attn" and first in own:
                seen.update({f"{attention}.{name}": output for name, output in zip(own, found, strict=True)})
        return found

    with mock.patch("purecc.attention.read_together", look):
        v(adapted, model, MIXED)
    assert len(seen) == 6
    return seen


def test_rows_changes_the_marked_rows_of_the_text_stream_alone() -> None:
    adapted = gated("rows")
    adapted.embeddings.clear()
    of_pure, of_base = outputs(adapted, PURE), outputs(adapted, BASE)
    marked = MIXED.marks > 0
    assert marked.sum() == 1 and {in_text_stream(name) for name in of_pure} == {True, False}
    for name, output in of_pure.items():
        if in_text_stream(name):
            assert torch.equal(output[~marked], of_base[name][~marked])
            assert float((output[marked] - of_base[name][marked]).norm()) > 0.1
        else:
            assert torch.equal(output, of_base[name])


def test_rows_reaches_the_mlp_of_the_text_stream_alone() -> None:
    """Which a hook changes, Linear by Linear."""
    adapted, seen = gated("rows"), {}
    adapted.embeddings.clear()
    block = adapted.transformer.transformer_blocks[0]
    with torch.no_grad():
        for name, layer in ((name, block.get_submodule(name)) for name in ("ff.net.0.proj", "ff_context.net.0.proj")):
            layer.register_forward_hook(lambda module, args, out, name=name: seen.update({name: (args[0], out)}))
        v(adapted, PURE, MIXED)
        for name, (x, out) in seen.items():
            apart = (out - block.get_submodule(name).base_layer(x)).abs().amax(-1)
            assert bool((apart > 1e-3).any()) == (name == "ff_context.net.0.proj")
            if name == "ff_context.net.0.proj":
                assert torch.equal(apart > 1e-3, MIXED.marks > 0)


@pytest.mark.parametrize("gate", GATES)
def test_a_mixed_batch_gives_the_gradient_of_its_marked_samples(gate: str) -> None:
    found = []
    for words, samples in ((MIXED, slice(None)), (MARKED, slice(0, 1))):
        adapted = gated(gate)
        for parameter in adapted.lora_parameters(PURE):
            parameter.requires_grad_(True)
        adapted.velocity(X, T, words, PURE)[samples].square().sum().backward()
        found.append([p.grad for p in adapted.lora_parameters(PURE) if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    for mixed, alone in zip(*found, strict=True):
        torch.testing.assert_close(mixed, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()) + 1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_a_gated_training_leaves_prompts_without_the_trigger_exactly(gate: str, tmp_path: Path) -> None:
    job = pure_job(tmp_path, PureSettings(base_anchor=1.0), replace(SETTINGS, steps=2, gate=gate))
    records = run(job)
    assert job.concept.summary["drift_base"] == job.concept.summary["drift_null"] == 0
    assert all(record.base_anchor < 1e-9 for record in records)  # the same but for the size of the forward's batch
    assert gate != "rows" or all(in_text_stream(name) for name in job.concept.lora.matrices)
    assert any(b.any() for _, b in job.concept.lora.matrices.values())
    loaded = load_concept(job.run.result)
    assert loaded.gate == gate
    adapted = network()
    adapted.add_concept(PURE, loaded)  # the gate goes with the file
    assert torch.equal(v(adapted, PURE, PLAIN), v(adapted, BASE, PLAIN))
    assert not torch.equal(v(adapted, PURE, MARKED, embedding_strength=0), v(adapted, BASE, MARKED))


def test_a_file_without_a_gate_is_ungated_and_one_of_a_newer_kind_refused(tmp_path: Path) -> None:
    save_concept(replace(extractor(), gate="rows"), tmp_path / "new.safetensors")
    tensors, metadata = load_tensors(tmp_path / "new.safetensors")
    assert metadata.pop("purecc.gate") == '"rows"'
    safetensors.torch.save_file(tensors, tmp_path / "old.safetensors", metadata)
    assert load_concept(tmp_path / "old.safetensors").gate == "off"
    safetensors.torch.save_file(tensors, tmp_path / "newer.safetensors", metadata | {"purecc.gate": '"time"'})
    with pytest.raises(ValueError, match='has the gate "time"; this version knows off, picture, conditioning, rows'):
        load_concept(tmp_path / "newer.safetensors")


# Strengths


def test_strength_multiplies_the_loras_change() -> None:
    """As a LoRA of so much larger alpha; 0 and 0 are the base, whose text reads the class word."""
    concept = replace(extractor(), embeddings=None)
    for strength in (-0.5, 0.3, 1.7):
        one, scaled = network(), network()
        one.add_concept(PURE, concept)
        lora = replace(concept.lora, alpha=strength * concept.lora.alpha)
        scaled.add_concept(PURE, replace(concept, lora=lora))
        torch.testing.assert_close(
            v(one, PURE, MARKED, strength=strength), v(scaled, PURE, MARKED), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(v(one, PURE, MARKED), v_of(concept))  # the strength is that forward's alone
    assert torch.equal(v(one, PURE, MARKED, strength=0), v(one, BASE, MARKED))


def v_of(concept) -> Tensor:
    fresh = network()
    fresh.add_concept(PURE, concept)
    return v(fresh, PURE, MARKED)


@pytest.mark.parametrize("gate", GATES)
def test_strength_goes_through_a_gate(gate: str) -> None:
    adapted, scaled = gated(gate), gated(gate)
    for matrix in scaled.lora_parameters(PURE)[1::2]:  # B
        matrix.data.mul_(0.6)
    torch.testing.assert_close(
        v(adapted, PURE, MIXED, strength=0.6), v(scaled, PURE, MIXED), rtol=1e-4, atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["replace", "offset"])
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, 1.5])
def test_embedding_strength_blends_as_the_host_does(mode: str, strength: float) -> None:
    """replace: held + strength (Y - held); offset: held + strength Y; in float64."""
    adapted = network()
    adapted.add_embeddings(PURE, replace(extractor().embeddings, mode=mode))
    table = adapted.embeddings[PURE].double()
    stream, marks = noise(1, 4, 128, seed=3).double(), torch.tensor([[0, 1, 0, 0]])
    acted = table.act(1, stream, marks, strength)
    held, own = stream[0, 1], table.clip[1, 0]
    expected = held + strength * (own if mode == "offset" else own - held)
    torch.testing.assert_close(acted[0, 1], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(acted[0, [0, 2, 3]], stream[0, [0, 2, 3]])
    both_off = v(adapted, PURE, MARKED, embedding_strength=0.0)
    assert torch.equal(both_off, v(adapted, BASE, MARKED))
