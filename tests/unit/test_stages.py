"""Both stages: where they start, what is measured and kept, what is refused."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny import (
    BASE_ID,
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
    stage_two,
)

from purecc.concept import T5_SLOT, load_concept
from purecc.initial import initial_embeddings
from purecc.measures import alignment, drift, probes
from purecc.network import BASE, EXTRACTOR, PURE
from purecc.settings import METHODS, PureSettings
from purecc.stages import ExtractorJob, PureJob

PURE_FIGURES = {"pure_loss", "scale", "scale_spread", "squared_cosine", "representation"}
FIGURES = {
    "extractor": set(),
    "PureCC": PURE_FIGURES,
    "LoRA": set(),
    "LoRA + prior preservation": {"prior_loss"},
    "LoRA + DOP": {"base_anchor"},
    "merged stage": PURE_FIGURES | {"extractor_loss"},
}


def test_a_runs_folder_is_known_before_there_is_a_network(tmp_path: Path) -> None:
    job, data = extractor_job(tmp_path), concept_set()
    known = data, SETTINGS, SCALING, tmp_path, BASE_ID, torch.float32
    assert ExtractorJob.run_of(*known).folder == job.run.folder and not job.run.begun
    for method in METHODS:
        pure = PureSettings(method, eta=0.5)
        identity = PureJob.identity_of(data, pure, extractor())
        assert PureJob.run_of(*known, **identity).folder == pure_job(tmp_path, pure).run.folder, method
    next(iter(job))  # and stopped
    assert ExtractorJob.run_of(*known).begun and not job.run.result.is_file()


def test_texts_of_t5_alone_are_refused_before_any_work(tmp_path: Path) -> None:
    data = concept_set()
    of_t5 = {name: replace(t, marks=torch.where(t.marks > 0, t.marks + T5_SLOT, 0)) for name, t in data.encoded.items()}
    with pytest.raises(ValueError, match="at least one CLIP"):
        extractor_job(tmp_path, data=replace(data, encoded=of_t5))


@pytest.mark.parametrize("name", FIGURES)
def test_records_hold_the_terms_of_their_method_and_their_sum_is_the_loss(name: str, finished) -> None:
    records = finished(name).run.records()
    assert [record.step for record in records] == [1, 2, 3, 4]
    for record in records:
        measured = {n: v for n, v in asdict(record).items() if v is not None}
        assert measured.keys() == {"step", "seconds", "loss", "concept_loss"} | FIGURES[name]
        assert all(math.isfinite(value) for value in measured.values()), record
        parts = ("concept_loss", "pure_loss", "prior_loss", "base_anchor", "extractor_loss")  # all weights are 1
        assert record.loss == pytest.approx(sum(measured.get(part, 0) for part in parts), rel=1e-5)


def test_the_concept_holds_what_was_trained_and_its_figures(finished) -> None:
    job = finished("PureCC")
    concept = load_concept(job.run.result)
    assert same(concept, job.concept)
    assert job.concept.summary == concept.summary | {"seconds_per_step": job.concept.summary["seconds_per_step"]}
    assert (concept.trigger, concept.class_word, concept.kind, concept.role) == ("[V]", "dog", "instance", "concept")
    assert concept.base == BASE_ID and concept.settings["eta"] == 1.0 and concept.settings["steps"] == 4
    assert concept.lora.alpha == SETTINGS.alpha and concept.lora.rank == SETTINGS.rank
    summary = concept.summary
    assert {"drift_base", "drift_null", "loss", "scale", "squared_cosine", "embedding_gap"} <= summary.keys()
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
        for x_t, t, texts in probes(job.data, SCALING, adapted.device):
            v_base, v_model = (adapted.velocity(x_t, t, texts["base"], model) for model in (BASE, PURE))
            moved, length = moved + float((v_model - v_base).square().sum()), length + float(v_base.square().sum())
    assert drift(adapted, PURE, job.data, SCALING, "base") == pytest.approx(math.sqrt(moved / length), rel=1e-5)


def test_the_end_figures_are_of_every_example_at_every_time_one_by_one() -> None:
    """Eqs. 8, 10, 11: x_t of each of five times, the means over all of lambda*, cos^2 and |R_complete|."""
    job, adapted = stage_two()
    generator, found = torch.Generator().manual_seed(20_260), []
    with torch.no_grad():
        for index, example in enumerate(job.data.examples):
            x0 = SCALING.to_model(example.latent.float())[None]
            times = torch.tensor([0.95, 0.8, 0.6, 0.4, 0.2])
            for t, noise in zip(times, torch.randn(5, *x0.shape[1:], generator=generator), strict=True):
                v = lambda text, model, t=t, x_t=(1 - t) * x0 + t * noise: adapted.velocity(x_t, t[None], text, model)  # noqa: E731
                text = {which: job.data.batch(which, [index], "cpu") for which in ("complete", "base", "target")}
                r_target = (v(text["target"], EXTRACTOR) - v(job.data.null(1, "cpu"), EXTRACTOR)).flatten()
                r_complete = (v(text["complete"], PURE) - v(text["base"], BASE)).flatten()
                product, length = r_complete @ r_target, r_target @ r_target
                lengths = r_complete.square().mean().sqrt()
                found.append([product / length, product**2 / (length * (r_complete @ r_complete)), lengths])
    told = alignment(adapted, PURE, job.data, SCALING)
    means = torch.tensor(found).mean(0).tolist()
    assert list(told.values()) == pytest.approx(means, rel=1e-4)
    assert list(told) == ["end_scale", "end_squared_cosine", "end_representation"]


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


@pytest.mark.parametrize("first", [0, 1])
def test_a_class_word_in_more_pieces_in_some_captions_begins_from_all_of_them(first: int) -> None:
    """As T5 parts a word behind a bracket: here the second caption's has a third piece."""
    data = concept_set(("a [V] toy dog", "a toy dog in the snow"), class_word="toy dog", t5=True)
    more = data.examples[1].texts.complete
    marks = data.encoded[more].marks.clone()
    last = int(marks.nonzero().max())
    marks[last + 1] = marks[last] + 1
    encoded = data.encoded | {more: replace(data.encoded[more], marks=marks)}
    data = replace(data, encoded=encoded, examples=data.examples[first:] + data.examples[:first])
    start, adapted = initial_embeddings(network(), data, SCALING, "replace"), network()
    slots: dict[int, list] = {}
    for example in data.examples:
        one = data.encoded[example.texts.complete]
        for row in one.marks.nonzero().flatten().tolist():
            slots.setdefault(int(one.marks[row]) - 1, []).append(one.rows[row])
    means = {slot: torch.stack(rows).mean(0) for slot, rows in slots.items()}
    for made, of_part in ((start.clip, lambda slot: slot < T5_SLOT), (start.t5, lambda slot: slot >= T5_SLOT)):
        with torch.no_grad():
            own = torch.stack([adapted.transformer.context_embedder(v) for slot, v in means.items() if of_part(slot)])
        torch.testing.assert_close(made[0], own.mean(0, keepdim=True), rtol=1e-4, atol=1e-5)
    assert len(means) == 5


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_gap_at_step_0_is_what_replacing_costs_and_an_offset_does_not(tokens: int, tmp_path: Path) -> None:
    data, settings = concept_set(tokens=tokens), replace(SETTINGS, steps=1)
    replaced, added = (
        extractor_job(tmp_path, replace(settings, embeddings=mode), data) for mode in ("replace", "offset")
    )
    run(replaced), run(added)
    assert added.concept.summary["embedding_gap"] == 0
    adapted = network()
    adapted.add_embeddings(PURE, initial_embeddings(adapted, data, SCALING, "replace"))
    moved = length = 0.0
    with torch.no_grad():
        for x_t, t, texts in probes(data, SCALING, adapted.device):
            v_class, v_replaced = (adapted.velocity(x_t, t, texts["complete"], model) for model in (BASE, PURE))
            moved += float((v_replaced - v_class).square().sum())
            length += float(v_class.square().sum())
    gap = math.sqrt(moved / length)
    assert gap > 1e-3 and replaced.concept.summary["embedding_gap"] == pytest.approx(gap, rel=1e-4, abs=1e-6)
    assert "embedding_gap" not in pure_summary_without_embeddings(tmp_path)


def pure_summary_without_embeddings(root: Path) -> dict:
    job = pure_job(root, settings=replace(SETTINGS, steps=1, embeddings="none"))
    run(job)
    return job.concept.summary


# Embeddings alone


@pytest.mark.parametrize("mode", ["replace", "offset"])
def test_embeddings_alone_learn_in_both_stages_with_several_tokens(mode: str, tmp_path: Path) -> None:
    data = concept_set(tokens=3)
    settings = replace(SETTINGS, steps=2, rank=0, embeddings=mode)
    stage_one = extractor_job(tmp_path, settings, data)
    run(stage_one)
    guide = stage_one.concept
    assert guide.lora is None and guide.embeddings.clip.shape == (2, 3, 128) and guide.embeddings.mode == mode
    start = initial_embeddings(network(), data, SCALING, mode).clip
    assert bool((guide.embeddings.clip - start).flatten(2).abs().amax(2).gt(1e-3).all())  # every token in every block
    stage_two = pure_job(tmp_path, PureSettings(), settings, guide=guide, data=data)
    run(stage_two)
    assert stage_two.concept.lora is None
    assert not torch.equal(stage_two.concept.embeddings.clip, guide.embeddings.clip)
    assert stage_two.concept.summary["drift_base"] == stage_two.concept.summary["drift_null"] == 0
    assert load_concept(stage_two.run.result).lora is None
    frozen = PureSettings(train_embeddings=False)
    with pytest.raises(ValueError, match="Nothing would learn: rank 0 is no LoRA"):
        pure_job(tmp_path, frozen, settings, guide=guide, data=data)
    with_lora = pure_job(tmp_path, frozen, replace(settings, rank=2), guide=guide, data=data)
    run(with_lora)
    assert torch.equal(with_lora.concept.embeddings.clip, guide.embeddings.clip)


def test_the_merged_stage_with_frozen_embeddings_freezes_theta2s_alone(tmp_path: Path) -> None:
    job = pure_job(tmp_path, PureSettings("merged stage", train_embeddings=False), replace(SETTINGS, steps=1))
    run(job)
    start = initial_embeddings(network(), job.data, SCALING, "replace").clip
    assert torch.equal(job.concept.embeddings.clip, start)
    assert not torch.equal(job.network.embeddings[EXTRACTOR].clip, start)


# Where the LoRA is


@pytest.mark.parametrize(("first", "last", "blocks"), [(0, None, {"0", "1"}), (1, None, {"1"}), (0, 0, {"0"})])
def test_the_lora_is_in_the_chosen_blocks(first: int, last: int | None, blocks: set[str]) -> None:
    job = pure_job(Path("unused"), settings=replace(SETTINGS, first_block=first, last_block=last))
    job.prepare()
    assert {name.split(".")[1] for name in job.network.lora_weights(PURE, 1.0).matrices} == blocks


@pytest.mark.parametrize(("first", "last"), [(2, None), (0, 2)])
def test_blocks_that_the_model_does_not_have_are_refused(first: int, last: int | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this model has 0 to 1"):
        extractor_job(tmp_path, replace(SETTINGS, first_block=first, last_block=last))


def test_texts_and_pictures_of_another_type_are_refused_before_any_work(tmp_path: Path) -> None:
    own = concept_set()
    texts = {words: replace(text, rows=text.rows[:, :8]) for words, text in own.encoded.items()}
    examples = tuple(replace(example, latent=example.latent[:3]) for example in own.examples)
    for data, said in (
        (replace(own, encoded=texts), "CLIP are 8 and .* wide"),
        (replace(own, examples=examples), "VAE have 3"),
    ):
        with pytest.raises(ValueError, match=said):
            ExtractorJob(network(), data, SETTINGS, SCALING, tmp_path, BASE_ID)


def test_masks_that_are_not_there_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 masks for 2 pictures"):
        extractor_job(tmp_path, replace(SETTINGS, background_weight=0.1))


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
    assert (
        make(PureSettings(), replace(extractor(), base=f"{BASE_ID} (with 1 LoRA on it)")).concept is None
    )  # of before
    with pytest.raises(ValueError, match="has 1 embeddings a block, the concept set 2"):
        make(PureSettings(), extractor(), data=concept_set(tokens=2))
    assert make(PureSettings(method="LoRA"), None).concept is None
    anchored, plain = (
        make(PureSettings(eta=0.0, null_anchor=1.0), None),
        make(PureSettings("LoRA", null_anchor=1.0), None),
    )
    assert anchored.run.folder == plain.run.folder  # without guidance eta 0 is the method LoRA, with its anchors
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
