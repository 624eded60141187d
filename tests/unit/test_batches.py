"""A batch: which pictures, noise and times, from the seed and its number alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny import CHANNELS, SCALING, SETTINGS, SIDE, concept_set, noise

from purecc.batches import LatentScaling, draw_batch
from purecc.flow import picture_from_velocity, sample_times


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    data = concept_set()
    first = draw_batch(data, SETTINGS, SCALING, 3, "cpu")
    torch.manual_seed(99)  # the global generator has no say
    again = draw_batch(concept_set(), replace(SETTINGS, learning_rate=1.0), SCALING, 3, "cpu")
    assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("x_t", "t", "v_true"))
    assert torch.equal(first.complete.rows, again.complete.rows)
    for other in (
        draw_batch(data, SETTINGS, SCALING, 4, "cpu"),
        draw_batch(data, replace(SETTINGS, seed=6), SCALING, 3, "cpu"),
    ):
        assert not torch.equal(first.x_t, other.x_t) and not torch.equal(first.t, other.t)


def test_a_batch_holds_the_scaled_latents_and_their_own_texts() -> None:
    data, seen = concept_set(), set()
    latents = torch.stack([SCALING.to_model(example.latent) for example in data.examples])
    for step in range(1, 20):
        batch = draw_batch(data, SETTINGS, SCALING, step, "cpu")
        pictures = picture_from_velocity(batch.x_t, batch.v_true, batch.t)
        for i, picture in enumerate(pictures):
            index = int((latents - picture).abs().flatten(1).sum(1).argmin())
            torch.testing.assert_close(picture, latents[index], rtol=1e-4, atol=1e-5)
            for which in ("complete", "base", "target"):
                own = data.encoded[getattr(data.examples[index].texts, which)]
                assert torch.equal(getattr(batch, which).rows[i], own.rows)
            seen.add(index)
        assert torch.equal(batch.null.rows[0], data.encoded[""].rows)
        assert batch.complete.marks.any(1).all() and batch.target.marks.any(1).all()
        assert not batch.base.marks.any() and not batch.null.marks.any()
    assert seen == {0, 1}


def test_times_are_drawn_with_the_settings_shift() -> None:
    times = torch.cat([draw_batch(concept_set(), SETTINGS, SCALING, step, "cpu").t for step in range(1, 300)])
    expected = sample_times(100_000, SETTINGS.shift, torch.Generator().manual_seed(0))
    assert abs(float(times.mean() - expected.mean())) < 0.03


def test_a_batch_larger_than_the_set_repeats_and_one_of_two_sizes_is_not_mixed() -> None:
    data = concept_set()
    assert len(draw_batch(data, replace(SETTINGS, batch_size=7), SCALING, 1, "cpu").t) == 7
    wide = replace(data.examples[0], latent=noise(CHANNELS, SIDE, 4))
    mixed = replace(data, examples=(*data.examples, wide))
    sizes = {draw_batch(mixed, SETTINGS, SCALING, step, "cpu").x_t.shape for step in range(1, 20)}
    assert sizes == {(2, CHANNELS, SIDE, SIDE), (2, CHANNELS, SIDE, 4)}


def test_a_seed_may_have_64_bits() -> None:
    draw_batch(concept_set(), replace(SETTINGS, seed=2**64 - 1), SCALING, 400, "cpu")


def test_latent_scaling_has_its_inverse() -> None:
    z = noise(2, CHANNELS, SIDE, SIDE)
    scaling = LatentScaling(scale=1.5305, shift=0.0609)
    torch.testing.assert_close(scaling.to_autoencoder(scaling.to_model(z)), z)
    torch.testing.assert_close(scaling.to_model(torch.full((1,), 0.0609)), torch.zeros(1))
