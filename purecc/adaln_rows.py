"""Which times and texts the steps of a run read: known by its seed, so that adaLN can be computed ahead of them."""

import torch

from .adaln_table import WINDOW, ModulationTable, Rows
from .batches import drawn
from .concept_set import NULL, ConceptSet
from .network import AdaptedNetwork
from .settings import TrainSettings

_TEXTS = ("complete", "base", "target")  # of an example


def tabulate(
    network: AdaptedNetwork, data: ConceptSet, settings: TrainSettings, window: int = WINDOW
) -> ModulationTable:
    """adaLN's outputs for the steps to come, by the texts of their batches."""

    def rows_of(number: int) -> dict[str, Rows]:
        draw = drawn(data, settings, number)
        texts = {which: draw.texts(which) for which in _TEXTS}
        texts |= {which: [text] * len(draw.t) for which, text in (("null", NULL), ("class_word", data.class_word))}
        return {
            which: (draw.t, torch.stack([data.encoded[text].pooled for text in own])) for which, own in texts.items()
        }

    return ModulationTable(network.transformer, rows_of, settings.steps * settings.accumulate, window)
