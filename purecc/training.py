"""The training loop of both stages, and what differs between them: an objective.

One step: pick pictures, draw noise and times (eq. 1), ask the objective for its loss, step AdamW, record. All chance
comes from (seed, step) alone, so a run that was stopped goes on bit for bit.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from . import objective as eq
from .concept_set import ConceptSet
from .encoding import TextBatch
from .files import load_optimizer_tensors, optimizer_tensors
from .flow import add_noise, sample_times, velocity
from .network import BASE, AdaptedNetwork
from .runs import Run, StepRecord
from .settings import PureSettings, TrainSettings

EXTRACTOR, PURE = "extractor", "pure"  # theta1, theta2


@dataclass(frozen=True)
class LatentScaling:
    """From an autoencoder's latents to the model's: (z - shift) * scale."""

    scale: float
    shift: float

    def to_model(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.scale

    def to_autoencoder(self, x0: Tensor) -> Tensor:
        return x0 / self.scale + self.shift


@dataclass(frozen=True)
class Batch:
    """One step's inputs, on the network's device."""

    x_t: Tensor  # [batch, channels, height, width]
    t: Tensor  # [batch]
    v_true: Tensor  # noise - x0
    complete: TextBatch
    base: TextBatch
    target: TextBatch
    null: TextBatch


@dataclass(frozen=True)
class Terms:
    """A loss to descend and what goes into the record."""

    loss: Tensor
    measured: dict[str, Tensor]  # fields of StepRecord


class Objective(Protocol):
    model: str  # whose weights learn

    def terms(self, network: AdaptedNetwork, batch: Batch) -> Terms: ...


@dataclass(frozen=True)
class ConceptObjective:
    """L_CC alone (eq. 3): stage 1, and the plain LoRA baseline."""

    model: str

    def terms(self, network: AdaptedNetwork, batch: Batch) -> Terms:
        v_complete = network.velocity(batch.x_t, batch.t, batch.complete, self.model)
        loss = eq.concept_loss(v_complete, batch.v_true)
        return Terms(loss, {"concept_loss": loss})


@dataclass(frozen=True)
class PureObjective:
    """L_PCC = L_CC + eta L_PureCC (eqs. 8 to 15, algorithm 1)."""

    settings: PureSettings
    model: str = PURE

    def terms(self, network: AdaptedNetwork, batch: Batch) -> Terms:
        size, settings = len(batch.t), self.settings
        with torch.no_grad():  # first, so that one model is routed at a time and no graph is kept meanwhile
            both = network.velocity(
                torch.cat([batch.x_t] * 2), torch.cat([batch.t] * 2), batch.target + batch.null, EXTRACTOR
            )
            guidance = eq.implicit_guidance(both[:size], both[size:])
            if settings.original != "trainable":
                source = BASE if settings.original == "frozen base" else self.model
                v_original = network.velocity(batch.x_t, batch.t, batch.base, source)
        v_complete = network.velocity(batch.x_t, batch.t, batch.complete, self.model)
        if settings.original == "trainable":
            v_original = network.velocity(batch.x_t, batch.t, batch.base, self.model)

        representation = eq.learned_representation(v_complete, v_original)
        if settings.fixed_scale is None:
            scale = eq.adaptive_scale(representation, guidance)
        else:
            scale = torch.full((size,), settings.fixed_scale, device=guidance.device)
        loss_concept = eq.concept_loss(v_complete, batch.v_true)
        loss_pure = eq.pure_loss(eq.pure_velocity(v_original, scale, guidance), v_complete)
        return Terms(
            eq.total_loss(loss_concept, loss_pure, settings.eta),
            {
                "concept_loss": loss_concept,
                "pure_loss": loss_pure,
                "scale": scale.mean(),
                "scale_spread": scale.std(correction=0),
                "squared_cosine": eq.squared_cosine(representation, guidance).mean(),
                "representation": representation.square().mean().sqrt(),
            },
        )


def train(
    network: AdaptedNetwork,
    objective: Objective,
    data: ConceptSet,
    settings: TrainSettings,
    scaling: LatentScaling,
    run: Run,
    *,
    train_embeddings: bool = True,
) -> Iterator[StepRecord]:
    """Trains `objective.model`, yielding a record a step; goes on from the run's checkpoint.

    Raises FloatingPointError where the loss is not finite. A consumer that stops early (or raises) leaves a checkpoint
    of the last step behind.
    """
    parameters = _parameters(network, objective.model, train_embeddings)
    learned = [p for group in parameters.values() for p in group]
    if not learned:
        raise ValueError('Nothing would learn: embeddings are "none" or frozen, and there is no LoRA.')
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters["lora"], "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
            {"params": parameters["embeddings"], "lr": settings.embedding_rate, "weight_decay": 0.0},
        ]
    )
    run.begin()
    done, tensors = run.load_checkpoint()
    if done:
        for i, parameter in enumerate(learned):
            parameter.data.copy_(tensors[f"parameter.{i}"])
        load_optimizer_tensors(optimizer, tensors)

    def save(step: int) -> None:
        own = {f"parameter.{i}": parameter for i, parameter in enumerate(learned)}
        run.save_checkpoint(step, own | optimizer_tensors(optimizer))

    saved = done
    try:
        for step in range(done + 1, settings.steps + 1):
            start = time.perf_counter()
            terms = objective.terms(network, draw_batch(data, settings, scaling, step, network.device))
            if not torch.isfinite(terms.loss):
                raise FloatingPointError(
                    f"The loss is not finite at step {step}. Lower the learning rate ({settings.learning_rate:g}) or the "
                    f"embedding rate ({settings.embedding_rate:g}), or use float32 or bfloat16."
                )
            terms.loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step
            values = torch.stack([terms.loss.detach(), *(v.detach().float() for v in terms.measured.values())]).tolist()
            measured = dict(zip(("loss", *terms.measured), values, strict=True))
            record = StepRecord(step, **measured, seconds=round(time.perf_counter() - start, 4))
            run.add(record)
            if step % settings.checkpoint_every == 0 and step < settings.steps:
                save(step)
                saved = step
            yield record
    finally:
        if saved < done:
            save(done)


def _parameters(network: AdaptedNetwork, model: str, train_embeddings: bool) -> dict[str, list[nn.Parameter]]:
    """What learns, in a fixed order; everything else is frozen."""
    for name, embeddings in network.embeddings.items():
        embeddings.requires_grad_(name == model and train_embeddings)
    for parameter in network.transformer.parameters():
        parameter.requires_grad_(False)
    lora = network.lora_parameters(model)
    for parameter in lora:
        parameter.requires_grad_(True)
    embeddings = network.embeddings.get(model)
    return {"lora": lora, "embeddings": list(embeddings.parameters()) if embeddings and train_embeddings else []}


def draw_batch(
    data: ConceptSet, settings: TrainSettings, scaling: LatentScaling, step: int, device: torch.device | str
) -> Batch:
    """The inputs of one step (counted from 1), a function of (seed, step) alone; drawn on the CPU, alike on any device."""
    generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) % 2**63)
    indices = pick(data, settings.batch_size, generator)
    x0 = scaling.to_model(torch.stack([data.examples[i].latent.float() for i in indices]))
    noise = torch.randn(x0.shape, generator=generator)
    t = sample_times(len(indices), settings.shift, generator)
    texts = {which: data.batch(which, indices, device) for which in ("complete", "base", "target")}
    return Batch(
        add_noise(x0, noise, t).to(device),
        t.to(device),
        velocity(x0, noise).to(device),
        null=data.null(len(indices), device),
        **texts,
    )


def pick(data: ConceptSet, count: int, generator: torch.Generator) -> list[int]:
    """`count` examples of one picture size and text length, by chance; again from the start where there are too few."""
    first = int(torch.randint(len(data.examples), (1,), generator=generator))
    alike = [i for i in range(len(data.examples)) if _shape(data, i) == _shape(data, first)]
    order = [alike[i] for i in torch.randperm(len(alike), generator=generator).tolist()]
    return (order * math.ceil(count / len(order)))[:count]


def _shape(data: ConceptSet, index: int) -> tuple:
    texts = asdict(data.examples[index].texts).values()
    return (data.examples[index].latent.shape, *(len(data.encoded[text].marks) for text in texts))
