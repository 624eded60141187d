"""What a LoRA adds to a Linear: with a gradient and without, in all samples and in some."""

from __future__ import annotations

import pytest
import torch
from tiny import CHANNELS, SIDE, network, noise, strengthen, text, transformer
from torch import Tensor, nn

from purecc.lora import ActingLora, changed, narrowed
from purecc.network import BASE, PURE, AdaptedNetwork
from purecc.targets import TARGETS

A, B = nn.Parameter(noise(2, 6, seed=1)), nn.Parameter(noise(8, 2, seed=2))
X, OUT = noise(3, 5, 6, seed=3), noise(3, 5, 8, seed=4)
EVERY = slice(None)


def added(out: Tensor, x: Tensor, scale: float | Tensor, samples: slice) -> Tensor:
    return changed(out, x, "linear", ActingLora({"linear": (A, B)}, scale, scale, samples), scale)


@pytest.mark.parametrize("rows", [True, False], ids=["a stream", "adaLN, without rows"])
@pytest.mark.parametrize(
    "scale", [1.0, 0.5, torch.tensor([0.0, 0.5, 2.0])[:, None, None]], ids=["1", "half", "of each"]
)
def test_with_a_gradient_and_without_the_same_is_added(scale: float | Tensor, rows: bool) -> None:
    out, x = (OUT, X) if rows else (OUT[:, 0].clone(), X[:, 0])
    of_each = scale.flatten(x.ndim - 1) if isinstance(scale, Tensor) else scale
    expected = out + of_each * (x @ A.T @ B.T)
    torch.testing.assert_close(added(out, x, scale, EVERY), expected)
    with torch.no_grad():
        torch.testing.assert_close(added(out.clone(), x, scale, EVERY), expected)


def test_of_a_slice_the_other_samples_stay_bit_for_bit() -> None:
    with torch.no_grad():
        one = added(OUT.clone(), X, 0.5, slice(1, 2))
    assert torch.equal(one[0], OUT[0]) and torch.equal(one[2], OUT[2])
    torch.testing.assert_close(one[1], (OUT + 0.5 * (X @ A.T @ B.T))[1])


def test_a_linear_without_a_lora_gives_what_came() -> None:
    none = ActingLora({}, 1.0, 1.0, EVERY)
    assert changed(OUT, X, "linear", none, 1.0) is OUT
    assert added(OUT, X, 0.0, EVERY) is OUT


def test_matrices_are_narrowed_together_and_their_gradients_are_those_of_casts() -> None:
    own = {"first": (A, B), "second": (nn.Parameter(noise(2, 6, seed=5)), nn.Parameter(noise(8, 2, seed=6)))}
    wanted = noise(8, 6, seed=7).bfloat16()

    def gradients(matrices: dict) -> list[Tensor | None]:
        for parameter in (p for pair in own.values() for p in pair):
            parameter.grad = None
        a, b = matrices["first"]
        ((b @ a) * wanted).sum().backward()  # the second is not read
        return [parameter.grad for pair in own.values() for parameter in pair]

    found = gradients(narrowed(own, torch.bfloat16))
    expected = gradients({name: tuple(p.bfloat16() for p in pair) for name, pair in own.items()})
    assert found[2:] == expected[2:] == [None, None]
    assert all(f.dtype == torch.float32 and torch.equal(f, e) for f, e in zip(found[:2], expected[:2], strict=True))
    assert narrowed(own, torch.float32) is own


@pytest.mark.parametrize("models", [(PURE, PURE, BASE), (BASE, PURE, PURE), (PURE, BASE, PURE)], ids=str)
def test_samples_side_by_side_are_as_each_alone(models: tuple[str | None, ...]) -> None:
    adapted = network()
    adapted.add_new(PURE, 2, 4.0, TARGETS["attention"], seed=0)
    strengthen(adapted, PURE)
    x, t, words = noise(3, CHANNELS, SIDE, SIDE, seed=8), torch.tensor([0.2, 0.5, 0.8]), text("a [V] dog", count=3)
    with torch.no_grad():
        together = adapted.velocity(x, t, words, models)
        alone = {model: adapted.velocity(x, t, words, model) for model in (PURE, BASE)}
    for i, model in enumerate(models):
        torch.testing.assert_close(together[i], alone[model][i], rtol=1e-4, atol=1e-5)
        other = alone[BASE if model == PURE else PURE][i]
        assert (together[i] - other).norm() > 0.05 * other.norm()
    with_graph = adapted.velocity(x, t, words, models)
    torch.testing.assert_close(with_graph.detach(), together, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_checkpointing_changes_no_gradient() -> None:
    """A block that is computed again reads the narrow matrices of its own forward, whatever was asked for since."""
    x, t, words = noise(2, CHANNELS, SIDE, SIDE, seed=8), torch.tensor([0.2, 0.8]), text("a [V] dog", count=2)
    found = []
    for on in (False, True):
        adapted = AdaptedNetwork(transformer().bfloat16())
        adapted.add_new(PURE, 2, 4.0, TARGETS["attention"], seed=0)
        strengthen(adapted, PURE)
        adapted.checkpoint_activations(on)
        loss = adapted.velocity(x, t, words, PURE).square().mean()
        with torch.no_grad():
            adapted.velocity(x, t, words, BASE)
        loss.backward()
        found.append([parameter.grad for parameter in adapted.lora_parameters(PURE)])
    assert sum(not grad.any() for grad in found[0]) == 2  # the last block's queries of the text, which SD3 drops
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
