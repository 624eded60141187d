"""No process is left behind: real children, ended in each of the ways that a launcher ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purecc.launch.layout import PROJECT
from purecc.launch.process import clean_environment, end_process_tree, lock, own_group

GUARD = PROJECT / "purecc" / "launch" / "guard.py"
PARENT_AND_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)
posix = pytest.mark.skipif(os.name == "nt", reason="asks POSIX whether a process is alive")


def gone(pid: int, limit: float = 20.0) -> bool:
    """Whether the process ends (a zombie has ended) within `limit` seconds."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@posix
def test_a_child_ends_with_its_own_children() -> None:
    child = subprocess.Popen([sys.executable, "-c", PARENT_AND_CHILD], stdout=subprocess.PIPE, text=True, **own_group())
    grandchild = int(child.stdout.readline())
    end_process_tree(child)
    assert child.poll() is not None
    assert gone(grandchild)
    child.stdout.close()


@posix
def test_a_guarded_script_ends_when_its_launcher_is_killed_outright(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), sys.argv[2]], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(GUARD), str(script)], stdout=subprocess.PIPE, text=True
    )
    guarded = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert gone(guarded)


def test_a_guarded_script_runs_as_if_started_directly(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 5\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside\nassert __name__ == '__main__'\nprint(sys.argv[1:], beside.VALUE)\nsys.exit(7)\n"
    )
    command = [sys.executable, str(GUARD), str(os.getpid()), "script.py", "--cpu", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("['--cpu', 'x'] 5", 7), done.stderr


def test_a_childs_python_is_not_led_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PURECC_SOMETHING", "kept")
    environment = clean_environment(MORE="1")
    assert "PYTHONPATH" not in environment
    assert environment["PURECC_SOMETHING"] == "kept"
    assert environment["MORE"] == "1"


def test_a_second_launcher_waits_for_the_first(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom purecc.launch.process import lock\n"
        "with lock(Path(sys.argv[1])): print('mine', flush=True)"
    )
    path = tmp_path / "setup.lock"
    with lock(path):
        second = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        assert "waiting" in second.stdout.readline()
    assert second.stdout.readline().strip() == "mine"
    assert second.wait(20) == 0
    second.stdout.close()
