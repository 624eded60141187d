"""Apply Concept: a trained concept on MODEL and CLIP."""

from comfy_api.latest import io

from ..purecc.concept import Concept
from .checks import require_clip
from .host import when_needed
from .types import CATEGORY, GATE_CHOICES, ConceptWire

adapter = when_needed("apply")


class ApplyConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCApplyConcept",
            display_name="Apply Concept (textual inversion)",
            category=CATEGORY,
            description="Adds a concept to MODEL and CLIP, which then work with all stock nodes. Prompts call it by its trigger. "
            "Chain several nodes for several concepts.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the concept was trained on."),
                io.Clip.Input("clip", tooltip="Its CLIP. Encode your prompts with the CLIP that comes out of this node."),
                ConceptWire.Input("concept", tooltip="From Pure Learning, Train Extractor or Load Concept."),
                io.Float.Input(
                    "strength", default=1.0, min=-2.0, max=2.0, step=0.05,
                    tooltip="How strongly the LoRA acts. 1 as trained, 0 off; 0.6 to 1.2 are useful.",
                ),
                io.Float.Input(
                    "embedding_strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="How strongly the concept's embeddings act where the trigger stands. 1 as trained, 0 off; 0.6 to 1 are useful.",
                ),
                io.Combo.Input(
                    "gate", options=list(GATE_CHOICES), default="as trained",
                    tooltip="picture: the LoRA acts only in pictures whose prompt holds the trigger; all others are the base "
                    "model's, exactly. conditioning: as picture, but not in the negative prompt: stronger, and more of the "
                    "background changes. rows: it acts on the trigger's own rows of the text only; for concepts that were "
                    "trained so. off: it always acts, as a plain LoRA does. as trained: the gate that the concept was trained "
                    "with; where it was trained without, picture, and for a style conditioning.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="Where in the sampling the concept begins to act. 0: from the start. 0.15 to 0.3 leave more of the layout to the base model than hold_surroundings does.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="Where in the sampling it ends. 1: at the end. 0.6 to 0.9 leave the finest detail to the base model.",
                ),
                io.Boolean.Input(
                    "hold_surroundings", default=True, optional=True,
                    tooltip="Around the concept the picture stays the base model's own: it lays the picture out alone, then in each step the place where "
                    "the concept changes most is looked for, and all else is left to the base. Of several each has a place of its own; a style changes the whole picture, by a part of what it would. "
                    "Pictures with the trigger take nearly twice as long, with two concepts three times; others are not touched. "
                    "Off: the concept acts all over the picture, as it always does with the gate off and with token_embeddings.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="To the sampler."),
                io.Clip.Output(tooltip="To the text encode nodes."),
                io.String.Output("trigger", display_name="trigger", tooltip="The word that calls the concept."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concept: Concept,
        strength,
        embedding_strength,
        gate,
        start_percent=0.0,
        end_percent=1.0,
        hold_surroundings=True,
    ) -> io.NodeOutput:
        require_clip(clip)
        span = (start_percent, end_percent)
        model, clip = adapter.apply_concept(
            model, clip, concept, strength, embedding_strength, gate, span, hold_surroundings
        )
        return io.NodeOutput(model, clip, concept.trigger)


NODES = [ApplyConcept]
