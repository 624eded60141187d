"""Pocket Model: the bundled small SD3."""

from comfy_api.latest import io

from .host import when_needed
from .types import CATEGORY

pocket = when_needed("pocket")


class PocketModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCPocketModel",
            display_name="Pocket Model (small SD3 to try)",
            category=CATEGORY,
            description="A small but real Stable Diffusion 3 that comes with the pack: 128 x 128 px pictures of 32 things "
            "on 12 backgrounds, in seconds on a CPU. For trying out, teaching and testing.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The transformer, as any SD3 loader gives it."),
                io.Clip.Output(tooltip="Its two text encoders."),
                io.Vae.Output(tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*pocket.load_pocket())


NODES = [PocketModel]
