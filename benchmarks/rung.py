"""A network of some size with some of the savings of `purecc.savings`, and a step on it: what memory.py and the tests measure."""

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from purecc.adaln_table import UNFORESEEN, WINDOW, ModulationTable
from purecc.batches import Batch
from purecc.encoding import TextBatch
from purecc.forwards import SAMPLES
from purecc.frozen import store, stream
from purecc.memory import Estimate, Inputs, estimate
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.recorded import Recorder
from purecc.settings import PureSettings, TrainSettings
from purecc.targets import lora_modules
from purecc.terms import extractor_objective, pure_objective

from .live_bytes import LiveBytes
from .speed import RANK, TEXTS
from .stand_ins import Size, flops_of, transformer_of, with_anchors

_STEPS = 64  # whose times a rung knows ahead, for the table of adaLN's outputs
_COUNTED: dict[tuple, int] = {}  # FLOPs of a step


class Rung:
    """A network with some savings, and a step of a form on inputs of random numbers; `pure`: None for stage 1."""

    def __init__(self, size: Size, settings: TrainSettings, pure: PureSettings | None):
        self.size, self.pure, self.number = size, pure, 0
        self.settings = replace(settings, rank=RANK, embeddings="none", batch_size=size.batch)
        torch.manual_seed(0)
        transformer = transformer_of(size).requires_grad_(False)
        if settings.frozen_weights != "whole" or settings.stream_blocks:
            store(transformer, settings.frozen_weights)
        self.frozen = sum(of.nbytes for of in (*transformer.parameters(), *transformer.buffers()))  # wherever they are
        if settings.stream_blocks:
            stream(transformer, size.device)
        self.times = torch.rand(_STEPS, size.batch)
        self.live = LiveBytes()  # on a CPU: of all but the transformer
        with self.live:
            self.batch = with_anchors(self._batch())
        if settings.modulation_table:
            pooled = {which: getattr(self.batch, which).pooled.cpu() for which in TEXTS}
            of_step = lambda number: {which: (self.times[number - 1], own) for which, own in pooled.items()}  # noqa: E731
            ModulationTable(transformer, of_step, _STEPS)  # a scene's times and texts are the batch's first
        self.network = AdaptedNetwork(transformer)
        self.network.checkpoint_activations(settings.checkpointing)
        modules = lora_modules(transformer, "attention")
        self.model = EXTRACTOR if pure is None else PURE
        models = (EXTRACTOR, PURE) if pure is not None and pure.is_pure else (self.model,)
        with self.live:
            for seed, model in enumerate(models):
                self.network.add_new(model, RANK, float(RANK), modules, seed)
        self.learning = self.network.lora_parameters(self.model)
        transformer.requires_grad_(False)
        for parameter in self.learning:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4)
        self.objective = pure_objective(self.pure) if self.pure is not None else extractor_objective()
        self.recorder = Recorder(self.objective, self.network, self.settings, self.learning)

    def _batch(self) -> Batch:
        size, side = self.size, self.size.pixels // 8
        of = lambda *shape: torch.randn(size.batch, *shape, device=size.device)  # noqa: E731
        rows = size.clip_tokens + size.t5_tokens
        marks = torch.zeros(size.batch, rows, dtype=torch.int64, device="cpu")
        texts = {which: TextBatch(of(rows, size.joint), of(size.pooled), marks) for which in TEXTS}
        t = self.times[0].to(size.device)
        return Batch(of(16, side, side), t, of(16, side, side), class_word=texts["target"], **texts)

    @torch.no_grad()
    def look(self) -> None:
        """As many forwards of no step as keep their outputs of adaLN: scenes, the search for the concept, a job's figures."""
        x_t, text = self.batch.x_t[:1], self.batch.base
        rows, pooled, marks = (
            of[:1].repeat(SAMPLES, *[1] * (of.ndim - 1)) for of in (text.rows, text.pooled, text.marks)
        )
        for number in range(count := UNFORESEEN // SAMPLES):
            t = torch.full((SAMPLES,), (number + 0.5) / count, device=x_t.device)
            self.network.velocity(x_t.repeat(SAMPLES, 1, 1, 1), t, TextBatch(rows, pooled, marks), BASE)

    def step(self, recorded: bool = True) -> Tensor:
        """As a training runs it: on CUDA recorded, where that is possible."""
        t = self.times[self.number].to(self.size.device)
        scene = replace(self.batch.scene, t=t[: len(self.batch.scene.t)])
        batch = replace(self.batch, t=t, scene=scene)
        if recorded:
            loss = self.recorder.descend(batch)["loss"]
        else:
            loss = self.objective.descend(self.network, batch, scenes_apart=self.settings.scenes_apart)["loss"]
        nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        return loss

    def estimated(self) -> Estimate:
        inputs = Inputs((self.size.pixels // 16) ** 2, self.size.clip_tokens + self.size.t5_tokens)
        device = torch.device(self.size.device).type
        return estimate(self.network.transformer.config, inputs, self.settings, self.pure, self.size.dtype, device)

    def flops(self) -> int:
        """Of a step: the same for all rungs that compute the same, however their base is stored."""
        what = self.size.name, self.size.pixels, self.pure, self.settings.checkpointing, self.settings.scenes_apart
        if what not in _COUNTED:
            _COUNTED[what] = flops_of(lambda: self.step(recorded=False))
        return _COUNTED[what]

    def peak(self) -> int:
        """Bytes, the forwards before the first step too: by the allocator of all on CUDA, alive beside the weights on a CPU."""
        if self.size.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before_and_two_steps()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        with self.live:
            self._before_and_two_steps()
        return self.live.peak

    def seconds(self) -> float:
        """Of a step, after `peak`. On CUDA as many are timed as the table of adaLN's outputs is computed ahead for, at its end once anew."""
        if self.size.device == "cpu":
            start = time.process_time()
            self.step()
            return time.process_time() - start
        repeats = WINDOW if self.settings.modulation_table else 8
        self.step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            self.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    def _before_and_two_steps(self) -> None:
        """After the second AdamW's moments have been there in a step."""
        self.look()
        self.step()
        self.step()

    def release(self) -> None:
        self.recorder.clear()
        self.network.transformer.to("meta")
