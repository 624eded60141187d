"""The two stages as jobs (`job.py`): the extractor's training, and pure learning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from .class_pictures import ClassPictures, class_pictures
from .concept import T5_SLOT, Concept
from .concept_set import ConceptSet
from .fingerprint import is_same
from .flow import LatentScaling, mean_time
from .found_masks import with_found_masks
from .job import Job
from .network import EXTRACTOR, PURE, AdaptedNetwork
from .scenes import Scenes, base_scenes
from .settings import PureSettings, TrainSettings
from .terms import Objective, extractor_objective, pure_objective

_DRAWS = "The base model draws pictures of the class"
_LOOKS = "The base model looks for the concept in the pictures"


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
        values: str = "",
    ):
        pure, extractor = self._effective(data, pure, extractor)
        if extractor is not None and extractor.trigger.lower() != data.trigger.lower():
            raise ValueError(
                f'The extractor was trained for "{extractor.trigger}", the concept set is for "{data.trigger}".'
            )
        if extractor is not None and not is_same(extractor.base, base):
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
        super().__init__(network, data, settings, scaling, root, base, values, **self._identity(pure, extractor))

    @classmethod
    def identity_of(cls, data: ConceptSet, pure: PureSettings, extractor: Concept | None) -> dict[str, Any]:
        """What of both makes another run. Raises ValueError where the method needs an extractor and there is none."""
        return cls._identity(*cls._effective(data, pure, extractor))

    @staticmethod
    def _effective(
        data: ConceptSet, pure: PureSettings, extractor: Concept | None
    ) -> tuple[PureSettings, Concept | None]:
        """What the method reads of both."""
        if data.class_text is None:  # a style is all over the picture
            pure = replace(pure, background_anchor=0.0, scene_anchor=0.0)
        if extractor is None:
            pure = pure.without_extractor()
        return pure, None if pure.method == "merged stage" else extractor

    @staticmethod
    def _identity(pure: PureSettings, extractor: Concept | None) -> dict[str, Any]:
        return {**pure.used(), "extractor": extractor.uid if extractor else None}

    def prepare(self) -> None:
        if self.pure.background_anchor and not self.data.masked:
            self.data = with_found_masks(self.network, self.data, self.scaling, self._preparing(_LOOKS))
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

    @property
    def _drawn_by(self) -> str:
        return f"{self.base} {self.values}".strip()

    def class_pictures(self) -> ClassPictures | None:
        if self.pure.method != "LoRA + prior preservation":
            return None
        root = self.run.folder.parent
        return class_pictures(
            self.network, self.data, self.pure, self._drawn_by, self.settings.seed, root, self._preparing(_DRAWS)
        )

    def scenes(self) -> Scenes | None:
        if not self.pure.scene_anchor:
            return None
        root = self.run.folder.parent
        return base_scenes(
            self.network, self.data, self.pure, self._drawn_by, self.settings.seed, root,
            drawing=self._preparing(_DRAWS), looking=self._preparing(_LOOKS),
        )  # fmt: skip
