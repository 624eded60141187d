"""The objective's closed forms: lambda* minimises eq. 14, its gradient is zero, nothing is ever NaN."""

from __future__ import annotations

import pytest
import torch
from tiny import noise
from torch import Tensor

from purecc import objective as eq
from purecc.flow import mean_time, sample_times

SHAPE = (3, 4, 8, 8)
R = noise(*SHAPE, seed=1)  # R_complete
G = noise(*SHAPE, seed=2) + 0.5 * R  # R_tar
V = noise(*SHAPE, seed=3)  # v_original


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


def spread(scale: Tensor) -> Tensor:
    return scale.view(-1, 1, 1, 1)


def loss_at(scale: Tensor, representation: Tensor = R, guidance: Tensor = G, original: Tensor = V) -> Tensor:
    """Eq. 14 for each sample, float64, [batch]."""
    v_pure = original.double() + spread(scale.double()) * guidance.double()
    return (v_pure - (original.double() + representation.double())).square().flatten(1).mean(1)


def test_equations_8_and_10_are_differences_in_this_order() -> None:
    assert torch.equal(eq.implicit_guidance(R, G), R - G)
    assert torch.equal(eq.learned_representation(R, V), R - V)


def test_lambda_is_the_projection_of_each_sample() -> None:
    scale = eq.adaptive_scale(R, G)
    assert scale.shape == (3,)
    torch.testing.assert_close(scale.double(), dot(R, G) / dot(G, G), rtol=1e-5, atol=1e-7)
    for i in range(3):
        torch.testing.assert_close(eq.adaptive_scale(R[i : i + 1], G[i : i + 1]), scale[i : i + 1])


def test_lambda_is_the_argmin_of_equation_14() -> None:
    """By a ternary search that knows nothing of the closed form."""
    low, high = torch.full((3,), -50.0, dtype=torch.float64), torch.full((3,), 50.0, dtype=torch.float64)
    for _ in range(120):
        third = (high - low) / 3
        left = loss_at(low + third) < loss_at(high - third)
        low, high = torch.where(left, low, low + third), torch.where(left, high - third, high)
    torch.testing.assert_close(eq.adaptive_scale(R, G).double(), (low + high) / 2, rtol=1e-5, atol=1e-6)


def test_the_functions_together_are_equation_14() -> None:
    scale = eq.adaptive_scale(R, G)
    made = eq.pure_loss(eq.pure_velocity(V, scale, G), V + R).mean()
    torch.testing.assert_close(made.double(), loss_at(scale).mean(), rtol=1e-5, atol=1e-7)
    off_line = dot(R, R) - dot(R, G) ** 2 / dot(G, G)  # what the line through R_tar does not reach
    torch.testing.assert_close(made.double(), off_line.mean() / R[0].numel(), rtol=1e-5, atol=1e-7)


def test_the_residual_is_orthogonal_to_the_guidance() -> None:
    residual = eq.pure_velocity(V, eq.adaptive_scale(R, G), G) - (V + R)
    cosine = dot(residual, G) / (dot(residual, residual) * dot(G, G)).sqrt()
    assert float(cosine.abs().max()) < 1e-6


@pytest.mark.parametrize("factor", [1e-6, 0.1, -2.0, 1e5])
def test_the_guidances_scale_does_not_reach_the_pure_velocity(factor: float) -> None:
    scale, scaled = eq.adaptive_scale(R, G), eq.adaptive_scale(R, factor * G)
    torch.testing.assert_close(scaled * factor, scale, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(eq.pure_velocity(V, scaled, factor * G), eq.pure_velocity(V, scale, G))


@pytest.mark.parametrize("along", [-1.5, 0.25, 2.0])
def test_what_goes_along_the_guidance_costs_nothing(along: float) -> None:
    scale = eq.adaptive_scale(along * G, G)
    torch.testing.assert_close(scale, torch.full((3,), along))
    assert float(eq.pure_loss(eq.pure_velocity(V, scale, G), V + along * G).max()) < 1e-11


def test_no_guidance_gives_lambda_0_and_finite_gradients() -> None:
    guidance = G.clone()
    guidance[1] = 0
    representation = R.clone().requires_grad_(True)
    scale = eq.adaptive_scale(representation, guidance)
    loss = eq.pure_loss(eq.pure_velocity(V, scale, guidance), V + representation).mean()
    loss.backward()
    assert float(scale[1]) == 0 and bool(scale[[0, 2]].ne(0).all())
    assert bool(torch.isfinite(scale).all()) and bool(torch.isfinite(representation.grad).all())
    torch.testing.assert_close(loss.detach().double(), loss_at(scale, guidance=guidance).mean(), rtol=1e-5, atol=1e-7)
    assert eq.squared_cosine(representation, guidance)[1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_velocities_are_computed_in_float32(dtype: torch.dtype) -> None:
    """Sums over elements would lose digits in bf16 and overflow in fp16."""
    complete, original, target, null = ((100 * noise(3, 16, 64, 64, seed=i)).to(dtype) for i in range(4))
    guidance, representation = eq.implicit_guidance(target, null), eq.learned_representation(complete, original)
    scale = eq.adaptive_scale(representation, guidance)
    v_pure = eq.pure_velocity(original, scale, guidance)
    results = (guidance, representation, scale, v_pure, eq.pure_loss(v_pure, complete), eq.concept_loss(complete, null))
    for result in (*results, eq.squared_cosine(representation, guidance)):
        assert result.dtype == torch.float32 and bool(torch.isfinite(result).all())
    exact = target.double() - null.double(), complete.double() - original.double()
    torch.testing.assert_close(scale.double(), dot(exact[1], exact[0]) / dot(exact[0], exact[0]), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(results[4].double(), loss_at(scale, exact[1], exact[0], original), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_of_half_precision_differences_too(dtype: torch.dtype) -> None:
    a, b = (100 * noise(2, 16, 64, 64, seed=5)).to(dtype), (100 * noise(2, 16, 64, 64, seed=6)).to(dtype) + 50
    torch.testing.assert_close(eq.inner_product(a, b).double(), dot(a, b), rtol=1e-4, atol=0)
    torch.testing.assert_close(eq.adaptive_scale(a, b).double(), dot(a, b) / dot(b, b), rtol=1e-3, atol=0)


def gradients(frozen: bool, attached: bool, multiplier: float = 1.0, fixed: float | None = None) -> list[Tensor]:
    """Of L_PureCC to two weights: one moves v(complete) alone, one moves v(complete) and, unless frozen, v_original."""
    own, shared = (torch.tensor(value, dtype=torch.float32, requires_grad=True) for value in (0.7, -0.4))
    common = noise(*SHAPE, seed=6)
    complete = V + own * R + shared * (common + 0.3 * G)
    original = V + (0 * shared if frozen else shared * common.square())
    representation = eq.learned_representation(complete, original)
    scale = eq.adaptive_scale(representation, G)
    if attached:
        scale = (representation * G).flatten(1).sum(1) / (G * G).flatten(1).sum(1)
    if fixed is not None:
        scale = torch.full((3,), fixed)
    loss = eq.pure_loss(eq.pure_velocity(original, multiplier * scale, G), complete).mean()
    return list(torch.autograd.grad(loss, (own, shared)))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_through_lambda_is_zero(frozen: bool) -> None:
    """The envelope theorem: lambda* detached, or kept in the graph, is the same."""
    for detached, attached in zip(gradients(frozen, False), gradients(frozen, True), strict=True):
        assert abs(float(detached)) > 1e-2
        torch.testing.assert_close(detached, attached, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_with_a_multiplier_it_is_not(frozen: bool) -> None:
    """So lambda* is always detached, rather than by chance harmless."""
    detached, attached = gradients(frozen, False, multiplier=3.0), gradients(frozen, True, multiplier=3.0)
    assert abs(float(detached[0] - attached[0])) > 0.1 * abs(float(detached[0]))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fixed_lambda_gives_another_gradient(frozen: bool) -> None:
    adaptive, fixed = gradients(frozen, False), gradients(frozen, False, fixed=3.0)
    assert abs(float(adaptive[0] - fixed[0])) > 0.1 * abs(float(adaptive[0]))


def test_lambda_and_the_cosine_keep_no_graph() -> None:
    representation = R.clone().requires_grad_(True)
    assert not eq.adaptive_scale(representation, G).requires_grad
    assert not eq.squared_cosine(representation, G).requires_grad


def test_squared_cosine_is_the_share_along_the_guidance() -> None:
    torch.testing.assert_close(
        eq.squared_cosine(R, G).double(), dot(R, G) ** 2 / dot(R, R) / dot(G, G), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(eq.squared_cosine(-3 * G, G), torch.ones(3))
    across = R - spread(eq.adaptive_scale(R, G)) * G
    assert float(eq.squared_cosine(across, G).max()) < 1e-11
    many = eq.squared_cosine(noise(200, 2, seed=7), noise(200, 2, seed=8))
    assert many.shape == (200,) and 0 <= float(many.min()) and float(many.max()) <= 1 + 1e-6
    assert torch.equal(eq.squared_cosine(torch.zeros(3, 4), torch.ones(3, 4)), torch.zeros(3))


def test_losses_are_means_over_the_elements_of_each_sample() -> None:
    for loss in (eq.concept_loss, eq.pure_loss, eq.anchor_loss):
        torch.testing.assert_close(
            loss(R, V), torch.stack([(r - v).square().mean() for r, v in zip(R, V, strict=True)])
        )


# In float64, with loss masks too

W = torch.full((3, 1, 8, 8), 0.05, dtype=torch.float64)
for i in range(3):
    W[i, :, i : i + 3, 2 * i : 2 * i + 3] = 1  # the concept's place
W = W / W.flatten(1).mean(1).view(-1, 1, 1, 1)
R64, G64, V64 = R.double(), G.double(), V.double()
MASKS = [None, W]


def weighted_loss(scale: Tensor, weights: Tensor | None) -> Tensor:
    residual = (spread(scale) * G64 - R64).square()
    return (residual if weights is None else residual * weights).flatten(1).mean(1)


@pytest.mark.parametrize("weights", MASKS, ids=["whole", "masked"])
def test_lambda_is_the_argmin_to_the_last_digits(weights: Tensor | None) -> None:
    """A parabola through three points of the loss has its lowest point at lambda*; a step to either side costs."""
    scale = eq.adaptive_scale(R64, G64, weights)
    assert scale.dtype == torch.float64
    at = lambda value: weighted_loss(torch.full((3,), value, dtype=torch.float64), weights)  # noqa: E731
    lowest = (at(-1.0) - at(1.0)) / (2 * (at(-1.0) + at(1.0) - 2 * at(0.0)))
    torch.testing.assert_close(scale, lowest, rtol=1e-10, atol=1e-12)
    for step in (-1e-3, 1e-3):
        assert bool((weighted_loss(scale + step, weights) > weighted_loss(scale, weights)).all())
    made = eq.pure_loss(eq.pure_velocity(V64, scale, G64), V64 + R64, weights)
    torch.testing.assert_close(made, weighted_loss(scale, weights), rtol=1e-10, atol=1e-12)
    if weights is not None:
        assert float((scale - eq.adaptive_scale(R64, G64)).abs().min()) > 1e-3


@pytest.mark.parametrize("weights", MASKS, ids=["whole", "masked"])
def test_the_residual_is_orthogonal_in_the_losss_own_inner_product(weights: Tensor | None) -> None:
    residual = eq.pure_velocity(V64, eq.adaptive_scale(R64, G64, weights), G64) - (V64 + R64)
    assert float(eq.inner_product(residual, G64, weights).abs().max()) < 1e-10


def through_lambda(
    *,
    weights: Tensor | None = None,
    fitted_with: Tensor | None = None,
    multiplier: float = 1.0,
    lowest: float | None = None,
    fitted_to: str = "residual",
) -> float:
    """How much larger the gradient of L_PureCC is through lambda*, by the whole, where lambda* is kept in the graph."""
    own = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    complete = V64 + own * R64 + own.square() * noise(*SHAPE, seed=6).double()
    representation = eq.learned_representation(complete, V64)
    other = representation + 0.5 * own * G64 + own * noise(*SHAPE, seed=8).double()
    fit = representation if fitted_to == "residual" else other
    product = lambda a: eq.inner_product(a, G64, fitted_with)  # noqa: E731
    attached = eq.bounded_scale(product(fit) / product(G64), multiplier, lowest, None)
    found = []
    for scale in (attached, attached.detach()):
        loss = eq.pure_loss(eq.pure_velocity(V64, scale, G64), complete, weights).mean()
        found.append(float(torch.autograd.grad(loss, own, retain_graph=True)[0]))
    return abs(found[0] - found[1]) / abs(found[1])


def test_the_gradient_through_lambda_is_zero_under_these_conditions() -> None:
    assert through_lambda() < 1e-12
    assert through_lambda(weights=W, fitted_with=W) < 1e-12
    assert through_lambda(lowest=-9.0) < 1e-12  # a clamp that is not in force


@pytest.mark.parametrize(
    "broken",
    [{"multiplier": 2.0}, {"weights": W}, {"fitted_with": W}, {"fitted_to": "another difference"}],
    ids=["multiplier", "mask in the loss alone", "mask in lambda* alone", "another difference"],
)
def test_and_not_outside_them(broken: dict) -> None:
    assert through_lambda(**broken) > 1e-3


def test_a_clamp_in_force_stops_what_flows_through_lambda_but_leaves_it_no_argmin() -> None:
    assert through_lambda(lowest=5.0) < 1e-12
    scale = eq.bounded_scale(eq.adaptive_scale(R64, G64), 1.0, 5.0, None)
    assert float(scale.min()) == 5 and bool((weighted_loss(scale, None) > weighted_loss(scale - 0.1, None)).all())


def test_bounds_hold_what_acts_after_the_multiplier() -> None:
    scale = torch.tensor([-2.0, 0.0, 0.4, 3.0])
    assert eq.bounded_scale(scale, 2.0, -1.0, 1.0).tolist() == pytest.approx([-1, 0, 0.8, 1])
    assert torch.equal(eq.bounded_scale(scale, 1.0, None, None), scale)
    assert eq.bounded_scale(scale, 1.0, 0.5, None).tolist() == pytest.approx([0.5, 0.5, 0.5, 3])
    assert eq.bounded_scale(scale, -1.0, None, 0.0).tolist() == pytest.approx([0, 0, -0.4, -3])


def test_weights_of_one_change_nothing() -> None:
    ones = torch.ones(3, 1, 8, 8)
    torch.testing.assert_close(eq.adaptive_scale(R, G, ones), eq.adaptive_scale(R, G))
    torch.testing.assert_close(eq.concept_loss(R, V, ones), eq.concept_loss(R, V))
    torch.testing.assert_close(eq.squared_cosine(R, G, ones), eq.squared_cosine(R, G))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("schedule", ["constant", "high noise", "low noise"])
def test_eta_has_its_mean_over_the_times_learnt_from(schedule: str, shift: float) -> None:
    t = sample_times(200_000, shift, torch.Generator().manual_seed(0)).double()
    found = eq.eta_at(t, 1.5, schedule, mean_time(shift))
    assert float(found.mean()) == pytest.approx(1.5, rel=5e-3)
    rises = float(found[t > 0.8].mean() - found[t < 0.3].mean())
    assert {"constant": rises == 0, "high noise": rises > 0.5, "low noise": rises < -0.5}[schedule]


def test_without_a_shift_eta_is_twice_t() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    assert mean_time(1.0) == pytest.approx(0.5, abs=1e-9)
    assert eq.eta_at(t, 3.0, "high noise").tolist() == [0, 1.5, 6]
    assert eq.eta_at(t, 3.0, "low noise").tolist() == [6, 4.5, 0]


@pytest.mark.parametrize("weights", MASKS, ids=["whole", "masked"])
def test_squared_cosine_is_the_share_of_the_loss_that_lambda_takes_away(weights: Tensor | None) -> None:
    nothing = weighted_loss(torch.zeros(3, dtype=torch.float64), weights)
    left = weighted_loss(eq.adaptive_scale(R64, G64, weights), weights)
    torch.testing.assert_close(eq.squared_cosine(R64, G64, weights), 1 - left / nothing, rtol=1e-10, atol=1e-12)
