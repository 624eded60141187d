"""What of the speed benchmark cannot be noisy: gradients, FLOPs and bytes of its arms."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counted import counted
from benchmarks.memory import MODELS, Rung, estimated, sizes
from benchmarks.speed import Bench
from benchmarks.stand_ins import REAL, TINY
from purecc.network import PURE
from purecc.savings import LADDER


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
    assert flops["D"] == flops["S"]  # the frozen base shares the extractor's forward, its LoRA times 0
    assert flops["R"] > 1.02 * flops["P"]  # its encoders


def test_bytes_alive_in_a_step(bench: Bench) -> None:
    peaks = {arm: bench.peak(arm) for arm in ("R", "P", "S")}
    assert peaks["S"] < 0.75 * peaks["P"]
    assert peaks["P"] < 1.02 * peaks["R"]


def test_kernels_and_flops_of_a_step_at_the_real_size() -> None:
    """Without storage, so a step that asked the device for a value (and would wait for it on a GPU) fails here."""
    found = counted(REAL)
    r = found["R"]
    assert {arm: r.flops / one.flops for arm, one in found.items() if arm != "R"} == pytest.approx(
        {"P": 1.33, "S": 1.63, "D": 1.63}, abs=0.02
    )
    assert found["D"].kernels < 0.5 * r.kernels
    assert found["S"].kernels < 0.62 * r.kernels
    assert found["P"].kernels < 0.5 * r.kernels


# Memory


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_with_each_rung_of_the_savings(stage: int) -> None:
    """The exact ones give the same loss twice; the base in fewer bytes nearly the same."""
    losses = {}
    for changes in LADDER:
        rung = Rung(TINY, changes, stage)
        losses[str(changes)] = [float(rung.step()) for _ in range(2)]
        assert rung.estimated().peak > 0
    exact, stored = list(losses.values())[:4], list(losses.values())[4:]
    assert all(one == exact[0] for one in exact)
    assert all(one == pytest.approx(exact[0], rel=0.02) and one != exact[0] for one in stored)
    assert losses[str(LADDER[4])] == losses[str(LADDER[6])]  # blocks that wait in main memory


def test_the_tables_of_memory() -> None:
    rows, by_size = estimated(512), sizes(512)
    assert len(rows) == 2 + len(LADDER) and all(row.count("|") == 3 + len(MODELS) for row in rows)
    assert len(by_size) == 2 + 5 and "nothing: 9.2 GB" in by_size[2] and "float8" in str(by_size)
