"""How good is the Pocket SD3 itself? 400 prompts, judged by the scene judge.

    python -m benchmarks.base_quality [--weights FOLDER] [--out FILE.json] [--sheet FILE.png]

360 prompts name one object with size, place and background; 40 are bare classes, two objects and the empty text,
reported apart. The scenes are held out; their captions are not, for the grammar is small. Each share of right pictures is held against the judge's own, on composites of the very same scenes that
went through the autoencoder: the bar is on the Wilson 95 % lower bound of the share, divided by the judge's own.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purecc.files import save_json
from purecc.fingerprint import transformer_fingerprint
from purecc.pocket import specification as spec
from purecc.pocket.contact_sheet import draw
from purecc.pocket.model import WEIGHTS, Pocket, load_pocket
from purecc.pocket.scenes import Scene, describe, random_scene, render

from .pocketbench.judge_data import HELD_OUT, as_generated, to_pixels, truth_of
from .pocketbench.networks import HEADS, SceneJudge, load_judges

BARS = {"class": 0.90, "background": 0.95, "size": 0.90, "place": 0.90}
_BATCH = 40


def wilson_lower(right: int, count: int, z: float = 1.96) -> float:
    """The lower end of Wilson's 95 % interval for a share."""
    share = right / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count)


def held_out_scenes(things: int, count: int, first: int) -> list[Scene]:
    """Scenes of base art without a style, none of them trained on."""
    scenes, number = [], HELD_OUT + first
    while len(scenes) < count:
        scene = random_scene(np.random.default_rng((number, 7)), "base")
        if len(scene.things) == things and not scene.style:
            scenes.append(scene)
        number += 1
    return scenes


@torch.no_grad()
def generate(pocket: Pocket, prompts: list[str], seed: int) -> Tensor:
    """[prompts, 3, side, side] in [-1, 1], the scheduler's 28 steps at the shipped guidance."""
    arrays = [draw(pocket, prompts[i : i + _BATCH], seed + i) for i in range(0, len(prompts), _BATCH)]
    return torch.from_numpy(np.concatenate(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def right(judge: SceneJudge, pictures: Tensor, scenes: list[Scene]) -> dict[str, list[bool]]:
    """For each head, whether the judge sees in each picture what the scene says."""
    wanted, logits = truth_of(scenes).labels, judge(pictures).logits
    return {name: (logits[name].argmax(1) == wanted[name]).tolist() for name in HEADS if name != "style"}


def measure(pocket: Pocket, judge: SceneJudge) -> tuple[dict, Tensor, list[str]]:
    scenes = held_out_scenes(1, 360, 0)
    prompts = [describe(scene) for scene in scenes]
    drawn = generate(pocket, prompts, 0)
    composites = as_generated(to_pixels([render(s) for s in scenes]), pocket.vae, np.random.default_rng(0), 0.0)
    made, own = right(judge, drawn, scenes), right(judge, composites, scenes)
    figures = {"base": transformer_fingerprint(pocket.transformer), "prompts": len(prompts), "heads": {}}
    for name, bar in BARS.items():
        hits, ceiling = sum(made[name]), sum(own[name]) / len(scenes)
        lower = wilson_lower(hits, len(scenes))
        figures["heads"][name] = {
            "right": round(hits / len(scenes), 4), "judge's own": round(ceiling, 4), "Wilson lower": round(lower, 4),
            "lower / own": round(lower / ceiling, 4), "bar": bar, "reached": lower / ceiling >= bar,
        }  # fmt: skip
    figures["apart"] = apart(pocket, judge)
    return figures, drawn, prompts


def apart(pocket: Pocket, judge: SceneJudge) -> dict[str, float]:
    """Bare classes: the class is right. Two objects: how many of the two are seen. Null: it shows some object at all."""
    words = [spec.CLASSES[i] for i in np.random.default_rng(5).permutation(len(spec.CLASSES))[:14]]
    pairs = held_out_scenes(2, 20, 50_000)
    with torch.no_grad():
        bare = judge(generate(pocket, [f"{'an' if w[0] in 'aeiou' else 'a'} {w}" for w in words], 7000))
        two = judge(generate(pocket, [describe(s) for s in pairs], 8000))
        null = judge(generate(pocket, [""] * 6, 9000))
    class_right = [spec.CLASSES[int(i)] == w for i, w in zip(bare.logits["class"].argmax(1), words, strict=True)]
    top = two.present.topk(2, dim=1).indices.tolist()
    seen = [
        len({spec.CLASSES[i] for i in t} & {x.class_word for x in s.things}) for t, s in zip(top, pairs, strict=True)
    ]
    return {
        "bare class right, of 14": sum(class_right), "things seen, of 40, in 20 pictures of two": sum(seen),
        "null pictures with an object, of 6": int(((null.mask > 0).float().mean((1, 2)) > 0.03).sum()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="a picture of the first 48")
    args = parser.parse_args()
    figures, drawn, prompts = measure(load_pocket(args.weights), load_judges().scene)
    print(json.dumps(figures, indent=2))
    if args.out:
        save_json(args.out, figures)
    if args.sheet:
        pixels = ((drawn[:48] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows = [np.concatenate(list(pixels[i : i + 8]), axis=1) for i in range(0, 48, 8)]
        Image.fromarray(np.concatenate(rows)).save(args.sheet)
        print("\n".join(prompts[:48]))


if __name__ == "__main__":
    main()
