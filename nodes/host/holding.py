"""The surroundings of an applied concept left to the base model, while the host samples (see `purecc.place`).

A wrapper around what the host predicts for a step's texts (its CALC_COND_BATCH), so that every guider and sampler has it: it asks
twice, the second time with the concepts silent; once, silent, while the picture is laid out. Where no concept that holds acts, it asks once.
"""

from typing import Any

from torch import Tensor

from ...purecc.place import is_layout, kept_in_place, place_of
from .acting import NAMED, PLACES, SILENT
from .marks import CONCEPTS, concepts_in


def hold(
    executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """The host's clean pictures for each of `conds`, [batch, channels, height, width]: around the concepts' place the base model's."""
    options = model_options.get("transformer_options", {})
    asked_for = options.get(NAMED, frozenset())  # in this sampling
    holding = {
        number: one
        for number, one in options.get(CONCEPTS, {}).items()
        if one.holds and number in asked_for and one.acts(model.model_sampling, timestep)
    }
    silent = {**model_options, "transformer_options": {**options, SILENT: frozenset(holding)}}
    if holding and is_layout(timestep):
        return executor(model, conds, x, timestep, silent)
    found = executor(model, conds, x, timestep, model_options)
    if not holding:
        return found
    in_all_texts = any(one.gate == "picture" and one.row_loras for one in holding.values())
    names = [not holding.keys().isdisjoint(concepts_in(text)) for text in conds]
    changed = [text if named or in_all_texts else None for text, named in zip(conds, names, strict=True)]
    base = executor(model, changed, x, timestep, silent)
    base = [ours if text is None else theirs for ours, theirs, text in zip(found, base, changed, strict=True)]
    places = options[PLACES]
    place = places.of(x)
    if place is None and any(names):
        place = place_of(found, base, names, places.drawn_in(x))
        places.x_t, places.place = x.clone(), place
    elif place is None:  # a node asks for the negative alone, and first
        place = place_of(found, base, [True] * len(conds), places.drawn_in(x))
    return kept_in_place(found, base, names, place)
