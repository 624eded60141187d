"""Learned input embeddings in the CLIPs: read as the class word at first, learnt through the encoders, kept in the file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import noise, run, same

from purecc.concept import load_concept, save_concept
from purecc.concept_set import ConceptSet, build_concept_set
from purecc.encoding import PocketTextEncoder, TextBatch
from purecc.flow import LatentScaling
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.pocket import model as pocket_model
from purecc.prompts import Placeholder
from purecc.settings import PureSettings, TrainSettings
from purecc.stages import ExtractorJob, PureJob
from purecc.token_embeddings import PocketTokenEncoder, TokenEmbeddings

PLACEHOLDER = Placeholder(1, "dog")
ALONE = TrainSettings(
    steps=3, batch_size=1, rank=0, alpha=1.0, embeddings="none", token_embeddings=True, embedding_rate=5e-2, checkpoint_every=2
)  # fmt: skip


@cache
def pocket():
    return pocket_model.load_pocket()


@cache
def data() -> ConceptSet:
    return build_concept_set(
        [noise(64, 64, 3, seed=i).sigmoid() for i in range(2)],
        ["a [V] dog on the beach", "a [V] dog"],
        trigger="[V]", class_word="dog", kind="instance", tokens=1,
        encode_picture=lambda pixels: noise(16, 8, 8, seed=int(pixels.sum())),
        text_encoder=lambda trigger, placeholder: PocketTextEncoder(pocket(), trigger, placeholder),
    )  # fmt: skip


def network() -> AdaptedNetwork:
    adapted = AdaptedNetwork(pocket_model.load_pocket().transformer)
    adapted.token_encoder = PocketTokenEncoder(pocket(), "[V]", PLACEHOLDER)
    return adapted


def extractor(root: Path, **changed) -> ExtractorJob:
    return ExtractorJob(network(), data(), replace(ALONE, **changed), LatentScaling(1.0, 0.0), root, "base")


def texts(*which: str) -> TextBatch:
    return TextBatch.of([data().encoded[text] for text in which])


def test_they_begin_as_the_class_word() -> None:
    embeddings = TokenEmbeddings(network().token_encoder.initial(), network().token_encoder)
    given = texts("a [V] dog on the beach", "a dog on the beach")
    read = embeddings.read(given)
    torch.testing.assert_close(read.rows, given.rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(read.pooled, given.pooled, atol=1e-5, rtol=0)


def test_they_move_the_triggers_row_and_those_after_it_and_no_other_text() -> None:
    start = network().token_encoder.initial()
    far = {name: v + noise(*v.shape) for name, v in start.items()}
    embeddings = TokenEmbeddings(far, network().token_encoder)
    given = texts("a [V] dog on the beach", "a dog on the beach")
    read = embeddings.read(given)
    first = int((given.marks[0] > 0).nonzero()[0])
    moved = (read.rows[0] - given.rows[0]).abs().amax(1)
    last = first + 4  # "... on the beach"
    assert moved[:first].max() < 1e-4 < 0.01 < moved[first:last].min()
    assert torch.equal(read.rows[1], given.rows[1]) and torch.equal(read.pooled[1], given.pooled[1])
    assert (read.pooled[0] - given.pooled[0]).abs().max() > 0.01
    half = embeddings.read(given, 0.5)
    halfway = {name: (v + far[name]) / 2 for name, v in start.items()}
    between = TokenEmbeddings(halfway, network().token_encoder).read(given)
    torch.testing.assert_close(half.rows, between.rows, atol=1e-5, rtol=0)
    assert embeddings.read(given, 0.0) is given


def test_they_learn_alone_and_leave_texts_without_the_trigger_exactly(tmp_path: Path) -> None:
    job = extractor(tmp_path)
    run(job)
    start = network().token_encoder.initial()
    learned = job.concept.token_embeddings
    assert learned.keys() == {"clip_l", "clip_g"}
    assert all((learned[name] - start[name]).abs().min() > 1e-4 for name in learned), "the gradient reaches both"
    assert job.concept.summary["drift_base"] == job.concept.summary["drift_null"] == 0
    assert job.concept.summary["embedding_gap"] < 1e-4


def test_the_file_keeps_them_and_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = extractor(tmp_path / "whole")
    run(whole)
    save_concept(whole.concept, tmp_path / "c.safetensors")
    back = load_concept(tmp_path / "c.safetensors")
    assert same(back, whole.concept) and back.uid == whole.concept.uid and back.tokens == 1
    stopped = iter(extractor(tmp_path / "parts"))
    next(stopped)
    stopped.close()
    resumed = extractor(tmp_path / "parts")
    run(resumed)
    assert same(resumed.concept, whole.concept)


def test_stage_two_goes_on_from_the_extractors_beside_layer_wise_ones(tmp_path: Path) -> None:
    first = extractor(tmp_path, embeddings="offset", rank=2)
    run(first)
    second = PureJob(
        network(), data(), replace(first.settings, steps=1, embedding_rate=1e-9), first.scaling, tmp_path, "base",
        PureSettings(), first.concept,
    )  # fmt: skip
    records = run(second)
    assert records[0].scale is not None
    for name, vectors in second.concept.token_embeddings.items():
        torch.testing.assert_close(vectors, first.concept.token_embeddings[name], atol=1e-6, rtol=0)
    assert torch.equal(second.network.tokens[EXTRACTOR].vectors["clip_l"], first.concept.token_embeddings["clip_l"])


def test_embeddings_that_are_not_to_learn_stay_in_both_places(tmp_path: Path) -> None:
    first = extractor(tmp_path, embeddings="offset", rank=2)
    run(first)
    frozen = PureSettings(train_embeddings=False)
    second = PureJob(network(), data(), first.settings, first.scaling, tmp_path, "base", frozen, first.concept)
    run(second)
    assert all(torch.equal(v, first.concept.token_embeddings[n]) for n, v in second.concept.token_embeddings.items())
    assert torch.equal(second.concept.embeddings.clip, first.concept.embeddings.clip)
    assert any(b.any() for _, b in second.concept.lora.matrices.values()), "the LoRA learns"


def test_two_models_in_one_forward_read_their_own() -> None:
    adapted, models = network(), [EXTRACTOR, BASE, PURE]
    for seed, name in enumerate((EXTRACTOR, PURE)):
        start = adapted.token_encoder.initial()
        adapted.add_tokens(name, {key: v + noise(*v.shape, seed=seed) for key, v in start.items()})
    words, x, t = (
        texts(*["a [V] dog on the beach"] * 3),
        noise(1, 16, 8, 8, seed=3).expand(3, -1, -1, -1),
        torch.full((3,), 0.5),
    )
    with torch.no_grad():
        together = adapted.velocity(x, t, words, models)
        apart = [adapted.velocity(x, t, words, model)[i] for i, model in enumerate(models)]
    torch.testing.assert_close(together, torch.stack(apart), atol=1e-5, rtol=1e-5)
    assert min(float((together[i] - together[j]).abs().max()) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.01


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="modulation_table"):
        replace(ALONE, modulation_table=True)
    adapted = AdaptedNetwork(pocket_model.load_pocket().transformer)
    with pytest.raises(ValueError, match="not at hand"):
        adapted.add_tokens(EXTRACTOR)
    with pytest.raises(ValueError, match="other text encoders"):
        network().add_tokens(EXTRACTOR, {"clip_l": torch.zeros(1, 4)})
