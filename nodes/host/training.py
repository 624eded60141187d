"""From the host's MODEL to a network that trains, and back: room is asked for before, memory is returned after."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...purecc.adaln_table import table_of
from ...purecc.concept import Concept
from ...purecc.concept_set import ConceptSet
from ...purecc.encoding import TextEncoder
from ...purecc.flow import LatentScaling
from ...purecc.frozen import Storage
from ...purecc.job import FinishedJob
from ...purecc.memory import Estimate, Inputs, estimate, in_words, is_out_of_memory
from ...purecc.network import AdaptedNetwork
from ...purecc.recorded import records_on
from ...purecc.runs import Run
from ...purecc.savings import Room, has_room_for_more, plan
from ...purecc.settings import PureSettings, TrainSettings
from ...purecc.stages import ExtractorJob, PureJob
from ..types import TrainingData
from . import convert, folders, page, session, token_text
from .weights import fingerprint, values_of

# tensors as large as the VAE's first layer's output, alive at once: a residual block's of the first level, of the last two
_ENCODING, _DECODING = 3, 5
_SPREAD = 2.5  # of a model's own VAE it is about 1; of Flux's in SD3's scaling 1.5305 / 0.3611, which is 4.2


@dataclass(frozen=True)
class Prepared:
    """What a job needs of a MODEL."""

    network: AdaptedNetwork
    scaling: LatentScaling
    base: str  # which model it is
    values: str  # and of which values, by how it was stored: `purecc.fingerprint`
    settings: TrainSettings  # those asked for, and what saves the memory that the device lacks
    notes: str  # for the node: the memory, and what is special about this MODEL
    needed: Estimate
    models_stay: bool  # the host's models were left where they were: the device has room to spare
    before: int  # bytes that were allocated on the device, without the encoders of a run, which are among what it needs

    def told(self) -> str:
        """The notes, and after steps on a CUDA GPU what they took of it; asked before the pictures that follow the training."""
        peak = session.peak(self.network.device) if self.needed.step else None
        if peak is None:
            return self.notes
        return f"{self.notes}\nthe training took {in_words(peak - self.before)} of the GPU at most, by its allocator, previews included; {in_words(self.needed.peak)} were reckoned for the steps"


@dataclass(frozen=True)
class _Asked:
    """What a result depends on, before there is a network."""

    device: torch.device
    dtype: torch.dtype
    scaling: LatentScaling
    base: str
    values: str
    run_of: Callable[[Storage], Run]


def _asked(
    model: ModelPatcher,
    data: ConceptSet,
    settings: TrainSettings,
    pure: PureSettings | None = None,
    extractor: Concept | None = None,
) -> _Asked:
    device = session.training_device()
    dtype = session.training_dtype(device, settings.dtype)
    scaling = LatentScaling(*convert.latent_scaling(model))
    base, values = fingerprint(model, with_patches=True), values_of(model)
    stage, identity = (ExtractorJob, {}) if pure is None else (PureJob, PureJob.identity_of(data, pure, extractor))

    @cache
    def run_of(storage: Storage) -> Run:
        stored, root = replace(settings, frozen_weights=storage), folders.runs_folder()
        return stage.run_of(data, stored, scaling, root, base, dtype, values, **identity)

    return _Asked(device, dtype, scaling, base, values, run_of)


def _put_back(model: ModelPatcher) -> None:
    """What another node put into the network's place leaves with it: its weights have other names there."""
    if any(name.startswith("diffusion_model") for name in model.object_patches_backup):
        session.free_for_training()


def finished(model: ModelPatcher, wire: TrainingData, settings: TrainSettings) -> FinishedJob | None:
    """Stage 1 where this very run was finished before: no network is built for it. Raises ValueError for a MODEL of another type."""
    _put_back(model)
    wire.concept_set.require_readable(convert.configuration(model))
    run = _asked(model, wire.concept_set, settings).run_of(settings.frozen_weights)
    concept = run.finished()
    return None if concept is None else FinishedJob(run, settings, concept)


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

    What saves memory is turned on as `settings.memory` says. The host's models leave a GPU that has no room to spare: to move
    some gigabytes to and fro takes seconds each time. Raises ValueError, before any work, where the MODEL is of
    another type or a GPU has not the memory.
    """
    data, token_encoder = wire.concept_set, None
    device = session.training_device()
    if settings.token_embeddings or (extractor is not None and extractor.token_embeddings):
        token_encoder = token_text.HostTokenEncoder(wire.encoder, data.trigger, data.tokens, device)
    _put_back(model)
    config = convert.configuration(model)
    data.require_readable(config)
    asked = _asked(model, data, settings, pure, extractor)
    inputs, dtype, run_of = Inputs.of(data, config["patch_size"]), asked.dtype, asked.run_of
    encoders = in_encoders(token_encoder, data, settings, pure)

    @cache
    def has_result(storage: Storage) -> bool:
        return run_of(storage).finished() is not None

    def needed(changed: TrainSettings) -> Estimate:
        found = estimate(config, inputs, changed, pure, dtype, device.type)
        found = replace(found, weights=found.weights + encoders[0], step=found.step + encoders[1])
        return replace(found, step=0) if has_result(changed.frozen_weights) else found

    def room() -> Room:
        free, main = (int(comfy.model_management.get_free_memory(of)) for of in (device, torch.device("cpu")))
        free += encoders[0]  # they are there already, and among what is needed
        reserved = int(comfy.model_management.extra_reserved_memory())
        return Room(device.type, free, main, records_on(device) and token_encoder is None, reserved)

    models_stay = settings.memory == "auto" and has_room_for_more(needed(settings), room())
    if not models_stay:
        session.free_for_training()
    there = room()
    chosen = plan(needed, settings, there, lambda rung: run_of(rung.frozen_weights).begun)
    foreign = remark_on_latents(data, asked.scaling)
    told = [
        chosen.line,
        phases(chosen.needed, data, wire.vae, wire.encoder),
        in_main_memory(model, wire, chosen.needed, models_stay),
        *remark_on_recording(device, chosen.settings),
    ]
    notes = "\n".join([*foreign, *told, *convert.remarks(model, dtype)])
    # before the work: a run that ends for want of memory has said what it needs
    page.tell_in_node(notes, logging.WARNING if foreign else logging.INFO)
    settings = chosen.settings
    largest = max(max(example.latent.shape[1:]) for example in data.examples)
    modulation = "cpu" if settings.modulation_table else None  # the job's table keeps it there
    before = session.watch_peak(device) - encoders[0]
    network = None
    try:
        network = AdaptedNetwork(
            convert.to_diffusers(
                model, dtype=dtype, device=device, largest=largest, modulation_device=modulation,
                storage=settings.frozen_weights, streamed=settings.stream_blocks,
            )
        )  # fmt: skip
        network.token_encoder = token_encoder
        yield Prepared(
            network, asked.scaling, asked.base, asked.values, settings, notes, chosen.needed, models_stay, before
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        with suppress(RuntimeError):  # of a driver that fails on
            session.free_for_training()  # the host does so at its own error alone
        raise RuntimeError(
            f"The GPU ran out of memory in a run that was reckoned at {in_words(chosen.needed.peak)}; {in_words(there.free)} were free. In Settings, "
            "set memory to a size below that of your card, and run again: it goes on from its last checkpoint. Please report both figures."
        ) from error
    finally:
        if network is not None:
            release(network)


def in_encoders(
    encoder: token_text.HostTokenEncoder | None, data: ConceptSet, settings: TrainSettings, pure: PureSettings | None
) -> tuple[int, int]:
    """Bytes of the text encoders that a run reads the trigger with: of their weights, and of what a step keeps in them at most."""
    if encoder is None:
        return 0, 0
    if not settings.token_embeddings:  # those of the extractor alone are read, without a graph
        return encoder.size, 0
    texts = sorted((text.text for text in data.encoded.values() if bool((text.marks > 0).any())), key=len)
    scenes = -(-settings.batch_size // 2) if pure is not None and pure.scene_anchor else 0
    models = 2 if pure is not None and pure.method == "merged stage" else 1
    together = min(len(texts), settings.batch_size + scenes)
    return encoder.size, models * together * encoder.kept_by(texts[-1])


def remark_on_latents(data: ConceptSet, scaling: LatentScaling) -> list[str]:
    """A sentence where the latents can hardly be of the MODEL's own VAE, whose channels another may have."""
    spread = data.spread(scaling)
    if spread < _SPREAD:
        return []
    return [
        f"The pictures' latents are {spread:.1f} times as large as this MODEL's own would be: the VAE may be another model's (Flux's has the "
        "same shape, and four times the size). Connect the VAE that belongs to this MODEL."
    ]


def remark_on_recording(device: torch.device, settings: TrainSettings) -> list[str]:
    """A sentence where only ComfyUI's choice of an allocator stands against recorded steps."""
    if device.type != "cuda" or torch.version.cuda is None or records_on(device) or not settings.can_record:
        return []
    return [
        "Started with --disable-cuda-malloc, ComfyUI lets steps be recorded where there is room: less time on fast GPUs, the same result to rounding."
    ]


def phases(needed: Estimate, data: ConceptSet, vae: comfy.sd.VAE, encoder: TextEncoder) -> str:
    """A line for people: GPU memory of each phase (main memory without a GPU).

    The host encodes before the training, and its models leave a device that has no room to spare; a validation picture is decoded beside the
    network, by the host in tiles where it lacks room.
    """
    channels, height, width = max((tuple(e.latent.shape) for e in data.examples), key=lambda shape: shape[1] * shape[2])
    pixels = height * vae.downscale_ratio, width * vae.downscale_ratio
    decoding = vae_bytes(vae, pixels, _DECODING) or vae.model_size() + vae.memory_used_decode(
        (1, channels, height, width), vae.vae_dtype
    )
    validation = needed.weights + needed.learnt + max(needed.validation, int(decoding))
    before = encoding(getattr(encoder, "clip", None), vae, *pixels)
    steps = f"steps: {in_words(needed.peak)}" if needed.step else "no steps: this run was finished before"
    return "phases: " + "; ".join([before, steps, f"validation: {in_words(validation)}"])


def in_main_memory(model: ModelPatcher, wire: TrainingData, needed: Estimate, models_stay: bool) -> str:
    """A line for people: what the host's own models take of main memory, which stay there while a GPU trains, and what the run puts beside them.

    With --highvram and --gpu-only the host keeps them on the GPU instead, and where it has room to spare they are left there.
    """
    clip = getattr(wire.encoder, "clip", None)
    parts = {"MODEL": model.model_size(), "VAE": wire.vae.model_size()} | (
        {"CLIP": clip.patcher.model_size()} if clip else {}
    )
    own = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items())
    texts = getattr(wire.encoder, "size", 0)
    run = f"; in main memory, texts that were read: {in_words(texts)}" if texts else ""
    run += f"; what waits there for the run: {in_words(needed.host)}" if needed.host else ""
    where = "main memory" if model.offload_device.type == "cpu" else "on the GPU, by --highvram or --gpu-only"
    where = "left where they are, since there is room" if models_stay else where
    return f"{where}, ComfyUI's own models: {own}{run}"


def encoding(clip: comfy.sd.CLIP | None, vae: comfy.sd.VAE, height: int, width: int) -> str:
    """What Concept Set's encoding of a picture of so many pixels, and of its texts, takes of the device, and what the host keeps free."""
    parts = [] if clip is None else [f"text encoders {in_words(clip.patcher.model_size())}"]
    by_host = int(vae.model_size() + vae.memory_used_encode((1, 3, height, width), vae.vae_dtype))
    parts.append(f"VAE {in_words(vae_bytes(vae, (height, width), _ENCODING) or by_host)}")
    return f"encoding, before the training: {', then '.join(parts)} (ComfyUI makes {in_words(by_host)} free for it)"


def vae_bytes(vae: comfy.sd.VAE, pixels: tuple[int, int], alive: int) -> int | None:
    """A VAE's weights and the largest tensors alive at once for a picture, `alive` of its first layer's; None of another kind.

    Counted as `memory.estimate` counts: what a GPU's convolutions take to work in comes on top.
    """
    first = getattr(getattr(vae.first_stage_model, "encoder", None), "conv_in", None)
    if first is None or vae.latent_dim != 2:
        return None
    size = comfy.model_management.dtype_size(vae.vae_dtype)
    return int(vae.model_size() + alive * first.out_channels * pixels[0] * pixels[1] * size)


def release(network: AdaptedNetwork) -> None:
    """Gives the memory back at once, whoever still holds the network: a traceback, or the hooks that hold each other."""
    if table := table_of(network.transformer):
        table.clear()
    network.clear()
    gc.collect()
    comfy.model_management.soft_empty_cache()
    if torch.cuda.is_available() and hasattr(torch._C, "_host_emptyCache"):
        torch._C._host_emptyCache()  # pinned memory of blocks that waited there
