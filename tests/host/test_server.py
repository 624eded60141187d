"""The harness itself, on the real server: the pack loads, a workflow file runs, errors say where, progress arrives."""

from __future__ import annotations

import json

import pytest

from purecc.launch.client import HostError
from purecc.launch.demo import collect
from purecc.launch.progress import Progress
from purecc.launch.server import Server
from purecc.launch.workflow import WorkflowError, to_prompt

SIZE, COUNT = 64, 3


def workflow(color: int = 0xFF8800, prefix: str = "harness") -> dict:
    """EmptyImage -> Reroute -> (bypassed ImageInvert) -> SaveImage, and a muted PreviewImage, as the page saves it."""
    image = {"name": "image", "type": "IMAGE"}
    return {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "mode": 0, "title": "Orange", "inputs": [], "widgets_values": [SIZE, SIZE, COUNT, color],
             "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1, 4]}]},
            {"id": 2, "type": "Reroute", "mode": 0, "inputs": [{"name": "", "type": "*", "link": 1}],
             "outputs": [{"name": "", "type": "IMAGE", "links": [2]}]},
            {"id": 3, "type": "ImageInvert", "mode": 4, "inputs": [{**image, "link": 2}], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [3]}]},
            {"id": 4, "type": "SaveImage", "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 3}],
             "widgets_values": [prefix], "outputs": []},
            {"id": 5, "type": "PreviewImage", "mode": 2, "inputs": [{"name": "images", "type": "IMAGE", "link": 4}], "outputs": []},
            {"id": 6, "type": "Note", "mode": 0, "widgets_values": ["for people"]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"], [4, 1, 0, 5, 0, "IMAGE"]],
    }  # fmt: skip


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict:
    return server.client.object_info()


def test_the_pack_loads_without_a_complaint(server: Server) -> None:
    log = server.log_text()
    assert "comfyui-purecc" in log
    assert "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log


def test_a_workflow_file_becomes_a_prompt_runs_and_its_pictures_are_collected(
    server: Server, object_info: dict
) -> None:
    prompt = to_prompt(workflow(), object_info)
    assert {n["class_type"] for n in prompt.values()} == {"EmptyImage", "SaveImage"}
    assert prompt["4"]["inputs"]["images"] == ["1", 0]
    events: list[str] = []
    progress = Progress(prompt)

    def follow(event: str, data: dict) -> None:
        events.append(event)
        progress(event, data)

    record = server.client.run(prompt, follow, timeout=60)
    assert {"execution_start", "executing", "execution_success"} <= set(events)
    assert {"1", "4"} <= set(progress.seconds)
    found = collect(record["outputs"], server.client, server.base)
    assert found.pictures == ["harness_01.png", "harness_02.png", "harness_03.png"]
    assert all(content.startswith(b"\x89PNG") for _, _, content in found.files)
    saved = record["outputs"]["4"]["images"][0]
    assert server.client.view(**saved) == found.files[0][2]


def test_a_refused_prompt_names_the_node_and_the_value(server: Server, object_info: dict) -> None:
    prompt = to_prompt(workflow(), object_info)
    prompt["1"]["inputs"]["width"] = -5
    with pytest.raises(HostError, match=r"node 1 \(EmptyImage\).*width"):
        server.client.run(prompt, timeout=60)


def test_a_failing_node_is_named_by_its_title(server: Server, object_info: dict) -> None:
    prompt = to_prompt(workflow(color=1), object_info)
    prompt["4"]["inputs"]["filename_prefix"] = "../outside"
    with pytest.raises(HostError, match=r"Save Image \(node 4\) failed"):
        server.client.run(prompt, timeout=60)


def test_a_missing_node_type_is_named(object_info: dict) -> None:
    broken = workflow()
    broken["nodes"][0]["type"] = "NodeOfAnAbsentPack"
    with pytest.raises(WorkflowError, match="NodeOfAnAbsentPack"):
        to_prompt(broken, object_info)


def test_seed_widgets_take_their_control_widget_with_them(object_info: dict) -> None:
    sampler = {"id": 1, "type": "KSampler", "mode": 0, "widgets_values": [7, "fixed", 11, 3.5, "euler", "normal", 0.5]}
    inputs = to_prompt({"nodes": [sampler], "links": []}, object_info)["1"]["inputs"]
    assert inputs == {
        "seed": 7,
        "steps": 11,
        "cfg": 3.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 0.5,
    }


def test_the_packs_workflows_become_prompts(object_info: dict, layout) -> None:
    for file in sorted((layout.project / "workflows").glob("*.json")):
        prompt = to_prompt(json.loads(file.read_text(encoding="utf-8")), object_info)
        assert prompt, file.name


def test_a_script_runs_inside_the_host(run_in_host) -> None:
    seen = json.loads(run_in_host("host_script.py", "an argument").splitlines()[-1])
    assert seen["argument"] == "an argument"
    assert seen["device"] == "cpu"
    assert seen["nodes_is_the_hosts"] and seen["pack"] and seen["purecc"] and seen["base_is_ours"]
