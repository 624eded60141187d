"""What a training takes of the host's memory it gives back, and the host samples as before."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

SMALL = 1_000_000  # bytes: the concept that was learnt, texts


@pytest.fixture(scope="module")
def seen(run_in_host: Callable[..., str]) -> dict:
    return json.loads(run_in_host("memory_returned.py", timeout=600).splitlines()[-1])


def test_a_training_holds_a_copy_of_the_model(seen: dict) -> None:
    assert seen["during"] - seen["before"] > 0.8 * seen["weights"]  # or the next tests could not fail


@pytest.mark.parametrize(
    "when",
    [
        "after",
        "after a second run as shipped, with the table of adaLN",
        "after a run in float8, blocks waiting",
        "after an error that is kept",
    ],
)
def test_it_is_given_back(seen: dict, when: str) -> None:
    assert seen[when] - seen["before"] < SMALL


def test_the_network_itself_is_trained_where_a_compiled_one_stood_in_its_place(seen: dict) -> None:
    assert seen["loaded"] == "OptimizedModule" and seen["of the same base"]


def test_encoders_that_are_there_already_are_counted_once(seen: dict) -> None:
    """As room, as what a training takes; and what the host is to leave to other programs is known."""
    assert seen["encoders"] == [True, True, True]


def test_of_scenes_their_texts_stay_as_the_report_tells(seen: dict) -> None:
    """Concept Set's encoder keeps what it has read: a training at another eta asks for it again."""
    assert 0 < seen["before"] - seen["unread"] < seen["texts"] + SMALL


def test_a_base_in_float8_takes_less(seen: dict) -> None:
    assert seen["during, in float8"] - seen["before"] < 0.6 * (seen["during"] - seen["before"])


def test_the_stock_sampler_draws_what_it_drew_before(seen: dict) -> None:
    assert seen["picture is as before"]


def test_the_node_is_told_what_is_needed_and_what_is_free(seen: dict) -> None:
    assert "memory: about" in seen["notes"] and "of main memory" in seen["notes"]
    assert re.search(r"main memory, ComfyUI's own models: MODEL \d+ MB, VAE \d+ MB, CLIP \d+ MB", seen["notes"])
    assert re.search(r"texts that were read: \d+ MB", seen["notes"])


def test_the_hosts_models_stay_where_there_is_room_and_no_size_is_asked_for(seen: dict) -> None:
    leave = [False, False, 1]
    assert seen["models stay"] == {"auto, True": [True, True, 0], "auto, False": leave, "24 GB, True": leave}


def test_after_steps_on_a_gpu_the_node_tells_what_they_took(seen: dict) -> None:
    assert seen["told"] == seen["notes"]
    assert seen["told on a GPU"].startswith(seen["notes"]) and "took 123 MB of the GPU at most" in seen["told on a GPU"]


def test_where_only_the_allocator_stands_against_recorded_steps_the_node_says_so(seen: dict) -> None:
    (said,), *silent = seen["said of recording"]
    assert "--disable-cuda-malloc" in said and silent == [[], [], []]


def test_a_gpu_that_runs_out_of_memory_gets_advice(seen: dict) -> None:
    said = seen["said of too little memory"]
    assert "reckoned at" in said and "set memory to a size" in said and "last checkpoint" in said
    assert seen["left the device"] == 3  # before each stage, and at the error


def test_positions_are_cut_to_the_pictures(seen: dict) -> None:
    assert seen["table"] == 8


def test_the_node_tells_what_of_an_applied_concept_is_no_part_of_the_base(seen: dict) -> None:
    off, gated = seen["notes of a concept"]["off"], seen["notes of a concept"]["picture"]
    assert "LoRAs on the model count" in off and "The embeddings of " in off and "set the gate" not in off
    assert "is no part of the base here" in gated and "set the gate" in gated and "count as part" not in gated
    assert "no part of the base" not in seen["notes"]


def test_latents_of_another_models_vae_are_noticed(seen: dict) -> None:
    assert "the VAE may be another model's" in seen["notes of another VAE"] and "may be another" not in seen["notes"]


def test_the_hosts_models_are_moved_in_its_own_mode(seen: dict) -> None:
    """Their weights are inference tensors: on a GPU, one moved outside that mode fails in the stock nodes that follow."""
    assert {"load", "unpatch_model"} <= set(seen["moved in the host's mode"])
    assert seen["moved outside of it"] == []


def test_text_encoders_that_are_read_in_the_loop_are_counted(seen: dict) -> None:
    sizes = [int(re.search(r"memory: about (\d+) MB", seen[of])[1]) for of in ("notes", "notes of learned tokens")]
    assert sizes[1] > sizes[0]
