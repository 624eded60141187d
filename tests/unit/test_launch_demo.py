"""What the demo does with the outputs of a finished prompt, on files in a base folder."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from purecc.launch.client import Client, HostError, raise_on_failure
from purecc.launch.demo import collect, load_workflow, report_text
from purecc.launch.layout import LaunchError
from purecc.launch.progress import Progress

PROMPT = {
    "2": {"class_type": "PureLearning", "_meta": {"title": "Pure Learning"}},
    "10": {"class_type": "SaveImage", "_meta": {"title": "Side by side"}},
}
NOBODY = Client("http://127.0.0.1:1")  # every file is in the base folder: nothing is asked for


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in (
        "output/pics/pair_00031_.png",
        "output/pics/pair_00032_.png",
        "output/sheet_00009_.png",
        "output/purecc/dog.safetensors",
    ):
        file = tmp_path / "base" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "base"


def saved(name: str, subfolder: str = "") -> dict:
    return {"filename": name, "subfolder": subfolder, "type": "output"}


def test_files_and_texts_are_collected_in_the_order_of_the_nodes(base: Path) -> None:
    found = collect(
        {
            "10": {
                "images": [
                    saved("pair_00031_.png", "pics"),
                    saved("pair_00032_.png", "pics"),
                    saved("sheet_00009_.png"),
                ],
                "animated": [False],
            },
            "2": {"text": ["drift 0.01"], "files": [saved("dog.safetensors", "purecc")]},
        },
        NOBODY,
        base,
    )
    assert [(n, name) for n, name, _ in found.files] == [
        ("2", "dog.safetensors"),
        ("10", "pair_01.png"),
        ("10", "pair_02.png"),
        ("10", "sheet_01.png"),
    ]
    assert found.pictures == ["pair_01.png", "pair_02.png"]  # a contact sheet shows pictures that are there already
    assert found.concepts == ["dog.safetensors"]
    assert found.texts == [("2", "drift 0.01")]
    assert found.files[1][2] == b"output/pics/pair_00031_.png"


def test_a_concept_file_named_in_a_text_is_taken(base: Path) -> None:
    path = base / "output/purecc/dog.safetensors"
    for text in (str(path), "output/purecc/dog.safetensors"):
        assert collect({"2": {"text": [text]}}, NOBODY, base).concepts == ["dog.safetensors"]
    assert collect({"2": {"text": ["no/such.safetensors"]}}, NOBODY, base).concepts == []


def test_the_report_holds_texts_files_and_times_under_the_nodes_titles(base: Path) -> None:
    progress = Progress(PROMPT, io.StringIO())
    for event in (("executing", {"node": "2"}), ("executing", {"node": "10"}), ("execution_success", {})):
        progress(*event)
    found = collect({"2": {"text": ["drift 0.01"]}, "10": {"images": [saved("sheet_00009_.png")]}}, NOBODY, base)
    report = report_text("01.json", PROMPT, found, progress, 61.0, "cpu", {"comfyui_version": "0.3.75"})
    assert "## Pure Learning\n\ndrift 0.01" in report
    assert "![sheet_01.png](sheet_01.png) (Side by side" in report
    assert "| Side by side (SaveImage) |" in report
    assert "61 s on the CPU, ComfyUI 0.3.75" in report


def test_progress_shows_the_node_and_the_step() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    progress = Progress(PROMPT, out)
    progress("executing", {"node": "2"})
    progress._shown = 0.0  # as if the last redraw were long ago
    progress("progress_state", {"nodes": {"2": {"state": "running", "node_id": "2", "value": 30, "max": 300}}})
    assert "Pure Learning: step 30/300" in out.getvalue()


def test_there_is_one_first_workflow(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="0 files named 01_"):
        load_workflow(tmp_path)
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "01_first.json").touch()
    assert load_workflow(tmp_path).name == "01_first.json"


def test_a_failed_record_names_the_node() -> None:
    error = {"node_id": "2", "exception_type": "ValueError", "exception_message": "the loss is not finite\n"}
    with pytest.raises(HostError, match=r"Pure Learning \(node 2\) failed: ValueError: the loss is not finite$"):
        raise_on_failure(
            {"status": {"status_str": "error", "messages": [["execution_start", {}], ["execution_error", error]]}},
            PROMPT,
        )
    raise_on_failure({"status": {"status_str": "success", "messages": []}}, PROMPT)
