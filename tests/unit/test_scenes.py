"""What stands beside the concept: scenes drawn by the base, the concept found in them, the rest held."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import (
    CHANNELS,
    SCALING,
    SETTINGS,
    SIDE,
    TRIGGER,
    Words,
    concept_set,
    learned,
    losses,
    pure_job,
    run,
    same,
    stage_two_of,
)  # fmt: skip
from torch import Tensor

from benchmarks.live_bytes import LiveBytes
from benchmarks.pocketbench.bench import Bench
from benchmarks.pocketbench.concepts import concept, concepts, others_in_scenes, prompts
from purecc.adaln_table import ModulationTable
from purecc.batches import draw_batch, scene_choice
from purecc.encoding import PocketTextEncoder, TextBatch
from purecc.network import BASE, PURE
from purecc.prompts import Placeholder, find_word, scene_texts
from purecc.scenes import Scenes, with_scenes
from purecc.settings import PureSettings
from purecc.terms import pure_objective

ANCHORED = PureSettings("LoRA", scene_anchor=2.0, class_steps=2)


@cache
def bench() -> Bench:
    return Bench(Path("unused"))


@cache
def scened():
    return with_scenes(concept_set(), Words(TRIGGER, Placeholder(1, "dog")))


def made(data) -> Scenes:
    """Scenes of noise; the concept takes the upper half."""
    generator = torch.Generator().manual_seed(3)
    outside = torch.zeros(len(data.scenes), 1, SIDE, SIDE)
    outside[..., SIDE // 2 :, :] = 2
    return Scenes(torch.randn(len(outside), CHANNELS, SIDE, SIDE, generator=generator), outside, data.scenes)


def test_the_texts_of_scenes() -> None:
    first, second, third = scene_texts("[V]", "dog", ("cat", "dog", "apple", "car"))
    assert first.complete == "a [V] dog on the left and a cat on the right"
    assert (first.base, first.without) == ("a dog on the left and a cat on the right", "a cat on the right")
    assert (first.alone, first.class_alone) == ("a [V] dog on the left", "a dog on the left")
    assert second.complete == "an apple on the left and a [V] dog on the right"
    assert (second.base, second.without) == ("an apple on the left and a dog on the right", "an apple on the left")
    assert (second.alone, second.class_alone) == ("a [V] dog on the right", "a dog on the right")
    assert third.complete.startswith("a [V] dog on the left and a car")
    assert [scene.without for scene in scene_texts("robot", "toy car", ("car", "robot", "Cat"))] == [
        "a Cat on the right"
    ]


def test_a_style_has_no_scenes_and_needs_none() -> None:
    style = bench().concept_set(concept("poster"), 1)
    assert style.scenes == ()
    assert pure_job(Path("unused"), ANCHORED, data=replace(scened(), kind="style", scenes=())).pure.scene_anchor == 0


def test_a_set_without_scenes_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="this concept set holds none"):
        pure_job(Path("unused"), ANCHORED, data=concept_set())


def test_scenes_are_another_run_only_where_they_are_used(tmp_path: Path) -> None:
    data = scened()
    fewer = replace(data, scenes=data.scenes[:4])
    assert (
        fewer.fingerprint == data.fingerprint == concept_set().fingerprint
        and fewer.scene_fingerprint != data.scene_fingerprint
    )
    folder = lambda pure, data: pure_job(tmp_path, pure, data=data).run.folder.name  # noqa: E731
    assert folder(PureSettings("LoRA"), data) == folder(PureSettings("LoRA"), fewer)
    assert folder(ANCHORED, data) != folder(ANCHORED, fewer)
    assert (
        len({folder(replace(ANCHORED, **change), data) for change in ({}, {"scene_anchor": 1.0}, {"class_steps": 3})})
        == 3
    )


def test_the_bench_keeps_the_things_of_its_prompts_out_of_the_scenes() -> None:
    """No thing that a prompt asks for is ever shown beside the concept."""
    for taught in (c for c in concepts("development") if c.kind == "instance"):
        beside = [p.base for p in prompts(taught) if p.beside]
        others = others_in_scenes(taught)
        assert len(beside) == 2 and len(others) >= 8
        assert not any(find_word(other, prompt.base) for other in others for prompt in prompts(taught))


@pytest.mark.parametrize("name", ["poodle", "racing-car"])
def test_the_concepts_place_is_found_and_the_other_thing_is_outside(name: str, tmp_path: Path) -> None:
    """In the real Pocket SD3's own pictures: the class's half holds the place, the other half is held."""
    taught = bench().concept_set(concept(name), 1)
    words = Placeholder(1, taught.class_word)
    taught = with_scenes(taught, PocketTextEncoder(bench().pocket, taught.trigger, words))
    job = pure_job(tmp_path, replace(ANCHORED, class_steps=12), replace(SETTINGS, batch_size=8), data=scened())
    job.network, job.data, job.scaling = bench().network(), replace(taught, scenes=taught.scenes[:4]), bench().scaling
    scenes = job.scenes()
    assert scenes.latents.shape == (4, 16, 16, 16)
    for held, texts in zip(scenes.outside, scenes.texts, strict=True):
        left = texts.complete.startswith("a ohwx")
        own, other = (held[..., :8], held[..., 8:]) if left else (held[..., 8:], held[..., :8])
        assert (own == 0).float().mean() > 0.25
        assert (other == 0).float().mean() < 0.15
        assert float(held.mean()) == pytest.approx(1)


def test_the_concept_is_held_at_what_it_is_alone() -> None:
    """At its place in a scene: the base's velocity and what [V] adds to the class where nothing is beside it, without a gradient."""
    job = stage_two_of(replace(ANCHORED, scene_concept=3.0), data=scened())
    batch = draw_batch(job.data, job.settings, SCALING, 1, "cpu", None, made(job.data))
    terms, scene = job.objective().terms(job.network, batch), batch.scene
    parameters = learned(job.network)
    gradient = torch.cat([one.flatten() for one in torch.autograd.grad(terms.loss, parameters)])
    of = lambda text, model: job.network.velocity(scene.x_t, scene.t, text, model)  # noqa: E731
    with torch.no_grad():
        base, alone, plain = of(scene.base, BASE), of(scene.alone, PURE), of(scene.class_alone, BASE)
    complete = of(scene.complete, PURE)
    kept, held = (complete - (base + alone - plain)).square(), (complete - base).square()
    place = slice(None, SIDE // 2)
    expected = kept[..., place, :].mean()
    torch.testing.assert_close(terms.measured["scene_concept"].detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    of_concept = (job.network.velocity(batch.x_t, batch.t, batch.complete, PURE) - batch.v_true).square().mean()
    total = of_concept + 2 * held[..., SIDE // 2 :, :].mean() + 3 * expected
    torch.testing.assert_close(terms.loss.detach(), total.detach(), rtol=1e-4, atol=1e-5)
    alike = torch.cat([one.flatten() for one in torch.autograd.grad(total, parameters)])
    assert float((alike - gradient).norm()) < 1e-4 * float(gradient.norm())
    kept = kept.detach()
    assert abs(float(kept[..., place, :].mean() - kept[..., SIDE // 2 :, :].mean())) > 0.01  # or it could be anywhere
    assert float((alone - plain).square().mean()) > 0.01  # or nothing would be added


def test_the_concept_is_held_only_in_scenes() -> None:
    asked = PureSettings(eta=0.0, scene_anchor=1.0, scene_concept=0.5)
    assert asked.without_extractor().keeps_concept and asked.used()["scene_concept"] == 0.5
    for other in (replace(asked, scene_anchor=0.0), replace(asked, scene_concept=0.0)):
        assert not other.keeps_concept and "scene_concept" not in other.used()


def test_the_anchor_is_the_squared_distance_to_the_base_outside_the_concept() -> None:
    job = stage_two_of(ANCHORED, data=scened())
    scenes = made(job.data)
    batch = draw_batch(job.data, job.settings, SCALING, 1, "cpu", None, scenes)
    terms, scene = job.objective().terms(job.network, batch), batch.scene
    with torch.no_grad():
        away = job.network.velocity(scene.x_t, scene.t, scene.complete, PURE)
        away = (away - job.network.velocity(scene.x_t, scene.t, scene.base, BASE)).square()
    expected = away[..., SIDE // 2 :, :].mean()
    torch.testing.assert_close(terms.measured["scene_anchor"].detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        terms.loss.detach(), terms.measured["concept_loss"].detach() + 2 * expected, rtol=1e-4, atol=1e-5
    )
    assert abs(float(expected - away[..., : SIDE // 2, :].mean())) > 0.01  # or it could be anywhere


def test_scenes_share_the_forwards_of_the_concepts_pictures(monkeypatch) -> None:
    """One of the base and one that learns; what is computed again under checkpointing is one text's."""
    job = stage_two_of(ANCHORED, data=scened())
    batch = draw_batch(job.data, job.settings, SCALING, 1, "cpu", None, made(job.data))
    objective, seen, ask = pure_objective(replace(ANCHORED, background_anchor=1.0)), [], job.network.velocity

    def velocity(x_t: Tensor, t: Tensor, text: TextBatch, models: list[str | None]) -> Tensor:
        (model,) = set(models)
        seen.append((model, len(t)))
        return ask(x_t, t, text, models)

    monkeypatch.setattr(job.network, "velocity", velocity)
    batch = replace(batch, outside=torch.ones_like(batch.x_t[:, :1]))
    together = len(batch.t) + len(batch.scene.t)
    objective.terms(job.network, batch)
    assert seen == [(BASE, together), (PURE, together)]
    seen.clear()
    job.network.checkpoint_activations(True)
    objective.terms(job.network, batch)
    assert seen[0] == (BASE, together)
    assert sorted(seen[1:]) == sorted([(PURE, len(batch.t)), (PURE, len(batch.scene.t))])


def test_scenes_apart_give_the_same_gradient_with_one_graph_at_a_time() -> None:
    found = []
    for apart in (False, True):
        job = stage_two_of(replace(ANCHORED, background_anchor=1.0), data=scened())
        batch = draw_batch(job.data, job.settings, SCALING, 1, "cpu", None, made(job.data))
        batch = replace(batch, outside=torch.ones_like(batch.x_t[:, :1]))
        parameters = job.network.lora_parameters(PURE)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with LiveBytes() as live:
            measured = job.objective().descend(job.network, batch, 0.5, apart)
        found.append((measured, torch.cat([p.grad.flatten() for p in parameters]), live.peak))
    (together, gradient, peak), (apart, again, lower) = found
    assert together.keys() == apart.keys()
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-6)
    assert float(gradient.norm()) > 0 and float((again - gradient).norm()) < 1e-5 * float(gradient.norm())
    assert lower < 0.85 * peak


def test_a_batch_has_half_as_many_scenes_and_is_otherwise_the_same() -> None:
    data, settings = scened(), replace(SETTINGS, batch_size=3)
    plain, with_scenes = (draw_batch(data, settings, SCALING, 7, "cpu", None, own) for own in (None, made(data)))
    assert plain.scene is None and len(with_scenes.scene.t) == 2
    assert torch.equal(plain.x_t, with_scenes.x_t) and torch.equal(plain.t, with_scenes.t)
    other = draw_batch(data, settings, SCALING, 8, "cpu", None, made(data))
    assert not torch.equal(other.scene.x_t, with_scenes.scene.x_t)
    marked, bare = with_scenes.scene.complete.marks, with_scenes.scene.base.marks
    assert marked.any(1).all() and not bare.any()


def test_all_scenes_are_learnt_from_each_with_its_own_place() -> None:
    data, own = scened(), made(scened())
    count, seen = len(own.outside), set()
    own = replace(own, outside=torch.arange(1.0, count + 1)[:, None, None, None].expand_as(own.outside).clone())
    for number in range(1, 250):
        choice, scene = (
            scene_choice(data, SETTINGS, number),
            draw_batch(data, SETTINGS, SCALING, number, "cpu", None, own).scene,
        )
        assert [int(one.max()) - 1 for one in scene.outside] == choice.indices
        assert [data.scenes[i] for i in choice.indices] == choice.texts
        seen |= set(choice.indices)
    assert seen == set(range(count))


def test_scenes_of_a_batch_are_alike_in_the_length_of_each_text() -> None:
    """Also of those that show what is alone."""
    data, settings = scened(), replace(SETTINGS, batch_size=8)
    for text in ("a [V] dog on the right", "a dog on the right"):
        one = data.encoded[text]
        longer = replace(one, rows=torch.cat([one.rows, one.rows[-1:]]), marks=torch.cat([one.marks, one.marks[-1:]]))
        unlike = replace(data, encoded=data.encoded | {text: longer})
        sides = [{"right" in scene.alone for scene in scene_choice(unlike, settings, n).texts} for n in range(1, 17)]
        assert {True} in sides and {False} in sides and {True, False} not in sides
    assert {True, False} in [{"right" in s.alone for s in scene_choice(data, settings, n).texts} for n in range(1, 17)]


def test_a_run_learns_by_its_scenes_and_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole, halves, without = (
        pure_job(tmp_path / name, pure, data=scened())
        for name, pure in (("a", ANCHORED), ("b", ANCHORED), ("c", PureSettings("LoRA")))
    )
    assert "scene_anchor" not in without.pure.used()
    seen = []
    whole.preparing = lambda what, done, total: seen.append((what, total))
    records = run(whole)
    assert all(record.scene_anchor is not None for record in records) and whole.concept.summary["scene_anchor"] > 0
    assert any("draws" in what for what, _ in seen) and any("looks for" in what for what, _ in seen)
    assert losses(records) != losses(run(without))
    with closing(iter(halves)) as steps:
        for _ in range(3):
            next(steps)
    again = pure_job(tmp_path / "b", ANCHORED, data=scened())
    run(again)
    assert same(whole.concept, again.concept)


def test_drawn_scenes_are_kept_beside_the_runs(tmp_path: Path) -> None:
    first, second = (
        pure_job(tmp_path, replace(ANCHORED, scene_anchor=weight), data=scened()).scenes() for weight in (1.0, 2.0)
    )
    assert len(list((tmp_path / "class_pictures").iterdir())) == 1
    assert torch.equal(first.latents, second.latents)


def test_adaln_is_tabulated_for_scenes_too(tmp_path: Path, monkeypatch) -> None:
    settings = replace(SETTINGS, modulation_table=True)
    held = replace(ANCHORED, scene_concept=1.0)
    plain, tabulated = (
        pure_job(tmp_path / name, held, own, data=scened()) for name, own in (("a", SETTINGS), ("b", settings))
    )
    asked, compute = [], ModulationTable._unforeseen
    monkeypatch.setattr(ModulationTable, "_unforeseen", lambda *rows: asked.append(rows) or compute(*rows))
    assert losses(run(plain)) == losses(run(tabulated))
    assert same(plain.concept, tabulated.concept)
    of_held = len(asked)
    run(pure_job(tmp_path / "c", ANCHORED, settings, data=scened()))
    assert len(asked) == 2 * of_held > 0  # by previews and the like alone: all that a step reads was computed ahead
