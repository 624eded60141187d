"""Serve: ComfyUI with its page, the pack and its templates, until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from purecc.launch.layout import PACK_NAME, LaunchError, Layout
from purecc.launch.server import Server, port_is_free


def run_serve(layout: Layout, device: str, port: int) -> None:
    """Run the server on `port` with its log on the terminal. Returns on Ctrl-C; LaunchError if it ends by itself."""
    if not port_is_free(port):
        raise LaunchError(
            f"Port {port} is taken, perhaps by another ComfyUI. Choose one: python run.py serve --port {port + 1}"
        )
    log_file = layout.logs / "serve.log"
    extra = users_models(layout)
    print("- starting ComfyUI ...", flush=True)
    with (
        Server(layout, layout.base, device, port, log_file, extra) as server,
        open(log_file, encoding="utf-8", errors="replace") as log,
    ):
        _forward(log)
        print(
            f"\nComfyUI is at {server.url} (the pack's workflows: Templates, {PACK_NAME}). Ctrl-C ends it.\n",
            flush=True,
        )
        try:
            while server.process.poll() is None:
                _forward(log)
                time.sleep(0.2)
        except KeyboardInterrupt:
            print("\nending ComfyUI ...", flush=True)
            return
    raise LaunchError(f"ComfyUI ended with exit code {server.process.returncode}.\n{server.log_tail(10)}")


def _forward(log) -> None:
    text = log.read()
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def users_models(layout: Layout) -> tuple[str, ...]:
    """Arguments that let the server read the models of the user's own ComfyUI; what it writes stays in our folder."""
    if not layout.users_comfyui:
        return ()
    models = layout.users_comfyui / "models"
    folders = sorted(p.name for p in models.iterdir() if p.is_dir()) if models.is_dir() else []
    config: Path = layout.local / "users_models.yaml"
    paths = {"base_path": str(models), **{name: name for name in folders}}
    config.write_text(json.dumps({"users_comfyui": paths}, indent=1), encoding="utf-8")  # JSON is YAML
    return ("--extra-model-paths-config", str(config))
