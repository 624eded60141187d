"""How a prompt is followed to its end: no event that the server sent is lost."""

from __future__ import annotations

import json

import pytest

from purecc.launch.client import Client

RECORD = {"status": {"status_str": "success"}, "outputs": {}}


class Scripted(Client):
    """A client whose stream gives `messages` (None is a second of silence); the record is there from `written` on."""

    def __init__(self, messages: list[str | bytes | None], written: int):
        super().__init__("http://127.0.0.1:1")
        self.messages, self.read, self.asked, self._stream = messages, 0, 0, self
        self.written = written

    def receive(self, timeout: float) -> str | bytes | None:
        self.read += 1
        return self.messages[self.read - 1] if self.read <= len(self.messages) else None

    def history(self, prompt_id: str) -> dict | None:
        self.asked += 1
        return RECORD if self.read >= self.written else None


def event(kind: str, prompt_id: str = "mine") -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": prompt_id}})


def test_the_last_events_arrive_where_the_record_was_written_during_a_silence() -> None:
    seen: list[str] = []
    client = Scripted([event("execution_start"), None, event("executing"), event("execution_success")], written=2)
    assert client.wait("mine", lambda kind, _: seen.append(kind), timeout=60) == RECORD
    assert seen == ["execution_start", "executing", "execution_success"]


def test_pictures_on_the_way_ask_for_no_record() -> None:
    client = Scripted(
        [event("execution_start"), *[b"\0\0\0\1\0\0\0\2picture"] * 50, event("execution_success")], written=52
    )
    assert client.wait("mine", timeout=60) == RECORD
    assert client.asked == 1


def test_a_missed_end_is_found_in_the_record_and_another_prompts_end_is_not_this_ones() -> None:
    seen: list[str] = []
    client = Scripted([event("execution_success", "another"), None, None], written=2)
    assert client.wait("mine", lambda kind, _: seen.append(kind), timeout=60) == RECORD
    assert seen == []


@pytest.mark.parametrize(
    "told", [event("crystools.monitor", "another"), None], ids=["others are told more", "the server goes"]
)
def test_a_record_in_hand_is_given(told: str | None) -> None:
    class Endless(Scripted):
        def receive(self, timeout: float) -> str | bytes | None:
            message = super().receive(timeout)
            if self.read > 1 and told is None:
                raise ConnectionError("the server closed the WebSocket")
            return told if self.read > 1 else message

    assert Endless([None], written=1).wait("mine", timeout=60) == RECORD


def test_the_record_is_looked_for_too_while_messages_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purecc.launch.client._ASK_AGAIN", 0.0)
    assert Scripted([b"\0\0\0\1\0\0\0\2picture"] * 50, written=3).wait("mine", timeout=60) == RECORD


def test_what_never_ends_is_over_in_time() -> None:
    with pytest.raises(TimeoutError, match="mine is not finished"):
        Scripted([], written=10**9).wait("mine", timeout=0.01)
