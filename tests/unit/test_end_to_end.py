"""The benchmark of a whole training, at the size of the tests."""

from __future__ import annotations

import time

import pytest

from benchmarks.end_to_end import Watch, table, trained
from benchmarks.stand_ins import TINY


@pytest.mark.parametrize("paper", [True, False])
def test_a_whole_training_makes_its_concepts_and_its_phases_add_up(paper: bool) -> None:
    start = time.perf_counter()
    found = trained(TINY, 2, paper)
    passed = time.perf_counter() - start
    roles = {stage: concept.role for stage, concept in found.concepts.items()}
    assert roles == ({"stage 1": "extractor"} if paper else {}) | {"stage 2": "concept"}
    assert all(concept.lora.rank == 4 and concept.embeddings.t5 is not None for concept in found.concepts.values())
    base = [phase for phase in found.seconds if "the base model" in phase]
    assert [phase.split()[-1] for phase in base] == ([] if paper else ["pictures", "class"])  # looks for, draws
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert 0.5 * passed < found.total < passed  # making the model and the concept set is not in it
    slowest = max(concept.summary["seconds_per_step"] for concept in found.concepts.values())  # of two
    assert sum(found.seconds[f"{stage}, steps"] for stage in found.concepts) >= slowest
    assert f"{found.total:.1f} s  in total" in table(TINY, 2, paper, found)


def test_a_watch_leaves_no_gap() -> None:
    watch = Watch()
    start = time.perf_counter()
    watch.enter("one")
    time.sleep(0.02)
    watch.enter("two", ago=0.01)
    time.sleep(0.02)
    watch.enter("one")
    watch.stop()
    passed = time.perf_counter() - start
    assert list(watch.seconds) == ["one", "two"]
    assert watch.seconds["two"] > 0.029
    assert sum(watch.seconds.values()) == pytest.approx(passed, abs=0.005)
