"""Makes the pictures of the help pages anew: each node on the real canvas, the training nodes with the chart of a real run.

python -m tests.browser.shots          # with the Python of .local/venv; writes js/docs/<NodeId>.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from purecc.launch.chromium import find_chromium, launch, open_page
from purecc.launch.install import make_base
from purecc.launch.layout import PACK_NAME, PROJECT, choose_layout
from purecc.launch.server import Server
from purecc.presets import ON_FACE
from workflows.builder.screenshot import draw

FOLDER = PROJECT / "js" / "docs"
SCALE, QUALITY = 1.25, 70  # pixels of the picture for one of the graph; of the JPEG
STEPS = 100  # of each stage

_WORDS = {"trigger": "[V]", "class_word": "dog", "kind": "instance", "captions": "", "resolution": 128, "tokens": 1}
_COMMON = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "embedding_rate": 5e-3, "rank": 4, "seed": 0}
_WIRES = {"model": ["1", 0], "data": ["2", 0]}
_PURE = {"method": "PureCC", **ON_FACE, "fixed_lambda": 0.0, "original": "frozen base"}
INPUTS = {  # of the nodes that are trained with, and what their pictures show
    "PureCCPocketModel": {},
    "PureCCConceptSet": {"clip": ["1", 1], "vae": ["1", 2], "folder": "example: pink poodle", **_WORDS},
    "PureCCTrainExtractor": {**_WIRES, "embeddings": "replace", **_COMMON},
    "PureCCPureLearning": {**_WIRES, "extractor": ["3", 0], **_PURE, **_COMMON},
}

SHOWN = {  # and of others, whose lists are empty here
    "PureCCLoadDiffusersSD3": {"folder": "stable-diffusion-3.5-medium"},
    "PureCCImportLora": {"file": "pytorch_lora_weights.safetensors"},
}


def train(server: Server) -> dict[str, str]:
    """A small run of both stages, or what is on disk of it: node type -> the run's name."""
    prompt = {str(i): {"class_type": t, "inputs": inputs} for i, (t, inputs) in enumerate(INPUTS.items(), 1)}
    prompt["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}}
    outputs = server.client.run(prompt)["outputs"]
    return {prompt[n]["class_type"]: out["purecc_run"][0] for n, out in outputs.items() if "purecc_run" in out}


def show(page: Page, node_type: str, run: str | None) -> None:
    """The node alone on the canvas, with the values of INPUTS or SHOWN."""
    page.evaluate(
        """([type, inputs, run]) => {
            app.graph.clear();
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            for (const widget of node.widgets ?? []) if (widget.name in inputs) widget.value = inputs[widget.name];
            node.setSize([Math.max(node.size[0], 340), node.computeSize()[1]]);
            if (run) node.configure({ ...node.serialize(), properties: { purecc_run: run } });
        }""",
        [node_type, (INPUTS | SHOWN).get(node_type, {}), run],
    )
    if run:
        page.wait_for_function("() => document.querySelector('.purecc-chart canvas')?.dataset.state === 'finished'")


def main() -> None:
    chromium = find_chromium()
    if not chromium:
        sys.exit("There is no Chromium or Chrome on this computer (Debian: apt-get install chromium).")
    layout = choose_layout(python=sys.executable)
    base = layout.local / "shots"
    make_base(base, PROJECT)
    with Server(layout, base) as server, sync_playwright() as driver:
        runs = train(server)
        ours = [t for t, info in server.client.object_info().items() if info["python_module"].endswith(PACK_NAME)]
        browser = launch(driver, chromium)
        for node_type in ours:
            with open_page(browser, server, Comfy_NodeBadge_NodeSourceBadgeMode="None") as (page, _):
                show(page, node_type, runs.get(node_type))
                path = base / f"{node_type}.png"
                draw(page, path, SCALE)
            save(path, FOLDER / f"{node_type}.jpg")


def save(png: Path, jpg: Path) -> None:
    with Image.open(png) as picture:
        picture.convert("RGB").save(jpg, quality=QUALITY, optimize=True)
    print(f"{jpg.relative_to(PROJECT)}: {jpg.stat().st_size // 1024} KB", flush=True)


if __name__ == "__main__":
    main()
