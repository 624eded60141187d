"""The benchmark of a whole training, at the size of the tests."""

from __future__ import annotations

import pytest

from benchmarks.end_to_end import Watch, table, trained
from benchmarks.stand_ins import TINY


@pytest.mark.parametrize("paper", [True, False])
def test_a_whole_training_makes_its_concepts_and_its_phases_add_up(paper: bool) -> None:
    found = trained(TINY, 2, paper)
    roles = {stage: concept.role for stage, concept in found.concepts.items()}
    assert roles == ({"stage 1": "extractor"} if paper else {}) | {"stage 2": "concept"}
    assert all(concept.lora.rank == 4 and concept.embeddings.t5 is not None for concept in found.concepts.values())
    base = [phase for phase in found.seconds if "the base model" in phase]
    assert [phase.split()[-1] for phase in base] == ([] if paper else ["pictures", "class"])  # looks for, draws
    assert all(f"{stage}, steps" in found.seconds for stage in found.concepts)
    assert f"{found.total:.1f} s  in total" in table(TINY, 2, paper, found)


def test_a_watch_leaves_no_gap(monkeypatch) -> None:
    clock = iter([10.0, 13.0, 17.0, 18.0])
    monkeypatch.setattr("benchmarks.end_to_end.time.perf_counter", lambda: next(clock))
    watch = Watch()
    watch.enter("one")
    watch.enter("two", ago=1.0)  # at 12
    watch.enter("one")
    watch.stop()
    assert watch.seconds == {"one": 2.0 + 1.0, "two": 5.0}
