"""What a LoRA adds to a Linear: with a gradient and without, in all samples and in some."""

from __future__ import annotations

import pytest
import torch
from tiny import CHANNELS, SIDE, network, noise, strengthen, text, transformer
from torch import Tensor, nn

from purecc.lora import ActingLora, Factors, changed, narrowed, read_together
from purecc.network import BASE, PURE, AdaptedNetwork
from purecc.targets import TARGETS

A, B = nn.Parameter(noise(2, 6, seed=1)), nn.Parameter(noise(8, 2, seed=2))
X, OUT = noise(3, 5, 6, seed=3), noise(3, 5, 8, seed=4)
EVERY = slice(None)


def added(out: Tensor, x: Tensor, scale: float | Tensor, samples: slice) -> Tensor:
    return changed(
        out, x, "linear", ActingLora({"linear": Factors(("linear",), A, (B,))}, scale, scale, samples), in_text=False
    )


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
    assert changed(OUT, X, "linear", none, in_text=False) is OUT
    assert added(OUT, X, 0.0, EVERY) is OUT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_matrices_are_narrowed_together_and_their_gradients_are_those_of_casts(dtype: torch.dtype) -> None:
    shapes = {"q": (6, 8), "k": (6, 8), "alone": (5, 7), "unread": (6, 8)}
    own = {
        name: (nn.Parameter(noise(2, of, seed=10 + i)), nn.Parameter(noise(to, 2, seed=20 + i)))
        for i, (name, (of, to)) in enumerate(shapes.items())
    }

    def gradients(products: list[Tensor]) -> list[Tensor | None]:
        for parameter in (p for pair in own.values() for p in pair):
            parameter.grad = None
        sum((product * noise(*product.shape, seed=i).to(dtype)).sum() for i, product in enumerate(products)).backward()
        return [parameter.grad for pair in own.values() for parameter in pair]

    factors = narrowed(own, [("q", "k"), ("alone",), ("unread",)], dtype)
    assert factors.keys() == own.keys() and factors["q"] is factors["k"] and factors["q"].a.shape == (4, 6)
    assert torch.equal(factors["q"].of("k").a, own["k"][0].to(dtype)) and factors["k"].of("k").b == (factors["q"].b[1],)
    a = [*factors["q"].a.chunk(2), factors["alone"].a]
    found = gradients([one @ two for one, two in zip((*factors["q"].b, *factors["alone"].b), a, strict=True)])
    expected = gradients([b.to(dtype) @ a.to(dtype) for a, b in list(own.values())[:3]])
    assert found[6:] == expected[6:] == [None, None]
    assert all(f.dtype == torch.float32 and torch.equal(f, e) for f, e in zip(found[:6], expected[:6], strict=True))


LINEARS = [nn.Linear(6, 8).requires_grad_(False), nn.Linear(6, 8, bias=False).requires_grad_(False)]
SCALES = {
    "1": 1.0,
    "half": 0.5,
    "of each": torch.tensor([0.0, 0.5, 2.0])[:, None, None],
    "of rows": noise(3, 5, 1, seed=9),
}


def lora(scale: float | Tensor, samples: slice = EVERY, seed: int = 0) -> ActingLora:
    a, b = noise(4, 6, seed=30 + seed), [noise(8, 2, seed=40 + seed + i) for i in range(2)]
    own = Factors(("q", "k"), a.requires_grad_(True), tuple(one.requires_grad_(True) for one in b))
    return ActingLora(dict.fromkeys(own.modules, own), scale, 0.0, samples)


def one_by_one(x: Tensor, loras: list[ActingLora]) -> list[Tensor]:
    outs = [linear(x) for linear in LINEARS]
    for one in loras:
        factors = one.factors["q"]
        for i, (a, b) in enumerate(zip(factors.a.chunk(2), factors.b, strict=True)):
            outs[i] = outs[i] + one.in_pictures * (x @ a.T @ b.T)
    return outs


@pytest.mark.parametrize("loras", [[], [lora(s) for s in (1.0,)], *([lora(s)] for s in list(SCALES.values())[1:]), [lora(0.5), lora(SCALES["of each"], seed=5)]],
                         ids=["none", *SCALES, "two"])  # fmt: skip
def test_read_together_is_as_one_by_one(loras: list[ActingLora]) -> None:
    x = noise(3, 5, 6, seed=3).requires_grad_(True)
    learnt = [x, *(p for one in loras for p in (one.factors["q"].a, *one.factors["q"].b))]
    wanted = [noise(3, 5, 8, seed=50 + i) for i in range(2)]
    found, expected = read_together(x, LINEARS, "q", loras, in_text=False), one_by_one(x, loras)
    torch.testing.assert_close(list(found), expected)
    of = lambda outs: torch.autograd.grad(outs, learnt, wanted)  # noqa: E731
    torch.testing.assert_close(of(found), of(expected))
    with torch.no_grad():
        torch.testing.assert_close(list(read_together(x, LINEARS, "q", loras, in_text=False)), expected)


def test_read_together_leaves_other_streams_and_other_samples_bit_for_bit() -> None:
    x, plain = noise(3, 5, 6, seed=3), [linear(noise(3, 5, 6, seed=3)) for linear in LINEARS]
    assert all(map(torch.equal, read_together(x, LINEARS, "q", [lora(1.0)], in_text=True), plain))
    with torch.no_grad():
        some = read_together(x, LINEARS, "q", [lora(1.0, slice(1, 2))], in_text=False)
    expected = one_by_one(x, [lora(1.0)])
    for one, base, whole in zip(some, plain, expected, strict=True):
        assert torch.equal(one[0], base[0]) and torch.equal(one[2], base[2])
        torch.testing.assert_close(one[1], whole[1])


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
