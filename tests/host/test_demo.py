"""The demo's way from a workflow file to a folder of pictures, on the real server, with stock nodes in place of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from purecc.launch.demo import MIN_PICTURES, run_demo
from purecc.launch.install import make_base
from purecc.launch.layout import PROJECT, LaunchError, Layout


def test_pictures_and_report_are_written_and_a_missing_concept_file_is_a_failure(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Layout(tmp_path / "project", users_comfyui=layout.comfyui, users_python=layout.python)
    make_base(project.base, PROJECT)
    image = [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]
    graph = {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "mode": 0, "outputs": image, "widgets_values": [32, 32, MIN_PICTURES, 255]},
            {
                "id": 2,
                "type": "SaveImage",
                "title": "Side by side",
                "mode": 0,
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "widgets_values": ["demo/pair"],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }
    (project.project / "workflows").mkdir()
    (project.project / "workflows" / "01_first.json").write_text(json.dumps(graph), encoding="utf-8")

    with pytest.raises(LaunchError, match="no concept file"):
        run_demo(project, "cpu", tmp_path / "out")

    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [*(f"pair_{i:02d}.png" for i in range(1, MIN_PICTURES + 1)), "report.md"]
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "![pair_24.png](pair_24.png) (Side by side" in report
    assert "Side by side" in capsys.readouterr().out
