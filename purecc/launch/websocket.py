"""The reading half of a WebSocket client (RFC 6455): enough to follow ComfyUI's event stream, nothing more.

No extensions, no TLS: it talks to our own server on this computer.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from urllib.parse import urlsplit

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """One connection. `receive` gives whole messages; pings are answered in between."""

    def __init__(self, url: str, timeout: float = 10.0):
        """Connect to ws://host:port/path. Raises ConnectionError if the server does not upgrade, OSError if unreachable."""
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=timeout)
        self._buffer = b""
        key = base64.b64encode(os.urandom(16))
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        self._socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._read_more()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        if b" 101 " not in head.split(b"\r\n", 1)[0] or accept not in head:
            self._socket.close()
            raise ConnectionError(f"{url}: no WebSocket there: {head[:100].decode('latin-1')}")
        self._parts: list[bytes] = []  # frames of an unfinished message
        self._kind = TEXT

    def receive(self, timeout: float) -> str | bytes | None:
        """The next message (text: str, binary: bytes), or None after `timeout` seconds. ConnectionError once it is closed."""
        deadline = time.monotonic() + timeout
        while True:
            frame = self._take_frame()
            if frame is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._socket.settimeout(left)
                try:
                    self._read_more()
                except TimeoutError:
                    return None
                continue
            final, opcode, payload = frame
            if opcode == CLOSE:
                raise ConnectionError("the server closed the WebSocket")
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode in (TEXT, BINARY, CONTINUATION):
                self._kind = opcode or self._kind
                self._parts.append(payload)
                if final:
                    whole, self._parts = b"".join(self._parts), []
                    return whole.decode("utf-8") if self._kind == TEXT else whole

    def close(self) -> None:
        try:
            self._send(CLOSE, struct.pack(">H", 1000))
        except OSError:
            pass
        self._socket.close()

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        """Cut one complete frame off the buffer: (is the last of its message, opcode, payload)."""
        data = self._buffer
        if len(data) < 2:
            return None
        start, length = 2, data[1] & 0x7F  # a server's frames are never masked
        if length >= 126:
            start, form = (4, ">H") if length == 126 else (10, ">Q")
            if len(data) < start:
                return None
            (length,) = struct.unpack(form, data[2:start])
        if len(data) < start + length:
            return None
        self._buffer = data[start + length :]
        return bool(data[0] & 0x80), data[0] & 0x0F, data[start : start + length]

    def _read_more(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server ended the connection")
        self._buffer += data

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a control frame (payload of at most 125 bytes), masked as a client's must be."""
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self._socket.settimeout(10)
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)
