"""The simple measures: what they see, and what they say of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from purecc.evaluation import colour_fidelity, colour_histogram, find_colours, pixel_drift
from purecc.pocket.art import sprites
from purecc.pocket.references import reference_scenes
from purecc.pocket.scenes import mask, random_scene, render


def as_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def test_drift_is_the_mean_difference_in_levels() -> None:
    picture = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    assert pixel_drift(picture, picture) == 0
    assert pixel_drift(picture, picture + 10 / 255) == pytest.approx(10, abs=1e-3)


def test_drift_of_unlike_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 3\) and \(1, 8, 8, 3\)"):
        pixel_drift(torch.zeros(2, 8, 8, 3), torch.zeros(1, 8, 8, 3))


def test_a_mask_leaves_the_background_out() -> None:
    picture = np.zeros((4, 4, 3))
    picture[:, :2] = (1, 0, 0)
    red = colour_histogram(picture, np.repeat([[1.0, 1.0, 0.0, 0.0]], 4, axis=0))
    assert red.max() == 1 and red.argmax() == 5 * 36
    assert colour_histogram(picture).max() == 0.5


def test_colours_are_found_wherever_they_are() -> None:
    picture = np.zeros((64, 64, 3))
    picture[40:60, 4:24] = (1, 0, 0)
    wanted = colour_histogram(np.full((4, 4, 3), (1.0, 0.0, 0.0)))
    assert find_colours(picture, wanted) > 0.9
    assert find_colours(np.zeros((64, 64, 3)), wanted) == 0


def test_fidelity_is_one_for_the_concept_in_new_scenes_and_zero_for_the_base() -> None:
    scenes = reference_scenes("development", "poodle", 5, seed=3)
    references, masks = [as_tensor(render(s)) for s in scenes], [as_tensor(mask(s)) for s in scenes]
    unseen = torch.stack([as_tensor(render(s)) for s in reference_scenes("development", "poodle", 4, seed=77)])
    rng = np.random.default_rng(5)
    others = torch.stack([as_tensor(render(random_scene(rng))) for _ in range(12)])

    assert colour_fidelity(others, others, references, masks) == 0
    assert colour_fidelity(unseen, others, references, masks) > 0.8


def test_fidelity_is_not_told_where_it_cannot_be() -> None:
    scenes = reference_scenes("development", "poodle", 5, seed=3)
    references, masks = [as_tensor(render(s)) for s in scenes], [as_tensor(mask(s)) for s in scenes]
    pictures = torch.stack(references)
    assert colour_fidelity(pictures, pictures * 0, references[:1], masks[:1]) is None  # one reference has no others
    assert colour_fidelity(pictures, pictures, references, masks) is None  # the base has the colours already


def test_references_vary_in_size_place_background_and_pose() -> None:
    scenes = reference_scenes("development", "poodle", 5, seed=3)
    assert len({s.background for s in scenes}) == 5
    assert {s.things[0].size for s in scenes} == {"small", "", "big"}
    assert len({s.things[0].place for s in scenes}) == 3
    assert {s.things[0].flip for s in scenes} == {False, True}
    assert all(s.things[0].sprite in sprites("development") for s in scenes)
    with pytest.raises(ValueError, match='no drawing "whale"'):
        reference_scenes("development", "whale", 1, 0)
