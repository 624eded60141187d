"""Time's direction, inverse pairs, and the schedule of diffusers' own scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import noise

from purecc.flow import add_noise, mean_time, picture_from_velocity, sample_times, shift_time, sigmas, velocity

X0, X1 = noise(5, 4, 8, 8, seed=1).double(), noise(5, 4, 8, 8, seed=2).double()
T = torch.tensor([0.0, 0.1, 0.5, 0.97, 1.0], dtype=torch.float64)


def test_t_0_is_the_picture_and_t_1_is_noise() -> None:
    assert torch.equal(add_noise(X0, X1, torch.zeros(5)), X0)
    assert torch.equal(add_noise(X0, X1, torch.ones(5)), X1)
    assert torch.equal(velocity(X0, X1), X1 - X0)


def test_velocity_is_the_derivative_of_the_path() -> None:
    h = 1e-3
    slope = (add_noise(X0, X1, T + h) - add_noise(X0, X1, T)) / h
    torch.testing.assert_close(slope, velocity(X0, X1), rtol=1e-9, atol=1e-9)


def test_each_sample_has_its_own_time() -> None:
    both = add_noise(X0, X1, T)
    for i in range(5):
        assert torch.equal(both[i : i + 1], add_noise(X0[i : i + 1], X1[i : i + 1], T[i : i + 1]))


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (5, 3), (5, 4, 2, 8, 8)])
def test_the_velocity_points_back_to_the_picture(shape: tuple[int, ...]) -> None:
    x0, x1 = noise(*shape, seed=3).double(), noise(*shape, seed=4).double()
    back = picture_from_velocity(add_noise(x0, x1, T), velocity(x0, x1), T)
    torch.testing.assert_close(back, x0, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_shift_keeps_both_ends_and_its_inverse_is_the_reciprocal(shift: float) -> None:
    torch.testing.assert_close(shift_time(shift_time(T, shift), 1 / shift), T, rtol=1e-14, atol=1e-14)
    assert shift_time(T, shift)[[0, -1]].tolist() == [0.0, 1.0]
    assert torch.equal(shift_time(T, 1.0), T)


def test_a_shift_of_3_favours_noise() -> None:
    assert float(shift_time(torch.tensor(0.5), 3.0)) == 0.75


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 28, 50, 200])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_is_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(steps)
    ours = sigmas(steps, shift)
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(1000 * ours[:-1], scheduler.timesteps, rtol=1e-6, atol=1e-4)
    assert ours[0] == 1 and ours[-1] == 0 and bool((ours.diff() < 0).all())


def test_training_times_are_logit_normal_then_shifted() -> None:
    generator = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    plain, shifted = sample_times(20_000, 1.0, generator()), sample_times(20_000, 3.0, generator())
    torch.testing.assert_close(shifted, shift_time(plain, 3.0))
    logits = plain.double().logit()
    assert abs(float(logits.mean())) < 0.03 and abs(float(logits.std()) - 1) < 0.03
    assert 0 < float(shifted.min()) and float(shifted.max()) < 1
    assert abs(float(shifted.median()) - 0.75) < 0.01


def test_the_grid_is_what_diffusers_scripts_draw() -> None:
    """The scheduler's own 1000 times at the places that a logit-normal number gives, as train_dreambooth_lora_sd3 takes them."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    u = torch.randn(500, generator=torch.Generator().manual_seed(3)).sigmoid()
    expected = scheduler.timesteps[(u * 1000).long()] / 1000
    made = sample_times(500, 3.0, torch.Generator().manual_seed(3), grid=True)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    assert len(made.unique()) < 500 and mean_time(3.0, grid=True) == pytest.approx(mean_time(3.0), abs=1e-3)
