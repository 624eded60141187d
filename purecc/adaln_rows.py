"""Which times and texts the steps of a run read: known by its seed, so that adaLN can be computed ahead of them."""

import torch

from .adaln_table import WINDOW, ModulationTable, Rows
from .batches import drawn, scene_choice
from .concept_set import NULL, ConceptSet
from .network import AdaptedNetwork
from .scenes import SCENE_TEXTS
from .settings import TrainSettings

_TEXTS = ("complete", "base", "target")  # of an example


def tabulate(
    network: AdaptedNetwork, data: ConceptSet, settings: TrainSettings, window: int = WINDOW, *, scenes: bool = False
) -> ModulationTable:
    """adaLN's outputs for the steps to come, by the texts of their batches, and of their scenes."""

    def rows_of(number: int) -> dict[str, Rows]:
        draw = drawn(data, settings, number)
        texts = {which: draw.texts(which) for which in _TEXTS}
        texts |= {which: [text] * len(draw.t) for which, text in (("null", NULL), ("class_word", data.class_word))}
        times = dict.fromkeys(texts, draw.t)
        if scenes:
            choice = scene_choice(data, settings, number)
            for which in SCENE_TEXTS:
                texts[f"scene {which}"] = [getattr(scene, which) for scene in choice.texts]
                times[f"scene {which}"] = choice.t
        pooled = lambda own: torch.stack([data.encoded[text].pooled for text in own])  # noqa: E731
        return {which: (times[which], pooled(own)) for which, own in texts.items()}

    return ModulationTable(network.transformer, rows_of, settings.steps * settings.accumulate, window)
