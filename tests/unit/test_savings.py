"""What is turned on where memory is short: the first rung that fits, in the order of its cost, and told."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from test_memory import BIG, SD35_MEDIUM

from purecc.memory import Estimate, estimate
from purecc.savings import LADDER, Plan, Room, has_room_for_more, plan
from purecc.settings import MEMORIES, PureSettings, TrainSettings

AMPLE = int(64e9)


@cache
def of(settings: TrainSettings) -> Estimate:
    return estimate(SD35_MEDIUM, BIG, settings, PureSettings(), torch.bfloat16)


def chosen(free: float, settings: TrainSettings | None = None, device: str = "cuda", main: int = AMPLE) -> Plan:
    return plan(of, settings or TrainSettings(), Room(device, int(free), main))


def test_where_all_fits_nothing_is_turned_on() -> None:
    found = chosen(24e9)
    assert found.settings == TrainSettings()
    assert "memory: about" in found.line and "24.0 GB are free" in found.line and "Turned on" not in found.line


def test_less_room_turns_more_on_in_the_ladders_order() -> None:
    seen: list[TrainSettings] = []
    for tenths in range(120, 5, -1):
        try:
            found = chosen(tenths * 1e8)
        except ValueError:
            break
        assert found.needed.peak < tenths * 1e8
        settings = replace(found.settings, record_steps=True)
        if settings not in seen:
            seen.append(settings)
    rungs = [TrainSettings(**changes) for changes in LADDER]
    assert seen == [rung for rung in rungs if rung in seen]
    assert {(s.frozen_weights, s.stream_blocks) for s in seen} == {
        ("whole", False),
        ("float8", False),
        ("nf4", False),
        ("float8", True),
    }
    peaks = [of(settings).peak for settings in seen]
    assert peaks == sorted(peaks, reverse=True)


def test_steps_are_recorded_where_there_is_room_for_a_step_twice_and_for_the_drivers_part() -> None:
    needed = of(TrainSettings())
    enough = 1.05 * (needed.peak + needed.step + 1e9) + 0.3e9
    on = lambda free, settings, records=True: plan(of, settings, Room("cuda", int(free), AMPLE, records))  # noqa: E731
    for free, recorded in ((1.01 * enough, True), (0.99 * enough, False)):
        found = on(free, TrainSettings())
        assert found.needed == needed and found.settings == TrainSettings(record_steps=recorded)
        assert ("room to record steps" in found.line) is recorded
    keeps = Room("cuda", int(1.01 * enough), AMPLE, records=True, reserved=int(0.02 * enough))  # --reserve-vram
    assert not plan(of, TrainSettings(), keeps).settings.record_steps
    for settings in (TrainSettings(record_steps=False), TrainSettings(checkpointing=True)):
        assert "to record" not in on(64e9, settings).line
    for free, has_room in ((1.01 * enough, True), (0.99 * enough, False)):  # by an allocator that cannot record
        found = on(free, TrainSettings(), records=False)
        assert "to record" not in found.line and found.settings.can_record is has_room


def test_texts_wait_on_the_device_where_steps_are_recorded_if_there_is_room_for_them_too() -> None:
    with_texts = estimate(
        SD35_MEDIUM, replace(BIG, texts=2_000_000_000), TrainSettings(), PureSettings(), torch.bfloat16
    )
    needed = of(TrainSettings())
    assert with_texts.peak == needed.peak
    assert with_texts.texts == 1_000_000_000  # told in float32, kept in bfloat16
    enough = Room("cuda", int(1.06 * (needed.peak + needed.step + 1e9) + 0.3e9), AMPLE, True)
    assert plan(lambda _: needed, TrainSettings(), enough).settings.record_steps
    assert not plan(lambda _: with_texts, TrainSettings(), enough).settings.record_steps


def test_on_cuda_each_matrix_in_nf4_is_told_half_a_mebibyte_more() -> None:
    def on(device: str, storage: str) -> int:
        settings = TrainSettings(frozen_weights=storage)
        return estimate(SD35_MEDIUM, BIG, settings, None, torch.bfloat16, device).weights

    assert on("cuda", "nf4") - on("cpu", "nf4") == pytest.approx(337 * 2**19, rel=0.01)
    assert on("cuda", "float8") == on("cpu", "float8")


def test_the_hosts_models_stay_on_a_gpu_that_has_room_for_as_much_again() -> None:
    needed = of(TrainSettings())
    enough = 1.05 * (needed.peak + needed.step + 1e9) + 0.3e9
    assert has_room_for_more(needed, Room("cuda", int(1.01 * enough), AMPLE))
    assert not has_room_for_more(needed, Room("cuda", int(0.99 * enough), AMPLE))
    assert not has_room_for_more(needed, Room("cuda", int(1.01 * enough), AMPLE, reserved=int(0.02 * enough)))
    for device in ("cpu", "mps"):  # whose memory is the main one
        assert not has_room_for_more(needed, Room(device, AMPLE, AMPLE))


def test_the_goals_of_each_form() -> None:
    """512 px, batch 2, stage 2, 154 rows of text: what the project set itself."""
    inputs = type(BIG)(1024, 154)
    peak = lambda **on: estimate(SD35_MEDIUM, inputs, TrainSettings(**on), PureSettings(), torch.bfloat16).peak  # noqa: E731
    exact = {"checkpointing": True, "modulation_table": True}
    assert peak() < 9.5e9
    assert peak(checkpointing=True) < 5.8e9
    assert peak(**exact) < 4.3e9
    assert peak(**exact, frozen_weights="nf4") < 2.6e9


def test_texts_that_learn_have_no_table() -> None:
    tight = chosen(4.6e9, TrainSettings(token_embeddings=True))
    assert tight.settings.checkpointing and not tight.settings.modulation_table


def test_a_size_is_as_on_a_card_of_that_size() -> None:
    for memory in MEMORIES[1:-1]:
        on_large, on_small = chosen(80e9, TrainSettings(memory=memory)), chosen(float(memory.split()[0]) * 1e9)
        assert on_large.needed == on_small.needed
    assert chosen(4e9, TrainSettings(memory="24 GB")).needed == chosen(4e9).needed  # no more than is free


def test_a_run_that_was_begun_goes_on_as_it_was_stored() -> None:
    """A base that is stored otherwise is another run: what is free at the moment does not decide between them."""
    going_on = lambda kind, free: plan(  # noqa: E731
        of, TrainSettings(), Room("cuda", int(free), AMPLE), lambda rung: rung.frozen_weights == kind
    )
    assert going_on("float8", 24e9).settings.frozen_weights == "float8"
    assert going_on("whole", 24e9) == chosen(24e9)
    assert "was begun" not in going_on("float8", 24e9).line
    tight = going_on("whole", 2.9e9)  # no longer fits
    assert tight.settings == chosen(2.9e9).settings and tight.settings.frozen_weights == "float8"
    assert "A run that was begun with its base as loaded waits" in tight.line
    on_cpu = plan(of, TrainSettings(), Room("cpu", int(1e8), AMPLE), lambda rung: rung.frozen_weights == "whole")
    assert on_cpu.settings.frozen_weights == "whole"  # nothing fits, and nothing is refused: it goes on all the same


def test_what_was_turned_on_is_told() -> None:
    line = chosen(5e9, TrainSettings(memory="6 GB")).line
    assert "Turned on for it (memory: 6 GB): checkpointing" in line and "without," in line
    assert "float8 (not quite the same result)" in chosen(3e9).line
    assert "NF4" in chosen(2.4e9).line
    assert "main memory" in chosen(4.8e9).line  # adaLN's layers


def test_what_a_person_turned_on_stays() -> None:
    own = TrainSettings(checkpointing=True, frozen_weights="nf4")
    assert chosen(24e9, own).settings == own
    assert all(chosen(free, own).settings.frozen_weights == "nf4" for free in (3e9, 2.4e9))


def test_as_set_turns_nothing_on_and_says_what_would() -> None:
    assert chosen(24e9, TrainSettings(memory="as set")).settings == TrainSettings(memory="as set")
    words = r"needs about \d+\.\d GB.* 8\.0 GB are free\. To make it fit, set memory to auto \(it turns on .*; then \d"
    with pytest.raises(ValueError, match=words):
        chosen(8e9, TrainSettings(memory="as set"))


def test_what_never_fits_is_refused_with_what_to_change() -> None:
    with pytest.raises(ValueError, match="lower the resolution.*Nothing was started"):
        chosen(0.5e9)
    with pytest.raises(ValueError, match=r"set batch_size to 1, with checkpointing.*\(then"):
        chosen(1.4e9, TrainSettings(batch_size=8))


def test_weights_go_to_main_memory_only_where_it_has_room() -> None:
    assert not chosen(5.9e9, main=int(1e9)).settings.modulation_table
    with pytest.raises(ValueError, match="Of main memory 1.0 GB are free"):
        chosen(3e9, main=int(1e9))


def test_a_cpu_gets_what_helps_there_and_is_never_refused() -> None:
    assert chosen(4e9, device="cpu").settings.checkpointing
    least = chosen(1e9, device="cpu")
    assert least.settings == TrainSettings(checkpointing=True, frozen_weights="nf4")  # moving weights wins nothing
    assert "main memory" in least.line


@pytest.mark.parametrize("device", ["mps", "privateuseone"])  # Apple's, DirectML's
def test_some_gpus_have_no_float8(device: str) -> None:
    found = chosen(3.5e9, device=device)
    assert found.settings.frozen_weights == "nf4" and not found.settings.stream_blocks


def test_adalns_layers_count_where_they_are() -> None:
    own = TrainSettings(modulation_table=True, memory="as set")
    peak = of(own).peak
    assert Room("cuda", int(1.1 * peak + 3e8), AMPLE).holds(of(own))
    assert not Room("cpu", int(1.1 * peak), AMPLE).holds(of(own))
