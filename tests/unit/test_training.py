"""The training loop on a tiny real transformer: the step, and what it leaves alone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import (
    CHANNELS,
    SETTINGS,
    SIDE,
    batch_of,
    concept_set,
    extractor,
    extractor_job,
    learned,
    network,
    noise,
    pure_job,
    run,
    same,
    text,
    transformer,
)

from purecc import training
from purecc.batches import Batch
from purecc.concept_set import ConceptSet
from purecc.flow import LatentScaling
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.recorded import Recorder
from purecc.schedules import rate_factor
from purecc.settings import PureSettings, TrainSettings
from purecc.stages import PureJob
from purecc.training import freeze_all_but


def test_one_step_is_adamw_on_the_clipped_gradient(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, max_grad_norm=0.01, weight_decay=0.1)
    job = pure_job(tmp_path, PureSettings(), settings)
    run(job)
    by_hand = pure_job(tmp_path, PureSettings(), settings, adapted=network())
    by_hand.prepare()
    lora, embeddings = by_hand.network.lora_parameters(PURE), [by_hand.network.embeddings[PURE].clip]
    for parameter in lora:
        parameter.requires_grad_(True)
    by_hand.objective().terms(by_hand.network, batch_of(by_hand)).loss.backward()
    assert float(torch.nn.utils.clip_grad_norm_(lora + embeddings, 0.01)) > 0.01
    torch.optim.AdamW(lora, lr=settings.learning_rate, weight_decay=0.1).step()
    torch.optim.AdamW(embeddings, lr=settings.embedding_rate, weight_decay=0.0).step()
    for made, expected in zip(job.network.lora_parameters(PURE), lora, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(job.network.embeddings[PURE].clip, embeddings[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_there_is_room_batches_are_drawn_ahead_and_texts_wait_as_they_are_read(
    tmp_path, monkeypatch, dtype
) -> None:
    """Each once and in its order, a step ahead at most; the same result bit for bit, also where the run was stopped."""
    settings, right, drawn = replace(SETTINGS, steps=4, accumulate=2), training.draw_batch, []

    def draw(data: ConceptSet, settings: TrainSettings, scaling: LatentScaling, number: int, *others) -> Batch:
        drawn.append((number, {text.rows.dtype for text in data.encoded.values()}))
        return right(data, settings, scaling, number, *others)

    def job(folder: str) -> PureJob:
        base = AdaptedNetwork(transformer().to(dtype))
        return pure_job(tmp_path / folder, PureSettings(), settings, adapted=base)

    monkeypatch.setattr(training, "draw_batch", draw)
    plain = job("plain")
    run(plain)
    assert drawn == [(number, {torch.float32}) for number in range(1, 9)]

    class WithRoom(Recorder):
        def __init__(self, *of):
            super().__init__(*of)
            self.has_room = True

    monkeypatch.setattr(training, "Recorder", WithRoom)
    for stopped_after in (1, None):
        drawn.clear()
        with closing(iter(again := job("ahead"))) as records:
            for record in records:
                assert drawn[-1][0] == min(2 * record.step + 1, 8)
                if record.step == stopped_after:
                    break
    assert drawn == [(number, {dtype}) for number in range(3, 9)]
    assert same(again.concept, plain.concept)


def test_training_leaves_base_and_extractor_bit_for_bit(finished) -> None:
    job = finished("PureCC")
    fresh = transformer().state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in job.network.transformer.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in fresh.items())
    x, t, words = noise(2, CHANNELS, SIDE, SIDE), torch.tensor([0.3, 0.8]), text("a [V] dog", count=2)
    with torch.no_grad():
        assert torch.equal(job.network.velocity(x, t, words, BASE), network().velocity(x, t, words, BASE))
        assert not torch.equal(job.network.velocity(x, t, words, PURE), job.network.velocity(x, t, words, BASE))
    kept = job.network.lora_weights(EXTRACTOR, extractor().lora.alpha).matrices
    assert all(torch.equal(kept[n][i], ab[i]) for n, ab in extractor().lora.matrices.items() for i in (0, 1))
    assert torch.equal(job.network.embeddings[EXTRACTOR].clip, extractor().embeddings.clip)
    asking = {id(p) for p in job.network.transformer.parameters() if p.requires_grad}
    assert asking == {id(p) for p in job.network.lora_parameters(PURE)}
    assert [job.network.embeddings[name].clip.requires_grad for name in (EXTRACTOR, PURE)] == [False, True]


def test_stage_two_starts_from_a_copy_of_the_embeddings_and_may_freeze_it(tmp_path: Path, finished) -> None:
    start = extractor().embeddings.clip
    job = pure_job(tmp_path, PureSettings(train_embeddings=False), replace(SETTINGS, steps=1))
    job.prepare()
    assert torch.equal(job.network.embeddings[PURE].clip, start)
    job = pure_job(tmp_path, PureSettings(train_embeddings=False), replace(SETTINGS, steps=1))
    run(job)
    assert torch.equal(job.concept.embeddings.clip, start)
    assert not job.network.embeddings[PURE].clip.requires_grad
    assert not torch.equal(finished("PureCC").concept.embeddings.clip, start)


def test_the_loss_falls_on_pictures_that_can_be_learnt(tmp_path: Path) -> None:
    """Quiet latents, so the velocity to regress is the noise that can be seen."""
    settings = replace(SETTINGS, steps=24, batch_size=4, checkpoint_every=100)
    records = run(extractor_job(tmp_path, settings, concept_set(loud=0.1)))
    start, end = (sum(record.loss for record in part) / 6 for part in (records[:6], records[-6:]))
    assert end < 0.8 * start


# Schedules, accumulation


def test_rates_rise_over_the_warmup_and_fall_as_half_a_cosine() -> None:
    factors = [rate_factor(step, 10, "cosine", 4) for step in range(1, 11)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert factors[7] == pytest.approx(0.5) and all(a > b > 0 for a, b in zip(factors[4:], factors[5:], strict=False))
    assert [rate_factor(step, 10, "constant") for step in (1, 10)] == [1, 1]


def test_the_schedule_multiplies_both_rates_of_each_step(tmp_path: Path) -> None:
    """AdamW's first step is of the rate's own size: a quarter of it in a warm-up of 4."""
    whole = replace(SETTINGS, steps=1, weight_decay=0.0)
    quarter = replace(whole, learning_rate=whole.learning_rate / 4, embedding_rate=whole.embedding_rate / 4)
    expected, warm = (
        pure_job(tmp_path, settings=quarter),
        pure_job(tmp_path, settings=replace(whole, steps=5, warmup=4)),
    )
    run(expected)
    next(records := iter(warm))
    for made, wanted in zip(learned(warm.network), learned(expected.network), strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-7)
    records.close()


def test_accumulated_forwards_are_one_step_on_the_mean_gradient(tmp_path: Path, monkeypatch) -> None:
    """The length before clipping too: AdamW alone cannot tell a sum from a mean."""
    settings, lengths, clip = replace(SETTINGS, steps=2, accumulate=3), [], torch.nn.utils.clip_grad_norm_
    job = pure_job(tmp_path, settings=settings)

    def watched(*args):
        length = clip(*args)
        lengths.append(float(length))
        return length

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
        run(job)
    by_hand = pure_job(tmp_path, settings=settings)
    by_hand.concept = None
    by_hand.prepare()
    parameters = learned(by_hand.network)
    freeze_all_but(by_hand.network, parameters)
    lora = len(by_hand.network.lora_parameters(PURE))
    groups = [
        {"params": parameters[:lora], "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": parameters[lora:], "lr": settings.embedding_rate, "weight_decay": 0.0},
    ]
    optimizer, found, expected = torch.optim.AdamW(groups), [], []
    for numbers in ((1, 2, 3), (4, 5, 6)):
        terms = [by_hand.objective().terms(by_hand.network, batch_of(by_hand, number)) for number in numbers]
        loss = torch.stack([one.loss for one in terms]).mean()
        loss.backward()
        expected.append(float(clip(parameters, settings.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    assert lengths == pytest.approx(expected, rel=1e-3)
    assert [record.loss for record in job.run.records()] == pytest.approx(found, rel=1e-4)
    for made, wanted in zip(learned(job.network), parameters, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-5)


def test_a_base_that_is_not_finite_is_named_at_the_first_step(tmp_path: Path) -> None:
    """Nothing has been learnt then: a lower rate would not help."""
    job = pure_job(tmp_path)
    with torch.no_grad():
        job.network.transformer.proj_out.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite at step 1: the model itself"):
        list(job)


def test_a_gradient_that_is_not_finite_reaches_no_weight(tmp_path: Path) -> None:
    """Where the loss itself is finite; and the checkpoint on disk stays as it was."""
    job = pure_job(tmp_path, settings=replace(SETTINGS, steps=6, checkpoint_every=2))
    steps = iter(job)
    next(steps), next(steps), next(steps)
    weights = learned(job.network)
    weights[0].register_hook(lambda gradient: gradient.fill_(float("nan")))
    before = [weight.detach().clone() for weight in weights]
    kept = (job.run.folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(
        FloatingPointError, match=r"gradient is not finite at step 4\. Lower the learning rate \(0\.01\)"
    ):
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert (job.run.folder / "checkpoint.safetensors").read_bytes() == kept  # of step 2


def test_gradients_are_clipped_for_each_model(tmp_path: Path) -> None:
    """Else a loud theta2 would slow theta1 down."""
    settings = replace(SETTINGS, steps=2, max_grad_norm=1e-3)
    alone, merged = extractor_job(tmp_path, settings), pure_job(tmp_path, PureSettings("merged stage"), settings)
    run(alone), run(merged)
    theta1 = merged.network.lora_weights(EXTRACTOR, 1.0).matrices
    assert all(torch.equal(theta1[n][i], alone.concept.lora.matrices[n][i]) for n in theta1 for i in (0, 1))


def test_checkpointing_trains_the_same(tmp_path: Path) -> None:
    plain, again = (pure_job(tmp_path, settings=replace(SETTINGS, steps=2, checkpointing=on)) for on in (False, True))
    run(plain), run(again)
    assert [r.loss for r in again.run.records()] == pytest.approx([r.loss for r in plain.run.records()], rel=1e-5)
