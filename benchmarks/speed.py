"""Time, FLOPs and memory of one stage-2 step, side by side: the reference's plumbing and the product's.

    python -m benchmarks.speed [--repeats 5] [--size slice|real] [--text-rows 154|333] [--out FILE.json]

R   reference plumbing with the paper's arithmetic: texts and pictures are encoded at every step, a second whole transformer
    holds the extractor, the gradient goes through the base branch (eq. 9), the loss is fetched at every step. It does not
    train CLIP's tables, as the public code does: so it is a little cheaper than that.
P   the product with the same gradient (original "trainable"): encoded once, one transformer with two adapters
S   the product with v_original detached
D   PureCC with v_original of the frozen base
A   as the nodes come: eta 0, no extractor, the background anchor and the scene anchor
L   a plain LoRA: L_CC alone
B   S with the transformer in bfloat16, on a processor that has it

All have the same weights, LoRAs, latents, texts, noise and times. Arms run interleaved in shuffled order; each round gives one
ratio to R, of which the median, the least and the most are told. real: SD3.5 Medium's size with random weights, bfloat16, on CUDA.
slice: a twelfth of its depth at its own widths, 512 px, float32, on any machine with 12 GB: 2 layers of the transformer's 24 (one of them
dual), 2 of T5-XXL's 24, 3 and 1 of the CLIPs' 32 and 12, and an autoencoder of about a twelfth of the FLOPs.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from purecc import objective as eq
from purecc.batches import Batch, Scene
from purecc.encoding import TextBatch
from purecc.network import EXTRACTOR, PURE, AdaptedNetwork
from purecc.norms import fuse_norms
from purecc.presets import SHIPPED
from purecc.settings import PureSettings
from purecc.targets import lora_modules
from purecc.terms import pure_objective

from .live_bytes import LiveBytes
from .stand_ins import REAL, SLICE, Encoders, Size, transformer_of

ARMS = {
    "P": PureSettings(original="trainable"),
    "S": PureSettings(original="trainable, detached"),
    "D": PureSettings(original="frozen base"),
    "A": PureSettings(**SHIPPED).without_extractor(),
    "L": PureSettings(method="LoRA"),
}  # the product's
TEXTS = ("complete", "base", "target", "null")
RANK = 4
# rows of text -> FLOPs of one prompt and one picture, of one picture's transformer forward (SD3.5 Medium, 512 px; counted on
# tensors without storage)
REAL_SHARES = {154: {"text": 0.39, "picture": 0.52}, 333: {"text": 1.03, "picture": 0.46}}


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
        fuse_norms(transformer)
        self.product = self._adapted(transformer, EXTRACTOR, PURE)
        self.reference = self._adapted(second, EXTRACTOR, PURE)  # R's, of which only PURE acts
        self.reference_extractor = self._adapted(third, EXTRACTOR)
        self.learning = {one: one.lora_parameters(PURE) for one in (self.product, self.reference)}
        for parameter in itertools.chain(*self.learning.values()):
            parameter.requires_grad_(True)
        self.optimizers = {one: torch.optim.AdamW(p, lr=0.0) for one, p in self.learning.items()}  # the weights stay
        self.cached = self._with_scene(self._batch())

    def _adapted(self, transformer: SD3Transformer2DModel, *models: str) -> AdaptedNetwork:
        network = AdaptedNetwork(transformer)
        modules = lora_modules(transformer, "attention")
        for seed, model in enumerate(models):
            network.add_new(model, RANK, float(RANK), modules, seed)
            generator = torch.Generator().manual_seed(seed)
            for parameter in network.lora_parameters(model):  # B is not zero: both adapters act
                parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        transformer.requires_grad_(False)
        return network

    def _batch(self) -> Batch:
        x0 = self.encoders.picture(self.pixels)
        texts = {text: self.encoders.text(words) for text, words in self.words.items()}
        t = self.t.view(-1, 1, 1, 1)
        x_t = (1 - t) * x0 + t * self.noise
        return Batch(x_t, self.t, self.noise - x0, class_word=texts["target"], **texts)

    def _with_scene(self, batch: Batch) -> Batch:
        """With what the anchors read: half as many pictures, of the same size and length."""
        half = -(-len(batch.t) // 2)
        first = lambda text: TextBatch(text.rows[:half], text.pooled[:half], text.marks[:half])  # noqa: E731
        outside = torch.ones_like(batch.x_t[:, :1])
        scene = Scene(batch.x_t[:half], batch.t[:half], first(batch.complete), first(batch.base), outside[:half])
        return replace(batch, outside=outside, scene=scene)

    def network(self, arm: str) -> AdaptedNetwork:
        """That learns."""
        return self.reference if arm == "R" else self.product

    def loss(self, arm: str) -> Tensor:
        if arm != "R":
            return pure_objective(ARMS[arm]).terms(self.product, self.cached).loss
        batch = self._batch()
        x_t, t = torch.cat([batch.x_t] * 2), torch.cat([batch.t] * 2)
        v_complete, v_base = self.reference.velocity(x_t, t, batch.complete + batch.base, PURE).chunk(2)
        with torch.no_grad():
            target, null = self.reference_extractor.velocity(x_t, t, batch.target + batch.null, EXTRACTOR).chunk(2)
        guidance = eq.implicit_guidance(target, null)
        scale = eq.adaptive_scale(eq.learned_representation(v_complete, v_base), guidance)
        pure = eq.pure_loss(eq.pure_velocity(v_base, scale, guidance), v_complete).mean()
        return eq.concept_loss(v_complete, batch.v_true).mean() + pure

    def step(self, arm: str) -> None:
        loss = self.loss(arm)
        loss.backward()
        optimizer = self.optimizers[self.network(arm)]
        nn.utils.clip_grad_norm_(self.learning[self.network(arm)], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if arm == "R":
            loss.item()

    def gradient(self, arm: str) -> Tensor:
        self.loss(arm).backward()
        found = torch.cat([parameter.grad.flatten() for parameter in self.learning[self.network(arm)]])
        self.optimizers[self.network(arm)].zero_grad(set_to_none=True)
        return found

    def flops(self, arm: str) -> int:
        with FlopCounterMode(display=False) as counter:
            self.step(arm)
        return counter.get_total_flops()

    def shares(self) -> dict[str, float]:
        """FLOPs of one prompt's and one picture's encoding, of one picture's transformer forward."""

        def of(call: Callable[[], object]) -> int:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            return counter.get_total_flops()

        batch = self.cached
        forward = of(lambda: self.product.velocity(batch.x_t, batch.t, batch.base, None))
        text = of(lambda: self.encoders.text(self.words["base"]))
        return {"text": text / forward, "picture": of(lambda: self.encoders.picture(self.pixels)) / forward}

    def peak(self, arm: str) -> int:
        """Bytes beside the weights: alive at once (CPU), or by the allocator (CUDA)."""
        self.step(arm)
        if self.size.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(arm)
            return torch.cuda.max_memory_allocated() - before
        with LiveBytes() as live:
            self.step(arm)
        return live.peak

    def seconds(self, work: Callable[[], object]) -> float:
        """CPU time, or the time of CUDA's events."""
        if self.size.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000
        start = time.process_time()
        work()
        return time.process_time() - start

    def matrix_rate(self) -> float:
        """FLOPs a second of a large matrix product in the same dtype; the best of five."""
        n = 8192 if self.size.device == "cuda" else 1024
        a = torch.randn(n, n, device=self.size.device, dtype=self.size.dtype)
        return 2 * n**3 / min(self.seconds(lambda: a @ a) for _ in range(5))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def measured(bench: Bench, repeats: int, half: Bench | None = None) -> dict:
    """Every figure of one run; `half`: the same in bfloat16."""
    by_arm = {arm: (bench, arm) for arm in ("R", *ARMS)} | ({"B": (half, "S")} if half else {})
    arms = list(by_arm)
    flops, peaks = ({arm: getattr(of, name)(own) for arm, (of, own) in by_arm.items()} for name in ("flops", "peak"))
    rounds = []
    order = random.Random(0)
    for number in range(repeats):
        print(f"round {number + 1} of {repeats}", file=sys.stderr)
        shuffled = order.sample(arms, len(arms))
        rounds.append({arm: bench.seconds(lambda of=by_arm[arm]: of[0].step(of[1])) for arm in shuffled})
    rates = {arm: of.matrix_rate() for arm, (of, _) in by_arm.items()}
    r, p = bench.gradient("R"), bench.gradient("P")
    of_arms = {}
    for arm in arms:
        ratios = [one["R"] / one[arm] for one in rounds]
        seconds = statistics.median(one[arm] for one in rounds)
        of_arms[arm] = {
            "seconds": seconds, "speed": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "flops": flops[arm], "of the matrix rate": flops[arm] / seconds / rates[arm], "peak bytes": peaks[arm],
        }  # fmt: skip
    return {
        "size": bench.size.name, "text rows": bench.size.clip_tokens + bench.size.t5_tokens, "device": device_name(bench.size), "dtype": str(bench.size.dtype), "repeats": repeats,
        "threads": torch.get_num_threads(), "arms": of_arms, "gradient of P against R": float((p - r).norm() / r.norm()),
        "shares": bench.shares(), "real shares": REAL_SHARES.get(bench.size.clip_tokens + bench.size.t5_tokens, REAL_SHARES[154]),
    }  # fmt: skip


def device_name(size: Size) -> str:
    return torch.cuda.get_device_name() if size.device == "cuda" else "CPU"


def table(found: dict) -> str:
    """For people: what was measured, what was counted, what was not measured."""
    rows = [
        f"{found['size']} size, {found['text rows']} rows of text, {found['device']}, {found['dtype']}, {found['repeats']} rounds, {found['threads']} threads",
        "",
        "arm   speed against R      s a step   TFLOP a step   of the matrix rate   peak beside the weights",
    ]
    for arm, one in found["arms"].items():
        rows.append(
            f"{arm}     {one['speed']:.2f} [{one['least']:.2f} .. {one['most']:.2f}]   {one['seconds']:8.3f}   "
            f"{one['flops'] / 1e12:12.4f}   {one['of the matrix rate']:17.0%}   {one['peak bytes'] / 1e6:10.0f} MB"
        )
    cuda = found["device"] != "CPU"
    shares = ", ".join(f"{k} {v:.2f} (real {found['real shares'][k]:.2f})" for k, v in found["shares"].items())
    rows += [
        "",
        f"gradient of P against R: {found['gradient of P against R']:.1e} of its length",
        "measured: seconds (" + ("CUDA events" if cuda else "CPU time") + "), speed as paired ratios, the matrix rate"
        + (", peak by the allocator" if cuda else ""),
        "counted: FLOPs" + ("" if cuda else ", peak as bytes alive at once"),
    ]  # fmt: skip
    if not cuda:
        rows.append(
            f"not measured: the whole depth, a GPU. FLOPs of R's encoders for each transformer forward: {shares}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every arm once")
    parser.add_argument("--size", choices=["slice", "real"], help="real needs CUDA; the default where there is one")
    parser.add_argument("--text-rows", type=int, choices=[154, 333], default=154, help="CLIP's 77 and T5's 77 or 256")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    size = arguments.size or ("real" if torch.cuda.is_available() else "slice")
    if size == "real" and not torch.cuda.is_available():
        sys.exit("The real size needs a CUDA GPU with 40 GB, and none was found. Use --size slice.")
    if arguments.repeats < 1:
        sys.exit("--repeats must be 1 or more.")
    chosen = replace(REAL if size == "real" else SLICE, t5_tokens=arguments.text_rows - 77)
    half = Bench(replace(chosen, dtype=torch.bfloat16)) if size == "slice" and has_bfloat16() else None
    found = measured(Bench(chosen), arguments.repeats, half)
    print(table(found))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
