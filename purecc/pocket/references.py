"""Reference pictures of one drawing in varied scenes, as a user's folder: `1.png`, `1.txt` (caption), `1.mask.png`, ...

    python -m purecc.pocket.references FOLDER --split development --drawing poodle [--count 5] [--seed 1]

Pose (flip, turn), size, place and background vary: one drawing on five backgrounds would teach copying.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from .art import sprites
from .scenes import Scene, describe, mask, place_thing, render
from .specification import BACKGROUNDS, PLACES


def reference_scenes(split: str, drawing: str, count: int, seed: int) -> list[Scene]:
    """Scenes of one drawing, each with another background, size and place as far as there are."""
    sprite = next((s for s in sprites(split) if s.drawing == drawing), None)
    if sprite is None:
        raise ValueError(f'There is no drawing "{drawing}" in the split {split}.')
    rng = np.random.default_rng(seed)
    backgrounds = rng.permutation(list(BACKGROUNDS))
    scenes = []
    for i in range(count):
        size, place = ("big", "", "big", "", "small")[i % 5], list(PLACES)[(i + 1) % 3]
        thing = place_thing(sprite, size, place, rng)
        thing = replace(thing, flip=bool(i % 2), angle=float(rng.uniform(-15, 15)))
        scenes.append(Scene((thing,), str(backgrounds[i % len(backgrounds)]), int(rng.integers(2**31))))
    return scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="development")
    parser.add_argument("--drawing", required=True)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(reference_scenes(args.split, args.drawing, args.count, args.seed), 1):
        render(scene).save(args.folder / f"{number}.png")
        mask(scene).save(args.folder / f"{number}.mask.png")
        (args.folder / f"{number}.txt").write_text(describe(scene) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
