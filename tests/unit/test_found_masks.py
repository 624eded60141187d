"""The surroundings of the concept: found by the real Pocket SD3, held by the background anchor on a tiny transformer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import SCALING, SIDE, asked, concept_set, losses, network, pure_job, run, same

from benchmarks.pocketbench.bench import Bench
from benchmarks.pocketbench.concepts import concept
from purecc.concept_set import NULL
from purecc.found_masks import with_found_masks
from purecc.network import BASE, PURE
from purecc.place import otsu_threshold, where_most
from purecc.settings import PureSettings

ANCHORED = PureSettings("LoRA", background_anchor=2.0)


@cache
def bench() -> Bench:
    return Bench(Path("unused"))


def inside(data, rim: bool) -> torch.Tensor:
    """On the masks; with `rim` all that is not anchored. [pictures, 1, height, width]"""
    every = list(range(len(data.examples)))
    return data.outside_weights(every) == 0 if rim else data.loss_weights(every, 0.0) > 0


@pytest.mark.parametrize("name", ["poodle", "palm-tree", "racing-car"])
def test_the_base_finds_the_thing_in_pictures_that_it_has_never_seen(name: str) -> None:
    """Drawings of an artist that it was not trained on: the found masks cover them, and leave most of the picture."""
    data = bench().concept_set(concept(name), 1)
    found = with_found_masks(bench().network(), replace(data, masks=()), bench().scaling)
    for mine, true in zip(inside(found, rim=True), inside(data, rim=False), strict=True):
        assert (mine & true).sum() > 0.9 * true.sum()
        assert true.float().mean() < mine.float().mean() < 0.6
    assert 0.2 < found.concept_share < 0.5


def test_a_mask_is_where_what_the_texts_say_differs_most() -> None:
    """Root mean square of v3(class) - v3(null) over the channels and eight times, as looked for one time by one."""
    adapted, data = network(), concept_set()
    latent = SCALING.to_model(data.examples[0].latent)
    noises = torch.randn(8, *latent.shape, generator=torch.Generator().manual_seed(20_262))
    squares = torch.zeros(latent.shape[1:])
    with torch.no_grad():
        for noise, t in zip(noises, torch.linspace(0.3, 0.8, 8), strict=True):
            x_t = ((1 - t) * latent + t * noise)[None]
            v_class, v_null = (
                adapted.velocity(x_t, t[None], data.repeated(text, 1, "cpu"), BASE) for text in (data.class_text, NULL)
            )
            squares += (v_class - v_null).square().mean((0, 1))
    assert torch.equal(with_found_masks(adapted, data, SCALING).masks[0], where_most(squares.sqrt()))


def test_the_rim_of_a_mask_is_not_anchored() -> None:
    """A sixteenth of the picture around all that a mask touches: one latent pixel of 16."""
    mask = torch.zeros(128, 128)
    mask[36:60, 64:72] = 1  # touches rows 4 to 7 and column 8 of the 16 x 16 latents
    data = bench().concept_set(concept("poodle"), 1)
    outside = replace(data, masks=(mask,) * 5).outside_weights([0])[0, 0]
    expected = torch.ones(16, 16)
    expected[3:9, 7:10] = 0
    torch.testing.assert_close(outside, expected / expected.mean())


def test_a_mirrored_picture_has_a_mirrored_mask() -> None:
    mask = torch.zeros(SIDE, SIDE)
    mask[1, 0:3] = 1
    data = replace(concept_set(), masks=(mask, torch.ones(SIDE, SIDE)))
    one, other = data.outside_weights([0, 0], [False, True])
    assert torch.equal(one.flip(-1), other) and not torch.equal(one, other)


def test_a_mattes_grey_is_not_the_concept_and_little_surroundings_weigh_little() -> None:
    matte = torch.full((SIDE, SIDE), 1 / 255)
    matte[2, 3] = 1
    data = replace(concept_set(), masks=(matte, torch.ones(SIDE, SIDE).tril(SIDE - 2)))  # all but one corner
    assert data.concept_share == pytest.approx((1 / 64 + 63 / 64) / 2)
    assert float(data.outside_weights([1]).max()) == pytest.approx(10)  # not 64


def test_masks_for_some_pictures_alone_are_refused() -> None:
    data = replace(concept_set(), masks=(torch.eye(SIDE),))
    with pytest.raises(ValueError, match="1 masks for 2 pictures. Give a mask for each, or none"):
        pure_job(Path("unused"), ANCHORED, data=data)
    pure_job(Path("unused"), PureSettings("LoRA"), data=data)  # nothing reads them


def test_looking_for_the_concept_can_be_cancelled() -> None:
    asked = []

    def looking(done: int, total: int) -> None:
        asked.append((done, total))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_found_masks(network(), concept_set(), SCALING, looking)
    assert asked == [(0, 2), (1, 2)]


def test_a_style_has_no_surroundings() -> None:
    style = replace(concept_set(), kind="style")
    with pytest.raises(ValueError, match="A style is all over its pictures"):
        with_found_masks(network(), style, SCALING)
    assert pure_job(Path("unused"), ANCHORED, data=style).pure.background_anchor == 0


def test_otsu_parts_two_groups_between_them() -> None:
    values = torch.tensor([0.1, 0.9, 0.2, 0.15, 0.8, 0.12, 0.11])
    assert 0.2 < float(otsu_threshold(values)) < 0.8


def test_the_anchor_is_the_squared_distance_to_the_base_outside_the_masks() -> None:
    masks = tuple(torch.zeros(SIDE, SIDE) for _ in range(2))
    for mask in masks:
        mask[2:5, 1:4] = 1
    _, _, terms, velocity = asked(ANCHORED, data=replace(concept_set(), masks=masks))
    away = (velocity(PURE, "complete") - velocity(BASE, "base")).square()
    outside = away[..., masks[0] == 0].mean()
    torch.testing.assert_close(terms.measured["background_anchor"].detach(), outside, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        terms.loss.detach(), terms.measured["concept_loss"].detach() + 2 * outside, rtol=1e-4, atol=1e-5
    )
    assert abs(float(outside - away[..., masks[0] == 1].mean())) > 0.01  # or it could be anywhere


def test_a_picture_that_is_all_concept_has_nothing_to_hold() -> None:
    _, _, terms, _ = asked(ANCHORED, data=replace(concept_set(), masks=(torch.ones(SIDE, SIDE),) * 2))
    assert terms.measured["background_anchor"] == 0


def test_given_masks_are_used_and_without_them_the_found_ones(tmp_path: Path) -> None:
    plain = concept_set()
    found = with_found_masks(network(), plain, SCALING)
    given = replace(plain, masks=(torch.eye(SIDE),) * 2)
    jobs = [pure_job(tmp_path / str(i), ANCHORED, data=data) for i, data in enumerate((plain, found, given))]
    records = [losses(run(job)) for job in jobs]
    assert records[0] == records[1] != records[2]
    assert same(jobs[0].concept, jobs[1].concept)
    assert len({job.run.folder.name for job in jobs}) == 3
    assert jobs[0].concept.summary["background_anchor"] > 0
    assert jobs[2].concept.summary["concept_share"] == 1 / SIDE


def test_an_anchored_run_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole, halves = pure_job(tmp_path / "a", ANCHORED), pure_job(tmp_path / "b", ANCHORED)
    run(whole)
    steps = iter(halves)
    for _ in range(3):
        next(steps)
    steps.close()
    again = pure_job(tmp_path / "b", ANCHORED)
    run(again)
    assert same(whole.concept, again.concept)
