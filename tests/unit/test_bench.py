"""PocketBench's parts: what is taught, the witnesses, the statistics. Small pictures and closed forms; no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.base_quality import wilson_lower
from benchmarks.pocketbench import along, judge_data, report
from benchmarks.pocketbench import concepts as taught
from benchmarks.pocketbench.arms import ARMS, HELD_BY, QUICK
from benchmarks.pocketbench.bench import Bench
from benchmarks.pocketbench.case import Case, Drawing
from benchmarks.pocketbench.judge_data import to_pixels
from benchmarks.pocketbench.networks import load_judges
from benchmarks.pocketbench.statistics import bootstrap, holm, interval, mean_of, p_above
from benchmarks.pocketbench.summary import summarise
from benchmarks.pocketbench.witnesses import (
    change,
    colour_likeness,
    kernel_distance,
    own_half,
    patch_likeness,
    ssim,
    template_likeness,
)
from purecc.network import BASE
from purecc.pocket.specification import TEXT_ROWS

SMALL = [taught.concept(name) for name in taught.SMALL]


@pytest.mark.parametrize("concept", SMALL, ids=lambda c: c.name)
def test_references_vary_and_prompts_are_new_scenes(concept) -> None:
    shown = taught.references(concept)
    assert len(shown) == 5 and len({r.caption for r in shown}) == 5
    assert len({np.asarray(r.picture).tobytes() for r in shown}) == 5
    learnt = [phrase for phrase in taught.BACKGROUNDS.values() if any(phrase in r.caption for r in shown)]
    asked = [p for p in taught.prompts(concept) if p.role == "concept"]
    assert asked
    for prompt in asked:
        assert taught.TRIGGER in prompt.complete and taught.TRIGGER not in prompt.base
        assert not any(phrase in prompt.complete for phrase in learnt)
        assert len(prompt.complete.split()) + 2 <= TEXT_ROWS


@pytest.mark.parametrize("concept", SMALL, ids=lambda c: c.name)
def test_prompts_without_the_concept_do_not_name_it(concept) -> None:
    rest = [p for p in taught.prompts(concept) if p.role != "concept"]
    assert {p.role for p in rest} == {"same class", "other", "null"}
    assert all(p.complete == p.base and taught.TRIGGER not in p.complete for p in rest)


def test_enough_concepts_in_each_split() -> None:
    count = lambda split, kind: sum(c.kind == kind for c in taught.concepts(split))  # noqa: E731
    assert count("development", "instance") >= 4 and count("development", "style") >= 2
    assert count("test", "instance") >= 12 and count("test", "style") >= 6
    assert not {c.name for c in taught.concepts("development")} & {c.name for c in taught.concepts("test")}


@pytest.mark.parametrize("concept", SMALL, ids=lambda c: c.name)
def test_a_floor_is_another_concept(concept, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a floor draws, and in which look: never the concept's own, and of drawings none of base art where it stands."""
    own = taught.sprite_of(concept) if concept.kind == "instance" else concept.name
    drawn = []

    def shown(of, scene, crop: int = 0):
        drawn.append(scene.things[0].sprite if of.kind == "instance" else of.name)

    monkeypatch.setattr(taught, "shown", shown)
    taught.another(concept)
    others = {c.name for c in taught.concepts("development") if c.kind == concept.kind} - {concept.name}
    assert drawn and own not in drawn
    if concept.kind == "instance":
        sprites = [taught.sprite_of(taught.concept(name)) for name in others]
        assert all(any(one is sprite for sprite in sprites) for one in drawn)
    else:
        assert set(drawn) == others
    drawn.clear()
    taught.held_out(concept)
    assert drawn and all(one is own or one == own for one in drawn)


@pytest.mark.parametrize("name", ["poodle", "taxi"])
def test_the_template_tells_the_concept_from_another(name: str) -> None:
    concept = taught.concept(name)
    sprite = taught.sprite_of(concept)
    own, other = (to_pixels([r.picture for r in f(concept, 1)]) for f in (taught.held_out, taught.another))
    own, other = template_likeness(own, sprite), template_likeness(other, sprite)
    assert own.min() > other.max()
    assert own.max() <= 1


def test_colours_tell_the_concept_from_another() -> None:
    concept = taught.concept("poodle")
    shown = taught.references(concept)
    wanted = to_pixels([r.picture for r in shown])
    masks = torch.stack([torch.from_numpy(np.asarray(r.mask, dtype=np.float32) / 255) for r in shown])
    own, other = (to_pixels([r.picture for r in f(concept, 1)]) for f in (taught.held_out, taught.another))
    assert colour_likeness(own, wanted, masks).mean() > 1.3 * colour_likeness(other, wanted, masks).mean()


def test_nothing_changed_is_no_change() -> None:
    pictures = to_pixels([r.picture for r in taught.references(taught.concept("taxi"))])
    same = change(load_judges(), pictures, pictures)
    assert same.pixels.abs().max() == 0 and same.background_pixels.abs().max() == 0
    assert torch.allclose(same.background_ssim, torch.ones(5), atol=1e-4)
    assert torch.equal(same.seg_cons, torch.ones(5)) and same.layout.abs().max() == 0
    assert same.feature.abs().max() < 1e-5


def test_a_change_of_the_object_alone_leaves_the_background() -> None:
    concept = taught.concept("poodle")
    scene = taught.scenes_of(concept, 1, 3)[0]
    with_object = to_pixels([taught.render(scene)])
    mask = torch.from_numpy(np.array(taught.mask(scene), dtype=np.float32) / 255) > 0.5
    changed = with_object.clone()
    changed[:, :, mask] = -changed[:, :, mask]
    found = change(load_judges(), with_object, changed)
    assert found.pixels > 10 and found.background_pixels < 0.25 * found.pixels


def test_the_second_thing_is_watched_apart_from_the_concept() -> None:
    """On the drawings of the prompts themselves: only a change on the side that holds the second thing counts."""
    concept = taught.concept("taxi")
    scenes = taught._asked(concept, np.random.default_rng(0), None)[4:]
    originals = to_pixels([taught.render(scene) for scene in scenes])
    sides = [p.beside for p in taught.prompts(concept)]
    assert sides == ["", "", "", "", "on the right", "on the left", *[""] * 7]
    changed = {}
    for side in (0, 1):  # colours turned over on the left, on the right
        changed[side] = originals.clone()
        half = changed[side][..., 64 * side : 64 * (side + 1)]
        half.neg_()
    right_on_first, left_on_second = (change(load_judges(), originals, changed[s], sides[4:6]).beside for s in (1, 0))
    assert right_on_first[0] > 20 and right_on_first[1] == 0
    assert left_on_second[1] > 20 and left_on_second[0] == 0
    assert change(load_judges(), originals, originals).beside.isnan().all(), "no second thing was asked for"
    read = own_half(originals, -originals, sides[4:6])  # and witnesses of the concept see the base's picture there
    assert torch.equal(read[0][..., :64], -originals[0][..., :64]) and torch.equal(
        read[0][..., 64:], originals[0][..., 64:]
    )
    assert torch.equal(read[1][..., 64:], -originals[1][..., 64:]) and torch.equal(
        read[1][..., :64], originals[1][..., :64]
    )
    assert torch.equal(own_half(originals, -originals, ["", ""]), -originals)


def test_ssim_of_noise_is_low_and_of_itself_one() -> None:
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(ssim(picture, picture), torch.ones(2, 64, 64), atol=1e-4)
    assert ssim(picture, picture.flip(0)).mean() < 0.2


def test_kernel_distance_is_near_zero_for_one_distribution() -> None:
    judges = load_judges()
    of = lambda f, name: to_pixels([r.picture for r in f(taught.concept(name), 4)])  # noqa: E731
    same = kernel_distance(judges, of(taught.held_out, "poodle"), of(taught.held_out, "taxi"))
    apart = kernel_distance(judges, of(taught.held_out, "poodle"), of(taught.held_out, "tapestry"))
    assert same < 0.5 * apart


def test_the_bootstrap_finds_the_mean_and_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        data = {}
        for c in range(12):
            centre = 1.0 + rng.normal(0, 0.5)
            data[str(c)] = {s: centre + rng.normal(0, 0.3) + rng.normal(0, 0.3, 4) for s in range(3)}
        found = interval(data, draws=300, seed=trial)
        covered += found.low <= 1.0 <= found.high
    assert covered >= 50  # 95 % less what 12 units cost


def test_the_mean_is_over_concepts_first() -> None:
    assert mean_of({"a": {0: np.ones(100)}, "b": {0: np.zeros(1), 1: np.array([0.0, 1.0])}}) == pytest.approx(
        (1 + 0.25) / 2
    )


def test_every_level_of_the_hierarchy_is_drawn() -> None:
    """What differs at one level alone spreads the means: by its own standard error, where the others are equal."""
    only = {
        "concepts": {str(c): {0: np.full((4, 1), c % 2)} for c in range(8)},
        "seeds": {str(c): {s: np.full((4, 1), s % 2) for s in range(4)} for c in range(4)},
        "prompts": {str(c): {0: np.arange(4.0)[:, None] % 2} for c in range(4)},
        "noises": {str(c): {0: np.tile(np.arange(4.0) % 2, (3, 1))} for c in range(4)},
    }
    # of a mean of n values that are 0 or 1 by halves: 0.5 / sqrt(n)
    expected = {"concepts": 8, "seeds": 4 * 4, "prompts": 4 * 4, "noises": 4 * 3 * 4}
    for level, data in only.items():
        assert bootstrap(data).std() == pytest.approx(0.5 / expected[level] ** 0.5, rel=0.1), level


def test_equal_units_have_no_spread() -> None:
    assert np.ptp(bootstrap({"a": {0: np.array([2.0])}, "b": {0: np.array([2.0])}}, draws=50)) == 0
    assert p_above({"a": {0: np.array([2.0])}}, 1.0, draws=99) == pytest.approx(0.01)
    assert p_above({"a": {0: np.array([0.5])}}, 1.0, draws=99) == 1


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.02, "c": 0.03}) == {"a": True, "b": True, "c": True}
    assert holm({"a": 0.01, "b": 0.03, "c": 0.03}) == {"a": True, "b": False, "c": False}
    assert holm({"a": 0.02, "b": 0.001}) == {"b": True, "a": True}


def test_wilson() -> None:
    assert wilson_lower(90, 100) == pytest.approx(0.8256, abs=1e-3)
    assert wilson_lower(0, 10) == pytest.approx(0, abs=1e-9)


def test_arms_are_valid_and_quick_ones_exist() -> None:
    assert set(QUICK) <= set(ARMS)
    seen = set()
    for name, arm in ARMS.items():
        settings = arm.train_settings(0)
        own = (arm.tokens, arm.masks, arm.sampling_gate, arm.hold_surroundings)
        key = repr((arm.pure_settings, settings, arm.extractor_settings(0), *own))
        assert key not in seen, f"{name} is another arm again"
        seen.add(key)


def test_a_case_from_teaching_to_the_report(tmp_path: Path) -> None:
    """Three arms of one concept, hardly taught and roughly drawn: every figure is there, gates are exact, files go round."""
    bench = Bench(tmp_path, Drawing((0.5, 1.0), steps=3, drift_at=(1.0,)))
    concept, results = taught.concept("poodle"), tmp_path / "results"
    backgrounds = {}
    for arm in ("LoRA", "PureCC, picture", "LoRA, held"):
        case = bench.measure(concept, arm, ARMS[arm], 0, steps=3)
        case.save(results / f"{arm}.json")
        assert Case.load(results / f"{arm}.json") == case
        lengths = {len(column) for column in case.rows.values()}
        assert lengths == {len(taught.prompts(concept)) + 6}
        assert len(list((tmp_path / "pictures" / "poodle").glob(f"{arm}*.png"))) == 2
        whole = summarise(case)
        assert all(np.isfinite(value) for value in vars(whole).values())
        assert (whole.drift == 0) == (arm != "LoRA")
        assert case.complete and set(case.kid) == {"1"}
        asked = list(zip(case.rows["strength"], case.rows["role"], strict=True))
        assert asked.count((0.5, "concept")) == asked.count((1.0, "concept")) == 6
        assert sum(role != "concept" for strength, role in asked if strength == 1.0) == 7
        assert not any(role != "concept" for strength, role in asked if strength == 0.5), "drift is read at 1 only"
        assert all((value == 0) == (arm != "LoRA") for value in case.kid.values())
        assert (HELD_BY[case.kind].items() <= case.settings.items()) == (arm == "LoRA, held")
        backgrounds[arm] = whole.background
    assert len({0.0, *backgrounds.values()}) == 4, "what is drawn with held surroundings is another picture"
    own = to_pixels([reference.picture for reference in taught.held_out(concept, 1)])
    _, _, originals = bench.originals(concept)
    assert (
        bench.fidelity(concept, originals[:6], originals[:6]) <= 0 < 0.8 < bench.fidelity(concept, own, originals[:6])
    )
    nearer = torch.cat([own[:2], originals[:4]])
    assert abs(bench.fidelity(concept, nearer, nearer)) < 1e-3, "0 is the base of these very scenes"
    text = report.write(results, tmp_path / "report.md", bench.protocol)
    assert "PureCC, picture" in text and (tmp_path / "report instance, background.svg").read_text().startswith("<svg")
    assert "nan" not in text.split("### At nine tenths")[0]


def test_kid_of_pairs_is_zero_where_nothing_changed() -> None:
    judges = load_judges()
    pictures = to_pixels([r.picture for r in taught.held_out(taught.concept("poodle"), 2)])
    assert kernel_distance(judges, pictures, pictures, paired=True) == 0
    assert kernel_distance(judges, pictures, pictures) < -1e-4  # as if independent: the pairs pull it below 0
    assert kernel_distance(judges, pictures, -pictures, paired=True) > 0.01


@pytest.mark.parametrize("name", ["poster", "tapestry"])
def test_patches_tell_a_look_from_the_plain_scenes_and_from_another(name: str) -> None:
    concept = taught.concept(name)
    wanted = to_pixels([r.picture for r in taught.references(concept)])
    scenes = taught._asked(concept, np.random.default_rng(1), None)
    plain = to_pixels([taught.render(scene) for scene in scenes])
    own, other = (to_pixels([r.picture for r in f(concept, 1)]) for f in (taught.held_out, taught.another))
    own, other, plain = (patch_likeness(pictures, wanted) for pictures in (own, other, plain))
    assert own.min() > max(other.max(), plain.max())


def test_the_held_out_drawings_are_an_eighth_that_no_batch_shows() -> None:
    kept, held = judge_data.drawings(False), judge_data.drawings(True)
    assert not {id(s) for s in kept} & {id(s) for s in held}
    assert len(kept) + len(held) == len(judge_data.sprites("base") + judge_data.sprites("judges"))
    assert 0.08 < len(held) / (len(kept) + len(held)) < 0.18
    assert not {s.image.tobytes() for s in kept} & {s.image.tobytes() for s in held}
    pictures, kinds = judge_data.drawing_batch(np.random.default_rng(0), 3)
    assert len(pictures) == len(kinds) == 3 * judge_data.VIEWS


def test_predictions_along_training_are_those_of_the_objective(tmp_path: Path) -> None:
    """One real step: x0 = x_t - t v; v_original is the base's or the model's own; v_PureCC lies on the line along R_tar."""
    run = along.AlongTraining(Bench(tmp_path, Drawing(steps=2)), taught.concept("poodle"), "PureCC", steps=2)
    x0, sampled = run.run()
    assert {name: len(pixels) for name, pixels in x0.items()} == dict.fromkeys(
        ("v_original", "v_PureCC", "v_complete"), 1
    )
    assert {pixels.shape for pixels in sampled.values()} == {(4, 3, 128, 128)}
    x_t, t, texts = run.noised()
    network = run.bench.network()
    with torch.no_grad():
        v_base = network.velocity(x_t, t, texts["base"], BASE)
    assert torch.allclose(run.decode(x_t - t * v_base), x0["v_original"], atol=1e-4)
    assert (x0["v_PureCC"] - x0["v_original"]).abs().max() > 1e-3
    predicted = along.Predicted(v_base, v_base + 1, v_base + 2).clean(x_t, t)
    assert torch.allclose(predicted["v_PureCC"] - predicted["v_original"], -t.expand_as(v_base), atol=1e-5)
