"""Settings: what few people touch, on one optional node for both stages."""

from typing import get_args

from comfy_api.latest import io, ui

from ..purecc.concept import GATES, EmbeddingMode
from ..purecc.objective import TARGET_TEXTS
from ..purecc.presets import PRESETS, SHIPPED
from ..purecc.settings import (
    CLASS_TEXTS,
    DTYPES,
    ETA_SCHEDULES,
    MEMORIES,
    RATE_SCHEDULES,
    TARGETS,
    TIMES,
    PureSettings,
    TrainSettings,
)
from .types import CATEGORY, Advanced, SettingsWire

AS_EXTRACTOR = "as the extractor"
_OPEN = 100.0  # a bound of lambda at this distance is none


def _inputs() -> list:
    train, pure = TrainSettings(), PureSettings()
    return [
        io.Combo.Input(
            "preset", options=list(PRESETS), default="as shown",
            tooltip="as shown: what this node and the training nodes show; their defaults are the pack's. paper: the paper's "
            "settings. public code: those of its authors' code (fixed lambda 1, eta 2, 400 and 800 steps of 4 pictures, the extractor's "
            "LoRA does not guide). The last two stand above all that the nodes show; the report names them.",
        ),
        io.Combo.Input(
            "gate", options=list(GATES), default=train.gate,
            tooltip="Where LoRA and embeddings act while they learn, and by default later. off: everywhere (the paper). "
            "conditioning: in texts that hold the trigger. picture: trained as conditioning, applied in the negative prompt too. "
            "rows: on the trigger's own rows of the text, picture weights stay the base's. With all but off, prompts without the "
            "trigger are the base model exactly.",
        ),
        io.Combo.Input(
            "targets", options=list(TARGETS), default=train.targets,
            tooltip="Which weights carry the LoRA. attention: the paper's, a good choice. More hold more and cost memory; text "
            "stream only changes how words are read and leaves the picture's own weights.",
        ),
        io.Int.Input(
            "first_block", default=train.first_block, min=0, max=999,
            tooltip="The first joint block that carries the LoRA, from 0. 0 for all; early blocks decide layout more than detail.",
        ),
        io.Int.Input(
            "last_block", default=-1, min=-1, max=999,
            tooltip="The last joint block that carries the LoRA. -1: the model's last. SD3.5 Medium has 0 to 23, the Pocket Model 0 to 3.",
        ),
        io.Float.Input(
            "alpha", default=0.0, min=0.0, max=1024.0, step=1.0,
            tooltip="The LoRA's change is multiplied by alpha / rank. 0: as large as the rank, so by 1 (the paper). Twice alpha acts "
            "much like twice the learning rate.",
        ),
        io.Combo.Input(
            "stage2_embeddings", options=[AS_EXTRACTOR, *get_args(EmbeddingMode), "none"], default=AS_EXTRACTOR,
            tooltip="Embeddings of Pure Learning. as the extractor: a copy of its own; replace, where there is no extractor. none: "
            "the LoRA learns alone, as plain LoRA trainers have it. Train Extractor has a choice of its own.",
        ),
        io.Boolean.Input(
            "train_embeddings", default=pure.train_embeddings,
            tooltip="Whether Pure Learning goes on learning its copy of the embeddings (the paper's figure 3), or leaves it as it is.",
        ),
        io.Boolean.Input(
            "extractor_lora", default=True,
            tooltip="Whether the extractor guides with its LoRA (the paper), or with its embeddings alone, as the public code does.",
        ),
        io.Combo.Input(
            "target", options=list(TARGET_TEXTS), default=pure.target,
            tooltip='What the guidance is the difference of. null-relative: "[V] dog" and nothing (the paper). class-relative: "[V] '
            'dog" and "dog", without the class. in-context: each caption with [V] and without.',
        ),
        io.Combo.Input(
            "eta_schedule", options=list(ETA_SCHEDULES), default=pure.eta_schedule,
            tooltip="Where on the way from noise to picture eta weighs most; its mean stays. constant: everywhere alike (the paper). "
            "high noise: where layout is decided. low noise: where detail is.",
        ),
        io.Float.Input(
            "lambda_multiplier", default=pure.scale_multiplier, min=-10.0, max=10.0, step=0.05,
            tooltip="Multiplies the adaptive lambda*. 1 is the paper's; above it pushes along the concept's direction. 0.5 to 1.5 are "
            "worth a try at eta 1 with a constant eta_schedule. From 1 + 1 / eta on it needs a lambda_max, or lambda* grows without end. 0 aims at the base "
            "model's picture.",
        ),
        io.Float.Input(
            "lambda_min", default=-_OPEN, min=-_OPEN, max=_OPEN, step=0.05,
            tooltip="lambda* is never below this. -100: open (the paper). 0 keeps it from pointing away from the concept early on.",
        ),
        io.Float.Input(
            "lambda_max", default=_OPEN, min=-_OPEN, max=_OPEN, step=0.05,
            tooltip="lambda* is never above this. 100: open (the paper).",
        ),
        io.Float.Input(
            "base_anchor", default=pure.base_anchor, min=0.0, max=100.0, step=0.1,
            tooltip="Weight of a loss that holds the captions without the trigger at the base model's prediction (DOP), with any "
            "method. 0: none (the paper). 0.5 to 2 keep other prompts and learn slower; another text to learn by in each step.",
        ),
        io.Float.Input(
            "null_anchor", default=pure.null_anchor, min=0.0, max=100.0, step=0.1,
            tooltip="The same for the empty prompt, which guidance (cfg) multiplies. 0: none (the paper); 0.5 to 2.",
        ),
        io.Float.Input(
            "preservation_weight", default=pure.preservation_weight, min=0.0, max=100.0, step=0.1,
            tooltip="Weight of what the methods LoRA + prior preservation and LoRA + DOP add to L_CC. 1 is usual.",
        ),
        io.Int.Input(
            "class_pictures", default=pure.class_pictures, min=1, max=1000,
            tooltip="For prior preservation: pictures of the class that the base model draws before the first step, once, and keeps "
            "beside the runs. 16 to 200; each costs one sampling.",
        ),
        io.Combo.Input(
            "class_texts", options=list(CLASS_TEXTS), default=pure.class_texts,
            tooltip='What these pictures show. class: "a dog". base: the captions without the trigger. A style has its captions always.',
        ),
        io.Int.Input("class_steps", default=pure.class_steps, min=1, max=200, tooltip="Sampling steps of the class pictures, and of the scene anchor's. 20 to 40."),
        io.Float.Input(
            "class_guidance", default=pure.class_guidance, min=1.0, max=20.0, step=0.1,
            tooltip="Guidance (cfg) of the class pictures, and of the scene anchor's. 3.5 to 5 for SD3.5, 4 for the Pocket Model.",
        ),
        io.Float.Input(
            "class_shift", default=pure.class_shift, min=0.1, max=20.0, step=0.1,
            tooltip="Shift of their sampling schedule, and of the scene anchor's. 3 for SD3.5; the model's own.",
        ),
        io.Float.Input(
            "background_weight", default=train.background_weight, min=0.0, max=1.0, step=0.05,
            tooltip="Weight of the losses outside the concept set's masks; below 1 it needs a mask for each picture, and counts in place of "
            "background_loss. 0.1 to 0.5 learn less of the background. 1: as it comes.",
        ),
        io.Combo.Input(
            "schedule", options=list(RATE_SCHEDULES), default=train.schedule,
            tooltip="How both learning rates go on after the warm-up: constant, or down to nothing along half a cosine.",
        ),
        io.Int.Input(
            "warmup", default=train.warmup, min=0, max=100_000,
            tooltip="Steps in which both learning rates rise from nothing. 0 is the pack's; 10 to 50 calm a high rate.",
        ),
        io.Combo.Input(
            "times", options=list(TIMES), default=train.times,
            tooltip="How much noise is learnt at. logit-normal: any amount. diffusers grid: the 1000 that diffusers' SD3 scripts draw from.",
        ),
        io.Float.Input(
            "shift", default=train.shift, min=0.1, max=20.0, step=0.1,
            tooltip="Moves training towards noise, as sampling is moved. 3 is SD3's; 1 learns more detail and less layout.",
        ),
        io.Int.Input(
            "accumulate", default=train.accumulate, min=1, max=64,
            tooltip="Forwards of batch_size pictures that make one step. 2 to 4 in place of a larger batch, where memory is short; "
            "costs as much time.",
        ),
        io.Boolean.Input(
            "checkpointing", default=train.checkpointing,
            tooltip="Computes activations again in the backward pass: much less memory, a fifth to a half more time. The result is the same.",
        ),
        io.Float.Input(
            "max_grad_norm", default=train.max_grad_norm, min=0.001, max=1000.0, step=0.1, round=0.001,
            tooltip="Longer gradients are cut to this length: a single picture that stands out does no harm. 0.1 to 1. A loss that jumps all the "
            "time needs lower rates.",
        ),
        io.Float.Input(
            "weight_decay", default=train.weight_decay, min=0.0, max=1.0, step=1e-4, round=1e-6,
            tooltip="How much AdamW shrinks the LoRA's weights: by this times the rate at each step, next to nothing in a few hundred. 1e-4; 0.1 to 1 "
            "for thousands of steps.",
        ),
        io.Int.Input(
            "checkpoint_every", default=train.checkpoint_every, min=1, max=100_000,
            tooltip="Steps between two checkpoints on disk: what a power cut can cost, and never more than a minute. A cancel always leaves one. 20 to 200.",
        ),
        io.String.Input(
            "validation_prompts", default="", multiline=True,
            tooltip="Prompts to draw while it learns, one a line, with the trigger or without it: beside the first caption in the "
            "preview, and at the end in the output validation. Empty: none. Each costs one sampling.",
        ),
        io.Int.Input(
            "validation_every", default=0, min=0, max=100_000,
            tooltip="Steps between two previews. 0: four in a run.",
        ),
        io.Boolean.Input(
            "modulation_table", default=train.modulation_table,
            tooltip="Keeps the adaLN layers, a third of the model, in main memory and computes what they give ahead of the steps: "
            "1.5 GB less on the GPU with SD3.5 Medium. The result is the same.",
        ),
        io.Boolean.Input(
            "token_embeddings", default=train.token_embeddings,
            tooltip="The trigger's own input embeddings in CLIP-L and CLIP-G learn too, at the embedding rate (textual inversion, as the "
            "public code has it); with embeddings none they learn in place of the layer-wise ones. Keeps both encoders on the GPU while it trains: 3.3 GB "
            "with SD3.5, and 0.2 GB for each text with the trigger in a step. Pure Learning goes on with its extractor's. Off is the paper.",
        ),
        io.Int.Input(
            "stop_patience", default=train.stop_patience, min=0, max=1000,
            tooltip="Early stop: ends a run after so many evaluations in a row that gained too little, and keeps the best of them. "
            "Each takes the loss on the references with noise and times that never change. 0: off, all steps are done (the paper). 2 to 5.",
        ),
        io.Int.Input(
            "stop_every", default=train.stop_every, min=1, max=100_000,
            tooltip="Steps between two evaluations of early stop. 20 to 100; each costs about as much as one step for each picture at most.",
        ),
        io.Float.Input(
            "stop_gain", default=train.stop_gain, min=0.0, max=0.99, step=0.001, round=0.0001,
            tooltip="Share by which the loss must have fallen since the last gain. 0.01 is 1 %; 0.002 to 0.02. 0: any fall is a gain, "
            "so that it may never stop.",
        ),
        io.String.Input(
            "validation_seeds", default="0",
            tooltip="Noise of the preview and validation pictures, any whole numbers: 0, or 0, 1, 2. Every prompt is drawn with each, so "
            "two seeds take twice the time. 1 to 3 of them.",
        ),
        io.Combo.Input(
            "dtype", options=list(DTYPES), default=train.dtype,
            tooltip="Number format of the frozen model while it trains; what learns is always float32. auto: bfloat16 where the device has "
            "it, a good choice. float32: twice the memory and slower, to the last digit. float16 is not offered: small gradients vanish in it.",
        ),
        io.Combo.Input(
            "memory", options=list(MEMORIES), default=train.memory,
            tooltip="What may be turned on where GPU memory is short, the cheapest that fits: scenes apart, modulation_table, checkpointing, the "
            "frozen base in float8, in NF4, blocks waiting in main memory. auto: for what is free, a good choice. 24 to 6 GB: as on a "
            "card of that size. as set: nothing. The report tells what it was.",
        ),
        # new widgets go last, and may be missing: workflows keep widget values by their place
        io.Float.Input(
            "scene_concept", default=SHIPPED["scene_concept"], min=0.0, max=100.0, step=0.05, optional=True,
            tooltip="With a scene_anchor: weight of a loss that keeps the concept, where it stands beside other things, as it is alone; the scene "
            "anchor by itself may let it fade there. 0: none (the paper). 0.25 beside a scene_anchor of 0.5 is what was measured. A step takes "
            "about a fifth longer.",
        ),
        io.Boolean.Input(
            "record_steps", default=train.record_steps, optional=True,
            tooltip="On an NVIDIA GPU with room for it, where ComfyUI was started with --disable-cuda-malloc, a step's work is recorded once and "
            "then launched as a whole (a CUDA graph): less time on fast cards, the same result to rounding. Off: never. Not with checkpointing, modulation_table or token_embeddings.",
        ),
        io.Float.Input(
            "background_loss", default=SHIPPED["background_loss"], min=0.01, max=1.0, step=0.05, optional=True,
            tooltip="With a background_anchor: weight of L_CC and L_PureCC around the concept, against 1 on it; their mean stays. What lies there is held at the "
            "base model, so there is nothing to learn, and the learning goes to the concept. 1: alike everywhere (the paper). 0.1 is what was measured.",
        ),
    ]  # fmt: skip


class Settings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCSettings",
            display_name="Settings (advanced training)",
            category=CATEGORY,
            description="Everything about training that is not on the training nodes themselves. At its defaults it changes nothing. "
            "Connect one to both stages.",
            inputs=_inputs(),
            outputs=[
                SettingsWire.Output(
                    "settings", display_name="settings", tooltip="For Train Extractor and Pure Learning."
                )
            ],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        advanced = advanced_of(values)
        return io.NodeOutput(advanced, ui=ui.PreviewText(advanced.described()))


def advanced_of(values: dict) -> Advanced:
    """The node's values as settings by their own names. Raises ValueError for bounds of lambda* that leave no room, and for seeds that are none."""
    values = dict(values)
    prompts = tuple(" ".join(line.split()) for line in values.pop("validation_prompts").splitlines() if line.strip())
    seeds = _seeds(values.pop("validation_seeds"))
    embeddings = values.pop("stage2_embeddings")
    own = {name: values.pop(name) for name in ("preset", "extractor_lora", "validation_every")}
    lowest, highest = values.pop("lambda_min"), values.pop("lambda_max")
    if lowest > highest:
        raise ValueError(f"lambda_min is {lowest:g}; it must be at most lambda_max, {highest:g}.")
    pure = {
        "scale_multiplier": values.pop("lambda_multiplier"),
        "scale_min": None if lowest <= -_OPEN else lowest,
        "scale_max": None if highest >= _OPEN else highest,
    }
    pure |= {name: values.pop(name) for name in list(values) if name in PureSettings.__dataclass_fields__}
    last = values.pop("last_block")
    train = {**values, "last_block": None if last < 0 else last}
    return Advanced(
        train=train, pure=pure, stage2_embeddings=None if embeddings == AS_EXTRACTOR else embeddings,
        validation_prompts=prompts, validation_seeds=seeds, **own,
    )  # fmt: skip


def _seeds(text: str) -> tuple[int, ...]:
    """ "0, 1 2" -> (0, 1, 2). Raises ValueError for anything but whole numbers from 0, and for none."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) < 2**63 for part in parts):
        raise ValueError(f'validation_seeds is "{text}"; it must be whole numbers from 0, as 0 or 0, 1, 2.')
    return tuple(dict.fromkeys(map(int, parts)))


NODES = [Settings]
