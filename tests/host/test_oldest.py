"""The oldest ComfyUI that the pack says it runs with; its functions are compared in test_parity.py and test_forms.py too."""

from __future__ import annotations

from pathlib import Path

from short_runs import pack_works

from purecc.launch.install import OLDEST_COMFYUI, make_base
from purecc.launch.layout import PROJECT, Layout
from purecc.launch.server import Server


def test_it_is_the_one_that_the_pack_asks_for(oldest: Layout) -> None:
    there = (oldest.comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    assert f'"{OLDEST_COMFYUI.version}"' in there
    assert f'requires-comfyui = ">={OLDEST_COMFYUI.version}"' in (PROJECT / "pyproject.toml").read_text(
        encoding="utf-8"
    )


def test_the_pack_works_there(oldest: Layout, tmp_path: Path) -> None:
    make_base(tmp_path, PROJECT)
    with Server(oldest, tmp_path) as server:
        pack_works(server)
