"""What the pack's own door of the server gives: a run's curve, live and stored; and refusals that say what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from graph import Prompt

from purecc.curve import point, read_curve
from purecc.launch.client import HostError
from purecc.launch.server import Server
from purecc.runs import Run, StepRecord

DEADLINE = 240  # seconds, of one prompt
STEPS = 4


@pytest.fixture(scope="module")
def followed(server: Server) -> list[dict]:
    """The live events of one run."""
    p = Prompt()
    pocket = p.pocket()
    p.show([p.extractor(pocket, p.concept_set(pocket), steps=STEPS, seed=77), 1])
    events = []
    server.client.run(p.nodes, on_event=lambda kind, data: events.append((kind, data)), timeout=DEADLINE)
    return [data for kind, data in events if kind == "purecc.run"]


def test_live_events_tell_every_step_once_from_beginning_to_end(followed: list[dict]) -> None:
    assert [event["state"] for event in followed][0] == "running" and followed[-1]["state"] == "finished"
    assert followed[0]["points"] == [] and followed[-1]["step"] == STEPS
    assert [p[0] for event in followed for p in event["points"]] == list(range(1, STEPS + 1))
    assert {(event["node"], event["run"], event["total"]) for event in followed} == {("3", followed[0]["run"], STEPS)}


def test_the_route_gives_the_same_points_from_disk(server: Server, followed: list[dict]) -> None:
    answer = server.client.get(f"/purecc/runs/{followed[0]['run']}")
    assert answer["points"] == [p for event in followed for p in event["points"]]
    assert (answer["state"], answer["step"], answer["total"]) == ("finished", STEPS, STEPS)
    path = server.base / "output" / "purecc" / "runs" / answer["run"] / "metrics.jsonl"
    losses = [json.loads(line)["concept_loss"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [p[1] for p in answer["points"]] == losses


@pytest.mark.parametrize(
    "name",
    ["extractor-000000000000", "nothing", "..%2F..%2Fsettings", "..", "%2Fetc%2Fpasswd", "pure-123456789abc%2F..", "pure-123456789abc%00"],
)  # fmt: skip
def test_any_other_name_is_refused_with_a_sentence(server: Server, name: str) -> None:
    with pytest.raises(HostError, match="no run|not the name of a run|HTTP 404"):
        server.client.get(f"/purecc/runs/{name}")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_does_not_lead_out_of_the_runs_folder(tmp_path: Path) -> None:
    outside = Run(tmp_path / "outside", "pure", {"stage": "pure", "steps": 1})
    outside.begin()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / outside.folder.name).symlink_to(outside.folder)
    assert read_curve(tmp_path / "outside", outside.folder.name).total == 1
    with pytest.raises(LookupError, match="not the name of a run"):
        read_curve(tmp_path / "runs", outside.folder.name)


@pytest.mark.parametrize("settings", ["", "[]", "null", "{}", '{"stage": "pure", "steps": null}'])
def test_settings_that_are_damaged_are_no_run(tmp_path: Path, settings: str) -> None:
    (tmp_path / "pure-123456789abc").mkdir()
    (tmp_path / "pure-123456789abc" / "settings.json").write_text(settings)
    with pytest.raises(LookupError, match="There is no run"):
        read_curve(tmp_path, "pure-123456789abc")


def test_a_long_run_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    run = Run(tmp_path, "pure", {"stage": "pure", "steps": 3000})
    run.begin()
    records = [StepRecord(step, 1.0, 0.5 + step, pure_loss=float("nan"), scale=step / 7) for step in range(1, 2346)]
    for record in records:
        run.add(record)
    curve = read_curve(tmp_path, run.folder.name, limit=500)
    steps = [p[0] for p in curve.points]
    assert 300 <= len(steps) <= 501 and steps[0] == 1 and steps[-1] == curve.step == 2345
    assert steps == sorted(set(steps))
    assert all(p == point(records[int(p[0]) - 1]) for p in curve.points)  # measured values, not means
    json.dumps(curve.points, allow_nan=False)
    assert (curve.total, curve.finished) == (3000, False)


def test_a_finished_concept_is_no_extractor(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    finished = p.pure(pocket, data, None, method="LoRA", steps=1)
    p.show([p.pure(pocket, data, finished), 2])
    with pytest.raises(HostError, match="finished concept .* Connect the output of Train Extractor"):
        server.client.run(p.nodes, timeout=DEADLINE)


def test_a_host_without_an_internal_is_told_by_the_node_that_needs_it(run_in_host: Callable[..., str]) -> None:
    seen = json.loads(run_in_host("missing_internals.py").splitlines()[-1])
    assert seen["nodes"] >= 9
    for sentence, part in ((seen["function"], "mmdit_to_diffusers"), (seen["module"], "comfy.patcher_extension")):
        assert part in sentence
        assert re.search(r"part of ComfyUI that version \d+\.\d+\.\d+ does not have", sentence), sentence


def test_a_node_whose_inputs_cannot_be_listed_takes_no_other_along(run_in_host: Callable[..., str]) -> None:
    there = json.loads(run_in_host("missing_lists.py").splitlines()[-1])
    assert "PureCCLoadDiffusersSD3" not in there
    assert {"PureCCPocketModel", "PureCCTrainExtractor", "PureCCPureLearning", "PureCCApplyConcept"} <= set(there)


def test_every_node_input_and_output_has_a_tooltip(server: Server) -> None:
    bare = []
    for node_type, info in server.client.object_info().items():
        if not node_type.startswith("PureCC"):
            continue
        bare += [node_type] * (not info["description"])
        for name, (_, *options) in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
            bare += [f"{node_type}.{name}"] * (not options or not options[0].get("tooltip"))
        for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True):
            bare += [f"{node_type} -> {name}"] * (not tooltip)
    assert not bare
