"""Pure Guider: what pure learning aims at, sampled."""

from comfy_api.latest import io, ui

from ..purecc.concept import Concept
from ..purecc.objective import TARGET_TEXTS
from .checks import require_clip
from .host import when_needed
from .types import CATEGORY, ConceptWire

guider = when_needed("guider")


class PureGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCGuider",
            display_name="Pure Guider (v_PureCC, lambda)",
            category=CATEGORY,
            description="Draws what Pure Learning aims at, before anything is learnt: the base model's picture, moved along the "
            "extractor's direction. For SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="The base model, as it comes from its loader."),
                io.Clip.Input("clip", tooltip="Its CLIP, as it comes from its loader; the prompt is encoded with it here."),
                ConceptWire.Input(
                    "extractor",
                    tooltip="From Train Extractor or Load Concept. A finished concept points along its own direction.",
                ),
                io.String.Input(
                    "prompt", default="a ohwx dog in the snow", multiline=True,
                    tooltip="What to draw. The base model reads it without the trigger; the extractor reads its own trigger and "
                    "class word only, or with the target in-context all of it.",
                ),
                io.Float.Input(
                    "cfg", default=4.0, min=0.0, max=30.0, step=0.1,
                    tooltip="Guidance. 3.5 to 5 for SD3.5, 4 for the Pocket Model. It multiplies the concept too.",
                ),
                io.Float.Input(
                    "fixed_lambda", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="lambda: how far to go along the concept's direction. 0 is the base model's picture exactly, 0.3 to 1 are "
                    "useful, more breaks pictures. The adaptive lambda* needs a model that has learnt, so it is not to be had here.",
                ),
                io.Float.Input(
                    "end_factor", default=1.0, min=-2.0, max=4.0, step=0.05,
                    tooltip="lambda at the end of the sampling is this times lambda, on a straight line over the time. 1: constant. "
                    "0: the concept shapes the layout and leaves the details to the base. 2: the other way.",
                ),
                io.Combo.Input(
                    "target", options=list(TARGET_TEXTS), default="null-relative",
                    tooltip='The direction, from what the extractor reads. null-relative: "[V] dog" and nothing (the paper): it draws '
                    'the dog too, where it likes. class-relative: "[V] dog" and "dog". in-context: the prompt with the trigger and '
                    "without it, which keeps closest to the scene.",
                ),
                io.Conditioning.Input(
                    "base", optional=True,
                    tooltip="In place of the base text that is made of the prompt: a prompt without the trigger, for ControlNet, areas "
                    "and the like.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt. Left open: the empty text."),
            ],
            outputs=[
                io.Guider.Output(tooltip="To SamplerCustomAdvanced."),
                io.String.Output("base_text", display_name="base_text", tooltip="What the base model reads."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, extractor: Concept, prompt: str, cfg: float, fixed_lambda: float, end_factor: float, target: str,
        base=None, negative=None,
    ) -> io.NodeOutput:  # fmt: skip
        require_clip(clip)
        texts = guider.GuidedTexts.of(prompt, extractor, target)
        scale = guider.Scale(fixed_lambda, fixed_lambda * end_factor)
        made = guider.pure_guider(model, clip, extractor, texts, cfg, scale, base, negative)
        read = "the input base" if base is not None else texts.base
        return io.NodeOutput(
            made,
            read,
            ui=ui.PreviewText(f"base: {read}\nextractor: {texts.with_concept} - {texts.without or 'nothing'}"),
        )


NODES = [PureGuider]
