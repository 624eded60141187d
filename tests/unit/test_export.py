"""Plain LoRA files out of concepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny import CHANNELS, SIDE, network, noise, strengthen, text, transformer

from purecc.concept import Concept, ConceptEmbeddings, LoraWeights, load_concept
from purecc.export import embedding_file, plain_lora, require_exportable, trigger_phrase, what_is_lost
from purecc.files import load_tensors, save_tensors
from purecc.network import BASE
from purecc.targets import TARGETS

LORA = LoraWeights({"transformer_blocks.0.attn.to_q": (torch.ones(2, 8), torch.ones(8, 2))}, alpha=3.0)
SETTINGS = {"steps": 400, "learning_rate": 1e-4, "batch_size": 2, "seed": 7}


def concept(**changed) -> Concept:
    values = {
        "trigger": "[V]", "class_word": "dog", "kind": "instance", "role": "concept", "base": "abc", "lora": LORA,
        "embeddings": ConceptEmbeddings(torch.ones(4, 2, 8)), "settings": SETTINGS,
    }  # fmt: skip
    return Concept(**(values | changed))


def test_only_the_lora_is_written_with_its_scale_in_b() -> None:
    tensors, metadata = plain_lora(concept())
    module = "transformer.transformer_blocks.0.attn.to_q"
    assert set(tensors) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
    assert torch.equal(tensors[f"{module}.lora_B.weight"], torch.full((8, 2), 1.5))  # alpha 3, rank 2
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2")
    assert (metadata["ss_max_train_steps"], metadata["ss_learning_rate"], metadata["ss_seed"]) == ("400", "0.0001", "7")
    assert (
        metadata["modelspec.trigger_phrase"] == "dog dog dog"
    )  # two tokens in the trigger's place, and the class word
    assert {name for name in metadata if name.startswith("purecc.")} == {"purecc.role", "purecc.kind", "purecc.base"}


def test_diffusers_loads_the_file_and_draws_what_the_lora_does(tmp_path: Path) -> None:
    adapted = network()
    adapted.add_new("lora", 2, 5.0, TARGETS["attention"], seed=0)
    strengthen(adapted, "lora")
    tensors, metadata = plain_lora(concept(lora=adapted.lora_weights("lora", 5.0)))
    save_tensors(tmp_path / "dog.safetensors", tensors, metadata)
    pipeline = StableDiffusion3Pipeline(transformer(), None, None, *[None] * 6)
    pipeline.load_lora_weights(tmp_path, weight_name="dog.safetensors")
    x, t, words = noise(2, CHANNELS, SIDE, SIDE), torch.tensor([0.3, 0.8]), text("a dog", count=2)
    with torch.no_grad():
        theirs = pipeline.transformer(x, words.rows, words.pooled, 1000 * t).sample
        ours, base = (adapted.velocity(x, t, words, model) for model in ("lora", BASE))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert (ours - base).norm() > 0.05 * base.norm()


def test_the_file_says_what_stays_behind() -> None:
    _, metadata = plain_lora(concept(gate="rows"))
    for word in ('"[V]"', "embeddings", "gate", "text rows", "every prompt"):
        assert word in metadata["modelspec.description"]
    assert not any("embeddings" in sentence for sentence in what_is_lost(concept(embeddings=None)))
    assert trigger_phrase(concept(kind="style", class_word="style", embeddings=None)) == "style style"


def test_a_concept_without_a_lora_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match="there is nothing to export"):
        require_exportable(concept(lora=None))
    require_exportable(concept())


def test_input_embeddings_go_into_a_file_of_their_own() -> None:
    tokens = {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)}
    alone = concept(lora=None, embeddings=None, token_embeddings=tokens)
    require_exportable(alone)
    tensors, metadata = embedding_file(alone, "my_dog")
    assert tensors.keys() == {"clip_l", "clip_g"} and metadata["modelspec.trigger_phrase"] == "embedding:my_dog dog"
    assert embedding_file(alone, "my_dog", torch.ones(1, 16))[0]["t5xxl"].shape == (1, 16)
    assert len(what_is_lost(alone, "my_dog")) == 1, "nothing but the trigger"
    assert any("layer-wise" in sentence for sentence in what_is_lost(concept(token_embeddings=tokens), "my_dog"))
    assert (
        plain_lora(concept(token_embeddings=tokens), "my_dog")[1]["modelspec.trigger_phrase"] == "embedding:my_dog dog"
    )


def test_the_file_is_a_plain_lora_and_no_concept(tmp_path: Path) -> None:
    path = tmp_path / "a dog.safetensors"
    save_tensors(path, *plain_lora(replace(concept(), gate="conditioning")))
    assert load_tensors(path)[1]["modelspec.title"] == "[V] dog"
    with pytest.raises(ValueError, match="plain LoRA goes into the stock"):
        load_concept(path)
