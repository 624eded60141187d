"""How a case is measured: one concept taught by one arm with one seed, its pictures drawn and read by the witnesses."""

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purecc.concept import Concept
from purecc.concept_set import ConceptSet, build_concept_set
from purecc.encoding import PocketTextEncoder, TextBatch
from purecc.files import load_tensors, save_tensors, write_atomically
from purecc.fingerprint import transformer_fingerprint
from purecc.flow import LatentScaling
from purecc.network import BASE, PURE, AdaptedNetwork
from purecc.pocket import specification as spec
from purecc.pocket.model import Pocket, load_pocket
from purecc.prompts import Kind, Placeholder
from purecc.sampling import euler, guided_velocity
from purecc.scenes import with_scenes
from purecc.stages import ExtractorJob, PureJob
from purecc.token_embeddings import PocketTokenEncoder

from .arms import HELD_BY, Arm
from .case import WITNESSES, Case, Drawing, protocol
from .concepts import (
    TRIGGER,
    BenchConcept,
    Prompt,
    another,
    held_out,
    others_in_scenes,
    prompts,
    references,
    sprite_of,
)  # fmt: skip
from .judge_data import as_generated, to_pixels
from .networks import Judges, load_judges
from .opening import revision
from .summary import telling
from .witnesses import (
    caption_likeness,
    change,
    colour_likeness,
    embedding_likeness,
    histogram_likeness,
    kernel_distance,
    own_half,
    patch_likeness,
    template_likeness,
)  # fmt: skip

_BATCH = 13  # pictures drawn at once


class Bench:
    """The pocket, the judges and a folder for runs and pictures."""

    def __init__(self, work: Path, drawing: Drawing = Drawing()):  # noqa: B008
        self.work, self.drawing = work, drawing
        self.pocket: Pocket = load_pocket()
        self.base = transformer_fingerprint(self.pocket.transformer)
        self.revision = revision()
        self.protocol = protocol(drawing)
        config = self.pocket.vae.config
        self.scaling = LatentScaling(config.scaling_factor, config.shift_factor)

    @cached_property
    def judges(self) -> Judges:
        return load_judges()

    def network(self, concept: BenchConcept | None = None, tokens: int = 1) -> AdaptedNetwork:
        """A fresh one: adapters of another case must not be in it. For a concept its text encoders can learn too."""
        network = AdaptedNetwork(load_pocket().transformer)
        if concept is not None:
            words = Placeholder(1, " ".join([concept.class_word] * tokens))
            network.token_encoder = PocketTokenEncoder(self.pocket, TRIGGER, words, tokens)
        return network

    @torch.no_grad()
    def concept_set(self, concept: BenchConcept, tokens: int) -> ConceptSet:
        shown = references(concept)
        as_tensor = lambda image: torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)  # noqa: E731

        def encode_picture(picture: Tensor) -> Tensor:
            return self.pocket.vae.encode(picture.permute(2, 0, 1)[None] * 2 - 1).latent_dist.mode()[0]

        return build_concept_set(
            [as_tensor(r.picture) for r in shown], [r.caption for r in shown],
            trigger=TRIGGER, class_word=concept.class_word, kind=concept.kind, tokens=tokens,
            encode_picture=encode_picture,
            text_encoder=lambda trigger, words: PocketTextEncoder(self.pocket, trigger, words),
            masks=[as_tensor(r.mask) for r in shown],
        )  # fmt: skip

    def teach(self, concept: BenchConcept, arm: Arm, seed: int, **changes: Any) -> Concept:
        """Both stages, or the one that the arm has; runs that were finished before are taken from disk."""
        data, runs = self.concept_set(concept, arm.tokens), self.work / "runs"
        data = data if arm.masks else replace(data, masks=())
        if arm.pure_settings.scene_anchor:
            words = Placeholder(1, " ".join([concept.class_word] * arm.tokens))
            data = with_scenes(data, PocketTextEncoder(self.pocket, TRIGGER, words), others_in_scenes(concept))
        extractor = None
        if arm.needs_extractor:
            job = ExtractorJob(
                self.network(concept, arm.tokens),
                data,
                arm.extractor_settings(seed, **changes),
                self.scaling,
                runs,
                self.base,
            )
            for _ in job:
                pass
            extractor = job.concept
        pure, settings = arm.pure_settings, arm.train_settings(seed, **changes)
        network = self.network(concept, arm.tokens)
        job = PureJob(network, data, settings, self.scaling, runs, self.base, pure, extractor)
        for _ in job:
            pass
        if arm.sampling_gate is None:
            return job.concept
        by_kind = arm.sampling_gate == "by kind"
        return replace(job.concept, gate=job.concept.sampling_gate if by_kind else arm.sampling_gate)

    @torch.no_grad()
    def draw(
        self,
        network: AdaptedNetwork,
        texts: list[str],
        seeds: list[int],
        words: Placeholder,
        model: str | None,
        strength: float,
        held: Kind | None = None,
    ) -> Tensor:
        """Pictures [batch, 3, 128, 128] in [-1, 1]; the noise is a function of the seed alone."""
        encoder = PocketTextEncoder(self.pocket, TRIGGER, words)
        side = spec.RESOLUTION // spec.DOWNSCALE
        pictures = []
        for first in range(0, len(texts), _BATCH):
            part = slice(first, first + _BATCH)
            conditional = TextBatch.of([encoder.encode(text) for text in texts[part]])
            negative = TextBatch.of([encoder.encode("")] * len(texts[part]))
            noise = [
                torch.randn(spec.LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(s))
                for s in seeds[part]
            ]
            velocity = guided_velocity(
                network,
                conditional,
                negative,
                spec.GUIDANCE,
                model,
                strength=strength,
                embedding_strength=min(1.0, strength),
                held=held,
            )
            latent = euler(velocity, torch.stack(noise), self.drawing.steps, spec.SHIFT)
            pictures.append(self.pocket.vae.decode(self.scaling.to_autoencoder(latent)).sample)
        return torch.cat(pictures).clamp(-1, 1)

    def originals(self, concept: BenchConcept) -> tuple[list[Prompt], list[int], Tensor]:
        """The base model's pictures of the base texts: prompts and noise seeds (one entry a picture), pictures."""
        asked = [p for p in prompts(concept) for _ in range(self.drawing.noises)]
        seeds = [1000 + 17 * i for i in range(len(asked))]
        texts = [p.base for p in asked]
        key = hashlib.sha256(json.dumps([self.protocol, texts, seeds]).encode()).hexdigest()[:12]
        path = self.work / "originals" / f"{key}.safetensors"
        if not path.is_file():
            drawn = self.draw(self.network(), texts, seeds, Placeholder(1, concept.class_word), BASE, 1.0)
            save_tensors(path, {"pictures": drawn})
        return asked, seeds, load_tensors(path)[0]["pictures"]

    def ends(self, concept: BenchConcept, originals: Tensor) -> dict[str, list[float]]:
        """Witness -> [score of the base's pictures of the class, of another instance, of the concept itself in new scenes].

        Kept in the work folder: all arms of a concept have the same ones, whichever machine goes on with them.
        """
        of = [self.protocol, concept.split, concept.name, WITNESSES[concept.kind]]
        path = self.work / "ends" / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:12]}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        rng = np.random.default_rng(concept.seed)
        pictures = [originals]
        for composites in (another(concept), held_out(concept)):
            pictures.append(as_generated(to_pixels([r.picture for r in composites]), self.pocket.vae, rng, 0.15))
        scores = [self.likeness(concept, p) for p in pictures]
        found = {name: [round(float(s[name].mean()), 4) for s in scores] for name in scores[0]}
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(found), encoding="utf-8"))
        return found

    def likeness(self, concept: BenchConcept, pictures: Tensor) -> dict[str, Tensor]:
        """Every witness of the concept's presence, by name, each [batch]."""
        shown = references(concept)
        wanted = to_pixels([r.picture for r in shown])
        masks = torch.stack([torch.from_numpy(np.asarray(r.mask, dtype=np.float32) / 255) for r in shown])
        if concept.kind == "style":
            return {
                "pocket CSD": embedding_likeness(self.judges.style, pictures, wanted),
                "colours": histogram_likeness(pictures, wanted),
                "patches": patch_likeness(pictures, wanted),
            }
        return {
            "pocket CLIP-I": embedding_likeness(lambda p: self.judges.scene(p).embedding, pictures, wanted),
            "pocket DINO": embedding_likeness(self.judges.drawing, pictures, wanted),
            "colours": colour_likeness(pictures, wanted, masks),
            "template": template_likeness(pictures, sprite_of(concept)),
        }

    def fidelity(self, concept: BenchConcept, pictures: Tensor, originals: Tensor) -> float:
        """Of pictures in scenes of their own, of which `originals` are the base's: 0 is those, 1 the concept in new scenes.

        The mean over the witnesses that can tell, each between -1 and 1.
        """
        floors, scores = self.likeness(concept, originals), self.likeness(concept, pictures)
        ends = {name: [float(floors[name].mean()), *of[1:]] for name, of in self.ends(concept, originals).items()}
        shares = [(float(scores[name].mean()) - low) / (high - low) for name, (low, high) in telling(ends).items()]
        return round(sum(min(1.0, max(-1.0, share)) for share in shares) / len(shares), 3)

    def measure(self, concept: BenchConcept, name: str, arm: Arm, seed: int, **changes: Any) -> Case:
        """Teaches, draws, measures."""
        taught = self.teach(concept, arm, seed, **changes)
        every, seeds, originals = self.originals(concept)
        network = self.network(concept, arm.tokens)
        network.add_concept(PURE, taught)
        held = taught.held if arm.hold_surroundings else None
        rows: dict[str, list] = {}
        with_concept = [i for i, p in enumerate(every) if p.role == "concept"]
        kid: dict[str, float] = {}
        for strength in self.drawing.strengths:
            drifts = self.drawing.drift_at is None or strength in self.drawing.drift_at
            chosen = list(range(len(every))) if drifts else with_concept
            asked, noises, base = [every[i] for i in chosen], [seeds[i] for i in chosen], originals[chosen]
            texts = [p.complete for p in asked]
            drawn = self.draw(network, texts, noises, taught.placeholder, PURE, strength, held)
            for key, values in self.read(concept, asked, noises, strength, base, drawn).items():
                rows.setdefault(key, []).extend(values)
            if drifts:
                kid[f"{strength:g}"] = self.kid(asked, base, drawn)
            self.keep(concept, name, seed, strength, base, drawn)
        ends = self.ends(concept, originals[with_concept])
        settings = {k: v for k, v in taught.settings.items() if k not in ("base", "data", "extractor")}
        settings |= HELD_BY[held] if held else {}
        return Case(
            concept.name, concept.kind, name, seed, settings, self.base, self.protocol, taught.summary, ends, rows, kid,
            self.revision,
        )  # fmt: skip

    def read(
        self,
        concept: BenchConcept,
        asked: list[Prompt],
        noises: list[int],
        strength: float,
        base: Tensor,
        drawn: Tensor,
    ) -> dict[str, list]:
        """`Case.rows` of pictures: what was asked for, and every figure, one entry a picture. `base`: the base model's of the same noise."""
        beside, base_texts = [p.beside for p in asked], [p.base for p in asked]
        figures = self.likeness(concept, own_half(base, drawn, beside))
        figures |= vars(change(self.judges, base, drawn, beside))
        figures["clip_t"] = caption_likeness(self.judges, drawn, base_texts)
        figures["clip_t_base"] = caption_likeness(self.judges, base, base_texts)
        columns: dict[str, list] = {
            "role": [p.role for p in asked],
            "prompt": [p.complete for p in asked],
            "noise": noises,
            "strength": [strength] * len(asked),
        }
        return columns | {key: [_rounded(v) for v in values] for key, values in figures.items()}

    def kid(self, asked: list[Prompt], base: Tensor, drawn: Tensor) -> float:
        """KID to the base's pictures, of those without the concept."""
        without = [i for i, p in enumerate(asked) if p.role != "concept"]
        return round(kernel_distance(self.judges, base[without], drawn[without], paired=True), 6)

    def keep(self, concept, name, seed, strength, originals, drawn) -> None:
        """A sheet for eyes: the base's pictures above the arm's."""
        folder = self.work / "pictures" / concept.name
        folder.mkdir(parents=True, exist_ok=True)
        every = slice(None, None, self.drawing.noises)
        rows = [as_row(originals[every]), as_row(drawn[every])]
        Image.fromarray(np.concatenate(rows)).save(folder / f"{name}, seed {seed}, strength {strength:g}.png")


def _rounded(value: Tensor) -> float | None:
    """None where there is no figure: JSON has no NaN."""
    return None if value.isnan() else round(float(value), 4)


def as_row(pictures: Tensor) -> np.ndarray:
    """Pictures side by side, [height, batch x width, 3] uint8."""
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return np.concatenate(list(pixels), axis=1)
