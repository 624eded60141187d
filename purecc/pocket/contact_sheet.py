"""What the pocket draws, as one picture for its card.

python -m purecc.pocket.contact_sheet OUT.png [--weights FOLDER] [--seed 0] [--guidance 4]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..flow import sigmas
from . import specification as spec
from .model import WEIGHTS, Pocket, load_pocket

PROMPTS = (
    "a big dog on the left on the beach", "a car on the right in the city", "a penguin in the middle in the snow",
    "a small cat in the middle in the forest", "a big mushroom in the meadow", "a house on the left at night",
    "a fish on the left under the sea", "a rocket on the right in space", "a big flower in the middle in a room",
    "a horse on the right in the desert", "an owl in the middle in the mountains", "a bus on the road",
    "a dog on the left and a cat on the right in the meadow", "a robot on the left and a cake on the right in a room",
    "a big frog in the middle in the forest", "a boat on the beach", "a dog", "a car", "an apple", "a turtle",
    "a big pig in the middle on the road in pixel style", "an umbrella on the beach in sepia style",
    "a rabbit in the meadow in sketch style", "",
)  # fmt: skip
_COLUMNS = 6


@torch.no_grad()
def draw(pocket: Pocket, prompts: list[str], seed: int, guidance: float = spec.GUIDANCE) -> np.ndarray:
    """One picture for each prompt, [prompts, side, side, 3] uint8, with the scheduler's steps."""
    side = spec.RESOLUTION // spec.DOWNSCALE
    rows, pooled = pocket.encode_text([""] * len(prompts) + prompts)
    x = torch.randn(len(prompts), spec.LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))
    schedule = sigmas(spec.STEPS, spec.SHIFT)
    for now, after in zip(schedule[:-1], schedule[1:], strict=True):
        t = (1000 * now).expand(2 * len(prompts))
        v_null, v = pocket.transformer(torch.cat([x, x]), rows, pooled, t).sample.chunk(2)
        x = x + (after - now) * (v_null + guidance * (v - v_null))
    config = pocket.vae.config
    pictures = pocket.vae.decode(x / config.scaling_factor + config.shift_factor).sample
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=spec.GUIDANCE)
    args = parser.parse_args()
    pictures = draw(load_pocket(args.weights), list(PROMPTS), args.seed, args.guidance)
    rows = [np.concatenate(list(pictures[i : i + _COLUMNS]), axis=1) for i in range(0, len(pictures), _COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(args.out, quality=92)


if __name__ == "__main__":
    main()
