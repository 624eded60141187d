"""Text encoders in every form that the host loads, and the loader of diffusers folders.

The encoders have the published names, widths and vocabularies, and fewer layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest


@pytest.fixture(scope="module")
def seen(run_in_host: Callable[..., str]) -> dict:
    return json.loads(run_in_host("loaders.py", timeout=600).splitlines()[-1])


def reads(form: dict, rows: int, clip: bool = True, t5: bool = True) -> None:
    """A prompt becomes SD3's rows; the trigger is found in CLIP's part and in T5's; other words give other rows."""
    assert form["rows"] == [rows, 4096] and form["pooled"] == 2048
    assert (form["clip marks"] > 0, form["t5 marks"] > 0) == (clip, t5)
    assert form["finite"] and form["reads"] > 1e-2


@pytest.mark.parametrize("name", ["bfloat16", "scaled float8"])
def test_a_single_file_with_all_encoders(seen: dict, name: str) -> None:
    reads(seen["single_files"][name], 77 + 77)
    assert seen["single_files"][name]["blocks"] == 4


def test_a_single_file_without_t5(seen: dict) -> None:
    reads(seen["single_files"]["no T5"], 77, t5=False)


@pytest.mark.parametrize("name", ["triple", "triple, scaled float8", "dual, clip_g and t5"])
def test_separate_encoders_with_t5(seen: dict, name: str) -> None:
    reads(seen["separate_files"][name], 77 + 77)


@pytest.mark.parametrize("name", ["dual", "clip_g alone"])
def test_separate_encoders_without_t5(seen: dict, name: str) -> None:
    reads(seen["separate_files"][name], 77, t5=False)


def test_t5_alone(seen: dict) -> None:
    reads(seen["separate_files"]["t5 alone"], 77, clip=False)


def test_input_embeddings_learn_in_both_clips_and_leave_t5(seen: dict) -> None:
    tokens = seen["separate_files"]["tokens"]
    assert tokens["widths"] == {"clip_l": [1, 768], "clip_g": [1, 1280]}
    assert tokens["start"] < 1e-3 < 0.1 < tokens["moved"]
    assert tokens["sampled"] < 1e-3 and tokens["pooled"] < 1e-3 and tokens["t5 stays"]
    assert tokens["t5 words"][1] > 0
    assert "no clip_l" in seen["separate_files"]["tokens, no clip_l"]


def test_a_diffusers_folder_becomes_model_clip_and_vae(seen: dict) -> None:
    found = seen["folder"]
    assert "sub/my sd3.5" in found["folders"]
    assert found["same weights"]
    assert found["shift"] == 2.5 and found["scaling"] == [1.5305, 0.0609]
    reads(found["text"], 77, t5=False)
    assert found["latents"] == [1, 16, 8, 8]


def test_a_linked_diffusers_folder_is_listed(seen: dict) -> None:
    assert "linked" in seen["folder"]["linked"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("outside", "no diffusers folder"),
        ("a shard of a variant is missing", "lacks model.fp16-00002-of-00002.safetensors"),
        ("a shard is missing", "lacks diffusion_pytorch_model-00002-of-00002.safetensors"),
        ("bin files", "no .safetensors file"),
        ("another pipeline", "holds a FluxPipeline"),
    ],
)
def test_what_it_cannot_take_is_told(seen: dict, case: str, words: str) -> None:
    assert words in seen["folder"][case]
