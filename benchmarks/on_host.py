"""Workflow 03 as people run it: a real ComfyUI server loads an SD3.5 Medium checkpoint of random weights, trains both stages and draws.

    python -m benchmarks.on_host [--steps 400] [--size real|reduced] [--comfyui FOLDER] [--python FILE] [--out FILE.json]

real: every part of the file at its published size and dtype, T5-XXL as scaled fp8 (11 GB on disk while it runs, 24 GB of main memory); the
default where there is a CUDA GPU. ComfyUI is started with --disable-cuda-malloc, so that steps are recorded. reduced: four of the 24 blocks, no T5, 128 px, for a look at this bench itself on a CPU.

What is told: seconds of each node, of a training by its progress bars (one counts its steps); the most that the device held while it ran, by the host's own count and asked for every quarter of a second, so
a short peak may be missed; the reports of the training nodes, in which the allocator's own peak stands; what is left on the device afterwards. The
pictures are drawn twice more, with surroundings held and not, for their times. A second training of a few steps follows in the same server, to see
that no restart is needed. Random weights draw noise: pictures are not looked at.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from purecc.launch.client import Client, raise_on_failure
from purecc.launch.demo import collect, load_workflow
from purecc.launch.install import make_base
from purecc.launch.layout import choose_layout
from purecc.launch.progress import Progress
from purecc.launch.server import Server
from purecc.launch.workflow import to_prompt
from purecc.memory import in_words
from tests.host.sd3_files import (
    REDUCED,
    SD35_MEDIUM,
    SINGLE_FILE,
    T5_XXL,
    VAE,
    Kind,
    clip_shapes,
    prefixed,
    random_values,
    scaled_float8,
    shapes,
    t5_shapes,
    vae_shapes,
)

CLIPS = {"clip_l": (768, 12), "clip_g": (1280, 32)}  # width, layers
TRAINED = ("PureCCTrainExtractor", "PureCCPureLearning")
AGAIN = 10  # steps of the second training
EVERY = 0.25  # seconds between two looks at the device
SETTLED = 3.0  # seconds after ComfyUI was asked to let go


def checkpoint(kind: Kind, t5: bool, device: str) -> dict[str, Tensor]:
    """A single file with text encoders, with T5 or without, and VAE; random values, made on `device`."""
    values = prefixed(random_values(shapes(kind), device=device), SINGLE_FILE)
    values |= prefixed(random_values(vae_shapes(), device=device), VAE)
    encoders = {name: random_values(clip_shapes(*of), torch.float16, device) for name, of in CLIPS.items()}
    if t5:
        encoders["t5xxl"] = scaled_float8(random_values(t5_shapes(**T5_XXL), device=device))
    for name, own in encoders.items():
        values |= prefixed(own, f"text_encoders.{name}.transformer.")
    return {name: value.cpu() for name, value in values.items()}


@dataclass
class Watch:
    """What the device holds, by node, asked from a thread of its own."""

    client: Client
    held: dict[str, int] = field(default_factory=dict)  # node -> bytes, the most
    node: str = ""
    _over: threading.Event = field(default_factory=threading.Event)

    def used(self) -> int:
        """Bytes, by the host: what its allocator keeps for later counts as free."""
        device = self.client.get("/system_stats")["devices"][0]
        return device["vram_total"] - device["vram_free"]

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            node, used = self.node, self.used()
            self.held[node] = max(self.held.get(node, 0), used)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


@dataclass
class Run:
    """One prompt's figures, by node id."""

    seconds: dict[str, float]
    held: dict[str, int]
    texts: list[tuple[str, str]]
    bars: dict[str, dict[int, list[float]]]  # progress bars by length: the node's seconds at start and end


def run(server: Server, prompt: dict[str, dict]) -> Run:
    progress, watch = Progress(prompt), Watch(Client(server.url))
    bars, began = {}, time.monotonic()

    def on_event(event: str, data: dict) -> None:
        nonlocal began
        now = time.monotonic()
        if event == "executing":
            watch.node, began = data.get("node") or "", now
        if event == "progress_state" and (bar := data["nodes"].get(watch.node)) and bar["state"] == "running":
            of_node = bars.setdefault(watch.node, {})
            of_node[int(bar["max"])] = [of_node.get(int(bar["max"]), [now - began])[0], now - began]
        progress(event, data)

    with watch.watching():
        record = server.client.wait(server.client.submit(prompt), on_event)
    raise_on_failure(record, prompt)
    return Run(progress.seconds, watch.held, collect(record["outputs"], server.client, server.base).texts, bars)


def changed(prompt: dict[str, dict], steps: int, size: str, seed: int) -> dict[str, dict]:
    """The workflow's prompt with so many steps a stage, and another seed of both; reduced: small pictures, few sampling steps."""
    small = {
        "PureCCConceptSet": {"resolution": 128},
        "EmptySD3LatentImage": {"width": 128, "height": 128},
        "KSampler": {"steps": 2},
    }
    made = json.loads(json.dumps(prompt))
    for node in made.values():
        of = node["class_type"]
        node["inputs"] |= {"steps": steps, "seed": seed} if of in TRAINED else {}
        node["inputs"] |= small.get(of, {}) if size == "reduced" else {}
    return made


def drawn_again(server: Server, prompt: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Seconds of each KSampler with other noise, surroundings held and not; models and texts are there."""
    found = {}
    for seed, hold in enumerate((True, False), start=100):
        made = json.loads(json.dumps(prompt))
        for node in made.values():
            of = node["class_type"]
            node["inputs"] |= {"hold_surroundings": hold} if of == "PureCCApplyConcept" else {}
            node["inputs"] |= {"seed": seed} if of == "KSampler" else {}
        seconds = run(server, made).seconds
        samplers = (node for node, of in made.items() if of["class_type"] == "KSampler")
        found[f"surroundings {'held' if hold else 'not held'}"] = {node: seconds[node] for node in samplers}
    return found


def table(prompt: dict[str, dict], found: Run) -> str:
    rows = ["| node | seconds | the device held at most |", "|---|--:|--:|"]
    for node, seconds in sorted(found.seconds.items(), key=lambda one: -one[1]):
        if seconds >= 0.1:
            of = prompt[node]
            title = of.get("_meta", {}).get("title") or of["class_type"]
            held = in_words(found.held[node]) if node in found.held else "shorter than a look"
            rows.append(f"| {title} ({of['class_type']}) | {seconds:.1f} | {held} |")
    return "\n".join([*rows, f"| all | {sum(found.seconds.values()):.1f} | {in_words(max(found.held.values()))} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each stage")
    parser.add_argument("--size", choices=["real", "reduced"], help="if left out: real where there is a CUDA GPU")
    parser.add_argument("--comfyui", help="a ComfyUI that you have")
    parser.add_argument("--python", help="a Python that has its requirements and the pack's")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    size = arguments.size or ("real" if cuda else "reduced")
    layout = choose_layout(arguments.comfyui, arguments.python)
    workflow = json.loads(load_workflow(layout.project, "03").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base, layout.project)
        shutil.copytree(layout.project / "workflows" / "pictures" / "pink poodle", base / "input" / "my pictures")
        file = next(node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple")["widgets_values"][0]
        (base / "models" / "checkpoints").mkdir(parents=True)
        real = size == "real"
        kind = SD35_MEDIUM if real else REDUCED["SD3.5 Medium"]
        save_file(checkpoint(kind, real, "cuda" if cuda else "cpu"), base / "models" / "checkpoints" / file)
        torch.cuda.empty_cache()
        with Server(layout, base, "gpu" if cuda else "cpu", extra=("--disable-cuda-malloc",)) as server:
            prompt = to_prompt(workflow, server.client.object_info())
            device = server.client.get("/system_stats")["devices"][0]["name"]
            watch = Watch(server.client)
            before = watch.used()
            whole = changed(prompt, arguments.steps, size, seed=0)
            first = run(server, whole)
            with_models = watch.used()
            print(
                f"\nWorkflow 03 on {device}, {size} size, random weights, {arguments.steps} + {arguments.steps} steps\n"
            )
            print(table(whole, first))
            for node, text in first.texts:
                if whole[node]["class_type"] in TRAINED:
                    print(f"\n{text}", flush=True)
            for node, bars in first.bars.items():
                if whole[node]["class_type"] in TRAINED:
                    spans = (f"{total}: {one[0]:.1f} to {one[1]:.1f} s" for total, one in bars.items() if total > 1)
                    print(f"\n{whole[node]['class_type']}'s progress bars, by length: {', '.join(spans)}", flush=True)
            found = {
                "device": device, "size": size, "steps": arguments.steps, "before": before, "with models": with_models,
                "nodes": {node: of["class_type"] for node, of in whole.items()}, "first": vars(first),
            }  # fmt: skip
            save(arguments.out, found)
            for words, seconds in drawn_again(server, whole).items():
                found[words] = seconds
                print(
                    f"\nDrawn again, {words}: KSamplers {', '.join(f'{one:.2f} s' for one in seconds.values())}",
                    flush=True,
                )
            save(arguments.out, found)
            again = run(server, changed(prompt, AGAIN, size, seed=1))
            server.client.post("/free", {"unload_models": True, "free_memory": True})
            threading.Event().wait(SETTLED)
            after = watch.used()
    print(f"\nThe same once more with another seed and {AGAIN} steps a stage: {sum(again.seconds.values()):.1f} s")
    print(
        f"The device held {in_words(before)} before the first, {in_words(with_models)} after it with the models that the host keeps, "
        f"{in_words(after)} after both and the host's own 'free'"
    )
    save(arguments.out, found | {"after": after, "second": vars(again)})


def save(path: Path | None, found: dict) -> None:
    """After the first run too: a second that is cut off takes nothing with it."""
    if path:
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
