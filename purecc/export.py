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


def plain_lora(concept: Concept) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata (modelspec.*, ss_*) of a plain LoRA file. Raises ValueError where the concept has no LoRA."""
    name = f"{concept.trigger} {concept.class_word}"
    if concept.lora is None:
        raise ValueError(
            f'"{name}" has no LoRA, only embeddings, and these act through the pack alone: there is nothing to export. Train '
            "with a rank above 0."
        )
    tensors = {key: value for key, value in concept.tensors().items() if key.startswith("transformer.")}
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-3/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.trigger_phrase": trigger_phrase(concept),
        "modelspec.description": " ".join(what_is_lost(concept)),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(concept.lora.rank),
        "ss_network_alpha": f"{concept.lora.alpha:g}",
        "ss_base_model_version": "sd3",
        "ss_output_name": name,
        "ss_training_comment": f"PureCC {__version__}, {concept.role}, base {concept.base or 'unknown'}",
    }
    metadata |= {ss: str(concept.settings[own]) for own, ss in _TRAINING.items() if own in concept.settings}
    return tensors, metadata


def trigger_phrase(concept: Concept) -> str:
    """What calls the concept where the trigger has no meaning: the target text as the text encoders read it in training."""
    target = texts_of("", concept.trigger, concept.class_word, concept.kind).target
    return target.replace(concept.trigger, concept.placeholder.words)


def what_is_lost(concept: Concept) -> list[str]:
    """Sentences on what a plain LoRA cannot hold."""
    lost = [f'The trigger "{concept.trigger}": write "{trigger_phrase(concept)}" in prompts in its place.']
    if concept.embeddings is not None:
        lost.append("The layer-wise embeddings stay behind, so the likeness is weaker.")
    where = "trained for the trigger's own text rows" if concept.gate == "rows" else "a LoRA"
    lost.append(f"The gate stays behind: {where}, it now acts in every prompt, also in those without the concept.")
    return lost
