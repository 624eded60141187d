"""ComfyUI's own Train LoRA trains on what the pack gives, and its LoRA is drawn: on the Pocket Model, and on a MODEL with a concept."""

from __future__ import annotations

import shutil

import pytest
from graph import Prompt

from purecc.launch.layout import PROJECT
from purecc.launch.server import Server

FOLDER = "train lora"
OWN = {"steps": 2, "training_dtype": "fp32", "lora_dtype": "fp32", "gradient_checkpointing": False}


@pytest.mark.parametrize("on", ["base", "concept"])
def test_it_trains_on_the_packs_models(server: Server, on: str) -> None:
    target = server.base / "input" / FOLDER
    shutil.copytree(PROJECT / "workflows" / "pictures" / "pink poodle", target, dirs_exist_ok=True)
    info = server.client.object_info()["TrainLoraNode"]
    p = Prompt()
    model = clip = p.pocket()
    if on == "concept":
        concept = p.add("PureCCLoadConcept", name="example pink poodle.safetensors")
        model = p.apply(clip, [concept, 0])
    pictures = p.add("LoadImageTextDataSetFromFolder", folder=FOLDER)
    made = p.add("MakeTrainingDataset", images=[pictures, 0], texts=[pictures, 1], vae=[clip, 2], clip=[clip, 1])
    defaults = {name: (spec[1:] or [{}])[0].get("default") for name, spec in info["input"]["required"].items()}
    values = {name: value for name, value in defaults.items() if value is not None} | OWN
    trained = p.add("TrainLoraNode", **values | {"model": [model, 0], "latents": [made, 0], "positive": [made, 1]})
    lora = [trained, info["output"].index("LORA_MODEL")]
    drawn = p.add("LoraModelLoader", model=[model, 0], lora=lora, strength_model=1.0, bypass=False)
    positive = p.add("CLIPTextEncode", clip=[clip, 1], text="a dog on a beach")
    latent = p.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    sampled = p.add(
        "KSampler", model=[drawn, 0], positive=[positive, 0], negative=[positive, 0], latent_image=[latent, 0],
        seed=3, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    decoded = p.add("VAEDecode", samples=[sampled, 0], vae=[clip, 2])
    saved = p.add("SaveImage", images=[decoded, 0], filename_prefix="stock trainer")
    outputs = server.client.run(p.nodes, timeout=300)["outputs"]
    assert len(outputs[saved]["images"]) == 1
