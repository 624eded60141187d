"""What a step descends: an objective is a sum of terms, and a term is a loss over the velocities of one batch.

L_CC                  ConceptTerm(PURE)                                   plain LoRA; of EXTRACTOR: stage 1
L_CC + eta L_PureCC   ConceptTerm(PURE), PureTerm(...)                    PureCC, eq. 15
                      ConceptTerm(EXTRACTOR) besides                      merged stage
+ w || v2 - v3 ||^2   AnchorTerm("base" or "null", w)                     DOP, anchors
+ w L(class picture)  PriorTerm(w)                                        prior preservation
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import objective as eq
from .batches import Batch
from .encoding import TextBatch
from .network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from .settings import PureSettings


class Velocities:
    """v_theta(x_t, y) of one batch for the models and texts (names of Batch's fields) that the terms ask for, each once."""

    def __init__(self, network: AdaptedNetwork, batch: Batch):
        self.network, self.batch = network, batch
        self._frozen: dict[tuple[str | None, str], Tensor] = {}
        self._learning: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def frozen(self, model: str | None, *texts: str) -> list[Tensor]:
        """Without a graph; two texts of one length in one forward."""
        missing = [text for text in dict.fromkeys(texts) if (model, text) not in self._frozen]
        words = [self._words(text) for text in missing]
        if len({text.rows.shape[1] for text in words}) == 1:
            joined = words[0]
            for text in words[1:]:
                joined = joined + text
            x_t, t = torch.cat([self.batch.x_t] * len(words)), torch.cat([self.batch.t] * len(words))
            found = self.network.velocity(x_t, t, joined, model).chunk(len(words))
        else:
            found = [self.network.velocity(self.batch.x_t, self.batch.t, text, model) for text in words]
        self._frozen |= {(model, text): v for text, v in zip(missing, found, strict=True)}
        return [self._frozen[model, text] for text in texts]

    def learning(self, model: str, text: str) -> Tensor:
        """In the graph of the model's parameters."""
        if (model, text) not in self._learning:
            batch = self.batch
            self._learning[model, text] = self.network.velocity(batch.x_t, batch.t, self._words(text), model)
        return self._learning[model, text]

    def _words(self, text: str) -> TextBatch:
        return getattr(self.batch, text)


@dataclass(frozen=True)
class Terms:
    """A loss to descend and what goes into the record."""

    loss: Tensor
    measured: dict[str, Tensor]  # fields of StepRecord


class Term(Protocol):
    def __call__(self, velocities: Velocities) -> Terms: ...


@dataclass(frozen=True)
class ConceptTerm:
    """L_CC (eq. 3)."""

    model: str
    name: str = "concept_loss"  # in the record

    def __call__(self, velocities: Velocities) -> Terms:
        v_complete, batch = velocities.learning(self.model, "complete"), velocities.batch
        loss = eq.concept_loss(v_complete, batch.v_true, batch.weights).mean()
        return Terms(loss, {self.name: loss})


@dataclass(frozen=True)
class PureTerm:
    """eta L_PureCC (eqs. 8 to 14, algorithm 1)."""

    settings: PureSettings
    mean_t: float = 0.5  # of the times learnt from

    def __call__(self, velocities: Velocities) -> Terms:
        settings, batch = self.settings, velocities.batch
        guidance = eq.implicit_guidance(*velocities.frozen(EXTRACTOR, *eq.TARGET_TEXTS[settings.target]))
        if settings.original != "trainable":
            (v_original,) = velocities.frozen(BASE if settings.original == "frozen base" else PURE, "base")
        v_complete = velocities.learning(PURE, "complete")
        if settings.original == "trainable":
            v_original = velocities.learning(PURE, "base")

        representation = eq.learned_representation(v_complete, v_original)
        scale = self._scale(eq.adaptive_scale(representation, guidance, batch.weights))
        losses = eq.pure_loss(eq.pure_velocity(v_original, scale, guidance), v_complete, batch.weights)
        eta = eq.eta_at(batch.t, settings.eta, settings.eta_schedule, self.mean_t)
        return Terms(
            (eta * losses).mean(),
            {
                "pure_loss": losses.mean(),
                "scale": scale.mean(),
                "scale_spread": scale.std(correction=0),
                "squared_cosine": eq.squared_cosine(representation, guidance, batch.weights).mean(),
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

    def __call__(self, velocities: Velocities) -> Terms:
        (v_base,) = velocities.frozen(BASE, self.text)
        loss = eq.anchor_loss(velocities.learning(PURE, self.text), v_base).mean()
        return Terms(self.weight * loss, {f"{self.text}_anchor": loss})


@dataclass(frozen=True)
class PriorTerm:
    """weight * flow matching on pictures of the class that the base model drew (DreamBooth, arXiv 2208.12242)."""

    weight: float

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

    def terms(self, network: AdaptedNetwork, batch: Batch) -> Terms:
        velocities, loss, measured = Velocities(network, batch), torch.zeros((), device=batch.t.device), {}
        for term in self.of:
            one = term(velocities)
            loss, measured = loss + one.loss, measured | one.measured
        return Terms(loss, measured)


def extractor_objective() -> Objective:
    """Stage 1: L_CC of theta1."""
    return Objective((EXTRACTOR,), (ConceptTerm(EXTRACTOR),))


def pure_objective(settings: PureSettings, mean_t: float = 0.5) -> Objective:
    """Stage 2, or a baseline. What is needed without a graph comes first, while no graph is kept."""
    terms: list[Term] = [PureTerm(settings, mean_t)] if settings.is_pure else []
    anchors = {"base": settings.base_anchor, "null": settings.null_anchor}
    if settings.method == "LoRA + DOP":
        anchors["base"] += settings.preservation_weight
    terms += [AnchorTerm(text, weight) for text, weight in anchors.items() if weight]
    terms.append(ConceptTerm(PURE))
    if settings.method == "LoRA + prior preservation":
        terms.append(PriorTerm(settings.preservation_weight))
    if settings.method == "merged stage":
        return Objective((EXTRACTOR, PURE), (*terms, ConceptTerm(EXTRACTOR, "extractor_loss")))
    return Objective((PURE,), tuple(terms))
