"""The page with the pack in it; and the launcher's converter against the page's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from purecc.launch.layout import PACK_NAME, PROJECT
from purecc.launch.server import Server
from purecc.launch.workflow import to_prompt

if TYPE_CHECKING:
    from playwright.sync_api import Page

# A widget made an input, a seed's control, a bypassed and a muted node, a node without its links: what converters get wrong.
CASES = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "mode": 0, "pos": [0, 0], "size": [210, 130], "flags": {}, "order": 0, "properties": {},
         "title": "Orange", "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1, 4]}], "widgets_values": [64, 32, 2, 255]},
        {"id": 3, "type": "ImageInvert", "mode": 4, "pos": [300, 0], "size": [210, 30], "flags": {}, "order": 1, "properties": {},
         "inputs": [{"name": "image", "type": "IMAGE", "link": 1}], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [3]}]},
        {"id": 4, "type": "SaveImage", "mode": 0, "pos": [600, 0], "size": [210, 60], "flags": {}, "order": 2, "properties": {},
         "inputs": [{"name": "images", "type": "IMAGE", "link": 3},
                    {"name": "filename_prefix", "type": "STRING", "widget": {"name": "filename_prefix"}, "link": 5}],
         "outputs": [], "widgets_values": ["p"]},
        {"id": 5, "type": "PreviewImage", "mode": 2, "pos": [600, 200], "size": [210, 30], "flags": {}, "order": 3, "properties": {},
         "inputs": [{"name": "images", "type": "IMAGE", "link": 4}], "outputs": []},
        {"id": 7, "type": "PrimitiveString", "title": "Words", "mode": 0, "pos": [0, 300], "size": [210, 60], "flags": {}, "order": 0, "properties": {},
         "inputs": [], "outputs": [{"name": "STRING", "type": "STRING", "links": [5]}], "widgets_values": ["from a node"]},
        {"id": 8, "type": "KSampler", "mode": 0, "pos": [0, 500], "size": [210, 260], "flags": {}, "order": 0, "properties": {},
         "inputs": [{"name": n, "type": t, "link": None} for n, t in
                    (("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT"))],
         "outputs": [{"name": "LATENT", "type": "LATENT", "links": []}],
         "widgets_values": [7, "fixed", 11, 3.5, "heun", "normal", 0.5]},
    ],
    "links": [[1, 1, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"], [4, 1, 0, 5, 0, "IMAGE"], [5, 7, 0, 4, 1, "STRING"]],
    "groups": [], "config": {}, "extra": {}, "version": 0.4, "last_node_id": 8, "last_link_id": 5,
}  # fmt: skip
WORKFLOWS = sorted((PROJECT / "workflows").glob("*.json"))


def pages_prompt(page: Page, workflow: dict) -> dict:
    """The prompt that the page itself would send for a workflow file."""
    page.evaluate("async workflow => { await app.loadGraphData(workflow); }", workflow)
    return json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))


def test_the_page_knows_every_node_of_the_pack(page: Page, server: Server) -> None:
    ours = [
        t for t, info in server.client.object_info().items() if info["python_module"] == f"custom_nodes.{PACK_NAME}"
    ]
    assert sorted(ours) == sorted(f.stem for f in (PROJECT / "js" / "docs").glob("*.md"))  # each has its help page
    unknown = page.evaluate("types => types.filter(t => !(t in LiteGraph.registered_node_types))", ours)
    assert not unknown


@pytest.mark.parametrize("workflow", [CASES, *WORKFLOWS], ids=["cases", *(w.stem for w in WORKFLOWS)])
def test_the_launcher_converts_a_workflow_as_the_page_does(page: Page, server: Server, workflow) -> None:
    graph = workflow if isinstance(workflow, dict) else json.loads(workflow.read_text(encoding="utf-8"))
    assert to_prompt(graph, server.client.object_info()) == pages_prompt(page, graph)
