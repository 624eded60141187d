"""The training loop of both stages; what differs between them is the objective.

One step: pick pictures, draw noise and times (eq. 1), ask the objective for its loss, step AdamW, record. All chance
comes from (seed, step) alone, so a run that was stopped goes on bit for bit.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batches import Batch, draw_batch
from .class_pictures import ClassPictures
from .concept_set import ConceptSet
from .early_stop import EarlyStop, validation_loss
from .files import load_optimizer_tensors, optimizer_tensors
from .flow import LatentScaling
from .network import AdaptedNetwork
from .recorded import Recorder
from .runs import Run, StepRecord
from .scenes import Scenes
from .schedules import rate_factor
from .settings import TrainSettings
from .terms import Objective

_AT_MOST = 60.0  # seconds of work that a server which is stopped may cost


def train(
    network: AdaptedNetwork,
    objective: Objective,
    data: ConceptSet,
    settings: TrainSettings,
    scaling: LatentScaling,
    run: Run,
    *,
    frozen_embeddings: tuple[str, ...] = (),
    class_pictures: ClassPictures | None = None,
    scenes: Scenes | None = None,
    stop: EarlyStop | None = None,
) -> Iterator[StepRecord]:
    """Trains `objective.models`, yielding a record a step; goes on from the run's checkpoint.

    The embeddings of the models in `frozen_embeddings` stay as they are. With `stop` it may end before its last step, and
    leaves the parameters of the best evaluation. A consumer that stops early (or raises) leaves a checkpoint of the last step
    behind. Raises FloatingPointError where the loss or its gradient is not finite, before the weights take any of it; the last
    checkpoint on disk stays, since the latest weights led there.
    """
    parameters = {model: learning(network, model, model not in frozen_embeddings) for model in objective.models}
    freeze_all_but(network, [p for of_model in parameters.values() for p in of_model.all])
    learned = [p for of_model in parameters.values() for p in of_model.all]
    if not learned:
        raise ValueError('Nothing would learn: embeddings are "none" or frozen, and there is no LoRA.')
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for of_model in parameters.values() for p in of_model.lora],
                "lr": settings.learning_rate,
                "weight_decay": settings.weight_decay,
            },
            {
                "params": [p for of_model in parameters.values() for p in of_model.embeddings],
                "lr": settings.embedding_rate,
                "weight_decay": 0.0,
            },
        ]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    network.checkpoint_activations(settings.checkpointing)
    run.begin()
    done, tensors = run.load_checkpoint()
    if done:
        for i, parameter in enumerate(learned):
            parameter.data.copy_(tensors[f"parameter.{i}"])
        load_optimizer_tensors(optimizer, tensors)
        if stop:
            stop.load(tensors)

    def save(step: int) -> None:
        own = {f"parameter.{i}": parameter for i, parameter in enumerate(learned)}
        run.save_checkpoint(step, own | optimizer_tensors(optimizer) | (stop.tensors() if stop else {}))

    def look(step: int) -> None:
        if stop and stop.is_due(step, settings.steps):
            loss = validation_loss(network, objective, data, settings, scaling, class_pictures, scenes)
            stop.look(step, loss, learned)

    recorder = Recorder(objective, network, settings, learned)
    if recorder.has_room:  # a fast device would wait for the texts of each step
        data = data.with_texts_on(network.device, network.dtype)

    def draw(number: int) -> Batch:
        return draw_batch(data, settings, scaling, number, network.device, class_pictures, scenes)

    saved, saved_at, ahead = done, time.monotonic(), None
    look(done)  # where the step was done, but what came after it was cut off
    try:
        for step in range(done + 1, settings.steps + 1):
            if stop and stop.is_over:
                break
            start = time.perf_counter()
            found = []
            for number in range((step - 1) * settings.accumulate + 1, step * settings.accumulate + 1):
                found.append(recorder.descend(ahead or draw(number)))
                ahead = None
            norms = [nn.utils.clip_grad_norm_(of_model.all, settings.max_grad_norm) for of_model in parameters.values()]
            if recorder.has_room and step < settings.steps:
                ahead = draw(step * settings.accumulate + 1)  # while the device computes
            measured, gradient = _fetch(found, norms)
            _require_finite(measured["loss"], "loss", step, settings)
            _require_finite(gradient, "gradient", step, settings)
            factor = rate_factor(step, settings.steps, settings.schedule, settings.warmup)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step
            record = StepRecord(step, **measured, seconds=round(time.perf_counter() - start, 4))
            run.add(record)
            look(step)
            due = step % settings.checkpoint_every == 0 or time.monotonic() - saved_at > _AT_MOST
            if due and step < settings.steps:
                save(step)
                saved, saved_at = step, time.monotonic()
            yield record
    except FloatingPointError:
        saved = done  # what would be saved is broken, or about to be
        raise
    finally:
        try:
            if saved < done:
                save(done)
        finally:
            recorder.clear()
    if stop:
        stop.restore(learned)


@dataclass(frozen=True)
class Learning:
    """The parameters of one model that learn, in a fixed order."""

    lora: list[nn.Parameter]
    embeddings: list[nn.Parameter]

    @property
    def all(self) -> list[nn.Parameter]:
        return self.lora + self.embeddings


def learning(network: AdaptedNetwork, model: str, embeddings: bool = True) -> Learning:
    return Learning(network.lora_parameters(model), network.embedding_parameters(model) if embeddings else [])


def freeze_all_but(network: AdaptedNetwork, parameters: list[nn.Parameter]) -> None:
    """Only these ask for a gradient."""
    network.transformer.requires_grad_(False)
    for embeddings in (*network.embeddings.values(), *network.tokens.values()):
        embeddings.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def _require_finite(value: float, what: str, step: int, settings: TrainSettings) -> None:
    if math.isfinite(value):
        return
    if step == 1:  # what learns has changed nothing yet
        raise FloatingPointError(
            f"The {what} is not finite at step 1: the model itself predicts what is not finite. Its file may be damaged, or of a format that this "
            "ComfyUI does not read; see whether it draws without training."
        )
    remedy = f"Lower the learning rate ({settings.learning_rate:g}) or the embedding rate ({settings.embedding_rate:g})"
    if settings.warmup == 0:
        remedy += ", or set a warmup of 10 steps"
    raise FloatingPointError(f"The {what} is not finite at step {step}. {remedy}. The last checkpoint is kept.")


def _fetch(found: list[dict[str, Tensor]], norms: list[Tensor]) -> tuple[dict[str, float], float]:
    """Each measure's mean over the forwards of a step, and the sum of the gradients' norms: the one time in a step that the
    device is waited for.
    """
    names = list(found[0])
    means = torch.stack([torch.stack([one[name].float() for name in names]) for one in found]).mean(0)
    *values, gradient = torch.cat([means, torch.stack(norms).float().sum()[None]]).tolist()
    return dict(zip(names, values, strict=True)), gradient
