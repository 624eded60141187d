"""The terms of the loss on a tiny real transformer: what the equations say, written once more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import (
    SETTINGS,
    SIDE,
    asked,
    batch_of,
    concept_set,
    learned,
    losses,
    pure_job,
    run,
    same,
    stage_two,
)
from torch import Tensor

from purecc.flow import mean_time
from purecc.network import BASE, EXTRACTOR, PURE
from purecc.objective import ORIGINALS, Original
from purecc.settings import PureSettings
from purecc.terms import pure_objective


def expected_terms(original: Original, fixed: float | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """L_CC, L_PureCC, lambda, and the gradient of their sum, from separate forwards of each model and text."""
    job, adapted = stage_two(original)
    batch = batch_of(job)
    ask = lambda words, model: adapted.velocity(batch.x_t, batch.t, words, model)  # noqa: E731
    with torch.no_grad():
        guidance = ask(batch.target, EXTRACTOR) - ask(batch.null, EXTRACTOR)
        of_base = ask(batch.base, BASE)
    v_original = of_base if original == "frozen base" else ask(batch.base, PURE)
    if original == "trainable, detached":
        v_original = v_original.detach()
    complete = ask(batch.complete, PURE)
    difference = complete - v_original
    scale = torch.stack([(d * g).sum() / (g * g).sum() for d, g in zip(difference.detach(), guidance, strict=True)])
    if fixed is not None:
        scale = torch.full_like(scale, fixed)
    off = torch.stack([d - s * g for d, s, g in zip(difference, scale, guidance, strict=True)])
    terms = {"concept_loss": (complete - batch.v_true).square().mean(), "pure_loss": off.square().mean()}
    loss = terms["concept_loss"] + job.pure.eta * terms["pure_loss"]
    terms |= {"scale": scale.mean(), "scale_spread": scale.std(correction=0)}
    return terms | {"loss": loss.detach()}, list(torch.autograd.grad(loss, learned(adapted), allow_unused=True))


@cache
def made_terms(original: Original, fixed: float | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    job, adapted = stage_two(original, fixed_scale=fixed)
    terms = job.objective().terms(adapted, batch_of(job))
    gradient = torch.autograd.grad(terms.loss, learned(adapted), allow_unused=True)
    return terms.measured | {"loss": terms.loss.detach()}, list(gradient)


def flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient if g is not None])


@pytest.mark.parametrize("fixed", [None, 3.0])
@pytest.mark.parametrize("original", ORIGINALS)
def test_the_loss_and_its_gradient_are_equations_8_to_15(original: Original, fixed: float | None) -> None:
    """Fails for a difference the wrong way round, base and complete swapped, an extractor without its LoRA."""
    (made, made_gradient), (expected, gradient) = made_terms(original, fixed), expected_terms(original, fixed)
    for name, value in expected.items():
        torch.testing.assert_close(made[name].detach(), value.detach(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(
        flat(made_gradient), flat(gradient), rtol=1e-3, atol=1e-4 * float(flat(gradient).abs().max())
    )


@pytest.mark.parametrize(
    ("settings", "frozen", "learning"),
    [
        ({"original": "frozen base", "base_anchor": 1.0, "null_anchor": 1.0}, [(4, EXTRACTOR)], [(3, PURE)]),
        ({"original": "frozen base"}, [(3, EXTRACTOR)], [(1, PURE)]),
        ({"original": "frozen base", "background_anchor": 1.0}, [(3, EXTRACTOR)], [(1, PURE)]),
        ({"original": "trainable, detached"}, [(3, EXTRACTOR, PURE)], [(1, PURE)]),
        ({"original": "trainable"}, [(2, EXTRACTOR)], [(2, PURE)]),
        ({"method": "LoRA + DOP"}, [(1,)], [(2, PURE)]),
        ({"method": "merged stage"}, [(3, EXTRACTOR)], [(1, EXTRACTOR), (1, PURE)]),
        ({"method": "LoRA"}, [], [(1, PURE)]),
        ({"eta": 0.0}, [], [(1, PURE)]),
        ({"eta": 0.0, "background_anchor": 1.0}, [(1,)], [(1, PURE)]),
    ],
)
def test_a_step_has_as_few_forwards_as_can_be(monkeypatch, settings, frozen, learning) -> None:
    """Without a graph all texts share one, whichever models read them; each model that learns has one of its own."""
    job, adapted = stage_two("frozen base")
    job.data = replace(job.data, masks=(torch.eye(SIDE),) * 2)
    batch, seen, ask = batch_of(job), {True: [], False: []}, adapted.velocity

    def velocity(x_t: Tensor, t: Tensor, text, models: list[str | None]) -> Tensor:
        seen[torch.is_grad_enabled()].append((len(t) // len(batch.t), *sorted(set(models) - {BASE})))
        return ask(x_t, t, text, models)

    monkeypatch.setattr(adapted, "velocity", velocity)
    pure_objective(PureSettings(**settings)).terms(adapted, batch)
    assert seen[False] == frozen and sorted(seen[True]) == learning
    seen[True].clear()
    adapted.transformer.enable_gradient_checkpointing()  # what is computed again is then one text's
    pure_objective(PureSettings(**settings)).terms(adapted, batch)
    adapted.transformer.disable_gradient_checkpointing()
    assert sorted(seen[True]) == [(1, *models) for count, *models in learning for _ in range(count)]


def test_the_three_sources_of_v_original_give_three_gradients() -> None:
    found = {original: flat(made_terms(original)[1]) for original in ORIGINALS}
    size = float(found["trainable"].norm())
    for a, b in (ORIGINALS[:2], ORIGINALS[1:], ORIGINALS[::2]):
        assert float((found[a] - found[b]).norm()) > 0.05 * size, f"{a} and {b} are alike"


def test_trainable_and_detached_agree_in_value_but_for_the_gradient() -> None:
    trainable, detached = made_terms("trainable")[0], made_terms("trainable, detached")[0]
    for name in ("loss", "pure_loss", "scale"):
        torch.testing.assert_close(trainable[name], detached[name], rtol=1e-5, atol=1e-6)
    assert abs(float((made_terms("frozen base")[0]["pure_loss"] - detached["pure_loss"]).detach())) > 1e-2


def test_lambda_follows_the_model_and_is_one_for_each_sample() -> None:
    job, adapted = stage_two()
    measured = [job.objective().terms(adapted, batch_of(job, step)).measured for step in (1, 2)]
    assert measured[0]["scale"] != measured[1]["scale"]
    assert all(float(m["scale_spread"]) > 1e-3 for m in measured)
    assert all(0 <= float(m["squared_cosine"]) <= 1 for m in measured)


def test_the_guidance_is_the_whole_extractors() -> None:
    """Not that of the base, of the embeddings alone, or of the LoRA alone."""
    job, adapted = stage_two()
    whole = job.objective().terms(adapted, batch_of(job)).measured["scale"]
    embeddings = adapted.embeddings.pop(EXTRACTOR)
    without_embeddings = job.objective().terms(adapted, batch_of(job)).measured["scale"]
    adapted.embeddings[EXTRACTOR] = embeddings
    with torch.no_grad():
        for parameter in adapted.lora_parameters(EXTRACTOR):
            parameter.zero_()
    without_lora = job.objective().terms(adapted, batch_of(job)).measured["scale"]
    assert abs(float(whole - without_embeddings)) > 1e-3 and abs(float(whole - without_lora)) > 1e-3


@pytest.mark.parametrize("original", ORIGINALS)
def test_with_eta_0_pure_learning_is_plain_lora_step_for_step(original: Original, tmp_path: Path, finished) -> None:
    pure, plain = pure_job(tmp_path, PureSettings(eta=0, original=original)), finished("LoRA")
    records = run(pure)
    assert losses(records) == losses(plain.run.records())
    assert same(pure.concept, plain.concept)
    assert all(record.pure_loss is None and record.scale is None for record in records)  # no guidance was computed


def test_with_eta_1_it_is_not(finished) -> None:
    of_pure, of_plain = (finished(name).run.records() for name in ("PureCC", "LoRA"))
    assert of_pure[0].concept_loss == of_plain[0].concept_loss and of_pure[-1].concept_loss != of_plain[-1].concept_loss
    assert not same(finished("PureCC").concept, finished("LoRA").concept)


# Targets, eta over time, lambda's settings, masks: one velocity at a time, by hand


@pytest.mark.parametrize(
    ("target", "with_concept", "without"),
    [
        ("null-relative", "target", "null"),
        ("class-relative", "target", "class_word"),
        ("in-context", "complete", "base"),
    ],
)
def test_the_guidance_is_the_difference_that_the_target_names(target: str, with_concept: str, without: str) -> None:
    _, batch, terms, velocity = asked(PureSettings(target=target))
    guidance = velocity(EXTRACTOR, with_concept) - velocity(EXTRACTOR, without)
    learnt = velocity(PURE, "complete") - velocity(BASE, "base")
    scale = torch.stack([(r * g).sum() / (g * g).sum() for r, g in zip(learnt, guidance, strict=True)])
    torch.testing.assert_close(terms.measured["scale"], scale.mean(), rtol=1e-3, atol=1e-4)
    off = torch.stack([r - s * g for r, s, g in zip(learnt, scale, guidance, strict=True)])
    torch.testing.assert_close(terms.measured["pure_loss"].detach(), off.square().mean(), rtol=1e-4, atol=1e-5)


def test_the_class_word_is_read_without_the_concept() -> None:
    job, batch, _, velocity = asked(PureSettings(target="class-relative"))
    assert not batch.class_word.marks.any()
    assert torch.equal(batch.class_word.rows[0], job.data.encoded["dog"].rows)
    assert not torch.equal(velocity(EXTRACTOR, "class_word"), velocity(EXTRACTOR, "null"))


def test_lambda_0_pulls_the_complete_text_to_v_original() -> None:
    _, _, terms, velocity = asked(PureSettings(fixed_scale=0.0))
    distance = (velocity(PURE, "complete") - velocity(BASE, "base")).square().mean()
    torch.testing.assert_close(terms.measured["pure_loss"].detach(), distance, rtol=1e-5, atol=1e-6)
    assert terms.measured["scale"] == 0


def test_multiplier_and_clamp_act_on_each_samples_lambda() -> None:
    plain = asked(PureSettings())[2].measured
    pushed = asked(PureSettings(scale_multiplier=1.5))[2].measured
    torch.testing.assert_close(pushed["scale"], 1.5 * plain["scale"])
    assert bool(pushed["pure_loss"] > plain["pure_loss"])
    held = asked(PureSettings(scale_min=7.0, scale_max=7.0))[2].measured
    assert held["scale"] == 7 and held["scale_spread"] == 0
    fixed = asked(PureSettings(fixed_scale=7.0))[2].measured
    torch.testing.assert_close(held["pure_loss"], fixed["pure_loss"])


@pytest.mark.parametrize("schedule", ["high noise", "low noise"])
def test_eta_over_time_weighs_each_sample_by_its_own_t(schedule: str) -> None:
    _, batch, terms, velocity = asked(PureSettings(eta=2.0, eta_schedule=schedule, fixed_scale=0.0))
    distances = (velocity(PURE, "complete") - velocity(BASE, "base")).square().flatten(1).mean(1)
    mean = mean_time(SETTINGS.shift)
    weight = batch.t / mean if schedule == "high noise" else (1 - batch.t) / (1 - mean)
    expected = terms.measured["concept_loss"] + (2.0 * weight * distances).mean()
    torch.testing.assert_close(terms.loss.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert float((batch.t[0] - batch.t[1]).abs()) > 0.05


@pytest.mark.parametrize("anchored", [False, True])
def test_masks_weigh_both_losses_and_lambda_alike(anchored: bool) -> None:
    masks = tuple(torch.zeros(SIDE, SIDE) for _ in range(2))
    for mask in masks:
        mask[2:5, 1:4] = 1
    settings = SETTINGS if anchored else replace(SETTINGS, background_weight=0.25)
    pure = PureSettings(background_anchor=1.0, background_loss=0.25) if anchored else PureSettings()
    _, batch, terms, velocity = asked(pure, settings, replace(concept_set(), masks=masks))
    weights = torch.full((SIDE, SIDE), 0.25)
    weights[2:5, 1:4] = 1
    weights = weights / weights.mean()
    if not anchored:
        assert torch.equal(batch.weights[0, 0], batch.weights[1, 0])
        torch.testing.assert_close(batch.weights[0, 0], weights)
    guidance = velocity(EXTRACTOR, "target") - velocity(EXTRACTOR, "null")
    learnt = velocity(PURE, "complete") - velocity(BASE, "base")
    scale = [(weights * r * g).sum() / (weights * g * g).sum() for r, g in zip(learnt, guidance, strict=True)]
    off = torch.stack([r - s * g for r, s, g in zip(learnt, scale, guidance, strict=True)])
    measured = terms.measured
    torch.testing.assert_close(measured["scale"], torch.stack(scale).mean(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(measured["pure_loss"].detach(), (weights * off.square()).mean(), rtol=1e-4, atol=1e-5)
    wrong = (velocity(PURE, "complete") - batch.v_true).square()
    torch.testing.assert_close(measured["concept_loss"].detach(), (weights * wrong).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [None, 0.5])
def test_where_the_background_is_anchored_l_cc_weighs_less(own: float | None) -> None:
    """Around the masks and their rims, which there are none of on so small a grid; weights of a person's own come first."""
    masks = tuple(torch.zeros(SIDE, SIDE) for _ in range(2))
    for mask in masks:
        mask[2:5, 1:4] = 1
    settings = SETTINGS if own is None else replace(SETTINGS, background_weight=own)
    pure = PureSettings(method="LoRA", background_anchor=2.0, background_loss=0.1)
    _, batch, terms, velocity = asked(pure, settings, replace(concept_set(), masks=masks))
    assert torch.equal(batch.outside[0, 0] == 0, masks[0] > 0)
    weights = torch.full((SIDE, SIDE), own or 0.1)
    weights[2:5, 1:4] = 1
    weights = weights / weights.mean()
    v_complete = velocity(PURE, "complete")
    wanted = (weights * (v_complete - batch.v_true).square()).mean()
    torch.testing.assert_close(terms.measured["concept_loss"].detach(), wanted, rtol=1e-4, atol=1e-5)
    held = (batch.outside * (v_complete - velocity(BASE, "base")).square()).mean()
    torch.testing.assert_close(terms.measured["background_anchor"].detach(), held, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.loss.detach(), wanted + 2 * held, rtol=1e-4, atol=1e-5)


def test_without_the_anchor_l_cc_weighs_alike_everywhere() -> None:
    apart = PureSettings(background_anchor=1.0, background_loss=0.1)
    assert apart.parts_loss and apart.used()["background_loss"] == 0.1
    for other in (replace(apart, background_anchor=0.0), replace(apart, background_loss=1.0)):
        assert not other.parts_loss and "background_loss" not in other.used()
    _, batch, terms, velocity = asked(PureSettings(method="LoRA", background_loss=0.1), SETTINGS, concept_set())
    wanted = (velocity(PURE, "complete") - batch.v_true).square().mean()
    torch.testing.assert_close(terms.measured["concept_loss"].detach(), wanted, rtol=1e-4, atol=1e-5)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="background_loss"):
            PureSettings(background_loss=wrong)
