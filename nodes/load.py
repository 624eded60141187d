"""Load Diffusers SD3: a diffusers folder as MODEL, CLIP and VAE."""

from comfy_api.latest import io

from .host import when_needed
from .types import CATEGORY

diffusers_folder = when_needed("diffusers_folder")


class LoadDiffusersSD3(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCLoadDiffusersSD3",
            display_name="Load Diffusers SD3 (SD3.5 folder)",
            category=CATEGORY,
            description="Loads SD3 or SD3.5 from a diffusers folder in models/diffusers. For single files use the stock loaders.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=diffusers_folder.folders(),
                    tooltip="A folder inside models/diffusers that holds model_index.json, transformer, vae and the text encoders. "
                    "Leave text_encoder_3 (T5) out to save 9.5 GB of memory; texts are then read less well.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="To Train Extractor, Pure Learning, Apply Concept, or a sampler."),
                io.Clip.Output(tooltip="The folder's text encoders; empty where it has none."),
                io.Vae.Output(tooltip="The folder's VAE."),
            ],
        )

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        return io.NodeOutput(*diffusers_folder.load(folder))


NODES = [LoadDiffusersSD3]
