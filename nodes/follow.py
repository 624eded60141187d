"""Following a training run from a node: progress, previews, cancel, and the report at its end."""

from contextlib import closing

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..purecc.network import AdaptedNetwork
from ..purecc.runs import StepRecord
from ..purecc.sampling import euler, guided_velocity
from ..purecc.stages import Job
from ..purecc.training import LatentScaling
from .chart import LiveChart
from .host import when_needed
from .types import TrainingData

session = when_needed("session")

_PREVIEWS = 4  # in a run
_STEPS, _GUIDANCE = 16, 4.0  # of preview pictures


def follow(job: Job, data: TrainingData, node_id: str, model: str, shift: float) -> None:
    """Runs a job to its end, showing it in the node. A cancel leaves a checkpoint and is passed on."""
    total = job.settings.steps
    progress = session.Progress(node_id, total)
    if job.concept is not None:
        progress.step(total, "This very run was finished before: taken from disk.")
    every = max(1, total // _PREVIEWS)
    # closing: a cancel writes the checkpoint now, not when the traceback is let go
    with LiveChart(node_id, job) as chart, closing(iter(job)) as records:
        for record in records:
            chart.add(record)
            preview = None
            if record.step % every == 0:
                picture = validation_pictures(job.network, data, job.scaling, shift, "complete", model)[0]
                preview = Image.fromarray((picture.numpy() * 255).round().clip(0, 255).astype(np.uint8))
            progress.step(record.step, _line(record, total), preview)
            session.check_interrupted()


@torch.no_grad()
def validation_pictures(
    network: AdaptedNetwork, data: TrainingData, scaling: LatentScaling, shift: float, which: str, model: str | None
) -> Tensor:
    """One picture [1, height, width, 3] of the first example's text; always the same noise."""
    concept_set = data.concept_set
    text, null = concept_set.batch(which, [0], network.device), concept_set.null(1, network.device)
    noise = torch.randn(concept_set.examples[0].latent[None].shape, generator=torch.Generator().manual_seed(0))
    if text.rows.shape[1] == null.rows.shape[1]:
        velocity = guided_velocity(network, text, null, _GUIDANCE, model)
    else:  # a long text: no guidance rather than rows that were never there

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return network.velocity(x_t, t, text, model)

    latent = euler(velocity, noise.to(network.device), _STEPS, shift)
    return session.decode_latents(data.vae, scaling.to_autoencoder(latent))


def _line(record: StepRecord, total: int) -> str:
    line = f"step {record.step} / {total}   L_CC {record.concept_loss:.4f}"
    if record.pure_loss is not None:
        line += f"   L_PureCC {record.pure_loss:.4f}   lambda* {record.scale:.2f}   cos2 {record.squared_cosine:.2f}"
    return line


def report(title: str, job: Job) -> str:
    """The run in figures, for people."""
    s = job.concept.summary
    settings = job.settings
    rows = [
        f"{title}: rank {settings.rank}, {settings.steps} steps of {settings.batch_size}, {s['seconds_per_step']:.2f} s each"
    ]
    rows.append(f"L_CC {s['concept_loss']:.4f}")
    if "pure_loss" in s:
        rows[-1] += f", L_PureCC {s['pure_loss']:.4f}"
        rows.append(f"lambda* {s['scale']:.3f} (spread {s['scale_spread']:.3f})")
        rows.append(f"cos2(R_complete, R_tar) {s['squared_cosine']:.3f}, |R_complete| {s['representation']:.3f}")
    if "end_scale" in s:
        rows.append(
            f"at the end, against the base: lambda* {s['end_scale']:.3f}, cos2 {s['end_squared_cosine']:.3f}, "
            f"|R_complete| {s['end_representation']:.3f}"
        )
    rows.append(f"velocity drift from the base: base texts {s['drift_base']:.4f}, null text {s['drift_null']:.4f}")
    return "\n".join([*rows, f"run: {job.run.folder.name}"])
