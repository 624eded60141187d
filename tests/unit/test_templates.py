"""Caption templates: the texts made of them, and how batches draw them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import CHANNELS, SCALING, SETTINGS, SIDE, Words, extractor_job, network, noise, run

from purecc.batches import draw_batch, drawn, held_draws
from purecc.class_pictures import class_pictures
from purecc.concept_set import ConceptSet, build_concept_set
from purecc.prompts import KINDS, Texts
from purecc.settings import PureSettings
from purecc.templates import TEMPLATES, require_templates, texts_of_template

OWN = ("a photo of a {concept}", "here is the {concept}", "{concept}")


def templated(
    pictures: int = 2, templates: tuple[str, ...] = OWN, *, flip: bool = False, masks: bool = False
) -> ConceptSet:
    """Pictures of noise whose latents are the pictures; the middle of a mask's left half is the concept."""
    mask = torch.zeros(SIDE, SIDE)
    mask[2:6, :3] = 1
    return build_concept_set(
        [noise(SIDE, SIDE, CHANNELS, seed=i) for i in range(pictures)], [""] * pictures, trigger="[V]",
        class_word="dog", kind="instance", tokens=1, encode_picture=lambda picture: picture.permute(2, 0, 1),
        text_encoder=Words, masks=[mask] * pictures if masks else None, templates=templates, flip=flip,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bundled_templates_differ_and_make_the_three_texts(kind: str) -> None:
    templates = TEMPLATES[kind]
    assert len({template.lower() for template in templates}) == len(templates) >= 16
    for template in templates:
        texts = texts_of_template(template, "ohwx", "mug" if kind == "instance" else "style", kind)
        if kind == "instance":
            assert texts == Texts(
                template.replace("{concept}", "ohwx mug"), template.replace("{concept}", "mug"), "ohwx mug"
            )
        else:
            assert texts == Texts(
                template.replace("{concept}", "ohwx style"), template.removesuffix(" in {concept}"), "ohwx style"
            )
        assert "ohwx" not in texts.base and not texts.base.endswith((" in", " of", " a", ","))


def test_own_templates_must_be_there() -> None:
    assert require_templates(["a {concept}", "", "the {concept}"]) == ("a {concept}", "the {concept}")
    with pytest.raises(ValueError, match="There are no templates. Write one a line"):
        require_templates([])


@pytest.mark.parametrize(
    ("template", "held"),
    [
        ("a dog", "no braces"),
        ("a {concept} and a {concept}", "{concept}, {concept}"),
        ("a {name}", "{name}"),
        ("{}", "{}"),
    ],
)
def test_a_template_without_its_place_is_refused(template: str, held: str) -> None:
    with pytest.raises(ValueError, match=rf'The template ".*" holds {held}; it must hold {{concept}} once'):
        texts_of_template(template, "[V]", "dog", "instance")
    with pytest.raises(ValueError, match="it must hold {concept} once"):
        templated(templates=(template,))


def test_every_picture_has_all_templates_and_each_begins_at_another() -> None:
    data = templated(4)
    assert [example.texts.complete for example in data.examples] == [
        "a photo of a [V] dog", "here is the [V] dog", "[V] dog", "a photo of a [V] dog",
    ]  # fmt: skip
    assert all(len(set(example.all_texts)) == 3 for example in data.examples)
    assert {text for e in data.examples for t in e.all_texts for text in (t.complete, t.base, t.target)} < set(
        data.encoded
    )


def test_all_templates_are_drawn_evenly_by_the_seed_and_their_three_texts_go_together() -> None:
    data, seen = templated(), Counter()
    for number in range(1, 301):
        draw = drawn(data, SETTINGS, number)
        assert drawn(templated(), SETTINGS, number).texts("complete") == draw.texts("complete")
        batch = draw_batch(data, SETTINGS, SCALING, number, "cpu")
        for i, view in enumerate(draw.views):
            assert view.texts in data.examples[view.index].all_texts
            for which in ("complete", "base", "target"):
                assert torch.equal(getattr(batch, which).rows[i], data.encoded[getattr(view.texts, which)].rows)
            seen[view.index, view.texts.complete] += 1
    assert len(seen) == 6 and min(seen.values()) > 60
    other = [drawn(data, replace(SETTINGS, seed=99), number).texts("complete") for number in range(1, 20)]
    assert other != [drawn(data, SETTINGS, number).texts("complete") for number in range(1, 20)]


def test_templates_and_flips_leave_pictures_noise_and_times_as_they_were() -> None:
    plain, both = templated(templates=("a {concept}",)), templated(flip=True)
    for number in range(1, 10):
        a, b = drawn(plain, SETTINGS, number), drawn(both, SETTINGS, number)
        assert [v.index for v in a.views] == [v.index for v in b.views]
        assert torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t)


def test_texts_of_two_lengths_are_not_mixed_in_a_batch() -> None:
    data = templated(3)
    long = data.encoded["[V] dog"]
    rows = torch.cat([long.rows, long.rows])
    double = replace(long, rows=rows, marks=torch.cat([long.marks, long.marks]))
    mixed = replace(data, encoded=data.encoded | {"here is the [V] dog": double})
    lengths = Counter(draw_batch(mixed, SETTINGS, SCALING, n, "cpu").complete.rows.shape[1] for n in range(1, 60))
    assert len(lengths) == 2 and min(lengths.values()) > 5


def test_class_pictures_of_the_captions_have_the_base_texts_of_all_templates(tmp_path) -> None:
    pure = PureSettings("LoRA + prior preservation", class_texts="base", class_pictures=4, class_steps=1)
    made = class_pictures(network(), templated(), pure, "base", 0, tmp_path)
    assert made.texts == ("a photo of a dog", "dog", "here is the dog", "a photo of a dog")


# Flip


def test_both_orientations_are_encoded_once_and_drawn_by_half() -> None:
    data, flipped = templated(flip=True), 0
    for example in data.examples:
        assert torch.equal(example.flipped, example.latent.flip(2))  # the tiny encoder keeps the picture
    for number in range(1, 201):
        for view in drawn(data, SETTINGS, number).views:
            example = data.examples[view.index]
            assert torch.equal(view.latent, example.flipped if view.flipped else example.latent)
            flipped += view.flipped
    assert 150 < flipped < 250  # of 400
    assert not any(view.flipped for number in range(1, 50) for view in drawn(templated(), SETTINGS, number).views)


def test_a_mask_is_flipped_with_its_picture() -> None:
    data, settings = templated(flip=True, masks=True), replace(SETTINGS, background_weight=0.0)
    seen = set()
    for number in range(1, 20):
        weights = draw_batch(data, settings, SCALING, number, "cpu").weights
        for view, one in zip(drawn(data, settings, number).views, weights, strict=True):
            expected = torch.zeros(1, SIDE, SIDE)
            expected[0, 2:6, SIDE - 3 if view.flipped else 0 : SIDE if view.flipped else 3] = SIDE * SIDE / 12
            torch.testing.assert_close(one, expected)
            seen.add(view.flipped)
    assert seen == {False, True}


def test_the_fingerprint_notices_flips_and_templates() -> None:
    sets = [templated(), templated(flip=True), templated(templates=OWN[:2]), templated(templates=OWN[:1])]
    assert len({data.fingerprint for data in sets}) == 4
    assert templated().fingerprint == templated().fingerprint


# Held draws, and runs


def test_held_draws_are_always_the_same_and_show_every_picture_plainly() -> None:
    data, settings = templated(3, flip=True), replace(SETTINGS, batch_size=3)
    first, again = list(held_draws(data, settings)), list(held_draws(data, replace(settings, seed=77)))
    assert [len(draw.t) for draw in first] == [3, 1] * 3
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t)
        plain = [data.view(view.index) for view in a.views]
        assert all((v.texts, v.flipped) == (p.texts, p.flipped) for v, p in zip(a.views, plain, strict=True))
        assert all(torch.equal(v.latent, p.latent) for v, p in zip(a.views, plain, strict=True))
    assert [draw.views[0].index for draw in first[::2]] == [0, 1, 2]
    times = torch.cat([draw.t for draw in first[:2]])
    assert bool((times.diff() > 0).all()) and 0.3 < float(times[0]) and float(times[-1]) < 1


def test_a_run_with_both_goes_on_bit_for_bit_after_a_stop(tmp_path) -> None:
    data, settings = templated(flip=True, masks=True), replace(SETTINGS, background_weight=0.5)
    whole = extractor_job(tmp_path / "whole", settings, data)
    run(whole)
    for record in extractor_job(tmp_path / "stopped", settings, data):
        if record.step == 3:
            break
    goes_on = extractor_job(tmp_path / "stopped", settings, templated(flip=True, masks=True))
    assert len(run(goes_on)) == 1
    assert goes_on.run.result.read_bytes() == whole.run.result.read_bytes()


def test_the_modulation_table_gives_the_same_bytes_with_templates_flips_and_an_early_stop(tmp_path) -> None:
    settings = replace(SETTINGS, stop_patience=1, stop_every=2, stop_gain=0.9)
    jobs = [
        extractor_job(tmp_path / str(on), replace(settings, modulation_table=on), templated(flip=True))
        for on in (False, True)
    ]
    for job in jobs:
        run(job)
    assert jobs[0].run.result.read_bytes() == jobs[1].run.result.read_bytes()
