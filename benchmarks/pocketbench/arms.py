"""The arms: every way of learning that is compared, each as the settings in which it differs from the common ones."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from purecc.concept import Gate
from purecc.place import LAYOUT, LOOK_SHARE, NEGATIVE_SHARE
from purecc.prompts import Kind
from purecc.settings import PureSettings, TrainSettings, as_plain

#: common to all arms. As many pictures as the paper's 400 steps of 2. Its learning rate is for a model 200 times as large; at
#: this one a plain LoRA is as faithful as at any other (0.71; 0.72 at 1e-3, 0.70 at 3e-4, where it harms less: the test has that one too)
COMMON = {"steps": 200, "batch_size": 4, "learning_rate": 5e-4, "embedding_rate": 5e-3, "rank": 4, "alpha": 4.0}
OTHER_RATES = ("1e-3", "3e-4")  # an arm's name then ends in ", rate 1e-3"
STRENGTHS = (0.6, 1.0, 1.4)
#: how `purecc.place` holds, in the file of each case that was drawn so: one that was held otherwise is another arm's
HELD_BY: dict[Kind, dict[str, Any]] = {
    "instance": {"negative_share": NEGATIVE_SHARE, "edge": "soft", "layout": LAYOUT},
    "style": {"look_share": LOOK_SHARE, "layout": LAYOUT},
}


@dataclass(frozen=True)
class Arm:
    """One way of learning. `common` changes both stages, `pure` is of stage 2, `own` changes stage 2's training alone."""

    pure: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    guided: bool = True  # method "PureCC" alone: at eta 0 it needs no extractor
    tokens: int = 1
    masks: bool = True  # given with the references, where the arm's settings use them
    #: put on what was trained without one: training never shows it a text without the trigger. "by kind": `Concept.sampling_gate`
    sampling_gate: Gate | Literal["by kind"] | None = None
    hold_surroundings: bool = False  # in sampling, see `purecc.place`

    @property
    def pure_settings(self) -> PureSettings:
        return PureSettings(**self.pure)

    @property
    def needs_extractor(self) -> bool:
        return self.guided and self.pure_settings.method == "PureCC"

    def taught(self, seed: int, kind: str, **changes: Any) -> dict[str, Any]:
        """What a run of it on a concept of this kind is taught with, as its file tells it."""
        pure = self.pure_settings if self.needs_extractor else self.pure_settings.without_extractor()
        if kind == "style":  # it has no surroundings
            pure = replace(pure, background_anchor=0.0, background_loss=1.0, scene_anchor=0.0, scene_concept=0.0)
        return as_plain(self.train_settings(seed, **changes)) | asdict(pure)

    def extractor_settings(self, seed: int, **changes: Any) -> TrainSettings:
        return _train_settings(seed, self.common, changes)

    def train_settings(self, seed: int, **changes: Any) -> TrainSettings:
        return _train_settings(seed, self.common, self.own, changes)


def _train_settings(seed: int, *parts: dict[str, Any]) -> TrainSettings:
    values = dict(COMMON)
    for part in parts:
        values |= part
    values["alpha"] = float(values["rank"] or 1)
    return TrainSettings(**values, seed=seed)


#: a baseline learns layer-wise embeddings too, from the class word on: they stand for the rare word of a large model's
#: vocabulary, which the pocket has not
_LORA = {"method": "LoRA"}
_NONE = {"embeddings": "none"}
_OFFSET = {"embeddings": "offset"}
_ANCHORED = {"eta": 0.0, "background_anchor": 3.0, "scene_anchor": 0.5, "scene_concept": 0.25}
_TOKEN = {"embeddings": "none", "token_embeddings": True}  # as the public code has it

#: name -> arm
ARMS: dict[str, Arm] = {
    # baselines
    "LoRA": Arm(_LORA),
    "LoRA, 800 steps": Arm(_LORA, own={"steps": 800}),
    "LoRA, 400 steps": Arm(_LORA, own={"steps": 400}),
    "LoRA, 60 steps": Arm(_LORA, own={"steps": 60}),
    "LoRA + prior preservation": Arm({"method": "LoRA + prior preservation"}),
    "LoRA + DOP": Arm({"method": "LoRA + DOP"}),
    "LoRA, no embeddings": Arm(_LORA, _NONE),  # nothing tells the trigger from the class word: what it costs
    # the paper's recipe and its ablations
    "PureCC, paper": Arm({"original": "trainable"}),
    "PureCC, trainable, detached": Arm({"original": "trainable, detached"}),
    "PureCC": Arm({"original": "frozen base"}),
    "merged stage": Arm({"method": "merged stage", "original": "trainable"}),
    "PureCC, lambda 0": Arm({"fixed_scale": 0.0}),
    "PureCC, lambda 1": Arm({"fixed_scale": 1.0}),
    "PureCC, lambda 3": Arm({"fixed_scale": 3.0}),
    "PureCC, lambda 5": Arm({"fixed_scale": 5.0}),
    "PureCC, eta 0": Arm({"eta": 0.0}),  # L_CC alone from the extractor's embeddings on: the paper's "L_CC only"
    "PureCC, eta 0.5": Arm({"eta": 0.5}),
    "PureCC, eta 1.5": Arm({"eta": 1.5}),
    "PureCC, eta 2": Arm({"eta": 2.0}),
    "PureCC, eta 3": Arm({"eta": 3.0}),
    # the guidance's target, eta over time
    "PureCC, class-relative": Arm({"target": "class-relative"}),
    "PureCC, in-context": Arm({"target": "in-context"}),
    "PureCC, eta at high noise": Arm({"eta_schedule": "high noise"}),
    "PureCC, eta at low noise": Arm({"eta_schedule": "low noise"}),
    # embeddings
    "PureCC, offset": Arm({}, _OFFSET),
    "PureCC, no embeddings": Arm({}, _NONE),
    "embeddings alone, 4 tokens": Arm(_LORA, {"rank": 0, "embedding_rate": 5e-2}, tokens=4),
    "PureCC, input embedding": Arm({}, _TOKEN),
    "LoRA, input embedding": Arm(_LORA, _TOKEN),
    "input embedding alone": Arm(_LORA, {**_TOKEN, "rank": 0, "embedding_rate": 5e-2}),
    # anchors
    "PureCC + DOP + null anchor": Arm({"base_anchor": 1.0, "null_anchor": 1.0}),
    # outside the concept the base is held; masks are found by the base, or given
    "LoRA + background": Arm({**_LORA, "background_anchor": 1.0}, masks=False),
    "LoRA + background 3": Arm({**_LORA, "background_anchor": 3.0}, masks=False),
    "LoRA + background 3, 400 steps": Arm({**_LORA, "background_anchor": 3.0}, own={"steps": 400}, masks=False),
    "LoRA + background 3, masks": Arm({**_LORA, "background_anchor": 3.0}),
    "LoRA + background, null anchor": Arm({**_LORA, "background_anchor": 1.0, "null_anchor": 1.0}, masks=False),
    "PureCC + background": Arm({"background_anchor": 1.0}, masks=False),
    "PureCC + background 3": Arm({"background_anchor": 3.0}, masks=False),
    "PureCC, eta 0.5 + background": Arm({"eta": 0.5, "background_anchor": 1.0}, masks=False),
    "PureCC, eta 0.5 + background 3": Arm({"eta": 0.5, "background_anchor": 3.0}, masks=False),
    "PureCC, eta 0.5 + background 3, masks": Arm({"eta": 0.5, "background_anchor": 3.0}),
    "PureCC, eta 0.5 + background, null anchor": Arm(
        {"eta": 0.5, "background_anchor": 1.0, "null_anchor": 1.0}, masks=False
    ),
    "PureCC, eta 0.1 + background 3": Arm({"eta": 0.1, "background_anchor": 3.0}, masks=False),
    "PureCC, eta 0.25 + background 3": Arm({"eta": 0.25, "background_anchor": 3.0}, masks=False),
    "PureCC, eta 0.25 + background 3, picture": Arm(
        {"eta": 0.25, "background_anchor": 3.0}, masks=False, sampling_gate="picture"
    ),
    "PureCC, eta 0.5 + background 3, picture": Arm(
        {"eta": 0.5, "background_anchor": 3.0}, masks=False, sampling_gate="picture"
    ),
    # and in scenes by the base that show the class beside other things; the background anchor of 3 is in all of these
    **{
        f"{name} + scenes {weight:g}{f', {steps} steps' if steps else ''}": Arm(
            {**method, "background_anchor": 3.0, "scene_anchor": weight},
            own={"steps": steps} if steps else {},
            masks=False,
        )
        for name, method, weight, steps in (
            ("LoRA", _LORA, 0.25, 0),
            ("LoRA", _LORA, 0.25, 60),
            ("LoRA", _LORA, 0.25, 400),
            ("LoRA", _LORA, 0.5, 0),
            ("LoRA", _LORA, 0.5, 300),
            ("LoRA", _LORA, 1.0, 0),
            ("LoRA", _LORA, 2.0, 0),
            ("LoRA", _LORA, 1.0, 300),
            ("LoRA", _LORA, 0.5, 400),
            ("PureCC, eta 0.1", {"eta": 0.1}, 1.0, 0),
            ("PureCC, eta 0.1", {"eta": 0.1}, 0.5, 0),
            ("PureCC, eta 0.25", {"eta": 0.25}, 1.0, 0),
            ("PureCC, eta 0.25", {"eta": 0.25}, 1.0, 300),
        )
    },
    "PureCC, eta 0.1 + scenes 0.5, gated": Arm(
        {"eta": 0.1, "background_anchor": 3.0, "scene_anchor": 0.5}, masks=False, sampling_gate="by kind"
    ),
    **{
        f"eta 0 + scenes {weight:g}, gated": Arm(
            {"eta": 0.0, "background_anchor": 3.0, "scene_anchor": weight},
            guided=False,
            masks=False,
            sampling_gate="by kind",
        )
        for weight in (0.25, 0.5)
    },
    **{
        f"eta 0 + scenes 0.25, {name}, gated": Arm(
            {"eta": 0.0, "background_anchor": 3.0, "scene_anchor": 0.25},
            embeddings,
            guided=False,
            masks=False,
            sampling_gate="by kind",
        )
        for name, embeddings in (("input embedding", _TOKEN), ("both embeddings", {"token_embeddings": True}))
    },
    # and at the concept's place in scenes what it is alone
    "eta 0 + scenes 0.5, concept 0.25, gated": Arm(_ANCHORED, guided=False, masks=False, sampling_gate="by kind"),
    # and in sampling the surroundings are the base's; behind the gate too. "background loss": L_CC's weight where the background is anchored
    **{
        f"{name}, held": Arm(pure, guided=False, masks=False, sampling_gate="by kind", hold_surroundings=True)
        for name, pure in (
            ("LoRA", _LORA),
            ("LoRA + background 3", {**_LORA, "background_anchor": 3.0}),
            ("eta 0 + scenes 0.5, concept 0.25", _ANCHORED),
            ("eta 0 + scenes 0.5, concept 0.25, background loss 0.1", {**_ANCHORED, "background_loss": 0.1}),
        )
    },
    # gates: exact without the trigger, by construction
    "LoRA, rows": Arm(_LORA, {"gate": "rows"}),
    "LoRA, rows, 4 tokens": Arm(_LORA, {"gate": "rows"}, tokens=4),
    "LoRA, picture": Arm(_LORA, sampling_gate="picture"),
    "LoRA, conditioning": Arm(_LORA, sampling_gate="conditioning"),
    "PureCC, rows, 4 tokens": Arm({}, {"gate": "rows"}, tokens=4),
    "PureCC, picture": Arm(sampling_gate="picture"),
    "PureCC, picture, eta 0.5": Arm({"eta": 0.5}, sampling_gate="picture"),
    "PureCC, picture, eta 3": Arm({"eta": 3.0}, sampling_gate="picture"),
    "PureCC, conditioning": Arm(sampling_gate="conditioning"),
}

SHIPPED = "eta 0 + scenes 0.5, concept 0.25, background loss 0.1, held"  # the pack's defaults
QUICK = ("LoRA", "LoRA + DOP", "PureCC, paper", "PureCC", SHIPPED)
AT_COMMON_RATE = tuple(ARMS)


def at_rate(name: str, rate: str) -> str:
    """The name of an arm at one of OTHER_RATES, in both stages."""
    return f"{name}, rate {rate}"


ARMS |= {
    at_rate(name, rate): replace(ARMS[name], common={**ARMS[name].common, "learning_rate": float(rate)})
    for rate in OTHER_RATES
    for name in AT_COMMON_RATE
}
