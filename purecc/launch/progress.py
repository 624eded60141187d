"""ComfyUI's events as lines on a terminal: which node runs, step i of n, how long each node took."""

from __future__ import annotations

import sys
import time
from typing import TextIO

REDRAW = 0.2  # seconds between two redraws of the line on a terminal
REPORT = 10.0  # seconds between two lines where the output is a file


class Progress:
    """An event handler for Client.wait. `seconds` holds each node's time afterwards, by node id."""

    def __init__(self, prompt: dict[str, dict], out: TextIO | None = None):
        self.prompt = prompt
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.seconds: dict[str, float] = {}
        self._running: str | None = None
        self._began = self._shown = time.monotonic()
        self._text = ""
        self._width = 0

    def __call__(self, event: str, data: dict) -> None:
        if event == "executing":
            self._switch(data.get("node"))
        elif event == "progress_state":
            for node in data["nodes"].values():
                if node["state"] == "running" and node["max"] > 1:
                    self._step(node.get("real_node_id", node["node_id"]), node["value"], node["max"])
        elif event in ("progress_text", "purecc.text") and data["node"] == self._running:
            self._text = data["text"].splitlines()[0] if data["text"].strip() else ""
        elif event in ("execution_success", "execution_error", "execution_interrupted"):
            self._switch(None)

    def title(self, node_id: str) -> str:
        node = self.prompt.get(str(node_id), {})
        return node.get("_meta", {}).get("title") or node.get("class_type", str(node_id))

    def _switch(self, node_id: str | None) -> None:
        now = time.monotonic()
        if self._running is not None:
            took = now - self._began
            self.seconds[self._running] = self.seconds.get(self._running, 0.0) + took
            self._line(f"  {took:6.1f} s  {self.title(self._running)}", keep=took >= 0.1 or not self.live)
        self._running, self._began, self._shown, self._text = node_id, now, now, ""
        if node_id is not None and self.live:
            self._line(f"  {'...':>8}  {self.title(node_id)}", keep=False)

    def _step(self, node_id: str, value: float, total: float) -> None:
        now = time.monotonic()
        if now - self._shown < (REDRAW if self.live else REPORT):
            return
        self._shown = now
        text = f"  {self._text}" if self._text else ""
        self._line(
            f"  {now - self._began:6.0f} s  {self.title(node_id)}: step {value:.0f}/{total:.0f}{text}",
            keep=not self.live,
        )

    def _line(self, text: str, keep: bool) -> None:
        text = text[:118]
        if self.live:
            self.out.write("\r" + text.ljust(self._width))
            self._width = 0 if keep else len(text)
            if keep:
                self.out.write("\n")
        else:
            self.out.write(text + "\n")
        self.out.flush()
