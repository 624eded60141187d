from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from purecc.launch.layout import Layout
from purecc.launch.server import host_environment

IN_HOST = Path(__file__).with_name("in_host.py")


@pytest.fixture(scope="session")
def oldest(layout: Layout) -> Layout:
    """The oldest ComfyUI that the pack supports, with the packages of the newer one."""
    if layout.users_comfyui:
        pytest.skip("a ComfyUI of yours is tested, and not the oldest")
    if not layout.oldest_comfyui.is_dir():
        pytest.fail("The oldest ComfyUI is not in .local/ yet: `python run.py test` sets it up.", pytrace=False)
    return Layout(layout.project, layout.oldest_comfyui, layout.python)


@pytest.fixture(scope="session")
def run_in_host(layout: Layout, base: Path) -> Callable[..., str]:
    """`run_in_host(script, *arguments, timeout=300)`: run a script inside a ComfyUI process (see in_host.py).

    Returns what it printed; fails the test with the end of its output if it does not exit with 0.
    """
    return partial(_run, layout, base)


@pytest.fixture(scope="session", params=["layout", "oldest"])
def run_in_each_host(base: Path, request: pytest.FixtureRequest) -> Callable[..., str]:
    """`run_in_host`, once with the ComfyUI of all other tests and once with the oldest."""
    return partial(_run, request.getfixturevalue(request.param), base)


def _run(layout: Layout, base: Path, script: Path | str, *arguments: object, timeout: float = 300) -> str:
    path = Path(__file__).parent / script
    command = [str(layout.python), str(IN_HOST), str(layout.comfyui), str(base), str(path), *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=layout.comfyui,
        env=host_environment(layout),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )
    if done.returncode:
        pytest.fail(
            f"{path.name} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}", pytrace=False
        )
    return done.stdout
