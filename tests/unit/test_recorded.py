"""Steps recorded on a GPU: what a recording reads of a batch, on any machine; that it computes the same, where there is a CUDA GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_scenes import made
from tiny import (
    FEW,
    SCALING,
    SETTINGS,
    SIDE,
    THROWAWAY,
    TRIGGER,
    Words,
    batch_of,
    concept_set,
    extractor,
    learned,
    losses,
    pure_job,
    run,
    same,
    strengthen,
    transformer,
)  # fmt: skip
from torch import Tensor

from purecc.batches import draw_batch
from purecc.concept import GATES
from purecc.concept_set import ConceptSet
from purecc.network import PURE, AdaptedNetwork
from purecc.prompts import Placeholder
from purecc.recorded import Recorder, form_of, mapped
from purecc.scenes import with_scenes
from purecc.settings import METHODS, PureSettings, TrainSettings
from purecc.stages import PureJob
from purecc.terms import Objective

CPU = torch.device("cpu")
CAPTIONS = ("a [V] dog on the beach", "on the beach a [V] dog")  # of one length; the trigger in two places
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="steps are recorded on a CUDA GPU")
PURES = [
    *(PureSettings(method, **FEW) for method in METHODS),
    PureSettings(original="trainable"),
    PureSettings(base_anchor=1.0, null_anchor=1.0),
]
ANCHORED = PureSettings(
    eta=0.0, background_anchor=3.0, background_loss=0.1, scene_anchor=1.0, scene_concept=0.5, class_steps=2
)
MASKS = tuple(torch.eye(SIDE) + torch.eye(SIDE).flip(0) for _ in CAPTIONS)
SCENED = replace(with_scenes(concept_set(CAPTIONS), Words(TRIGGER, Placeholder(1, "dog"))), masks=MASKS)


def prepared(
    pure: PureSettings, settings: TrainSettings, device: str = "cpu", data: ConceptSet | None = None
) -> PureJob:
    adapted = AdaptedNetwork(transformer().to(device))
    job = pure_job(Path(THROWAWAY.name), pure, settings, data=data or concept_set(CAPTIONS), adapted=adapted)
    job.prepare()
    strengthen(job.network, PURE, seed=2)
    for parameter in learned(job.network):
        parameter.requires_grad_(True)
    return job


def gradient(job: PureJob, batch) -> list[Tensor | None]:
    for parameter in learned(job.network):
        parameter.grad = None
    job.objective().descend(job.network, batch)
    return [parameter.grad for parameter in learned(job.network)]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pure", PURES, ids=str)
def test_all_that_differs_between_batches_of_a_form_is_read_from_tensors_on_the_device(
    pure: PureSettings, gate
) -> None:
    """A recording is made with one batch and replayed with others: its own words and marks on the CPU are those of the first."""
    job = prepared(pure, replace(SETTINGS, gate=gate, batch_size=1))
    batches = [batch_of(job, number) for number in range(1, 9)]
    first = batches[0]
    other = next(one for one in batches if not torch.equal(one.complete.marks, first.complete.marks))
    assert form_of(first) == form_of(other)
    values: list[Tensor] = []
    mapped(other, lambda value: values.append(value) or value, CPU)
    inputs = iter(values)
    replayed = mapped(
        first, lambda value: next(inputs), CPU
    )  # as a recording has it: the first's structure, the other's values
    assert torch.equal(replayed.complete.marks, first.complete.marks)
    expected, own = gradient(job, other), gradient(job, first)
    found = gradient(job, replayed)
    for one, wanted in zip(found, expected, strict=True):
        assert (one is None) == (wanted is None)
        assert one is None or torch.equal(one, wanted)
    assert any(one is not None and not torch.equal(one, mine) for one, mine in zip(found, own, strict=True))


@pytest.mark.parametrize("gate", GATES)
def test_scenes_and_surroundings_are_read_from_tensors_too(gate) -> None:
    """As with the nodes' anchors, and with the concept kept beside other things."""
    settings = replace(SETTINGS, gate=gate, batch_size=1)
    job = prepared(ANCHORED, settings, data=SCENED)
    scenes = made(job.data)
    batches = [draw_batch(job.data, settings, SCALING, number, "cpu", None, scenes) for number in range(1, 17)]
    first = batches[0]
    alike = [one for one in batches[1:] if form_of(one) == form_of(first)]
    other = next(one for one in alike if not torch.equal(one.scene.complete.rows, first.scene.complete.rows))
    values: list[Tensor] = []
    mapped(other, lambda value: values.append(value) or value, CPU)
    inputs = iter(values)
    replayed = mapped(first, lambda value: next(inputs), CPU)
    for one, wanted in zip(gradient(job, replayed), gradient(job, other), strict=True):
        assert (one is None) == (wanted is None) and (one is None or torch.equal(one, wanted))


def test_forms_differ_by_shapes_and_by_whose_text_holds_the_trigger() -> None:
    batch = batch_of(prepared(PureSettings(), SETTINGS))
    without = replace(batch.complete, marks=torch.zeros_like(batch.complete.marks))
    wider = torch.cat([batch.x_t] * 2, dim=3)
    forms = [form_of(batch), form_of(replace(batch, complete=without)), form_of(replace(batch, x_t=wider))]
    forms.append(form_of(replace(batch, weights=torch.ones(2, 1, 8, 8))))
    assert len(set(forms)) == 4 and form_of(batch_of(prepared(PureSettings(), SETTINGS), 2)) == forms[0]


def test_after_a_forward_nothing_acts() -> None:
    """What acted holds tensors of that forward, which may be in a recording's memory."""
    job = prepared(PureSettings(), replace(SETTINGS, gate="conditioning"))
    batch = batch_of(job)
    models = [PURE] * 2 * len(batch.t)
    job.network.velocity(torch.cat([batch.x_t] * 2), torch.cat([batch.t] * 2), batch.complete + batch.base, models)
    assert job.network._loras == ()


@pytest.mark.parametrize(
    "changes",
    [{"checkpointing": True}, {"modulation_table": True}, {"token_embeddings": True}, {"record_steps": False}],
)
def test_steps_in_which_the_processor_takes_part_are_not_recorded(changes: dict) -> None:
    assert TrainSettings().can_record and not TrainSettings(**changes).can_record


def test_texts_wait_on_a_gpu_where_steps_might_be_recorded() -> None:
    """Whatever its allocator; not where the host's encoders read them, nor without room."""

    def has_room(device: str, encoder: object = None, **changes: bool) -> bool:
        on = SimpleNamespace(device=torch.device(device), token_encoder=encoder)
        recorder = Recorder(None, on, TrainSettings(**changes), [])
        assert recorder.has_room or not recorder.on
        return recorder.has_room

    assert has_room("cuda")
    assert not has_room("cpu") and not has_room("cuda", encoder=object())
    assert not has_room("cuda", record_steps=False) and not has_room("cuda", checkpointing=True)


def test_on_a_cpu_nothing_is_recorded() -> None:
    job = prepared(PureSettings(), SETTINGS)
    recorder = Recorder(job.objective(), job.network, SETTINGS, learned(job.network))
    assert not recorder.on
    found = [recorder.descend(batch_of(job))["loss"] for _ in range(3)]
    assert all(torch.equal(loss, job.objective().descend(job.network, batch_of(job))["loss"]) for loss in found)


def on_gpu(root: Path, pure: PureSettings, settings: TrainSettings) -> PureJob:
    adapted, data = AdaptedNetwork(transformer().to("cuda")), SCENED if pure.scene_anchor else concept_set(CAPTIONS)
    return pure_job(root, pure, settings, data=data, guide=extractor(), adapted=adapted)


@ON_GPU
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("pure", [*PURES, ANCHORED], ids=str)
def test_a_recorded_run_is_the_run(pure: PureSettings, accumulate: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=8, accumulate=accumulate)
    recorded, plain = (on_gpu(tmp_path / str(on), pure, replace(settings, record_steps=on)) for on in (True, False))
    assert losses(run(recorded)) == losses(run(plain))
    assert same(recorded.concept, plain.concept)


@ON_GPU
def test_a_recorded_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=8)
    for record in on_gpu(tmp_path / "stopped", PureSettings(), settings):
        if record.step == 5:
            break
    stopped, whole = (on_gpu(tmp_path / name, PureSettings(), settings) for name in ("stopped", "whole"))
    assert [record.step for record in run(stopped)] == [6, 7, 8]
    run(whole)
    assert same(stopped.concept, whole.concept)


LACKING = torch.cuda.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: out of memory")


@pytest.mark.parametrize("error", LACKING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_lacks_memory_beside_recordings_is_done_again_without(monkeypatch, accumulate: int, error) -> None:
    """Its gradient is added once, to what was there; without recordings the error is passed on."""
    job, settings = prepared(PureSettings(), SETTINGS), replace(SETTINGS, accumulate=accumulate)
    batch, parameters = batch_of(job), learned(job.network)
    recorder = Recorder(job.objective(), job.network, settings, parameters)
    right, lacking, reset = Objective.descend, [error], []

    def descend(self, *of):
        measured = right(self, *of)
        if lacking:
            raise lacking.pop()
        return measured

    def begin() -> None:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5) if accumulate > 1 else None

    begin()
    recorder._descend(batch)
    wanted = [parameter.grad.clone() for parameter in parameters]
    begin()
    monkeypatch.setattr(Objective, "descend", descend)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    graph = SimpleNamespace(reset=lambda: reset.append(True))
    recorder.on, recorder._recordings = True, {("another form",): SimpleNamespace(graph=graph)}
    recorder._unrecorded(batch)
    assert reset and not recorder.on and not recorder._recordings
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, wanted, strict=True))
    lacking.append(error)
    with pytest.raises(type(error)):
        recorder._unrecorded(batch)
    recorder._recordings, lacking[:] = {("another form",): SimpleNamespace(graph=graph)}, [RuntimeError("another")]
    with pytest.raises(RuntimeError, match="another"):
        recorder._unrecorded(batch)
    assert recorder._recordings


@ON_GPU
def test_steps_are_replayed_and_their_memory_is_given_back() -> None:
    job = prepared(PureSettings(), SETTINGS, "cuda")
    recorder = Recorder(job.objective(), job.network, SETTINGS, learned(job.network))
    batch = mapped(batch_of(job), lambda value: value.cuda(), CPU)
    for _ in range(3):
        recorder.descend(batch)
    assert [recording is not None for recording in recorder._recordings.values()] == [True]
    recorder.clear()
    assert not recorder._recordings and all(parameter.grad is None for parameter in learned(job.network))


# each in a process of its own: an allocator is chosen once, and a recording that fails leaves its process the worse for it
_HEAD = """
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
import torch
from test_recorded import CPU, SETTINGS, batch_of, learned, mapped, on_gpu, prepared, run, same
from purecc.recorded import Recorder
from purecc.settings import PureSettings
from purecc.terms import Objective
"""
_LARGE = """
settings = replace(SETTINGS, batch_size=2048)
job = prepared(PureSettings(), settings, "cuda")
recorder = Recorder(job.objective(), job.network, settings, learned(job.network))
batch = mapped(batch_of(job), lambda value: value.cuda(), CPU)
taken = []
for count in (1, 3):
    for _ in range(count):
        recorder.descend(batch)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    taken.append(torch.cuda.memory_reserved())
recorder.clear()
torch.cuda.empty_cache()
torch.rand(1, device="cuda")
print(recorder.on, *taken, torch.cuda.memory_reserved())
"""
_ENDS_IN_A_WAIT = """
descend = Objective.descend

def waits(self, *rest):
    measured = descend(self, *rest)
    assert float(measured["loss"]) > 0
    return measured

Objective.descend = waits
"""
_WAITS = """
root = Path(mkdtemp())
plain = on_gpu(root / "plain", PureSettings(), replace(SETTINGS, record_steps=False))
run(plain)
descend = Objective.descend

def waits(self, network, batch, *rest):
    assert float(batch.t.sum()) > 0
    return descend(self, network, batch, *rest)

Objective.descend = waits
logging.basicConfig(level=logging.WARNING)
job = on_gpu(root / "job", PureSettings(), SETTINGS)
run(job)
print(same(job.concept, plain.concept))
"""


def in_a_process(script: str, backend: str = "native") -> subprocess.CompletedProcess:
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTORCH_CUDA_ALLOC_CONF": f"backend:{backend}",
        "PYTHONPATH": os.pathsep.join(map(str, (here, here.parents[1]))),
    }
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@ON_GPU
def test_a_recordings_memory_goes_back_to_the_device() -> None:
    on, *taken = in_a_process(_LARGE).stdout.split()
    before, during, after = map(int, taken)
    print(f"taken before {before / 1e6:.0f} MB, during {during / 1e6:.0f}, after {after / 1e6:.0f}")
    assert on == "True" and during - before > 1e9 and after - before < 0.15 * (during - before)  # libraries keep some


@ON_GPU
def test_what_a_recording_that_fails_had_made_goes_back_too() -> None:
    """One that waits for the GPU at its end, when all its memory is taken; random numbers can be drawn on the GPU afterwards."""
    on, *taken = in_a_process(_ENDS_IN_A_WAIT + _LARGE).stdout.split()
    before, failed, after = map(int, taken)
    print(f"taken before {before / 1e6:.0f} MB, failed {failed / 1e6:.0f}, after {after / 1e6:.0f}")
    assert on == "False" and failed - before < 0.5e9 and after - before < 0.5e9  # libraries keep some


@ON_GPU
def test_with_the_other_allocator_nothing_is_recorded() -> None:
    assert in_a_process(_LARGE, "cudaMallocAsync").stdout.split()[0] == "False"


@ON_GPU
def test_where_a_step_cannot_be_recorded_the_run_goes_on_without() -> None:
    """A step that waits for the GPU, which no recording may."""
    done = in_a_process(_WAITS)
    assert "not recorded" in done.stderr and done.stdout.split()[-1] == "True"
