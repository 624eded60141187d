"""v_PureCC integrated in sampling: a guider for the host's SamplerCustomAdvanced (arXiv 2603.07561, figure 8).

    v3(negative) + w (v_original + lambda v_target - v3(negative))
    v_original = v3(base text), v_target = v1(target text) - v1(null)        section 14, eqs. 8, 13; or another of TARGET_TEXTS

theta3 is the MODEL as it comes, theta1 the same with the extractor in forward hooks, so that no weights are exchanged between
the two. The host predicts pictures D = x - sigma v in place of velocities; what eqs. 8 and 13 do to velocities they do to D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...purecc.concept import Concept
from ...purecc.objective import TARGET_TEXTS, Target, implicit_guidance, pure_velocity
from ...purecc.prompts import find_trigger, texts_of
from .acting import Applied, attach
from .apply import check_encoders, check_fits
from .lora import row_loras
from .marks import CONCEPTS
from .text import with_triggers
from .weights import require_sd3

Conditioning = list[list]
_WITH, _WITHOUT = "purecc_with", "purecc_without"  # the concept: texts of theta1 among the guider's conds


@dataclass(frozen=True)
class Scale:
    """A fixed lambda over the time t = sigma: `start` at noise (t = 1), `end` at the picture (t = 0), straight between."""

    start: float
    end: float

    def at(self, t: float) -> float:
        return self.end + (self.start - self.end) * t


class PureGuider(comfy.samplers.CFGGuider):
    """Where lambda is 0 it is the stock CFGGuider, bit for bit, and no forward is added."""

    def __init__(self, model: ModelPatcher, extractor: Applied, scale: Scale):
        super().__init__(model)
        self.extractor, self.scale = extractor, scale

    def set_texts(
        self, base: Conditioning, negative: Conditioning, with_concept: Conditioning, without: Conditioning
    ) -> None:
        self.inner_set_conds({"positive": base, "negative": negative, _WITH: with_concept, _WITHOUT: without})

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict = {}, seed: int | None = None) -> Tensor:  # noqa: B006
        scale = self.scale.at(float(timestep.flatten()[0]))
        if scale:
            first = [lambda args: [self._pure(args, scale), *args["conds_out"][1:]]]
            others = model_options.get("sampler_pre_cfg_function", [])
            model_options = {**model_options, "sampler_pre_cfg_function": first + others}
        return super().predict_noise(x, timestep, model_options, seed)

    def _pure(self, args: dict[str, Any], scale: float) -> Tensor:
        """The picture that v_PureCC points to, in place of theta3's with the base text, [batch, ...]."""
        options = args["model_options"]
        of_model = options["transformer_options"]
        carried = {**of_model.get(CONCEPTS, {}), self.extractor.concept.uid: self.extractor}
        theta1 = {**options, "transformer_options": {**of_model, CONCEPTS: carried}}
        x, sigma = args["input"], args["sigma"]
        texts = [self.conds[_WITH], self.conds[_WITHOUT]]
        with_concept, without = comfy.samplers.calc_cond_batch(args["model"], texts, x, sigma, theta1)
        original = args["conds_out"][0]
        scales = torch.full((len(x),), scale, device=x.device)
        return pure_velocity(original, scales, implicit_guidance(with_concept, without)).to(original.dtype)


@dataclass(frozen=True)
class GuidedTexts:
    """What a prompt says to the two models."""

    base: str  # to theta3
    with_concept: str  # to theta1
    without: str  # to theta1

    @staticmethod
    def of(prompt: str, extractor: Concept, target: Target = "null-relative") -> GuidedTexts:
        """The prompt less the trigger, and the pair of texts whose difference is the concept's direction.

        Raises ValueError where the direction is "in-context" and the prompt has no place for the trigger.
        """
        words = (extractor.trigger, extractor.class_word, extractor.kind)
        prompt = " ".join(prompt.split())
        held = prompt and find_trigger(extractor.trigger, prompt)
        base = texts_of(prompt, *words).base if held else prompt
        there = {"target": texts_of("", *words).target, "class_word": extractor.class_word, "null": ""}
        if target == "in-context":
            texts = texts_of(prompt, *words)
            there |= {"complete": texts.complete, "base": texts.base}
        return GuidedTexts(base, *(there[name] for name in TARGET_TEXTS[target]))


def pure_guider(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    extractor: Concept,
    texts: GuidedTexts,
    cfg: float,
    scale: Scale,
    base: Conditioning | None = None,
    negative: Conditioning | None = None,
) -> PureGuider:
    """The guider of a base MODEL and its CLIP. `base` in place of the base text, `negative` in place of the null text.

    Raises ValueError where the extractor does not fit the MODEL, or is on it already.
    """
    require_sd3(model)
    carried: dict[int, Applied] = model.model_options["transformer_options"].get(CONCEPTS, {})
    if extractor.uid in carried:
        raise ValueError(
            f'"{extractor.trigger} {extractor.class_word}" is already applied to this MODEL, so it is no base. Connect the '
            "MODEL from before Apply Concept to Pure Guider."
        )
    check_fits(model, extractor, carried)
    check_encoders(clip, extractor)
    # a sampling in which a prompt (the target text) names the concept lets the gate "picture" act in every text
    gate = "picture" if extractor.gate == "off" else "conditioning" if extractor.gate == "picture" else extractor.gate
    loras = row_loras(model, extractor, 1.0, gate) if extractor.lora is not None else ()
    model = model.clone()
    attach(model)
    guider = PureGuider(model, Applied(extractor, 1.0, loras, gate), scale)
    knows = with_triggers(clip, {extractor.trigger: extractor.placeholder})
    encode = lambda clip, text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    base = encode(clip, texts.base) if base is None else base
    negative = encode(clip, "") if negative is None else negative
    guider.set_texts(base, negative, encode(knows, texts.with_concept), encode(knows, texts.without))
    guider.set_cfg(cfg)
    return guider
