"""The methods on a tiny real transformer: anchors, DOP, prior preservation, the merged stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import (
    BASE_ID,
    CHANNELS,
    FEW,
    SCALING,
    SETTINGS,
    SIDE,
    asked,
    batch_of,
    concept_set,
    network,
    pure_job,
    run,
    same,
    strengthen,
    transformer,
)

from purecc.batches import draw_batch
from purecc.flow import picture_from_velocity
from purecc.frozen import store
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.settings import METHODS, PureSettings
from purecc.stages import PureJob
from purecc.terms import AnchorTerm, Objective, Velocities
from purecc.training import freeze_all_but, learning

# Anchors, DOP, prior preservation


@pytest.mark.parametrize("method", ["PureCC", "LoRA", "LoRA + DOP"])
def test_anchors_are_squared_distances_to_the_base_for_texts_without_the_concept(method: str) -> None:
    pure = PureSettings(method, base_anchor=0.5, null_anchor=3.0, preservation_weight=0.25, eta=2.0)
    _, _, terms, velocity = asked(pure)
    base, null = ((velocity(PURE, which) - velocity(BASE, which)).square().mean() for which in ("base", "null"))
    measured = terms.measured
    torch.testing.assert_close(measured["base_anchor"].detach(), base, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured["null_anchor"].detach(), null, rtol=1e-5, atol=1e-6)
    weight = 0.75 if method == "LoRA + DOP" else 0.5
    expected = measured["concept_loss"] + weight * base + 3 * null + 2 * measured.get("pure_loss", torch.zeros(()))
    torch.testing.assert_close(terms.loss.detach(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_anchors_gradients_hold_the_model_and_leave_the_base() -> None:
    job, batch, terms, _ = asked(PureSettings("LoRA + DOP"))
    velocities = Velocities(job.network, batch)
    anchor = AnchorTerm("base", 1.0)(velocities).loss
    gradient = torch.autograd.grad(anchor, job.network.lora_parameters(PURE), allow_unused=True)
    assert sum(float(g.norm()) > 0 for g in gradient if g is not None) > 10


@pytest.mark.parametrize("method", METHODS)
def test_preservation_costs_nothing_at_step_0(method: str) -> None:
    """A fresh LoRA is the base, and texts without the trigger hear no embedding."""
    pure = PureSettings(method, base_anchor=1.0, null_anchor=1.0, **FEW)
    job = pure_job(Path("unused"), pure)
    job.prepare()
    measured = Objective((PURE,), (AnchorTerm("base", 1.0), AnchorTerm("null", 1.0))).terms(
        job.network, draw_batch(job.data, SETTINGS, SCALING, 1, "cpu")
    )
    assert measured.loss == 0


def test_dop_is_a_plain_lora_with_a_base_anchor_step_for_step(tmp_path: Path, finished) -> None:
    anchored = pure_job(tmp_path, PureSettings("LoRA", base_anchor=1.0))
    run(anchored)
    assert same(anchored.concept, finished("LoRA + DOP").concept)
    assert not same(anchored.concept, finished("LoRA").concept)


def test_preservation_of_weight_0_is_a_plain_lora_step_for_step(tmp_path: Path, finished) -> None:
    for method in ("LoRA + prior preservation", "LoRA + DOP"):
        job = pure_job(tmp_path, PureSettings(method, preservation_weight=0.0, **FEW))
        run(job)
        assert same(job.concept, finished("LoRA").concept), method


def test_the_prior_is_flow_matching_on_the_class_pictures(tmp_path: Path) -> None:
    pure = PureSettings("LoRA + prior preservation", preservation_weight=2.0, **FEW)
    job = pure_job(tmp_path, pure)
    job.prepare()
    strengthen(job.network, PURE, seed=2)
    batch = batch_of(job)
    prior, terms = batch.prior, job.objective().terms(job.network, batch)
    assert not prior.text.marks.any() and torch.equal(prior.text.rows[0], job.data.encoded["a dog"].rows)
    drawn = job.class_pictures().latents[CHANNELS, SIDE, SIDE]
    for picture in picture_from_velocity(prior.x_t, prior.v_true, prior.t):
        assert float((drawn - picture).abs().flatten(1).amax(1).min()) < 1e-4
    with torch.no_grad():
        v = job.network.velocity(prior.x_t, prior.t, prior.text, PURE)
        expected = (v - prior.v_true).square().mean()
    torch.testing.assert_close(terms.measured["prior_loss"].detach(), expected, rtol=1e-5, atol=1e-6)
    total = terms.measured["concept_loss"] + 2 * expected
    torch.testing.assert_close(terms.loss.detach(), total.detach(), rtol=1e-5, atol=1e-6)


# The merged stage


def test_the_merged_stage_trains_both_and_theta1_as_stage_one_does(finished) -> None:
    """theta1 learns by its own L_CC alone: bit for bit as in a stage of its own. What it guides is another matter."""
    job = finished("merged stage")
    theta1 = job.network.lora_weights(EXTRACTOR, SETTINGS.alpha).matrices
    of_stage_one = finished("extractor").concept
    assert all(torch.equal(theta1[n][i], of_stage_one.lora.matrices[n][i]) for n in theta1 for i in (0, 1))
    assert torch.equal(job.network.embeddings[EXTRACTOR].clip, of_stage_one.embeddings.clip)
    theta2 = job.concept.lora.matrices
    assert all(theta2[n][1].any() for n in theta2 if "blocks.1.attn.add_q" not in n)  # idle there
    assert not same(job.concept, of_stage_one) and not same(job.concept, finished("PureCC").concept)
    records = job.run.records()
    assert records[0].extractor_loss == records[0].concept_loss  # the same start
    assert [r.extractor_loss for r in records] == [r.concept_loss for r in finished("extractor").run.records()]


def test_the_merged_stage_with_eta_0_is_stage_one_twice(tmp_path: Path, finished) -> None:
    job = pure_job(tmp_path, PureSettings("merged stage", eta=0.0))
    run(job)
    assert same(job.concept, finished("extractor").concept)


def test_the_merged_stage_leaves_a_given_extractor_aside(tmp_path: Path) -> None:
    job = pure_job(tmp_path, PureSettings("merged stage"))
    alone = PureJob(network(), concept_set(), SETTINGS, SCALING, tmp_path, BASE_ID, PureSettings("merged stage"), None)
    assert job.extractor is None and job.run.folder == alone.run.folder


def test_checkpointing_computes_each_models_blocks_again_as_they_were() -> None:
    """Two models in one graph, and the base asked in between."""
    found = []
    for checkpointing in (False, True):
        job = pure_job(Path("unused"), PureSettings("merged stage", base_anchor=1.0, original="trainable"))
        job.prepare()
        strengthen(job.network, PURE, seed=2), strengthen(job.network, EXTRACTOR, seed=3)
        job.network.checkpoint_activations(checkpointing)
        parameters = [p for model in (EXTRACTOR, PURE) for p in learning(job.network, model).all]
        freeze_all_but(job.network, parameters)
        job.objective().terms(job.network, batch_of(job)).loss.backward()
        found.append([p.grad for p in parameters])
    for kept, again in zip(*found, strict=True):
        assert (kept is None) == (again is None)
        if kept is not None:
            torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-5 * float(kept.abs().max()))


def test_a_base_in_fewer_bytes_draws_its_own_class_pictures(tmp_path: Path) -> None:
    drawn = {}
    for storage in ("whole", "float8"):
        adapted = network()
        if storage != "whole":
            one = transformer()
            store(one, storage)
            adapted = AdaptedNetwork(one)
        settings = replace(SETTINGS, frozen_weights=storage)
        pure = PureSettings(method="LoRA + prior preservation", **FEW)
        job = PureJob(adapted, concept_set(), settings, SCALING, tmp_path, BASE_ID, pure, None)
        drawn[storage] = job.class_pictures().latents[CHANNELS, SIDE, SIDE]
    assert not torch.equal(drawn["whole"], drawn["float8"])


@pytest.mark.parametrize(("dtype", "values"), [(torch.float8_e4m3fn, "rounded"), (torch.bfloat16, "whole")])
def test_a_base_that_was_rounded_or_computes_otherwise_draws_its_own_class_pictures(
    tmp_path: Path, dtype: torch.dtype, values: str
) -> None:
    drawn, rounded = [], transformer().to(dtype)
    for one, told in (
        (transformer(), "whole"),
        (rounded.to(torch.float32) if values == "rounded" else rounded, values),
    ):
        pure = PureSettings(method="LoRA + prior preservation", **FEW)
        job = PureJob(AdaptedNetwork(one), concept_set(), SETTINGS, SCALING, tmp_path, BASE_ID, pure, None, told)
        drawn.append(job.class_pictures().latents[CHANNELS, SIDE, SIDE])
    assert not torch.equal(*drawn)
