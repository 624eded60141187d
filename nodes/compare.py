"""Compare: the base model's pictures beside the customised model's, with figures."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..purecc.evaluation import colour_fidelity, pixel_drift
from .types import CATEGORY, Data, TrainingData

_GAP = 4  # pixels


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCCompare",
            display_name="Compare (before and after)",
            category=CATEGORY,
            description="Original above, customised below, pair by pair, and how far they differ. With the concept's data also how "
            "much of its colours is there.",
            inputs=[
                io.Image.Input("original", tooltip="Pictures of the base model."),
                io.Image.Input("customised", tooltip="Pictures of the customised model, same seed and number."),
                io.String.Input("title", default="", tooltip="Stands before the figures."),
                Data.Input("data", optional=True, tooltip="From Concept Set; with masks there, fidelity is measured."),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="sheet", tooltip="All pairs in one picture."),
                io.String.Output("figures", display_name="figures", tooltip="The figures as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, original: Tensor, customised: Tensor, title: str, data: TrainingData | None = None
    ) -> io.NodeOutput:
        drift = pixel_drift(original, customised)
        text = f"{title}: difference to the base model {drift:.2f} of 255".removeprefix(": ")
        concept_set = data.concept_set if data else None
        if concept_set and concept_set.masked:
            fidelity = colour_fidelity(customised, original, list(concept_set.pictures), list(concept_set.masks))
            if fidelity is not None:
                text += f"; colour fidelity {fidelity:.2f} (0 as the base model's pictures, 1 as the references)"
        return io.NodeOutput(sheet(original, customised), text, ui=ui.PreviewText(text))


def sheet(*rows: Tensor) -> Tensor:
    """Batches [batch, height, width, 3] of one size as one picture [1, ..., 3], a batch in each row."""
    lines = []
    for batch in rows:
        padded = torch.nn.functional.pad(batch, (0, 0, 0, _GAP, 0, _GAP), value=1.0)
        lines.append(torch.cat(list(padded), dim=1))  # side by side along the width
    return torch.cat(lines, dim=0)[None]


NODES = [Compare]
