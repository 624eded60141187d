"""Presets are settings that exist, and hold what the paper and its code state."""

from __future__ import annotations

import pytest

from purecc.presets import PRESETS
from purecc.settings import PureSettings, TrainSettings


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_is_a_setting(name: str) -> None:
    preset = PRESETS[name]
    for values in (preset.extractor, preset.pure):
        made = TrainSettings(**values)
        assert all(getattr(made, field) == value for field, value in values.items())
    PureSettings(**preset.method)


def test_as_shown_sets_nothing() -> None:
    preset = PRESETS["as shown"]
    assert not (preset.extractor or preset.pure or preset.method) and preset.extractor_lora is None


def test_the_paper_and_its_code_differ_where_they_say_so() -> None:
    paper, code = PRESETS["paper"], PRESETS["public code"]
    assert (paper.method["eta"], code.method["eta"]) == (1.0, 2.0)
    assert (paper.method["fixed_scale"], code.method["fixed_scale"]) == (None, 1.0)
    assert (paper.pure["steps"], code.pure["steps"]) == (400, 800)
    assert (paper.pure["batch_size"], code.pure["batch_size"]) == (2, 4)
    assert (paper.extractor["batch_size"], code.extractor["batch_size"]) == (2, 4)
    for stage in (paper.extractor, paper.pure, code.extractor, code.pure):  # whatever the nodes show
        assert (stage["schedule"], stage["warmup"], stage["accumulate"], stage["stop_patience"]) == (
            "constant",
            0,
            1,
            0,
        )
        assert (stage["weight_decay"], stage["max_grad_norm"]) == (1e-4, 1.0)
    assert (paper.extractor_lora, code.extractor_lora) == (True, False)
    assert paper.method["original"] == code.method["original"] == "trainable"  # eq. 9
