"""A concept applied to the host's MODEL and CLIP; what happens in sampling is in acting.py."""

from dataclasses import replace

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...purecc.concept import Concept, Gate
from ...purecc.fingerprint import is_same
from ...purecc.prompts import Placeholder
from ..types import GateChoice
from . import page
from .acting import KEY, Applied, attach
from .holding import hold
from .lora import add_lora, row_loras
from .marks import CONCEPTS
from .text import with_triggers
from .weights import HostWeights, PackedError, fingerprint, require_sd3


def apply_concept(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    concept: Concept,
    strength: float = 1.0,
    embedding_strength: float = 1.0,
    gate: GateChoice = "off",
    span: tuple[float, float] = (0.0, 1.0),
    hold_surroundings: bool = False,
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """MODEL and CLIP with the concept, to be chained for several; the given ones stay as they are.

    `strength` scales the LoRA: with the gate "off" everywhere, as any LoRA; with "picture" in samplings only of which a
    prompt holds the trigger, negative prompt included; with "conditioning" in those conditionings only that hold it; with
    "rows" at the trigger's rows of the text stream only, so that all others
    are the base model's bit for bit. `embedding_strength` blends the layer-wise embeddings in at the trigger's rows. Both
    0: the base model, and the trigger reads as the class word. `span`: the part of a sampling in which it acts, of 0..1; input
    embeddings act in all of it. `hold_surroundings`: what is not the concept's stays the base model's (see holding.py), where the
    concept has a gate and no input embeddings. Raises ValueError where the concept does not fit the MODEL or is on it already, and
    for an empty span.
    """
    require_sd3(model)
    if not 0 <= span[0] < span[1] <= 1:
        raise ValueError(
            f"The concept is to act from {span[0]:g} to {span[1]:g} of the sampling; the end must be later."
        )
    gate = gate_of(concept, gate)
    lora_acts = concept.lora is not None and strength != 0
    embedded = concept.embeddings is not None or concept.token_embeddings is not None
    embeddings_act = embedded and embedding_strength != 0
    if not (lora_acts or embeddings_act):
        return model, with_triggers(clip, {concept.trigger: Placeholder(0, concept.placeholder.words)})
    carried: dict[int, Applied] = model.model_options["transformer_options"].get(CONCEPTS, {})
    check_fits(model, concept, carried)
    check_encoders(clip, concept)
    warning = base_warning(model, concept)
    if warning:
        page.warn_of_mistake(f"PureCC: {warning}")

    holds = hold_surroundings and gate != "off" and concept.held is not None
    in_weights = gate == "off" and span == (0, 1)
    gated = row_loras(model, concept, strength, gate) if lora_acts and not in_weights else ()
    patched = model.clone()
    if lora_acts and in_weights:
        add_lora(patched, concept, strength)
    applied = Applied(concept, embedding_strength, gated, gate, span, holds, lora_acts and gate == "off")
    patched.model_options["transformer_options"][CONCEPTS] = {**carried, concept.uid: applied}
    attach(patched)
    if holds and not patched.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY):
        patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, hold)
    return patched, with_triggers(clip, {concept.trigger: replace(concept.placeholder, strength=embedding_strength)})


def gate_of(concept: Concept, choice: GateChoice) -> Gate:
    """The gate that a choice means."""
    return concept.sampling_gate if choice == "as trained" else choice


def base_warning(model: ModelPatcher, concept: Concept) -> str:
    """A sentence where the concept was trained on another base model than this one, or an empty text.

    LoRAs on the MODEL were part of its base, or not. Of an imported LoRA the base is not known, nor which model packed weights are.
    """
    try:
        if torch.int8 in HostWeights(model, with_patches=False).dtypes():
            return ""  # which turns signs, by which models are known
        here, patched = fingerprint(model), fingerprint(model, with_patches=True)
    except (PackedError, KeyError):
        return ""  # it cannot be told, as where a compiled network stands; the concept works all the same
    if not concept.base or is_same(concept.base, here) or is_same(concept.base, patched):
        return ""
    return (
        f'"{concept.trigger} {concept.class_word}" was trained on another base model ({concept.base}; this one is {here}): '
        "the likeness may be weaker, and prompts without the trigger may change."
    )


def check_encoders(clip: comfy.sd.CLIP, concept: Concept) -> None:
    """Raises ValueError where the CLIP has not the encoders of the concept's input embeddings, or in another width."""
    for name, vectors in (concept.token_embeddings or {}).items():
        part = getattr(clip.cond_stage_model, name, None)
        width = None if part is None else part.transformer.get_input_embeddings().weight.shape[1]
        if width != vectors.shape[1]:
            here = "none in this CLIP: load it too" if width is None else f"of width {width} in this CLIP"
            raise ValueError(
                f'"{concept.trigger} {concept.class_word}" has an embedding of width {vectors.shape[1]} for {name}, which is {here}.'
            )


def check_fits(model: ModelPatcher, concept: Concept, carried: dict[int, Applied]) -> None:
    """Raises ValueError where the concept is on the MODEL already, or its embeddings are for another architecture."""
    name = f'"{concept.trigger} {concept.class_word}"'
    if concept.uid in carried:
        raise ValueError(f"{name} is already applied to this MODEL. Set its strengths in one Apply Concept node.")
    for other in carried.values():
        if other.concept.trigger.lower() == concept.trigger.lower():
            raise ValueError(
                f'Two concepts have the trigger "{concept.trigger}". Apply one of them, or train with another.'
            )
    if concept.embeddings is None:
        return
    network = model.model.diffusion_model
    blocks, _, width = concept.embeddings.clip.shape
    if (blocks, width) != (len(network.joint_blocks), network.hidden_size):
        raise ValueError(
            f"{name} was trained on a model of {blocks} joint blocks of width {width}; this MODEL has "
            f"{len(network.joint_blocks)} of width {network.hidden_size}. Load the model that it was trained on."
        )
