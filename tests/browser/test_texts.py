"""What nodes say stands in them, in both node designs; and a run belongs to the workflow that it was queued from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from controls import run_button, texts
from test_chart import DEADLINE, canvas, design, graph, load, run, wait_for_chart, wait_until_idle  # noqa: F401

from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page


def wait_for_text(page: Page, words: str) -> None:
    page.wait_for_function(
        "words => [...document.querySelectorAll('.purecc-text')].some(box => box.textContent.includes(words))",
        arg=words, timeout=DEADLINE,
    )  # fmt: skip


def saving(name: str, seed: int) -> dict:
    """The chart's graph, and its concept saved under a name."""
    nodes = graph(seed=seed, steps=2, pure_steps=2)
    nodes["7"] = {"class_type": "PureCCSaveConcept", "inputs": {"concept": ["4", 0], "name": name}, "_meta": {}}
    return nodes


def test_summary_report_and_file_stand_in_their_nodes(canvas: Page, server: Server, design: str) -> None:  # noqa: F811
    load(canvas, saving("texts/a concept", seed=300 + len(design)))
    run(canvas)
    for words in (
        "5 pictures, 128 x 128 px",
        "Extractor: rank 2, 2 steps",
        "PureCC: rank 2, 2 steps",
        "models/purecc/texts/a concept",
    ):
        wait_for_text(canvas, words)
    wait_until_idle(server)
    said = sorted(texts(canvas))
    assert len(said) == 4 and all(said)  # and of no node the host's own widget for texts
    assert not canvas.evaluate(
        "() => app.graph.nodes.some(n => n.widgets?.some(w => w.name === '$$node-text-preview'))"
    )

    # the graph opened anew: all of it is in the host's cache, which tells nothing of the nodes within
    load(canvas, saving("texts/a concept", seed=300 + len(design)), "the same again")
    canvas.wait_for_timeout(1500)
    assert not any(texts(canvas))
    run(canvas)
    wait_for_text(canvas, "Extractor: rank 2, 2 steps")
    assert wait_for_chart(canvas, "state === 'finished'", chart=1)["step"] == 2
    assert sorted(texts(canvas)) == said


def test_chart_and_text_take_the_room_of_a_taller_node(canvas: Page, design: str) -> None:  # noqa: F811
    load(canvas, graph(seed=1, steps=2))
    canvas.evaluate("""() => {
        const node = app.graph.nodes.find((node) => node.type === 'PureCCTrainExtractor');
        app.canvas.ds.offset = [100 - node.pos[0], 100 - node.pos[1]];
        app.canvas.ds.scale = 0.5;
        app.canvas.setDirty(true, true);
    }""")
    canvas.wait_for_timeout(2000)
    own = "const { id, pos, size, widgets } = app.graph.nodes.find((node) => node.type === 'PureCCTrainExtractor');"
    heights = f"() => {{ {own} return widgets.filter((w) => w.element).map((w) => w.element.offsetHeight); }}"
    before = canvas.evaluate(heights)
    corner = f"""() => {{
        {own}
        const box = document.querySelector(`[data-node-id="${{id}}"]`)?.getBoundingClientRect(); // in Nodes 2.0
        return box ? [box.right - 2, box.bottom - 2] : app.canvas.convertOffsetToCanvas([pos[0] + size[0] - 4, pos[1] + size[1] - 4]);
    }}"""
    x, y = canvas.evaluate(corner)
    canvas.mouse.move(x, y)
    canvas.mouse.down()
    canvas.mouse.move(x, y + 100, steps=5)
    canvas.mouse.move(x, y + 200, steps=5)  # twice as many in the graph's units
    canvas.mouse.up()
    canvas.wait_for_function(
        f"before => ({heights})().every((height, i) => height > before[i] + 100)", arg=before, timeout=30_000
    )


def test_a_value_that_is_refused_is_told_over_the_canvas(canvas: Page, server: Server, design: str) -> None:  # noqa: F811
    """The host runs the other outputs, and would only frame the node."""
    load(canvas, saving("../../elsewhere", seed=400 + len(design)))
    run(canvas)
    words = "is not a name for a file here"
    canvas.locator(".p-toast, [role=alert]").get_by_text(words, exact=False).first.wait_for(timeout=DEADLINE)
    wait_for_text(canvas, words)
    wait_until_idle(server)
    wait_for_text(canvas, words)

    # it is of its workflow, also when that is drawn anew
    load(canvas, saving("texts/another", seed=410 + len(design)), "another")
    canvas.wait_for_timeout(2500)
    assert not any(words in text for text in texts(canvas))
    canvas.locator(".workflow-tabs .p-togglebutton, [data-testid=workflow-tab]").nth(-2).click()
    wait_for_text(canvas, words)

    canvas.evaluate("""() => {
        const saves = app.graph.nodes.find((node) => node.type === 'PureCCSaveConcept');
        saves.widgets.find((widget) => widget.name === 'name').value = 'texts/a name';
    }""")
    run(canvas)
    wait_for_text(canvas, "models/purecc/texts/a name")
    assert not any(words in text for text in texts(canvas))


def test_a_run_is_drawn_in_the_workflow_that_queued_it_alone(canvas: Page, server: Server, design: str) -> None:  # noqa: F811
    """Node ids are alike in two workflows of one template."""
    load(canvas, graph(seed=500 + len(design), steps=3000))
    run(canvas)
    live = wait_for_chart(canvas, "state === 'running' && points >= 2")
    load(canvas, graph(seed=510 + len(design), steps=5), "another")
    canvas.wait_for_timeout(3000)
    seen = canvas.evaluate("() => ({ ...document.querySelector('.purecc-chart canvas').dataset })")
    assert seen["run"] == "" and not any("step" in text for text in texts(canvas))
    assert "purecc_run" not in json.dumps(canvas.evaluate("() => app.graph.serialize()"))

    canvas.locator(".workflow-tabs .p-togglebutton, [data-testid=workflow-tab]").nth(-2).click()
    again = wait_for_chart(canvas, f"state === 'running' && step > {live['step']}")
    assert again["run"] == live["run"]
    run_button(canvas)  # the page is whole


def test_a_run_is_no_step_of_undo_and_its_chart_stays(canvas: Page, server: Server, design: str) -> None:  # noqa: F811
    """The page itself takes note of nodes that have grown with their pictures; the run's name in them is nothing to undo."""
    load(canvas, graph(seed=600 + len(design), steps=2))
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    note = f"() => {{ const t = {tracker}; (t.captureCanvasState ?? t.checkState).call(t); }}"
    rank = "app.graph.nodes.find(n => n.comfyClass === 'PureCCTrainExtractor').widgets.find(w => w.name === 'rank')"
    canvas.wait_for_timeout(1500)
    canvas.evaluate(note)
    canvas.evaluate(f"() => {{ {rank}.value = 3; }}")
    canvas.evaluate(note)
    run(canvas)
    done = wait_for_chart(canvas, "state === 'finished'")
    wait_until_idle(server)
    canvas.evaluate(note)
    kept = canvas.evaluate(
        f"""() => [...{tracker}.undoQueue, {tracker}.activeState].map(
            state => state.nodes.find(n => n.type === 'PureCCTrainExtractor')?.properties.purecc_run)"""
    )
    assert kept[-1] == done["run"] and set(kept) <= {None, done["run"]}
    assert None not in kept[kept.index(done["run"]) :]  # in all states that have the node
    for _ in range(4):
        canvas.evaluate(f"async () => {{ await {tracker}.undo(); }}")
        if canvas.evaluate(f"() => {rank}.value") == 2:
            break
    assert canvas.evaluate(f"() => {rank}.value") == 2
    assert wait_for_chart(canvas, "state === 'finished'")["run"] == done["run"]


def sampling(text: str, clip: str) -> dict:
    """The bundled concept, applied, and a picture of a prompt that is encoded by node `clip`: 1 the loader's, 3 Apply Concept's."""
    encoded = {"clip": [clip, 1], "text": text}
    nodes = {
        "1": ("PureCCPocketModel", {}),
        "2": ("PureCCLoadConcept", {"name": "example pink poodle.safetensors"}),
        "3": ("PureCCApplyConcept", {"model": ["1", 0], "clip": ["1", 1], "concept": ["2", 0], "strength": 1.0, "embedding_strength": 1.0, "gate": "as trained"}),
        "4": ("CLIPTextEncode", encoded),
        "5": ("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "6": ("KSampler", {"model": ["3", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 1, "steps": 1,
                           "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "texts/t"}),
    }  # fmt: skip
    return {number: {"class_type": kind, "inputs": inputs, "_meta": {}} for number, (kind, inputs) in nodes.items()}


def test_a_notice_goes_with_the_run_that_it_was_true_of(canvas: Page, server: Server, design: str) -> None:  # noqa: F811
    said = "() => app.graph.getNodeById(6).widgets.find(w => w.name === '$$node-text-preview')?.value ?? ''"
    load(canvas, sampling(f"a dog, {design}", clip="3"))
    run(canvas)
    canvas.wait_for_function(f"() => ({said})().includes('no \"[V]\" in these prompts')", timeout=DEADLINE)
    wait_until_idle(server)
    canvas.evaluate("() => { app.graph.getNodeById(4).widgets.find(w => w.name === 'text').value = 'a [V] dog'; }")
    run(canvas)
    canvas.wait_for_function(f"() => !({said})().includes('PureCC')", timeout=DEADLINE)
    wait_until_idle(server)
    canvas.wait_for_timeout(500)
    assert "PureCC" not in canvas.evaluate(said)


def test_prompts_of_another_clip_are_told_over_the_canvas(canvas: Page, server: Server, design: str) -> None:  # noqa: F811
    load(canvas, sampling(f"a [V] dog, {design}", clip="1"))
    run(canvas)
    canvas.get_by_text("Connect the CLIP output of Apply Concept", exact=False).first.wait_for(timeout=DEADLINE)
    wait_until_idle(server)
