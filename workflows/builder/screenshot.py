"""A workflow's graph as the page draws it, for one that cannot be run here.

python -m workflows.builder.screenshot URL WORKFLOW FOLDER     # writes FOLDER/graph.png; needs playwright and a Chromium
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from purecc.launch.chromium import find_chromium, launch, open_page
from purecc.launch.client import Client

SCALE = 0.6  # pixels of the picture for one of the graph
_MARGIN = 30

_BOUNDS = """() => {
  const boxes = [...app.graph._groups.map(g => g.boundingRect ?? g._bounding), ...app.graph.nodes.map(n => n.boundingRect)];
  const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
  return [left, top, Math.max(...boxes.map(b => b[0] + b[2])) - left, Math.max(...boxes.map(b => b[1] + b[3])) - top];
}"""
_SHOW = """([left, top, scale]) => {
  const style = document.createElement('style');
  style.textContent = `body * { visibility: hidden } #graph-canvas, .dom-widget, .dom-widget *, .lg-node, .lg-node *
    { visibility: visible !important }`;
  document.head.append(style);
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [-left, -top];
  app.canvas.setDirty(true, true);
}"""


def load(page: Page, workflow: dict) -> None:
    """Open a workflow in the page and wait until its nodes have their sizes."""
    page.evaluate("async workflow => { await app.loadGraphData(workflow); }", workflow)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
    page.wait_for_timeout(1000)


def draw(page: Page, path: Path, scale: float = SCALE) -> None:
    """The whole graph, without the page's own bars, as a PNG."""
    left, top, width, height = page.evaluate(_BOUNDS)
    page.set_viewport_size(
        {"width": round((width + 2 * _MARGIN) * scale), "height": round((height + 2 * _MARGIN) * scale)}
    )
    page.wait_for_timeout(500)
    page.evaluate(_SHOW, [left - _MARGIN, top - _MARGIN, scale])
    page.wait_for_timeout(1500)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(path))


class Running:
    """A server that somebody else started, as `open_page` takes it."""

    def __init__(self, url: str):
        self.url, self.client = url, Client(url)


def main(url: str, workflow: str, folder: str) -> None:
    chromium = find_chromium()
    if not chromium:
        sys.exit("There is no Chromium or Chrome on this computer (Debian: apt-get install chromium).")
    graph = json.loads(Path(workflow).read_text(encoding="utf-8"))
    with sync_playwright() as driver, open_page(launch(driver, chromium), Running(url)) as (page, _):
        load(page, graph)
        draw(page, Path(folder) / "graph.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
