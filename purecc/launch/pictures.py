"""Pictures: all that the repository shows or ships as made by its workflows, made anew on the real host.

    python run.py pictures [01 02 03 04 05 turning]

The workflows run on the launcher's own ComfyUI, what they save is kept in `.local/pictures/<part>`, and
workflows/builder/compose.py then writes thumbnails, the README's pictures and its table from there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from purecc.in_place import write_bytes
from purecc.launch.client import HostError
from purecc.launch.demo import Outputs, load_workflow, run_prompt
from purecc.launch.layout import LaunchError, Layout
from purecc.launch.process import clean_environment
from purecc.launch.server import Server
from purecc.launch.workflow import WorkflowError, to_prompt

Prompt = dict[str, dict]
PARTS = ("01", "02", "03", "04", "05", "turning")
#: part -> the concept that it makes for workflows/concepts
BUNDLED_CONCEPTS = {"01": "example pink poodle.safetensors", "05": "example orange rose.safetensors"}
#: what workflow 01's Concept Set has for the second one
SECOND = {"folder": "example: orange rose", "trigger": "[W]", "class_word": "flower"}

GUIDED = 0.5  # eta where lambda is turned: at 0 it has no effect

#: folder -> what differs from workflow 01's Pure Learning node
TURNED = {
    **{f"eta {eta:g}": {"eta": eta} for eta in (0.0, 0.25, 0.5, 1.0)},
    **{f"lambda {scale:g}": {"eta": GUIDED, "fixed_lambda": scale} for scale in (1.0, 3.0)},
    "no anchors": {"background_anchor": 0.0, "scene_anchor": 0.0},
}


def weights_digest(project: Path) -> str:
    """Which bundled weights, the autoencoder's and the text encoders' too: 16 hexadecimal digits. Stands in every picture."""
    digest = hashlib.sha256()
    for file in sorted((project / "purecc" / "pocket" / "weights").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def choose_parts(wanted: list[str]) -> list[str]:
    """The parts in their order; none named means all. LaunchError for a name that is no part."""
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        raise LaunchError(f"There are no pictures named {', '.join(unknown)}; the parts are {', '.join(PARTS)}.")
    return [part for part in PARTS if part in wanted] or list(PARTS)


def run_pictures(layout: Layout, device: str, parts: list[str]) -> None:
    """Make the parts. LaunchError if anything fails; what was trained before is not trained again."""
    kept = layout.local / "pictures"
    log_file = layout.logs / "pictures-server.log"
    print(f"- starting ComfyUI ({'on the CPU' if device == 'cpu' else 'on the GPU'}) ...", flush=True)
    try:
        with Server(layout, layout.base, device, log_file=log_file) as server:
            for part in parts:
                make_part(part, layout, server, kept)
    except (HostError, WorkflowError) as error:
        raise LaunchError(f"{error}\nThe server's log: {log_file}") from None
    _in_venv(layout, "workflows.builder.compose", str(kept), *parts)


def make_part(part: str, layout: Layout, server: Server, kept: Path) -> None:
    print(f"- {part}", flush=True)
    if part == "03":  # a model of 11.6 GB: its graph is shown, not its pictures
        _in_venv(
            layout,
            "workflows.builder.screenshot",
            server.url,
            str(load_workflow(layout.project, part)),
            str(kept / part),
        )
        return
    if part == "turning":
        make_turned(layout, server, kept / part)
        return
    if part == "05":  # its second concept is taught by workflow 01's nodes
        bundle(part, layout, _run(server, taught_by_01(to_prompt_of(layout.project, "01", server), SECOND)))
    outputs = _run(server, to_prompt_of(layout.project, part, server))
    keep(outputs, kept / part)
    if part == "01":
        bundle(part, layout, outputs)


def bundle(part: str, layout: Layout, outputs: Outputs) -> None:
    """The concept that a run saved becomes one that comes with the pack."""
    concept = next((content for _, name, content in outputs.files if name.endswith(".safetensors")), None)
    if concept is None:
        raise LaunchError("Workflow 01 made no concept file.")
    write_bytes(layout.project / "workflows" / "concepts" / BUNDLED_CONCEPTS[part], concept)


def taught_by_01(whole: Prompt, data: dict[str, str]) -> Prompt:
    """Workflow 01 up to Save Concept, with other pictures and words."""
    prompt = ancestors(whole, [n for n, node in whole.items() if node["class_type"] == "PureCCSaveConcept"])
    for node in prompt.values():
        if node["class_type"] == "PureCCConceptSet":
            node["inputs"] |= data
        if node["class_type"] == "PureCCSaveConcept":
            node["inputs"]["name"] = "second concept"  # the first one's file stays
    return prompt


def make_turned(layout: Layout, server: Server, folder: Path) -> None:
    """Workflow 01 with eta, a fixed lambda or the anchors turned; the same seeds, data and steps."""
    whole = to_prompt_of(layout.project, "01", server)
    for node in whole.values():
        if node["class_type"] == "PureCCApplyConcept":
            node["inputs"] |= {"gate": "off", "hold_surroundings": False}  # what the training itself has held
    keep(_run(server, ancestors(whole, saving(whole, ("_original", "_plain_LoRA")))), folder / "reference")
    (node,) = (
        n for n, v in whole.items() if v["class_type"] == "PureCCPureLearning" and v["inputs"]["method"] == "PureCC"
    )
    for name, changed in TURNED.items():
        print(f"- turning: {name}", flush=True)
        prompt = ancestors(whole, saving(whole, ("_PureCC",)))
        prompt[node] = {**prompt[node], "inputs": prompt[node]["inputs"] | changed}
        keep(_run(server, prompt), folder / name)


def to_prompt_of(project: Path, part: str, server: Server) -> Prompt:
    return to_prompt(json.loads(load_workflow(project, part).read_text(encoding="utf-8")), server.client.object_info())


def saving(prompt: Prompt, endings: tuple[str, ...]) -> list[str]:
    """Nodes that save single pictures under a name with one of these endings."""
    names = {n: v["inputs"]["filename_prefix"] for n, v in prompt.items() if v["class_type"] == "SaveImage"}
    return [n for n, name in names.items() if name.endswith(endings) and "sheet" not in name]


def ancestors(prompt: Prompt, wanted: Iterable[str]) -> Prompt:
    """The nodes `wanted` and all that they need."""
    needed: dict[str, dict] = {}
    open_nodes = list(wanted)
    while open_nodes:
        number = open_nodes.pop()
        if number not in needed:
            needed[number] = prompt[number]
            open_nodes += [value[0] for value in prompt[number]["inputs"].values() if isinstance(value, list)]
    return needed


def keep(outputs: Outputs, folder: Path) -> None:
    """The pictures of a run in a folder, in place of those of the last time."""
    for old in folder.glob("*.png") if folder.is_dir() else []:
        old.unlink()
    for _, name, content in outputs.files:
        if name.endswith(".png"):
            write_bytes(folder / name, content)


def _run(server: Server, prompt: Prompt) -> Outputs:
    return run_prompt(server, prompt)[0]


def _in_venv(layout: Layout, module: str, *arguments: str) -> None:
    """Run a module with the Python that has the packages; this one may have none."""
    done = subprocess.run(
        [str(layout.python), "-m", module, *arguments],
        cwd=layout.project,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise LaunchError(f"{module} failed; what it said stands above.")
