"""The regression check: on the real Pocket SD3 and a real concept, learning does what the method says.

Small runs, compared with one another. A wrong sign in L_PureCC, base and complete text swapped, the extractor's adapter
left off, lambda* frozen or the gate ignored each turn one of these red: the last test breaks the code so, and looks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from benchmarks.pocketbench.arms import Arm
from benchmarks.pocketbench.bench import Bench
from benchmarks.pocketbench.concepts import concept
from purecc import objective as eq
from purecc.batches import draw_batch
from purecc.concept import Concept, Gate
from purecc.concept_set import ConceptSet
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.runs import StepRecord
from purecc.stages import ExtractorJob, PureJob
from purecc.terms import Velocities

STEPS = 50
LORA, PURECC = Arm({"method": "LoRA"}), Arm({"eta": 2.0})
GATED = Arm({"method": "LoRA"}, {"gate": "rows"})


@dataclass
class Taught:
    concept: Concept
    records: list[StepRecord]


@dataclass
class World:
    """The bench on one concept, the extractor, and what was taught with it."""

    bench: Bench
    data: ConceptSet
    extractor: Taught
    runs: Path

    def teach(self, arm: Arm) -> Taught:
        settings = arm.train_settings(0, steps=STEPS)
        extractor = None if arm is GATED else self.extractor.concept  # plain LoRA starts from its embeddings too
        bench = self.bench
        job = PureJob(
            bench.network(), self.data, settings, bench.scaling, self.runs, bench.base, arm.pure_settings, extractor
        )
        records = list(job)
        return Taught(job.concept, records)

    def network(self, taught: Concept | None = None) -> AdaptedNetwork:
        network = self.bench.network()
        network.add_concept(EXTRACTOR, self.extractor.concept)
        if taught is not None:
            network.add_concept(PURE, taught)
        return network

    @torch.no_grad()
    def batch(self, number: int = 1):
        return draw_batch(self.data, PURECC.train_settings(0), self.bench.scaling, number, "cpu")

    @torch.no_grad()
    def concept_loss(self, taught: Concept | None) -> float:
        """L_CC with the complete text over fixed batches; None: of the base model."""
        network, losses = self.network(taught), []
        for number in range(1000, 1006):
            batch = self.batch(number)
            v = network.velocity(batch.x_t, batch.t, batch.complete, PURE if taught else BASE)
            losses.append((v - batch.v_true).square().mean())
        return float(torch.stack(losses).mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    bench = Bench(tmp_path_factory.mktemp("learning"))
    data = bench.concept_set(concept("poodle"), 1)
    job = ExtractorJob(
        bench.network(), data, PURECC.extractor_settings(0, steps=STEPS), bench.scaling, bench.work, bench.base
    )
    records = list(job)
    return World(bench, data, Taught(job.concept, records), bench.work)


@pytest.fixture(scope="module")
def lora(world: World) -> Taught:
    return world.teach(LORA)


@pytest.fixture(scope="module")
def pure(world: World) -> Taught:
    return world.teach(PURECC)


def off_the_concept(taught: Taught) -> float:
    """How much was learnt off the extractor's direction: the square of R_complete times 1 - cos^2."""
    summary = taught.concept.summary
    return summary["end_representation"] ** 2 * (1 - summary["end_squared_cosine"])


def test_the_concept_is_learnt(world: World, lora: Taught, pure: Taught) -> None:
    """Swapped base and complete texts would teach the base text, and the trigger's embeddings nothing."""
    base = world.concept_loss(None)
    assert world.concept_loss(world.extractor.concept) < 0.95 * base
    assert world.concept_loss(lora.concept) < 0.95 * base
    assert world.concept_loss(pure.concept) < 0.98 * base
    moved = pure.concept.embeddings.clip - world.extractor.concept.embeddings.clip
    assert moved.abs().max() > 1e-3


def test_purity_holds_back_what_is_off_the_concept(lora: Taught, pure: Taught) -> None:
    """A wrong sign of L_PureCC would drive it out instead."""
    assert off_the_concept(pure) < 0.8 * off_the_concept(lora)
    assert pure.concept.summary["drift_base"] < 0.9 * lora.concept.summary["drift_base"]


def test_the_scale_is_the_adaptive_one_of_the_extractor_with_its_adapter(world: World, pure: Taught) -> None:
    """The first step's lambda*, by hand: theta2 is the base with the extractor's embeddings then (eqs. 8, 11, 12)."""
    network, batch = world.network(), world.batch(1)
    settings = PURECC.train_settings(0)
    network.add_new(PURE, settings.rank, settings.alpha, ("attn.to_q",), 0)
    network.add_embeddings(PURE, world.extractor.concept.embeddings)
    with torch.no_grad():
        v = lambda text, model: network.velocity(batch.x_t, batch.t, text, model)  # noqa: E731
        guidance = eq.implicit_guidance(v(batch.target, EXTRACTOR), v(batch.null, EXTRACTOR))
        learned = eq.learned_representation(v(batch.complete, PURE), v(batch.base, BASE))
        scale = eq.adaptive_scale(learned, guidance)
    assert pure.records[0].scale == pytest.approx(float(scale.mean()), rel=1e-3, abs=1e-5)
    assert pure.records[0].squared_cosine == pytest.approx(float(eq.squared_cosine(learned, guidance).mean()), rel=1e-3)


def test_the_loss_is_what_the_direction_leaves_of_r_complete(pure: Taught) -> None:
    """Eq. 14 at lambda*: || R_complete ||^2 (1 - cos^2). A wrong sign in eq. 13 would make it || R_complete ||^2 (1 + 3 cos^2)."""
    whole = [record.representation**2 for record in pure.records]
    left = [record.pure_loss for record in pure.records]
    assert all(part <= 1.0001 * all_ for part, all_ in zip(left, whole, strict=True))
    assert sum(left) < 0.98 * sum(whole)


def test_the_scale_moves(pure: Taught) -> None:
    scales = torch.tensor([record.scale for record in pure.records])
    assert scales.std() > 0.02
    assert scales[-10:].mean() != pytest.approx(float(scales[:10].mean()), abs=0.01)


def leaves_other_texts_alone(world: World, taught: Concept) -> None:
    network, batch = world.network(taught), world.batch(7)
    with torch.no_grad():
        for text in (batch.base, batch.null):
            of = [network.velocity(batch.x_t, batch.t, text, model) for model in (PURE, BASE)]
            assert torch.equal(*of)
        of = [network.velocity(batch.x_t, batch.t, batch.complete, model) for model in (PURE, BASE)]
        assert (of[0] - of[1]).abs().max() > 0.05


def test_a_concept_trained_with_a_gate_leaves_texts_without_it_alone(world: World) -> None:
    taught = world.teach(GATED)
    leaves_other_texts_alone(world, taught.concept)
    assert taught.concept.summary["drift_base"] == 0 and taught.concept.summary["drift_null"] == 0


@pytest.mark.parametrize("gate", ["picture", "conditioning"])  # what *as trained* means, of a thing and of a style
def test_a_concept_behind_a_gate_leaves_texts_without_it_alone(world: World, lora: Taught, gate: Gate) -> None:
    leaves_other_texts_alone(world, replace(lora.concept, gate=gate))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        _ignored_gate(patch)
        leaves_other_texts_alone(world, replace(lora.concept, gate=gate))


# each as someone may write it by mistake; what to patch, and what must turn red
def _wrong_sign(patch: pytest.MonkeyPatch) -> None:
    right = eq.pure_velocity
    patch.setattr(eq, "pure_velocity", lambda v_original, scale, guidance: right(v_original, -scale, guidance))


def _swapped_texts(patch: pytest.MonkeyPatch) -> None:
    right, other = Velocities._read, {"complete": "base", "base": "complete"}
    patch.setattr(Velocities, "_read", lambda self, model, text: right(self, model, other.get(text, text)))


def _no_adapter(patch: pytest.MonkeyPatch) -> None:
    right = AdaptedNetwork._lora
    patch.setattr(
        AdaptedNetwork, "_lora", lambda self, model, *of: [] if model == EXTRACTOR else right(self, model, *of)
    )


def _frozen_scale(patch: pytest.MonkeyPatch) -> None:
    right, first = eq.adaptive_scale, []

    def scale(*of):
        first.append(right(*of))
        return torch.full_like(first[-1], float(first[0].mean()))

    patch.setattr(eq, "adaptive_scale", scale)


def _ignored_gate(patch: pytest.MonkeyPatch) -> None:
    right = AdaptedNetwork._lora

    def lora(self, model, *of):
        with self.gated(model, "off"):
            return right(self, model, *of)

    patch.setattr(AdaptedNetwork, "_lora", lora)


@pytest.mark.parametrize(
    ("broken", "sees"),
    [
        (_wrong_sign, lambda world, lora, pure: test_the_loss_is_what_the_direction_leaves_of_r_complete(pure)),
        (_swapped_texts, lambda world, lora, pure: test_the_concept_is_learnt(world, lora, pure)),
        (_no_adapter, lambda world, lora, pure: test_the_scale_is_the_adaptive_one_of_the_extractor_with_its_adapter(world, pure)),
        (_frozen_scale, lambda world, lora, pure: test_the_scale_moves(pure)),
    ],
)  # fmt: skip
def test_a_broken_objective_is_seen(
    world: World, lora: Taught, broken: Callable[[pytest.MonkeyPatch], None], sees: Callable[..., None]
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        broken(patch)
        taught = replace(world, runs=Path(folder)).teach(PURECC)
    with pytest.raises(AssertionError):
        sees(world, lora, taught)


def test_an_ignored_gate_is_seen(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        _ignored_gate(patch)
        with pytest.raises(AssertionError):
            test_a_concept_trained_with_a_gate_leaves_texts_without_it_alone(replace(world, runs=Path(folder)))
