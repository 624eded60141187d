"""The chart in the training nodes, on the real page: live, through reloads, a cancel and going on; in both node designs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from controls import cancel, run_button

from purecc.launch.chromium import READY, open_page
from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESIGNS = {"classic": False, "nodes 2.0": True}
DEADLINE = 180_000  # ms, of anything that is waited for
LONG, SHORT = 3000, 6  # steps: of a run that is stopped, and of one that is finished


@pytest.fixture(params=DESIGNS)
def design(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def canvas(browser: Browser, server: Server, design: str) -> Iterator[Page]:
    """The page in one of the two designs. The test fails on an uncaught page error of ours."""
    # wide enough for the whole graph: the page keeps no chart that is out of its sight
    with open_page(browser, server, 2400, 1500, Comfy_VueNodes_Enabled=DESIGNS[design]) as (page, errors):
        yield page
    server.client.post("/interrupt", {})
    wait_until_idle(server)
    # the host's own: its handler of progress texts finds no canvas yet where one arrives while the page loads
    assert not [error for error in errors if "getCanvas: canvas is null" not in error]


def graph(seed: int, steps: int, pure_steps: int = 0) -> dict:
    """Pocket Model -> Concept Set -> Train Extractor (-> Pure Learning) -> its report, as an API prompt."""
    words = {"trigger": "[V]", "class_word": "dog", "kind": "instance", "captions": "", "resolution": 128, "tokens": 1}
    common = {"batch_size": 1, "learning_rate": 1e-3, "embedding_rate": 5e-3, "rank": 2, "seed": seed}
    wires = {"model": ["1", 0], "data": ["2", 0]}
    nodes = {
        "1": ("PureCCPocketModel", "Pocket Model", {}),
        "2": ("PureCCConceptSet", "Concept Set", {"clip": ["1", 1], "vae": ["1", 2], "folder": "example: pink poodle", **words}),
        "3": ("PureCCTrainExtractor", "Train Extractor", {**wires, "steps": steps, "embeddings": "replace", **common}),
        "9": ("PreviewAny", "Report", {"source": ["4", 2] if pure_steps else ["3", 1]}),
    }  # fmt: skip
    if pure_steps:
        own = {
            "method": "PureCC",
            "eta": 1.0,
            "background_anchor": 3.0,
            "scene_anchor": 0.0,
            "fixed_lambda": 0.0,
            "original": "frozen base",
            "steps": pure_steps,
        }
        nodes["4"] = ("PureCCPureLearning", "Pure Learning", {**wires, "extractor": ["3", 0], **own, **common})
    return {n: {"class_type": t, "inputs": i, "_meta": {"title": title}} for n, (t, title, i) in nodes.items()}


def load(page: Page, prompt: dict, name: str = "chart") -> None:
    """As a workflow of this name: another one opens in a tab of its own."""
    page.evaluate("async ([prompt, name]) => { await app.loadApiJson(prompt, name); }", [prompt, name])
    page.wait_for_function("n => document.querySelectorAll('.purecc-chart canvas').length === n",
                           arg=sum("Pure" in v["class_type"] and "steps" in v["inputs"] for v in prompt.values()))  # fmt: skip


def run(page: Page) -> None:
    run_button(page).click()


def reload(page: Page) -> None:
    page.reload(wait_until="domcontentloaded", timeout=DEADLINE)
    page.wait_for_function(READY, timeout=DEADLINE)


def wait_for_chart(page: Page, condition: str, chart: int = 0) -> dict:
    """The chart's data set (numbers as numbers) once `condition` over them, in JavaScript, holds."""
    script = """([condition, chart]) => {
        const canvas = document.querySelectorAll('.purecc-chart canvas')[chart];
        if (!canvas) return null;
        const { state, run } = canvas.dataset;
        const [points, step, total] = ['points', 'step', 'total'].map((name) => Number(canvas.dataset[name]));
        const holds = new Function('state', 'points', 'step', 'total', `return ${condition}`);
        return holds(state, points, step, total) ? { state, run, points, step, total } : null;
    }"""
    return page.wait_for_function(script, arg=[condition, chart], timeout=DEADLINE).json_value()


def wait_until_idle(server: Server) -> None:
    end = time.monotonic() + DEADLINE / 1000
    while time.monotonic() < end:
        queue = server.client.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.1)
    raise TimeoutError("the queue is still busy")


def steps_on_disk(server: Server, name: str) -> list[int]:
    path = server.base / "output" / "purecc" / "runs" / name / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_of(page: Page) -> str:
    return page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")


def picture_of(page: Page, chart: int = 0) -> str:
    """The drawing itself, as a data address."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate("chart => document.querySelectorAll('.purecc-chart canvas')[chart].toDataURL()", chart)


def test_a_run_is_seen_live_through_a_reload_a_cancel_and_going_on(
    canvas: Page, server: Server, design: str, screenshots: Path
) -> None:
    load(canvas, graph(seed=100 + len(design), steps=LONG))
    before = prompt_of(canvas)
    blank = picture_of(canvas)
    run(canvas)
    live = wait_for_chart(canvas, "state === 'running' && points >= 4 && points < total")
    assert live["total"] == LONG
    assert picture_of(canvas) != blank
    assert prompt_of(canvas) == before

    reload(canvas)
    after = wait_for_chart(canvas, f"state === 'running' && step > {live['step']}")
    assert after["run"] == live["run"]
    # the stored points and the live ones join, and it goes on: none lacks (beyond 500 the server thins them out)
    wait_for_chart(canvas, f"state === 'running' && step > {after['step'] + 3} && (points === step || step > 500)")
    canvas.screenshot(path=screenshots / f"chart running, {design}.png")

    cancel(canvas)
    stopped = wait_for_chart(canvas, "state === 'stopped'")
    assert steps_on_disk(server, stopped["run"]) == list(range(1, stopped["step"] + 1))
    wait_until_idle(server)

    run(canvas)
    going_on = wait_for_chart(canvas, f"state === 'running' && step > {stopped['step'] + 2}")
    assert going_on["run"] == stopped["run"] and going_on["step"] < LONG
    on_disk = steps_on_disk(server, stopped["run"])
    assert on_disk == list(range(1, len(on_disk) + 1))  # no step was trained twice


def test_a_finished_run_stands_in_both_charts_also_after_a_reload(
    canvas: Page, server: Server, design: str, screenshots: Path
) -> None:
    load(canvas, graph(seed=200 + len(design), steps=2, pure_steps=SHORT))
    run(canvas)
    done = wait_for_chart(canvas, "state === 'finished'", chart=1)
    wait_until_idle(server)
    label = canvas.locator(".purecc-chart canvas").nth(1).get_attribute("aria-label")
    for word in ("finished", f"step {SHORT} of {SHORT}", "L_CC", "L_PureCC", "lambda*", "cos2"):
        assert word in label

    reload(canvas)
    assert wait_for_chart(canvas, "state === 'finished'", chart=1) == done
    assert done["points"] == done["step"] == done["total"] == SHORT
    extractor = wait_for_chart(canvas, "state === 'finished'", chart=0)
    assert extractor["step"] == 2 and extractor["run"] != done["run"]
    canvas.screenshot(path=screenshots / f"chart finished, {design}.png")


def test_points_join_without_gap_or_double(page: Page) -> None:
    seen = page.evaluate("""async () => {
        const { Curve } = await import('/extensions/comfyui-purecc/chart/curve.js');
        const points = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => [from + i, 0.5, null, null, null]);
        const event = (from, to) => ({ state: 'running', step: to, total: 100, points: points(from, to) });
        const stored = (to, state = 'running') => ({ state, step: to, total: 100, points: points(1, to) });
        const steps = (curve) => curve.points.map((p) => p[0]).join(' ');
        const seen = {};

        const late = new Curve('a'); // a page that comes in mid-run: events before and after the stored points
        seen.gap = late.addLive(event(4, 5));
        late.addLive(event(6, 6));
        late.addStored(stored(5), 1);
        seen.joined = steps(late);
        seen.goesOn = late.addLive(event(7, 8));

        const crashed = new Curve('b'); // the server fell back to a checkpoint: steps come again
        crashed.addStored(stored(6), 0);
        seen.rewound = crashed.addLive(event(4, 4));
        seen.after = steps(crashed);

        const ended = new Curve('c'); // an answer from before the end must not set the end aside
        const { events } = ended;
        ended.addLive({ ...event(1, 3), state: 'finished' });
        ended.addStored(stored(2), events);
        seen.state = ended.state;
        return seen;
    }""")
    assert seen == {
        "gap": True, "joined": "1 2 3 4 5 6", "goesOn": False, "rewound": False, "after": "1 2 3 4", "state": "finished",
    }  # fmt: skip


def test_a_deleted_run_is_said_to_be_gone(page: Page) -> None:
    load(page, graph(seed=1, steps=3))
    page.evaluate("""() => {
        const node = app.graph.nodes.find((n) => n.type === 'PureCCTrainExtractor');
        node.configure({ ...node.serialize(), properties: { purecc_run: 'extractor-000000000000' } });
    }""")
    assert wait_for_chart(page, "state === 'missing'")["points"] == 0
