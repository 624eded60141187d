"""GPU memory of a training run with SD3 and SD3.5, as it is told before a run; measured too where there is a CUDA GPU.

    python -m benchmarks.memory

The tests compare the same figures with the bytes alive in real steps, on the CPU and without storage (tests/unit/test_memory.py).
"""

from dataclasses import dataclass

import torch

from purecc.memory import Inputs, estimate, in_words
from purecc.settings import PureSettings, TrainSettings

from .speed import RANK, REAL, Bench

TEXT_ROWS = 77 + 77
SAVINGS = {
    "as it comes": {},
    "checkpointing": {"checkpointing": True},
    "checkpointing, modulation_table": {"checkpointing": True, "modulation_table": True},
    "the same, batch 1": {"checkpointing": True, "modulation_table": True, "batch_size": 1},
}


@dataclass(frozen=True)
class Model:
    """What tells the published transformers apart."""

    layers: int
    dual: int
    positions: int
    qk_norm: bool

    @property
    def config(self) -> dict:
        return {
            "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": self.layers, "attention_head_dim": 64,
            "num_attention_heads": self.layers, "joint_attention_dim": 4096, "caption_projection_dim": 64 * self.layers,
            "pooled_projection_dim": 2048, "pos_embed_max_size": self.positions, "sample_size": self.positions,
            "dual_attention_layers": tuple(range(self.dual)), "qk_norm": "rms_norm" if self.qk_norm else None,
        }  # fmt: skip


MODELS = {
    "SD3.5 Medium": Model(24, 13, 384, True),
    "SD3.5 Large": Model(38, 0, 192, True),
    "SD3 Medium": Model(24, 0, 192, False),
}


def told(model: Model, pixels: int, stage: int, changed: dict) -> str:
    """Of a stage in bfloat16 on CUDA, rank 4."""
    inputs = Inputs((pixels // 16) ** 2, TEXT_ROWS)
    pure = PureSettings() if stage == 2 else None
    return in_words(estimate(model.config, inputs, TrainSettings(**changed), pure, torch.bfloat16).peak)


def on_this_gpu() -> list[str]:
    """A stage-2 step of the real size with random weights, by the allocator, beside the estimate."""
    bench, rows = Bench(REAL), []
    transformer = bench.product.transformer
    weights = sum(p.nbytes for p in transformer.parameters() if not p.requires_grad)
    for checkpointing in (False, True):
        bench.product.checkpoint_activations(checkpointing)
        inputs = Inputs((REAL.pixels // 16) ** 2, REAL.clip_tokens + REAL.t5_tokens)
        settings = TrainSettings(rank=RANK, embeddings="none", checkpointing=checkpointing)
        expected = estimate(transformer.config, inputs, settings, PureSettings(), torch.bfloat16)
        found = weights + bench.peak("D")
        rows.append(
            f"checkpointing {checkpointing}: estimated {in_words(expected.peak)}, measured {in_words(found)} "
            f"({expected.peak / found - 1:+.0%})"
        )
    return rows


def main() -> None:
    for pixels in (512, 1024):
        print(f"\n{pixels} px, {TEXT_ROWS} text rows, bfloat16, batch 2: estimated, stage 1 / stage 2")
        for name, model in MODELS.items():
            for saving, changed in SAVINGS.items():
                print(f"{name:14} {saving:34} {told(model, pixels, 1, changed):>8} / {told(model, pixels, 2, changed)}")
    if torch.cuda.is_available():
        print(f"\nmeasured on {torch.cuda.get_device_name()}, SD3.5 Medium's size with random weights, stage 2:")
        print("\n".join(on_this_gpu()))
    else:
        print(
            "\nNot measured: there is no CUDA GPU here. The estimate leaves out what an allocator loses (a few percent)."
        )


if __name__ == "__main__":
    main()
