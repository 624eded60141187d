"""The shipped judges' own accuracy, on art they were trained on and on art they never saw; nothing is trained.

    python -m benchmarks.pocketbench.judge_accuracy
    python -m benchmarks.pocketbench.judge_accuracy --looks    # how well each witness of a look tells the development looks

Never seen: the drawings and looks of the development split (another vendor than all that the judges learnt from).
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from purecc.files import load_tensors
from purecc.pocket.art import sprites
from purecc.pocket.autoencoder import PocketAutoencoder
from purecc.pocket.model import load_pocket
from purecc.pocket.scenes import Scene, random_scene, render

from .arms import STRENGTHS
from .bench import Bench
from .case import Drawing
from .concepts import another, concept, held_out
from .judge_data import (
    HELD_OUT,
    VIEWS,
    Rng,
    as_generated,
    drawing_batch,
    drawings,
    random_look,
    scene_of,
    scene_with,
    style_batch,
    to_pixels,
    truth_of,
)  # fmt: skip
from .looks import LOOKS
from .networks import WEIGHTS, Embedder, SceneJudge, load_judges


@torch.no_grad()
def retrieval(judge: Embedder, batch, autoencoder: PocketAutoencoder, rounds: int = 8, kinds_: int = 24) -> float:
    """How often the picture nearest to a picture is of its own kind, among `kinds_` kinds of VIEWS pictures, 0..1."""
    rng, hits = np.random.default_rng(HELD_OUT), []
    for _ in range(rounds):
        pictures, kinds = batch(rng, kinds_)
        embeddings = judge(as_generated(to_pixels(pictures), autoencoder, rng))
        alike = (embeddings @ embeddings.T).fill_diagonal_(-1)
        hits.append((kinds[alike.argmax(1)] == kinds).float().mean())
    return float(torch.stack(hits).mean())


@torch.no_grad()
def accuracy(judge: SceneJudge, autoencoder: PocketAutoencoder, scenes: list[Scene]) -> dict[str, float]:
    """The scene judge's own accuracy on composites through the autoencoder, by head."""
    found: dict[str, list[float]] = {}
    count = len(scenes)
    pixels = as_generated(to_pixels([render(s) for s in scenes]), autoencoder, np.random.default_rng(0))
    truth = truth_of(scenes)
    view = judge(pixels)
    for name, wanted in truth.labels.items():
        right = (view.logits[name].argmax(1) == wanted)[wanted >= 0]
        found[name] = right.float().tolist()
    alike = view.embedding @ judge.read(truth.captions).T
    found[f"caption among {count}"] = (alike.argmax(1) == torch.arange(count)).float().tolist()
    covered, real = view.mask > 0, truth.mask > 0.5
    found["mask IoU"] = ((covered & real).sum((1, 2)) / (covered | real).sum((1, 2)).clamp_min(1)).tolist()
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def unseen_scenes(count: int = 20) -> list[Scene]:
    """Scenes of one development drawing each, `count` of every drawing."""
    rng = np.random.default_rng(HELD_OUT)
    return [scene_with(sprite, rng) for sprite in sprites("development") for _ in range(count)]


def unseen_looks(rng: Rng, count: int) -> tuple[list, torch.Tensor]:
    """Plain scenes and the two development looks over others, and random looks up to `count` kinds -> pictures, kinds."""
    looks = [lambda picture: picture, *LOOKS["development"].values()]
    looks += [random_look(rng) for _ in range(count - len(looks))]
    plain = lambda: replace(random_scene(rng, "base"), style="")  # noqa: E731
    pictures = [look(render(plain())) for look in looks for _ in range(VIEWS)]
    return pictures, torch.arange(len(looks)).repeat_interleave(VIEWS)


def measured(name: str, judge: torch.nn.Module, autoencoder: PocketAutoencoder, held: bool) -> dict[str, object]:
    """One judge's figures, by the art they are of. `held`: a share of the drawings was held out in its training."""
    if name == "scene":
        return {
            "new scenes of trained drawings": accuracy(
                judge, autoencoder, [scene_of(HELD_OUT + i) for i in range(400)]
            ),
            "development drawings, never trained on": accuracy(judge, autoencoder, unseen_scenes()),
        }
    if name == "style":
        return {
            "random looks, 24": retrieval(judge, style_batch, autoencoder),
            "plain, poster, tapestry among 24": retrieval(judge, unseen_looks, autoencoder),
            "plain, poster, tapestry alone": retrieval(judge, unseen_looks, autoencoder, kinds_=3),
        }
    of = lambda art: lambda rng, count: drawing_batch(rng, count, art)  # noqa: E731
    share = "held-out drawings, 24" if held else "an eighth of the trained drawings, 24 (none was held out)"
    return {
        "trained drawings, 24": retrieval(judge, of(drawings(held_out=False)), autoencoder),
        share: retrieval(judge, of(drawings(held_out=True)), autoencoder),
        "trained drawings, 14": retrieval(judge, of(drawings(held_out=False)), autoencoder, kinds_=14),
        "development drawings, 14, never trained on": retrieval(
            judge, of(sprites("development")), autoencoder, kinds_=14
        ),
    }


def looks(work: Path) -> None:
    """Prints, for each development look and witness, scores of the base model's pictures, the other look, the look itself.

    Composites go through the autoencoder with noise. Then by how many standard deviations (of both, pooled) the look is above
    the base and above the other look, and its lowest picture less the highest of the rest: above 0 none overlaps.
    """
    bench = Bench(work, Drawing(STRENGTHS))
    for name in LOOKS["development"]:
        taught = concept(name)
        rng = np.random.default_rng(taught.seed)
        sets = [bench.originals(taught)[2]]
        for composites in (another(taught), held_out(taught)):
            sets.append(as_generated(to_pixels([r.picture for r in composites]), bench.pocket.vae, rng, 0.15))
        scores = [bench.likeness(taught, pictures) for pictures in sets]
        for witness in scores[0]:
            base, other, own = (s[witness] for s in scores)
            apart = [float((own.mean() - o.mean()) / ((own.var() + o.var()) / 2).sqrt()) for o in (base, other)]
            means = ", ".join(f"{float(s.mean()):.3f}" for s in (base, other, own))
            gap = float(own.min() - torch.cat([base, other]).max())
            print(f"{name}, {witness}: {means}; apart {apart[0]:.1f}, {apart[1]:.1f}; gap {gap:+.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".local/pocketbench"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO)
    if args.looks:
        looks(args.work)
        return
    autoencoder, judges = load_pocket().vae, load_judges()
    for name, judge in vars(judges).items():
        held = "drawings held out" in load_tensors(WEIGHTS / f"{name}.safetensors")[1]
        for art, figures in measured(name, judge, autoencoder, held).items():
            print(f"{name}: {art}: {figures if isinstance(figures, dict) else round(figures, 4)}", flush=True)


if __name__ == "__main__":
    main()
