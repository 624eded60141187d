"""The table of adaLN's outputs: the same run bit for bit, with the layers off the device."""

from __future__ import annotations

from dataclasses import replace
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
    extractor,
    losses,
    network,
    noise,
    same,
    text,
    transformer,
)  # fmt: skip

from purecc.adaln_rows import tabulate
from purecc.adaln_table import UNFORESEEN, ModulationTable, is_modulation, table_of
from purecc.batches import draw_batch, scene_choice
from purecc.job import Job
from purecc.network import BASE, AdaptedNetwork
from purecc.pocket.model import load_pocket
from purecc.prompts import Placeholder
from purecc.sampling import euler, guided_velocity
from purecc.scenes import text_batch, with_scenes
from purecc.settings import PureSettings
from purecc.stages import ExtractorJob, PureJob


def job(root: Path, tabulated: bool, stage: str, **changed) -> Job:
    settings, adapted = replace(SETTINGS, steps=6, modulation_table=tabulated, **changed), network()
    if stage == "extractor":
        return ExtractorJob(adapted, concept_set(), settings, SCALING, root, "tiny base")
    return PureJob(
        adapted, concept_set(), settings, SCALING, root, "tiny base", PureSettings(original=stage), extractor()
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", ["extractor", "frozen base", "trainable"])
def test_a_run_is_the_same_bit_for_bit(tmp_path: Path, stage: str, checkpointing: bool) -> None:
    plain = job(tmp_path / "plain", False, stage, checkpointing=checkpointing)
    table = job(tmp_path / "table", True, stage, checkpointing=checkpointing)
    assert losses(list(plain)) == losses(list(table))
    assert same(plain.concept, table.concept)
    assert plain.run.folder.name == table.run.folder.name  # so a run may go on with it or without


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["LoRA + DOP", "merged stage", "PureCC"])
def test_each_forward_of_a_run_is_computed_ahead_once(tmp_path: Path, method: str, checkpointing: bool) -> None:
    """Two models may read the same rows in one step, in forwards of their own."""
    settings = replace(SETTINGS, steps=6, modulation_table=True, checkpointing=checkpointing)
    pure = PureSettings(method, eta=1.0, background_anchor=0.0)
    guide = extractor() if method == "PureCC" else None
    run = PureJob(network(), concept_set(), settings, SCALING, tmp_path, "tiny base", pure, guide)
    assert len(list(run)) == 6
    table = table_of(run.network.transformer)
    forwards = {tuple(text for text, _ in pattern) for pattern in table._patterns}
    assert 0 < table.computed_ahead <= 6 * len(forwards)


def test_the_pockets_velocity_is_the_same_bit_for_bit_foreseen_and_not() -> None:
    torch.manual_seed(0)
    plain, tabulated = (AdaptedNetwork(load_pocket().transformer) for _ in range(2))
    pooled, rows, marks = torch.randn(4, 256), torch.randn(4, 20, 256), torch.zeros(4, 20, dtype=torch.int64)
    words = replace(text("a dog"), rows=rows, pooled=pooled, marks=marks)
    x_t, t = torch.randn(4, 16, 16, 16), torch.rand(4)
    table = ModulationTable(tabulated.transformer, lambda number: {"complete": (t, pooled)}, steps=1)
    assert torch.equal(tabulated.velocity(x_t, t, words, BASE), plain.velocity(x_t, t, words, BASE))
    assert table.computed_ahead == 1
    assert torch.equal(tabulated.velocity(x_t, 1 - t, words, BASE), plain.velocity(x_t, 1 - t, words, BASE))
    assert table.computed_ahead == 1
    left = sum(p.numel() for p in tabulated.transformer.parameters())
    assert left < 0.75 * sum(p.numel() for p in plain.transformer.parameters())


def test_rows_that_come_again_in_a_later_step_are_foreseen() -> None:
    """Times of a grid do, for the null text above all."""
    adapted, words = network(), text("a dog", count=2)
    times = {1: (0.1, 0.2), 2: (0.2, 0.3), 3: (0.3, 0.1)}
    rows_of = lambda number: {"null": (torch.tensor(times[number]), words.pooled)}  # noqa: E731
    table = ModulationTable(adapted.transformer, rows_of, steps=3, window=1)
    for number in times:
        adapted.velocity(noise(2, CHANNELS, SIDE, SIDE), torch.tensor(times[number]), words, BASE)
        assert table.computed_ahead == number


def test_rows_of_no_step_are_kept_up_to_a_bound() -> None:
    """A preview asks for the same again; drawing asks for hundreds."""
    adapted, words = network(), text("a dog", count=8)
    rows_of = lambda number: {"null": (torch.zeros(2), words.pooled[:2])}  # noqa: E731
    table = ModulationTable(adapted.transformer, rows_of, steps=1)
    for number in range(UNFORESEEN // 8 + 3):
        adapted.velocity(noise(8, CHANNELS, SIDE, SIDE), torch.full((8,), 0.01 * (number + 1)), words, BASE)
    assert sum(map(len, table._others)) == UNFORESEEN


def test_a_sampled_pictures_forwards_are_computed_at_once() -> None:
    """Each layer then visits the device once for all of them; the picture is the same bit for bit, and what came before is let go."""
    words, negative, steps = text("a dog", count=4), text("", count=4), 12
    start = noise(4, CHANNELS, SIDE, SIDE)

    def drawn(adapted: AdaptedNetwork) -> torch.Tensor:
        return euler(guided_velocity(adapted, words, negative, 4.0, BASE), start, steps, 3.0, adapted)

    tabulated = network()
    rows_of = lambda number: {"null": (torch.zeros(2), words.pooled[:2])}  # noqa: E731
    table, visits = ModulationTable(tabulated.transformer, rows_of, steps=1), []
    compute = table._compute
    table._compute = lambda asked: visits.append(len(asked)) or compute(asked)
    pictures = [drawn(tabulated), drawn(tabulated)]
    assert visits == [steps]
    assert all(torch.equal(picture, drawn(network())) for picture in pictures)
    euler(guided_velocity(tabulated, words, negative, 4.0, BASE), start, 40, 3.0, tabulated)
    assert visits == [steps, UNFORESEEN // 8, 40 - 1 - UNFORESEEN // 8]  # the first time, 1, was there
    assert sum(map(len, table._others)) == UNFORESEEN
    tabulated.velocity(start[:2], torch.ones(2), text("a cat", count=2), BASE)
    assert visits[-1] == 1  # that picture is done: nothing comes after this
    table.expect(torch.linspace(1, 0.5, 4))
    many = text("a dog", count=UNFORESEEN + 4)
    tabulated.velocity(noise(UNFORESEEN + 4, CHANNELS, SIDE, SIDE), torch.ones(UNFORESEEN + 4), many, BASE)
    assert visits[-1] == 1  # more rows than are kept: one at a time


def test_how_often_the_layers_visit_the_device_in_a_stage_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the nodes come, six steps, no previews; benchmarks/MEMORY.md tells the figure. Four scenes are one visit."""
    visits, compute = [], ModulationTable._compute
    monkeypatch.setattr(ModulationTable, "_compute", lambda self, asked: visits.append(1) or compute(self, asked))
    data = with_scenes(concept_set(), Words(TRIGGER, Placeholder(1, "dog")))
    settings = replace(SETTINGS, steps=6, modulation_table=True)
    shipped = PureSettings(eta=0.0, background_anchor=3.0, scene_anchor=0.5)
    run = PureJob(network(), data, settings, SCALING, tmp_path, "tiny base", shipped, None)
    assert len(list(run)) == 6 and len(data.scenes) == 16
    assert len(visits) == 46


def test_steps_are_computed_ahead_in_windows(tmp_path: Path) -> None:
    adapted, data, settings = network(), concept_set(), replace(SETTINGS, steps=7)
    table = tabulate(adapted, data, settings, window=3)
    ahead = []
    for number in range(1, 8):
        batch = draw_batch(data, settings, SCALING, number, "cpu")
        for which in ("base", "complete"):
            adapted.velocity(batch.x_t, batch.t, getattr(batch, which), BASE)
        ahead.append(table.computed_ahead)
    assert ahead == [6, 6, 6, 12, 12, 12, 14]


def test_scenes_are_computed_ahead() -> None:
    adapted, settings = network(), replace(SETTINGS, steps=4)
    data = with_scenes(concept_set(), Words(TRIGGER, Placeholder(1, "dog")))
    data = replace(data, scenes=data.scenes[::2])  # of the others Words reads too few words to tell complete from base
    table = tabulate(adapted, data, settings, window=4, scenes=True)
    ahead = []
    for number in range(1, 5):
        choice = scene_choice(data, settings, number)
        for which in ("base", "complete"):  # alone, as with checkpointing
            batch = noise(len(choice.t), CHANNELS, SIDE, SIDE)
            adapted.velocity(batch, choice.t, text_batch(data, choice, which, "cpu"), BASE)
        ahead.append(table.computed_ahead)
    assert ahead == [8, 8, 8, 8]


def test_the_names_of_the_layers() -> None:
    one = transformer()
    names = [name for name, _ in one.named_parameters() if is_modulation(name)]
    assert len(names) == 2 * (2 * len(one.transformer_blocks) + 1)
