"""What nodes tell the page: progress, texts, events, and a route that answers in JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import comfy.utils
from aiohttp import web
from PIL import Image
from server import PromptServer

log = logging.getLogger(__name__)
TEXT, MISTAKE = "purecc.text", "purecc.mistake"  # events
_PREVIEW = 256  # pixels, the longer side at most


class Progress:
    """A node's progress bar, the text in it and its preview picture."""

    def __init__(self, node_id: str, total: int):
        self.node_id, self.total = node_id, total
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def step(self, done: int, text: str = "", preview: Image.Image | None = None) -> None:
        """`done` of `total` steps are done."""
        picture = ("JPEG", preview.convert("RGB"), _PREVIEW) if preview is not None else None
        self._bar.update_absolute(done, self.total, picture)
        if text:
            _show(text, self.node_id)


def tell_in_node(text: str, level: int = logging.INFO) -> None:
    """Logs a text and shows it in the node of this pack that is running, where there is one."""
    log.log(level, text)
    if (node_id := _running()) is not None:
        _show(text, node_id)


def tell_below_node(text: str) -> None:
    """Logs a text and has the page show it below the node that is running, any pack's, as it shows progress: two lines at most."""
    log.warning(text)
    if (node_id := _running()) is not None:
        server = PromptServer.instance
        server.send_progress_text(text, node_id, server.client_id)


def warn_of_mistake(text: str) -> None:
    """Logs what is wired wrongly though it runs, and has the page show it over the canvas."""
    log.warning(text)
    send_event(MISTAKE, {"text": text})


def _running() -> str | None:
    return getattr(PromptServer.instance, "last_node_id", None)


def _show(text: str, node_id: str) -> None:
    send_event(TEXT, {"node": node_id, "text": text})


def send_event(name: str, data: dict[str, Any]) -> None:
    """An event to the page that queued what is running, with the prompt's id."""
    server = PromptServer.instance
    server.send_sync(name, {**data, "prompt_id": getattr(server, "last_prompt_id", None)}, server.client_id)


def serve_json(route: str, answer: Callable[[str], dict[str, Any]]) -> None:
    """Adds GET `route`, which has a part {name}: `answer(name)` as JSON; a LookupError becomes 404 with its sentence."""

    @PromptServer.instance.routes.get(route)
    async def handler(request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        try:
            body = await loop.run_in_executor(None, answer, request.match_info["name"])
        except LookupError as error:
            return web.json_response({"error": str(error.args[0])}, status=404)
        return web.json_response(body)
