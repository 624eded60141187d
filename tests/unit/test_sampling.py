"""Euler steps on flows whose answer is known, and classifier-free guidance on the tiny network."""

from __future__ import annotations

import pytest
import torch
from tiny import extractor, network, noise, text

from purecc.encoding import TextBatch
from purecc.network import BASE, PURE
from purecc.sampling import euler, guided_velocity

X0, X1 = noise(2, 4, 8, 8, seed=1), noise(2, 4, 8, 8, seed=2)


@pytest.mark.parametrize("steps", [1, 5, 28])
def test_a_straight_flow_ends_at_its_picture_whatever_the_steps(steps: int) -> None:
    torch.testing.assert_close(euler(lambda x, t: X1 - X0, X1, steps, 3.0), X0, rtol=1e-5, atol=1e-5)


def test_the_picture_that_a_velocity_points_back_to_is_reached() -> None:
    made = euler(lambda x, t: (x - X0) / t.view(-1, 1, 1, 1), X1, 7, 3.0)
    torch.testing.assert_close(made, X0, rtol=1e-5, atol=1e-5)


def test_times_fall_from_1_for_every_sample() -> None:
    seen: list[torch.Tensor] = []
    euler(lambda x, t: seen.append(t) or torch.zeros_like(x), X1, 4, 3.0)
    assert seen[0].tolist() == [1.0, 1.0] and bool((torch.stack(seen).diff(dim=0) < 0).all())


def test_guidance_goes_from_the_negative_towards_the_conditional() -> None:
    adapted, t = network(), torch.tensor([0.3, 0.8])
    positive, negative = text("a dog", count=2), text("", count=2)
    v_positive = adapted.velocity(X0, t, positive, BASE)
    v_negative = adapted.velocity(X0, t, negative, BASE)
    for weight, expected in ((0.0, v_negative), (1.0, v_positive), (4.0, 4 * v_positive - 3 * v_negative)):
        made = guided_velocity(adapted, positive, negative, weight, BASE)(X0, t)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_strengths_reach_both_sides_and_texts_of_two_lengths_go_apart() -> None:
    adapted, t = network(), torch.tensor([0.3, 0.8])
    adapted.add_concept(PURE, extractor())
    positive, negative = text("a [V] dog", count=2), text("", count=2)
    longer = TextBatch(
        torch.cat([negative.rows] * 2, 1), negative.pooled, torch.cat([negative.marks] * 2, 1)
    )  # a prompt beyond the encoder's first part
    strengths = {"strength": 0.5, "embedding_strength": 0.3}
    for unconditional in (negative, longer):
        v_positive, v_negative = (adapted.velocity(X0, t, w, PURE, **strengths) for w in (positive, unconditional))
        made = guided_velocity(adapted, positive, unconditional, 4.0, PURE, **strengths)(X0, t)
        torch.testing.assert_close(made, 4 * v_positive - 3 * v_negative, rtol=1e-4, atol=1e-4)
    whole = guided_velocity(adapted, positive, negative, 4.0, PURE)(X0, t)
    assert float((whole - 4 * v_positive + 3 * v_negative).abs().max()) > 0.1
