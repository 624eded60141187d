"""Early stop: when it stops, what it keeps, that it leaves the steps alone, and that it goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import (
    FEW,
    SCALING,
    SETTINGS,
    batch_of,
    extractor_job,
    learned,
    losses,
    pure_job,
    run,
    same,
    stage_two_of,
)

from purecc.batches import held_draws
from purecc.early_stop import EarlyStop, reason, validation_loss
from purecc.flow import add_noise, mean_time, spread_times
from purecc.job import Job
from purecc.network import EXTRACTOR
from purecc.settings import METHODS, PureSettings, as_plain
from purecc.terms import Objective, Terms, Velocities

STOPS = replace(SETTINGS, steps=12, stop_patience=2, stop_every=2, stop_gain=0.5, checkpoint_every=5)
GOES_ON = replace(STOPS, stop_patience=99, stop_gain=0.0)


def looked(*found: float, patience: int = 2, gain: float = 0.1) -> EarlyStop:
    stop = EarlyStop(patience, 10, gain)
    for i, loss in enumerate(found, 1):
        stop.look(10 * i, loss, [torch.nn.Parameter(torch.tensor([float(i)]))])
    return stop


# When it stops


@pytest.mark.parametrize(
    ("found", "waited", "best"),
    [
        ((1.0,), 0, 10),
        ((1.0, 0.8, 0.6), 0, 30),
        ((1.0, 0.95, 0.92), 2, 30),  # lower, but by less than a tenth
        ((1.0, 0.95, 0.89), 0, 30),  # what was too little twice is enough together
        ((1.0, 0.5, 0.6, 0.7), 2, 20),
        ((1.0, 2.0, 0.5, 0.5), 1, 30),
    ],
)
def test_it_waits_for_a_gain_over_the_last_that_gained(found: tuple, waited: int, best: int) -> None:
    stop = looked(*found)
    assert (stop.waited, stop.is_over, stop.best.step) == (waited, waited >= 2, best)
    parameter = torch.nn.Parameter(torch.zeros(1))
    stop.restore([parameter])
    assert parameter.item() == best / 10


def test_it_looks_every_so_many_steps_and_at_the_last_and_once() -> None:
    stop = EarlyStop(2, 5, 0.0)
    due = []
    for step in range(13):
        for _ in range(2):
            if stop.is_due(step, 12):
                due.append(step)
                stop.look(step, 1.0, [])
    assert due == [5, 10, 12]


def test_its_state_comes_back_from_tensors() -> None:
    stop, again = looked(1.0, 0.1 + 0.2, 0.7), EarlyStop(2, 10, 0.1)
    again.load(stop.tensors())
    assert again == replace(stop, kept=again.kept) and torch.equal(again.kept[0], stop.kept[0])
    again.load(EarlyStop(2, 10, 0.1).tensors())
    assert again.looks == [] and again.kept == []


# What it looks at


def test_the_loss_is_l_cc_over_the_held_draws() -> None:
    job = extractor_job(Path("unused"))
    job.prepare()
    squares = []
    with torch.no_grad():
        for draw in held_draws(job.data, job.settings):
            x0 = SCALING.to_model(torch.stack([view.latent for view in draw.views]))
            words = job.data.batch("complete", [view.index for view in draw.views])
            v = job.network.velocity(add_noise(x0, draw.noise, draw.t), draw.t, words, EXTRACTOR)
            squares += (v - (draw.noise - x0)).square().flatten(1).mean(1).tolist()
    assert len(squares) == 4 * len(job.data.examples)
    found = validation_loss(job.network, job.objective(), job.data, job.settings, SCALING)
    assert found == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_a_look_keeps_no_graph() -> None:
    job, asked = extractor_job(Path("unused")), []
    job.prepare()

    class Looking:
        frozen = learning = ()

        def __call__(self, velocities: Velocities) -> Terms:
            loss = velocities.learning((EXTRACTOR, "complete"))[0].square().mean()
            asked.append(loss.requires_grad)
            return Terms(loss, {})

    validation_loss(job.network, Objective((EXTRACTOR,), (Looking(),)), job.data, job.settings, SCALING)
    assert asked == [False] * 4  # two pictures at four times, two samples at once


@pytest.mark.parametrize("method", METHODS)
def test_a_look_is_always_the_same_and_leaves_the_next_step_alone(method: str) -> None:
    job = stage_two_of(PureSettings(method, **FEW))

    def gradient() -> list[torch.Tensor]:
        job.objective().terms(job.network, batch_of(job)).loss.backward()
        found = [p.grad.clone() for p in learned(job.network) if p.grad is not None]
        for parameter in learned(job.network):
            parameter.grad = None
        return found

    def look() -> float:
        made = job.class_pictures()
        return validation_loss(job.network, job.objective(), job.data, job.settings, SCALING, made)

    before, first, after, second = gradient(), look(), gradient(), look()
    assert first == second and len(before) == len(after) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_held_times_lie_as_those_learnt_from_do() -> None:
    assert float(spread_times(1000, 3.0).mean()) == pytest.approx(mean_time(3.0), abs=1e-3)
    assert float(spread_times(1, 1.0)) == 0.5


# Runs


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = pure_job(tmp_path_factory.mktemp("stopped"), settings=STOPS)
    run(job)
    return job


def test_a_run_stops_where_it_no_longer_gains_and_keeps_the_best(stopped: Job, tmp_path: Path) -> None:
    summary = stopped.concept.summary
    at, kept = int(summary["stopped_at"]), int(summary["kept_step"])
    assert kept <= at == 6 and len(stopped.run.records()) == at  # looks at 2, 4 and 6: no loss falls by half so soon
    shorter = pure_job(tmp_path, settings=replace(SETTINGS, steps=kept))
    run(shorter)
    assert losses(shorter.run.records()) == losses(stopped.run.records()[:kept])
    assert same(shorter.concept, stopped.concept)
    text = reason(summary, STOPS)
    assert f"stopped at step 6 of 12, after 2 evaluations that gained less than 50 %; kept step {kept}" in text
    assert reason(shorter.concept.summary, SETTINGS) is None


def test_it_leaves_the_steps_alone_and_keeps_an_earlier_state_where_that_was_better(tmp_path: Path) -> None:
    wild = replace(GOES_ON, steps=8)  # the last two steps make it worse
    job, plain = extractor_job(tmp_path, wild), extractor_job(tmp_path, replace(wild, stop_patience=0))
    run(job), run(plain)
    assert losses(job.run.records()) == losses(plain.run.records()) and len(plain.run.records()) == 8
    summary = job.concept.summary
    kept = int(summary["kept_step"])
    assert kept < summary["stopped_at"] == 8
    assert f"went to the end, step 8; kept step {kept}" in reason(summary, wild)
    found = validation_loss(job.network, job.objective(), job.data, wild, SCALING)
    assert found == pytest.approx(summary["validation_loss"], abs=1e-6)  # of the parameters that are kept
    expected = extractor_job(tmp_path, replace(wild, stop_patience=0, steps=kept))
    run(expected)
    assert same(job.concept, expected.concept)
    for name in ("loss", "concept_loss"):  # the figures are those of the state that is kept
        assert summary[name] == expected.concept.summary[name]


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_a_run_cut_off_goes_on_to_the_same_bytes(at: int, stopped: Job, tmp_path: Path) -> None:
    for record in pure_job(tmp_path, settings=STOPS):
        if record.step == at:
            break
    goes_on = pure_job(tmp_path, settings=STOPS)
    assert len(run(goes_on)) == 6 - at
    assert goes_on.run.result.read_bytes() == stopped.run.result.read_bytes()


def test_a_run_cut_off_in_an_evaluation_takes_it_again(stopped: Job, tmp_path: Path, monkeypatch) -> None:
    def cut(self: EarlyStop, step: int, *_: object) -> None:
        raise KeyboardInterrupt

    records = iter(pure_job(tmp_path, settings=STOPS))
    with monkeypatch.context() as patch:
        [next(records) for _ in range(3)]
        patch.setattr(EarlyStop, "look", cut)
        with pytest.raises(KeyboardInterrupt):
            next(records)
    goes_on = pure_job(tmp_path, settings=STOPS)
    assert len(run(goes_on)) == 2
    assert losses(goes_on.run.records()) == losses(stopped.run.records())
    assert goes_on.run.result.read_bytes() == stopped.run.result.read_bytes()


@pytest.mark.parametrize("method", ["extractor", *METHODS])
def test_every_method_stops_and_a_finished_run_tells_it_again(method: str, tmp_path: Path) -> None:
    make = lambda: (  # noqa: E731
        extractor_job(tmp_path, STOPS)
        if method == "extractor"
        else pure_job(tmp_path, PureSettings(method, **FEW), STOPS)
    )
    job = make()
    run(job)
    assert job.concept.summary["stopped_at"] < STOPS.steps
    again = make()
    assert run(again) == [] and reason(again.concept.summary, STOPS) == reason(job.concept.summary, STOPS)


def test_it_is_off_by_default_and_then_in_no_runs_name() -> None:
    assert SETTINGS.stop_patience == 0 and EarlyStop.of(SETTINGS) is None
    assert not any(name.startswith("stop_") for name in as_plain(SETTINGS))
    assert {"stop_patience", "stop_every", "stop_gain"} <= as_plain(STOPS).keys()
