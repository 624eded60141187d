"""What the parity checks share: a check's result, the bundled model on both sides, one prediction of the host's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import comfy.samplers
import torch
from purecc_pack.nodes.host import pocket as host_pocket
from purecc_pack.purecc.concept import Concept, ConceptEmbeddings, LoraWeights
from purecc_pack.purecc.pocket import model as pure_pocket
from torch import Tensor

import nodes

FOLDER: list[Path] = []  # of the pocket's weights, set by run.py
CHECKS: dict[str, Callable[[], Result]] = {}
LATENT = (16, 16, 16)


@dataclass
class Result:
    """What a check saw: errors with the size of the effect that they are errors of, and sentences that hold or not."""

    figures: dict[str, tuple[float, float]] = field(default_factory=dict)  # case -> (error, effect)
    sentences: dict[str, bool] = field(default_factory=dict)

    def figure(self, case: str, got: Tensor, expected: Tensor, without: Tensor) -> None:
        """`without`: what would be there if the thing under test did nothing."""
        self.figures[case] = (rel(got, expected), rel(without, expected))

    def raises(self, case: str, words: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (ValueError, RuntimeError) as error:
            self.sentences[f"{case}: {error}"] = words in str(error)
        else:
            self.sentences[f"{case}: nothing was raised"] = False


def check(function: Callable[[], Result]) -> Callable[[], Result]:
    CHECKS[function.__name__] = function
    return function


def rel(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    return float((a.double() - b.double()).norm() / b.double().norm())


@cache
def pure() -> pure_pocket.Pocket:
    """diffusers' and transformers' classes."""
    with torch.inference_mode(False):
        return pure_pocket.load_pocket(FOLDER[0])


@cache
def host() -> tuple:
    """MODEL, CLIP, VAE."""
    return host_pocket.load_pocket(FOLDER[0])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encode(clip, text: str) -> list:
    """CONDITIONING, by the stock node."""
    return nodes.CLIPTextEncode().encode(clip, text)[0]


@dataclass
class Prediction:
    """One call of the sampler's model with guidance: what it saw and made of it."""

    x: Tensor
    positive: Tensor  # velocities
    negative: Tensor
    batches: list[int]  # pictures in each forward


def predict(model, positive: list, negative: list, sigma: float = 0.7, batch: int = 1, seed: int = 1) -> Prediction:
    """The host's velocities for both conditionings, through its own guider, so that wrappers and batching take part."""
    model, seen, batches = model.clone(), {}, []

    def keep(args: dict) -> Tensor:
        seen.update(x=args["input"], positive=args["cond_denoised"], negative=args["uncond_denoised"])
        return args["denoised"]

    def probe(model_fn, x, sigmas, extra_args=None, callback=None, disable=None):
        return model_fn(x, sigmas[0].expand(len(x)), **extra_args)

    model.set_model_sampler_post_cfg_function(keep)
    network = model.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(4.0)
    x = noise(batch, *LATENT, seed=seed)
    try:
        guider.sample(x, torch.zeros_like(x), comfy.samplers.KSAMPLER(probe), torch.tensor([sigma, 0.0]))
    finally:
        handle.remove()
    velocity = lambda name: (seen["x"] - seen[name]) / sigma  # noqa: E731
    return Prediction(seen["x"], velocity("positive"), velocity("negative"), batches)


def picture(model, positive: list, negative: list, steps: int = 4, seed: int = 3, batch: int = 1) -> Tensor:
    """Latents of the stock KSampler."""
    latent = {"samples": torch.zeros(batch, *LATENT)}
    return nodes.KSampler().sample(model, seed, steps, 4.0, "euler", "normal", positive, negative, latent)[0]["samples"]


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def random_concept(
    trigger: str = "[V]",
    seed: int = 5,
    lora: bool = True,
    embeddings: bool = True,
    mode: str = "replace",
    tokens: int = 1,
    alpha: float = 8.0,
    base: str = "",
) -> Concept:
    """A concept that acts strongly, on every module that training may use."""
    generator = torch.Generator().manual_seed(seed)
    transformer, matrices = pure().transformer, {}
    known = dict(transformer.named_modules())
    for block in range(len(transformer.transformer_blocks)):
        names = [f"attn.{name}" for name in ATTENTION] + [f"attn2.{name}" for name in ATTENTION[:4]]
        for name in names:
            linear = known.get(f"transformer_blocks.{block}.{name}")
            if isinstance(linear, torch.nn.Linear):
                a = torch.randn(4, linear.in_features, generator=generator) * 0.1
                b = torch.randn(linear.out_features, 4, generator=generator) * 0.05
                matrices[f"transformer_blocks.{block}.{name}"] = (a, b)
    table = torch.randn(len(transformer.transformer_blocks), tokens, transformer.inner_dim, generator=generator) * 8
    return Concept(
        trigger=trigger, class_word="dog", kind="instance", role="concept", base=base,
        lora=LoraWeights(matrices, alpha) if lora else None,
        embeddings=ConceptEmbeddings(table, None, mode) if embeddings else None,
    )  # fmt: skip


def warnings_of(call: Callable[[], object]) -> list[str]:
    """What the pack logs as a warning."""
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("purecc_pack")
    logger.addHandler(handler)
    try:
        call()
    finally:
        logger.removeHandler(handler)
    return [text for text in seen if "PureCC" in text]
