"""The main job from a single file with T5: every node by the host's executor; see test_single_file_job.py. The last line is JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import execution  # noqa: E402
import folder_paths  # noqa: E402
import purecc_pack  # noqa: E402
import torch  # noqa: E402
from graph import Prompt  # noqa: E402
from PIL import Image  # noqa: E402
from purecc_pack.nodes.host import folders  # noqa: E402
from purecc_pack.purecc.concept import load_concept, save_concept  # noqa: E402
from safetensors import safe_open  # noqa: E402
from sd3_files import REDUCED, SINGLE_FILE, VAE, prefixed, random_values, vae_shapes, weights  # noqa: E402
from server import PromptServer  # noqa: E402
from small_encoders import FILES, few_layers, written  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
few_layers()
OUTPUT = Path(folder_paths.get_output_directory())


async def have_nodes() -> None:
    """Those of the pack, and of the host's extra ones what the graph needs."""
    for name in ("nodes_sd3", "nodes_preview_any"):
        path = Path(nodes.__file__).parent / "comfy_extras" / f"{name}.py"
        assert await nodes.load_custom_node(str(path), module_parent="comfy_extras"), name
    for node in await (await purecc_pack.comfy_entrypoint()).get_node_list():
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node


def single_file() -> dict[str, torch.Tensor]:
    """SD3.5 Medium as one file: CLIPs in float16, T5 in scaled fp8, the VAE."""
    values = prefixed(weights(REDUCED["SD3.5 Medium"]), SINGLE_FILE) | prefixed(
        random_values(vae_shapes(), torch.float16), VAE
    )
    for part, file in (("clip_l", "clip_l fp16"), ("clip_g", "clip_g fp16"), ("t5xxl", "t5 scaled fp8")):
        values |= prefixed(FILES[file](), f"text_encoders.{part}.transformer.")
    return values


def executed(prompt: Prompt, wanted: list[str]) -> dict:
    """What the nodes gave to the page."""
    of_cache = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(PromptServer.instance, execution.CacheType.CLASSIC, of_cache)
    valid, error, _, of_nodes = asyncio.run(execution.validate_prompt("job", prompt.nodes, wanted))
    assert valid, (error, of_nodes)
    executor.execute(prompt.nodes, "job", {}, wanted)
    _, last = executor.status_messages[-1]
    assert executor.success, (last["node_type"], last["exception_message"])
    return executor.history_result["outputs"]


def job(file: str) -> dict:
    """Trains both stages in two steps each, and draws."""
    p = Prompt()
    source = p.add("CheckpointLoaderSimple", ckpt_name=file)
    picture = p.add("EmptyImage", width=64, height=64, batch_size=1, color=0xD03060)
    wired = {"folder": "(pictures from the input)", "pictures": [picture, 0], "captions": "a dog in the sun"}
    data = p.concept_set(source, resolution=64, **wired)
    extractor = p.extractor(source, data, steps=2, learning_rate=1e-2)
    pure = p.pure(source, data, extractor, steps=2, learning_rate=1e-2)
    applied = p.apply(source, [pure, 0], gate="as trained")
    shown = {"data": p.show([data, 1]), "extractor": p.show([extractor, 1]), "pure": p.show([pure, 2])}
    drawn = {}
    for name, of, words in (
        ("base", source, "a dog in the snow"),
        ("without trigger", applied, "a dog in the snow"),
        ("with trigger", applied, "a [V] dog in the snow"),
    ):
        drawn[name] = p.picture(of, source, words, "t/s", steps=2, size=64)
    outputs = executed(p, [*shown.values(), *drawn.values()])
    reports = {name: outputs[node]["text"][0] for name, node in shown.items()}
    first, second = (run_of(reports[name]) for name in ("extractor", "pure"))
    before, after = tables(first), tables(second)
    seen = {
        "reports": reports,
        "pictures": {name: pixels(outputs[node]["images"][0]) for name, node in drawn.items()},
        "stages": {"extractor": trained(first), "pure": trained(second)},
        "learned": {key: float((after[key] - value).abs().max()) for key, value in before.items()},
    }
    seen["pictures"] |= without_t5(p, source, second)
    for run in (first, second):  # other tests look at the runs in this folder
        shutil.rmtree(run)
    return seen


def without_t5(p: Prompt, source: str, run: Path) -> dict:
    """The concept as if it had been trained without T5, behind the CLIP that has it: drawn with the trigger and without."""
    concept = load_concept(run / "concept.safetensors")
    path = folders.concepts_folder() / "without t5.safetensors"
    save_concept(replace(concept, embeddings=replace(concept.embeddings, t5=None)), path)
    applied = p.apply(source, [p.add("PureCCLoadConcept", name=path.name), 0], gate="as trained")
    texts = {"T5 later, with trigger": "a [V] dog in the snow", "T5 later, without trigger": "a dog in the snow"}
    drawn = {name: p.picture(applied, source, words, "t/s", steps=2, size=64) for name, words in texts.items()}
    outputs = executed(p, [*drawn.values()])
    path.unlink()
    return {name: pixels(outputs[node]["images"][0]) for name, node in drawn.items()}


def run_of(report: str) -> Path:
    return OUTPUT / "purecc" / "runs" / re.search(r"run: (\S+)", report)[1]


def tables(run: Path) -> dict[str, torch.Tensor]:
    """The layer-wise embeddings in a run's file."""
    with safe_open(run / "concept.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key in ("concept.clip", "concept.t5")}


def trained(run: Path) -> dict:
    """Of a run: its losses, and what its file holds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    with safe_open(run / "concept.safetensors", "pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}
    return {
        "losses": [row["loss"] for row in rows],
        "embeddings": {key: list(value.shape) for key, value in tables(run).items()},
        "moved": max(float(value.abs().max()) for key, value in held.items() if "lora_B" in key),
        "finite": all(bool(value.isfinite().all()) for value in held.values()),
    }


def pixels(entry: dict) -> str:
    with Image.open(OUTPUT / entry["subfolder"] / entry["filename"]) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


asyncio.run(have_nodes())
with written("checkpoints", {"my sd3.5 medium, all in one": single_file()}) as (name,):
    seen = job(name)
print(json.dumps(seen))
