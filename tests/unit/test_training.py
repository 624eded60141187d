"""Both stages on a tiny real transformer: the terms of the loss, the step, stopping and going on, what is kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import (
    BASE_ID,
    CHANNELS,
    SCALING,
    SETTINGS,
    SIDE,
    concept_set,
    extractor,
    extractor_job,
    learned,
    network,
    noise,
    pure_job,
    stage_two,
    text,
    transformer,
)
from torch import Tensor

from purecc.concept import Concept, load_concept
from purecc.flow import picture_from_velocity, sample_times
from purecc.network import BASE
from purecc.objective import ORIGINALS, Original
from purecc.runs import StepRecord
from purecc.settings import PureSettings, TrainSettings
from purecc.stages import Job, PureJob, _probes, drift, initial_embeddings
from purecc.training import EXTRACTOR, PURE, Batch, LatentScaling, draw_batch


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """A finished run that several tests look at: "extractor", "PureCC" or "LoRA", with the default settings."""
    jobs: dict[str, Job] = {}

    def get(name: str) -> Job:
        if name not in jobs:
            root = tmp_path_factory.mktemp("finished")
            jobs[name] = extractor_job(root) if name == "extractor" else pure_job(root, PureSettings(method=name))
            run(jobs[name])
        return jobs[name]

    return get


def run(job: Job) -> list[StepRecord]:
    return list(job)


def same(a: Concept, b: Concept) -> bool:
    of_a, of_b = a.tensors(), b.tensors()
    return of_a.keys() == of_b.keys() and all(torch.equal(of_a[name], of_b[name]) for name in of_a)


def losses(records: list[StepRecord]) -> list[tuple[float, float]]:
    return [(record.loss, record.concept_loss) for record in records]


def batch_of(job: Job, step: int = 1) -> Batch:
    return draw_batch(job.data, job.settings, job.scaling, step, "cpu")


# What the loss is, written once more and without the project's equations


def expected_terms(original: Original, fixed: float | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """L_CC, L_PureCC, lambda, and the gradient of their sum, from separate forwards of each model and text."""
    job, adapted = stage_two(original)
    batch = batch_of(job)
    ask = lambda words, model: adapted.velocity(batch.x_t, batch.t, words, model)  # noqa: E731
    with torch.no_grad():
        guidance = ask(batch.target, EXTRACTOR) - ask(batch.null, EXTRACTOR)
        of_base = ask(batch.base, BASE)
    v_original = of_base if original == "frozen base" else ask(batch.base, PURE)
    if original == "trainable, detached":
        v_original = v_original.detach()
    complete = ask(batch.complete, PURE)
    difference = complete - v_original
    scale = torch.stack([(d * g).sum() / (g * g).sum() for d, g in zip(difference.detach(), guidance, strict=True)])
    if fixed is not None:
        scale = torch.full_like(scale, fixed)
    off = torch.stack([d - s * g for d, s, g in zip(difference, scale, guidance, strict=True)])
    terms = {"concept_loss": (complete - batch.v_true).square().mean(), "pure_loss": off.square().mean()}
    loss = terms["concept_loss"] + job.pure.eta * terms["pure_loss"]
    terms |= {"scale": scale.mean(), "scale_spread": scale.std(correction=0)}
    return terms | {"loss": loss.detach()}, list(torch.autograd.grad(loss, learned(adapted), allow_unused=True))


@cache
def made_terms(original: Original, fixed: float | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    job, adapted = stage_two(original, fixed_scale=fixed)
    terms = job.objective().terms(adapted, batch_of(job))
    gradient = torch.autograd.grad(terms.loss, learned(adapted), allow_unused=True)
    return terms.measured | {"loss": terms.loss.detach()}, list(gradient)


def flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient if g is not None])


@pytest.mark.parametrize("fixed", [None, 3.0])
@pytest.mark.parametrize("original", ORIGINALS)
def test_the_loss_and_its_gradient_are_equations_8_to_15(original: Original, fixed: float | None) -> None:
    """Fails for a difference the wrong way round, base and complete swapped, an extractor without its LoRA."""
    (made, made_gradient), (expected, gradient) = made_terms(original, fixed), expected_terms(original, fixed)
    for name, value in expected.items():
        torch.testing.assert_close(made[name].detach(), value.detach(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(
        flat(made_gradient), flat(gradient), rtol=1e-3, atol=1e-4 * float(flat(gradient).abs().max())
    )


def test_the_three_sources_of_v_original_give_three_gradients() -> None:
    found = {original: flat(made_terms(original)[1]) for original in ORIGINALS}
    size = float(found["trainable"].norm())
    for a, b in (ORIGINALS[:2], ORIGINALS[1:], ORIGINALS[::2]):
        assert float((found[a] - found[b]).norm()) > 0.05 * size, f"{a} and {b} are alike"


def test_trainable_and_detached_agree_in_value_but_for_the_gradient() -> None:
    trainable, detached = made_terms("trainable")[0], made_terms("trainable, detached")[0]
    for name in ("loss", "pure_loss", "scale"):
        torch.testing.assert_close(trainable[name], detached[name], rtol=1e-5, atol=1e-6)
    assert abs(float((made_terms("frozen base")[0]["pure_loss"] - detached["pure_loss"]).detach())) > 1e-2


def test_lambda_follows_the_model_and_is_one_for_each_sample() -> None:
    job, adapted = stage_two()
    measured = [job.objective().terms(adapted, batch_of(job, step)).measured for step in (1, 2)]
    assert measured[0]["scale"] != measured[1]["scale"]
    assert all(float(m["scale_spread"]) > 1e-3 for m in measured)
    assert all(0 <= float(m["squared_cosine"]) <= 1 for m in measured)


def test_the_guidance_is_the_whole_extractors() -> None:
    """Not that of the base, of the embeddings alone, or of the LoRA alone."""
    job, adapted = stage_two()
    whole = job.objective().terms(adapted, batch_of(job)).measured["scale"]
    embeddings = adapted.embeddings.pop(EXTRACTOR)
    without_embeddings = job.objective().terms(adapted, batch_of(job)).measured["scale"]
    adapted.embeddings[EXTRACTOR] = embeddings
    with torch.no_grad():
        for parameter in adapted.lora_parameters(EXTRACTOR):
            parameter.zero_()
    without_lora = job.objective().terms(adapted, batch_of(job)).measured["scale"]
    assert abs(float(whole - without_embeddings)) > 1e-3 and abs(float(whole - without_lora)) > 1e-3


@pytest.mark.parametrize("original", ORIGINALS)
def test_with_eta_0_pure_learning_is_plain_lora_step_for_step(original: Original, tmp_path: Path, finished) -> None:
    pure, plain = pure_job(tmp_path, PureSettings(eta=0, original=original)), finished("LoRA")
    records = run(pure)
    assert losses(records) == losses(plain.run.records())
    assert same(pure.concept, plain.concept)
    assert all(math.isfinite(value) for record in records for value in asdict(record).values())


def test_with_eta_1_it_is_not(finished) -> None:
    of_pure, of_plain = (finished(name).run.records() for name in ("PureCC", "LoRA"))
    assert of_pure[0].concept_loss == of_plain[0].concept_loss and of_pure[-1].concept_loss != of_plain[-1].concept_loss
    assert not same(finished("PureCC").concept, finished("LoRA").concept)


# A batch


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    data = concept_set()
    first = draw_batch(data, SETTINGS, SCALING, 3, "cpu")
    torch.manual_seed(99)  # the global generator has no say
    again = draw_batch(concept_set(), replace(SETTINGS, learning_rate=1.0), SCALING, 3, "cpu")
    assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("x_t", "t", "v_true"))
    assert torch.equal(first.complete.rows, again.complete.rows)
    for other in (
        draw_batch(data, SETTINGS, SCALING, 4, "cpu"),
        draw_batch(data, replace(SETTINGS, seed=6), SCALING, 3, "cpu"),
    ):
        assert not torch.equal(first.x_t, other.x_t) and not torch.equal(first.t, other.t)


def test_a_batch_holds_the_scaled_latents_and_their_own_texts() -> None:
    data, seen = concept_set(), set()
    latents = torch.stack([SCALING.to_model(example.latent) for example in data.examples])
    for step in range(1, 20):
        batch = draw_batch(data, SETTINGS, SCALING, step, "cpu")
        pictures = picture_from_velocity(batch.x_t, batch.v_true, batch.t)
        for i, picture in enumerate(pictures):
            index = int((latents - picture).abs().flatten(1).sum(1).argmin())
            torch.testing.assert_close(picture, latents[index], rtol=1e-4, atol=1e-5)
            for which in ("complete", "base", "target"):
                own = data.encoded[getattr(data.examples[index].texts, which)]
                assert torch.equal(getattr(batch, which).rows[i], own.rows)
            seen.add(index)
        assert torch.equal(batch.null.rows[0], data.encoded[""].rows)
        assert batch.complete.marks.any(1).all() and batch.target.marks.any(1).all()
        assert not batch.base.marks.any() and not batch.null.marks.any()
    assert seen == {0, 1}


def test_times_are_drawn_with_the_settings_shift() -> None:
    times = torch.cat([draw_batch(concept_set(), SETTINGS, SCALING, step, "cpu").t for step in range(1, 300)])
    expected = sample_times(100_000, SETTINGS.shift, torch.Generator().manual_seed(0))
    assert abs(float(times.mean() - expected.mean())) < 0.03


def test_a_batch_larger_than_the_set_repeats_and_one_of_two_sizes_is_not_mixed() -> None:
    data = concept_set()
    assert len(draw_batch(data, replace(SETTINGS, batch_size=7), SCALING, 1, "cpu").t) == 7
    wide = replace(data.examples[0], latent=noise(CHANNELS, SIDE, 4))
    mixed = replace(data, examples=(*data.examples, wide))
    sizes = {draw_batch(mixed, SETTINGS, SCALING, step, "cpu").x_t.shape for step in range(1, 20)}
    assert sizes == {(2, CHANNELS, SIDE, SIDE), (2, CHANNELS, SIDE, 4)}


def test_a_seed_may_have_64_bits() -> None:
    draw_batch(concept_set(), replace(SETTINGS, seed=2**64 - 1), SCALING, 400, "cpu")


def test_latent_scaling_has_its_inverse() -> None:
    z = noise(2, CHANNELS, SIDE, SIDE)
    scaling = LatentScaling(scale=1.5305, shift=0.0609)
    torch.testing.assert_close(scaling.to_autoencoder(scaling.to_model(z)), z)
    torch.testing.assert_close(scaling.to_model(torch.full((1,), 0.0609)), torch.zeros(1))


# The loop


def test_one_step_is_adamw_on_the_clipped_gradient(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, max_grad_norm=0.01, weight_decay=0.1)
    job = pure_job(tmp_path, PureSettings(), settings)
    run(job)
    by_hand = pure_job(tmp_path, PureSettings(), settings, adapted=network())
    by_hand.prepare()
    lora, embeddings = by_hand.network.lora_parameters(PURE), [by_hand.network.embeddings[PURE].clip]
    for parameter in lora:
        parameter.requires_grad_(True)
    by_hand.objective().terms(by_hand.network, batch_of(by_hand)).loss.backward()
    assert float(torch.nn.utils.clip_grad_norm_(lora + embeddings, 0.01)) > 0.01
    torch.optim.AdamW(lora, lr=settings.learning_rate, weight_decay=0.1).step()
    torch.optim.AdamW(embeddings, lr=settings.embedding_rate, weight_decay=0.0).step()
    for made, expected in zip(job.network.lora_parameters(PURE), lora, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(job.network.embeddings[PURE].clip, embeddings[0], rtol=1e-5, atol=1e-6)


def test_training_leaves_base_and_extractor_bit_for_bit(finished) -> None:
    job = finished("PureCC")
    fresh = transformer().state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in job.network.transformer.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in fresh.items())
    x, t, words = noise(2, CHANNELS, SIDE, SIDE), torch.tensor([0.3, 0.8]), text("a [V] dog", count=2)
    with torch.no_grad():
        assert torch.equal(job.network.velocity(x, t, words, BASE), network().velocity(x, t, words, BASE))
        assert not torch.equal(job.network.velocity(x, t, words, PURE), job.network.velocity(x, t, words, BASE))
    kept = job.network.lora_weights(EXTRACTOR, extractor().lora.alpha).matrices
    assert all(torch.equal(kept[n][i], ab[i]) for n, ab in extractor().lora.matrices.items() for i in (0, 1))
    assert torch.equal(job.network.embeddings[EXTRACTOR].clip, extractor().embeddings.clip)
    asking = {id(p) for p in job.network.transformer.parameters() if p.requires_grad}
    assert asking == {id(p) for p in job.network.lora_parameters(PURE)}
    assert [job.network.embeddings[name].clip.requires_grad for name in (EXTRACTOR, PURE)] == [False, True]


def test_stage_two_starts_from_a_copy_of_the_embeddings_and_may_freeze_it(tmp_path: Path, finished) -> None:
    start = extractor().embeddings.clip
    job = pure_job(tmp_path, PureSettings(train_embeddings=False), replace(SETTINGS, steps=1))
    job.prepare()
    assert torch.equal(job.network.embeddings[PURE].clip, start)
    job = pure_job(tmp_path, PureSettings(train_embeddings=False), replace(SETTINGS, steps=1))
    run(job)
    assert torch.equal(job.concept.embeddings.clip, start)
    assert not job.network.embeddings[PURE].clip.requires_grad
    assert not torch.equal(finished("PureCC").concept.embeddings.clip, start)


def test_the_loss_falls_on_pictures_that_can_be_learnt(tmp_path: Path) -> None:
    """Quiet latents, so the velocity to regress is the noise that can be seen."""
    settings = replace(SETTINGS, steps=24, batch_size=4, checkpoint_every=100)
    records = run(extractor_job(tmp_path, settings, concept_set(loud=0.1)))
    start, end = (sum(record.loss for record in part) / 6 for part in (records[:6], records[-6:]))
    assert end < 0.8 * start


# Stopping, going on, finding again


@pytest.mark.parametrize(("stage", "stop"), [("extractor", 3), ("PureCC", 1), ("PureCC", 3)])
def test_a_stopped_run_goes_on_bit_for_bit(stage: str, stop: int, tmp_path: Path, finished) -> None:
    make, whole = (extractor_job if stage == "extractor" else pure_job), finished(stage)
    stopped = make(tmp_path)
    for record in stopped:
        if record.step == stop:
            break
    assert stopped.concept is None and not stopped.run.result.exists()
    goes_on = make(tmp_path)
    assert [record.step for record in goes_on] == list(range(stop + 1, 5))
    assert losses(goes_on.run.records()) == losses(whole.run.records())
    assert same(goes_on.concept, whole.concept)


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
    assert not (first.run.folder / "checkpoint.safetensors").exists()
    assert [record.step for record in again.run.records()] == [1, 2, 3, 4]


def test_any_change_of_the_inputs_is_another_folder(tmp_path: Path) -> None:
    adapted = network()
    folder = lambda **changed: pure_job(tmp_path, adapted=adapted, **changed).run.folder  # noqa: E731
    folders = [folder(), extractor_job(tmp_path).run.folder]
    other_words = {"attention": "attention and attn2", "replace": "none"}
    for field in fields(TrainSettings):
        value = getattr(SETTINGS, field.name)
        other = other_words[value] if isinstance(value, str) else value * 2
        folders.append(folder(settings=replace(SETTINGS, **{field.name: other})))
    for name, other in asdict(PureSettings("LoRA", 0.5, "trainable", 1.0, False)).items():
        folders.append(folder(pure=PureSettings(**{name: other})))
    folders.append(folder(data=concept_set(loud=1.1)))
    offset = replace(SETTINGS, embeddings="offset")
    folders.append(folder(guide=extractor("offset"), settings=offset))
    folders.append(folder(guide=replace(extractor(), base="other"), base="other"))
    assert len(set(folders)) == len(folders)
    assert folder() == folders[0]
    assert folder(pure=PureSettings("LoRA", eta=3.0)) == folder(pure=PureSettings("LoRA"))  # a plain LoRA has no eta
    with pytest.raises(ValueError, match='act by "replace"; stage 2 is set to "offset"'):
        folder(settings=offset)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    job = extractor_job(tmp_path, replace(SETTINGS, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"not finite at step 2\. Lower the learning rate \(1e\+30\)"):
        run(job)
    assert job.concept is None and not job.run.result.exists()
    assert [record.step for record in job.run.records()] == [1]


# What is measured and kept


def test_records_of_pure_learning_are_whole_and_finite(finished) -> None:
    records = finished("PureCC").run.records()
    assert [record.step for record in records] == [1, 2, 3, 4]
    for record in records:
        assert all(value is not None and math.isfinite(value) for value in asdict(record).values()), record
        assert record.loss == pytest.approx(record.concept_loss + record.pure_loss, rel=1e-5)  # eta is 1


@pytest.mark.parametrize("name", ["extractor", "LoRA"])
def test_records_without_pure_learning_have_the_concept_loss_alone(name: str, finished) -> None:
    for record in finished(name).run.records():
        assert record.loss == record.concept_loss and math.isfinite(record.loss)
        assert record.pure_loss is record.scale is record.squared_cosine is record.representation is None


def test_the_concept_holds_what_was_trained_and_its_figures(finished) -> None:
    job = finished("PureCC")
    concept = load_concept(job.run.result)
    assert same(concept, job.concept)
    assert (concept.trigger, concept.class_word, concept.kind, concept.role) == ("[V]", "dog", "instance", "concept")
    assert concept.base == BASE_ID and concept.settings["eta"] == 1.0 and concept.settings["steps"] == 4
    assert concept.lora.alpha == SETTINGS.alpha and concept.lora.rank == SETTINGS.rank
    summary = concept.summary
    assert {"drift_base", "drift_null", "loss", "scale", "squared_cosine", "seconds_per_step"} <= summary.keys()
    assert all(math.isfinite(value) for value in summary.values())
    assert summary["drift_base"] > 0 and summary["drift_null"] > 0
    assert summary["loss"] == pytest.approx(job.run.records()[-1].loss, abs=1e-6)  # the last tenth of 4 steps
    assert finished("extractor").concept.role == "extractor"


def test_drift_of_a_fresh_model_is_exactly_0(tmp_path: Path) -> None:
    job = pure_job(tmp_path)
    job.prepare()
    for which in ("base", "null"):
        assert drift(job.network, PURE, job.data, SCALING, which) == 0
    assert drift(job.network, EXTRACTOR, job.data, SCALING, "null") > 0.05


def test_drift_is_the_distance_to_the_base_by_the_bases_own_length() -> None:
    job, adapted = stage_two()
    moved = length = 0.0
    with torch.no_grad():
        for x_t, t, indices in _probes(job.data, SCALING, adapted.device):
            words = job.data.batch("base", indices)
            v_base, v_model = (adapted.velocity(x_t, t, words, model) for model in (BASE, PURE))
            moved, length = moved + float((v_model - v_base).square().sum()), length + float(v_base.square().sum())
    assert drift(adapted, PURE, job.data, SCALING, "base") == pytest.approx(math.sqrt(moved / length), rel=1e-5)


# Where the embeddings start


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("t5", [False, True])
def test_replacements_start_from_the_class_words_stream_and_offsets_from_0(tokens: int, t5: bool) -> None:
    data, adapted = concept_set(tokens=tokens, t5=t5), network()
    start = initial_embeddings(adapted, data, SCALING, "replace")
    assert start.clip.shape == (2, tokens, 128) and (start.t5.shape == (2, tokens, 128) if t5 else start.t5 is None)
    # before the first block nothing has been mixed: the stream there is the embedded row itself
    rows = torch.stack(
        [data.encoded[e.texts.complete].rows[data.encoded[e.texts.complete].marks > 0] for e in data.examples]
    )
    with torch.no_grad():
        expected = adapted.transformer.context_embedder(rows.mean(0))
    made = torch.cat([start.clip[0], start.t5[0]]) if t5 else start.clip[0]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    offset = initial_embeddings(adapted, data, SCALING, "offset")
    assert offset.mode == "offset" and not offset.clip.any() and (offset.t5 is None or not offset.t5.any())
    assert initial_embeddings(adapted, data, SCALING, "none") is None


@pytest.mark.parametrize("t5", [False, True])
def test_a_class_word_of_two_tokens_keeps_clip_and_t5_apart(t5: bool) -> None:
    data = concept_set(("a [V] toy dog", "a toy dog in the snow"), class_word="toy dog", t5=t5)
    start = initial_embeddings(network(), data, SCALING, "replace")
    assert (start.t5 is not None) is t5
    assert start.t5 is None or start.t5.shape == start.clip.shape


# Refusals


def test_pure_learning_needs_an_extractor(tmp_path: Path) -> None:
    adapted, own = network(), concept_set()
    make = lambda pure, guide, base=BASE_ID, data=own: PureJob(  # noqa: E731
        adapted, data, SETTINGS, SCALING, tmp_path, base, pure, guide
    )
    with pytest.raises(ValueError, match="PureCC needs an extractor: connect Train Extractor"):
        make(PureSettings(), None)
    with pytest.raises(ValueError, match=r'trained for "\[W\]", the concept set is for "\[V\]"'):
        make(PureSettings(), replace(extractor(), trigger="[W]"))
    with pytest.raises(ValueError, match="trained on another base model"):
        make(PureSettings(), extractor(), base="another")
    with pytest.raises(ValueError, match="has 1 embeddings a block, the concept set 2"):
        make(PureSettings(), extractor(), data=concept_set(tokens=2))
    assert make(PureSettings(method="LoRA"), None).concept is None
    assert make(PureSettings(), replace(extractor(), trigger="[v]")).concept is None


def test_plain_lora_without_an_extractor_starts_as_stage_one_does(tmp_path: Path, finished) -> None:
    """Same seed, data and steps: the baseline of stage 2 is then stage 1 itself."""
    pure = PureSettings(method="LoRA")
    plain = PureJob(network(), concept_set(), SETTINGS, SCALING, tmp_path, BASE_ID, pure, None)
    assert losses(run(plain)) == losses(finished("extractor").run.records())
    assert same(plain.concept, finished("extractor").concept)


def test_without_embeddings_the_lora_learns_alone(tmp_path: Path) -> None:
    job = pure_job(tmp_path, settings=replace(SETTINGS, steps=1, embeddings="none"))
    assert len(run(job)) == 1
    assert job.concept.embeddings is None and job.concept.lora is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: TrainSettings(steps=0), "steps is 0; it must be at least 1"),
        (lambda: TrainSettings(learning_rate=-1.0), "learning_rate is -1.0; it must be above 0"),
        (lambda: TrainSettings(learning_rate=math.nan), "learning_rate is nan"),
        (lambda: TrainSettings(targets="all"), "targets is all; it must be one of attention, "),
        (lambda: TrainSettings(embeddings="add"), "embeddings is add; it must be one of replace, offset, none"),
        (lambda: PureSettings(eta=-0.1), "eta is -0.1; it must be 0 or more"),
        (lambda: PureSettings(original="base"), "original is base; it must be one of frozen base, "),
        (lambda: PureSettings(method="DreamBooth"), "method is DreamBooth; it must be one of PureCC, LoRA"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings()
