"""The converter on every workflow that the host itself ships and has the nodes for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from purecc.launch.server import Server
from purecc.launch.workflow import WorkflowError, to_prompt

KINDS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": (str, int)}


def stock_workflows() -> list[dict]:
    package = importlib.util.find_spec("comfyui_workflow_templates")
    if package is None or not package.submodule_search_locations:
        pytest.skip("this ComfyUI comes without its template package")
    # Newer hosts spread the files over several packages beside that one.
    site = Path(package.submodule_search_locations[0]).parent
    found = [
        json.loads(f.read_text(encoding="utf-8")) for f in site.glob("comfyui_workflow_templates*/**/templates/*.json")
    ]
    return [w for w in found if isinstance(w, dict) and "nodes" in w]


def test_every_value_has_the_type_of_its_input(server: Server) -> None:
    object_info = server.client.object_info()
    converted, wrong = 0, []
    for workflow in stock_workflows():
        try:
            prompt = to_prompt(workflow, object_info)
        except WorkflowError:  # a paid service's node, or a sub-graph
            continue
        converted += 1
        for node in prompt.values():
            groups = object_info[node["class_type"]]["input"]
            specs = {**groups.get("required", {}), **groups.get("optional", {})}
            for name, value in node["inputs"].items():
                if "." in name and name.split(".")[0] in specs:  # one of an input that grows
                    continue
                kind = specs[name][0] if isinstance(specs[name][0], str) else "COMBO"
                if kind in KINDS and not isinstance(value, (KINDS[kind], list)):
                    wrong.append((node["class_type"], name, value))
    assert not wrong
    assert converted > 20
