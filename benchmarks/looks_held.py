"""Looks turned down in two ways, by the strength of LoRA and embeddings and by the share of its change that sampling takes (`purecc.place`).

    python -m benchmarks.looks_held [--out benchmarks/looks_held.json]

Eight looks are taught as the nodes come, PocketBench's two of development and six more, and six pictures of each drawn in every way.
Near: how near the pictures are to the base model's own pictures turned into the look, 1 is those, 0 as far as the base's. Layout: how far
the thing has moved from where the base draws it, in pixels. Fidelity by PocketBench's witnesses; what else a picture might look like are
the seven other looks.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from purecc.encoding import PocketTextEncoder, TextBatch
from purecc.files import save_json
from purecc.forwards import Query, velocities
from purecc.network import BASE, PURE, AdaptedNetwork
from purecc.place import LAYOUT, Held, left_to_base
from purecc.pocket import specification as spec
from purecc.prompts import Placeholder
from purecc.sampling import euler

from .pocketbench import looks
from .pocketbench.arms import ARMS, SHIPPED
from .pocketbench.bench import Bench
from .pocketbench.concepts import TRIGGER, concept
from .pocketbench.judge_data import to_pixels
from .pocketbench.sheets import as_pictures
from .pocketbench.witnesses import change

#: (strength of LoRA and embeddings, share of its change, time above which the base model draws alone)
WAYS = (
    (1.0, 1.0, 1.0), (0.8, 1.0, 1.0), (0.7, 1.0, 1.0), (0.6, 1.0, 1.0), (1.0, 1.0, LAYOUT), (0.8, 1.0, 0.9), (1.0, 0.8, 0.9),
    (1.0, 0.7, LAYOUT), (1.0, 0.6, LAYOUT), (1.0, 0.5, LAYOUT), (1.0, 0.7, 1.0), (1.0, 0.6, 1.0), (1.0, 0.5, 1.0), (1.0, 0.6, 0.9),
)  # fmt: skip


@torch.no_grad()
def drawn(bench: Bench, network: AdaptedNetwork, texts: list[str], seeds: list[int], way: tuple[float, ...]) -> Tensor:
    """Pictures [batch, 3, 128, 128] in [-1, 1]; the negative is the base model's."""
    strength, share, layout = way
    encoder = PocketTextEncoder(bench.pocket, TRIGGER, Placeholder(1, "style"))
    conditional = TextBatch.of([encoder.encode(text) for text in texts])
    negative = TextBatch.of([encoder.encode("")] * len(texts))
    side = spec.RESOLUTION // spec.DOWNSCALE
    shape = (spec.LATENT_CHANNELS, side, side)
    noise = torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        asked = [(conditional, BASE), (negative, BASE), (conditional, PURE)]
        queries = [Query(x_t, t, *one) for one in (asked[:2] if bool((t > layout).all()) else asked)]
        base, unguided, *ours = velocities(network, queries, strength=strength, embedding_strength=strength)
        held = [Held([one], [True], look_share=share) for one in ours]
        return unguided + spec.GUIDANCE * (left_to_base([base], held)[0] - unguided)

    latent = euler(velocity, noise, bench.drawing.steps, spec.SHIFT)
    return bench.pocket.vae.decode(bench.scaling.to_autoencoder(latent)).sample.clamp(-1, 1)


def measured(bench: Bench, name: str) -> list[dict[str, float]]:
    """Of one look, for each of WAYS."""
    taught = concept(name)
    asked, seeds, originals = bench.originals(taught)
    chosen = [i for i, prompt in enumerate(asked) if prompt.role == "concept"]
    asked, seeds, originals = [asked[i] for i in chosen], [seeds[i] for i in chosen], originals[chosen]
    turned = to_pixels([looks.LOOKS["development"][name](picture) for picture in as_pictures(originals)])
    network = bench.network(taught)
    network.add_concept(PURE, bench.teach(taught, ARMS[SHIPPED], 0))
    found = []
    for way in WAYS:
        pictures = drawn(bench, network, [prompt.complete for prompt in asked], seeds, way)
        near = 1 - float((pictures - turned).abs().mean() / (originals - turned).abs().mean())
        layout = change(bench.judges, originals, pictures).layout.nanmean()
        told = {"fidelity": bench.fidelity(taught, pictures, originals), "near": near, "layout": float(layout)}
        found.append({key: round(value, 3) for key, value in told.items()})
        print(name, way, found[-1], flush=True)
    return found


def table(by_look: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| strength | share | the base alone above | fidelity | near | layout |", "|--:|--:|--:|--:|--:|--:|"]
    for number, (strength, share, layout) in enumerate(WAYS):
        rows = [found[number] for found in by_look.values()]
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        lines.append(
            f"| {strength:g} | {share:g} | {layout:g} | {mean['fidelity']:.2f} | {mean['near']:.2f} | {mean['layout']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("looks_held.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    looks.LOOKS["development"] |= looks.FURTHER  # in this process: the bench's own concepts stay as they are
    bench = Bench(Path(".local/looks_held"))
    by_look = {name: measured(bench, name) for name in looks.LOOKS["development"]}
    save_json(options.out, {"ways": WAYS, "base": bench.base, "looks": by_look})
    print("\n" + table(by_look))


if __name__ == "__main__":
    main()
