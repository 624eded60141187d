"""What benches that run through the real ComfyUI share: API prompts, references in its input folder, pictures of its output."""

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from benchmarks.pocketbench.concepts import TRIGGER, BenchConcept, references
from benchmarks.pocketbench.judge_data import to_pixels
from purecc.launch.client import Client
from purecc.pocket import specification as spec
from purecc.presets import ON_FACE
from purecc.prompts import Kind

#: one concept's training at the pocket's rate and length, as PocketBench has it
TRAINING = {"batch_size": 4, "learning_rate": 5e-4, "embedding_rate": 5e-3, "rank": 4, "seed": 0}


@dataclass
class Graph:
    """An API prompt; an output is [node, slot]."""

    nodes: dict[str, dict] = field(default_factory=dict)

    def add(self, class_type: str, **inputs: object) -> str:
        self.nodes[str(len(self.nodes))] = {"class_type": class_type, "inputs": inputs}
        return str(len(self.nodes) - 1)

    def concept_set(
        self, loaded: str, folder: str, class_word: str, kind: Kind = "instance", trigger: str = TRIGGER, resolution: int = spec.RESOLUTION
    ) -> list:  # fmt: skip
        """The data of a folder of the input folder."""
        data = self.add(
            "PureCCConceptSet", clip=[loaded, 1], vae=[loaded, 2], folder=folder, trigger=trigger, class_word=class_word, kind=kind,
            captions="", resolution=resolution, tokens=1, shape="buckets", flip=False, texts="captions",
        )  # fmt: skip
        return [data, 0]

    def train_lora(self, loaded: str, folder: str, **changed: object) -> str:
        """ComfyUI's own trainer on a folder of the input folder; all that is not `changed` is as its node comes. `loaded`: MODEL, CLIP, VAE."""
        data = self.add("LoadImageTextDataSetFromFolder", folder=folder)
        made = self.add("MakeTrainingDataset", images=[data, 0], texts=[data, 1], vae=[loaded, 2], clip=[loaded, 1])
        as_it_comes = {
            "batch_size": 1, "grad_accumulation_steps": 1, "steps": 16, "learning_rate": 5e-4, "rank": 8, "optimizer": "AdamW",
            "loss_function": "MSE", "seed": 0, "training_dtype": "bf16", "lora_dtype": "bf16", "algorithm": "LoRA",
            "quantized_backward": False, "gradient_checkpointing": True, "checkpoint_depth": 1, "offloading": False,
            "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
        }  # fmt: skip
        return self.add(
            "TrainLoraNode", model=[loaded, 0], latents=[made, 0], positive=[made, 1], **as_it_comes | changed
        )

    def pure_learning(self, loaded: str, data: list, method: str, **training: object) -> str:
        """Without an extractor; with the method LoRA a plain one."""
        anchors = ON_FACE if method == "PureCC" else {**ON_FACE, "background_anchor": 0.0, "scene_anchor": 0.0}
        return self.add(
            "PureCCPureLearning", model=[loaded, 0], data=data, method=method, **anchors, fixed_lambda=0.0, original="frozen base",
            **training,
        )  # fmt: skip

    def apply(self, model: list, clip: list, concept: list, strength: float, gate: str, holds: bool) -> str:
        """The node Apply Concept; above a strength of 1 the embeddings act as trained."""
        return self.add(
            "PureCCApplyConcept", model=model, clip=clip, concept=concept, strength=strength, embedding_strength=min(1.0, strength),
            gate=gate, start_percent=0.0, end_percent=1.0, hold_surroundings=holds,
        )  # fmt: skip

    def draw(self, model: list, clip: list, vae: list, text: str, count: int, seed: int, prefix: str) -> str:
        """Pictures of a text, saved; the node that tells their files."""
        latent = self.add("EmptySD3LatentImage", width=spec.RESOLUTION, height=spec.RESOLUTION, batch_size=count)
        positive, negative = ([self.add("CLIPTextEncode", clip=clip, text=words), 0] for words in (text, ""))
        sampled = self.add(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=[latent, 0], seed=seed, steps=spec.STEPS,
            cfg=spec.GUIDANCE, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        return self.add(
            "SaveImage", images=[self.add("VAEDecode", samples=[sampled, 0], vae=vae), 0], filename_prefix=prefix
        )


def write_references(folder: Path, one: BenchConcept, words: str = "") -> None:
    """Pictures and captions of a drawing or a look; `words`: what captions have in place of the class word."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, shown in enumerate(references(one)):
        shown.picture.save(folder / f"{i}.png")
        caption = shown.caption.replace(one.class_word, words or one.class_word, 1)
        (folder / f"{i}.txt").write_text(caption, encoding="utf-8")


def saved_pictures(client: Client, outputs: dict[str, dict], node: str) -> Tensor:
    """What a SaveImage saved, [batch, 3, height, width] in [-1, 1]."""
    files = [client.view(image["filename"], image["subfolder"]) for image in outputs[node]["images"]]
    return to_pixels([Image.open(io.BytesIO(file)).convert("RGB") for file in files])
