"""Stock nodes around Apply Concept, and what people guide with: on the bundled model and concept, behind each gate.

Each case draws a picture of the base model, and behind each of its gates one without the trigger, which must be the base's bit for
bit (but for "off"), and one with the trigger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from diffusers import SD3ControlNetModel
from graph import Prompt
from PIL import Image
from safetensors.torch import save_file
from test_main_job import DEADLINE

from purecc.launch.server import Server

WITH, WITHOUT = "a [V] dog in the snow", "a dog in the snow"
FREE = "picture, free"  # without hold_surroundings, which the others have
GATES = ("picture", "conditioning", FREE)  # what people get for things and for styles
ALL_GATES = (*GATES, "rows", "off", "as trained")
STEPS = 3
BOTH = {"lora_name": "both.safetensors", "strength_model": 1.0, "strength_clip": 3.0}


@dataclass(frozen=True)
class Ends:
    """What a sampler is given, and where its texts come from."""

    model: list
    clip: list
    words: str
    positive: list
    negative: list


def encoded(p: Prompt, model: list, clip: list, words: str) -> Ends:
    texts = [p.add("CLIPTextEncode", clip=clip, text=text) for text in (words, "")]
    return Ends(model, clip, words, [texts[0], 0], [texts[1], 0])


def on_model(class_type: str, **inputs) -> Callable[[Prompt, Ends, str], Ends]:
    """A node that takes a MODEL and gives one."""
    return lambda p, ends, pocket: replace(ends, model=[p.add(class_type, model=ends.model, **inputs), 0])


shift = on_model("ModelSamplingSD3", shift=6.0)
skip_layers = on_model("SkipLayerGuidanceSD3", layers="1, 2", scale=3.0, start_percent=0.0, end_percent=1.0)
skip_in_negative = on_model(
    "SkipLayerGuidanceDiTSimple", double_layers="1, 2", single_layers="", start_percent=0.0, end_percent=1.0
)
rescale = on_model("RescaleCFG", multiplier=0.7)
lora = on_model("LoraLoaderModelOnly", lora_name="another style.safetensors", strength_model=1.0)


def lora_on_both(p: Prompt, ends: Ends, pocket: str) -> Ends:
    node = p.add("LoraLoader", model=ends.model, clip=ends.clip, **BOTH)
    return encoded(p, [node, 0], [node, 1], ends.words)


def controlnet(p: Prompt, ends: Ends, pocket: str) -> Ends:
    net = p.add("ControlNetLoader", control_net_name="pocket control.safetensors")
    hint = p.add("EmptyImage", width=128, height=128, batch_size=1, color=0x30C060)
    node = p.add(
        "ControlNetApplyAdvanced", positive=ends.positive, negative=ends.negative, control_net=[net, 0], image=[hint, 0],
        vae=[pocket, 2], strength=1.0, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    return replace(ends, positive=[node, 0], negative=[node, 1])


def zeroed_negative(p: Prompt, ends: Ends, pocket: str) -> Ends:
    """As SD3's published workflow: the negative prompt counts at the start alone."""
    zero = p.add("ConditioningZeroOut", conditioning=ends.negative)
    late = p.add("ConditioningSetTimestepRange", conditioning=[zero, 0], start=0.1, end=1.0)
    early = p.add("ConditioningSetTimestepRange", conditioning=ends.negative, start=0.0, end=0.1)
    return replace(
        ends, negative=[p.add("ConditioningCombine", conditioning_1=[late, 0], conditioning_2=[early, 0]), 0]
    )


def ksampler(p: Prompt, ends: Ends, cfg: float = 4.0) -> str:
    latent = p.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    return p.add(
        "KSampler", model=ends.model, positive=ends.positive, negative=ends.negative, latent_image=[latent, 0], seed=3,
        steps=STEPS, cfg=cfg, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip


def without_guidance(p: Prompt, ends: Ends) -> str:
    return ksampler(p, ends, cfg=1.0)


def guided(p: Prompt, model: list, guider: str) -> str:
    latent = p.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    sigmas = p.add("BasicScheduler", model=model, scheduler="normal", steps=STEPS, denoise=1.0)
    return p.add(
        "SamplerCustomAdvanced", noise=[p.add("RandomNoise", noise_seed=3), 0], guider=[guider, 0], sigmas=[sigmas, 0],
        sampler=[p.add("KSamplerSelect", sampler_name="euler"), 0], latent_image=[latent, 0],
    )  # fmt: skip


def cfg_guider(p: Prompt, ends: Ends) -> str:
    guider = p.add("CFGGuider", model=ends.model, positive=ends.positive, negative=ends.negative, cfg=4.0)
    return guided(p, ends.model, guider)


def basic_guider(p: Prompt, ends: Ends) -> str:
    return guided(p, ends.model, p.add("BasicGuider", model=ends.model, conditioning=ends.positive))


def dual_guider(p: Prompt, ends: Ends) -> str:
    second = p.add("CLIPTextEncode", clip=ends.clip, text="a forest")
    guider = p.add(
        "DualCFGGuider", model=ends.model, cond1=ends.positive, cond2=[second, 0], negative=ends.negative, cfg_conds=4.0,
        cfg_cond2_negative=2.0, style="regular",
    )  # fmt: skip
    return guided(p, ends.model, guider)


@dataclass(frozen=True)
class Case:
    """`before` Apply Concept a LoRA or not, the nodes behind it, the sampler, and the gates to draw with."""

    chain: tuple[Callable[[Prompt, Ends, str], Ends], ...] = ()
    sampler: Callable[[Prompt, Ends], str] = ksampler
    before: bool = False
    gates: tuple[str, ...] = GATES


CASES = {
    "nothing": Case(gates=ALL_GATES),
    "shift": Case((shift,)),
    "skip-layer guidance": Case((skip_layers,)),
    "skipped layers in the negative": Case((skip_in_negative,)),
    "LoRA": Case((lora,)),
    "LoRA on MODEL and CLIP": Case((lora_on_both,)),
    "LoRA before": Case(before=True),
    "ControlNet": Case((controlnet,)),
    "negative zeroed": Case((zeroed_negative,)),
    "all of them": Case((lora_on_both, shift, skip_layers, rescale, controlnet), gates=ALL_GATES),
    "cfg 1": Case(sampler=without_guidance),
    "RescaleCFG": Case((rescale,)),
    "CFGGuider": Case(sampler=cfg_guider),
    "BasicGuider": Case(sampler=basic_guider),
    "DualCFGGuider": Case(sampler=dual_guider),
    "CFGGuider, all of them": Case((lora, shift, skip_layers, controlnet), cfg_guider),
}
DRAWN = [(case, gate) for case, of in CASES.items() for gate in of.gates]
# two ways to one picture
SAME = {"nothing": "CFGGuider", "cfg 1": "BasicGuider", "LoRA on MODEL and CLIP": "LoRA before"}


@pytest.fixture(scope="module")
def drawn(server: Server) -> dict[tuple[str, ...], np.ndarray]:
    """(case, "base") and (case, gate, text) -> pixels."""
    write_loras(server)
    write_controlnet(server)
    before = server.log_text().count("lora key not loaded")
    p = Prompt()
    pocket = p.pocket()
    concept = p.add("PureCCLoadConcept", name="example pink poodle.safetensors")
    saved: dict[tuple[str, ...], str] = {}
    for name, case in CASES.items():
        source = p.add("LoraLoader", model=[pocket, 0], clip=[pocket, 1], **BOTH) if case.before else pocket
        saved[name, "base"] = sampled(p, pocket, source, WITHOUT, case)
        for gate in case.gates:
            asked = {"gate": "picture", "hold_surroundings": False} if gate == FREE else {"gate": gate}
            gated = p.apply(source, [concept, 0], **asked)
            for text in (WITHOUT, WITH):
                saved[name, gate, text] = sampled(p, pocket, gated, text, case)
    outputs = server.client.run(p.nodes, timeout=2 * DEADLINE)["outputs"]
    assert server.log_text().count("lora key not loaded") == before
    return {key: picture(server, outputs[node]) for key, node in saved.items()}


def sampled(p: Prompt, pocket: str, source: str, words: str, case: Case) -> str:
    """The number of the SaveImage node."""
    ends = encoded(p, [source, 0], [source, 1], words)
    for node in case.chain:
        ends = node(p, ends, pocket)
    decoded = p.add("VAEDecode", samples=[case.sampler(p, ends), 0], vae=[pocket, 2])
    return p.add("SaveImage", images=[decoded, 0], filename_prefix="t/c")


def picture(server: Server, output: dict) -> np.ndarray:
    (entry,) = output["images"]
    with Image.open(server.base / "output" / entry["subfolder"] / entry["filename"]) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def write_loras(server: Server) -> None:
    """One of four Linears of the bundled model, and one of these and of CLIP-L."""
    generator = torch.Generator().manual_seed(0)
    of_model, of_clip = {}, {}
    for block in range(4):
        of_model |= pair(f"transformer.transformer_blocks.{block}.attn.to_q", 256, generator)
    for layer in range(2):
        of_clip |= pair(f"text_encoder.text_model.encoder.layers.{layer}.self_attn.q_proj", 128, generator)
    write(server, "loras/another style.safetensors", of_model)
    write(server, "loras/both.safetensors", of_model | of_clip)


def pair(module: str, width: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.randn(4, width, generator=generator) / 16,
        f"{module}.lora_B.weight": torch.randn(width, 4, generator=generator) / 4,
        f"{module}.alpha": torch.tensor(4.0),
    }


def write_controlnet(server: Server) -> None:
    """Two blocks of the bundled model's width, with random values, in the form of diffusers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SD3ControlNetModel(
            sample_size=32, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=4,
            joint_attention_dim=256, caption_projection_dim=256, pooled_projection_dim=256, pos_embed_max_size=32,
        )  # fmt: skip
        for block in net.controlnet_blocks:
            torch.nn.init.normal_(block.weight, std=0.02)
    write(server, "controlnet/pocket control.safetensors", net.state_dict())


def write(server: Server, name: str, tensors: dict[str, torch.Tensor]) -> None:
    path = server.base / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference, in levels of 255."""
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize(("case", "gate"), DRAWN)
def test_without_the_trigger_the_picture_is_the_bases_and_with_it_another(drawn: dict, case: str, gate: str) -> None:
    base = drawn[case, "base"]
    assert np.array_equal(drawn[case, gate, WITHOUT], base) == (gate != "off")
    assert apart(drawn[case, gate, WITH], base) > 1


@pytest.mark.parametrize("case", CASES)
def test_holding_the_surroundings_acts_whatever_guides(drawn: dict, case: str) -> None:
    """That it does what it says is of parity/of_holding.py; three steps make pictures too rough to see it."""
    assert apart(drawn[case, "picture", WITH], drawn[case, FREE, WITH]) > 0.1


@pytest.mark.parametrize("case", ["nothing", "all of them"])
def test_each_gate_does_what_it_says(drawn: dict, case: str) -> None:
    """As trained is picture; with the trigger and free surroundings that is what off draws; the other two act on less."""
    with_ = {gate: drawn[case, gate, WITH] for gate in ALL_GATES}
    assert np.array_equal(with_["as trained"], with_["picture"])
    assert apart(with_[FREE], with_["off"]) < 0.1
    for one, other in (("picture", "conditioning"), ("picture", "rows"), ("conditioning", "rows")):
        assert apart(with_[one], with_[other]) > 0.5, (one, other)


def test_without_guidance_nothing_but_the_prompt_is_left_to_gate(drawn: dict) -> None:
    for case in ("cfg 1", "BasicGuider"):
        assert np.array_equal(drawn[case, "picture", WITH], drawn[case, "conditioning", WITH])


@pytest.mark.parametrize(("one", "other"), SAME.items())
def test_two_ways_lead_to_one_picture(drawn: dict, one: str, other: str) -> None:
    keys = [key[1:] for key in drawn if key[0] == other]
    assert len(keys) == 1 + 2 * len(GATES)
    assert all(np.array_equal(drawn[(one, *key)], drawn[(other, *key)]) for key in keys)


@pytest.mark.parametrize("key", [("base",), *((gate, text) for gate in GATES for text in (WITHOUT, WITH))])
def test_each_chain_acts(drawn: dict, key: tuple[str, ...]) -> None:
    """More than rounding: an unguided call alone differs in its last bits from one that shares its batch."""
    names = [case for case in CASES if case not in SAME.values()]
    for one, other in combinations(names, 2):
        assert apart(drawn[(one, *key)], drawn[(other, *key)]) > 0.5, (one, other)
