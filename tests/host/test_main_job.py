"""The main job on the real server, in few steps: train, save, load, apply, sample; cancel, go on, and not train twice."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from graph import Prompt
from safetensors import safe_open

from purecc.launch.client import HostError
from purecc.launch.server import Server

DEADLINE = 240  # seconds, of one prompt


def pixels(server: Server, record: dict, node: str) -> str:
    """A hash of the picture that a SaveImage node wrote, its metadata left out."""
    from PIL import Image

    (entry,) = record["outputs"][node]["images"]
    with Image.open(server.base / "output" / entry["subfolder"] / entry["filename"]) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def runs(server: Server) -> dict[str, Path]:
    """Run folders by stage-hash."""
    folder = server.base / "output" / "purecc" / "runs"
    return {p.name: p for p in folder.iterdir()} if folder.is_dir() else {}


def finished(server: Server) -> dict[str, int]:
    """When each finished run was written; other files' tests leave unfinished ones on the same server."""
    done = {name: path / "concept.safetensors" for name, path in runs(server).items()}
    return {name: path.stat().st_mtime_ns for name, path in done.items() if path.is_file()}


def metrics(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


@pytest.fixture(scope="module")
def trained(server: Server) -> tuple[dict, dict[str, str]]:
    """The whole job: pictures of the base, of the concept with the gate on and off, and with strengths 0."""
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    extractor = p.extractor(pocket, data)
    pure = p.pure(pocket, data, extractor, learning_rate=2e-2)
    nodes = {"save": p.add("PureCCSaveConcept", concept=[pure, 0], name="tests/a poodle"), "report": p.show([pure, 2])}
    gated = p.apply(pocket, [pure, 0])
    open_ = p.apply(pocket, [pure, 0], gate="off")
    off = p.apply(pocket, [pure, 0], strength=0.0, embedding_strength=0.0)
    with_, without = "a [V] dog in the snow", "a dog in the snow"
    for name, source, text in (
        ("base", pocket, without),
        ("gated, without trigger", gated, without),
        ("gated, with trigger", gated, with_),
        ("open, without trigger", open_, without),
        ("off, without trigger", off, without),
        ("base, placeholder", pocket, "a dog dog in the snow"),
        ("off, with trigger", off, with_),
    ):
        nodes[name] = p.picture(source, pocket, text, "t/p")
    return server.client.run(p.nodes, timeout=DEADLINE), nodes


def test_the_gate_gives_the_base_picture_bit_for_bit_without_the_trigger(server, trained) -> None:
    record, nodes = trained
    base = pixels(server, record, nodes["base"])
    assert pixels(server, record, nodes["gated, without trigger"]) == base
    assert pixels(server, record, nodes["gated, with trigger"]) != base
    assert pixels(server, record, nodes["open, without trigger"]) != base  # or the test could not fail


def test_strength_zero_is_the_base_model_exactly(server, trained) -> None:
    record, nodes = trained
    assert pixels(server, record, nodes["off, without trigger"]) == pixels(server, record, nodes["base"])
    assert pixels(server, record, nodes["off, with trigger"]) == pixels(server, record, nodes["base, placeholder"])


def test_a_run_is_a_folder_with_settings_metrics_and_result(server, trained) -> None:
    record, nodes = trained
    (text,) = record["outputs"][nodes["report"]]["text"]
    run = runs(server)[re.search(r"run: (pure-\w+)", text)[1]]
    assert {name.split("-")[0] for name in runs(server)} >= {"extractor", "pure"}
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["eta"], settings["background_anchor"]) == (1.0, 3.0)  # a workflow may be older than the second
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for field in ("loss", "concept_loss", "pure_loss", "scale", "scale_spread", "squared_cosine", "representation"):
        assert all(isinstance(row[field], float) for row in rows), field
    with safe_open(run / "concept.safetensors", "pt") as file:
        summary = json.loads(file.metadata()["purecc.summary"])
    assert {"drift_base", "drift_null", "squared_cosine", "scale"} <= set(summary)


def test_the_report_says_what_was_measured(trained) -> None:
    record, nodes = trained
    (text,) = record["outputs"][nodes["report"]]["text"]
    for word in ("lambda*", "cos2", "|R_complete|", "drift"):
        assert word in text


def test_the_saved_file_has_names_that_stock_loaders_read(server, trained) -> None:
    with safe_open(server.base / "models" / "purecc" / "tests" / "a poodle.safetensors", "pt") as file:
        keys = set(file.keys())
    modules = {key[: -len(".lora_A.weight")] for key in keys if key.endswith(".lora_A.weight")}
    assert len(modules) == 4 * 8 - 1  # the last block's text stream has no way out
    assert all(m.startswith("transformer.transformer_blocks.") and f"{m}.alpha" in keys for m in modules)


def test_a_loaded_concept_draws_what_the_trained_one_drew(server, trained) -> None:
    record, nodes = trained
    p = Prompt()
    pocket = p.pocket()
    applied = p.apply(pocket, [p.add("PureCCLoadConcept", name="tests/a poodle.safetensors"), 0])
    picture = p.picture(applied, pocket, "a [V] dog in the snow", "t/loaded")
    again = server.client.run(p.nodes, timeout=DEADLINE)
    assert pixels(server, again, picture) == pixels(server, record, nodes["gated, with trigger"])


def test_a_file_that_was_deleted_is_saved_again_and_one_written_as_it_was_is_not_read_again(server, trained) -> None:
    def executed() -> set[str]:
        ran = set()
        server.client.run(
            p.nodes, on_event=lambda kind, value: ran.add((kind, str(value.get("node")))), timeout=DEADLINE
        )
        return {node for kind, node in ran if kind == "executing"}

    file = server.base / "models" / "purecc" / "tests" / "kept.safetensors"
    p = Prompt()
    loaded = p.add("PureCCLoadConcept", name="tests/a poodle.safetensors")
    p.show([loaded, 1])
    saved = p.add("PureCCSaveConcept", concept=[loaded, 0], name="tests/kept")
    assert saved in executed() and file.is_file()
    content = file.read_bytes()
    executed()  # its file is there now
    assert not {loaded, saved} & executed()
    file.write_bytes(content)
    assert not {loaded, saved} & executed()
    file.unlink()
    ran = executed()
    assert saved in ran and loaded not in ran and file.read_bytes() == content


def test_the_same_inputs_return_the_finished_run(server, trained) -> None:
    before = finished(server)
    server.client.post("/free", {"unload_models": True, "free_memory": True})  # the host forgets its outputs
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    pure = p.pure(pocket, data, p.extractor(pocket, data), learning_rate=2e-2)
    p.show([pure, 2])
    texts = []
    server.client.run(p.nodes, on_event=lambda kind, value: texts.append((kind, str(value))), timeout=DEADLINE)
    assert finished(server) == before
    told = [text for kind, text in texts if kind == "purecc.text"]
    assert sum("This very run was finished before" in text for text in told) == 2
    assert sum("memory: about" in text for text in told) == 1  # for the extractor no network is built


def test_a_cancelled_run_goes_on_where_it_was(server: Server) -> None:
    steps = 400
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    p.show([p.extractor(pocket, data, steps=steps, seed=11), 1])
    known = set(runs(server))
    job = server.client.submit(p.nodes)
    (run,) = wait_for(lambda: [path for name, path in runs(server).items() if name not in known])
    wait_for(lambda: len(metrics(run)) >= 5)
    server.client.post("/interrupt", {})
    record = server.client.wait(job, timeout=60)
    assert record["status"]["status_str"] == "error"  # how the host files a cancelled prompt
    assert (run / "checkpoint.safetensors").is_file() and not (run / "concept.safetensors").exists()
    with safe_open(run / "checkpoint.safetensors", "pt") as file:
        stopped = int(file.metadata()["step"])
    first = metrics(run)
    assert 5 <= stopped < steps and first[stopped - 1]["step"] == stopped

    job = server.client.submit(p.nodes)
    wait_for(lambda: len(metrics(run)) > stopped)
    server.client.post("/interrupt", {})
    server.client.wait(job, timeout=60)
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[:stopped] == first[:stopped]  # not trained again: even the seconds are those of the first time


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folder": "(pictures from the input)"}, "no pictures"),
        ({"class_word": "teapot"}, 'neither the trigger "[V]" nor the class word "teapot"'),
        ({"trigger": "dog"}, "holds the trigger"),
        ({"folder": "../secrets"}, "not a folder inside|no folder"),
    ],
)
def test_bad_input_is_told_in_a_sentence(server: Server, changed: dict, message: str) -> None:
    p = Prompt()
    data = p.concept_set(p.pocket(), **changed)
    p.show([data, 1])
    with pytest.raises(HostError, match=message.replace("[", r"\[")):
        server.client.run(p.nodes, timeout=DEADLINE)


def test_pure_learning_without_an_extractor_says_what_to_connect(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    p.show([p.pure(pocket, p.concept_set(pocket), None), 2])
    with pytest.raises(HostError, match="connect Train Extractor"):
        server.client.run(p.nodes, timeout=DEADLINE)


def test_a_name_cannot_lead_out_of_the_folder(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    p.add("PureCCSaveConcept", concept=[p.extractor(pocket, data, seed=77), 0], name="../../outside")
    before = set((server.base / "output" / "purecc" / "runs").glob("*"))
    with pytest.raises(HostError, match="outside"):
        server.client.run(p.nodes, timeout=DEADLINE)
    assert set((server.base / "output" / "purecc" / "runs").glob("*")) == before  # told before the training
    assert not list(server.base.rglob("outside.safetensors"))


def test_wired_pictures_of_any_size_are_taken(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    wide = p.add("EmptyImage", width=200, height=100, batch_size=2, color=16711680)
    data = p.concept_set(pocket, folder="(pictures from the input)", pictures=[wide, 0])
    shown = p.show([data, 1])
    record = server.client.run(p.nodes, timeout=DEADLINE)
    (text,) = record["outputs"][shown]["text"]
    assert "2 pictures, 176 x 96 px" in text and "a [V] dog" in text


def wait_for(condition, seconds: float = 120):
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise TimeoutError("the condition did not come true")
