"""Following a training run from a node: progress, previews, cancel, and the report at its end."""

import itertools
from contextlib import closing

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..purecc.concept import held_as, sampling_gate
from ..purecc.concept_set import NULL
from ..purecc.early_stop import reason
from ..purecc.encoding import EncodedText, TextBatch
from ..purecc.flow import LatentScaling
from ..purecc.job import FinishedJob, Job
from ..purecc.network import BASE, AdaptedNetwork
from ..purecc.runs import StepRecord
from ..purecc.sampling import euler, guided_velocity
from .chart import LiveChart
from .host import when_needed
from .types import Advanced, TrainingData

page, session = when_needed("page"), when_needed("session")

FOUND = "This very run was finished before: taken from disk."
_DIVERGED = 0.5  # of the base's velocity, without the trigger
_PREVIEWS = 4  # in a run
_STEPS, _GUIDANCE = 16, 4.0  # of preview pictures


class Validation:
    """Pictures that show how far a run is: of the first example's text, and of the prompts of Settings, each with every seed.

    Prompts are encoded here, before the training has the device.
    """

    def __init__(self, data: TrainingData, shift: float, advanced: Advanced):
        self.vae, self.shift, self.every = data.vae, shift, advanced.validation_every
        concept_set = data.concept_set
        texts = concept_set.examples[0].texts
        self._base, self._complete = concept_set.encoded[texts.base], concept_set.encoded[texts.complete]
        self._null = concept_set.encoded[NULL]
        self._prompts = [data.encoder.encode(prompt) for prompt in advanced.validation_prompts]
        self._size, self._seeds = concept_set.examples[0].latent.shape, advanced.validation_seeds
        self._kind = concept_set.kind

    def preview(self, network: AdaptedNetwork, scaling: LatentScaling, model: str) -> Image.Image:
        """The example and the prompts side by side, the seeds one below the other."""
        rows = []
        for seed in self._seeds:
            pictures = [self._draw(network, scaling, text, model, seed) for text in (self._complete, *self._prompts)]
            rows.append(torch.cat(pictures, dim=2))  # [1, height, width, 3] each, along the width
        sheet = torch.cat(rows, dim=1)[0]  # along the height
        return Image.fromarray((sheet.numpy() * 255).round().clip(0, 255).astype(np.uint8))

    def pairs(self, network: AdaptedNetwork, scaling: LatentScaling, model: str) -> Tensor:
        """[seeds * (2 + 2 prompts), height, width, 3]: the base model without the trigger, the model with it; each prompt by both.

        All of one seed, then all of the next.
        """
        asked = [(self._base, BASE), (self._complete, model)]
        asked += [(prompt, which) for prompt in self._prompts for which in (BASE, model)]
        pictures = []
        for seed, (text, which) in itertools.product(self._seeds, asked):
            pictures.append(self._draw(network, scaling, text, which, seed))
        return torch.cat(pictures)

    @torch.no_grad()
    def _draw(
        self, network: AdaptedNetwork, scaling: LatentScaling, text: EncodedText, model: str | None, seed: int
    ) -> Tensor:
        """[1, height, width, 3]"""
        session.check_interrupted()
        noise = torch.randn(1, *self._size, generator=torch.Generator().manual_seed(seed))
        words = [TextBatch.of([one], network.device) for one in (text, self._null)]
        # with the trigger, as Apply Concept comes for this kind; without it, as trained: what other texts lose
        named, trained = bool(words[0].marks.any()), network.gates.get(model, "off")
        gate = sampling_gate(self._kind, trained) if named else trained
        held = held_as(self._kind, model in network.tokens) if named else None
        with network.gated(model, gate):
            velocity = guided_velocity(network, *words, _GUIDANCE, model, held=held)
            latent = euler(velocity, noise.to(network.device), _STEPS, self.shift, network)
        return session.decode_latents(self.vae, scaling.to_autoencoder(latent))


def follow(job: Job | FinishedJob, validation: Validation, node_id: str, model: str, models_stay: bool) -> None:
    """Runs a job to its end, showing it in the node. A cancel leaves a checkpoint and is passed on.

    `models_stay`: the host's own have room beside it; else the VAE leaves the device after each preview.
    """
    total = job.settings.steps
    progress = page.Progress(node_id, total)
    if job.concept is not None:
        progress.step(total, FOUND)
    job.preparing = lambda what, done, of: _before(node_id, what, done, of)
    every = validation.every or max(1, total // _PREVIEWS)
    # closing: a cancel writes the checkpoint now, not when the traceback is let go
    with LiveChart(node_id, job) as chart, closing(iter(job)) as records:
        for record in records:
            chart.add(record)
            preview = None
            if record.step % every == 0:
                preview = validation.preview(job.network, job.scaling, model)
                if not models_stay:  # the estimate has it beside a picture alone
                    session.free_for_training()
            progress.step(record.step, _line(record, total), preview)
            session.check_interrupted()
    if job.concept.summary.get("stopped_at", total) < total:
        progress.step(total, reason(job.concept.summary, job.settings))


def _before(node_id: str, what: str, done: int, total: int) -> None:
    """Progress before the first step, and after the last."""
    page.Progress(node_id, total).step(done, f"{what}: {done / total:.0%}")
    session.check_interrupted()


def _line(record: StepRecord, total: int) -> str:
    line = f"step {record.step} / {total}   L_CC {record.concept_loss:.4f}"
    if record.pure_loss is not None:
        line += f"   L_PureCC {record.pure_loss:.4f}   lambda* {record.scale:.2f}   cos2 {record.squared_cosine:.2f}"
    return line


def report(title: str, job: Job | FinishedJob) -> str:
    """The run in figures, for people."""
    s = job.concept.summary
    settings = job.settings
    rows = [
        f"{title}: rank {settings.rank}, {settings.steps} steps of {settings.batch_size}, {s['seconds_per_step']:.2f} s each"
    ]
    rows.append(f"L_CC {s['concept_loss']:.4f}" if "concept_loss" in s else "its losses are no longer on the disk")
    if "pure_loss" in s:
        rows[-1] += f", L_PureCC {s['pure_loss']:.4f}"
        rows.append(f"lambda* {s['scale']:.3f} (spread {s['scale_spread']:.3f})")
        rows.append(f"cos2(R_complete, R_tar) {s['squared_cosine']:.3f}, |R_complete| {s['representation']:.3f}")
    others = {"extractor_loss": "L_CC of the extractor", "prior_loss": "loss on class pictures"}
    others |= {"base_anchor": "distance from the base, base texts", "null_anchor": "null text"}
    terms = [f"{words} {s[name]:.4f}" for name, words in others.items() if name in s]
    rows += [", ".join(terms)] if terms else []
    if "concept_share" in s and "background_anchor" in s:
        rows.append(
            f"around the concept, which takes {s['concept_share']:.0%} of the pictures: distance from the base {s['background_anchor']:.4f}"
        )
    if "scene_anchor" in s:
        rows.append(f"in scenes, what is beside the concept: distance from the base {s['scene_anchor']:.4f}")
    if "scene_concept" in s:
        rows[-1] += f"; at the concept's place: from what it is alone {s['scene_concept']:.4f}"
    if "end_scale" in s:
        rows.append(
            f"at the end, against the base: lambda* {s['end_scale']:.3f}, cos2 {s['end_squared_cosine']:.3f}, "
            f"|R_complete| {s['end_representation']:.3f}"
        )
    ended = reason(s, settings)
    rows += [ended] if ended else []
    rows.append(f"velocity drift from the base: base texts {s['drift_base']:.4f}, null text {s['drift_null']:.4f}")
    if s["drift_base"] > _DIVERGED:
        rows.append(
            "that is far: texts without the concept are no longer the base's. Lower the learning rates, or take fewer steps"
        )
    if s.get("embedding_gap"):
        rows.append(f"the embeddings alone, before the first step: {s['embedding_gap']:.4f} from the class word")
    return "\n".join([*rows, f"run: {job.run.folder.name}"])
