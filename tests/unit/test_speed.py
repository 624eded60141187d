"""What of the benchmarks of speed and memory cannot be noisy: gradients, FLOPs and bytes of their arms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import counted as counting
from benchmarks.counted import counted, flops, gradients_apart
from benchmarks.memory import FORMS, GOALS, MODELS, RUNGS, estimated, planned, sizes, told
from benchmarks.rung import Rung
from benchmarks.speed import Bench, measured, table
from benchmarks.stand_ins import REAL, SLICE, TINY, flops_of
from purecc.network import BASE, PURE
from purecc.settings import MEMORIES


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(TINY)


@pytest.mark.parametrize(("arm", "reference"), [("P", "R"), ("E", "R1")])
def test_the_product_has_the_references_gradient(bench: Bench, arm: str, reference: str) -> None:
    expected = bench.gradient(reference)
    assert expected.norm() > 0
    assert (bench.gradient(arm) - expected).norm() < 1e-5 * expected.norm()


def test_a_detached_base_branch_has_another_gradient(bench: Bench) -> None:
    reference = bench.gradient("R")
    assert (bench.gradient("S") - reference).norm() > 1e-3 * reference.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_flops_of_attention_on_a_cpu(masked: bool) -> None:
    """As many as without the fused kernel, which computes the scores again in the backward pass."""

    def flops(forward_only: bool) -> int:
        q, k, v = (torch.randn(2, 4, 30, 64, requires_grad=True) for _ in range(3))
        mask = torch.randn(1, 4, 30, 30) if masked else None

        def attend() -> None:
            made = scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if not forward_only:
                made.sum().backward()

        return flops_of(attend)

    product = 2 * 2 * 4 * 30 * 30 * 64
    assert (flops(True), flops(False)) == (2 * product, 7 * product)
    with sdpa_kernel(SDPBackend.MATH):
        assert (flops(True), flops(False)) == (2 * product, 6 * product)


def test_flops_of_a_step(bench: Bench) -> None:
    flops = {arm: bench.flops(arm) for arm in ("R", "P", "S", "D", "R1", "E", "L")}
    batch = bench.cached
    with torch.no_grad():
        forward, of_base = (
            flops_of(lambda model=model: bench.product.velocity(batch.x_t, batch.t, batch.complete, model))
            for model in (PURE, BASE)
        )
    backward = flops["P"] - flops["S"]
    assert 0.5 * forward < backward < 1.5 * forward  # weights are frozen: the inputs' gradient, and little for the LoRA
    assert flops["S"] - backward == 4 * forward  # complete, target, null, original
    assert flops["D"] - backward == 3 * forward + of_base  # a LoRA is computed in its own samples alone
    assert flops["R"] > 1.02 * flops["P"]  # its encoders
    assert flops["E"] == flops["L"]
    assert flops["R1"] > 1.02 * flops["E"]


def test_a_cpu_counts_what_tensors_without_storage_count(bench: Bench) -> None:
    for arm, count in flops(TINY).items():
        assert bench.flops(arm) == pytest.approx(count, rel=0.001), arm


def test_bytes_alive_in_a_step(bench: Bench) -> None:
    peaks = {arm: bench.peak(arm) for arm in ("R", "P", "S", "A", "L", "R1", "E")}
    assert peaks["S"] < 0.75 * peaks["P"]
    assert peaks["P"] < 1.02 * peaks["R"]
    assert peaks["L"] < peaks["A"] < peaks["P"]  # a scene for two pictures: half as many activations more
    assert peaks["E"] < 1.02 * peaks["R1"]  # at this width the copies show that lie below one another, of matrices A


def test_the_table_holds_each_stage_against_its_own_reference(bench: Bench) -> None:
    found = measured(bench, 1)
    assert {arm: one["against"] for arm, one in found["arms"].items()} == {
        **dict.fromkeys(("R", *"PSDAL"), "R"), **dict.fromkeys(("R1", "E"), "R1"),
    }  # fmt: skip
    assert found["arms"]["R1"]["speed"] == 1 and found["arms"]["E"]["of the matrix rate"] > 0
    stage2, stage1 = table(found).split("speed against R1")
    assert "64 px" in stage2 and "\nA  " in stage2 and "\nE  " in stage1 and "\nR1 " in stage1


def test_some_arms_are_measured_beside_their_reference(bench: Bench) -> None:
    found = measured(bench, 1, arms=["S", "D"])
    assert list(found["arms"]) == ["R", "S", "D"] and "speed against R1" not in table(found)


def test_kernels_and_flops_of_a_step_at_the_real_size() -> None:
    """Without storage, so a step that asked the device for a value (and would wait for it on a GPU) fails here."""
    found = counted(REAL)
    r = found["R"]
    ratios = {arm: r.flops / one.flops for arm, one in found.items() if arm not in ("R", "R1", "E")}
    assert ratios == pytest.approx({"P": 1.33, "S": 1.63, "D": 1.63, "A": 1.46, "L": 3.87}, abs=0.02)
    assert found["R1"].flops / found["E"].flops == pytest.approx(1.42, abs=0.02)
    most = {"P": 0.28, "S": 0.295, "D": 0.28, "A": 0.28, "L": 0.185}  # of R's, autocast's casts with them
    assert all(found[arm].kernels < share * r.kernels for arm, share in most.items())
    assert found["E"].kernels < 0.33 * found["R1"].kernels
    rows = counting.table(found)
    assert "| R1 and its arms |" in rows and "| A |" in rows


def test_without_autocast_bfloat16_gradients_are_near_float32s() -> None:
    assert all(0 < apart < 0.05 for apart in gradients_apart(replace(TINY, dtype=torch.bfloat16)).values())


@pytest.mark.parametrize(("rows", "p", "s"), [(154, 1.37, 1.61), (333, 1.82, 2.16)])
def test_flops_of_the_slice_that_a_cpu_measures(rows: int, p: float, s: float) -> None:
    found = flops(replace(SLICE, t5_tokens=rows - 77))
    ratios = {arm: found["R"] / found[arm] for arm in "PSD"}
    assert ratios == pytest.approx({"P": p, "S": s, "D": s}, abs=0.02)


# Memory


@pytest.mark.parametrize("form", FORMS)
def test_a_step_with_each_rung_of_the_savings(form: str) -> None:
    """The exact ones give the same loss twice; the base in fewer bytes nearly the same."""
    losses = []
    for settings in RUNGS:
        rung = Rung(TINY, settings, FORMS[form])
        losses.append([float(rung.step()) for _ in range(2)])
    exact, stored = losses[:6], losses[6:]
    assert all(one == pytest.approx(exact[0], rel=1e-6) for one in exact)
    assert all(one == pytest.approx(exact[0], rel=0.02) and one != exact[0] for one in stored)
    assert losses[6] == losses[8]  # blocks that wait in main memory


@pytest.mark.parametrize(
    ("rung", "form"),
    [
        *((rung, form) for rung in (0, 2) for form in FORMS),
        *((rung, "stage 2, as shipped") for rung in (1, 3, 4)),
        *((rung, "stage 2, paper") for rung in (4, 5, 6, 7, 8)),
    ],
)
def test_a_rungs_bytes_are_those_told(rung: int, form: str) -> None:
    """What is told of the device and of main memory together, which are one here.

    At 128 px: of the smallest size what learns would be a fifth, and it is not all there at the peak. With steps of fewer pictures the
    peak under checkpointing is of the eight samples before them, when adaLN's outputs of steps are not there: told too high.
    """
    pictures = 6 if rung > 4 else TINY.batch
    own = Rung(replace(TINY, pixels=128, positions=8, layers=3, batch=pictures), RUNGS[rung], FORMS[form])
    found, expected = own.peak(), own.estimated()
    beside_weights = expected.peak + expected.host - own.frozen
    print(f"estimated {beside_weights / 1e6:.2f} MB, measured {found / 1e6:.2f} MB")
    assert beside_weights == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("rung", range(5, len(RUNGS)))
def test_of_few_pictures_no_less_is_told_than_taken(rung: int) -> None:
    """See above; of two pictures it is the forwards before the steps that take most."""
    own = Rung(replace(TINY, pixels=128, positions=8, layers=3), RUNGS[rung], FORMS["stage 2, paper"])
    found, expected = own.peak(), own.estimated()
    assert 1 < (expected.peak + expected.host - own.frozen) / found < 1.35


def test_checkpointing_computes_a_forward_again() -> None:
    plain, again = (Rung(TINY, RUNGS[rung], None).flops() for rung in (0, 4))
    assert 1.3 * plain < again < 1.7 * plain


def test_the_tables_of_memory() -> None:
    rows, by_size = estimated(512), sizes(512)
    assert len(rows) == 2 + len(RUNGS) and all(row.count("|") == 3 + len(MODELS) for row in rows)
    assert rows[2].count("/") == (len(FORMS) - 1) * len(MODELS)
    assert len(by_size) == 2 + 5 and "nothing: " in by_size[2] and "float8" in str(by_size)


def test_the_goals_of_memory_hold() -> None:
    for rung, goal in GOALS.items():
        for pure in FORMS.values():
            assert told(MODELS["SD3.5 Medium"], 512, pure, RUNGS[rung]).peak <= goal


@pytest.mark.parametrize("pixels", [512, 1024])
def test_every_value_of_the_setting_memory_has_a_plan_for_sd35_medium(pixels: int) -> None:
    for memory in MEMORIES[1:-1]:
        chosen = planned(MODELS["SD3.5 Medium"], pixels, memory)
        assert chosen.needed.peak < 1e9 * float(memory.split()[0])
