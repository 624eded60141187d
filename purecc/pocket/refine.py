"""Teaches the autoencoder's decoder what its linear part lacks; latents do not move, so trained weights stay valid.

    python -m purecc.pocket.refine RUN --minutes 15

RUN is a folder of `purecc.pocket.train`; the result is RUN/vae, which the next export takes. Latents get a little noise,
as generated ones have, so that the decoder also mends small faults of the flow model.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .autoencoder import PocketAutoencoder
from .train import Composed

log = logging.getLogger("purecc.pocket")
NOISE = 0.12  # largest standard deviation added to latents of unit variance
HELD_OUT = range(10**9 + 50_000, 10**9 + 50_200)


def difference(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 of the pixels and, weighted 2, of their steps to the right and down (edges); pictures [batch, 3, height, width]."""
    apart = made.float() - wanted
    return apart.abs().mean() + 2 * (apart.diff(dim=-1).abs().mean() + apart.diff(dim=-2).abs().mean())


@torch.no_grad()
def psnr(autoencoder: PocketAutoencoder, seeds: range = HELD_OUT) -> float:
    """Of the reconstructions of pictures that nothing was fitted on, dB; the peak is 2 (pictures in [-1, 1])."""
    data = Composed(seeds)
    errors = []
    for i in range(len(data)):
        pixels = data[i][0][None]
        made = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append((made - pixels).square().mean())
    return float(torch.stack([10 * torch.log10(4 / error) for error in errors]).mean())


def refine(autoencoder: PocketAutoencoder, minutes: float, batch: int = 16, rate: float = 2e-3) -> None:
    """Trains the correction for some minutes; the rate falls to zero over them."""
    autoencoder.requires_grad_(False)
    learned = list(autoencoder.correction.requires_grad_(True).to(memory_format=torch.channels_last).parameters())
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=1e-3, fused=True)
    scale = autoencoder.config.scaling_factor
    generator = torch.Generator().manual_seed(0)
    start, step, losses = time.monotonic(), 0, []
    for pixels, _ in DataLoader(Composed(range(2 * 10**9, 3 * 10**9), reuse=3), batch):
        share = (time.monotonic() - start) / (60 * minutes)
        if share >= 1:
            break
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 100) * (1 - share)
        latent = autoencoder.encode(pixels).latent_dist.mode()
        spread = NOISE / scale * torch.rand(len(latent), 1, 1, 1, generator=generator)
        latent = latent + spread * torch.randn(latent.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            made = autoencoder.decode(latent.contiguous(memory_format=torch.channels_last)).sample
        loss = difference(made, pixels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if step % 100 == 0:
            log.info("step %d, loss %.4f, %.1f minutes", step, sum(losses) / len(losses), share * minutes)
            losses.clear()
    autoencoder.correction.to(memory_format=torch.contiguous_format)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    autoencoder = PocketAutoencoder.from_pretrained(args.run / "vae")
    log.info("before: %.2f dB", psnr(autoencoder))
    refine(autoencoder, args.minutes)
    log.info("after: %.2f dB", psnr(autoencoder))
    autoencoder.save_pretrained(args.run / "vae")


if __name__ == "__main__":
    main()
