"""Where things are: every path that the launcher reads or writes, all below one project folder."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACK_NAME = "comfyui-purecc"  # the pack's folder name under custom_nodes
COMFYUI_VARIABLE = "PURECC_COMFYUI"


class LaunchError(Exception):
    """Something a user can act on: the text says what failed and what to do; no traceback is shown."""


@dataclass(frozen=True)
class Layout:
    """Paths of one set-up. Nothing outside `local` is ever written, except a demo's --out folder."""

    project: Path = PROJECT
    users_comfyui: Path | None = None  # a ComfyUI that the user has; None: our own copy
    users_python: Path | None = None  # a Python that already has ComfyUI's requirements; None: our own venv

    @property
    def local(self) -> Path:
        return self.project / ".local"

    @property
    def venv(self) -> Path:
        return self.local / "venv"

    @property
    def python(self) -> Path:
        """The Python that runs ComfyUI and the tests. Never resolved: a venv's Python is found by its own path."""
        if self.users_python:
            return self.users_python
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def comfyui(self) -> Path:
        return self.users_comfyui or self.local / "ComfyUI"

    @property
    def oldest_comfyui(self) -> Path:
        """The oldest that the pack supports, for tests."""
        return self.local / "ComfyUI oldest"

    @property
    def base(self) -> Path:
        """ComfyUI's base directory: models, input, output, temp, user and custom_nodes/<this pack>."""
        return self.local / "base"

    @property
    def stamp(self) -> Path:
        return self.local / "stamp.json"

    @property
    def logs(self) -> Path:
        return self.local / "logs"


def choose_layout(comfyui: str | None = None, python: str | None = None, project: Path = PROJECT) -> Layout:
    """Layout for the user's wishes: `comfyui` (or the environment variable) and `python` name what they already have.

    A ComfyUI that brings its own Python (a venv inside it, or the portable build's python_embeded beside it) runs with
    that one; any other runs with our venv. Raises LaunchError where a named path is not what it should be.
    """
    comfyui = comfyui or os.environ.get(COMFYUI_VARIABLE) or None
    folder = Path(os.path.abspath(os.path.expanduser(comfyui))) if comfyui else None
    if folder and not (folder / "main.py").is_file() and (folder / "ComfyUI" / "main.py").is_file():
        folder = folder / "ComfyUI"  # the portable build's outer folder
    if folder and not ((folder / "main.py").is_file() and (folder / "folder_paths.py").is_file()):
        raise LaunchError(f"{folder} is not a ComfyUI folder: it has no main.py and folder_paths.py.")
    if folder == project / ".local" / "ComfyUI":
        folder = None  # our own copy, named in full

    chosen = Path(os.path.abspath(os.path.expanduser(python))) if python else None
    if chosen and not chosen.is_file():
        raise LaunchError(f"--python {chosen}: there is no such file.")
    if folder and not chosen:
        chosen = next((p for p in _pythons_beside(folder) if p.is_file()), None)
    return Layout(project, folder, chosen)


def _pythons_beside(comfyui: Path) -> list[Path]:
    inside = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    return [
        comfyui / "venv" / inside,
        comfyui / ".venv" / inside,
        comfyui.parent / "python_embeded" / "python.exe",  # spelled so in the portable build
    ]
