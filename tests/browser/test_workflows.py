"""The shared workflows on the real page: nothing missing, nothing over another, run from the Run button, listed as templates."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from controls import run_button, texts
from PIL import Image

from purecc.launch.chromium import open_page
from purecc.launch.demo import load_workflow
from purecc.launch.layout import PACK_NAME, PROJECT
from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WORKFLOWS = sorted((PROJECT / "workflows").glob("*.json"))
NUMBERS = [w.name[:2] for w in WORKFLOWS]
RUN_LIMIT, PATIENCE = 600_000, 120_000  # ms; a busy computer draws slowly
CLASSIC, NODES_2 = False, True

# Boxes [left, top, right, bottom] of all nodes, titles included, in the graph's own coordinates.
CLASSIC_BOXES = """() => Object.fromEntries(app.graph.nodes.map(n => { const b = n.boundingRect;
    return [n.id, [b[0], b[1], b[0] + b[2], b[1] + b[3]]]; }))"""
NODES_2_BOXES = """() => { const { scale, offset } = app.canvas.ds, origin = app.canvas.canvas.getBoundingClientRect();
    const x = v => (v - origin.left) / scale - offset[0], y = v => (v - origin.top) / scale - offset[1];
    return Object.fromEntries([...document.querySelectorAll('[data-node-id]')].map(e => { const b = e.getBoundingClientRect();
        return [e.dataset.nodeId, [x(b.left), y(b.top), x(b.right), y(b.bottom)]]; })); }"""
FRAMES = "() => app.graph._groups.map(g => { const b = g._bounding; return [b[0], b[1], b[0] + b[2], b[1] + b[3]]; })"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def open_workflow(page: Page, graph: dict) -> None:
    page.evaluate("async workflow => { await app.loadGraphData(workflow); }", graph)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(graph["nodes"]))
    page.wait_for_timeout(1500)  # nodes of the newer design take their sizes when they are drawn


def overlapping(boxes: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Pairs of nodes that cover each other by more than a hair."""
    places = list(boxes.items())
    return [
        (a, b)
        for i, (a, p) in enumerate(places)
        for b, q in places[i + 1 :]
        if min(p[2], q[2]) - max(p[0], q[0]) > 2 and min(p[3], q[3]) - max(p[1], q[1]) > 2
    ]


def homeless(boxes: dict[str, list[float]], frames: list[list[float]]) -> list[str]:
    """Nodes that do not lie in exactly one group, whole."""
    inside = {
        number: sum(f[0] <= b[0] and f[1] <= b[1] and b[2] <= f[2] and b[3] <= f[3] for f in frames)
        for number, b in boxes.items()
    }
    return [number for number, count in inside.items() if count != 1]


@pytest.mark.parametrize("rendering", [CLASSIC, NODES_2], ids=["classic", "nodes 2.0"])
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=NUMBERS)
def test_it_opens_whole_and_tidy(
    browser: Browser, server: Server, screenshots: Path, workflow: Path, rendering: bool
) -> None:
    graph = read(workflow)
    with open_page(browser, server, 2400, 1500, Comfy_VueNodes_Enabled=rendering) as (page, errors):
        open_workflow(page, graph)
        page.screenshot(
            path=str(screenshots / f"workflow_{workflow.name[:2]}_{'nodes2' if rendering else 'classic'}.png")
        )
        assert not page.evaluate("() => [...document.querySelectorAll('[role=dialog]')].map(d => d.innerText)")
        assert not page.evaluate(
            "() => app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
        )
        boxes = page.evaluate(NODES_2_BOXES if rendering else CLASSIC_BOXES)
        assert len(boxes) == len(graph["nodes"])
        assert not overlapping(boxes)
        assert not homeless(boxes, page.evaluate(FRAMES))
        wires = page.evaluate("() => [...app.graph.links.values()].length")
        assert wires == len(graph["links"])  # a socket of another name would have lost its wire
    assert not errors, errors


def test_03_offers_the_model_for_download(browser: Browser, server: Server, screenshots: Path) -> None:
    with open_page(browser, server, Comfy_Workflow_ShowMissingModelsWarning=True) as (page, errors):
        page.evaluate("workflow => { app.loadGraphData(workflow); }", read(load_workflow(PROJECT, "03")))
        download = page.get_by_role("button").filter(has_text=re.compile(r"^\s*Download(?! all)"))
        details = page.get_by_role("button", name="View details")  # of newer pages, which have no dialog
        download.or_(details).first.wait_for(timeout=PATIENCE)
        if details.count():
            details.click()
            download.wait_for(timeout=PATIENCE)
        page.screenshot(path=str(screenshots / "workflow_03_missing_model.png"))
        text = page.locator("body").inner_text()
        assert "checkpoints" in text and "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors" in text
        assert "not allowed" not in text and "Invalid" not in text
        assert download.is_enabled()
    assert not errors, errors


def set_widgets(page: Page, node_type: str, **values: object) -> None:
    """As typing into every node of the type does."""
    page.evaluate(
        """([type, values]) => { for (const node of app.graph.nodes.filter(n => n.type === type))
            for (const [name, value] of Object.entries(values)) {
                const widget = node.widgets.find(w => w.name === name); widget.value = value; widget.callback?.(value); } }""",
        [node_type, values],
    )


def press_run_and_wait(page: Page, rendering: bool = CLASSIC) -> None:
    """Until every Save Image node of the graph shows its pictures. Fails with the text of an error dialog."""
    run_button(page).click()
    ended = page.wait_for_function(
        """vue => { const said = [...document.querySelectorAll('[role=dialog]')].map(d => d.innerText).join();
            if (said) return said;
            const shown = n => vue ? document.querySelector(`[data-node-id="${n.id}"] img`)?.naturalWidth > 0
                : n.imgs?.length && n.imgs.every(i => i.complete && i.naturalWidth > 0);
            return app.graph.nodes.filter(n => n.type === 'SaveImage')
                .every(n => app.nodeOutputs[n.id]?.images?.length && shown(n)) && 'shown'; }""",
        arg=rendering,
        timeout=RUN_LIMIT,
    )
    assert ended.json_value() == "shown"


@pytest.mark.parametrize("rendering", [CLASSIC, NODES_2], ids=["classic", "nodes 2.0"])
def test_01_runs_from_the_button_to_its_pictures(
    browser: Browser, server: Server, screenshots: Path, rendering: bool
) -> None:
    name = "nodes2" if rendering else "classic"
    saved = server.base / "models" / "purecc" / f"{name}.safetensors"
    # tall enough for the whole graph: the newer design draws no node, and so no picture, that is out of sight
    with open_page(browser, server, 2600, 2400, Comfy_VueNodes_Enabled=rendering) as (page, errors):
        open_workflow(page, read(load_workflow(PROJECT, "01")))
        set_widgets(page, "PureCCTrainExtractor", steps=2, batch_size=1, seed=1 + rendering)
        set_widgets(page, "PureCCPureLearning", steps=2, batch_size=1, seed=1 + rendering)
        set_widgets(page, "PureCCSaveConcept", name=name)
        set_widgets(page, "KSampler", steps=4)
        press_run_and_wait(page, rendering)
        page.wait_for_timeout(1500)
        page.screenshot(path=str(screenshots / f"workflow_01_run_{name}.png"))
        boxes = page.evaluate(NODES_2_BOXES if rendering else CLASSIC_BOXES)
        assert not overlapping(boxes)  # charts, previews and texts have grown the nodes
        assert not homeless(boxes, page.evaluate(FRAMES))
        said = texts(page)
        assert len(said) == 9 and all(said)  # Concept Set, three trainings, Save Concept, four Compares
    assert saved.is_file()
    assert not errors, errors


def run_as_it_is(page: Page, number: str, screenshots: Path) -> None:
    page.set_viewport_size({"width": 2400, "height": 1500})
    open_workflow(page, read(load_workflow(PROJECT, number)))
    press_run_and_wait(page)
    page.wait_for_timeout(500)
    page.screenshot(path=str(screenshots / f"workflow_{number}_run.png"))


def test_02_runs_as_it_is_on_the_bundled_concept(page: Page, server: Server, screenshots: Path) -> None:
    run_as_it_is(page, "02", screenshots)
    # With the gate on, a prompt without the trigger gives the base model's picture, bit for bit.
    pixels = {name: [idat(png) for png in pngs] for name, pngs in saved_files(page, server).items()}
    assert pixels["purecc/02_without_customised"] == pixels["purecc/02_without_original"]
    assert all(
        a != b for a, b in zip(pixels["purecc/02_with_customised"], pixels["purecc/02_with_original"], strict=True)
    )


def test_05_draws_both_concepts_each_in_its_own_colours(page: Page, server: Server, screenshots: Path) -> None:
    run_as_it_is(page, "05", screenshots)
    ((png,),) = saved_files(page, server).values()
    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
    base, held, loras = (sheet[top : top + 128, -4 * 132 :] for top in (4, 136, 268))  # the grid's gap is 4
    rose, poodle = blue_of_what_changed(base, held)
    assert rose + 50 < poodle  # orange, pink
    rose, poodle = blue_of_what_changed(base, loras)
    assert abs(rose - poodle) < 50  # the two LoRAs run into one another


def blue_of_what_changed(base: np.ndarray, drawn: np.ndarray) -> list[float]:
    """Of four pictures in a row, 132 pixels each: the mean blue of what changed much, in the left halves and in the right ones."""
    halves = [
        np.concatenate([row[:, x + left : x + left + 64] for row in (drawn, base) for x in range(0, 4 * 132, 132)])
        for left in (0, 64)
    ]
    found = []
    for both in halves:
        here, there = np.split(both, 2)
        found.append(float(here[np.abs(here - there).mean(2) > 50][:, 2].mean()))
    return found


def saved_files(page: Page, server: Server) -> dict[str, list[bytes]]:
    """What each Save Image node saved, by the prefix of its file names."""
    saved = page.evaluate(
        "() => Object.fromEntries(app.graph.nodes.filter(n => n.type === 'SaveImage')"
        ".map(n => [n.widgets[0].value, app.nodeOutputs[n.id].images]))"
    )
    return {
        name: [server.client.view(**{k: i[k] for k in ("filename", "subfolder", "type")}) for i in images]
        for name, images in saved.items()
    }


def idat(png: bytes) -> bytes:
    """The picture data of a PNG, without its metadata (which holds the workflow)."""
    found, place = b"", 8
    while place < len(png):
        size = int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] == b"IDAT":
            found += png[place + 8 : place + 8 + size]
        place += 12 + size
    assert found
    return found


def test_they_are_in_the_templates_browser_with_their_pictures(page: Page, screenshots: Path) -> None:
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.locator("[role=dialog]").first
    dialog.wait_for(timeout=PATIENCE)
    dialog.get_by_text(PACK_NAME, exact=False).first.click()
    shown = "() => [...document.querySelectorAll('[role=dialog] img')].map(i => [i.naturalWidth, i.naturalHeight])"
    files = [list(Image.open(w.with_suffix(".jpg")).size) for w in WORKFLOWS]
    page.wait_for_function(
        f"sizes => JSON.stringify(({shown})().sort()) === JSON.stringify(sizes.sort())", arg=files, timeout=PATIENCE
    )
    for workflow in WORKFLOWS:
        assert dialog.get_by_text(workflow.stem, exact=True).count() >= 1
    page.screenshot(path=str(screenshots / "templates.png"))
    dialog.get_by_text(WORKFLOWS[1].stem, exact=True).first.click()
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(read(WORKFLOWS[1])["nodes"]))
