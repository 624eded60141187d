"""Every form in which people have SD3 and SD3.5: read by the host's loaders, it becomes a network that predicts the same.

Files have the published names and shapes (sd3_files.py) at a reduced width; one model is at full size, without storage.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

CONFIGS = {
    "SD3 Medium": {"num_layers": 4, "dual_attention_layers": [], "qk_norm": None, "pos_embed_max_size": 192},
    "SD3.5 Large": {"num_layers": 5, "dual_attention_layers": [], "qk_norm": "rms_norm", "pos_embed_max_size": 192},
    "SD3.5 Medium": {
        "num_layers": 4,
        "dual_attention_layers": [0, 1],
        "qk_norm": "rms_norm",
        "pos_embed_max_size": 384,
    },
}


@pytest.fixture(scope="module")
def seen(run_in_each_host: Callable[..., str]) -> dict:
    return json.loads(run_in_each_host("forms/run.py", timeout=600).splitlines()[-1])


def same_prediction(form: dict) -> None:
    assert form["error"] < 1e-5
    assert form["effect"] > 1e-2  # or an error of nothing would pass


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("file", ["single file", "diffusion model alone"])
def test_a_layout_is_inferred_from_the_weights(seen: dict, name: str, file: str) -> None:
    form = seen["layouts"][f"{name}, {file}"]
    assert form["config"] == CONFIGS[name]
    same_prediction(form)
    assert form["linears"]["attention"] == 8 * CONFIGS[name]["num_layers"] - 1


def test_one_model_in_two_files_has_one_fingerprint(seen: dict) -> None:
    forms = seen["layouts"]
    marks = {name: forms[f"{name}, single file"]["fingerprint"] for name in CONFIGS}
    assert all(forms[f"{name}, diffusion model alone"]["fingerprint"] == mark for name, mark in marks.items())
    assert len(set(marks.values())) == 3


def test_a_single_file_without_encoders_gives_no_clip(seen: dict) -> None:
    assert not any(form["clip"] for form in seen["layouts"].values() if "clip" in form)


def test_the_table_of_positions_is_cut_to_the_pictures(seen: dict) -> None:
    form = seen["layouts"]["SD3.5 Medium, diffusion model alone"]
    assert form["table"] == 8 and form["config"]["pos_embed_max_size"] == 384


@pytest.mark.parametrize("name", ["float8 by the loader", "scaled float8 file"])
def test_float8_is_read_and_told(seen: dict, name: str) -> None:
    same_prediction(seen["dtypes"][name])
    assert any("float8" in note for note in seen["dtypes"][name]["notes"])


@pytest.mark.parametrize("streamed", ["", ", streamed"])
@pytest.mark.parametrize(("storage", "least", "most"), [("whole", 0, 1e-5), ("float8", 1e-3, 0.1), ("nf4", 1e-2, 0.3)])
def test_the_copy_may_be_stored_in_fewer_bytes(seen: dict, storage: str, least: float, most: float, streamed) -> None:
    form = seen["dtypes"][f"stored as {storage}{streamed}"]
    assert least <= form["error"] < most
    assert form["error"] == seen["dtypes"][f"stored as {storage}"]["error"]


def test_quantised_layers_are_read_and_told(seen: dict) -> None:
    """The host's Linears of such files are no Linears of PyTorch, and newer hosts put more into the state dict than is theirs."""
    found = seen["quantised_layers"]
    assert found["linears"] > 40 and found["kind"] == "QuantizedTensor"
    for form in (found["read"], found["newer"], found["in a whole checkpoint"]):
        same_prediction(form)
        assert any("quantised" in note for note in form["notes"])
    assert found["trained"]["moved"] > 0


def test_a_concept_acts_on_quantised_layers(seen: dict) -> None:
    found = seen["quantised_layers"]
    assert "(with LoRAs on it)" in found["with a concept"]["fingerprint"]
    assert "LoRA" not in found["with a concept"]["base"]
    same_prediction(found["gate"])
    drawn = found["in the weights"]  # which the host quantises again, and loses some of it
    assert 1e-2 < drawn["effect"] and drawn["error"] < drawn["effect"] / 2


def test_layers_that_scale_what_comes_in_are_refused(seen: dict) -> None:
    assert "packed" in seen["quantised_layers"]["smoothed"]


def test_float16_is_widened_and_told(seen: dict) -> None:
    form = seen["dtypes"]["float16"]
    assert form["exact"]
    assert any("float16" in note and "float32" in note for note in form["notes"])


@pytest.mark.parametrize("storage", ["whole", "float8"])
def test_a_scaled_float8_file_trains(seen: dict, storage: str) -> None:
    found = seen["dtypes"]["trained"][storage]
    assert len(found["losses"]) == 2 and all(0 < loss < 100 for loss in found["losses"]) and found["moved"] > 0
    assert found["settings"].get("frozen_weights", "whole") == storage


def test_the_concepts_file_tells_of_a_lora_on_the_model(seen: dict) -> None:
    found = seen["with_lora"]["trained"]
    assert "(with LoRAs on it)" in found["base"] and found["moved"] > 0
    assert "LoRA" not in seen["dtypes"]["trained"]["whole"]["base"]


def test_packed_weights_are_refused_with_what_to_load(seen: dict) -> None:
    assert "packed" in seen["dtypes"]["packed"] and "GGUF" in seen["dtypes"]["packed"]


def test_a_lora_on_the_model_is_trained_on_top_of_and_told(seen: dict) -> None:
    without, with_ = seen["with_lora"]["without"], seen["with_lora"]["with"]
    same_prediction(with_)
    assert "(with LoRAs on it)" in with_["fingerprint"]
    assert "LoRA" not in without["fingerprint"] and not without["notes"]
    assert any("LoRAs on the model count as part" in note for note in with_["notes"])


def test_sd35_medium_at_full_size(seen: dict) -> None:
    found = seen["full_size"]
    assert found["kind"] == "SD3"
    assert found["parameters"] == pytest.approx(2.243e9, rel=1e-3)
    assert found["linears"] == {"attention": 191, "attention and attn2": 191 + 52}
    assert found["table"] == [1, 48 * 48, 1536]
    config = found["config"]
    assert config["num_layers"] == config["num_attention_heads"] == 24
    assert config["dual_attention_layers"] == list(range(13))
    assert (config["joint_attention_dim"], config["pooled_projection_dim"], config["in_channels"]) == (4096, 2048, 16)


@pytest.mark.parametrize("kind", ["Flux", "SDXL"])
def test_another_type_is_named(seen: dict, kind: str) -> None:
    """By the copy, and by both nodes that train, before anything else is said of it."""
    assert len(seen["others"][kind]) == 3 and all(f"of the type {kind};" in said for said in seen["others"][kind])


def test_a_vae_that_overflows_in_float16_is_used_in_float32(seen: dict) -> None:
    found = seen["half_vae"]
    assert not found["stock"] and not found["stock picture"]  # or the next lines could not fail
    assert found["latents"] < 0.01 and found["pictures"] < 0.01  # its weights are float16's
    assert found["dtype"] == ["torch.float16"] * 2


def test_what_is_not_finite_is_told(seen: dict) -> None:
    said = seen["broken_vae"]
    assert "not finite" in said["encode"] and "another file" in said["encode"]
    assert "not finite" in said["decode"] and "another file" in said["decode"]
    assert "training has diverged" in said["diverged"]
