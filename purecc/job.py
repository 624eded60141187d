"""One training run as a job: what it depends on, what it refuses, its steps, its concept.

The two stages are in `stages.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adaln_rows import tabulate
from .class_pictures import ClassPictures
from .concept import Concept, ConceptEmbeddings
from .concept_set import ConceptSet
from .early_stop import EarlyStop
from .flow import LatentScaling
from .frozen import storage_of
from .initial import initial_embeddings, require_clip_part
from .measures import alignment, drift
from .network import EXTRACTOR, AdaptedNetwork
from .runs import Run, StepRecord
from .scenes import Scenes, require_scenes
from .settings import TrainSettings, as_plain
from .targets import lora_modules
from .terms import Objective
from .training import train

_FIGURES = (
    "loss", "concept_loss", "pure_loss", "scale", "scale_spread", "squared_cosine", "representation", "base_anchor",
    "null_anchor", "background_anchor", "scene_anchor", "scene_concept", "prior_loss", "extractor_loss",
)  # fmt: skip

_MEASURES = "measures the velocities"

# raised by hand when a change of the arithmetic, masks and their rims too, makes older finished runs other runs
FORMAT = 3


class Job:
    """One training run on one network: iterate for a record a step, then take `concept`. A finished run yields nothing and has it at once."""

    stage: str
    model: str

    def __init__(
        self,
        network: AdaptedNetwork,
        data: ConceptSet,
        settings: TrainSettings,
        scaling: LatentScaling,
        root: Path,
        base: str,
        values: str = "",
        **identity: Any,
    ):
        """`base`, `values`: what `purecc.fingerprint` says of the network; values are told where they may be stored in several ways."""
        self.network, self.data, self.settings, self.scaling, self.base = network, data, settings, scaling, base
        self.values = values
        self._require_fit()
        self.run = self.run_of(data, settings, scaling, root, base, network.dtype, values, **identity)
        finished = self.run.finished()
        self.concept: Concept | None = _timed(finished, self.run) if finished else None
        self.preparing: Callable[[str, int, int], None] = lambda what, done, total: (
            None
        )  # called before the first step, and after the last
        self._gap: float | None = None  # of the embeddings at step 0
        self._stop: EarlyStop | None = None
        if settings.modulation_table:
            tabulate(network, data, settings, scenes=bool(identity.get("scene_anchor")))

    @classmethod
    def run_of(
        cls,
        data: ConceptSet,
        settings: TrainSettings,
        scaling: LatentScaling,
        root: Path,
        base: str,
        dtype: torch.dtype,
        values: str = "",
        **identity: Any,
    ) -> Run:
        """The run's folder, by all that its result depends on; before there is a network, to see whether it was begun or finished.

        `identity`: `PureJob.identity_of`; of an extractor nothing.
        """
        everything = {
            "format": FORMAT,
            "base": base,
            "data": data.fingerprint,
            "stage": cls.stage,
            "dtype": str(dtype),
        }
        everything |= {"latent_scale": scaling.scale, "latent_shift": scaling.shift, **as_plain(settings), **identity}
        if values:
            everything["values"] = values
        if settings.background_weight != 1 or identity.get("background_anchor"):
            everything["masks"] = data.mask_fingerprint
        if identity.get("scene_anchor"):
            require_scenes(data)
            everything["scenes"] = data.scene_fingerprint
        return Run(root, cls.stage, everything, data.sketch)

    def _require_fit(self) -> None:
        """Raises ValueError, before any work, where the pictures or words do not go with this network or these settings."""
        config = self.network.transformer.config
        self.data.require_readable(config)
        largest = config.pos_embed_max_size * config.patch_size
        sides = sorted({tuple(example.latent.shape[1:]) for example in self.data.examples})
        for height, width in sides:
            if max(height, width) > largest:
                raise ValueError(
                    f"Pictures of {8 * width} x {8 * height} px are too large for this model, which takes at most {8 * largest} px a "
                    "side. Lower the resolution in Concept Set (the Pocket Model: 128)."
                )
        if self.network.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"The network is {str(self.network.dtype).removeprefix('torch.')}: small gradients vanish in it. "
                "Train in bfloat16, or in float32."
            )
        stored, settings, blocks = storage_of(self.network.transformer), self.settings, self.network.blocks
        if stored != settings.frozen_weights:
            raise ValueError(f'The network\'s weights are "{stored}", the settings say "{settings.frozen_weights}".')
        last = blocks - 1 if settings.last_block is None else settings.last_block
        if max(settings.first_block, last) >= blocks:
            raise ValueError(
                f"The LoRA is to be in the blocks {settings.first_block} to {last}; this model has 0 to {blocks - 1}."
            )
        if settings.embeddings != "none":
            require_clip_part(self.data)
        if settings.embeddings == "none" and not settings.token_embeddings and self.data.tokens > 1:
            raise ValueError(
                f"Without embeddings the trigger is one token; Concept Set has {self.data.tokens}. Set tokens to 1."
            )
        if settings.background_weight != 1:
            for index in range(len(self.data.examples)):
                self.data.loss_weights([index], settings.background_weight)

    def _preparing(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.preparing(what, done, total)

    def __iter__(self) -> Iterator[StepRecord]:
        if self.concept is not None:
            return
        self._stop = EarlyStop.of(self.settings)
        self.prepare()
        if self.model in self.network.embeddings or self.model in self.network.tokens:
            self._gap = drift(self.network, self.model, self.data, self.scaling, "complete", self._preparing(_MEASURES))
        yield from train(
            self.network, self.objective(), self.data, self.settings, self.scaling, self.run,
            frozen_embeddings=self.frozen_embeddings(), class_pictures=self.class_pictures(),
            scenes=self.scenes(), stop=self._stop,
        )  # fmt: skip
        result = self.result()
        self.run.finish(result)
        self.concept = _timed(result, self.run)

    def prepare(self) -> None:
        """Adds the models that the objective names to the network."""
        raise NotImplementedError

    def objective(self) -> Objective:
        raise NotImplementedError

    def frozen_embeddings(self) -> tuple[str, ...]:
        """Models whose embeddings do not learn."""
        return ()

    def class_pictures(self) -> ClassPictures | None:
        return None

    def scenes(self) -> Scenes | None:
        return None

    def role(self) -> str:
        return "concept"

    def result(self) -> Concept:
        settings, data = self.settings, self.data
        embeddings, tokens = self.network.embeddings.get(self.model), self.network.tokens.get(self.model)
        return Concept(
            trigger=data.trigger,
            class_word=data.class_word,
            kind=data.kind,
            role=self.role(),
            base=self.base,
            lora=self.network.lora_weights(self.model, settings.alpha),
            embeddings=embeddings.snapshot() if embeddings else None,
            token_embeddings=tokens.snapshot() if tokens else None,
            settings=self.run.identity,
            summary=self.summary(),
            gate=settings.gate,
        )

    def summary(self) -> dict[str, float]:
        """Means over the last tenth of the steps (up to those that were kept), and how far texts without the concept were moved."""
        records = self.run.records()
        if self._stop:
            records = [record for record in records if record.step <= self._stop.best.step] or records
        last = records[-max(1, len(records) // 10) :]
        figures = {}
        for name in _FIGURES:
            values = [getattr(record, name) for record in last if getattr(record, name) is not None]
            if values:
                figures[name] = sum(values) / len(values)
        asked = self.network, self.model, self.data, self.scaling
        looking = self._preparing(_MEASURES)
        if EXTRACTOR in self.network.models:
            figures |= alignment(*asked, looking)
        figures["drift_base"] = drift(*asked, "base", looking)
        figures["drift_null"] = drift(*asked, "null", looking)
        if self._gap is not None:
            # how far the embeddings alone moved complete texts before the first step, from what the class word gives
            figures["embedding_gap"] = self._gap
        figures |= self._stop.summary() if self._stop else {}
        return {name: round(value, 6) for name, value in figures.items()}

    def _new_model(
        self, name: str, embeddings: ConceptEmbeddings | None, tokens: dict[str, Tensor] | None = None
    ) -> None:
        settings = self.settings
        self.network.gates[name] = settings.gate
        if settings.rank:
            modules = lora_modules(
                self.network.transformer, settings.targets, settings.first_block, settings.last_block,
                text_only=settings.gate == "rows",
            )  # fmt: skip
            self.network.add_new(name, settings.rank, settings.alpha, modules, settings.seed)
        if embeddings is not None:
            self.network.add_embeddings(name, embeddings)
        if settings.token_embeddings:
            self.network.add_tokens(name, tokens)

    def _initial_embeddings(self) -> ConceptEmbeddings | None:
        return initial_embeddings(self.network, self.data, self.scaling, self.settings.embeddings)


class FinishedJob:
    """What a job would be whose run was finished before, where nothing of it asks for the network."""

    def __init__(self, run: Run, settings: TrainSettings, concept: Concept):
        """`concept`: as `Run.finished` gives it."""
        self.run, self.settings, self.concept = run, settings, _timed(concept, run)

    def __iter__(self) -> Iterator[StepRecord]:
        yield from ()


def _timed(concept: Concept, run: Run) -> Concept:
    """With the seconds a step took, which are not in the run's file: the same settings give the same bytes."""
    seconds = sorted(record.seconds for record in run.records()) or [0.0]
    return replace(concept, summary={**concept.summary, "seconds_per_step": seconds[len(seconds) // 2]})
