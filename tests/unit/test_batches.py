"""A batch: which pictures, noise and times, from the seed and its number alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CHANNELS, FEW, SCALING, SETTINGS, SIDE, concept_set, extractor, network, noise, transformer
from torch import Tensor

from purecc.batches import _CLASS_PICTURES, _SCENES, _VIEWS, _generator, draw_batch, pick
from purecc.batches import drawn as drawn_of
from purecc.class_pictures import _TOGETHER, class_pictures
from purecc.encoding import TextBatch
from purecc.flow import LatentScaling, picture_from_velocity, sample_times, sigmas
from purecc.network import BASE, PURE, AdaptedNetwork
from purecc.settings import PureSettings


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


def test_every_picture_is_learnt_as_often_as_the_others() -> None:
    """Also where a batch has fewer than there are of one size; a size of its own has its share."""
    data = concept_set(("a dog",) * 4)
    data = replace(data, examples=(*data.examples[:3], replace(data.examples[3], latent=noise(CHANNELS, SIDE, 4))))
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(4)
    for _ in range(2000):
        for index in pick(data, 2, generator):
            seen[index] += 1 / 4000
    assert torch.allclose(seen, torch.full((4,), 0.25), atol=0.03)


def test_what_lies_outside_is_mirrored_with_its_picture() -> None:
    mask = torch.zeros(SIDE, SIDE)
    mask[:, 0] = 1
    own = masked(mask, mask)
    own = replace(own, examples=tuple(replace(one, flipped=one.latent.flip(-1)) for one in own.examples))
    sides = set()
    for number in range(1, 20):
        for view, outside in zip(
            drawn_of(own, SETTINGS, number).views,
            draw_batch(own, SETTINGS, SCALING, number, "cpu").outside,
            strict=True,
        ):
            held = outside[0, 0] == 0
            assert held[-1 if view.flipped else 0] and not held[0 if view.flipped else -1]
            sides.add(view.flipped)
    assert sides == {True, False}


def test_a_seed_may_have_64_bits() -> None:
    draw_batch(concept_set(), replace(SETTINGS, seed=2**64 - 1), SCALING, 400, "cpu")


def test_latent_scaling_has_its_inverse() -> None:
    z = noise(2, CHANNELS, SIDE, SIDE)
    scaling = LatentScaling(scale=1.5305, shift=0.0609)
    torch.testing.assert_close(scaling.to_autoencoder(scaling.to_model(z)), z)
    torch.testing.assert_close(scaling.to_model(torch.full((1,), 0.0609)), torch.zeros(1))


def test_times_of_the_grid_are_the_schedulers() -> None:
    settings = replace(SETTINGS, times="diffusers grid", batch_size=50)
    t = draw_batch(concept_set(), settings, SCALING, 1, "cpu").t
    steps = 1000 * t / (3 - 2 * t)  # before the shift of 3
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=2e-3)


# Masks


def masked(*masks: Tensor):
    return replace(concept_set(), masks=masks)


def test_loss_weights_are_the_masks_share_of_each_cell_brought_to_mean_1() -> None:
    large = torch.zeros(4 * SIDE, 4 * SIDE)
    large[: 2 * SIDE, : 2 * SIDE + 2] = 1  # 4 x 4 pixels a cell: the fifth column's cells are half covered
    weights = masked(large, torch.ones(SIDE, SIDE)).loss_weights([0, 1], 0.2)
    assert weights.shape == (2, 1, SIDE, SIDE)
    torch.testing.assert_close(weights.flatten(1).mean(1), torch.ones(2))
    ratio = weights[0, 0] / weights[0, 0, 0, 0]
    assert ratio[0, 3] == 1 and ratio[7, 7].item() == pytest.approx(0.2) and ratio[0, 4].item() == pytest.approx(0.6)
    assert torch.equal(weights[1], torch.ones(1, SIDE, SIDE))


def test_without_a_setting_masks_are_not_read_and_with_it_they_must_be_there() -> None:
    assert draw_batch(masked(*[torch.ones(SIDE, SIDE)] * 2), SETTINGS, SCALING, 1, "cpu").weights is None
    with pytest.raises(ValueError, match="0 masks for 2 pictures. Connect a mask for each"):
        concept_set().loss_weights([0], 0.5)
    with pytest.raises(ValueError, match="The mask of picture 2 is empty"):
        masked(torch.ones(SIDE, SIDE), torch.zeros(SIDE, SIDE)).loss_weights([0, 1], 0.0)


# Class pictures


PRIOR = PureSettings("LoRA + prior preservation", **FEW)


def drawn(root: Path, pure: PureSettings = PRIOR, seed: int = 0, data=None, adapted: AdaptedNetwork | None = None):
    return class_pictures(adapted or network(), data or concept_set(), pure, "base", seed, root)


def test_class_pictures_are_the_base_models_own_samples(tmp_path: Path) -> None:
    adapted, data = network(), concept_set()
    adapted.add_concept(PURE, extractor())  # not asked
    made = drawn(tmp_path, adapted=adapted)
    assert made.texts == ("a dog",) * 3
    noises = [torch.randn(CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    x, (first, second, _) = torch.stack(noises), sigmas(2, 3.0).tolist()
    dog, null = TextBatch.of([data.encoded["a dog"]] * 3), data.null(3)
    with torch.no_grad():  # two steps of Euler with guidance 4.5
        for now, after in ((first, second), (second, 0.0)):
            t = torch.full((3,), now)
            v_null, v_dog = (network().velocity(x, t, words, BASE) for words in (null, dog))
            x = x + (after - now) * (v_null + 4.5 * (v_dog - v_null))
    torch.testing.assert_close(made.latents[CHANNELS, SIDE, SIDE], x, rtol=1e-3, atol=1e-3)


def test_class_pictures_are_drawn_once_and_kept(tmp_path: Path) -> None:
    made = drawn(tmp_path)
    (file,) = (tmp_path / "class_pictures").iterdir()
    written = file.stat().st_mtime_ns

    class Idle(AdaptedNetwork):
        def velocity(self, *args, **kwargs):
            raise AssertionError("drawn again")

    again = drawn(tmp_path, adapted=Idle(transformer()))
    size = (CHANNELS, SIDE, SIDE)
    assert torch.equal(again.latents[size], made.latents[size]) and file.stat().st_mtime_ns == written
    others = [
        drawn(tmp_path, seed=1),
        drawn(tmp_path, replace(PRIOR, class_texts="base")),
        drawn(tmp_path, replace(PRIOR, class_guidance=1.0)),
        drawn(tmp_path, replace(PRIOR, class_pictures=4)),
    ]
    assert len(list((tmp_path / "class_pictures").iterdir())) == 5
    assert all(not torch.equal(one.latents[size][:3], made.latents[size]) for one in others[:3])
    assert torch.equal(others[3].latents[size][:3], made.latents[size])
    assert others[1].texts == ("a dog", "a dog on the beach", "a dog")
    file.write_bytes(b"cut off")
    assert torch.equal(drawn(tmp_path).latents[size], made.latents[size])


def test_drawing_that_was_cancelled_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """In groups of a few; the same pictures bit for bit as drawn at once."""
    pure = replace(PRIOR, class_pictures=2 * _TOGETHER + 1)
    whole = drawn(tmp_path / "whole", pure)
    told: list[tuple[int, int]] = []

    def cancel(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2 * pure.class_steps + 2:  # within the last group
            raise KeyboardInterrupt

    arguments = network(), concept_set(), pure, "base", 0, tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        class_pictures(*arguments, cancel)
    again: list[tuple[int, int]] = []
    made = class_pictures(*arguments, lambda done, total: again.append((done, total)))
    total = 3 * pure.class_steps
    assert told[0] == (0, total) and again == [(done, total) for done in range(total - pure.class_steps, total)]
    assert all(torch.equal(made.latents[size], whole.latents[size]) for size in whole.latents)
    assert len(list((tmp_path / "cut" / "class_pictures").iterdir())) == 1


def test_every_class_picture_is_learnt_from(tmp_path: Path) -> None:
    made, generator = drawn(tmp_path), torch.Generator().manual_seed(0)
    size = (CHANNELS, SIDE, SIDE)
    seen = {
        int((made.latents[size] - one).abs().flatten(1).sum(1).argmin())
        for _ in range(30)
        for one in made.pick(concept_set(), 2, size, generator, "cpu")[0]
    }
    assert seen == {0, 1, 2}


def test_a_style_has_its_base_texts_for_class_pictures(tmp_path: Path) -> None:
    assert drawn(tmp_path, data=replace(concept_set(), kind="style")).texts[:2] == ("a dog", "a dog on the beach")


def test_each_purpose_has_chance_of_its_own() -> None:
    """PyTorch takes 32 bits of a seed: what differs above them alone is one stream."""
    drawn_ = {
        (seed, number, purpose): tuple(torch.rand(4, generator=_generator(replace(SETTINGS, seed=seed), number, purpose)).tolist())
        for seed in (0, 1) for number in (1, 2) for purpose in ("", _VIEWS, _CLASS_PICTURES, _SCENES)
    }  # fmt: skip
    assert len(set(drawn_.values())) == len(drawn_) == 16


def test_the_prior_leaves_the_concepts_batch_as_it_was_and_has_chance_of_its_own(tmp_path: Path) -> None:
    pictures, data = drawn(tmp_path), concept_set()
    plain = draw_batch(data, SETTINGS, SCALING, 3, "cpu")
    batch = draw_batch(data, SETTINGS, SCALING, 3, "cpu", pictures)
    again = draw_batch(data, SETTINGS, SCALING, 3, "cpu", pictures)
    assert all(torch.equal(getattr(plain, n), getattr(batch, n)) for n in ("x_t", "t", "v_true"))
    assert batch.prior.x_t.shape == batch.x_t.shape and not torch.equal(batch.prior.t, batch.t)
    assert torch.equal(batch.prior.x_t, again.prior.x_t)
    other = draw_batch(data, SETTINGS, SCALING, 4, "cpu", pictures).prior
    assert not torch.equal(batch.prior.t, other.t)
