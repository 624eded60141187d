"""Stock nodes behind Apply Concept: shift, skip-layer guidance, another LoRA, a ControlNet; on the bundled model and concept.

Each chain draws three pictures: from the base model, with the gate on and no trigger (which must be the same), with the trigger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers import SD3ControlNetModel
from graph import Prompt
from safetensors.torch import save_file
from test_main_job import DEADLINE, pixels

from purecc.launch.server import Server

WITH, WITHOUT = "a [V] dog in the snow", "a dog in the snow"
PICTURES = ("base", "without trigger", "with trigger")


@dataclass
class Ends:
    """What a KSampler is given."""

    model: list
    positive: list
    negative: list


def nothing(p: Prompt, ends: Ends, pocket: str) -> Ends:
    return ends


def shift(p: Prompt, ends: Ends, pocket: str) -> Ends:
    return Ends([p.add("ModelSamplingSD3", model=ends.model, shift=6.0), 0], ends.positive, ends.negative)


def skip_layers(p: Prompt, ends: Ends, pocket: str) -> Ends:
    node = p.add("SkipLayerGuidanceSD3", model=ends.model, layers="1, 2", scale=3.0, start_percent=0.0, end_percent=1.0)
    return Ends([node, 0], ends.positive, ends.negative)


def lora(p: Prompt, ends: Ends, pocket: str) -> Ends:
    node = p.add("LoraLoaderModelOnly", model=ends.model, lora_name="another style.safetensors", strength_model=1.0)
    return Ends([node, 0], ends.positive, ends.negative)


def controlnet(p: Prompt, ends: Ends, pocket: str) -> Ends:
    net = p.add("ControlNetLoader", control_net_name="pocket control.safetensors")
    hint = p.add("EmptyImage", width=128, height=128, batch_size=1, color=0x30C060)
    node = p.add(
        "ControlNetApplyAdvanced", positive=ends.positive, negative=ends.negative, control_net=[net, 0], image=[hint, 0],
        vae=[pocket, 2], strength=1.0, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    return Ends(ends.model, [node, 0], [node, 1])


def all_of_them(p: Prompt, ends: Ends, pocket: str) -> Ends:
    for chain in (lora, shift, skip_layers, controlnet):
        ends = chain(p, ends, pocket)
    return ends


CHAINS: dict[str, Callable[[Prompt, Ends, str], Ends]] = {
    "nothing": nothing, "shift": shift, "skip-layer guidance": skip_layers, "LoRA": lora, "ControlNet": controlnet,
    "all of them": all_of_them,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(server: Server) -> dict[str, dict[str, str]]:
    """chain -> picture -> hash."""
    write_lora(server)
    write_controlnet(server)
    p = Prompt()
    pocket = p.pocket()
    concept = p.add("PureCCLoadConcept", name="example pink poodle.safetensors")
    gated = p.apply(pocket, [concept, 0])
    saved: dict[str, dict[str, str]] = {}
    for name, chain in CHAINS.items():
        saved[name] = {
            picture: sampled(p, pocket, source, text, chain)
            for picture, source, text in zip(PICTURES, (pocket, gated, gated), (WITHOUT, WITHOUT, WITH), strict=True)
        }
    record = server.client.run(p.nodes, timeout=2 * DEADLINE)
    return {name: {k: pixels(server, record, node) for k, node in nodes.items()} for name, nodes in saved.items()}


def sampled(p: Prompt, pocket: str, source: str, text: str, chain: Callable) -> str:
    """The number of the SaveImage node."""
    texts = [p.add("CLIPTextEncode", clip=[source, 1], text=words) for words in (text, "")]
    ends = chain(p, Ends([source, 0], [texts[0], 0], [texts[1], 0]), pocket)
    latent = p.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    made = p.add(
        "KSampler", model=ends.model, positive=ends.positive, negative=ends.negative, latent_image=[latent, 0], seed=3,
        steps=3, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return p.add("SaveImage", images=[p.add("VAEDecode", samples=[made, 0], vae=[pocket, 2]), 0], filename_prefix="t/c")


def write_lora(server: Server) -> None:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for block in range(4):
        module = f"transformer.transformer_blocks.{block}.attn.to_q"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, 256, generator=generator) / 16
        tensors[f"{module}.lora_B.weight"] = torch.randn(256, 4, generator=generator) / 4
        tensors[f"{module}.alpha"] = torch.tensor(4.0)
    write(server, "loras/another style.safetensors", tensors)


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


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_behind_the_gate_draws_the_bases_picture_and_another_with_the_trigger(drawn: dict, chain: str) -> None:
    assert drawn[chain]["without trigger"] == drawn[chain]["base"]
    assert drawn[chain]["with trigger"] != drawn[chain]["base"]


@pytest.mark.parametrize("picture", PICTURES)
def test_each_chain_acts(drawn: dict, picture: str) -> None:
    of_chains = [drawn[chain][picture] for chain in CHAINS]
    assert len(set(of_chains)) == len(CHAINS)
