"""Stopping, going on, finding again: bit for bit."""

from __future__ import annotations

import math
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny import (
    BASE_ID,
    FEW,
    SCALING,
    SETTINGS,
    concept_set,
    extractor,
    extractor_job,
    losses,
    network,
    pure_job,
    run,
    same,
    transformer,
)  # fmt: skip

from purecc.frozen import store, stream
from purecc.network import EXTRACTOR, AdaptedNetwork
from purecc.runs import Run
from purecc.settings import METHODS, PureSettings, TrainSettings, as_plain
from purecc.stages import ExtractorJob, PureJob


@pytest.mark.parametrize(("stage", "stop"), [("extractor", 3), ("PureCC", 1), *((method, 3) for method in METHODS)])
def test_a_stopped_run_goes_on_bit_for_bit_and_its_file_is_the_same(stage: str, stop: int, tmp_path, finished) -> None:
    """Also the bytes of the concept's file: nothing in it depends on when or how often it was run."""
    make = extractor_job if stage == "extractor" else lambda root: pure_job(root, PureSettings(stage, **FEW))
    stopped, whole = make(tmp_path), finished(stage)
    for record in stopped:
        if record.step == stop:
            break
    assert stopped.concept is None and not stopped.run.result.exists()
    goes_on = make(tmp_path)
    assert [record.step for record in goes_on] == list(range(stop + 1, 5))
    assert losses(goes_on.run.records()) == losses(whole.run.records())
    assert same(goes_on.concept, whole.concept)
    assert goes_on.run.result.read_bytes() == whole.run.result.read_bytes()


@pytest.mark.parametrize("stage", ["extractor", *METHODS])
def test_more_steps_go_on_from_a_shorter_run_bit_for_bit(stage: str, tmp_path: Path, finished) -> None:
    """The seed of the whole run is that of its beginning, and a constant rate does not know of the end."""
    make = lambda steps: (  # noqa: E731
        extractor_job(tmp_path, replace(SETTINGS, steps=steps))
        if stage == "extractor"
        else pure_job(tmp_path, PureSettings(stage, **FEW), replace(SETTINGS, steps=steps))
    )
    shorter, whole = make(2), finished(stage)
    run(shorter)
    longer = make(4)
    assert [record.step for record in longer] == [3, 4] and longer.run.folder != shorter.run.folder
    assert losses(longer.run.records()) == losses(whole.run.records())
    assert longer.run.result.read_bytes() == whole.run.result.read_bytes()
    assert [record.step for record in make(3)] == [3]  # the checkpoint of step 2 is further than none
    assert same(make(2).concept, shorter.concept)  # and is still there


def test_a_damaged_line_of_measures_costs_no_training(tmp_path: Path) -> None:
    """A power cut may leave one, in a byte that is no text either."""
    shorter = extractor_job(tmp_path, replace(SETTINGS, steps=4))
    run(shorter)
    metrics, checkpoint = (shorter.run.folder / name for name in ("metrics.jsonl", "checkpoint.safetensors"))
    whole, lines = checkpoint.read_bytes(), metrics.read_bytes().splitlines(keepends=True)
    bad = [
        lines[0],
        lines[1][:20] + b"\xff" + lines[1][21:],
        b'{"step": null, "loss": 1, "concept_loss": 1}\n',
        *lines[2:],
    ]
    metrics.write_bytes(b"".join(bad))
    assert [record.step for record in shorter.run.records()] == [1, 3, 4]
    longer = extractor_job(tmp_path, replace(SETTINGS, steps=6))
    assert [record.step for record in longer] == [5, 6]
    assert [record.step for record in longer.run.records()] == [1, 3, 4, 5, 6]

    checkpoint.write_bytes(whole[:-8])
    again = extractor_job(tmp_path, replace(SETTINGS, steps=5))
    assert again.run.load_checkpoint() == (0, {})
    checkpoint.write_bytes(whole)
    (tmp_path / "extractor-0123456789ab" / "settings.json").mkdir(parents=True)  # of another run, that cannot be read
    assert again.run.load_checkpoint()[0] == 4


def test_a_run_without_its_measures_ends_in_a_concept(tmp_path: Path) -> None:
    for stop in ({}, {"stop_patience": 2, "stop_every": 1}):
        settings = replace(SETTINGS, steps=4, **stop)
        for record in (cancelled := extractor_job(tmp_path, settings)):
            if record.step == 3:
                break
        (cancelled.run.folder / "metrics.jsonl").unlink()
        job = extractor_job(tmp_path, settings)
        run(job)
        assert job.concept is not None and "drift_base" in job.concept.summary


def test_a_server_that_is_stopped_costs_a_minute_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purecc.training._AT_MOST", 0.0)
    job = extractor_job(tmp_path, replace(SETTINGS, steps=9, checkpoint_every=100))
    steps = iter(job)
    for done in (1, 2):
        next(steps)
        assert job.run._reached() == done  # nothing was closed: as when the process ends here


def test_a_cancel_while_it_measures_costs_no_step(tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(what: str, done: int, total: int) -> None:
        raise Cancelled

    job = extractor_job(tmp_path, replace(SETTINGS, steps=3))
    with pytest.raises(Cancelled):
        for record in job:
            if record.step == 3:
                job.preparing = cancel
    assert not job.run.result.is_file()
    again = extractor_job(tmp_path, replace(SETTINGS, steps=3))
    assert list(again) == [] and again.concept is not None


def test_a_folder_that_is_cleared_away_while_it_trains_is_made_again(tmp_path: Path) -> None:
    job = extractor_job(tmp_path, replace(SETTINGS, steps=3))
    for record in job:
        if record.step == 1:
            shutil.rmtree(job.run.folder)
    assert job.concept is not None and job.run.finished() is not None
    assert Run.at(job.run.folder).identity == job.run.identity


def test_a_cancelled_run_is_cut_to_fewer_steps(tmp_path: Path) -> None:
    for record in extractor_job(tmp_path, replace(SETTINGS, steps=9)):
        if record.step == 3:
            break
    assert [record.step for record in extractor_job(tmp_path, replace(SETTINGS, steps=3))] == []
    assert [record.step for record in extractor_job(tmp_path, replace(SETTINGS, steps=2))] == [1, 2]


@pytest.mark.parametrize("changed", [{"schedule": "cosine"}, {"stop_patience": 2, "stop_every": 1}, {"seed": 7}])
def test_runs_that_begin_otherwise_are_not_gone_on_with(tmp_path: Path, changed: dict) -> None:
    shorter = extractor_job(tmp_path, replace(SETTINGS, steps=2, **({} if "seed" in changed else changed)))
    run(shorter)
    longer = extractor_job(tmp_path, replace(SETTINGS, steps=3, **changed))
    assert next(iter(longer)).step == 1
    assert (shorter.run.folder / "checkpoint.safetensors").exists() == ("seed" in changed)


def test_a_run_cut_off_without_warning_goes_on_from_its_checkpoint(tmp_path: Path, finished) -> None:
    """As after a power cut: the folder as it lay on the disk in the middle of step 4, the checkpoint of step 2."""
    for record in pure_job(tmp_path / "whole"):
        if record.step == 3:
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
            break
    goes_on = pure_job(tmp_path / "cut")
    with (goes_on.run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 0.')
    assert [record.step for record in goes_on] == [3, 4]
    assert losses(goes_on.run.records()) == losses(finished("PureCC").run.records())
    assert same(goes_on.concept, finished("PureCC").concept)


def test_an_error_in_who_consumes_the_records_leaves_a_checkpoint(tmp_path: Path) -> None:
    records = iter(extractor_job(tmp_path))
    next(records), next(records), next(records)  # the checkpoint of its own accord is that of step 2
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert [record.step for record in extractor_job(tmp_path)] == [4]


def test_nothing_is_trained_again_where_the_last_step_was_done_but_not_shown(tmp_path: Path) -> None:
    records = iter(extractor_job(tmp_path))
    for _ in range(SETTINGS.steps):
        next(records)
    records.close()  # as a cancel, or an error in the last preview
    again = extractor_job(tmp_path)
    assert list(again) == [] and again.concept is not None


def test_pictures_too_large_for_the_model_are_refused_before_any_work(tmp_path: Path) -> None:
    data = concept_set()
    large = replace(data.examples[0], latent=torch.zeros(4, 512, 8))
    with pytest.raises(ValueError, match="Lower the resolution in Concept Set"):
        extractor_job(tmp_path, data=replace(data, examples=(large,)))


def test_every_method_is_held_against_the_extractors_direction(finished) -> None:
    for name in ("extractor", "PureCC", "LoRA"):
        summary = finished(name).concept.summary
        assert 0 <= summary["end_squared_cosine"] <= 1 and summary["end_representation"] > 0
        assert math.isfinite(summary["end_scale"])


def test_a_finished_run_is_found_and_not_trained_again(finished) -> None:
    first = finished("extractor")
    again = extractor_job(first.run.folder.parent)
    assert again.concept is not None and run(again) == []
    assert same(again.concept, first.concept) and again.concept.summary == first.concept.summary
    assert again.network.lora_weights(EXTRACTOR, 1.0) is None  # nothing was even prepared
    assert [record.step for record in again.run.records()] == [1, 2, 3, 4]


def test_what_saves_memory_is_the_same_run(tmp_path: Path, finished) -> None:
    """So a run may be stopped with it and go on without it."""
    plain = finished("PureCC")
    waiting = transformer()
    store(waiting, "whole")
    stream(waiting, "cpu")
    saving = replace(SETTINGS, checkpointing=True, modulation_table=True, stream_blocks=True, memory="6 GB")
    job = pure_job(tmp_path, settings=saving, adapted=AdaptedNetwork(waiting))
    assert losses(run(job)) == losses(plain.run.records())
    assert job.run.folder.name == plain.run.folder.name and same(job.concept, plain.concept)
    assert job.run.result.read_bytes() == plain.run.result.read_bytes()


def test_a_base_in_float8_is_told_in_the_concepts_file(tmp_path: Path, finished) -> None:
    stored = transformer()
    store(stored, "float8")
    adapted, settings = AdaptedNetwork(stored), replace(SETTINGS, frozen_weights="float8")
    with pytest.raises(ValueError, match='weights are "float8", the settings say "whole"'):
        pure_job(tmp_path, adapted=adapted)
    job = pure_job(tmp_path, settings=settings, adapted=adapted)
    assert all(math.isfinite(loss) for pair in losses(run(job)) for loss in pair)
    assert job.concept.settings["frozen_weights"] == "float8"
    assert "frozen_weights" not in finished("PureCC").concept.settings
    assert not same(job.concept, finished("PureCC").concept)


def test_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is float16.*bfloat16"):
        pure_job(tmp_path, adapted=AdaptedNetwork(transformer().half()))


def test_settings_that_keep_and_save_stand_in_a_run_as_they_come() -> None:
    """So that runs of older versions are found."""
    plain = as_plain(TrainSettings(checkpoint_every=7, checkpointing=True))
    assert (plain["checkpoint_every"], plain["checkpointing"]) == (50, False)


def test_any_change_of_the_inputs_is_another_folder(tmp_path: Path) -> None:
    adapted = network()
    folder = lambda **changed: pure_job(tmp_path, adapted=adapted, **changed).run.folder  # noqa: E731
    folders = [folder(), extractor_job(tmp_path).run.folder]
    others = {
        "targets": "attention and attn2", "embeddings": "none", "gate": "rows", "schedule": "cosine", "first_block": 1,
        "times": "diffusers grid", "last_block": 0, "warmup": 1, "background_weight": 0.5,
    }  # fmt: skip
    masked = replace(concept_set(), masks=(torch.ones(8, 8), torch.eye(8)))
    saving = {
        "modulation_table": True,
        "checkpointing": True,
        "stream_blocks": True,
        "scenes_apart": True,
        "record_steps": False,
        "memory": "as set",
        "dtype": "float32",
        "checkpoint_every": 7,
    }
    assert folder(settings=replace(SETTINGS, **saving)) == folder()  # the result is the same
    assert folder(settings=replace(SETTINGS, stop_every=3, stop_gain=0.5)) == folder()  # early stop is off
    stop = {"stop_patience": 2, "stop_every": 25, "stop_gain": 0.01}
    for changed in (stop, stop | {"stop_patience": 3}, stop | {"stop_every": 3}, stop | {"stop_gain": 0.5}):
        folders.append(folder(settings=replace(SETTINGS, **changed)))
    stored = transformer()
    store(stored, "float8")
    float8 = pure_job(tmp_path, settings=replace(SETTINGS, frozen_weights="float8"), adapted=AdaptedNetwork(stored))
    folders.append(float8.run.folder)
    for field in fields(TrainSettings):
        if field.name in {*saving, "frozen_weights", *stop}:
            continue
        other = others[field.name] if field.name in others else getattr(SETTINGS, field.name) * 2
        folders.append(folder(settings=replace(SETTINGS, **{field.name: other}), data=masked))
    half = replace(SETTINGS, background_weight=0.5)
    assert folder(data=masked) == folder()  # masks that nothing reads
    folders.append(folder(settings=half, data=replace(masked, masks=masked.masks[::-1])))
    for name, other in {
        "eta": 0.5, "original": "trainable", "fixed_scale": 0.0, "train_embeddings": False, "target": "in-context",
        "eta_schedule": "low noise", "scale_multiplier": 1.5, "scale_min": 0.0, "scale_max": 2.0, "base_anchor": 1.0,
        "null_anchor": 1.0, "background_anchor": 1.0,
    }.items():  # fmt: skip
        folders.append(folder(pure=PureSettings(**{name: other})))
    prior = PureSettings("LoRA + prior preservation")
    for name, other in {
        "preservation_weight": 2.0, "class_pictures": 3, "class_texts": "base", "class_steps": 3, "class_guidance": 1.0,
        "class_shift": 1.0, "seed": None,
    }.items():  # fmt: skip
        folders.append(folder(pure=replace(prior, **{name: other}) if other else prior))
    folders += [folder(pure=PureSettings(method)) for method in ("LoRA", "LoRA + DOP", "merged stage")]
    folders.append(folder(data=concept_set(loud=1.1)))
    for scaling in (replace(SCALING, scale=SCALING.scale * 2), replace(SCALING, shift=SCALING.shift + 1)):
        of_another_vae = PureJob(
            adapted, concept_set(), SETTINGS, scaling, tmp_path, BASE_ID, PureSettings(), extractor()
        )
        folders.append(of_another_vae.run.folder)
    offset = replace(SETTINGS, embeddings="offset")
    folders.append(folder(guide=extractor("offset"), settings=offset))
    folders.append(folder(guide=replace(extractor(), base="other"), base="other"))
    for job, *more in ((ExtractorJob,), (PureJob, PureSettings(), extractor())):  # the same model, stored otherwise
        stored_in = job(adapted, concept_set(), SETTINGS, SCALING, tmp_path, BASE_ID, *more, values="of float8")
        folders.append(stored_in.run.folder)
    assert len(set(folders)) == len(folders)
    assert folder() == folders[0]
    for method, unused in (("LoRA", "eta"), ("LoRA", "preservation_weight"), ("LoRA + DOP", "scale_max")):
        assert folder(pure=PureSettings(method, **{unused: 3.0})) == folder(pure=PureSettings(method))
    fixed = PureSettings(fixed_scale=1.0)
    assert folder(pure=replace(fixed, scale_multiplier=2.0)) == folder(pure=fixed)
    with pytest.raises(ValueError, match='act by "replace"; stage 2 is set to "offset"'):
        folder(settings=offset)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    job = extractor_job(tmp_path, replace(SETTINGS, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"not finite at step 2\. Lower the learning rate \(1e\+30\)"):
        run(job)
    assert job.concept is None and not job.run.result.exists()
    assert [record.step for record in job.run.records()] == [1]
