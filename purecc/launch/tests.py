"""The tests: pytest, tier by tier, with the Python that also runs the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

from purecc.launch.layout import COMFYUI_VARIABLE, LaunchError, Layout
from purecc.launch.process import clean_environment

TIERS = ("unit", "host", "browser")


def run_tests(layout: Layout, tiers: list[str], pytest_arguments: list[str]) -> int:
    """Run the tiers, quickest first, in one pytest; its exit code."""
    wanted = [t for t in TIERS if t in tiers] or list(TIERS)
    folders = [str(Path("tests") / t) for t in wanted if (layout.project / "tests" / t).is_dir()]
    if not folders:
        raise LaunchError(f"There is no folder tests/{wanted[0]}.")
    environment = clean_environment(**({COMFYUI_VARIABLE: str(layout.comfyui)} if layout.users_comfyui else {}))
    command = [str(layout.python), "-m", "pytest", *folders, *pytest_arguments]
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
