"""A run's folder: the same inputs find it, a file is whole or not there, a line cut short is left out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from tiny import extractor, noise

from purecc.files import (
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    save_json,
    save_tensors,
    write_atomically,
)
from purecc.fingerprint import sketch_of
from purecc.runs import Run, StepRecord


def record(step: int) -> StepRecord:
    return StepRecord(step, loss=1.5, concept_loss=1.0, pure_loss=0.5, scale=-0.25, seconds=0.01)


def a_run(root: Path, **identity: object) -> Run:
    run = Run(root, "pure", {"seed": 1, "rate": 1e-4, **identity})
    run.begin()
    return run


def test_the_folder_follows_from_stage_and_identity(tmp_path: Path) -> None:
    folder = Run(tmp_path, "pure", {"seed": 1, "rate": 1e-4}).folder
    assert folder == Run(tmp_path, "pure", {"rate": 1e-4, "seed": 1}).folder
    assert folder.parent == tmp_path and folder.name.startswith("pure-")
    assert (
        len({folder, Run(tmp_path, "extractor", {"seed": 1, "rate": 1e-4}).folder, a_run(tmp_path, seed=2).folder}) == 3
    )
    assert not folder.exists()  # looking for a run makes nothing


def test_begin_writes_what_the_folder_is_named_after(tmp_path: Path) -> None:
    run = a_run(tmp_path, fixed_scale=None)
    assert json.loads((run.folder / "settings.json").read_text(encoding="utf-8")) == {**run.identity, "sketch": []}
    assert (Run.at(run.folder).identity, Run.at(run.folder).sketch) == (run.identity, [])


def test_a_folder_is_of_encodings_that_differ_by_rounding_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other code may have changed the encoders, which their weights do not tell."""
    latents = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    of = lambda values: Run(tmp_path, "pure", {"steps": 2}, sketch_of([values]))  # noqa: E731
    first = of(latents)
    first.begin()
    assert of(1.01 * latents).folder == of(latents.bfloat16()).folder == first.folder
    other = of(latents.roll(1, 2))
    assert other.folder != first.folder and other.folder.name.startswith("pure-")
    assert not caplog.records
    other.begin()
    assert "encoders that gave others" in caplog.text
    assert of(latents.roll(1, 2)).folder == other.folder and of(latents).folder == first.folder
    assert not of(latents.flip(0)).begun


def test_records_are_read_back_as_they_were(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert run.records() == []
    for step in (1, 2):
        run.add(record(step))
    assert run.records() == [record(1), record(2)]


def test_a_line_cut_short_is_left_out_and_dropped_when_the_run_goes_on(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.save_checkpoint(2, {"p": torch.ones(2)})
    for step in (1, 2, 3):
        run.add(record(step))
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 1.')
    assert [r.step for r in run.records()] == [1, 2, 3]
    step, tensors = run.load_checkpoint()
    assert step == 2 and torch.equal(tensors["p"], torch.ones(2))
    assert run.records() == [record(1), record(2)]  # step 3 comes again
    run.add(record(3))
    assert [r.step for r in run.records()] == [1, 2, 3]


def test_without_a_checkpoint_a_run_starts_anew(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.add(record(1))
    assert run.load_checkpoint() == (0, {})
    assert run.records() == []


def test_a_finished_run_has_its_concept_and_no_checkpoint_that_nothing_could_go_on_from(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert run.finished() is None
    run.save_checkpoint(1, {"p": torch.ones(2)})
    run.finish(extractor())
    assert run.finished().uid == extractor().uid
    assert not (run.folder / "checkpoint.safetensors").exists()


def test_a_damaged_result_is_none(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.finish(extractor())
    assert run.is_finished and run.begun
    content = run.result.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no file of this kind"):
        run.result.write_bytes(damaged)
        assert run.finished() is None and not run.begun
    save_tensors(run.result, {"of another kind": torch.ones(2)})
    assert run.finished() is None
    run.result.write_bytes(content)
    assert run.finished().uid == extractor().uid


@pytest.mark.parametrize("error", [PermissionError(13, "used by another process"), MemoryError()])
def test_what_cannot_be_read_for_a_moment_is_neither_damaged_nor_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A virus scanner holds the file, or a drive is away: the steps that were made are still there afterwards."""

    def held(*_: object, **__: object) -> None:
        raise error

    run = a_run(tmp_path)
    for step in (1, 2):
        run.add(record(step))
    run.save_checkpoint(2, {"p": torch.ones(2)})
    done = a_run(tmp_path, seed=2)
    done.finish(extractor())
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", held)
        for read in (run.load_checkpoint, done.finished, lambda: done.is_finished):
            with pytest.raises(type(error) if isinstance(error, MemoryError) else OSError):
                read()
    assert run.load_checkpoint()[0] == 2 and len(run.records()) == 2
    assert done.finished().uid == extractor().uid


def test_what_a_crash_leaves_behind_is_in_no_list_of_finished_files(tmp_path: Path) -> None:
    seen: list[Path] = []
    write_atomically(tmp_path / "a.safetensors", lambda path: (seen.append(path), path.write_bytes(b"1")))
    assert seen[0].parent == tmp_path and seen[0].suffix == ".part"
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_records_of_two_who_wrote_at_once_are_each_step_once_and_in_order(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for step in (2, 3, 1, 2, 4):
        run.add(record(step))
    assert run.records() == [record(1), record(2), record(3), record(4)]


@pytest.mark.parametrize("partial", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(partial: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "settings.json"
    save_json(path, {"a": "é"})
    before = path.read_bytes()

    def fail(temporary: Path) -> None:
        if partial:
            temporary.write_text("half a f", encoding="utf-8")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_atomically(path, fail)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert json.loads(before.decode("utf-8")) == {"a": "é"}


def test_a_file_in_use_is_tried_again_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a file that another process reads cannot be replaced."""
    path, replace, refused = tmp_path / "concept.safetensors", os.replace, []

    def in_use(source: Path, target: Path) -> None:
        refused.append(target)
        if len(refused) < 3:
            raise PermissionError("in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", in_use)
    save_json(path, {"a": 1})
    assert len(refused) == 3 and json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    refused.clear()
    monkeypatch.setattr(time, "sleep", lambda _: refused.clear())  # so that it stays in use
    with pytest.raises(PermissionError, match="concept.safetensors cannot be replaced: it is in use"):
        save_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.save_checkpoint(1, {"p": torch.ones(2)})
    with pytest.raises((KeyError, ValueError, RuntimeError), match="(?i)qint8"):
        run.save_checkpoint(2, {"p": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
    step, tensors = run.load_checkpoint()
    assert step == 1 and torch.equal(tensors["p"], torch.ones(2))
    assert sorted(p.name for p in run.folder.iterdir()) == ["checkpoint.safetensors", "metrics.jsonl", "settings.json"]


def test_tensors_come_back_bit_for_bit_shared_and_transposed_ones_too(tmp_path: Path) -> None:
    whole = noise(4, 6)
    tensors = {"whole": whole, "view": whole[:2], "turned": whole.T, "half": whole.bfloat16(), "one": torch.tensor(3.0)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"step": "3"})
    read, header = load_tensors(tmp_path / "t.safetensors")
    assert header == {"step": "3"} and read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors.items())


def test_an_optimiser_goes_on_from_its_tensors_as_if_never_stopped(tmp_path: Path) -> None:
    def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
        for i, parameter in enumerate(parameters):
            parameter.grad = noise(*parameter.shape, seed=10 * seed + i)
        optimizer.step()

    def new(values: list[torch.Tensor]) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        first, second = (torch.nn.Parameter(value.clone()) for value in values)
        groups = [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.01, "weight_decay": 0.0}]
        return [first, second], torch.optim.AdamW(groups)

    parameters, optimizer = new([noise(3, 2, seed=1), noise(4, seed=2)])
    for seed in range(3):
        step(parameters, optimizer, seed)
    save_tensors(tmp_path / "o.safetensors", optimizer_tensors(optimizer))
    again, restored = new([p.detach() for p in parameters])
    load_optimizer_tensors(restored, load_tensors(tmp_path / "o.safetensors")[0])
    for seed in range(3, 6):
        step(parameters, optimizer, seed)
        step(again, restored, seed)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
