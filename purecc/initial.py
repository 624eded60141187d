"""Where the layer-wise embeddings of eq. 7 start."""

import torch
from torch import Tensor, nn

from .concept import T5_SLOT, ConceptEmbeddings
from .concept_set import ConceptSet
from .encoding import TextBatch
from .flow import LatentScaling
from .measures import probes
from .network import BASE, AdaptedNetwork, Times


def require_clip_part(data: ConceptSet) -> None:
    """Raises ValueError where the trigger stands in T5's part of the texts alone: eq. 7's embeddings are of CLIP's, at least."""
    if not any(((text.marks > 0) & (text.marks <= T5_SLOT)).any() for text in data.encoded.values()):
        raise ValueError("The concept needs at least one CLIP text encoder beside T5: load CLIP-L or CLIP-G too.")


@torch.no_grad()
def stream_at_marks(network: AdaptedNetwork, x_t: Tensor, t: Times, text: TextBatch) -> dict[int, Tensor]:
    """What the base model's text stream holds at each slot before each block, slot -> [blocks, width]."""
    seen: dict[int, list[Tensor]] = {mark: [] for mark in text.marks.unique().tolist() if mark}

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        rows = (kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]).float()
        for mark, of_block in seen.items():
            of_block.append(rows[text.marks == mark].mean(0))

    handles = [b.register_forward_pre_hook(look, with_kwargs=True) for b in network.transformer.transformer_blocks]
    try:
        network.velocity(x_t, t, text, BASE)
    finally:
        for handle in handles:
            handle.remove()
    return {mark - 1: torch.stack(of_block) for mark, of_block in seen.items()}


def initial_embeddings(
    network: AdaptedNetwork, data: ConceptSet, scaling: LatentScaling, mode: str
) -> ConceptEmbeddings | None:
    """Where eq. 7's embeddings start: "replace" from what the base's stream holds there (a class word), "offset" from 0."""
    if mode == "none":
        return None
    require_clip_part(data)
    held = []
    for x_t, t, texts in probes(data, scaling, network.device):
        held.append(stream_at_marks(network, x_t, t, texts["complete"]))
    # T5 may part a class word into more pieces behind a bracket or a quotation mark: a slot is of the texts that have it
    slots = sorted({slot for one in held for slot in one})
    by_slot = {
        slot: torch.stack([one[slot] for one in held if slot in one]).mean(0) for slot in slots
    }  # [blocks, width]

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

    return ConceptEmbeddings(table(0, T5_SLOT), table(T5_SLOT, 2 * T5_SLOT), mode)
