"""What of the speed benchmark cannot be noisy: gradients, FLOPs and bytes of its arms."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import TINY, Bench
from purecc.network import PURE


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(TINY)


def test_the_product_has_the_references_gradient(bench: Bench) -> None:
    reference = bench.gradient("R")
    assert reference.norm() > 0
    assert (bench.gradient("P") - reference).norm() < 1e-5 * reference.norm()
    assert (bench.gradient("S") - reference).norm() > 1e-3 * reference.norm()  # or the first could not fail


def test_flops_of_a_step(bench: Bench) -> None:
    flops = {arm: bench.flops(arm) for arm in ("R", "P", "S", "D")}
    batch = bench.cached
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bench.product.velocity(batch.x_t, batch.t, batch.complete, PURE)
    forward = counter.get_total_flops()
    backward = flops["P"] - flops["S"]
    assert 0.5 * forward < backward < 1.5 * forward  # weights are frozen: the inputs' gradient, and little for the LoRA
    assert flops["S"] - backward == pytest.approx(4 * forward, rel=0.01)  # complete, target, null, original
    assert 0.97 * flops["S"] < flops["D"] < flops["S"]  # the frozen base has no LoRA
    assert flops["R"] > 1.02 * flops["P"]  # its encoders


def test_bytes_alive_in_a_step(bench: Bench) -> None:
    peaks = {arm: bench.peak(arm) for arm in ("R", "P", "S")}
    assert peaks["S"] < 0.75 * peaks["P"]
    assert peaks["P"] < 1.02 * peaks["R"]
