"""What a step descends: an objective is a sum of terms, and a term is a loss over the velocities of one batch.

L_CC                  ConceptTerm(PURE)                                   plain LoRA; of EXTRACTOR: stage 1
L_CC + eta L_PureCC   ConceptTerm(PURE), PureTerm(...)                    PureCC, eq. 15; at eta 0 the first alone
                      ConceptTerm(EXTRACTOR) besides                      merged stage
+ w || v2 - v3 ||^2   AnchorTerm("base" or "null", w)                     DOP, anchors
+ w || v2 - v3 ||^2 outside the masks: BackgroundTerm(w); with `background` b L_CC and L_PureCC weigh b there
the same in scenes with other things: SceneTerm(w, u), which adds u || v2 - (v3 + R) ||^2 at the concept's place there
+ w L(class picture)  PriorTerm(w)                                        prior preservation
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import forwards
from . import objective as eq
from .batches import Batch
from .mask_weights import inside_of, loss_weights_of
from .network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from .settings import PureSettings

Asked = tuple[str | None, str]  # a model, and which text: a field of Batch, or "scene " and one of Scene


class Velocities:
    """v_theta(x_t, y) of one batch, and of its scene, for the models and texts that the terms ask for, each once."""

    def __init__(self, network: AdaptedNetwork, batch: Batch):
        self.network, self.batch = network, batch
        self._frozen: dict[Asked, Tensor] = {}
        self._learning: dict[Asked, Tensor] = {}

    @torch.no_grad()
    def frozen(self, *asked: Asked) -> list[Tensor]:
        """Without a graph."""
        return self._found(self._frozen, asked)

    def learning(self, *asked: Asked) -> list[Tensor]:
        """In the graph of the models' parameters, a forward for each model: one that learns beside another is as it is alone.

        With checkpointing a forward for each text: a block computed again is smaller.
        """
        if self.network.transformer.gradient_checkpointing:
            groups = [(one,) for one in asked]
        else:
            models = dict.fromkeys(model for model, _ in asked)
            groups = [tuple(one for one in asked if one[0] == model) for model in models]
        for together in groups:
            self._found(self._learning, together)
        return self._found(self._learning, asked)

    def _found(self, kept: dict[Asked, Tensor], asked: tuple[Asked, ...]) -> list[Tensor]:
        missing = [one for one in dict.fromkeys(asked) if one not in kept]
        found = forwards.velocities(self.network, [self._read(*one) for one in missing])
        kept |= zip(missing, found, strict=True)
        return [kept[one] for one in asked]

    def _read(self, model: str | None, text: str) -> forwards.Query:
        of_scene, _, name = text.rpartition(" ")
        part = self.batch.scene if of_scene else self.batch
        return forwards.Query(part.x_t, part.t, getattr(part, name), model)


@dataclass(frozen=True)
class Terms:
    """A loss to descend and what goes into the record."""

    loss: Tensor
    measured: dict[str, Tensor]  # fields of StepRecord


def _weights(batch: Batch, background: float) -> Tensor | None:
    """Of a loss: a person's own, or `background` around the masks against 1 on them, brought to mean 1."""
    if batch.weights is not None or background == 1:
        return batch.weights
    return loss_weights_of(batch.outside, background)


class Term(Protocol):
    @property
    def frozen(self) -> tuple[Asked, ...]:
        """The velocities without a graph that it asks for: all terms' are computed first, and together."""

    @property
    def learning(self) -> tuple[Asked, ...]:
        """Those in the graph, likewise."""

    def __call__(self, velocities: Velocities) -> Terms: ...


@dataclass(frozen=True)
class ConceptTerm:
    """L_CC (eq. 3); `background`: its weight outside the concept set's masks, against 1 on them."""

    model: str
    name: str = "concept_loss"  # in the record
    background: float = 1.0
    frozen: tuple[Asked, ...] = ()

    @property
    def learning(self) -> tuple[Asked, ...]:
        return ((self.model, "complete"),)

    def __call__(self, velocities: Velocities) -> Terms:
        (v_complete,), batch = velocities.learning(*self.learning), velocities.batch
        loss = eq.concept_loss(v_complete, batch.v_true, _weights(batch, self.background)).mean()
        return Terms(loss, {self.name: loss})


@dataclass(frozen=True)
class PureTerm:
    """eta L_PureCC (eqs. 8 to 14, algorithm 1); masks weigh it, and lambda*, as they weigh L_CC."""

    settings: PureSettings
    mean_t: float = 0.5  # of the times learnt from
    background: float = 1.0

    @property
    def frozen(self) -> tuple[Asked, ...]:
        original = {"frozen base": ((BASE, "base"),), "trainable, detached": ((PURE, "base"),), "trainable": ()}
        return (
            *((EXTRACTOR, text) for text in eq.TARGET_TEXTS[self.settings.target]),
            *original[self.settings.original],
        )

    @property
    def learning(self) -> tuple[Asked, ...]:
        return ((PURE, "complete"), *(((PURE, "base"),) if self.settings.original == "trainable" else ()))

    def __call__(self, velocities: Velocities) -> Terms:
        settings, batch = self.settings, velocities.batch
        weights = _weights(batch, self.background)
        v_target, v_null, *frozen = velocities.frozen(*self.frozen)
        guidance = eq.implicit_guidance(v_target, v_null)
        v_complete, *learning = velocities.learning(*self.learning)
        (v_original,) = frozen or learning

        representation = eq.learned_representation(v_complete, v_original)
        scale = self._scale(eq.adaptive_scale(representation, guidance, weights))
        losses = eq.pure_loss(eq.pure_velocity(v_original, scale, guidance), v_complete, weights)
        eta = eq.eta_at(batch.t, settings.eta, settings.eta_schedule, self.mean_t)
        return Terms(
            (eta * losses).mean(),
            {
                "pure_loss": losses.mean(),
                "scale": scale.mean(),
                "scale_spread": scale.std(correction=0),
                "squared_cosine": eq.squared_cosine(representation, guidance, weights).mean(),
                "representation": representation.square().mean().sqrt(),
            },
        )

    def _scale(self, adaptive: Tensor) -> Tensor:
        settings = self.settings
        if settings.fixed_scale is not None:
            return torch.full_like(adaptive, settings.fixed_scale)
        return eq.bounded_scale(adaptive, settings.scale_multiplier, settings.scale_min, settings.scale_max)


@dataclass(frozen=True)
class AnchorTerm:
    """weight * || v_theta2 - v_theta3 ||^2 for texts without the concept, at the concept's own x_t: "base" or "null"."""

    text: str
    weight: float

    @property
    def frozen(self) -> tuple[Asked, ...]:
        return ((BASE, self.text),)

    @property
    def learning(self) -> tuple[Asked, ...]:
        return ((PURE, self.text),)

    def __call__(self, velocities: Velocities) -> Terms:
        (v_base,), (v,) = velocities.frozen(*self.frozen), velocities.learning(*self.learning)
        loss = eq.anchor_loss(v, v_base).mean()
        return Terms(self.weight * loss, {f"{self.text}_anchor": loss})


@dataclass(frozen=True)
class BackgroundTerm:
    """weight * || v_theta2(complete) - v_theta3(base) ||^2 outside the concept set's masks: there is nothing to learn there."""

    weight: float
    frozen: tuple[Asked, ...] = ((BASE, "base"),)
    learning: tuple[Asked, ...] = ((PURE, "complete"),)

    def __call__(self, velocities: Velocities) -> Terms:
        (v_base,), (v_complete,) = velocities.frozen(*self.frozen), velocities.learning(*self.learning)
        if velocities.batch.outside is None:
            raise ValueError("The background anchor needs a mask for each picture; see found_masks.")
        loss = eq.anchor_loss(v_complete, v_base, velocities.batch.outside).mean()
        return Terms(self.weight * loss, {"background_anchor": loss})


@dataclass(frozen=True)
class SceneTerm:
    """weight * || v_theta2(complete) - v_theta3(base) ||^2 outside the concept, in scenes by the base: what is beside stays.

    And `concept` * || v_theta2(complete) - (v_theta3(base) + R) ||^2 at the concept's place there, with R = v_theta2(alone) -
    v_theta3(class alone), detached: what [V] adds where nothing is beside it (eq. 10), put on the scene as eq. 13 puts
    lambda R_tar on v_original. To let the concept fade beside other things would be a way to leave those alone.
    """

    weight: float
    concept: float = 0.0
    learning: tuple[Asked, ...] = ((PURE, "scene complete"),)

    @property
    def frozen(self) -> tuple[Asked, ...]:
        alone = ((PURE, "scene alone"), (BASE, "scene class_alone"))
        return ((BASE, "scene base"), *(alone if self.concept else ()))

    def __call__(self, velocities: Velocities) -> Terms:
        (v_base, *alone), (v_complete,) = velocities.frozen(*self.frozen), velocities.learning(*self.learning)
        outside = velocities.batch.scene.outside
        held = eq.anchor_loss(v_complete, v_base, outside).mean()
        if not alone:
            return Terms(self.weight * held, {"scene_anchor": held})
        wanted = eq.pure_velocity(v_base, outside.new_ones(len(outside)), eq.learned_representation(*alone))
        kept = eq.anchor_loss(v_complete, wanted, inside_of(outside)).mean()
        return Terms(self.weight * held + self.concept * kept, {"scene_anchor": held, "scene_concept": kept})


@dataclass(frozen=True)
class PriorTerm:
    """weight * flow matching on pictures of the class that the base model drew (DreamBooth, arXiv 2208.12242)."""

    weight: float
    frozen: tuple[Asked, ...] = ()
    learning: tuple[Asked, ...] = ()  # its own pictures, in a forward of its own

    def __call__(self, velocities: Velocities) -> Terms:
        prior = velocities.batch.prior
        v = velocities.network.velocity(prior.x_t, prior.t, prior.text, PURE)
        loss = eq.squared_distance(v, prior.v_true).mean()
        return Terms(self.weight * loss, {"prior_loss": loss})


@dataclass(frozen=True)
class Objective:
    """A sum of terms (eq. 15 where they are L_CC and eta L_PureCC), and whose weights learn by it."""

    models: tuple[str, ...]
    of: tuple[Term, ...]

    @property
    def parts(self) -> tuple["Objective", ...]:
        """The terms of the concept's pictures and those of scenes: their gradients add up, and each has a graph of its own."""
        scenes = tuple(term for term in self.of if isinstance(term, SceneTerm))
        rest = tuple(term for term in self.of if not isinstance(term, SceneTerm))
        return tuple(Objective(self.models, of) for of in (rest, scenes) if of)

    def terms(self, network: AdaptedNetwork, batch: Batch) -> Terms:
        velocities, loss, measured = Velocities(network, batch), torch.zeros((), device=batch.t.device), {}
        velocities.frozen(*(asked for term in self.of for asked in term.frozen))
        velocities.learning(*(asked for term in self.of for asked in term.learning))
        for term in self.of:
            one = term(velocities)
            loss, measured = loss + one.loss, measured | one.measured
        return Terms(loss, measured)

    def descend(
        self, network: AdaptedNetwork, batch: Batch, share: float = 1.0, scenes_apart: bool = False
    ) -> dict[str, Tensor]:
        """Adds `share` of the gradient to the parameters'; "loss" and what was measured, without a graph.

        `scenes_apart`: the parts one after the other, so that one graph at a time is there.
        """
        loss, measured = torch.zeros((), device=batch.t.device), {}
        for part in self.parts if scenes_apart else (self,):
            terms = part.terms(network, batch)
            (share * terms.loss).backward()
            loss, measured = loss + terms.loss.detach(), measured | terms.measured
            del terms  # and its graph
        return {"loss": loss, **{name: value.detach() for name, value in measured.items()}}


def extractor_objective() -> Objective:
    """Stage 1: L_CC of theta1."""
    return Objective((EXTRACTOR,), (ConceptTerm(EXTRACTOR),))


def pure_objective(settings: PureSettings, mean_t: float = 0.5) -> Objective:
    """Stage 2, or a baseline."""
    background = settings.background_loss if settings.parts_loss else 1.0
    terms: list[Term] = [PureTerm(settings, mean_t, background)] if settings.is_guided else []
    anchors = {"base": settings.base_anchor, "null": settings.null_anchor}
    if settings.method == "LoRA + DOP":
        anchors["base"] += settings.preservation_weight
    terms += [AnchorTerm(text, weight) for text, weight in anchors.items() if weight]
    terms += [BackgroundTerm(settings.background_anchor)] if settings.background_anchor else []
    concept = settings.scene_concept if settings.keeps_concept else 0.0
    terms += [SceneTerm(settings.scene_anchor, concept)] if settings.scene_anchor else []
    terms.append(ConceptTerm(PURE, background=background))
    if settings.method == "LoRA + prior preservation":
        terms.append(PriorTerm(settings.preservation_weight))
    if settings.method == "merged stage":
        return Objective((EXTRACTOR, PURE), (*terms, ConceptTerm(EXTRACTOR, "extractor_loss")))
    return Objective((PURE,), tuple(terms))
