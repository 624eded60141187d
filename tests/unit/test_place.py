"""The concepts' places in a picture, and what is left to the base model around them."""

from __future__ import annotations

import torch
from tiny import extractor, network, noise, text
from torch import Tensor

from purecc.flow import sigmas
from purecc.network import BASE, PURE
from purecc.place import LAYOUT, LOOK_SHARE, NEGATIVE_SHARE, Held, left_to_base, places_of, where_most
from purecc.sampling import guided_velocity

SIDE = 32  # of the grids here: means are over 5 of it


def place_of(with_concept: list[Tensor], base: list[Tensor], names: list[bool], within: Tensor | None = None) -> Tensor:
    return places_of([Held(with_concept, names).change(base)], within)[0]


def kept_in_place(
    with_concept: list[Tensor], base: list[Tensor], names: list[bool], negative_share: float = NEGATIVE_SHARE
) -> list[Tensor]:
    """Of one thing."""
    place = place_of(with_concept, base, names)
    return left_to_base(base, [Held(with_concept, names, place)], negative_share)


def _changed(base: Tensor, rows: slice, columns: slice, by: float) -> Tensor:
    changed = base.clone()
    changed[..., rows, columns] += by
    return changed


def test_the_place_is_where_the_difference_is_soft_at_its_edge_and_all_around_is_the_bases() -> None:
    base = noise(2, 4, SIDE, SIDE, seed=1)
    ours = base + 0.05 * noise(2, 4, SIDE, SIDE, seed=2)
    ours[0] = _changed(ours[0], slice(4, 12), slice(4, 12), 3.0)
    ours[1] = _changed(ours[1], slice(18, 28), slice(10, 20), -3.0)
    (kept,) = kept_in_place([ours], [base], [True])
    place = place_of([ours], [base], [True])
    torch.testing.assert_close(kept, base + place * (ours - base), rtol=0, atol=1e-6)
    for sample, (top, left, size) in enumerate(((4, 4, 8), (18, 10, 10))):
        core, around = (torch.zeros(SIDE, SIDE, dtype=torch.bool) for _ in range(2))
        core[top + 3 : top + size - 3, left + 3 : left + size - 3] = True
        around[max(0, top - 5) : top + size + 5, max(0, left - 5) : left + size + 5] = True
        assert torch.equal(kept[sample][:, core], ours[sample][:, core])
        assert torch.equal(kept[sample][:, ~around], base[sample][:, ~around])
        along = place[sample, 0, top + size // 2]  # a row through its middle
        steps = along.diff()
        assert len(along.unique()) > 4 and float(steps.abs().max()) <= 0.3, "hard edge"


def test_in_an_inpainting_the_place_is_looked_for_in_what_is_drawn() -> None:
    """Elsewhere the two may differ more, as on another dog, and nothing of it is seen."""
    base = noise(2, 4, SIDE, SIDE, seed=1)
    ours = _changed(_changed(base, slice(2, 14), slice(2, 14), 9.0), slice(20, 28), slice(20, 28), 1.0)
    drawn = torch.zeros(2, 1, SIDE, SIDE)
    drawn[..., 16:, 16:] = 0.5
    whole, inside = place_of([ours], [base], [True]), place_of([ours], [base], [True], drawn)
    assert float(whole[..., 21:27, 21:27].max()) == 0.0 and float(inside[..., 23:25, 23:25].min()) == 1.0
    assert float(inside[..., 16:18, 16:].max()) < 1.0
    for beyond in (1.0, 3.0, 9.0):  # close to what is drawn
        near = _changed(_changed(base, slice(None), slice(4, 10), 1.0), slice(None), slice(17, 32), beyond)
        within = torch.zeros(2, 1, SIDE, SIDE)
        within[..., :16] = 1.0
        found = place_of([near], [base], [True], within)
        assert float(found[..., 6:8].min()) == 1.0 and float(found[..., 13:16].max()) == 0.0, beyond
    nowhere = place_of([ours], [base], [True], torch.zeros_like(drawn))
    assert torch.equal(nowhere, whole)


def test_one_place_for_all_texts_and_none_where_nothing_differs() -> None:
    negative, prompt = noise(1, 4, SIDE, SIDE, seed=1), noise(1, 4, SIDE, SIDE, seed=2)
    shifted = negative + 0.01  # all over the picture
    with_concept = _changed(prompt, slice(4, 12), slice(4, 12), 3.0)
    for share in (1.0, 0.25):
        kept = kept_in_place([shifted, with_concept], [negative, prompt], [False, True], negative_share=share)
        place = place_of([shifted, with_concept], [negative, prompt], [False, True])
        assert 49 <= float(place.sum()) < SIDE * SIDE // 4
        torch.testing.assert_close(kept[0], negative + 0.01 * share * place, rtol=0, atol=1e-6)
        torch.testing.assert_close(kept[1], prompt + place * (with_concept - prompt), rtol=0, atol=1e-6)
    unchanged = kept_in_place([negative, prompt], [negative, prompt], [False, True])
    assert torch.equal(unchanged[0], negative) and torch.equal(unchanged[1], prompt)


def test_each_of_two_things_has_a_place_of_its_own() -> None:
    """Also where the stronger one changes more in the other's place than that does itself, and where places overlap."""
    base = noise(1, 4, SIDE, SIDE, seed=1)
    one = _changed(_changed(base, slice(4, 16), slice(2, 14), 9.0), slice(4, 16), slice(18, 30), 2.0)
    two = _changed(base, slice(4, 16), slice(14, 30), 1.0)
    changes = [Held([with_it], [True]).change([base]) for with_it in (one, two)]
    left, right = places_of(changes)
    assert float(left[..., 8:12, 4:12].min()) == float(right[..., 8:12, 16:28].min()) == 1.0
    assert float(left[..., 20:].max()) == float(right[..., :12].max()) == 0.0
    assert float((left + right).max()) <= 1.0
    texts = [Held([with_it], [True], place) for with_it, place in ((one, left), (two, right))]
    (kept,) = left_to_base([base], texts)
    torch.testing.assert_close(kept, base + left * (one - base) + right * (two - base), rtol=0, atol=1e-5)
    assert float((left[0, 0, 9].diff().abs()).max()) <= 0.4, "no seam"
    (alone,) = places_of(changes[:1])
    assert float(alone[..., 8:12, 4:12].min()) == 1.0
    drawn = torch.zeros(1, 1, SIDE, SIDE)
    drawn[..., 18:] = 1.0
    left, right = places_of(changes, drawn)
    assert float(left[..., 8:12, 21:28].max()) == 1.0, (
        "in what is drawn it changes as much as the other, by its own measure"
    )
    assert torch.equal(left + right, (left + right).clamp_max(1))


def test_a_concept_that_hardly_acts_takes_no_place_from_another() -> None:
    base = noise(1, 4, SIDE, SIDE, seed=1)
    acts, faint = _changed(base, slice(4, 20), slice(4, 20), 3.0), _changed(base, slice(4, 20), slice(12, 28), 0.2)
    far = _changed(base, slice(4, 20), slice(26, 32), 3.0)
    one, weak, elsewhere = (Held([with_it], [True]).change([base]) for with_it in (acts, faint, far))
    (alone,), (beside, _) = places_of([one]), places_of([one, weak])
    assert torch.equal(alone, beside)
    for first, second in ((one, elsewhere), (elsewhere, one)):
        both = [place for pair in ([first], [second]) for place in places_of(pair)]
        torch.testing.assert_close(places_of([first, second]), both)
    assert float((places_of([one, 15 * weak])[0] - alone).min()) < -0.4


def test_a_look_is_a_share_of_its_change_all_over_the_picture() -> None:
    negative, prompt = noise(1, 4, SIDE, SIDE, seed=1), noise(1, 4, SIDE, SIDE, seed=2)
    look, thing = prompt + 1.0, _changed(prompt, slice(4, 12), slice(4, 12), 3.0)
    kept = left_to_base([negative, prompt], [Held([None, look], [False, True])])
    assert kept[0] is negative
    torch.testing.assert_close(kept[1], prompt + LOOK_SHARE, rtol=0, atol=1e-5)
    held = Held([None, thing], [False, True])
    held = Held(held.found, held.names, places_of([held.change([negative, prompt])])[0])
    both = left_to_base([negative, prompt], [held, Held([None, look], [False, True])])
    torch.testing.assert_close(both[1], prompt + held.place * (thing - prompt) + LOOK_SHARE, rtol=0, atol=1e-5)


def test_what_is_not_finite_is_not_hidden() -> None:
    base = noise(1, 4, SIDE, SIDE, seed=1)
    broken = _changed(base, slice(4, 12), slice(4, 12), float("nan"))
    (kept,) = kept_in_place([broken], [base], [True])
    assert bool(kept.isnan().any())
    assert bool(kept_in_place([torch.full_like(base, torch.nan)], [base], [True])[0].isnan().all())


def test_the_energy_is_parted_in_two() -> None:
    energy = torch.full((SIDE, SIDE), 0.2)
    energy[8:16, 8:16] = 1.0
    found = where_most(energy)
    assert set(found.unique().tolist()) == {0.0, 1.0} and found[9:15, 9:15].all() and not found[:5].any()
    assert not where_most(torch.zeros(SIDE, SIDE)).any()


def test_sampling_holds_the_surroundings_at_the_bases_velocity() -> None:
    adapted, t = network(), torch.tensor([0.3, 0.8])
    adapted.add_concept(PURE, extractor())
    x_t = noise(2, 4, 8, 8, seed=1)
    positive, negative = text("a [V] dog", count=2), text("", count=2)
    of = {model: [adapted.velocity(x_t, t, words, model) for words in (negative, positive)] for model in (PURE, BASE)}
    v_negative, v_positive = kept_in_place(of[PURE], of[BASE], [False, True])
    held = guided_velocity(adapted, positive, negative, 4.0, PURE, held="instance")(x_t, t)
    torch.testing.assert_close(held, v_negative + 4 * (v_positive - v_negative), rtol=1e-4, atol=1e-4)
    base = guided_velocity(adapted, positive, negative, 4.0, BASE)(x_t, t)
    around = (v_positive == of[BASE][1]).all(1, keepdim=True).expand_as(base)
    assert 0 < int(around.sum()) < around.numel()
    torch.testing.assert_close(held[around], base[around], rtol=1e-4, atol=1e-4)
    assert float((held - base)[~around].detach().abs().max()) > 0.1
    nothing = guided_velocity(adapted, positive, negative, 4.0, BASE, held="instance")(x_t, t)
    torch.testing.assert_close(nothing, base, rtol=1e-4, atol=1e-4)


def test_sampling_takes_a_share_of_a_look() -> None:
    adapted, t = network(), torch.tensor([0.3, 0.8])
    adapted.add_concept(PURE, extractor())
    x_t = noise(2, 4, 8, 8, seed=1)
    positive, negative = text("a [V] dog", count=2), text("", count=2)
    with adapted.gated(PURE, "conditioning"):
        ours, base = (adapted.velocity(x_t, t, positive, model) for model in (PURE, BASE))
        v_negative = adapted.velocity(x_t, t, negative, BASE)
        held = guided_velocity(adapted, positive, negative, 4.0, PURE, held="style")(x_t, t)
    wanted = v_negative + 4 * (torch.lerp(base, ours, LOOK_SHARE) - v_negative)
    torch.testing.assert_close(held, wanted, rtol=1e-4, atol=1e-4)


def test_the_base_lays_the_picture_out_alone() -> None:
    adapted = network()
    adapted.add_concept(PURE, extractor())
    x_t = noise(2, 4, 8, 8, seed=1)
    positive, negative = text("a [V] dog", count=2), text("", count=2)
    base = guided_velocity(adapted, positive, negative, 4.0, BASE)
    assert LAYOUT == 0.95 and int((sigmas(28, 3.0)[:-1] > LAYOUT).sum()) == 4  # as the help pages tell
    early, late = LAYOUT + 0.01, LAYOUT - 0.01
    for kind in ("instance", "style"):
        held = guided_velocity(adapted, positive, negative, 4.0, PURE, held=kind)
        for times, alone in (((early, early), True), ((late, late), False), ((early, late), False)):
            t = torch.tensor(times)
            assert torch.equal(held(x_t, t), base(x_t, t)) == alone
