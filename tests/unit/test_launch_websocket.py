"""The WebSocket client against a real socket that speaks the server's half of RFC 6455, byte by byte."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from purecc.launch.client import _event
from purecc.launch.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocket

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    head = bytes([0x80 * final | opcode])
    size = len(payload)
    if size < 126:
        return head + bytes([size]) + payload
    return head + (struct.pack(">BH", 126, size) if size < 1 << 16 else struct.pack(">BQ", 127, size)) + payload


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket, accept: bool):
        self.connection = connection
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(1024)
        self.request = request.decode()
        key = next(line.split(": ")[1] for line in self.request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        answer = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode() if accept else "wrong"
        connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {answer}\r\n\r\n".encode())

    def read_frame(self) -> tuple[int, bytes]:
        """A client's (masked, short) frame: opcode, payload."""
        opcode, size = self._exactly(2)
        assert size & 0x80, "a client's frame must be masked"
        mask, data = self._exactly(4), self._exactly(size & 0x7F)
        return opcode & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(data))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.connection.recv(count - len(data))
        return data


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[WebSocket, Peer]]]:
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list = [listener]

    def make(accept: bool = True) -> tuple[WebSocket, Peer]:
        peers: list[Peer] = []

        def serve() -> None:
            connection = listener.accept()[0]
            opened.append(connection)
            peers.append(Peer(connection, accept))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            client = WebSocket(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws?clientId=me")
        finally:
            thread.join(10)
        opened.append(client)
        return client, peers[0]

    yield make
    for thing in reversed(opened):
        thing.close()


def test_the_request_names_path_and_client(connect) -> None:
    _, peer = connect()
    assert peer.request.startswith("GET /ws?clientId=me HTTP/1.1\r\n")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
def test_messages_of_every_length_form(connect, size: int) -> None:
    client, peer = connect()
    sender = threading.Thread(
        target=peer.connection.sendall, args=(frame(TEXT, b"x" * size) + frame(BINARY, b"\x00" * size),)
    )
    sender.start()
    assert client.receive(10) == "x" * size
    assert client.receive(10) == b"\x00" * size
    sender.join(10)


def test_fragments_are_joined_and_a_ping_between_them_is_answered(connect) -> None:
    client, peer = connect()
    peer.connection.sendall(
        frame(TEXT, "gr\u00fc".encode()[:3], final=False)
        + frame(PING, b"you?")
        + frame(CONTINUATION, "gr\u00fcn".encode()[3:])
    )
    assert client.receive(10) == "gr\u00fcn"
    assert peer.read_frame() == (PONG, b"you?")


def test_silence_is_none_and_half_a_frame_is_kept(connect) -> None:
    client, peer = connect()
    whole = frame(TEXT, b"late")
    peer.connection.sendall(whole[:3])
    assert client.receive(0.05) is None
    peer.connection.sendall(whole[3:])
    assert client.receive(10) == "late"


def test_the_end_of_a_connection_is_an_error(connect) -> None:
    client, peer = connect()
    peer.connection.sendall(frame(CLOSE, b""))
    with pytest.raises(ConnectionError):
        client.receive(10)


def test_closing_tells_the_server(connect) -> None:
    client, peer = connect()
    client.close()
    assert peer.read_frame() == (CLOSE, struct.pack(">H", 1000))


def test_a_server_that_does_not_upgrade_is_refused(connect) -> None:
    with pytest.raises(ConnectionError, match="no WebSocket"):
        connect(accept=False)


def test_events_are_read_from_text_and_from_progress_text_frames() -> None:
    assert _event('{"type": "executing", "data": {"node": "4"}}') == ("executing", {"node": "4"})
    assert _event(struct.pack(">II", 3, 2) + b"17loss 0.5") == ("progress_text", {"node": "17", "text": "loss 0.5"})
    assert _event(struct.pack(">II", 1, 1) + b"a picture") is None
    assert _event(None) is None
