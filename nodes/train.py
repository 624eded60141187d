"""Train Extractor and Pure Learning: the two stages."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..purecc.concept import Concept
from ..purecc.job import FinishedJob, Job
from ..purecc.network import EXTRACTOR, PURE
from ..purecc.objective import ORIGINALS
from ..purecc.presets import ON_FACE, SHIPPED
from ..purecc.scenes import with_scenes
from ..purecc.settings import EMBEDDINGS, METHODS, PURE_METHODS
from ..purecc.stages import ExtractorJob, PureJob
from .follow import FOUND, Validation, follow, report
from .host import when_needed
from .types import CATEGORY, Advanced, ConceptWire, Data, SettingsWire, TrainingData

convert, folders = when_needed("convert"), when_needed("folders")
session, training = when_needed("session"), when_needed("training")

ANCHORS = ("background_anchor", "scene_anchor")  # of the face, for the methods with L_PureCC


def common_inputs(steps: int, embeddings: bool) -> list:
    """The inputs that both stages share; `embeddings`: this stage makes them."""
    inputs = [
        io.Int.Input("steps", default=steps, min=1, max=100_000, tooltip="How long it learns. 200 to 800; the paper's 400. Too few: no likeness; too many: the references are copied."),
        io.Int.Input("batch_size", default=2, min=1, max=64, tooltip="Pictures in each step. 1 to 4, the paper's 2. More is calmer, and costs time and memory."),
        io.Float.Input(
            "learning_rate", default=1e-4, min=1e-7, max=1.0, step=1e-5, round=1e-7,
            tooltip="How far each step moves the LoRA. 1e-4 for SD3.5, 5e-4 for the Pocket Model. Too high: pictures break or copy.",
        ),
        io.Float.Input(
            "embedding_rate", default=5e-3, min=1e-7, max=1.0, step=1e-4, round=1e-7,
            tooltip="How far each step moves the concept's embeddings. 1e-3 to 5e-2. Too high: the loss jumps; too low: no likeness.",
        ),
        io.Int.Input("rank", default=4, min=0, max=256, tooltip="Size of the LoRA: how much it can hold. 4 to 16, the paper's 4. More holds finer detail and more of the background. 0: no LoRA, the embeddings learn alone."),
    ]  # fmt: skip
    if embeddings:
        inputs.append(
            io.Combo.Input(
                "embeddings", options=list(EMBEDDINGS), default="replace",
                tooltip="How the concept's layer-wise embeddings act where the trigger stands: replace what the block reads there "
                "(the paper, and a good choice), are added to it (offset: starts exactly at the class word), or are not used (none).",
            )
        )  # fmt: skip
    inputs.append(
        io.Int.Input(
            "seed", default=0, min=0, max=2**31 - 1, control_after_generate=False,
            tooltip="Chance of the training, any number. Same inputs and seed: the finished run is returned, not trained again.",
        )
    )  # fmt: skip
    inputs.append(SettingsWire.Input("settings", optional=True, tooltip="From Settings, for what few people touch."))
    return inputs


class TrainExtractor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCTrainExtractor",
            display_name="Train Extractor (LoRA, SD3 concept)",
            category=CATEGORY,
            description="Stage 1: learns what the concept looks like, without care for the rest of the model. Its result guides "
            "Pure Learning. It can be applied and sampled too.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD3 type model, as loaded, or with LoRAs (they then count as the base)."
                ),
                Data.Input("data", tooltip="From Concept Set."),
                *common_inputs(400, embeddings=True),
            ],
            outputs=[
                ConceptWire.Output(
                    "extractor", display_name="extractor", tooltip="For Pure Learning, Apply or Save Concept."
                ),
                io.String.Output("report", display_name="report", tooltip="Figures of the run."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=False,
        )

    @classmethod
    def execute(cls, model, data: TrainingData, settings: Advanced | None = None, **face) -> io.NodeOutput:
        advanced = settings or Advanced()
        train = advanced.train_settings("extractor", **face)
        with session.outside_inference():
            validation = Validation(data, convert.sampling_shift(model), advanced)
            if job := training.finished(model, data, train):
                follow(job, validation, cls.hidden.unique_id, EXTRACTOR, True)
                text = f"{report('Extractor', job)}\n{FOUND}"
                return io.NodeOutput(job.concept, text, ui=shown(job, text))
            with training.prepared(model, data, train) as it:
                root = folders.runs_folder()
                job = ExtractorJob(it.network, data.concept_set, it.settings, it.scaling, root, it.base, it.values)
                follow(job, validation, cls.hidden.unique_id, EXTRACTOR, it.models_stay)
                text = f"{report('Extractor', job)}\n{it.told()}"
        return io.NodeOutput(job.concept, text, ui=shown(job, text))


class PureLearning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCPureLearning",
            display_name="Pure Learning (fine-tune, DreamBooth)",
            category=CATEGORY,
            description="Stage 2: teaches the model the concept, and holds everything else where it was. With the method LoRA it is "
            "a plain LoRA on the same data, to compare with.",
            inputs=[
                io.Model.Input("model", tooltip="The same model as in Train Extractor."),
                Data.Input("data", tooltip="From Concept Set."),
                ConceptWire.Input("extractor", optional=True, tooltip="From Train Extractor. PureCC must have it, unless eta is 0; the three LoRA methods begin "
                                  "with its embeddings where it is there, merged stage leaves it aside."),
                io.Combo.Input(
                    "method", options=list(METHODS), default="PureCC",
                    tooltip="PureCC: loss L_CC + eta L_PureCC, guided by the extractor. merged stage: the same, but the extractor "
                    "learns in the same steps (the paper's ablation). To compare with: LoRA: L_CC alone, no care for the rest of "
                    "the model. LoRA + prior preservation: and the base's own pictures of the class, drawn first (DreamBooth). "
                    "LoRA + DOP: and captions without the trigger held at the base's prediction.",
                ),
                io.Float.Input(
                    "eta", default=ON_FACE["eta"], min=0.0, max=20.0, step=0.05,
                    tooltip="Weight of purity by the extractor's guidance, against likeness. 0: the anchors alone hold the rest, and no extractor is needed. "
                    "0.1 to 0.5 hold more and learn slower, 1 is the paper's. Used by PureCC, and by merged stage, which needs it above 0.",
                ),
                io.Float.Input(
                    "fixed_lambda", default=0.0, min=0.0, max=10.0, step=0.1,
                    tooltip="0: lambda* is adaptive, fitted for each picture at each step (the paper). Above 0: this fixed scale in "
                    "its place, the paper's ablation. Without effect at eta 0.",
                ),
                io.Combo.Input(
                    "original", options=list(ORIGINALS), default="frozen base",
                    tooltip="Whose prediction stays the aim for everything but the concept: the untouched base, or, as in "
                    "the paper's equation 9, the model that is learning; detached: without a gradient through it. Without effect at eta 0.",
                ),
                *common_inputs(400, embeddings=False),
                # new widgets go last, and may be missing: workflows keep widget values by their place
                io.Float.Input(
                    "background_anchor", default=ON_FACE["background_anchor"], min=0.0, max=100.0, step=0.5, optional=True,
                    tooltip="Weight of a loss that holds what lies around the concept at the base model's prediction. Where that is, "
                    "the masks of Concept Set say, or else the base model, which is asked where it sees the class word. 0: none "
                    "(the paper); 1 to 3. A style has no surroundings. Used by PureCC and merged stage.",
                ),
                io.Float.Input(
                    "scene_anchor", default=ON_FACE["scene_anchor"], min=0.0, max=100.0, step=0.05, optional=True,
                    tooltip="Weight of a loss that keeps other things in the picture from taking on the concept's looks. The base model first "
                    "draws the class beside a cat, a car, ... (16 pictures, kept); outside the concept's place they stay as they "
                    "are, and in it the concept is kept as it is alone (scene_concept in Settings). 0: none (the paper); 0.25 to 1. Used by PureCC and merged stage.",
                ),
            ],
            outputs=[
                ConceptWire.Output("concept", display_name="concept", tooltip="For Apply Concept and Save Concept."),
                io.Image.Output("validation", display_name="validation",
                                tooltip="One seed: the base model without the trigger, then the customised model with it. After them, "
                                "for each prompt of Settings, the base model and the customised one. Then the next seed of Settings."),
                io.String.Output("report", display_name="report", tooltip="Figures of the run."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, data: TrainingData, method, eta, fixed_lambda, original, extractor: Concept | None = None,
        settings: Advanced | None = None, **face,
    ) -> io.NodeOutput:  # fmt: skip
        advanced = settings or Advanced()
        anchors = {name: face.pop(name, ON_FACE[name]) for name in ANCHORS}  # a workflow may be older than they are
        pure = advanced.pure_settings(
            method=method, eta=eta, original=original, fixed_scale=fixed_lambda or None,
            **{name: SHIPPED[name] for name in ("scene_concept", "background_loss")},  # of Settings, where there is one
            **{name: value if method in PURE_METHODS else 0.0 for name, value in anchors.items()},
        )  # fmt: skip
        if pure.method == "merged stage" and not pure.eta:
            raise ValueError(
                "merged stage trains an extractor that guides by eta, which is 0. Set eta above 0; the paper's is 1."
            )
        if data.concept_set.class_text is None:  # of a style: nothing is beside it
            pure = replace(pure, scene_anchor=0.0)
        extractor = None if pure.method == "merged stage" else guide(extractor, advanced)
        title = pure.method
        if extractor is None and title == "PureCC":
            pure, title = pure.without_extractor(), "PureCC at eta 0, without an extractor: L_CC and the anchors"
        train = advanced.train_settings("pure", **embeddings_of(extractor, advanced.stage2_embeddings), **face)
        with session.outside_inference():
            shift = convert.sampling_shift(model)
            if pure.scene_anchor:
                data = replace(data, concept_set=with_scenes(data.concept_set, data.encoder))
            validation = Validation(data, shift, advanced)
            with training.prepared(model, data, train, pure, extractor) as it:
                root = folders.runs_folder()
                job = PureJob(
                    it.network, data.concept_set, it.settings, it.scaling, root, it.base, pure, extractor, it.values
                )
                follow(job, validation, cls.hidden.unique_id, PURE, it.models_stay)
                text = f"{report(title, job)}\n{it.told()}"
                if PURE not in it.network.models:  # a finished run was returned
                    it.network.add_concept(PURE, job.concept)
                pictures = validation.pairs(it.network, it.scaling, PURE)
        return io.NodeOutput(job.concept, pictures, text, ui=shown(job, text))


def guide(concept: Concept | None, advanced: Advanced) -> Concept | None:
    """What guides stage 2: the extractor, or its embeddings alone.

    Raises ValueError where a finished concept stands in an extractor's place (its direction would be the wrong one), and
    where the embeddings are to guide alone but there are none.
    """
    if concept is None:
        return None
    if concept.role != "extractor":
        raise ValueError(
            f'What is connected to extractor is the finished concept "{concept.trigger} {concept.class_word}", not an '
            "extractor. Connect the output of Train Extractor, or a file that was saved from it."
        )
    if advanced.guides_with_lora:
        return concept
    if concept.embeddings is None and concept.token_embeddings is None:
        raise ValueError(
            "The extractor is to guide without its LoRA, but it was trained without embeddings: nothing would guide. Turn on "
            "extractor_lora in Settings, or train the extractor with embeddings."
        )
    return replace(concept, lora=None)


def embeddings_of(extractor: Concept | None, asked: str | None) -> dict[str, Any]:
    """Stage 2's settings of embeddings; None is asked: as the extractor has them; the paper's way where there is none.

    Raises ValueError where layer-wise ones are asked for and the extractor has none to begin with.
    """
    if extractor is None:
        return {"embeddings": asked or "replace"}
    if asked not in (None, "none") and extractor.embeddings is None:
        raise ValueError(
            f'stage2_embeddings is "{asked}", but the extractor has no layer-wise embeddings to begin with. Choose "as the extractor" in '
            "Settings, or train the extractor with embeddings."
        )
    mode = extractor.embeddings.mode if extractor.embeddings else "none"
    return {"embeddings": asked or mode, "tokens": extractor.token_embeddings is not None and asked != "none"}


def shown(job: Job | FinishedJob, text: str) -> dict[str, list[str]]:
    """What the page gets when the node is done: the report, and the run for the chart."""
    return {"text": [text], "purecc_run": [job.run.folder.name]}


NODES = [TrainExtractor, PureLearning]
