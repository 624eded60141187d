"""The two stages as jobs: iterate for a record a step, then take the concept.

    job = ExtractorJob(...) or PureJob(...)
    for record in job: ...
    job.concept

A job whose run was finished before yields nothing and has its concept at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adaln_rows import tabulate
from .class_pictures import ClassPictures, class_pictures
from .concept import T5_SLOT, Concept, ConceptEmbeddings
from .concept_set import ConceptSet
from .early_stop import EarlyStop
from .flow import LatentScaling, mean_time
from .found_masks import with_found_masks
from .frozen import storage_of
from .initial import initial_embeddings, require_clip_part
from .measures import alignment, drift
from .network import EXTRACTOR, PURE, AdaptedNetwork
from .runs import Run, StepRecord
from .scenes import Scenes, base_scenes, require_scenes
from .settings import PureSettings, TrainSettings, as_plain
from .targets import lora_modules
from .terms import Objective, extractor_objective, pure_objective
from .training import train

_FIGURES = (
    "loss", "concept_loss", "pure_loss", "scale", "scale_spread", "squared_cosine", "representation", "base_anchor",
    "null_anchor", "background_anchor", "scene_anchor", "prior_loss", "extractor_loss",
)  # fmt: skip

_DRAWS = "The base model draws pictures of the class"
_LOOKS = "The base model looks for the concept in the pictures"

# raised by hand when a change of the arithmetic, masks and their rims too, makes older finished runs other runs
FORMAT = 2


class Job:
    """One training run on one network."""

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
        **identity: Any,
    ):
        self.network, self.data, self.settings, self.scaling, self.base = network, data, settings, scaling, base
        self._require_fit()
        self.run = self.run_of(data, settings, scaling, root, base, network.dtype, **identity)
        finished = self.run.finished()
        self.concept: Concept | None = self._timed(finished) if finished else None
        self.preparing: Callable[[str, int, int], None] = lambda what, done, total: None  # called before the first step
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
        if settings.background_weight != 1 or identity.get("background_anchor"):
            everything["masks"] = data.mask_fingerprint
        if identity.get("scene_anchor"):
            require_scenes(data)
            everything["scenes"] = data.scene_fingerprint
        return Run(root, cls.stage, everything)

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
            self._gap = drift(self.network, self.model, self.data, self.scaling, "complete")
        yield from train(
            self.network, self.objective(), self.data, self.settings, self.scaling, self.run,
            frozen_embeddings=self.frozen_embeddings(), class_pictures=self.class_pictures(),
            scenes=self.scenes(), stop=self._stop,
        )  # fmt: skip
        result = self.result()
        self.run.finish(result)
        self.concept = self._timed(result)

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

    def _timed(self, concept: Concept) -> Concept:
        """With the seconds a step took, which are not in the run's file: the same settings give the same bytes."""
        seconds = sorted(record.seconds for record in self.run.records()) or [0.0]
        return replace(concept, summary={**concept.summary, "seconds_per_step": seconds[len(seconds) // 2]})

    def summary(self) -> dict[str, float]:
        """Means over the last tenth of the steps (up to those that were kept), and how far texts without the concept were moved."""
        records = self.run.records()
        if self._stop:
            records = [record for record in records if record.step <= self._stop.best.step]
        last = records[-max(1, len(records) // 10) :]
        figures = {}
        for name in _FIGURES:
            values = [getattr(record, name) for record in last if getattr(record, name) is not None]
            if values:
                figures[name] = sum(values) / len(values)
        if EXTRACTOR in self.network.models:
            figures |= alignment(self.network, self.model, self.data, self.scaling)
        figures["drift_base"] = drift(self.network, self.model, self.data, self.scaling, "base")
        figures["drift_null"] = drift(self.network, self.model, self.data, self.scaling, "null")
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


class ExtractorJob(Job):
    """Stage 1 (paper 4.2): LoRA and layer-wise embeddings learn L_CC; the result guides stage 2."""

    stage, model = "extractor", EXTRACTOR

    def prepare(self) -> None:
        self._new_model(EXTRACTOR, self._initial_embeddings())

    def objective(self) -> Objective:
        return extractor_objective()

    def role(self) -> str:
        return "extractor"


class PureJob(Job):
    """Stage 2 (paper 4.3, 4.4), or one of the other methods of `PureSettings` on the same data, seeds and steps.

    The merged stage makes its own extractor and leaves a given one aside; the baselines without L_PureCC only start from
    its embeddings, and can go without.
    """

    stage, model = "pure", PURE

    def __init__(
        self,
        network: AdaptedNetwork,
        data: ConceptSet,
        settings: TrainSettings,
        scaling: LatentScaling,
        root: Path,
        base: str,
        pure: PureSettings,
        extractor: Concept | None,
    ):
        pure, extractor = self._effective(data, pure, extractor)
        if extractor is not None and extractor.trigger.lower() != data.trigger.lower():
            raise ValueError(
                f'The extractor was trained for "{extractor.trigger}", the concept set is for "{data.trigger}".'
            )
        if extractor is not None and extractor.base != base:
            raise ValueError("The extractor was trained on another base model than the one that is connected.")
        embedded = extractor is not None and (extractor.embeddings or extractor.token_embeddings)
        if embedded and extractor.tokens != data.tokens:
            raise ValueError(f"The extractor has {extractor.tokens} embeddings a block, the concept set {data.tokens}.")
        marked = max(int(text.marks.max()) for text in data.encoded.values())
        if extractor is not None and extractor.embeddings and marked > T5_SLOT and extractor.embeddings.t5 is None:
            raise ValueError(
                "The extractor was trained without T5, this concept set with it. Use the same CLIP for both."
            )
        mode = extractor.embeddings.mode if extractor and extractor.embeddings else settings.embeddings
        if settings.embeddings not in (mode, "none"):
            raise ValueError(f'The extractor\'s embeddings act by "{mode}"; stage 2 is set to "{settings.embeddings}".')
        embedded = settings.embeddings != "none" and (extractor is None or extractor.embeddings is not None)
        embedded = embedded or settings.token_embeddings
        if settings.rank == 0 and not (embedded and pure.train_embeddings):
            raise ValueError("Nothing would learn: rank 0 is no LoRA, and there are no embeddings that may learn.")
        if pure.background_anchor and data.masks and not data.masked:
            raise ValueError(
                f"There are {len(data.masks)} masks for {len(data.examples)} pictures. Give a mask for each, or none: then the base "
                "model looks for the concept. Or set background_anchor to 0."
            )
        self.pure, self.extractor = pure, extractor
        super().__init__(network, data, settings, scaling, root, base, **self._identity(pure, extractor))

    @classmethod
    def identity_of(cls, data: ConceptSet, pure: PureSettings, extractor: Concept | None) -> dict[str, Any]:
        """What of both makes another run. Raises ValueError where the method needs an extractor and there is none."""
        return cls._identity(*cls._effective(data, pure, extractor))

    @staticmethod
    def _effective(
        data: ConceptSet, pure: PureSettings, extractor: Concept | None
    ) -> tuple[PureSettings, Concept | None]:
        """What the method reads of both."""
        if extractor is None:
            pure = pure.without_extractor()
        if data.class_text is None:  # a style is all over the picture
            pure = replace(pure, background_anchor=0.0, scene_anchor=0.0)
        return pure, None if pure.method == "merged stage" else extractor

    @staticmethod
    def _identity(pure: PureSettings, extractor: Concept | None) -> dict[str, Any]:
        return {**pure.used(), "extractor": extractor.uid if extractor else None}

    def prepare(self) -> None:
        if self.pure.background_anchor and not self.data.masked:
            self.data = with_found_masks(
                self.network, self.data, self.scaling, self.settings.batch_size, self._preparing(_LOOKS)
            )
        embeddings = None
        if self.settings.embeddings != "none":
            embeddings = self.extractor.embeddings if self.extractor else self._initial_embeddings()
        if self.extractor:
            self.network.add_concept(EXTRACTOR, self.extractor)
        elif self.pure.method == "merged stage":
            self._new_model(EXTRACTOR, embeddings)
        self._new_model(PURE, embeddings, self.extractor.token_embeddings if self.extractor else None)

    def objective(self) -> Objective:
        settings = self.settings
        return pure_objective(self.pure, mean_time(settings.shift, grid=settings.times == "diffusers grid"))

    def summary(self) -> dict[str, float]:
        anchored = {"concept_share": round(self.data.concept_share, 4)} if self.pure.background_anchor else {}
        return super().summary() | anchored

    def frozen_embeddings(self) -> tuple[str, ...]:
        return () if self.pure.train_embeddings else (PURE,)

    def class_pictures(self) -> ClassPictures | None:
        if self.pure.method != "LoRA + prior preservation":
            return None
        root = self.run.folder.parent
        return class_pictures(
            self.network, self.data, self.pure, self.base, self.settings.seed, root, self._preparing(_DRAWS)
        )

    def scenes(self) -> Scenes | None:
        if not self.pure.scene_anchor:
            return None
        root, settings = self.run.folder.parent, self.settings
        return base_scenes(
            self.network, self.data, self.pure, self.base, settings.seed, settings.batch_size, root,
            drawing=self._preparing(_DRAWS), looking=self._preparing(_LOOKS),
        )  # fmt: skip
