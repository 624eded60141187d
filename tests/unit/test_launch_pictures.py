"""Which nodes of workflow 01 are run to see what a turned setting does."""

from __future__ import annotations

from purecc.launch.pictures import ancestors, choose_parts, saving

PROMPT = {
    "1": {"class_type": "Model", "inputs": {}},
    "2": {"class_type": "Train", "inputs": {"model": ["1", 0], "eta": 1.0}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "purecc/with_PureCC"}},
    "4": {"class_type": "Train", "inputs": {"model": ["1", 0]}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "purecc/with_plain_LoRA"}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "purecc/sheet_with_PureCC"}},
}


def test_only_what_leads_to_the_wanted_pictures_is_run() -> None:
    assert saving(PROMPT, ("_PureCC",)) == ["3"]
    assert sorted(ancestors(PROMPT, ["3"])) == ["1", "2", "3"]
    assert sorted(ancestors(PROMPT, saving(PROMPT, ("_PureCC", "_plain_LoRA")))) == ["1", "2", "3", "4", "5"]


def test_parts_are_made_in_their_order_whatever_the_order_asked_for() -> None:
    assert choose_parts(["turning", "01"]) == ["01", "turning"]
    assert choose_parts([])[0] == "01"
