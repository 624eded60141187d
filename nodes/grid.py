"""Picture Grid: batches as the rows of one picture, with labels."""

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..purecc.grid import draw_grid
from ..purecc.pictures import three_channels
from .types import CATEGORY

_ROWS = 8


class PictureGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [
            io.Image.Input(
                f"row_{i}", optional=i > 1, tooltip=f"The pictures of row {i}, a batch; its columns from left to right."
            )
            for i in range(1, _ROWS + 1)
        ]
        return io.Schema(
            node_id="PureCCGrid",
            display_name="Picture Grid",
            category=CATEGORY,
            description="One picture of many: each input is a row, each picture of its batch a column. To compare strengths, "
            "seeds or settings at one glance.",
            inputs=[
                *rows,
                io.String.Input("row_labels", default="", multiline=True, tooltip="One line for each connected row."),
                io.String.Input("column_labels", default="", multiline=True, tooltip="One line for each column."),
            ],
            outputs=[io.Image.Output("grid", display_name="grid", tooltip="The grid, a batch of one picture.")],
        )

    @classmethod
    def execute(cls, row_labels: str, column_labels: str, **rows: Tensor | None) -> io.NodeOutput:
        batches = [rows[name] for name in (f"row_{i}" for i in range(1, _ROWS + 1)) if rows.get(name) is not None]
        grid = draw_grid(
            [[_picture(one) for one in batch] for batch in batches], row_labels.splitlines(), column_labels.splitlines()
        )
        return io.NodeOutput(torch.from_numpy(np.asarray(grid, dtype=np.float32) / 255)[None])


def _picture(pixels: Tensor) -> Image.Image:
    """[height, width, channels] in 0..1 -> a picture."""
    return Image.fromarray((three_channels(pixels).numpy() * 255).round().clip(0, 255).astype(np.uint8))


NODES = [PictureGrid]
