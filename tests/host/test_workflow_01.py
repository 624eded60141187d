"""The shared workflow 01 itself on the real server, with the training cut to a few steps; and the host's list of templates."""

from __future__ import annotations

import json

from purecc.launch.demo import load_workflow
from purecc.launch.layout import PACK_NAME, PROJECT
from purecc.launch.server import Server
from purecc.launch.workflow import to_prompt


def test_it_runs_to_the_end(server: Server) -> None:
    graph = json.loads(load_workflow(PROJECT).read_text(encoding="utf-8"))
    prompt = to_prompt(graph, server.client.object_info())
    for node in prompt.values():
        for name, small in (("steps", 2), ("batch_size", 1)):
            if name in node["inputs"]:
                node["inputs"][name] = small
    outputs = server.client.run(prompt, timeout=400)["outputs"]
    saved = [entry for output in outputs.values() for entry in output.get("images", [])]
    assert len([entry for entry in saved if "sheet" not in entry["filename"]]) == 6 + 2  # pictures, validation
    figures = [
        output["text"][0] for number, output in outputs.items() if prompt[number]["class_type"] == "PureCCCompare"
    ]
    assert len(figures) == 4 and all("difference to the base model" in text for text in figures)
    reports = [o["text"][0] for n, o in outputs.items() if prompt[n]["class_type"] == "PureCCPureLearning"]
    assert len(reports) == 2 and all("cos2" in text and "drift" in text for text in reports)


def test_the_host_lists_it_as_a_template(server: Server) -> None:
    templates = server.client.get("/workflow_templates")
    assert load_workflow(PROJECT).stem in templates[PACK_NAME]
