"""All but the applied concepts is left to the base model while the host samples (see `purecc.place`).

A wrapper around what the host predicts for a step's texts (its CALC_COND_BATCH), so that every guider and sampler has it: it asks
with the concepts silent, and once more for each of them alone; once, silent, while the picture is laid out. Where no concept that holds
acts, it asks once.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...purecc.place import Held, is_layout, left_to_base, places_of
from .acting import NAMED, PLACES, SILENT, Applied, Places
from .marks import CONCEPTS, concepts_in


def hold(
    executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """The host's clean pictures for each of `conds`, [batch, channels, height, width]: around the concepts' places the base model's."""
    options = model_options.get("transformer_options", {})
    asked_for = options.get(NAMED, frozenset())  # in this sampling
    holding: dict[int, Applied] = {
        number: one
        for number, one in options.get(CONCEPTS, {}).items()
        if one.holds and number in asked_for and one.acts(model.model_sampling, timestep)
    }
    if not holding:
        return executor(model, conds, x, timestep, model_options)

    def predicted(texts: list, silent: set[int]) -> list[Tensor]:
        quiet = {**model_options, "transformer_options": {**options, SILENT: frozenset(silent)}}
        return executor(model, texts, x, timestep, quiet)

    base = predicted(conds, set(holding))
    if is_layout(timestep):
        return base
    named = [concepts_in(text) for text in conds]
    concepts: dict[int, Held] = {}
    for number, one in holding.items():
        names = [number in numbers for numbers in named]
        in_all_texts = one.gate == "picture" and one.row_loras
        changed = [text if name or in_all_texts else None for text, name in zip(conds, names, strict=True)]
        if any(text is not None for text in changed):
            found = predicted(changed, holding.keys() - {number})
            found = [None if text is None else ours for ours, text in zip(found, changed, strict=True)]
            concepts[number] = Held(found, names)
    return left_to_base(base, _in_places(concepts, holding, base, x, options[PLACES]))


def _in_places(
    concepts: dict[int, Held], holding: dict[int, Applied], base: list[Tensor], x: Tensor, places: Places
) -> list[Held]:
    """The things among them each with its place, which are looked for together where this x_t was not seen."""
    things = {number: one for number, one in concepts.items() if holding[number].concept.held == "instance"}
    known = places.of(x)
    here: dict[int, Tensor] = {}
    if not things.keys() <= known.keys():
        # a node asks for the negative alone, and first: what changes in it is all there is, and no place for the prompt
        looked_at = [one if any(one.names) else replace(one, names=_asked(one)) for one in things.values()]
        here |= zip(things, places_of([one.change(base) for one in looked_at], places.drawn_in(x)), strict=True)
        known |= {n: here[n] for n, one in things.items() if any(one.names) and n not in known}
    here |= known
    return [replace(one, place=here.get(number)) for number, one in concepts.items()]


def _asked(one: Held) -> list[bool]:
    return [found is not None for found in one.found]
