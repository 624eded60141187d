"""The host's MODEL, CLIP and VAE, with concepts on them, against diffusers, transformers and the core's own network.

The checks run in one host process (parity/run.py), float32, on the bundled model. Each figure is an error with the size of
the effect that it is an error of; a check without an effect could not fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from purecc.pocket.model import WEIGHTS

LEVELS = "picture, levels of 255"
CHECKS = {
    "of_pocket": (
        "prediction",
        "text",
        "pictures",
        "sampling",
        "previews",
        "conversion",
        "float8",
        "loaded_anew",
        "facts",
    ),
    "of_triggers": ("triggers", "codes", "training_text", "real_tokenizers"),
    "of_concepts": ("lora", "embeddings", "base_is_kept", "span", "several_concepts", "shapes"),
    "of_tokens": (
        "token_embeddings",
        "token_training",
        "token_training_under_dynamic_vram",
        "token_training_beside_another",
        "token_export",
    ),
    "of_gates": (
        "gate_rows",
        "gate_picture",
        "gate_in_a_linear",
        "gate_in_few_kernels",
        "gate_choices",
        "gate_beside_a_lora",
    ),
    "of_guider": ("guider_without_lambda", "guider_integrates_v_purecc", "guider_beside_concepts_and_messages"),
    "of_holding": (
        "surroundings",
        "a_look",
        "surroundings_of_two",
        "surroundings_whoever_asks",
        "inpainting",
        "training_previews",
    ),
    "of_identity": (
        "identity_of_a_concept_set",
        "identity_of_the_same_captions",
        "identity_where_code_of_others_takes_part",
    ),
    "of_settings": (
        "settings_win_over_faces_and_presets_over_both",
        "settings_by_their_names",
        "stage_two_has_the_extractors_embeddings",
    ),
    "of_wiring": ("other_nodes", "compiled_networks", "packed_weights", "messages", "lora_files"),
    "of_session": (
        "session_of_training",
        "folders",
        "files_of_others",
        "reports",
        "cancel_while_it_encodes",
        "memory_of_a_vae",
    ),
}
NAMES = [name for names in CHECKS.values() for name in names]


@pytest.fixture(scope="module")
def seen(run_in_each_host: Callable[..., str]) -> dict[str, dict]:
    """check -> {"figures": {case: (error, effect)}, "sentences": {sentence: holds}}"""
    return json.loads(run_in_each_host("parity/run.py", WEIGHTS).splitlines()[-1])


def test_every_check_is_listed(seen: dict[str, dict]) -> None:
    assert sorted(seen) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parity(seen: dict[str, dict], name: str) -> None:
    for case, (error, effect) in seen[name]["figures"].items():
        print(f"{case}: error {error:.1e}, effect {effect:.3f}")
        limit, least = (1.0, 3.0) if case == LEVELS else (1e-5, 1e-3)
        assert error <= limit, case
        assert effect >= least, f"{case}: so small an effect shows nothing"
    failed = [sentence for sentence, holds in seen[name]["sentences"].items() if not holds]
    assert not failed, "\n".join(failed)
    assert seen[name]["figures"] or seen[name]["sentences"]
