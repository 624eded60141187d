"""From the host's MODEL to a network that trains, and back: room is asked for before, memory is returned after."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...purecc.batches import LatentScaling
from ...purecc.concept import Concept
from ...purecc.memory import Inputs, estimate, require_room
from ...purecc.network import AdaptedNetwork
from ...purecc.settings import PureSettings, TrainSettings
from ..types import TrainingData
from . import convert, session, token_text


@dataclass(frozen=True)
class Prepared:
    """What a job needs of a MODEL."""

    network: AdaptedNetwork
    scaling: LatentScaling
    base: str  # fingerprint
    notes: str  # for the node: the memory, and what is special about this MODEL


@contextmanager
def prepared(
    model: ModelPatcher,
    wire: TrainingData,
    settings: TrainSettings,
    pure: PureSettings | None = None,
    extractor: Concept | None = None,
) -> Iterator[Prepared]:
    """The MODEL as a network on the host's device and in its dtype, for as long as the block lasts.

    `pure` and `extractor`: of stage 2. The text encoders come along only where embeddings in them learn or guide.

    Raises ValueError, before any work, where the MODEL is of another type or a GPU has not the memory.
    """
    data, device = wire.concept_set, session.training_device()
    token_encoder = None
    if settings.token_embeddings or (extractor is not None and extractor.token_embeddings):
        token_encoder = token_text.HostTokenEncoder(wire.encoder, data.trigger, data.tokens, device)
    session.free_for_training()
    dtype = session.training_dtype(device)
    config = convert.configuration(model)
    inputs = Inputs.of(data, config["patch_size"])
    free = int(comfy.model_management.get_free_memory(device))
    room = require_room(
        lambda changed: estimate(config, inputs, changed, pure, dtype, device.type), settings, free, device.type
    )
    notes = "\n".join([room, *convert.remarks(model, dtype)])
    largest = max(max(example.latent.shape[1:]) for example in data.examples)
    modulation = "cpu" if settings.modulation_table else None  # the job's table keeps it there
    network = AdaptedNetwork(
        convert.to_diffusers(model, dtype=dtype, device=device, largest=largest, modulation_device=modulation)
    )
    network.token_encoder = token_encoder
    scaling = LatentScaling(*convert.latent_scaling(model))
    try:
        yield Prepared(network, scaling, convert.fingerprint(model, with_patches=True), notes)
    finally:
        release(network)


def release(network: AdaptedNetwork) -> None:
    """Gives the memory back at once, whoever still holds the network: a traceback, or the hooks that hold each other."""
    network.transformer.to(torch.device("meta"))
    network.embeddings.clear()
    network.tokens.clear()
    network.token_encoder = None
    gc.collect()
    comfy.model_management.soft_empty_cache()
