"""A concept as a plain LoRA, for people without the pack: what stays behind is said in the file itself."""

from torch import Tensor

from . import __version__
from .concept import Concept
from .prompts import texts_of

# settings of the run -> the names that LoRA tools look for
_TRAINING = {
    "steps": "ss_max_train_steps", "batch_size": "ss_batch_size_per_device", "learning_rate": "ss_learning_rate",
    "seed": "ss_seed", "accumulate": "ss_gradient_accumulation_steps", "max_grad_norm": "ss_max_grad_norm",
    "schedule": "ss_lr_scheduler", "warmup": "ss_lr_warmup_steps",
}  # fmt: skip


def require_exportable(concept: Concept) -> None:
    """Raises ValueError where the concept has nothing that acts without the pack."""
    if concept.lora is None and not concept.token_embeddings:
        raise ValueError(
            f'"{concept.trigger} {concept.class_word}" has no LoRA, only layer-wise embeddings, and these act through the pack alone: '
            "there is nothing to export. Train with a rank above 0, or with token_embeddings."
        )


def embedding_file(concept: Concept, name: str, t5: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (clip_l, clip_g: [tokens, width]) and metadata of a file that `embedding:name` in a prompt reads.

    `t5` [pieces, width]: what T5 read in the trigger's place in training, the class word.
    """
    return dict(concept.token_embeddings) | ({} if t5 is None else {"t5xxl": t5}), {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-3/textual-inversion",
        "modelspec.title": f"{concept.trigger} {concept.class_word}",
        "modelspec.trigger_phrase": trigger_phrase(concept, name),
        "modelspec.description": " ".join(what_is_lost(concept, name)),
        **_origin(concept),
    }


def plain_lora(concept: Concept, embedding: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata (modelspec.*, ss_*) of a plain LoRA file; `embedding`: the file of the concept's input embeddings.

    alpha / rank is in B, and there is no alpha: diffusers refuses such keys, and without one all loaders take a scale of 1.
    """
    name, tensors = f"{concept.trigger} {concept.class_word}", {}
    for module, (a, b) in concept.lora.matrices.items():
        tensors[f"transformer.{module}.lora_A.weight"] = a
        tensors[f"transformer.{module}.lora_B.weight"] = b * concept.lora.scale
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-3/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.trigger_phrase": trigger_phrase(concept, embedding),
        "modelspec.description": " ".join(what_is_lost(concept, embedding)),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(concept.lora.rank),
        "ss_network_alpha": str(concept.lora.rank),
        "ss_base_model_version": "sd3",
        "ss_output_name": name,
        "ss_training_comment": f"PureCC {__version__}, {concept.role}, base {concept.base or 'unknown'}",
    }
    metadata |= _origin(concept)
    metadata |= {ss: str(concept.settings[own]) for own, ss in _TRAINING.items() if own in concept.settings}
    return tensors, metadata


def _origin(concept: Concept) -> dict[str, str]:
    """As a concept's own file has it: tells concepts of one name apart (`files.keep_other`)."""
    return {
        name: value
        for name, value in concept.metadata().items()
        if name in ("purecc.role", "purecc.kind", "purecc.base")
    }


def trigger_phrase(concept: Concept, embedding: str = "") -> str:
    """What calls the concept where the trigger has no meaning: the target text as the text encoders read it in training."""
    target = texts_of("", concept.trigger, concept.class_word, concept.kind).target
    called = f"embedding:{embedding}" if concept.token_embeddings and embedding else concept.placeholder.words
    return target.replace(concept.trigger, called)


def what_is_lost(concept: Concept, embedding: str = "") -> list[str]:
    """Sentences on what plain files cannot hold; `embedding`: the file of the concept's input embeddings."""
    lost = [f'The trigger "{concept.trigger}": write "{trigger_phrase(concept, embedding)}" in prompts in its place.']
    if concept.embeddings is not None:
        lost.append("The layer-wise embeddings stay behind, so the likeness is weaker.")
    if concept.lora is None:
        return lost
    where = "trained for the trigger's own text rows" if concept.gate == "rows" else "a LoRA"
    lost.append(f"The gate stays behind: {where}, it now acts in every prompt, also in those without the concept.")
    return lost
