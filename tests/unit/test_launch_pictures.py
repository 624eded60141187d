"""Which nodes of workflow 01 are run to see what a turned setting does, or to teach another concept."""

from __future__ import annotations

from purecc.launch.pictures import ancestors, choose_parts, saving, taught_by_01

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


def test_a_second_concept_is_taught_by_what_leads_to_save_concept_alone() -> None:
    whole = {
        "1": {"class_type": "PureCCConceptSet", "inputs": {"folder": "a", "trigger": "[V]", "tokens": 1}},
        "2": {"class_type": "Train", "inputs": {"data": ["1", 0], "method": "LoRA"}},
        "3": {"class_type": "Train", "inputs": {"data": ["1", 0]}},
        "4": {"class_type": "PureCCSaveConcept", "inputs": {"concept": ["3", 0], "name": "first"}},
    }
    made = taught_by_01(whole, {"folder": "b", "trigger": "[W]"})
    assert sorted(made) == ["1", "3", "4"]
    assert made["1"]["inputs"] == {"folder": "b", "trigger": "[W]", "tokens": 1}
    assert made["4"]["inputs"]["name"] != "first"  # the first one's file stays
