"""GPU memory of a training run with SD3 and SD3.5, as it is told before a run; measured too where there is a CUDA GPU.

    python -m benchmarks.memory

The tests compare the same figures with the bytes alive in real steps, on the CPU and without storage (tests/unit/test_memory.py).
On CUDA each rung of `purecc.savings` runs at SD3.5 Medium's size with random weights: its peak by the allocator, and its time.
"""

import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from purecc.adaln_table import ModulationTable
from purecc.batches import Batch
from purecc.encoding import TextBatch
from purecc.frozen import store, stream
from purecc.memory import Estimate, Inputs, estimate, in_words
from purecc.network import EXTRACTOR, PURE, AdaptedNetwork
from purecc.savings import LADDER, Room, plan, turned_on
from purecc.settings import MEMORIES, PureSettings, TrainSettings
from purecc.targets import lora_modules
from purecc.terms import extractor_objective, pure_objective

from .live_bytes import LiveBytes
from .speed import RANK, TEXTS
from .stand_ins import REAL, Size, transformer_of

TEXT_ROWS = 77 + 77
AMPLE = 10**12  # bytes


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


def told(model: Model, pixels: int, stage: int, settings: TrainSettings) -> Estimate:
    """Of a stage in bfloat16 on CUDA, rank 4."""
    inputs = Inputs((pixels // 16) ** 2, TEXT_ROWS)
    return estimate(model.config, inputs, settings, PureSettings() if stage == 2 else None, torch.bfloat16)


def words_for(changes: dict) -> str:
    return turned_on(TrainSettings(), TrainSettings(**changes)).replace(" (not quite the same result)", "") or "nothing"


def estimated(pixels: int) -> list[str]:
    """A table of the rungs: GPU memory of the stages by model."""
    rows = [
        f"| turned on, {pixels} px | {' | '.join(MODELS)} | main memory (SD3.5 Medium) |",
        "|---|" + "---|" * (len(MODELS) + 1),
    ]
    for changes in LADDER:
        both = {
            name: [told(model, pixels, stage, TrainSettings(**changes)) for stage in (1, 2)]
            for name, model in MODELS.items()
        }
        cells = [" / ".join(in_words(one.peak) for one in pair) for pair in both.values()]
        host = max(both["SD3.5 Medium"], key=lambda one: one.host).host
        rows.append(f"| {words_for(changes)} | {' | '.join(cells)} | {in_words(host) if host else ''} |")
    return rows


def sizes(pixels: int) -> list[str]:
    """A table of the setting `memory`: what stage 2 gets on a card of that size."""
    rows = [f"| memory, {pixels} px | {' | '.join(MODELS)} |", "|---|" + "---|" * len(MODELS)]
    for memory in MEMORIES[1:-1]:
        cells = []
        for model in MODELS.values():
            settings = TrainSettings(memory=memory)
            try:
                chosen = plan(lambda s, model=model: told(model, pixels, 2, s), settings, Room("cuda", AMPLE, AMPLE))
                on = turned_on(settings, chosen.settings).replace(" (not quite the same result)", "") or "nothing"
                cells.append(f"{on}: {in_words(chosen.needed.peak)}")
            except ValueError:
                cells.append("too little")
        rows.append(f"| {memory} | {' | '.join(cells)} |")
    return rows


@dataclass(frozen=True)
class Measured:
    """Of one step."""

    peak: int  # bytes: of all on CUDA, beside the weights on a CPU
    seconds: float


class Rung:
    """A network with some savings, and a step of a stage on inputs of random numbers."""

    def __init__(self, size: Size, changes: dict, stage: int):
        self.size, self.settings, self.stage = size, TrainSettings(rank=RANK, embeddings="none", **changes), stage
        torch.manual_seed(0)
        transformer = transformer_of(size).requires_grad_(False)
        if self.settings.frozen_weights != "whole" or self.settings.stream_blocks:
            store(transformer, self.settings.frozen_weights)
        if self.settings.stream_blocks:
            stream(transformer, size.device)
        self.batch = self._batch()
        if self.settings.modulation_table:
            texts = {which: (self.batch.t.cpu(), getattr(self.batch, which).pooled.cpu()) for which in TEXTS}
            ModulationTable(transformer, lambda number: texts, steps=1)
        self.network = AdaptedNetwork(transformer)
        self.network.checkpoint_activations(self.settings.checkpointing)
        modules = lora_modules(transformer, "attention")
        self.model = PURE if stage == 2 else EXTRACTOR
        for seed, model in enumerate((EXTRACTOR, PURE)[:stage]):
            self.network.add_new(model, RANK, float(RANK), modules, seed)
        self.learning = self.network.lora_parameters(self.model)
        transformer.requires_grad_(False)
        for parameter in self.learning:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4)

    def _batch(self) -> Batch:
        size, side = self.size, self.size.pixels // 8
        of = lambda *shape: torch.randn(size.batch, *shape, device=size.device)  # noqa: E731
        rows = size.clip_tokens + size.t5_tokens
        marks = torch.zeros(size.batch, rows, dtype=torch.int64, device="cpu")
        texts = {which: TextBatch(of(rows, size.joint), of(size.pooled), marks) for which in TEXTS}
        t = torch.rand(size.batch, device=size.device)
        return Batch(of(16, side, side), t, of(16, side, side), class_word=texts["target"], **texts)

    def step(self) -> Tensor:
        objective = pure_objective(PureSettings()) if self.stage == 2 else extractor_objective()
        loss = objective.terms(self.network, self.batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def estimated(self) -> Estimate:
        inputs = Inputs((self.size.pixels // 16) ** 2, self.size.clip_tokens + self.size.t5_tokens)
        pure, device = PureSettings() if self.stage == 2 else None, torch.device(self.size.device).type
        settings = replace(self.settings, batch_size=self.size.batch)
        return estimate(self.network.transformer.config, inputs, settings, pure, self.size.dtype, device)

    def measured(self, repeats: int = 5) -> Measured:
        self.step()
        if self.size.device == "cpu":
            start = time.process_time()
            with LiveBytes() as live:
                self.step()
            return Measured(live.peak, time.process_time() - start)
        self.step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(repeats):
            self.step()
        torch.cuda.synchronize()
        return Measured(torch.cuda.max_memory_allocated(), (time.perf_counter() - start) / repeats)


def on_this_gpu(pixels: int) -> list[str]:
    """A table of every rung: estimated, by the allocator, seconds a step. The table of positions is whole: 0.45 GB more."""
    size, rows = (
        replace(REAL, pixels=pixels),
        ["| turned on | stage | estimated | allocated | | s a step |", "|---|" * 6],
    )
    for changes in LADDER:
        for stage in (1, 2):
            rung = Rung(size, changes, stage)
            whole_table = 2 * (384**2 - (pixels // 16) ** 2) * 1536  # the nodes cut it
            found, expected = rung.measured(), rung.estimated().peak + whole_table
            del rung
            torch.cuda.empty_cache()
            rows.append(
                f"| {words_for(changes)} | {stage} | {in_words(expected)} | {in_words(found.peak)} | "
                f"{expected / found.peak - 1:+.0%} | {found.seconds:.3f} |"
            )
    return rows


def main() -> None:
    for pixels in (512, 1024):
        print(
            f"\nEstimated: {TEXT_ROWS} text rows, bfloat16, batch 2, stage 1 / stage 2\n", *estimated(pixels), sep="\n"
        )
        print("\nThe setting memory: stage 2\n", *sizes(pixels), sep="\n")
    if not torch.cuda.is_available():
        print("\nNot measured: there is no CUDA GPU here. What an allocator loses (a few percent) comes on top.")
        return
    for pixels in (512, 1024):
        print(f"\nMeasured on {torch.cuda.get_device_name()}, SD3.5 Medium's size, random weights, {pixels} px:\n")
        print(*on_this_gpu(pixels), sep="\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
