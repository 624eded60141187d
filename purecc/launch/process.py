"""Child processes that never outlive us, with their output in a log file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HEARTBEAT = 20.0  # seconds between two signs of life of a silent step
_NOT_INHERITED = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "__PYVENV_LAUNCHER__",
    "PIP_USER",
    "PIP_TARGET",
    "PIP_PREFIX",
)


def clean_environment(**extra: str) -> dict[str, str]:
    """Our environment without what would lead a child's Python to other packages than its own."""
    kept = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **extra}


def run_logged(command: list[str], log_file: Path, label: str, **environment: str) -> None:
    """Run to the end with its output in `log_file`, saying on the terminal what goes on.

    environment: variables for the child on top of ours.
    Raises CalledProcessError, whose `output` is the end of the log. On any exception here the child is killed.
    """
    started = time.monotonic()
    print(f"- {label} ...", flush=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "wb") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=clean_environment(**environment),
            **own_group(),
        )
    try:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(HEARTBEAT)
            if child.poll() is None:
                print(f"  {time.monotonic() - started:4.0f} s  {tail(log_file, 1)[:100]}", flush=True)
    finally:
        end_process_tree(child)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, output=tail(log_file, 15))
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def tail(log_file: Path, lines: int) -> str:
    """The last lines of a log file, or an empty text where there is none."""
    try:
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip() for line in text.splitlines()[-lines:])


def own_group() -> dict:
    """Popen arguments that give a child a process group of its own, so that it ends with all that it started."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def end_process_tree(child: subprocess.Popen, patience: float = 10.0) -> None:
    """End a child made with own_group() and its descendants: politely, after `patience` seconds by force."""
    if child.poll() is not None:
        return
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True)
    else:
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what is left of the group
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def exit_on_signals() -> None:
    """Turn "terminate" and "terminal closed" into SystemExit, so that `finally` and atexit clean up as on Ctrl-C."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file: a second launcher waits here. The system lets go of it even where we crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                print("- another run.py is setting up; waiting for it ...", flush=True)
                told = True
            time.sleep(0.5)
        yield  # closing the file unlocks it


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
