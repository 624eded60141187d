"""The two stages as jobs: iterate for a record a step, then take the concept.

    job = ExtractorJob(...) or PureJob(...)
    for record in job: ...
    job.concept

A job whose run was finished before yields nothing and has its concept at once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import objective as eq
from .concept import T5_SLOT, Concept, ConceptEmbeddings
from .concept_set import ConceptSet
from .flow import add_noise
from .network import BASE, AdaptedNetwork
from .runs import Run, StepRecord
from .settings import TARGETS, PureSettings, TrainSettings, as_plain
from .training import EXTRACTOR, PURE, ConceptObjective, LatentScaling, Objective, PureObjective, train

_PROBE_TIMES = (0.95, 0.8, 0.6, 0.4, 0.2)  # times at which drift and the embeddings' start are measured


class Job:
    """One training run on one network."""

    stage: str
    model: str

    def __init__(
        self,
        network: AdaptedNetwork,
        data: ConceptSet,
        settings: TrainSettings,
        scaling: LatentScaling,
        root: Path,
        base: str,
        **identity: Any,
    ):
        self.network, self.data, self.settings, self.scaling, self.base = network, data, settings, scaling, base
        self._require_fit()
        everything = {"base": base, "data": data.fingerprint, "stage": self.stage, "dtype": str(network.dtype)}
        everything |= {"latent_scale": scaling.scale, "latent_shift": scaling.shift, **as_plain(settings), **identity}
        self.run = Run(root, self.stage, everything)
        self.concept: Concept | None = self.run.finished()

    def _require_fit(self) -> None:
        """Raises ValueError, before any work, where the pictures or words do not go with this network or these settings."""
        config = self.network.transformer.config
        largest = config.pos_embed_max_size * config.patch_size
        sides = sorted({tuple(example.latent.shape[1:]) for example in self.data.examples})
        for height, width in sides:
            if max(height, width) > largest:
                raise ValueError(
                    f"Pictures of {8 * width} x {8 * height} px are too large for this model, which takes at most {8 * largest} px a "
                    "side. Lower the resolution in Concept Set (the Pocket Model: 128)."
                )
        if self.settings.embeddings == "none" and self.data.tokens > 1:
            raise ValueError(
                f"Without embeddings the trigger is one token; Concept Set has {self.data.tokens}. Set tokens to 1."
            )

    def __iter__(self) -> Iterator[StepRecord]:
        if self.concept is not None:
            return
        self.prepare()
        yield from train(
            self.network, self.objective(), self.data, self.settings, self.scaling, self.run,
            train_embeddings=self.trains_embeddings(),
        )  # fmt: skip
        self.concept = self.result()
        self.run.finish(self.concept)

    def prepare(self) -> None:
        """Adds the models that the objective names to the network."""
        raise NotImplementedError

    def objective(self) -> Objective:
        raise NotImplementedError

    def trains_embeddings(self) -> bool:
        return True

    def role(self) -> str:
        return "concept"

    def result(self) -> Concept:
        settings, data = self.settings, self.data
        embeddings = self.network.embeddings.get(self.model)
        return Concept(
            trigger=data.trigger,
            class_word=data.class_word,
            kind=data.kind,
            role=self.role(),
            base=self.base,
            lora=self.network.lora_weights(self.model, settings.alpha),
            embeddings=embeddings.snapshot() if embeddings else None,
            settings=self.run.identity,
            summary=self.summary(),
        )

    def summary(self) -> dict[str, float]:
        """Means over the last tenth of the steps, and how far texts without the concept were moved."""
        records = self.run.records()
        last = records[-max(1, len(records) // 10) :]
        figures = {}
        for name in ("loss", "concept_loss", "pure_loss", "scale", "scale_spread", "squared_cosine", "representation"):
            values = [getattr(record, name) for record in last if getattr(record, name) is not None]
            if values:
                figures[name] = sum(values) / len(values)
        if EXTRACTOR in self.network.models:
            figures |= alignment(self.network, self.model, self.data, self.scaling)
        figures["drift_base"] = drift(self.network, self.model, self.data, self.scaling, "base")
        figures["drift_null"] = drift(self.network, self.model, self.data, self.scaling, "null")
        figures["seconds_per_step"] = sorted(r.seconds for r in records)[len(records) // 2]
        return {name: round(value, 6) for name, value in figures.items()}

    def _new_model(self, name: str, embeddings: ConceptEmbeddings | None) -> None:
        settings = self.settings
        self.network.add_new(name, settings.rank, settings.alpha, TARGETS[settings.targets], settings.seed)
        if embeddings is not None:
            self.network.add_embeddings(name, embeddings)

    def _initial_embeddings(self) -> ConceptEmbeddings | None:
        return initial_embeddings(self.network, self.data, self.scaling, self.settings.embeddings)


class ExtractorJob(Job):
    """Stage 1 (paper 4.2): LoRA and layer-wise embeddings learn L_CC; the result guides stage 2."""

    stage, model = "extractor", EXTRACTOR

    def prepare(self) -> None:
        self._new_model(EXTRACTOR, self._initial_embeddings())

    def objective(self) -> Objective:
        return ConceptObjective(EXTRACTOR)

    def role(self) -> str:
        return "extractor"


class PureJob(Job):
    """Stage 2 (paper 4.3, 4.4), or with `method="LoRA"` the plain baseline: the same data, seeds and steps, L_CC alone."""

    stage, model = "pure", PURE

    def __init__(
        self,
        network: AdaptedNetwork,
        data: ConceptSet,
        settings: TrainSettings,
        scaling: LatentScaling,
        root: Path,
        base: str,
        pure: PureSettings,
        extractor: Concept | None,
    ):
        if pure.method == "PureCC" and extractor is None:
            raise ValueError("PureCC needs an extractor: connect Train Extractor, or choose the method LoRA.")
        if extractor is not None and extractor.trigger.lower() != data.trigger.lower():
            raise ValueError(
                f'The extractor was trained for "{extractor.trigger}", the concept set is for "{data.trigger}".'
            )
        if extractor is not None and extractor.base != base:
            raise ValueError("The extractor was trained on another base model than the one that is connected.")
        if extractor is not None and extractor.tokens != data.tokens and extractor.embeddings is not None:
            raise ValueError(f"The extractor has {extractor.tokens} embeddings a block, the concept set {data.tokens}.")
        marked = max(int(text.marks.max()) for text in data.encoded.values())
        if extractor is not None and extractor.embeddings and marked > T5_SLOT and extractor.embeddings.t5 is None:
            raise ValueError(
                "The extractor was trained without T5, this concept set with it. Use the same CLIP for both."
            )
        mode = extractor.embeddings.mode if extractor and extractor.embeddings else settings.embeddings
        if settings.embeddings not in (mode, "none"):
            raise ValueError(f'The extractor\'s embeddings act by "{mode}"; stage 2 is set to "{settings.embeddings}".')
        self.pure, self.extractor = pure, extractor
        of_extractor = extractor.uid if extractor else None
        # what a plain LoRA does not use makes no other run of it
        own = as_plain(
            pure if pure.method == "PureCC" else PureSettings(method="LoRA", train_embeddings=pure.train_embeddings)
        )
        super().__init__(network, data, settings, scaling, root, base, **own, extractor=of_extractor)

    def prepare(self) -> None:
        embeddings = None
        if self.settings.embeddings != "none":
            embeddings = self.extractor.embeddings if self.extractor else self._initial_embeddings()
        if self.extractor:
            self.network.add_concept(EXTRACTOR, self.extractor)
        self._new_model(PURE, embeddings)

    def objective(self) -> Objective:
        return PureObjective(self.pure) if self.pure.method == "PureCC" else ConceptObjective(PURE)

    def trains_embeddings(self) -> bool:
        return self.pure.train_embeddings


def initial_embeddings(
    network: AdaptedNetwork, data: ConceptSet, scaling: LatentScaling, mode: str
) -> ConceptEmbeddings | None:
    """Where eq. 7's embeddings start: "replace" from what the base's stream holds there (a class word), "offset" from 0."""
    if mode == "none":
        return None
    held = []
    for x_t, t, indices in _probes(data, scaling, network.device):
        held.append(network.stream_at_marks(x_t, t, data.batch("complete", indices, network.device)))
    by_slot = {slot: torch.stack([one[slot] for one in held]).mean(0) for slot in held[0]}  # [blocks, width] each

    def table(first: int, end: int) -> Tensor | None:
        """[blocks, tokens, width]; a class word of several pieces shares a vector, as `ConceptEmbeddings.slot` does."""
        of_token = [
            [v for s, v in by_slot.items() if first <= s < end and (s - first) % data.tokens == j]
            for j in range(data.tokens)
        ]
        if not any(of_token):
            return None
        rows = torch.stack([torch.stack(vectors).mean(0) for vectors in of_token], dim=1).cpu()
        return torch.zeros_like(rows) if mode == "offset" else rows

    if table(0, T5_SLOT) is None:
        raise ValueError("The concept needs at least one CLIP text encoder beside T5: load CLIP-L or CLIP-G too.")
    return ConceptEmbeddings(table(0, T5_SLOT), table(T5_SLOT, 2 * T5_SLOT), mode)


@torch.no_grad()
def drift(network: AdaptedNetwork, model: str, data: ConceptSet, scaling: LatentScaling, which: str) -> float:
    """How far a model has left theta3 on texts without the concept: ||v_model - v_theta3|| / ||v_theta3||.

    `which` is "base" or "null"; noise and times are fixed.
    """
    moved = length = 0.0
    for x_t, t, indices in _probes(data, scaling, network.device):
        if which == "null":
            text = data.null(len(indices), network.device)
        else:
            text = data.batch(which, indices, network.device)
        v_base = network.velocity(x_t, t, text, BASE)
        moved += float((network.velocity(x_t, t, text, model) - v_base).square().sum())
        length += float(v_base.square().sum())
    return (moved / length) ** 0.5


@torch.no_grad()
def alignment(network: AdaptedNetwork, model: str, data: ConceptSet, scaling: LatentScaling) -> dict[str, float]:
    """What a model has learnt, held against the extractor's direction, over fixed noise and times; v_original is theta3's.

    The same for every method, so that PureCC and a plain LoRA can be compared: the means of lambda* (eqs. 11, 12),
    cos^2(R_complete, R_tar) and |R_complete| (root mean square).
    """
    scales, cosines, lengths = [], [], []
    for x_t, t, indices in _probes(data, scaling, network.device):
        target, base, complete = (
            data.batch(which, indices, network.device) for which in ("target", "base", "complete")
        )
        v_target = network.velocity(x_t, t, target, EXTRACTOR)
        guidance = eq.implicit_guidance(v_target, network.velocity(x_t, t, data.null(1, network.device), EXTRACTOR))
        v_original = network.velocity(x_t, t, base, BASE)
        learned = eq.learned_representation(network.velocity(x_t, t, complete, model), v_original)
        scales.append(float(eq.adaptive_scale(learned, guidance)))
        cosines.append(float(eq.squared_cosine(learned, guidance)))
        lengths.append(float(learned.square().mean().sqrt()))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {"end_scale": mean(scales), "end_squared_cosine": mean(cosines), "end_representation": mean(lengths)}


def _probes(
    data: ConceptSet, scaling: LatentScaling, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Fixed (x_t, t, example) for measures: every example at every probe time, one at a time."""
    generator = torch.Generator().manual_seed(20_260)
    for index, example in enumerate(data.examples):
        x0 = scaling.to_model(example.latent.float())[None]
        for time in _PROBE_TIMES:
            t = torch.tensor([time])
            noise = torch.randn(x0.shape, generator=generator)
            yield add_noise(x0, noise, t).to(device), t.to(device), [index]
