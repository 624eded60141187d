"""One run with snapshots: x0 as predicted from v_original, v_PureCC and v_complete along training, and v_PureCC as a sampler."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from purecc import objective as eq
from purecc.encoding import PocketTextEncoder, TextBatch
from purecc.flow import add_noise
from purecc.network import BASE, EXTRACTOR, PURE, AdaptedNetwork
from purecc.pocket import specification as spec
from purecc.prompts import Placeholder
from purecc.sampling import euler
from purecc.stages import ExtractorJob, PureJob

from .arms import ARMS
from .bench import Bench
from .concepts import TRIGGER, BenchConcept, prompts

STEPS = 100  # of each stage
SHOWN = (1, 10, 25, 50, 75, 100)  # steps after which x0 is predicted
TIME = 0.8  # of the noised picture that it is predicted from: most is noise, the layout is still open


@dataclass(frozen=True)
class Predicted:
    """Velocities of one batch, each [batch, channels, height, width]; named as in the objective."""

    v_original: Tensor
    v_pure: Tensor
    v_complete: Tensor

    def clean(self, x_t: Tensor, t: Tensor) -> dict[str, Tensor]:
        """x0 = x_t - t v for each of them (eqs. 1, 2), by name."""
        names = {"v_original": self.v_original, "v_PureCC": self.v_pure, "v_complete": self.v_complete}
        return {name: x_t - t.view(-1, 1, 1, 1) * v for name, v in names.items()}


@torch.no_grad()
def predict(network: AdaptedNetwork, x_t: Tensor, t: Tensor, texts: dict[str, TextBatch], frozen: bool) -> Predicted:
    """Eqs. 8 to 13 with adaptive lambda; texts: complete, base, target, null. `frozen`: v_original from the base model."""
    v = lambda text, model: network.velocity(x_t, t, texts[text], model)  # noqa: E731
    v_complete, v_original = v("complete", PURE), v("base", BASE if frozen else PURE)
    guidance = eq.implicit_guidance(v("target", EXTRACTOR), v("null", EXTRACTOR))
    scale = eq.adaptive_scale(eq.learned_representation(v_complete, v_original), guidance)
    return Predicted(v_original, eq.pure_velocity(v_original, scale, guidance), v_complete)


class AlongTraining:
    """A run of both stages, STEPS each, of one arm; x0 is predicted at SHOWN steps from one reference under noise."""

    def __init__(self, bench: Bench, taught: BenchConcept, arm: str, steps: int = STEPS):
        self.bench, self.taught, self.arm, self.steps = bench, taught, ARMS[arm], steps
        self.data = bench.concept_set(taught, self.arm.tokens)
        self.frozen = self.arm.pure_settings.original == "frozen base"

    def run(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """x0 in pixels by name, [steps shown, 3, side, side]; and pictures sampled at the end, by name."""
        bench, arm, runs = self.bench, self.arm, self.bench.work / "sheets" / "runs"
        settings = arm.extractor_settings(0, steps=self.steps)
        first = ExtractorJob(bench.network(self.taught), self.data, settings, bench.scaling, runs, bench.base)
        for _ in first:
            pass
        network, settings = bench.network(self.taught), arm.train_settings(0, steps=self.steps)
        x_t, t, texts = self.noised()
        found: dict[str, list[Tensor]] = {}
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # always from its first step on: snapshots are of what is learnt now
            root = Path(folder)
            job = PureJob(
                network, self.data, settings, bench.scaling, root, bench.base, arm.pure_settings, first.concept
            )  # fmt: skip
            for record in job:
                if record.step in SHOWN:
                    for name, x0 in predict(network, x_t, t, texts, self.frozen).clean(x_t, t).items():
                        found.setdefault(name, []).append(self.decode(x0))
        return {name: torch.cat(x0) for name, x0 in found.items()}, self.sampled(network)

    def noised(self) -> tuple[Tensor, Tensor, dict[str, TextBatch]]:
        """The first reference at TIME, with the texts of that picture."""
        x0 = self.bench.scaling.to_model(self.data.examples[0].latent[None].float())
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
        t = torch.tensor([TIME])
        texts = {which: self.data.batch(which, [0]) for which in ("complete", "base", "target")}
        return add_noise(x0, noise, t), t, {**texts, "null": self.data.null(1)}

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        return self.bench.pocket.vae.decode(self.bench.scaling.to_autoencoder(x0)).sample.clamp(-1, 1)

    @torch.no_grad()
    def sampled(self, network: AdaptedNetwork, count: int = 4) -> dict[str, Tensor]:
        """Prompts with the concept, each from the same noise: the base, v_PureCC as a sampler, what the model learnt."""
        asked = [p for p in prompts(self.taught) if p.role == "concept"][:count]
        encoder = PocketTextEncoder(self.bench.pocket, TRIGGER, Placeholder(1, self.taught.class_word))
        of = lambda words: TextBatch.of([encoder.encode(word) for word in words])  # noqa: E731
        texts = {"complete": of([p.complete for p in asked]), "base": of([p.base for p in asked])}
        target = self.data.examples[0].texts.target
        texts |= {"target": of([target] * count), "null": of([""] * count)}
        seeds = [1000 + 17 * i for i in range(count)]  # as the cases' pictures
        side = spec.RESOLUTION // spec.DOWNSCALE
        noise = torch.stack(
            [torch.randn(spec.LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )

        def guided(which: Callable[[Predicted], Tensor], negative: str | None):
            def velocity(x_t: Tensor, t: Tensor) -> Tensor:
                v_null = network.velocity(x_t, t, texts["null"], negative)
                v = which(predict(network, x_t, t, texts, self.frozen))
                return v_null + spec.GUIDANCE * (v - v_null)

            return velocity

        base = lambda x_t, t: network.velocity(x_t, t, texts["base"], BASE)  # noqa: E731
        null = lambda x_t, t: network.velocity(x_t, t, texts["null"], BASE)  # noqa: E731
        along = {
            "base model": lambda x_t, t: null(x_t, t) + spec.GUIDANCE * (base(x_t, t) - null(x_t, t)),
            "v_PureCC": guided(lambda p: p.v_pure, BASE),
            "learnt": guided(lambda p: p.v_complete, PURE),
        }
        steps = self.bench.drawing.steps
        return {name: self.decode(euler(velocity, noise, steps, spec.SHIFT)) for name, velocity in along.items()}
