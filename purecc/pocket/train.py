"""Trains the Pocket SD3 on composed pictures, from nothing or from where RUN stands.

    python -m purecc.pocket.train RUN --minutes 120 [--workers 2] [--device cuda] [--batch 32]
    python -m purecc.pocket.train RUN --export FOLDER

Text encoders and transformer learn together by flow matching (v = noise - picture); the autoencoder is fitted in closed
form before the first step. Each worker is a process of one thread that averages its gradient with the others. The last
third of the minutes lowers the learning rate to zero, so a run may be ended there and gone on with later.
"""

import argparse
import json
import logging
import os
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from ..files import load_optimizer_tensors, load_tensors, optimizer_tensors, save_tensors
from ..flow import add_noise, sample_times, velocity
from .autoencoder import PocketAutoencoder
from .model import Pocket, new_scheduler, new_text_encoder, new_tokenizer, new_transformer, save_pocket
from .scenes import random_caption, random_scene, render

log = logging.getLogger("purecc.pocket")
TRAINING_SHIFT = 2.0  # of the times learnt from; sampling uses spec.SHIFT
EMA = 0.9995
LEARNED = ("transformer", "text_encoder", "text_encoder_2")


class Composed(Dataset):
    """Endless composed pictures: item -> (pixels [3, side, side] in [-1, 1], caption); an item's number is its seed.

    Composing costs a fifth of a step, so a block of pictures is gone through `reuse` times (with other noise and times
    each time) before the next block is composed.
    """

    BLOCK = 4096

    def __init__(self, seeds: range, split: str = "base", reuse: int = 1):
        self.seeds, self.split, self.reuse = seeds, split, reuse
        self._block, self._made = -1, {}

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        block, place = divmod(self.seeds[index], self.BLOCK * self.reuse)
        if block != self._block:
            self._block, self._made = block, {}
        number = block * self.BLOCK + place % self.BLOCK
        if number not in self._made:
            rng = np.random.default_rng((number, 7))
            scene = random_scene(rng, self.split)
            self._made[number] = np.asarray(render(scene)), random_caption(scene, rng)
        picture, caption = self._made[number]
        return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1, caption


def fit_autoencoder(pictures: int = 2000) -> PocketAutoencoder:
    """The autoencoder with its linear parts set and its latents scaled to unit variance."""
    data = Composed(range(10**9, 10**9 + pictures))
    pixels = torch.stack([data[i][0] for i in range(pictures)])
    autoencoder = PocketAutoencoder()
    kept = autoencoder.fit(pixels)
    scale = 1 / float(autoencoder.encode(pixels).latent_dist.mode().std())
    autoencoder.register_to_config(scaling_factor=round(scale, 4), shift_factor=0.0)
    log.info("autoencoder keeps %.2f %% of the variance, scale %.4f", 100 * kept, scale)
    return autoencoder


def new_pocket(autoencoder: PocketAutoencoder) -> Pocket:
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    transformer = new_transformer()
    for block in transformer.transformer_blocks:  # adaLN-zero: every block starts as the identity
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    for layer in (transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    encoders = (new_text_encoder("quick_gelu", tokenizer), new_text_encoder("gelu", tokenizer))
    return Pocket(transformer, autoencoder, *encoders, tokenizer, new_scheduler())


def weights_of(pocket: Pocket) -> dict[str, torch.Tensor]:
    """The parameters that learn, by `<part>.<name>`."""
    return {f"{part}.{name}": p for part in LEARNED for name, p in getattr(pocket, part).named_parameters()}


def average_gradients(parameters: list[torch.Tensor]) -> None:
    """The mean over the workers, in one message."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(mean.view_as(parameter))


def train(worker: int, args: argparse.Namespace) -> None:
    """One worker: the loop, its checkpoints, its log."""
    torch.set_num_threads(1 if args.device == "cpu" else 4)
    logging.basicConfig(level=logging.INFO if worker == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    if args.workers > 1:
        rendezvous = f"file://{(args.run / 'rendezvous').absolute().as_posix()}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=worker, world_size=args.workers)

    pocket = new_pocket(PocketAutoencoder.from_pretrained(args.run / "vae"))
    for part in (*LEARNED, "vae"):
        getattr(pocket, part).to(args.device)
    weights = weights_of(pocket)
    average = {name: p.detach().clone() for name, p in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    transformer = torch.compile(pocket.transformer, dynamic=False) if args.compile else pocket.transformer
    step, samples, checkpoint = 0, 0, args.run / "training.safetensors"
    if checkpoint.exists():
        tensors, header = load_tensors(checkpoint)
        step, samples = int(header["step"]), int(header["samples"])
        for name, p in weights.items():
            p.data.copy_(tensors[f"model.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
        load_optimizer_tensors(optimizer, tensors)

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in weights.items()} | {f"average.{k}": v for k, v in average.items()}
        save_tensors(checkpoint, tensors | optimizer_tensors(optimizer), {"step": str(step), "samples": str(samples)})

    def batches():
        first = 2**40 * worker + samples
        data = Composed(range(first, first + 2**32), reuse=4)
        while True:
            yield from DataLoader(data, args.batch, num_workers=args.loaders)

    config = pocket.vae.config
    start, last_save, losses = time.monotonic(), time.monotonic(), []
    generator = torch.Generator(args.device).manual_seed(10_000 * step + worker)
    for pixels, captions in batches():
        share = torch.tensor((time.monotonic() - start) / (60 * args.minutes))
        if args.workers > 1:
            dist.broadcast(share, 0)
        if share >= 1:
            break
        rate = args.rate * min(1.0, (step + 1) / 200) * min(1.0, max(0.0, float(1 - share) / args.decay))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x0 = pocket.vae.encode(pixels.to(args.device)).latent_dist.mode().detach()
        x0 = (x0 - config.shift_factor) * config.scaling_factor
        noise = torch.randn(x0.shape, generator=generator, device=args.device)
        t = sample_times(len(x0), TRAINING_SHIFT, generator, args.device)
        # 88 tokens: plain products of matrices beat the fused attention by 1.4 on a CPU, mostly in its backward pass
        attention = sdpa_kernel(SDPBackend.MATH) if args.device == "cpu" else nullcontext()
        with attention, torch.autocast(args.device, torch.bfloat16):
            rows, pooled = pocket.encode_text(list(captions))
            made = transformer(add_noise(x0, noise, t), rows, pooled, 1000 * t).sample
        loss = (made.float() - velocity(x0, noise)).square().mean()
        loss.backward()
        for p in weights.values():  # the last layer of a text encoder feeds only part of what is used
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if args.workers > 1:
            average_gradients(list(weights.values()))
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, samples = step + 1, samples + args.batch * args.workers
        decay = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in weights.values()], 1 - decay)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}; lower --rate")
        if worker == 0 and step % 50 == 0:
            record = {"step": step, "samples": samples, "loss": round(float(np.mean(losses)), 5), "rate": rate}
            record["minutes"] = round((time.monotonic() - start) / 60, 2)
            losses.clear()
            log.info("%s", record)
            with (args.run / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if worker == 0 and time.monotonic() - last_save > 300:
            last_save = time.monotonic()
            save()
    if worker == 0:
        save()


def export(run: Path, folder: Path) -> None:
    """Writes the averaged weights of a run in diffusers' folder layout, float16."""
    tensors, _ = load_tensors(run / "training.safetensors")
    pocket = new_pocket(PocketAutoencoder.from_pretrained(run / "vae"))
    for name, p in weights_of(pocket).items():
        p.data.copy_(tensors[f"average.{name}"])
    pocket.vae.register_to_config(_name_or_path="")  # where it was trained is nobody's concern
    save_pocket(pocket, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--loaders", type=int, default=0, help="processes that compose pictures, for each worker")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step and worker")
    parser.add_argument("--compile", action="store_true", help="1.7 times the speed after minutes of compiling")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument(
        "--decay", type=float, default=0.33, help="share of the minutes in which the rate falls to zero"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the weights instead of training")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.export:
        export(args.run, args.export)
        return
    args.run.mkdir(parents=True, exist_ok=True)
    (args.run / "rendezvous").unlink(missing_ok=True)
    if not (args.run / "vae").exists():
        fit_autoencoder().save_pretrained(args.run / "vae")
    if args.workers == 1:
        train(0, args)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.multiprocessing.spawn(train, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
