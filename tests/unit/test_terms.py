"""The terms of the loss on a tiny real transformer: what the equations say, written once more."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import batch_of, learned, losses, pure_job, run, same, stage_two
from torch import Tensor

from purecc.network import BASE, EXTRACTOR, PURE
from purecc.objective import ORIGINALS, Original
from purecc.settings import PureSettings


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
    assert all(math.isfinite(record.pure_loss) and math.isfinite(record.scale) for record in records)


def test_with_eta_1_it_is_not(finished) -> None:
    of_pure, of_plain = (finished(name).run.records() for name in ("PureCC", "LoRA"))
    assert of_pure[0].concept_loss == of_plain[0].concept_loss and of_pure[-1].concept_loss != of_plain[-1].concept_loss
    assert not same(finished("PureCC").concept, finished("LoRA").concept)
