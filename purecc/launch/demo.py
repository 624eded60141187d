"""The demo: the shared workflow 01 from beginning to end on the real host, and what it made, in one folder."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from purecc.in_place import write_bytes
from purecc.launch.client import Client, HostError, raise_on_failure
from purecc.launch.layout import LaunchError, Layout
from purecc.launch.process import tail
from purecc.launch.progress import Progress
from purecc.launch.server import Server
from purecc.launch.workflow import WorkflowError, to_prompt

MIN_PICTURES = 24  # original and customised, side by side; contact sheets come on top
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CONCEPT = ".safetensors"
FIGURES = ("PureCCTrainExtractor", "PureCCPureLearning", "PureCCCompare")  # nodes whose text is for the terminal too
_COUNTER = re.compile(r"_\d{5}_?$")  # the host's own numbering, which goes on from run to run


@dataclass
class Outputs:
    """What the nodes of one prompt handed out."""

    files: list[tuple[str, str, bytes]] = field(default_factory=list)  # node id, name in the out folder, content
    texts: list[tuple[str, str]] = field(default_factory=list)  # node id, text

    @property
    def pictures(self) -> list[str]:
        """Names of the single pictures: a file whose name says "sheet" shows several that are there on their own."""
        return [n for _, n, _ in self.files if n.lower().endswith(PICTURES) and "sheet" not in n.lower()]

    @property
    def concepts(self) -> list[str]:
        return [n for _, n, _ in self.files if n.endswith(CONCEPT)]


def run_demo(layout: Layout, device: str, out: Path) -> None:
    """Run workflow 01 and write its pictures, the concept file and report.md to `out`. LaunchError if anything fails."""
    workflow = load_workflow(layout.project)
    log_file = layout.logs / "demo-server.log"
    started = time.monotonic()
    print(f"- starting ComfyUI ({'on the CPU' if device == 'cpu' else 'on the GPU'}) ...", flush=True)
    try:
        with Server(layout, layout.base, device, log_file=log_file) as server:
            prompt = to_prompt(json.loads(workflow.read_text(encoding="utf-8")), server.client.object_info())
            print(f"- running {workflow.name}: {len(prompt)} nodes", flush=True)
            outputs, progress = run_prompt(server, prompt)
            host = server.client.get("/system_stats")["system"]
    except (HostError, WorkflowError) as error:
        raise LaunchError(f"{workflow.name}: {error}\nThe server's log: {log_file}") from None
    except OSError as error:  # the connection broke: the server is gone
        raise LaunchError(
            f"ComfyUI went away ({error}).\nThe end of its log ({log_file}):\n{tail(log_file, 30)}"
        ) from None

    report = report_text(workflow.name, prompt, outputs, progress, time.monotonic() - started, device, host)
    for _, name, content in [*outputs.files, ("", "report.md", report.encode("utf-8"))]:
        write_bytes(out / name, content)
    for node_id, text in outputs.texts:
        if prompt[node_id]["class_type"] in FIGURES:
            print(f"\n{text}")
    print(
        f"\n{len(outputs.pictures)} pictures, {', '.join(outputs.concepts) or 'no concept file'} and report.md are in {out}"
    )
    if len(outputs.pictures) < MIN_PICTURES:
        raise LaunchError(f"The demo made {len(outputs.pictures)} pictures; at least {MIN_PICTURES} belong to it.")
    if not outputs.concepts:
        raise LaunchError(f"The demo made no concept file (no node's output names a {CONCEPT} file).")


def run_prompt(server: Server, prompt: dict[str, dict]) -> tuple[Outputs, Progress]:
    """Run a prompt to its end, showing it on the terminal. HostError with the node and its message if it failed."""
    progress = Progress(prompt)
    record = server.client.wait(server.client.submit(prompt), progress)
    raise_on_failure(record, prompt)
    return collect(record["outputs"], server.client, server.base), progress


def load_workflow(project: Path, number: str = "01") -> Path:
    """The one file workflows/<number>_*.json."""
    found = sorted((project / "workflows").glob(f"{number}_*.json"))
    if len(found) != 1:
        raise LaunchError(f"workflows/ holds {len(found)} files named {number}_*.json; there must be one.")
    return found[0]


def collect(node_outputs: dict[str, dict], client: Client, base: Path) -> Outputs:
    """Fetch all that a history record's outputs name: file entries, texts, and concept files named in a text."""
    outputs = Outputs()
    taken: set[str] = set()
    for node_id, entry in sorted(node_outputs.items(), key=lambda item: _natural(item[0])):
        for value in _leaves(entry):
            if isinstance(value, dict):
                content = _content(value, client, base)
                outputs.files.append((node_id, _own_name(value["filename"], taken), content))
            else:
                outputs.texts.append((node_id, value))
                path = base / value.strip() if value.strip().endswith(CONCEPT) and "\n" not in value.strip() else None
                if path and path.is_file():
                    outputs.files.append((node_id, _own_name(path.name, taken), path.read_bytes()))
    return outputs


def _leaves(entry: dict) -> Iterator[dict | str]:
    """File entries ({"filename", "subfolder", "type"}) and texts of one node's output, whatever their keys are."""
    for values in entry.values():
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if isinstance(value, str) or (isinstance(value, dict) and "filename" in value):
                yield value


def _content(entry: dict, client: Client, base: Path) -> bytes:
    """A file entry's bytes: from the base folder's output/temp/input, or from models/ and the like; else asked for."""
    kind, subfolder = entry.get("type") or "output", entry.get("subfolder") or ""
    for path in (base / kind / subfolder / entry["filename"], base / "models" / kind / subfolder / entry["filename"]):
        if path.is_file():
            return path.read_bytes()
    return client.view(entry["filename"], subfolder, kind)


def _own_name(filename: str, taken: set[str]) -> str:
    """The file's name with our own numbering: the same demo writes the same names again."""
    stem, suffix = os.path.splitext(os.path.basename(filename))
    numbered = _COUNTER.search(stem)
    stem = stem[: numbered.start()] if numbered else stem
    number = 1
    name = f"{stem}_{number:02d}{suffix}" if numbered else stem + suffix
    while name in taken:
        number += 1
        name = f"{stem}_{number:02d}{suffix}"
    taken.add(name)
    return name


def _natural(node_id: str) -> list:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in node_id.split(":")]


def report_text(
    workflow: str, prompt: dict, outputs: Outputs, progress: Progress, seconds: float, device: str, host: dict
) -> str:
    """report.md: what the nodes report, under their titles, then the pictures, then where the time went."""
    lines = [f"# {workflow}", ""]
    lines += [
        f"{seconds:.0f} s on the {device.upper()}, ComfyUI {host.get('comfyui_version', '?')}, torch {host.get('pytorch_version', '?')}.",
        "",
    ]
    for node_id, text in outputs.texts:
        lines += [f"## {progress.title(node_id)}", "", text.strip(), ""]
    lines += ["## Files", ""]
    for node_id, name, content in outputs.files:
        shown = f"![{name}]({name})" if name.lower().endswith(PICTURES) else name
        lines.append(f"- {shown} ({progress.title(node_id)}, {len(content) / 1000:.0f} kB)")
    lines += ["", "## Time", "", "| node | seconds |", "|---|---|"]
    for node_id, took in sorted(progress.seconds.items(), key=lambda item: -item[1]):
        lines.append(f"| {progress.title(node_id)} ({prompt.get(node_id, {}).get('class_type', '')}) | {took:.1f} |")
    return "\n".join(lines) + "\n"
