"""What a training step costs, by ComfyUI's own Train LoRA and by this pack, through the real ComfyUI: seconds, and on a GPU memory.

    python -m benchmarks.native_cost [--size real|half] [--steps 10] [--out FILE.json]

real: an SD3.5 Medium of its published size and dtype with random weights, 512 px, batch 2; the default where there is a CUDA GPU. half: the same with half as
many blocks of half the width, an eighth of the weights, no T5, 256 px. Each training has a fresh server. Seconds a step by the node's progress bar, from its first step to its last,
without previews. On a GPU the most that it held while the node ran, by the host's own count and asked for every quarter of a second, less what it
held before. Nothing else should run. Random weights: nothing is learnt here.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.on_host import Watch, checkpoint, run
from benchmarks.pocketbench.tables import table
from benchmarks.through_host import Graph
from purecc.files import save_json
from purecc.launch.client import Client
from purecc.launch.install import make_base
from purecc.launch.layout import PROJECT, choose_layout
from purecc.launch.server import Server
from purecc.memory import in_words
from tests.host.sd3_files import SD35_MEDIUM, Kind

FILE, FOLDER = "random.safetensors", "five pictures"
PIXELS = {"real": 512, "half": 256}
HALF = Kind(12, 384, tuple(range(7)), True)
NEVER = 100_000  # steps between two previews

#: adds a training to a graph: the loader's node, pixels, steps, Settings' own defaults -> the training node
Arm = Callable[[Graph, str, int, int, dict], str]


def train_lora(checkpointing: bool) -> Arm:
    """ComfyUI's own."""

    def arm(g: Graph, loaded: str, pixels: int, steps: int, defaults: dict) -> str:
        node = g.train_lora(loaded, FOLDER, batch_size=2, steps=steps, gradient_checkpointing=checkpointing)
        g.add("SaveLoRA", lora=[node, 1], prefix="loras/native")
        return node

    return arm


def pure_learning(method: str, checkpointing: bool) -> Arm:
    """This pack's, without an extractor."""

    def arm(g: Graph, loaded: str, pixels: int, steps: int, defaults: dict) -> str:
        data = g.concept_set(loaded, FOLDER, "dog", resolution=pixels)
        few = {"validation_every": NEVER, "class_steps": 2}  # scenes are drawn before the steps
        settings = g.add("PureCCSettings", **defaults | few | {"checkpointing": checkpointing})
        node = g.pure_learning(
            loaded, data, method, settings=[settings, 0], steps=steps, batch_size=2, learning_rate=1e-4, embedding_rate=5e-3, rank=4,
            seed=int(checkpointing),  # with one seed the runs are the same, and the second would be returned at once
        )  # fmt: skip
        g.add("PureCCSaveConcept", concept=[node, 0], name="ours")
        return node

    return arm


ARMS: dict[str, Arm] = {
    "ComfyUI's Train LoRA, as it comes (checkpointing)": train_lora(True),
    "ComfyUI's Train LoRA without checkpointing": train_lora(False),
    "Pure Learning, method LoRA, checkpointing": pure_learning("LoRA", True),
    "Pure Learning, method LoRA": pure_learning("LoRA", False),
    "Pure Learning, as it comes": pure_learning("PureCC", False),
}


def write_pictures(folder: Path, pixels: int) -> None:
    """The bundled pictures at a size that both trainers take as it is, with their captions."""
    folder.mkdir(parents=True)
    for path in sorted((PROJECT / "workflows" / "pictures" / "pink poodle").glob("[0-9].png")):
        Image.open(path).convert("RGB").resize((pixels, pixels), Image.Resampling.LANCZOS).save(folder / path.name)
        (folder / path.name).with_suffix(".txt").write_bytes(path.with_suffix(".txt").read_bytes())


def of_settings(client: Client) -> dict:
    """What the node Settings begins with."""
    inputs = client.object_info()["PureCCSettings"]["input"]
    return {name: of[1]["default"] for part in inputs.values() for name, of in part.items() if "default" in of[1]}


def cost(arm: Arm, base: Path, pixels: int, steps: int, cuda: bool) -> dict:
    """Seconds of one training in a server of its own, and on a GPU what it held."""
    layout = choose_layout()
    with Server(layout, base, "gpu" if cuda else "cpu") as server:
        g = Graph()
        loaded = g.add("CheckpointLoaderSimple", ckpt_name=FILE)
        node = arm(g, loaded, pixels, steps, of_settings(server.client))
        before = Watch(server.client).used()
        made = run(server, g.nodes)
        first, last = made.bars[node][steps]
        found = {"seconds a step": (last - first) / (steps - 1), "seconds of the node": made.seconds[node]}
        return found | ({"held": made.held[node] - before} if cuda else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(PIXELS), help="if left out: real where there is a CUDA GPU")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    size = arguments.size or ("real" if cuda else "half")
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base, PROJECT)
        write_pictures(base / "input" / FOLDER, PIXELS[size])
        (base / "models" / "checkpoints").mkdir(parents=True)
        values = checkpoint(SD35_MEDIUM if size == "real" else HALF, size == "real", "cuda" if cuda else "cpu")
        save_file(values, base / "models" / "checkpoints" / FILE)
        del values
        torch.cuda.empty_cache()
        for name, arm in ARMS.items():
            found[name] = cost(arm, base, PIXELS[size], arguments.steps, cuda)
            if arguments.out:
                save_json(arguments.out, {"size": size, "steps": arguments.steps, "arms": found})
    held = lambda of: in_words(of["held"]) if cuda else "not asked for on a CPU"  # noqa: E731
    rows = [[name, f"{of['seconds a step']:.3f}", held(of)] for name, of in found.items()]
    print(table(["training", "seconds a step", "held at most, above what was held before"], rows))


if __name__ == "__main__":
    main()
