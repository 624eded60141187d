"""The real ComfyUI server as a child process, on a base directory of ours, gone when we are gone."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import time
from pathlib import Path

from purecc.launch.client import Client, HostError
from purecc.launch.layout import LaunchError, Layout
from purecc.launch.process import clean_environment, end_process_tree, own_group, tail

START_LIMIT = 300.0  # seconds; the first start on a slow disk compiles every module of torch and transformers
_GUARD = Path(__file__).with_name("guard.py")


class Server:
    """A running server: `url`, `client`, `log_file`, `base`. A context manager: leaving it ends the process.

    layout: which ComfyUI and Python. base: a folder made by install.make_base. device: "cpu" or "gpu" (the host chooses).
    port: None takes a free one. extra: further arguments for ComfyUI's main.py.
    """

    def __init__(
        self,
        layout: Layout,
        base: Path,
        device: str = "cpu",
        port: int | None = None,
        log_file: Path | None = None,
        extra: tuple[str, ...] = (),
    ):
        self.port = port or free_port()
        self.base = base
        self.log_file = log_file or base / "server.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        command = [
            *(str(layout.python), str(_GUARD), str(os.getpid()), "main.py", "--port", str(self.port)),
            *("--base-directory", str(base), "--database-url", "sqlite:///:memory:"),
            *("--disable-auto-launch", "--disable-api-nodes"),
            *(("--cpu",) if device == "cpu" else ()),
            *extra,
        ]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=layout.comfyui,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=host_environment(layout),
                **own_group(),
            )
        atexit.register(self.stop)

    def wait_until_ready(self, limit: float = START_LIMIT) -> None:
        """Return when the server answers. LaunchError with the end of its log if it dies or takes longer than `limit` s."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise LaunchError(
                    f"ComfyUI ended while starting (exit code {self.process.returncode}).\n{self.log_tail()}"
                )
            try:
                self.client.get("/system_stats", timeout=5)
                return
            except (OSError, HostError):
                time.sleep(0.2)
        raise LaunchError(f"ComfyUI does not answer after {limit:.0f} s.\n{self.log_tail()}")

    def log_tail(self, lines: int = 30) -> str:
        return f"The end of its log ({self.log_file}):\n{tail(self.log_file, lines)}"

    def log_text(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End the process and all that it started. May be called again."""
        self.client.close()
        end_process_tree(self.process)
        atexit.unregister(self.stop)

    def __enter__(self) -> Server:
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def host_environment(layout: Layout) -> dict[str, str]:
    """Environment of a process that imports ComfyUI: into one that is not ours not even byte code is written."""
    return clean_environment(**({"PYTHONDONTWRITEBYTECODE": "1"} if layout.users_comfyui else {}))


def free_port() -> int:
    """A port of this computer that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name != "nt":  # as the server itself does: a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
