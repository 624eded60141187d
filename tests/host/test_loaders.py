"""Files in every form that people have, through the host's loader nodes: encoders, VAE and transformers in scaled fp8.

Encoders have the published names, widths and vocabularies, and fewer layers; the VAE is at full size. What training reads of a
prompt is compared with what the same encoders give that came to the host without files.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from purecc.concept import T5_SLOT

ALL = ("clip_l", "clip_g", "t5")
SINGLES = {"bf16, with VAE": (ALL, 4), "fp8 T5": (ALL, 4), "scaled fp8": (ALL, 5), "no T5": (ALL[:2], 4)}
SEPARATE = {
    "triple, fp16": ALL, "triple, fp8 T5": ALL, "triple, scaled fp8 T5": ALL, "dual, no T5": ALL[:2],
    "dual, clip_l and T5": ("clip_l", "t5"), "dual, clip_g and T5": ("clip_g", "t5"), "clip_l alone": ("clip_l",),
    "clip_g alone": ("clip_g",), "T5 alone": ("t5",),
}  # fmt: skip
SCALED_T5 = ("scaled fp8", "triple, scaled fp8 T5", "dual, clip_l and T5")
LAYOUTS = {"SD3 Medium": 4, "SD3.5 Large": 5, "SD3.5 Medium": 4}  # and how many blocks


@pytest.fixture(scope="module")
def seen(run_in_host: Callable[..., str]) -> dict:
    return json.loads(run_in_host("loaders.py", timeout=600).splitlines()[-1])


def reads(form: dict, encoders: tuple[str, ...], scaled_t5: bool = False) -> None:
    """A prompt becomes SD3's rows; the trigger is found in CLIP's part and in T5's; each encoder gives what it gives without files."""
    t5, clip = "t5" in encoders, encoders != ("t5",)
    assert form["rows"] == [77 * (t5 + clip), 4096] and form["pooled"] == 2048
    assert form["marked"] == ({"2": 1} if clip else {}) | ({str(77 * clip + 2): 1 + T5_SLOT} if t5 else {})
    assert form["finite"] and form["apart"].keys() == {*encoders}
    for part, apart in form["apart"].items():
        assert 1e-3 < apart < 0.2 if scaled_t5 and part == "t5" else apart < 1e-5, part
    assert form["t5 words"] == (0 if t5 else None)


def test_another_prompt_is_far_from_what_the_forms_give(seen: dict) -> None:
    assert all(apart > 0.3 for apart in seen["another prompt"].values())  # or the distances above would say nothing


@pytest.mark.parametrize("name", SINGLES)
def test_a_single_file_with_encoders(seen: dict, name: str) -> None:
    form, (encoders, blocks) = seen["single_files"][name], SINGLES[name]
    reads(form["text"], encoders, name in SCALED_T5)
    assert form["model"]["copy"] < 1e-5 and form["model"]["blocks"] == blocks


@pytest.mark.parametrize("name", SEPARATE)
def test_encoders_in_files_of_their_own(seen: dict, name: str) -> None:
    reads(seen["separate_files"][name], SEPARATE[name], name in SCALED_T5)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("file", ["single file", "alone"])
def test_a_transformer_in_scaled_fp8(seen: dict, kind: str, file: str) -> None:
    """The copy that trains predicts what the host does, and both nearly what the weights did before they were scaled."""
    form = seen["diffusion_models"][f"{kind}, {file}"]
    assert form["copy"] < 1e-5 and 1e-2 < form["whole"] < 0.1
    assert form["blocks"] == LAYOUTS[kind] and not form.get("clip")
    assert any("float8" in note for note in form["notes"])


def test_a_single_file_with_its_vae(seen: dict) -> None:
    found = seen["single_files"]["bf16, with VAE"]["vae"]
    assert found["same values"] and found["finite"]
    assert found["latents"] == [1, 16, 8, 8]


def test_a_vae_in_a_file_of_its_own(seen: dict) -> None:
    found = seen["vae_file"]
    assert "a video model's (WanVAE, 16 channels), not SD3's" in found.pop("said of another")
    assert found == seen["single_files"]["bf16, with VAE"]["vae"]


def test_input_embeddings_learn_in_both_clips_and_leave_t5(seen: dict) -> None:
    tokens = seen["separate_files"]["tokens"]
    assert tokens["widths"] == {"clip_l": [1, 768], "clip_g": [1, 1280]}
    assert tokens["size"][0] == tokens["size"][1]  # in float32: products keep no wider copy of a weight
    assert tokens["kept"][1] == pytest.approx(2 * tokens["kept"][0], rel=0.02) and tokens["kept"][0] > 0
    assert tokens["start"] < 1e-3 < 0.1 < tokens["moved"]
    assert tokens["sampled"] < 1e-3 and tokens["pooled"] < 1e-3 and tokens["t5 stays"]
    assert "no clip_l" in seen["separate_files"]["tokens, no clip_l"]
