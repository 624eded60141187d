"""The tests: pytest, tier by tier, with the Python that also runs the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from purecc.launch.layout import COMFYUI_VARIABLE, LaunchError, Layout
from purecc.launch.process import clean_environment

TIERS = ("unit", "host", "browser")
PROCESSES = min(4, os.cpu_count() or 1)  # each may have a ComfyUI and a browser of its own


def run_tests(layout: Layout, tiers: list[str], pytest_arguments: list[str]) -> int:
    """Run the tiers in one pytest, files side by side in processes of their own; its exit code."""
    wanted = [t for t in TIERS if t in tiers] or list(TIERS)
    folders = [str(Path("tests") / t) for t in wanted if (layout.project / "tests" / t).is_dir()]
    if not folders:
        raise LaunchError(f"There is no folder tests/{wanted[0]}.")
    # One thread each: processes of several threads would spin against one another.
    environment = clean_environment(OMP_NUM_THREADS="1")
    if layout.users_comfyui:
        environment[COMFYUI_VARIABLE] = str(layout.comfyui)
    side_by_side = ["--numprocesses", str(PROCESSES), "--dist", "loadfile"]
    command = [str(layout.python), "-m", "pytest", *side_by_side, *folders, *pytest_arguments]
    # In our own process group, unlike the server: Ctrl-C must reach pytest, which then ends its servers itself.
    child = subprocess.Popen(command, cwd=layout.project, env=environment)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
