"""All settings of a training run: default, unit and meaning beside each, checked where they are made."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from .concept import GATES, EmbeddingMode, Gate
from .frozen import STORAGES, Storage
from .objective import ORIGINALS, TARGET_TEXTS, EtaSchedule, Original, Target
from .targets import TARGETS as TARGETS

Method = Literal["PureCC", "LoRA", "LoRA + prior preservation", "LoRA + DOP", "merged stage"]
METHODS: tuple[Method, ...] = get_args(Method)
PURE_METHODS: tuple[Method, ...] = ("PureCC", "merged stage")  # those with L_PureCC
EMBEDDINGS: tuple[str, ...] = (*get_args(EmbeddingMode), "none")
ETA_SCHEDULES: tuple[EtaSchedule, ...] = get_args(EtaSchedule)

RateSchedule = Literal["constant", "cosine"]
RATE_SCHEDULES: tuple[RateSchedule, ...] = get_args(RateSchedule)
Times = Literal["logit-normal", "diffusers grid"]
TIMES: tuple[Times, ...] = get_args(Times)
Dtype = Literal["auto", "bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Memory = Literal["auto", "24 GB", "16 GB", "12 GB", "8 GB", "6 GB", "as set"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)
ClassTexts = Literal["class", "base"]
CLASS_TEXTS: tuple[ClassTexts, ...] = get_args(ClassTexts)


@dataclass(frozen=True)
class TrainSettings:
    """What both stages share. The paper's: rank 4, learning rate 1e-4, 400 steps, batch 2."""

    steps: int = 400
    batch_size: int = 2  # pictures a forward
    learning_rate: float = 1e-4  # of the LoRA
    embedding_rate: float = 5e-3  # learning rate of the concept embeddings
    rank: int = 4  # 0: no LoRA, the embeddings learn alone
    alpha: float = 4.0  # LoRA's change is alpha / rank * B A
    targets: str = "attention"  # which Linears carry the LoRA, a key of TARGETS
    embeddings: str = "replace"  # how layer-wise embeddings act (eq. 7), or "none"
    shift: float = 3.0  # of the times learnt from: 1 is plain logit-normal, SD3 samples with 3
    max_grad_norm: float = 1.0  # of each model's gradient
    weight_decay: float = 1e-4  # of the LoRA
    seed: int = 0
    checkpoint_every: int = 50  # steps
    gate: Gate = "off"  # where LoRA and embeddings act, see `network`
    first_block: int = 0  # that carries the LoRA
    last_block: int | None = None  # itself too; None: the last there is
    schedule: RateSchedule = "constant"  # of both learning rates
    warmup: int = 0  # steps in which both learning rates rise
    times: Times = "logit-normal"  # continuous, or those of the 1000 that diffusers' SD3 scripts draw
    accumulate: int = 1  # forwards a step, of batch_size each
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, up to half more time
    modulation_table: bool = False  # adaLN's outputs computed ahead, its layers in main memory: the result is the same
    background_weight: float = 1.0  # of the losses outside the concept set's masks; 1: alike everywhere
    token_embeddings: bool = False  # the trigger's input embeddings in the CLIPs learn too, see `token_embeddings`
    stop_patience: int = 0  # evaluations without gain that end a run, see `early_stop`; 0: all steps are done
    stop_every: int = 25  # steps between two evaluations
    stop_gain: float = 0.01  # share of the loss that an evaluation must fall by, to count as gain
    dtype: Dtype = "auto"  # of the frozen weights; what learns is float32. "auto": the host's choice for the device
    memory: Memory = "auto"  # what `savings` may turn on of the savings here: as much as the device needs, or none
    frozen_weights: Storage = (
        "whole"  # how the base's Linears are stored, see `frozen`; all but "whole" change the result
    )
    scenes_apart: bool = False  # the scene anchor's passes on their own: less memory, two forwards more, same result
    # on CUDA with room for it: texts wait there, and where it can be a step's kernels are launched together (see `recorded`); the same result
    record_steps: bool = True
    stream_blocks: bool = False  # the base's blocks wait in main memory: far less memory, much slower, the same result

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "accumulate", "stop_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("rank", "warmup", "first_block", "weight_decay", "stop_patience"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "embedding_rate", "shift", "max_grad_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        _require(self.alpha > 0 or self.rank == 0, "alpha", self.alpha, "above 0")
        _require_one_of(self, targets=TARGETS, embeddings=EMBEDDINGS, gate=GATES, schedule=RATE_SCHEDULES, times=TIMES)
        _require(self.warmup < self.steps, "warmup", self.warmup, f"below the number of steps, {self.steps}")
        _require(0 <= self.background_weight <= 1, "background_weight", self.background_weight, "from 0 to 1")
        _require(0 <= self.stop_gain < 1, "stop_gain", self.stop_gain, "from 0 to below 1")
        last = self.last_block
        _require(last is None or last >= self.first_block, "last_block", last, f"at least {self.first_block}")
        embedded = self.embeddings != "none" or self.token_embeddings
        _require(self.rank > 0 or embedded, "rank", 0, "above 0 where there are no embeddings")
        if self.token_embeddings and self.modulation_table:
            raise ValueError(
                "modulation_table is computed ahead from texts that stay; with token_embeddings they change in each step. Turn one off."
            )
        _require_one_of(self, dtype=DTYPES, memory=MEMORIES, frozen_weights=STORAGES)
        needs = "False where checkpointing is off: else every block's copy would wait for the backward pass"
        _require(self.checkpointing or not self.stream_blocks, "stream_blocks", self.stream_blocks, needs)

    @property
    def can_record(self) -> bool:
        """Whether a CUDA GPU may record its steps (see `recorded`): not where the processor takes part in them.

        Checkpointing asks for the state of chance in the backward pass, adaLN's table answers from main memory, blocks wait there, and texts
        that learn are read by the host's encoders.
        """
        by_processor = (self.checkpointing, self.modulation_table, self.stream_blocks, self.token_embeddings)
        return self.record_steps and not any(by_processor)


@dataclass(frozen=True)
class PureSettings:
    """What stage 2 adds (sections 4.3, 4.4), and what it is compared with.

    "PureCC"                     L_CC + eta L_PureCC
    "merged stage"               the same, but theta1 learns by its own L_CC in the same step (the paper's ablation)
    "LoRA"                       L_CC alone
    "LoRA + prior preservation"  L_CC + preservation_weight * flow matching on the base model's own pictures of the class
    "LoRA + DOP"                 L_CC + preservation_weight * || v2(base text) - v3(base text) ||^2
    """

    method: Method = "PureCC"
    eta: float = 1.0  # weight of L_PureCC beside L_CC, eq. 15
    original: Original = "frozen base"  # where v_original comes from, eq. 9 and section 14
    fixed_scale: float | None = None  # lambda in place of the adaptive lambda*, table 3; 0: no concept in v_PureCC
    train_embeddings: bool = True  # stage 2 goes on learning its copy of the extractor's embeddings (figure 3b)
    target: Target = "null-relative"  # what the guidance R_tar is the difference of, eq. 8
    eta_schedule: EtaSchedule = "constant"  # eta over the time t
    scale_multiplier: float = 1.0  # on lambda*
    scale_min: float | None = None  # lambda is kept within, after the multiplier; None: open
    scale_max: float | None = None
    base_anchor: float = 0.0  # weight of || v2(base text) - v3(base text) ||^2, with any method
    null_anchor: float = 0.0  # weight of || v2(null) - v3(null) ||^2, with any method
    background_anchor: float = 0.0  # weight of || v2(complete) - v3(base) ||^2 outside the masks, with any method
    background_loss: float = 1.0  # weight of the losses there, against 1 on the masks; their mean stays 1
    scene_anchor: float = 0.0  # weight of the same in scenes by the base, with other things beside the class
    scene_concept: float = 0.0  # weight of keeping the concept at its place there as it is alone
    preservation_weight: float = 1.0  # of what "LoRA + prior preservation" and "LoRA + DOP" add
    class_pictures: int = 16  # for prior preservation, drawn once by the base model and kept beside the runs
    class_texts: ClassTexts = "class"  # they show "a dog", or the base texts; a style has its base texts
    class_steps: int = 28  # of the sampling of these, and of scenes
    class_guidance: float = 4.5
    class_shift: float = 3.0

    def __post_init__(self) -> None:
        _require_one_of(
            self, method=METHODS, original=ORIGINALS, target=TARGET_TEXTS, eta_schedule=ETA_SCHEDULES,
            class_texts=CLASS_TEXTS,
        )  # fmt: skip
        for name in (
            "eta", "base_anchor", "null_anchor", "background_anchor", "scene_anchor", "scene_concept",
            "preservation_weight", "class_guidance",
        ):  # fmt: skip
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        _require(0 < self.background_loss <= 1, "background_loss", self.background_loss, "above 0 and at most 1")
        for name in ("class_pictures", "class_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.class_shift > 0, "class_shift", self.class_shift, "above 0")
        for name in ("fixed_scale", "scale_multiplier", "scale_min", "scale_max"):
            value = getattr(self, name)
            _require(value is None or math.isfinite(value), name, value, "a number")
        lowest, highest = self.scale_min, self.scale_max
        if lowest is not None and highest is not None:
            _require(lowest <= highest, "scale_min", lowest, f"at most scale_max, {highest}")
        if (
            self.is_guided
            and self.fixed_scale is None
            and highest is None
            and self.eta * (self.scale_multiplier - 1) >= 1
        ):
            # along R_tar, L_CC + eta L_PureCC is at rest at lambda = lambda of L_CC / (1 - eta (multiplier - 1))
            raise ValueError(
                f"lambda_multiplier is {self.scale_multiplier:g} at eta {self.eta:g}: each step would aim further along the concept than what is "
                f"learnt, without end. Lower it below {1 + 1 / self.eta:g}, or set lambda_max."
            )

    @property
    def is_pure(self) -> bool:
        """Whether L_PureCC is part of the loss."""
        return self.method in PURE_METHODS

    @property
    def is_guided(self) -> bool:
        """Whether L_PureCC has a weight: at eta 0 no guidance is computed (eq. 15)."""
        return self.is_pure and self.eta > 0

    @property
    def parts_loss(self) -> bool:
        """Whether the losses weigh less where the background is anchored."""
        return self.background_anchor > 0 and self.background_loss < 1

    @property
    def keeps_concept(self) -> bool:
        """Whether scenes hold the concept, beside what they hold of the rest."""
        return self.scene_anchor > 0 and self.scene_concept > 0

    def without_extractor(self) -> "PureSettings":
        """What is learnt where nothing guides. PureCC at eta 0 (eq. 15) is L_CC and the anchors: the method "LoRA", which has both.

        Raises ValueError for PureCC at another eta.
        """
        if self.method != "PureCC":
            return self
        if self.eta:
            raise ValueError(
                "PureCC needs an extractor: connect Train Extractor (one that is bypassed counts as none), or choose another method. Without one eta must be 0."
            )
        return replace(self, method="LoRA")

    def used(self) -> dict[str, Any]:
        """What the method reads, so that a setting without effect makes no other run of it."""
        names = ["method", "train_embeddings", "base_anchor", "null_anchor"]
        names += [name for name in ("background_anchor", "scene_anchor") if getattr(self, name)]  # older runs are found
        names += ["background_loss"] if self.parts_loss else []
        names += ["scene_concept"] if self.keeps_concept else []
        if self.is_pure:
            names += ["eta"]
            names += ["original", "fixed_scale", "target", "eta_schedule"] if self.is_guided else []
            names += (
                ["scale_multiplier", "scale_min", "scale_max"] if self.is_guided and self.fixed_scale is None else []
            )
        else:
            names += [] if self.method == "LoRA" else ["preservation_weight"]
            if self.method == "LoRA + prior preservation":
                names += ["class_pictures", "class_texts", "class_steps", "class_guidance", "class_shift"]
        names += ["class_steps", "class_guidance", "class_shift"] if self.scene_anchor else []
        return {name: getattr(self, name) for name in dict.fromkeys(names)}


# dtype too: a run's identity has the network's own
_SAME_RESULT = ("modulation_table", "memory", "scenes_apart", "record_steps", "stream_blocks", "dtype")


def as_plain(settings: TrainSettings) -> dict[str, Any]:
    """Settings as a dictionary, for files and hashes; less what changes nothing in the result.

    Checkpointing and how often a checkpoint is written change nothing either: they stay in as they come, so that finished runs of older
    versions are found.
    """
    plain = {name: value for name, value in asdict(settings).items() if name not in _SAME_RESULT}
    if not settings.stop_patience:
        plain = {name: value for name, value in plain.items() if not name.startswith("stop_")}
    if settings.frozen_weights == "whole":
        del plain["frozen_weights"]
    return plain | {"checkpointing": False, "checkpoint_every": TrainSettings.checkpoint_every}


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {rule}.")


def _require_one_of(settings: object, **choices: Any) -> None:
    for name, allowed in choices.items():
        value = getattr(settings, name)
        _require(value in allowed, name, value, f"one of {', '.join(allowed)}")
