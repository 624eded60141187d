"""One form through the whole main job: a single file with encoders and VAE is loaded, trained on in both stages, and drawn with.

The nodes are the host's and the pack's own, run by the host's executor; the encoders read the texts, T5 in scaled fp8 among them.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest


@pytest.fixture(scope="module")
def seen(run_in_host: Callable[..., str]) -> dict:
    return json.loads(run_in_host("single_file_job.py", timeout=600).splitlines()[-1])


@pytest.mark.parametrize("stage", ["extractor", "pure"])
def test_both_stages_train_on_the_files_own_texts_and_latents(seen: dict, stage: str) -> None:
    found = seen["stages"][stage]
    assert len(found["losses"]) == 2 and all(0 < loss < 100 for loss in found["losses"])
    assert found["finite"] and found["moved"] > 0


def test_embeddings_learn_at_clips_rows_and_at_t5s(seen: dict) -> None:
    shape = [4, 1, 256]  # blocks, tokens, width
    for stage in seen["stages"].values():
        assert stage["embeddings"] == {"concept.clip": shape, "concept.t5": shape}
    assert all(seen["learned"][table] > 1e-3 for table in ("concept.clip", "concept.t5"))  # in stage 2, from stage 1's


def test_the_concept_is_drawn_and_the_base_is_left_alone(seen: dict) -> None:
    pictures = seen["pictures"]
    assert pictures["without trigger"] == pictures["base"] != pictures["with trigger"]


def test_a_concept_that_was_trained_without_t5_is_drawn_behind_a_clip_with_it(seen: dict) -> None:
    pictures = seen["pictures"]
    assert pictures["T5 later, without trigger"] == pictures["base"]
    assert len({pictures[name] for name in ("base", "with trigger", "T5 later, with trigger")}) == 3


def test_what_was_trained_with_is_told(seen: dict) -> None:
    reports = seen["reports"]
    assert "1 picture, 64 x 64 px" in reports["data"] and "a [V] dog in the sun" in reports["data"]
    assert "text encoders" in reports["extractor"] and "VAE" in reports["pure"]
