"""The main job as an API prompt, small enough for a test: a builder over plain dictionaries."""

from __future__ import annotations

from typing import Any


class Prompt:
    """Nodes by number; an output is [number, slot]."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, **inputs: Any) -> str:
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        return number

    def pocket(self) -> str:
        return self.add("PureCCPocketModel")

    def concept_set(self, pocket: str, **changed: Any) -> str:
        values = {
            "folder": "example: pink poodle", "trigger": "[V]", "class_word": "dog", "kind": "instance", "captions": "",
            "resolution": 128, "tokens": 1,
        }  # fmt: skip
        return self.add("PureCCConceptSet", clip=[pocket, 1], vae=[pocket, 2], **(values | changed))

    def extractor(self, pocket: str, data: str, **changed: Any) -> str:
        values = {
            "steps": 3, "batch_size": 2, "learning_rate": 1e-3, "embedding_rate": 5e-3, "rank": 4, "embeddings": "replace",
            "seed": 0,
        }  # fmt: skip
        return self.add("PureCCTrainExtractor", model=[pocket, 0], data=[data, 0], **(values | changed))

    def pure(self, pocket: str, data: str, extractor: str | None, **changed: Any) -> str:
        values = {
            "method": "PureCC", "eta": 1.0, "fixed_lambda": 0.0, "original": "frozen base", "steps": 3, "batch_size": 2,
            "learning_rate": 1e-3, "embedding_rate": 5e-3, "rank": 4, "seed": 0, "scene_anchor": 0.0,
        }  # fmt: skip
        wires = {"extractor": [extractor, 0]} if extractor else {}
        return self.add("PureCCPureLearning", model=[pocket, 0], data=[data, 0], **wires, **(values | changed))

    def apply(self, source: str, concept: list, **changed: Any) -> str:
        values = {"strength": 1.0, "embedding_strength": 1.0, "gate": "conditioning"}
        return self.add(
            "PureCCApplyConcept", model=[source, 0], clip=[source, 1], concept=concept, **(values | changed)
        )

    def picture(self, source: str, vae: str, text: str, prefix: str, steps: int = 4, size: int = 128) -> str:
        """Samples one picture with stock nodes and saves it; the number of the SaveImage node."""
        positive = self.add("CLIPTextEncode", clip=[source, 1], text=text)
        negative = self.add("CLIPTextEncode", clip=[source, 1], text="")
        latent = self.add("EmptySD3LatentImage", width=size, height=size, batch_size=1)
        sampled = self.add(
            "KSampler", model=[source, 0], positive=[positive, 0], negative=[negative, 0], latent_image=[latent, 0],
            seed=3, steps=steps, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        decoded = self.add("VAEDecode", samples=[sampled, 0], vae=[vae, 2])
        return self.add("SaveImage", images=[decoded, 0], filename_prefix=prefix)

    def show(self, text: list) -> str:
        return self.add("PreviewAny", source=text)
