"""Trains the judges on art that no concept is made of (splits "base" and "judges"), and prints their own accuracy.

    python -m benchmarks.pocketbench.train_judges [scene drawing style] --minutes 10

Pictures go through the autoencoder, with noise on the latents, and are blurred a little, as generated pictures are.
"""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purecc.files import load_tensors, save_tensors
from purecc.pocket.autoencoder import PocketAutoencoder
from purecc.pocket.model import WEIGHTS as POCKET
from purecc.pocket.scenes import render

from .judge_accuracy import measured
from .judge_data import VIEWS, Rng, SceneTruth, drawing_batch, scene_of, style_batch, to_pixels, truth_of, worn
from .networks import WEIGHTS, Embedder, SceneJudge

log = logging.getLogger("pocketbench")
REUSED = 80  # batches from one store of pictures


# scene judge


def scene_loss(judge: SceneJudge, pixels: Tensor, truth: SceneTruth) -> Tensor:
    view = judge(pixels)
    loss = sum(F.cross_entropy(view.logits[name].float(), wanted) for name, wanted in truth.labels.items())
    loss = loss + 4 * F.binary_cross_entropy_with_logits(view.present.float(), truth.present)
    loss = loss + 2 * F.binary_cross_entropy_with_logits(view.mask.float(), truth.mask)
    alike = judge.temperature.clamp(max=4.0).exp() * view.embedding.float() @ judge.read(truth.captions).float().T
    pairs = torch.arange(len(pixels))
    return loss + 0.5 * (F.cross_entropy(alike, pairs) + F.cross_entropy(alike.T, pairs))


# drawing and style judges: pictures of one kind near one another, of different kinds apart


def supervised_contrast(embeddings: Tensor, kinds: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (arXiv 2004.11362, its L_out); embeddings [batch, width] of unit length, kinds [batch]."""
    alike = embeddings.float() @ embeddings.float().T / temperature
    alike = alike.masked_fill(torch.eye(len(kinds), dtype=torch.bool), -1e9)
    same = (kinds[:, None] == kinds[None]) & ~torch.eye(len(kinds), dtype=torch.bool)
    log_share = alike - alike.logsumexp(1, keepdim=True)
    return -(log_share.masked_fill(~same, 0).sum(1) / same.sum(1).clamp_min(1)).mean()


class Store:
    """Pictures enough for REUSED / 4 batches, composed and worn."""

    def __init__(self, name: str, rng: Rng, number: int, autoencoder: PocketAutoencoder):
        self.name = name
        batches = REUSED // 4
        if name == "scene":
            scenes = [scene_of(number * batches * 48 + i) for i in range(batches * 48)]
            self.truth, pictures = truth_of(scenes), [render(s) for s in scenes]
        else:
            pictures, _ = (drawing_batch if name == "drawing" else style_batch)(rng, batches * 12)
        self.pixels = torch.cat([worn(chunk, autoencoder, rng) for chunk in to_pixels(pictures).split(48)])

    def batch(self, rng: Rng) -> tuple[Tensor, SceneTruth | Tensor]:
        """48 pictures by chance, with what is true of them."""
        if self.name == "scene":
            chosen = torch.from_numpy(rng.choice(len(self.pixels), 48, replace=False))
            return self.pixels[chosen], self.truth.of(chosen)
        kinds = rng.choice(len(self.pixels) // VIEWS, 12, replace=False)
        chosen = torch.from_numpy(kinds)[:, None] * VIEWS + torch.arange(VIEWS)
        return self.pixels[chosen.flatten()], torch.arange(12).repeat_interleave(VIEWS)


def train(name: str, minutes: float, autoencoder: PocketAutoencoder, more: bool, rate: float) -> tuple[nn.Module, int]:
    """One judge, from nothing or from where it stands (`more`), and its steps; the rate falls to zero over the minutes."""
    torch.manual_seed(0)
    judge, first = SceneJudge() if name == "scene" else Embedder(), 0
    if more:
        tensors, header = load_tensors(WEIGHTS / f"{name}.safetensors")
        judge.load_state_dict(tensors)
        first = int(header.get("steps", 0))
    judge.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.02, fused=True)
    rng, step, losses, start, store = np.random.default_rng(1 + first), first, [], time.monotonic(), None
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(1, (step - first + 1) / 100) * (1 - share)
        if (
            store is None or step % REUSED == 0
        ):  # composing costs more than learning, so a store of pictures is gone through some times
            store = Store(name, rng, step // REUSED, autoencoder)
        pixels, wanted = store.batch(rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss = scene_loss(judge, pixels, wanted) if name == "scene" else supervised_contrast(judge(pixels), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            log.info("%s: step %d, loss %.3f, %.1f minutes", name, step, np.mean(losses), share * minutes)
            losses.clear()
    return judge.eval(), step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judges", nargs="*", default=["scene", "drawing", "style"])
    parser.add_argument("--minutes", type=float, default=10, help="for each judge")
    parser.add_argument("--more", action="store_true", help="go on from the weights that there are")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--autoencoder", type=Path, default=POCKET / "vae")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    autoencoder = PocketAutoencoder.from_pretrained(args.autoencoder, torch_dtype=torch.float32).requires_grad_(False)
    for name in args.judges:
        path = WEIGHTS / f"{name}.safetensors"
        before = load_tensors(path)[1] if args.more else {}
        judge, steps = train(name, args.minutes, autoencoder, args.more, args.rate)
        held = name == "drawing" and (not args.more or "drawings held out" in before)
        figures = measured(name, judge, autoencoder, held)
        if held:
            figures["drawings held out"] = "an eighth of base and judges"
        figures["steps"] = steps
        log.info("%s: %s", name, figures)
        weights = {
            key: value.half().contiguous() if value.is_floating_point() else value
            for key, value in judge.state_dict().items()
        }
        save_tensors(path, weights, {key: str(value) for key, value in figures.items()})


if __name__ == "__main__":
    main()
