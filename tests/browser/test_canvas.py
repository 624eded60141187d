"""What a person finds at the canvas, on the real page: nodes by words, help with pictures, messages, the blueprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from controls import number, run_button, search_input, search_result

from purecc.launch.layout import PROJECT
from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TimeoutError = pytest.importorskip("playwright.sync_api").TimeoutError  # not the built-in one

LIMIT = 180_000  # ms, of anything that is waited for
DOCS = PROJECT / "js" / "docs"
BLUEPRINT = "Learn a concept"

WORDS = {
    "lora train": "Train Extractor",
    "train lora": "Train Extractor",
    "train sd3": "Train Extractor",
    "dreambooth": "Pure Learning",
    "fine-tune": "Pure Learning",
    "finetune": "Pure Learning",
    "fine tune": "Pure Learning",
    "personalize": "Concept Set",
    "personalise": "Concept Set",
    "customize": "Concept Set",
    "concept": "Train Extractor",
    "textual inversion": "Apply Concept",
    "sd3": "Pocket Model",
    "before after": "Compare",
    "learn a concept": BLUEPRINT,
}

BOTH_DESIGNS = pytest.mark.parametrize("page", [False, True], ids=["classic", "nodes 2.0"], indirect=True)


def search_box(page: Page) -> Locator:
    """The box that a double click on the empty canvas opens."""
    page.evaluate("app.graph.clear()")
    box = search_input(page)
    for _ in range(10):  # a busy page takes a double click for two clicks
        page.mouse.dblclick(700, 250)
        try:
            box.wait_for(timeout=10_000)
            return box
        except TimeoutError:
            continue
    raise AssertionError("the search box does not open")


@BOTH_DESIGNS
def test_the_search_box_finds_nodes_by_words_that_people_type(page: Page, screenshots: Path) -> None:
    box = search_box(page)
    missed = []
    for words, name in WORDS.items():
        box.fill(words)
        try:
            search_result(page, name).wait_for(timeout=10_000)
        except TimeoutError:
            missed.append((words, name))
        if words == "dreambooth":
            page.screenshot(path=screenshots / "search.png")
    assert not missed
    box.fill("zzqx")
    search_result(page, "Concept").wait_for(state="detached", timeout=LIMIT)


@BOTH_DESIGNS
def test_every_help_page_shows_its_picture_and_what_can_go_wrong(page: Page, screenshots: Path) -> None:
    for node_type in sorted(path.stem for path in DOCS.glob("*.md")):
        assert (DOCS / f"{node_type}.jpg").stat().st_size < 100_000
        page.evaluate(
            """type => {
                app.graph.clear();
                const node = LiteGraph.createNode(type);
                node.pos = [300, 250];
                app.graph.add(node);
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [0, 0];
                app.canvas.selectNode(node);
                app.canvas.setDirty(true, true);
            }""",
            node_type,
        )
        page.get_by_test_id("info-button").click(timeout=LIMIT)
        page.wait_for_function(
            """name => [...document.images].some((image) =>
                image.src.endsWith(`/docs/${name}.jpg`) && image.complete && image.naturalWidth > 100)""",
            arg=node_type,
            timeout=LIMIT,
        )
        page.get_by_role("heading", name="What can go wrong").wait_for(timeout=LIMIT)
    page.screenshot(path=screenshots / "help.png")


def test_every_node_has_a_help_page(server: Server) -> None:
    ours = {t for t in server.client.object_info() if t.startswith("PureCC")}
    assert ours == {path.stem for path in DOCS.glob("*.md")}


def test_a_title_on_the_canvas_is_the_name_without_the_words_for_the_search_box(page: Page) -> None:
    titles = page.evaluate("""() => {
        const made = LiteGraph.createNode('PureCCPureLearning');
        const read = LiteGraph.createNode('PureCCTrainExtractor');
        app.graph.add(made);
        app.graph.add(read);
        const { title, ...plain } = read.serialize();
        read.configure(plain); // as from a file that gives no title
        return [made.title, read.title];
    }""")
    assert titles == ["Pure Learning", "Train Extractor"]


def test_wires_of_the_packs_own_kinds_have_colours_in_every_palette(page: Page) -> None:
    seen = """kind => [LGraphCanvas.link_type_colors[kind], app.canvas.default_connection_color_byType[kind],
        getComputedStyle(document.body).getPropertyValue(`--color-datatype-${kind}`).trim()]"""
    kinds = "PURECC_DATA", "PURECC_CONCEPT", "PURECC_SETTINGS"
    for palette in ("dark", "light"):
        page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(500)
        colours = [set(page.evaluate(seen, kind)) for kind in kinds]
        assert all(len(of_kind) == 1 and "".join(of_kind).startswith("#") for of_kind in colours)
        assert len(set.union(*colours)) == len(kinds)
    page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


@pytest.mark.parametrize("page", [True], ids=["nodes 2.0"], indirect=True)
def test_a_small_learning_rate_is_shown_and_can_be_typed(page: Page) -> None:
    page.evaluate("""() => {
        app.graph.clear();
        const node = LiteGraph.createNode('PureCCTrainExtractor');
        node.pos = [300, 250];
        app.graph.add(node);
        app.canvas.ds.scale = 1;
        app.canvas.ds.offset = [0, 0];
    }""")
    rate = number(page, "learning_rate")
    rate.wait_for(timeout=LIMIT)
    stored = "() => app.graph.nodes[0].widgets.find((w) => w.name === 'learning_rate').value"
    value = 1e-4
    for typed in ("0.00025", "0.0000004"):
        assert float(rate.input_value()) == value
        rate.click(force=True)  # a handle to drag it lies over it
        rate.press("Tab")
        assert page.evaluate(stored) == value  # a click alone leaves it as it is
        rate.click(force=True)
        rate.press("ControlOrMeta+a")
        page.keyboard.type(typed)
        rate.press("Tab")
        value = float(typed)
        page.wait_for_function(f"value => ({stored})() === value", arg=value, timeout=LIMIT)
        assert float(rate.input_value()) == value


def test_numbers_of_one_kind_have_one_form(page: Page) -> None:
    """An input of a sub-graph turns two of them only where their options are the same, whatever their values are."""
    forms = page.evaluate("""() => [1e-4, 2.5e-5].map((value) => {
        const node = LiteGraph.createNode('PureCCTrainExtractor');
        app.graph.add(node);
        const widget = node.widgets.find((w) => w.name === 'learning_rate');
        widget.value = value;
        return JSON.stringify(widget.options);
    })""")
    assert forms[0] == forms[1] and '"precision":7' in forms[0]


@BOTH_DESIGNS
def test_a_wrong_input_shows_its_message(page: Page, screenshots: Path) -> None:
    page.evaluate("""() => {
        app.graph.clear();
        const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
        const [pocket, set, text] = ['PureCCPocketModel', 'PureCCConceptSet', 'PreviewAny'].map(add);
        pocket.connect(1, set, 0);
        pocket.connect(2, set, 1);
        set.connect(1, text, 0);
        const turn = (name, value) => { set.widgets.find((w) => w.name === name).value = value; };
        turn('folder', 'example: pink poodle');
        turn('class_word', 'teapot');
        turn('resolution', 128);
    }""")
    run_button(page).click()
    said = page.locator(".purecc-text", has_text='neither the trigger "ohwx" nor the class word "teapot"')
    said.wait_for(timeout=LIMIT)
    page.screenshot(path=screenshots / "message.png")

    page.keyboard.press("Escape")  # the dialog of older pages
    change = "([name, value]) => { app.graph.nodes.find(n => n.type === 'PureCCConceptSet').widgets.find(w => w.name === name).value = value; }"
    page.evaluate(change, ["class_word", ""])
    run_button(page).click()
    refused = page.locator(".purecc-text", has_text="neither may be empty")
    refused.wait_for(timeout=LIMIT)
    assert refused.inner_text().count("neither may be empty") == 1  # the server says it for each input

    page.keyboard.press("Escape")
    page.evaluate(change, ["class_word", "dog"])
    run_button(page).click()
    page.locator(".purecc-text", has_text="5 pictures").wait_for(timeout=LIMIT)
    assert not refused.count()


@BOTH_DESIGNS
def test_the_blueprint_is_dropped_wired_and_run(page: Page, screenshots: Path) -> None:
    search_box(page).fill(BLUEPRINT)
    search_result(page, BLUEPRINT).click()
    page.wait_for_function("() => app.graph.nodes[0]?.subgraph", timeout=LIMIT)
    inputs, outputs, knobs = page.evaluate(
        "() => { const n = app.graph.nodes[0]; return [n.inputs.map(i => i.name), n.outputs.map(o => o.name), n.widgets.map(w => w.name)]; }"
    )
    assert inputs[:4] == ["model", "clip", "vae", "pictures"] and outputs[0] == "concept"
    assert knobs == ["trigger", "class_word", "kind", "captions", "resolution", "steps", "learning_rate", "eta"]
    inside = page.evaluate("() => app.graph.nodes[0].subgraph.nodes.map(n => [n.type, n.inputs.map(i => i.name)])")
    new = page.evaluate(
        "types => types.map(t => [t, LiteGraph.createNode(t).inputs.map(i => i.name)])", [t for t, _ in inside]
    )
    stored = json.loads((PROJECT / "subgraphs" / f"{BLUEPRINT}.json").read_text(encoding="utf-8"))["definitions"][
        "subgraphs"
    ][0]
    assert new == [[node["type"], [i["name"] for i in node["inputs"]]] for node in stored["nodes"]], (
        "mend subgraphs/build.py, and run python -m subgraphs.build"
    )
    page.evaluate("""() => {
        const node = app.graph.nodes[0];
        const add = (type, x, y) => { const n = LiteGraph.createNode(type); n.pos = [x, y]; app.graph.add(n); return n; };
        node.pos = [400, 100];
        const pocket = add('PureCCPocketModel', 0, 100), picture = add('EmptyImage', 0, 300), text = add('PreviewAny', 900, 100);
        [0, 1, 2].forEach((slot) => pocket.connect(slot, node, slot));
        picture.connect(0, node, 3);
        node.connect(2, text, 0);
        const turn = (n, name, value) => { n.widgets.find((w) => w.name === name).value = value; };
        turn(node, 'resolution', 64);
        turn(node, 'steps', 2);
        ['width', 'height'].forEach((side) => turn(picture, side, 64));
    }""")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    steps = [value["inputs"]["steps"] for value in prompt.values() if "steps" in value["inputs"]]
    assert steps == [2, 2]  # one knob, both stages
    run_button(page).click()
    page.wait_for_function(
        "() => app.graph.nodes.find((n) => n.type === 'PreviewAny').widgets.some((w) => String(w.value).includes('lambda*'))",
        timeout=LIMIT,
    )
    page.screenshot(path=screenshots / "blueprint.png")
