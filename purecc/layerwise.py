"""Layer-wise tunable concept embeddings (eq. 7) as parameters, and how they act on the text stream."""

import torch
from torch import Tensor, nn

from .concept import T5_SLOT, ConceptEmbeddings


class LayerwiseEmbeddings(nn.Module):
    """The concept embeddings {Y_tar^l} of eq. 7 as parameters (float32)."""

    def __init__(self, embeddings: ConceptEmbeddings):
        super().__init__()
        self.mode = embeddings.mode
        self.clip = nn.Parameter(embeddings.clip.detach().float().clone())
        self.t5 = None if embeddings.t5 is None else nn.Parameter(embeddings.t5.detach().float().clone())

    def act(self, block: int, stream: Tensor, marks: Tensor, strength: float = 1.0) -> Tensor:
        """The text stream [batch, rows, width] as joint block `block` reads it: at the marked rows what it holds

        + strength * Y ("offset"), or lerp(what it holds, Y, strength) ("replace"), as the host's acting.py has it.
        """
        marks = marks.to(stream.device)
        if self.t5 is None:
            marks = marks * (marks <= T5_SLOT)  # T5's rows keep the class word
        slots = (marks - 1).clamp_min(0)
        values = self.clip[block][slots.clamp_max(T5_SLOT - 1) % self.clip.shape[1]]
        if self.t5 is not None:
            of_t5 = self.t5[block][(slots - T5_SLOT).clamp_min(0) % self.t5.shape[1]]
            values = torch.where((slots >= T5_SLOT)[..., None], of_t5, values)
        values = values.to(stream.dtype)
        if self.mode == "offset":
            acted = stream + strength * values
        else:
            acted = values if strength == 1 else torch.lerp(stream, values, strength)
        return torch.where((marks > 0)[..., None], acted, stream)

    def snapshot(self) -> ConceptEmbeddings:
        t5 = None if self.t5 is None else self.t5.detach().cpu().clone()
        return ConceptEmbeddings(self.clip.detach().cpu().clone(), t5, self.mode)
