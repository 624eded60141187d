"""Velocities that share forwards are those asked for one by one, in their order."""

from __future__ import annotations

import torch
from tiny import extractor, network, noise, text

from purecc.forwards import Query, velocities
from purecc.network import BASE, PURE


def test_what_shares_a_forward_is_what_it_is_alone() -> None:
    """Two sizes of pictures, two models, one text longer than the other; at most 4 samples at once, one that has 5 alone."""
    adapted, seen = network(), []
    adapted.add_concept(PURE, extractor())
    large, small, longer = noise(3, 4, 8, 8, seed=1), noise(2, 4, 4, 4, seed=2), noise(5, 4, 8, 8, seed=3)
    named, plain = text("a [V] dog", count=3), text("a dog", count=3)
    asked = [
        Query(large, torch.full((3,), 0.6), named, PURE),
        Query(small, torch.full((2,), 0.4), text("a [V] dog", count=2), PURE),
        Query(large[:1], torch.full((1,), 0.3), text("a dog"), BASE),
        Query(longer, torch.full((5,), 0.2), text("a [V] dog", count=5), BASE),
        Query(large, torch.full((3,), 0.6), plain, BASE),
        Query(small, torch.full((2,), 0.4), text("a dog", count=2), BASE),
    ]
    adapted.transformer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        alone = [adapted.velocity(one.x_t, one.t, one.text, one.model) for one in asked]
        seen.clear()
        together = velocities(adapted, asked, most=4)
        assert [shape[0] for shape in seen] == [4, 5, 3, 4] and [shape[-1] for shape in seen] == [8, 8, 8, 4]
        seen.clear()
        assert velocities(adapted, asked)[3].shape == (5, 4, 8, 8) and [shape[0] for shape in seen] == [12, 4]
    for own, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-5)
    assert float((together[0] - together[4]).abs().max()) > 0.1


def test_strengths_reach_the_network_and_nothing_asked_for_is_nothing() -> None:
    adapted = network()
    adapted.add_concept(PURE, extractor())
    x_t, t, words = noise(1, 4, 8, 8, seed=1), torch.tensor([0.5]), text("a [V] dog")
    with torch.no_grad():
        off, base = velocities(
            adapted, [Query(x_t, t, words, one) for one in (PURE, BASE)], strength=0.0, embedding_strength=0.0
        )
    torch.testing.assert_close(off, base, rtol=1e-5, atol=1e-5)
    assert velocities(adapted, []) == []
