"""ComfyUI's HTTP API and its event stream, from outside: submit a prompt, follow it, get its outputs."""

from __future__ import annotations

import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from purecc.launch.websocket import WebSocket

EventHandler = Callable[[str, dict], None]  # (type, data), as the server sends them; and "progress_text"

_TEXT_EVENT = 3  # ComfyUI's number for binary frames that hold a node's progress text
_ASK_AGAIN = 5.0  # seconds between two looks for the record while messages go on
_FINAL_EVENTS = ("execution_success", "execution_error", "execution_interrupted")
# A proxy that the environment names must not see requests to our own computer.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HostError(Exception):
    """The server refused a request or a prompt failed; the text is for the person who sent it."""


class Client:
    """One client of the server at `url`. Events of prompts that it submits arrive on its own stream."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex
        self._stream: WebSocket | None = None

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """JSON from GET `path`. HostError on an HTTP error, OSError where no server answers."""
        return _json(self._request(path, None, timeout))

    def post(self, path: str, body: Any, timeout: float = 30.0) -> Any:
        """JSON from POST `path` with `body` as JSON. HostError on an HTTP error, OSError where no server answers."""
        return _json(self._request(path, json.dumps(body).encode(), timeout))

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """A file in the host's output, temp or input folder."""
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self._request(f"/view?{query}", None, 60.0)

    def object_info(self) -> dict[str, dict]:
        """Every node type with its inputs. Takes seconds on the first call: model folders are listed."""
        return self.get("/object_info", timeout=120)

    def submit(self, prompt: dict[str, dict]) -> str:
        """Queue an API-format prompt and return its id. HostError says what each node refuses."""
        if self._stream is None:  # before the prompt, so that no event is missed
            self._stream = WebSocket(f"ws{self.url[4:]}/ws?clientId={self.id}")
        return self.post("/prompt", {"prompt": prompt, "client_id": self.id})["prompt_id"]

    def history(self, prompt_id: str) -> dict | None:
        """The record of a finished prompt (`outputs`, `status`), or None while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, on_event: EventHandler | None = None, timeout: float | None = None) -> dict:
        """Follow a submitted prompt to its end and return its history record, whether it succeeded or not.

        on_event: called for each event of this prompt. timeout: seconds, None = as long as it takes.
        TimeoutError when it is over; ConnectionError or OSError if the server goes away.
        """
        deadline = time.monotonic() + timeout if timeout else float("inf")
        asked = time.monotonic()

        def hand_on(message: str | bytes | None) -> bool:
            """Whether it is the prompt's last event."""
            event = _event(message)
            if not event or event[1].get("prompt_id", prompt_id) != prompt_id:
                return False
            if on_event:
                on_event(*event)
            return event[0] in _FINAL_EVENTS

        while time.monotonic() < deadline:
            if self._stream is None:  # submitted by another client: only the record tells
                if record := self.history(prompt_id):
                    return record
                time.sleep(0.2)
                continue
            message = self._stream.receive(timeout=1.0)
            if hand_on(message) and (record := self._written(prompt_id)):
                return record
            if message is None or time.monotonic() - asked > _ASK_AGAIN:  # the end may have been missed
                asked = time.monotonic()
                if record := self.history(
                    prompt_id
                ):  # written just now, maybe: what was sent before it is in the stream
                    self._drain(hand_on)
                    return record
        raise TimeoutError(f"prompt {prompt_id} is not finished after {timeout:g} s")

    def run(self, prompt: dict[str, dict], on_event: EventHandler | None = None, timeout: float | None = None) -> dict:
        """Submit, wait, and return the history record. HostError with the node and its message if it failed."""
        record = self.wait(self.submit(prompt), on_event, timeout)
        raise_on_failure(record, prompt)
        return record

    def close(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None

    def _drain(self, hand_on: Callable[[str | bytes | None], bool]) -> None:
        """Hands on what the stream holds by now, up to the last event."""
        until = time.monotonic() + 2.0  # what others are told may go on for ever
        while time.monotonic() < until:
            message = None
            with suppress(OSError):
                message = self._stream.receive(timeout=0.3)
            if message is None or hand_on(message):
                return

    def _written(self, prompt_id: str) -> dict | None:
        """The record, which is written a moment after the final event; None where it is not within 10 seconds."""
        until = time.monotonic() + 10.0
        while not (record := self.history(prompt_id)) and time.monotonic() < until:
            time.sleep(0.05)
        return record

    def _request(self, path: str, body: bytes | None, timeout: float) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        try:
            with _opener.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise HostError(_refusal(path, error.code, error.read())) from None


def raise_on_failure(record: dict, prompt: dict[str, dict]) -> None:
    """HostError for a history record of a prompt that failed or was interrupted; nothing for one that succeeded."""
    if record["status"]["status_str"] == "success":
        return
    for kind, data in record["status"]["messages"]:
        if kind == "execution_error":
            node = _name(prompt, data.get("node_id"))
            raise HostError(
                f"{node} failed: {data.get('exception_type', '')}: {data.get('exception_message', '').strip()}"
            )
        if kind == "execution_interrupted":
            raise HostError(f"interrupted in {_name(prompt, data.get('node_id'))}")
    raise HostError(f"the prompt failed: {record['status']}")


def _json(raw: bytes) -> Any:
    return json.loads(raw) if raw.strip() else None


def _event(message: str | bytes | None) -> tuple[str, dict] | None:
    """A message of the stream as (type, data). Pictures and unknown binary frames give None."""
    if isinstance(message, str):
        event = json.loads(message)
        return event["type"], event.get("data") or {}
    if message and len(message) >= 8:
        kind, length = struct.unpack(">II", message[:8])
        if kind == _TEXT_EVENT:
            node, text = message[8 : 8 + length], message[8 + length :]
            return "progress_text", {"node": node.decode("utf-8", "replace"), "text": text.decode("utf-8", "replace")}
    return None


def _refusal(path: str, code: int, body: bytes) -> str:
    """The server's reasons in one text: its error, then each node's own."""
    try:
        answer = json.loads(body)
        error = answer["error"]
        lines = [error if isinstance(error, str) else f"{error['message']} {error.get('details', '')}".strip()]
        for node_id, node in (answer.get("node_errors") or {}).items():
            for reason in node["errors"]:
                lines.append(
                    f"  node {node_id} ({node['class_type']}): {reason['message']}: {reason.get('details', '')}"
                )
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError):
        return f"{path}: HTTP {code} {body[:500].decode('utf-8', 'replace')}"


def _name(prompt: dict[str, dict], node_id: Any) -> str:
    node = prompt.get(str(node_id), {})
    title = node.get("_meta", {}).get("title") or node.get("class_type", "node")
    return f"{title} (node {node_id})"
