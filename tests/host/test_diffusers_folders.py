"""Load Diffusers SD3: a folder as diffusers writes it becomes MODEL, CLIP and VAE, and what is wrong with one is told."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from test_loaders import ALL, reads


@pytest.fixture(scope="module")
def seen(run_in_host: Callable[..., str]) -> dict:
    return json.loads(run_in_host("diffusers_folders.py", timeout=600).splitlines()[-1])


def test_a_folder_becomes_a_model(seen: dict) -> None:
    found = seen["whole"]
    assert "sub/my sd3.5" in found["folders"]  # of the node's list
    assert found["same weights"]
    assert found["loaded anew"] == [True] * 3
    assert found["shift"] == 2.5 and found["scaling"] == [1.5305, 0.0609]


def test_its_vae_is_the_one_of_diffusers(seen: dict) -> None:
    found = seen["whole"]
    assert found["latents"] == [1, 16, 8, 8]
    assert found["latents apart"] < 1e-3 and found["pictures apart"] < 1e-3


def test_its_three_encoders_become_a_clip(seen: dict) -> None:
    """T5 in shards; of CLIP-G the whole file, not its variant; of CLIP-L the variant, which is all there is."""
    reads(seen["whole"]["text"], ALL)


def test_t5_may_be_there_as_a_variant_in_shards(seen: dict) -> None:
    reads(seen["t5_variant"], ALL)


def test_encoders_may_be_missing(seen: dict) -> None:
    found = seen["fewer_encoders"]
    reads(found["no text_encoder_3"], ALL[:2])
    reads(found["no text_encoder_2"], ALL[:1])
    assert found["no text_encoder"] == "no CLIP"


def test_a_linked_folder_is_listed(seen: dict) -> None:
    assert "linked" in seen["linked"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("outside", "no diffusers folder"),
        ("a shard of a variant is missing", "lacks model.fp16-00002-of-00002.safetensors"),
        ("a shard is missing", "lacks diffusion_pytorch_model-00002-of-00002.safetensors"),
        ("a download that broke off", "00002-of-00002.safetensors is not whole; download it again"),
        ("a pointer in its place", "00002-of-00002.safetensors is not whole; download it again"),
        ("bin files", "no .safetensors file"),
        ("another pipeline", "holds a FluxPipeline"),
    ],
)
def test_what_it_cannot_take_is_told(seen: dict, case: str, words: str) -> None:
    assert words in seen["refusals"][case]
