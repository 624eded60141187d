"""Time, FLOPs and memory of one step of either stage, side by side: the reference's plumbing and the product's.

    python -m benchmarks.speed [--repeats 5] [--size slice|real] [--pixels 512|1024] [--text-rows 154|333] [--arms P S ...] [--out FILE.json]

Stage 2:
R   reference plumbing with the paper's arithmetic: texts and pictures are encoded at every step, a second whole transformer
    holds the extractor, the gradient goes through the base branch (eq. 9), the loss is fetched at every step. It does not
    train CLIP's tables, as the public code does: so it is a little cheaper than that.
P   the product with the same gradient (original "trainable"): encoded once, one transformer with two adapters
S   the product with v_original detached
D   PureCC with v_original of the frozen base
A   as the nodes come: eta 0, no extractor, the background anchor and the scene anchor
L   a plain LoRA: L_CC alone
B   S with the transformer in bfloat16, on a processor that has it

Stage 1:
R1  the same plumbing: complete text and picture are encoded at every step, L_CC of a transformer of its own, the loss is fetched
E   the product's: encoded once

On CUDA the product's steps are recorded, as a training runs them (purecc/recorded.py). All have the same weights, LoRAs, latents, texts, noise and times. Arms run interleaved in shuffled order; each round gives one
ratio to R, in stage 1 to R1, of which the median, the least and the most are told. real: SD3.5 Medium's size with random weights, bfloat16, on
CUDA. slice: a twelfth of its depth at its own widths, float32, on any machine with 12 GB (at 512 px): 2 layers of the transformer's 24 (one of
them dual), 2 of T5-XXL's 24, 3 and 1 of the CLIPs' 32 and 12, and an autoencoder of about a twelfth of the FLOPs.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from purecc import objective as eq
from purecc.batches import Batch
from purecc.network import EXTRACTOR, PURE, AdaptedNetwork
from purecc.presets import SHIPPED
from purecc.recorded import Recorder
from purecc.settings import PureSettings, TrainSettings
from purecc.targets import lora_modules
from purecc.terms import extractor_objective, pure_objective

from .live_bytes import LiveBytes
from .stand_ins import (
    REAL,
    SLICE,
    ByPeft,
    Encoders,
    Size,
    device_name,
    flops_of,
    has_bfloat16,
    kernels_of,
    matrix_rate,
    seconds_of,
    transformer_of,
    with_anchors,
)

_PURE = {
    "P": PureSettings(original="trainable"),
    "S": PureSettings(original="trainable, detached"),
    "D": PureSettings(original="frozen base"),
    "A": PureSettings(**SHIPPED).without_extractor(),
    "L": PureSettings(method="LoRA"),
}
ARMS = {
    "E": extractor_objective(),
    **{arm: pure_objective(settings) for arm, settings in _PURE.items()},
}  # the product's
REFERENCES = {"R": tuple(_PURE), "R1": ("E",)}  # each with the product's arms that are held against it
TEXTS = ("complete", "base", "target", "null")
RANK = 4
# rows of text, pixels a side -> FLOPs of one prompt and one picture, of one picture's transformer forward (SD3.5 Medium;
# counted on tensors without storage)
REAL_SHARES = {
    (154, 512): {"text": 0.39, "picture": 0.52},
    (333, 512): {"text": 1.03, "picture": 0.46},
    (154, 1024): {"text": 0.08, "picture": 0.45},
    (333, 1024): {"text": 0.22, "picture": 0.43},
}


class Bench:
    """The arms on one set of inputs."""

    def __init__(self, size: Size):
        self.size = size
        torch.manual_seed(0)
        self.encoders = Encoders(size)
        side = size.pixels // 16
        transformer = transformer_of(size)
        self.pixels = torch.rand(size.batch, 3, size.pixels, size.pixels, device=size.device)
        tokens = max(size.clip_tokens, size.t5_tokens)
        self.words = {text: torch.randint(1, 400, (size.batch, tokens), device=size.device) for text in TEXTS}
        self.noise = torch.randn(size.batch, 16, 2 * side, 2 * side, device=size.device)
        self.t = torch.rand(size.batch, device=size.device)
        second, third = deepcopy(transformer), deepcopy(transformer)
        self.product = self._adapted(AdaptedNetwork(transformer), EXTRACTOR, PURE)
        self.reference = self._adapted(ByPeft(second), EXTRACTOR, PURE)
        self.reference_extractor = self._adapted(ByPeft(third), EXTRACTOR)  # R's guide, and all of R1
        learning = {
            "R": self.reference.lora_parameters(PURE), "R1": self.reference_extractor.lora_parameters(EXTRACTOR),
            "E": self.product.lora_parameters(EXTRACTOR),
        }  # fmt: skip
        self._learning = learning | dict.fromkeys(_PURE, self.product.lora_parameters(PURE))
        for parameter in itertools.chain(*self._learning.values()):
            parameter.requires_grad_(True)
        self._optimizers = {arm: torch.optim.AdamW(own, lr=0.0) for arm, own in self._learning.items()}  # weights stay
        self.cached = with_anchors(self._batch())
        settings = TrainSettings(batch_size=size.batch)
        self._recorders = {
            arm: Recorder(ARMS[arm], self.product, settings, own) for arm, own in self._learning.items() if arm in ARMS
        }

    def _adapted(self, network: AdaptedNetwork, *models: str) -> AdaptedNetwork:
        modules = lora_modules(network.transformer, "attention")
        for seed, model in enumerate(models):
            network.add_new(model, RANK, float(RANK), modules, seed)
            generator = torch.Generator().manual_seed(seed)
            for parameter in network.lora_parameters(model):  # B is not zero: both adapters act
                parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        network.transformer.requires_grad_(False)
        return network

    def _batch(self) -> Batch:
        x_t, v_true = self._noised()
        texts = {text: self.encoders.text(words) for text, words in self.words.items()}
        return Batch(x_t, self.t, v_true, class_word=texts["target"], **texts)

    def _noised(self) -> tuple[Tensor, Tensor]:
        """x_t and its velocity, from pixels."""
        x0, t = self.encoders.picture(self.pixels), self.t.view(-1, 1, 1, 1)
        return (1 - t) * x0 + t * self.noise, self.noise - x0

    def loss(self, arm: str) -> Tensor:
        if arm in ARMS:
            return ARMS[arm].terms(self.product, self.cached).loss
        return self._reference_loss() if arm == "R" else self._reference_extractor_loss()

    def _reference_loss(self) -> Tensor:
        batch = self._batch()
        x_t, t = torch.cat([batch.x_t] * 2), torch.cat([batch.t] * 2)
        v_complete, v_base = self.reference.velocity(x_t, t, batch.complete + batch.base, PURE).chunk(2)
        with torch.no_grad():
            target, null = self.reference_extractor.velocity(x_t, t, batch.target + batch.null, EXTRACTOR).chunk(2)
        guidance = eq.implicit_guidance(target, null)
        scale = eq.adaptive_scale(eq.learned_representation(v_complete, v_base), guidance)
        pure = eq.pure_loss(eq.pure_velocity(v_base, scale, guidance), v_complete).mean()
        return eq.concept_loss(v_complete, batch.v_true).mean() + pure

    def _reference_extractor_loss(self) -> Tensor:
        (x_t, v_true), complete = self._noised(), self.encoders.text(self.words["complete"])
        return eq.concept_loss(self.reference_extractor.velocity(x_t, self.t, complete, EXTRACTOR), v_true).mean()

    def step(self, arm: str, recorded: bool = True) -> None:
        """The product's on CUDA as a training runs them, recorded from the second one on, or unrecorded."""
        if recorded and arm in ARMS:
            loss = self._recorders[arm].descend(self.cached)["loss"]
        else:
            loss = self.loss(arm)
            loss.backward()
        nn.utils.clip_grad_norm_(self._learning[arm], 1.0)
        self._optimizers[arm].step()
        self.forget(arm)
        if arm in REFERENCES:
            loss.item()

    def forget(self, arm: str) -> None:
        """The gradient."""
        self._optimizers[arm].zero_grad(set_to_none=True)

    def gradient(self, arm: str) -> Tensor:
        self.loss(arm).backward()
        found = torch.cat([parameter.grad.flatten() for parameter in self._learning[arm]])
        self.forget(arm)
        return found

    def flops(self, arm: str) -> int:
        return flops_of(lambda: self.step(arm, recorded=False))

    def shares(self) -> dict[str, float]:
        """FLOPs of one prompt's and one picture's encoding, of one picture's transformer forward."""
        batch = self.cached
        with torch.no_grad():
            forward = flops_of(lambda: self.product.velocity(batch.x_t, batch.t, batch.base, None))
        text = flops_of(lambda: self.encoders.text(self.words["base"]))
        return {"text": text / forward, "picture": flops_of(lambda: self.encoders.picture(self.pixels)) / forward}

    def peak(self, arm: str) -> int:
        """Bytes beside the weights, unrecorded: alive at once (CPU), or by the allocator (CUDA)."""
        self.step(arm, recorded=False)
        if self.size.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(arm, recorded=False)
            return torch.cuda.max_memory_allocated() - before
        with LiveBytes() as live:
            self.step(arm, recorded=False)
        return live.peak

    def recording_apart(self, arm: str) -> dict[str, float]:
        """How far gradients are from an unrecorded step's, of its length: the worst of three recorded ones, and another unrecorded one's."""
        expected, recorded = self.gradient(arm), []
        apart = lambda found: float((found - expected).norm() / expected.norm())  # noqa: E731
        for _ in range(3):
            self._recorders[arm].descend(self.cached)
            recorded.append(apart(torch.cat([parameter.grad.flatten() for parameter in self._learning[arm]])))
            self.forget(arm)
        return {"recorded": max(recorded), "unrecorded": apart(self.gradient(arm))}


def measured(bench: Bench, repeats: int, half: Bench | None = None, arms: Sequence[str] = tuple(ARMS)) -> dict:
    """Every figure of one run; `half`: the same in bfloat16; `arms`: the product's, each beside its reference."""
    size = bench.size
    asked = {reference: [one for one in own if one in arms] for reference, own in REFERENCES.items()}
    against = {one: reference for reference, own in asked.items() if own for one in (reference, *own)}
    by_arm = {arm: (bench, arm) for arm in against}
    if half and "R" in against:
        against["B"], by_arm["B"] = "R", (half, "S")
    flops, peaks = ({arm: getattr(of, name)(own) for arm, (of, own) in by_arm.items()} for name in ("flops", "peak"))
    on_gpu = size.device == "cuda"
    apart = {arm: bench.recording_apart(arm) for arm in against if on_gpu and arm in ARMS}
    rounds = []
    order = random.Random(0)
    for number in range(repeats):
        print(f"round {number + 1} of {repeats}", file=sys.stderr)
        shuffled = order.sample(list(by_arm), len(by_arm))
        rounds.append({arm: seconds_of(lambda of=by_arm[arm]: of[0].step(of[1]), size.device) for arm in shuffled})
    rates = {of: matrix_rate(of.size) for of in (bench, half) if of}
    kernels = {arm: kernels_of(lambda of=of: of[0].step(of[1])) for arm, of in by_arm.items() if on_gpu}
    of_arms = {}
    for arm, reference in against.items():
        ratios = [one[reference] / one[arm] for one in rounds]
        seconds = statistics.median(one[arm] for one in rounds)
        of_arms[arm] = {
            "against": reference, "seconds": seconds, "speed": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "flops": flops[arm], "of the matrix rate": flops[arm] / seconds / rates[by_arm[arm][0]], "peak bytes": peaks[arm],
            "kernels": kernels.get(arm),
        }  # fmt: skip
    rows = size.clip_tokens + size.t5_tokens
    return {
        "size": size.name, "pixels": size.pixels, "text rows": rows, "device": device_name(size), "dtype": str(size.dtype), "repeats": repeats,
        "threads": torch.get_num_threads(), "arms": of_arms, "gradient of P against R": _apart(bench, "P", "R"),
        "gradient of E against R1": _apart(bench, "E", "R1"), "shares": bench.shares(), "real shares": REAL_SHARES.get((rows, size.pixels)),
        "recorded against unrecorded": apart,
    }  # fmt: skip


def _apart(bench: Bench, arm: str, reference: str) -> float:
    """Of the reference's gradient."""
    ours, theirs = bench.gradient(arm), bench.gradient(reference)
    return float((ours - theirs).norm() / theirs.norm())


def table(found: dict) -> str:
    """For people: what was measured, what was counted, what was not measured."""
    rows = [
        f"{found['size']} size, {found['pixels']} px, {found['text rows']} rows of text, {found['device']}, {found['dtype']}, "
        f"{found['repeats']} rounds, {found['threads']} threads"
    ]
    cuda = found["device"] != "CPU"
    worst = lambda which: max(one[which] for one in found["recorded against unrecorded"].values())  # noqa: E731
    for reference, stage in (("R", "stage 2"), ("R1", "stage 1")):
        if reference not in found["arms"]:
            continue
        rows += [
            "",
            f"{stage}  {f'speed against {reference}':24}  s a step  TFLOP a step  of the matrix rate  peak beside the weights"
            + ("  kernels a step" if cuda else ""),
        ]
        for arm, one in found["arms"].items():
            if one["against"] == reference:
                speed = f"{one['speed']:.2f} [{one['least']:.2f} .. {one['most']:.2f}]"
                rows.append(
                    f"{arm:7}  {speed:24}  {one['seconds']:8.3f}  {one['flops'] / 1e12:12.4f}  {one['of the matrix rate']:18.0%}  "
                    f"{one['peak bytes'] / 1e6:20.0f} MB" + (f"  {one['kernels']:14}" if cuda else "")
                )
    rows += [
        "",
        f"gradient of P against R: {found['gradient of P against R']:.1e} of its length; of E against R1: {found['gradient of E against R1']:.1e}",
        *([f"gradients against an unrecorded step's: of recorded steps {worst('recorded'):.1e}, of another unrecorded one {worst('unrecorded'):.1e}"] if cuda else []),
        "measured: seconds (" + ("CUDA events" if cuda else "CPU time") + "), speed as paired ratios, the matrix rate"
        + (", peak by the allocator, kernels by the profiler" if cuda else ""),
        "counted: FLOPs" + ("" if cuda else ", peak as bytes alive at once"),
    ]  # fmt: skip
    if not cuda:
        real = found["real shares"] or {}
        shares = ", ".join(
            f"{k} {v:.2f}" + (f" (real {real[k]:.2f})" if k in real else "") for k, v in found["shares"].items()
        )
        rows.append(
            f"not measured: the whole depth, a GPU. FLOPs of R's encoders for each transformer forward: {shares}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every arm once")
    parser.add_argument("--size", choices=["slice", "real"], help="real needs CUDA; the default where there is one")
    parser.add_argument("--pixels", type=int, choices=[512, 1024], default=512, help="a side of the pictures")
    parser.add_argument("--text-rows", type=int, choices=[154, 333], default=154, help="CLIP's 77 and T5's 77 or 256")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="the product's; if left out, all"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    size = arguments.size or ("real" if torch.cuda.is_available() else "slice")
    if size == "real" and not torch.cuda.is_available():
        sys.exit("The real size needs a CUDA GPU (of 40 GB at 512 px), and none was found. Use --size slice.")
    if arguments.repeats < 1:
        sys.exit("--repeats must be 1 or more.")
    chosen = replace(REAL if size == "real" else SLICE, pixels=arguments.pixels, t5_tokens=arguments.text_rows - 77)
    half = Bench(replace(chosen, dtype=torch.bfloat16)) if size == "slice" and has_bfloat16() else None
    found = measured(Bench(chosen), arguments.repeats, half, arguments.arms)
    print(table(found))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
