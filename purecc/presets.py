"""Named settings: the paper's (arXiv 2603.07561) and those of its public code, as far as each of them states its own."""

from dataclasses import dataclass, field
from typing import Any

#: Pure Learning's face, where it does not begin as PureSettings does
ON_FACE = {"eta": 0.0, "background_anchor": 3.0, "scene_anchor": 0.5}
#: that and what Settings begins with: the form that ships, chosen by PocketBench (benchmarks/pocketbench/README.md)
SHIPPED = {**ON_FACE, "scene_concept": 0.25, "background_loss": 0.1}

_BOTH = {
    "batch_size": 2, "learning_rate": 1e-4, "rank": 4, "alpha": 4.0, "targets": "attention", "gate": "off",
    "times": "diffusers grid", "shift": 3.0, "first_block": 0, "last_block": None, "background_weight": 1.0,
    "token_embeddings": False, "schedule": "constant", "warmup": 0, "accumulate": 1, "stop_patience": 0, "weight_decay": 1e-4,
    "max_grad_norm": 1.0,
}  # fmt: skip
_METHOD = {
    "method": "PureCC", "original": "trainable", "target": "null-relative", "eta_schedule": "constant",
    "scale_multiplier": 1.0, "scale_min": None, "scale_max": None, "base_anchor": 0.0, "null_anchor": 0.0,
    "background_anchor": 0.0, "background_loss": 1.0, "scene_anchor": 0.0, "scene_concept": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """Values of settings by name; what is not named stays as a person set it."""

    extractor: dict[str, Any] = field(default_factory=dict)  # of TrainSettings, in stage 1
    pure: dict[str, Any] = field(default_factory=dict)  # of TrainSettings, in stage 2
    method: dict[str, Any] = field(default_factory=dict)  # of PureSettings
    extractor_lora: bool | None = None  # whether the extractor's LoRA guides, beside its embeddings


PRESETS = {
    "as shown": Preset(),
    # sections 4.2 to 4.4, algorithm 1, table 6; the rate of its embeddings is not told: it stays as the nodes show
    "paper": Preset(
        extractor={**_BOTH, "steps": 400, "embeddings": "replace"},
        pure={**_BOTH, "steps": 400},
        method={**_METHOD, "eta": 1.0, "fixed_scale": None, "train_embeddings": True},
        extractor_lora=True,
    ),
    # one token in the CLIPs' vocabulary; its extractor guides with that alone
    "public code": Preset(
        extractor={
            **_BOTH,
            "steps": 400,
            "batch_size": 4,
            "embeddings": "none",
            "token_embeddings": True,
            "embedding_rate": 5e-3,
        },
        pure={**_BOTH, "steps": 800, "batch_size": 4},
        method={**_METHOD, "eta": 2.0, "fixed_scale": 1.0, "train_embeddings": False},
        extractor_lora=False,
    ),
}
