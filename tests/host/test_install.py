"""The README's way into somebody's own ComfyUI, on a second, fresh one: clone, `pip install -r requirements.txt`, start.

The second environment holds exactly what ComfyUI's requirements (and torch) bring, hard-linked from ours so that it costs no
disk; what pip does there leaves ours alone, since pip never writes into a file that is there. The second ComfyUI is a copy.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from short_runs import pack_works

from purecc.launch.install import TORCH
from purecc.launch.layout import PACK_NAME, PROJECT, Layout
from purecc.launch.process import clean_environment
from purecc.launch.server import Server

LIMIT = 900  # seconds for pip
TOOLS = ("pip", "setuptools", "wheel")


@pytest.fixture(scope="module")
def second(layout: Layout) -> Iterator[Path]:
    """A folder on the same disk as our environment."""
    folder = layout.local / "second ComfyUI"  # with a space, as people have them
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def python(layout: Layout, second: Path) -> Path:
    """A Python with ComfyUI's requirements and nothing else."""
    venv = second / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, env=clean_environment())
    made = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.run([str(made), "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    wanted = [*required(layout.comfyui / "requirements.txt"), *(name(t) for t in TORCH), *TOOLS]
    for distribution in closure(wanted):
        root = Path(str(distribution.locate_file("")))
        for file in distribution.files or []:
            source = Path(str(distribution.locate_file(file)))
            if source.is_file() and source.is_relative_to(root):  # programs in bin/ are not needed
                place = target / source.relative_to(root)
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.exists():
                    os.link(source, place)
    return made


@pytest.fixture(scope="module")
def comfyui(layout: Layout, second: Path) -> Path:
    """A second ComfyUI with the pack in its custom_nodes: the files that a clone has."""
    copy = second / "ComfyUI"
    shutil.copytree(
        layout.comfyui, copy, ignore=shutil.ignore_patterns("__pycache__", "output", "temp", "user", "venv", ".venv")
    )
    shutil.rmtree(copy / "custom_nodes" / PACK_NAME, ignore_errors=True)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True).stdout.decode()
    for file in filter(None, files.split("\0")):
        place = copy / "custom_nodes" / PACK_NAME / file
        if (PROJECT / file).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / file, place)
    return copy


def test_it_installs_as_the_readme_says_and_moves_nothing_of_the_host(
    layout: Layout, second: Path, python: Path, comfyui: Path
) -> None:
    def pip(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments],
            capture_output=True, text=True, env=clean_environment(), timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode in (0, 1) and (done.returncode == 0 or arguments == ("check",)), (
            done.stdout + done.stderr
        )
        return done.stdout

    before, complaints = frozen(pip("freeze", "--all")), pip("check")
    assert "torch" in before and "diffusers" not in before and "peft" not in before  # else it would show nothing
    pip("install", "-r", str(comfyui / "custom_nodes" / PACK_NAME / "requirements.txt"))
    after = frozen(pip("freeze", "--all"))
    assert {package: after.get(package) for package in before} == before
    assert {"diffusers", "peft"} <= set(after)
    assert pip("check") == complaints

    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"pip install -r custom_nodes/{PACK_NAME}/requirements.txt" in readme

    with Server(Layout(PROJECT, comfyui, python), comfyui, log_file=second / "server.log") as server:
        pack_works(server)


def name(requirement: str) -> str:
    """The package of a requirement line, in its normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


def required(file: Path) -> list[str]:
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [name(line) for line in lines if line]


def closure(names: list[str]) -> list[importlib.metadata.Distribution]:
    """The distributions of these names and of all that they need, as installed with this Python."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [name(n) for n in names]
    while waiting:
        wanted = waiting.pop()
        if wanted in found:
            continue
        try:
            found[wanted] = importlib.metadata.distribution(wanted)
        except importlib.metadata.PackageNotFoundError:  # for another system, or an extra
            continue
        waiting += [name(line) for line in found[wanted].requires or [] if "extra ==" not in line]
    return list(found.values())


def frozen(text: str) -> dict[str, str]:
    return {name(line): line for line in text.splitlines() if line.strip()}
