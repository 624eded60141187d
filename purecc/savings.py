"""What a run can do about memory, from what costs no time to what costs most, and how much of it a device needs.

Each rung holds those before it where they help. The first six give the same result; a base in float8 or NF4 is another
base, close to the first, and the concept's file says so. What a person turned on stays on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .memory import Estimate, in_words
from .recorded import MOST
from .settings import TrainSettings

_EXACT = {"checkpointing": True, "modulation_table": True}
# what is turned on, in the order in which it is tried
LADDER: tuple[dict[str, Any], ...] = (
    {},
    {"scenes_apart": True},  # nearly no time
    {"modulation_table": True},
    {"scenes_apart": True, "modulation_table": True},
    {"checkpointing": True},  # a fifth to a half more
    _EXACT,
    {**_EXACT, "frozen_weights": "float8"},
    {**_EXACT, "frozen_weights": "nf4"},
    {**_EXACT, "frozen_weights": "float8", "stream_blocks": True},  # the last resort: weights travel in every forward
)
_LOST = 1.05  # of what is asked for, by an allocator in pieces that are too small
_LIBRARIES = 300_000_000  # bytes of a GPU's matrix library and its kernels
# bytes of the driver's, some 10 KB a kernel. A recording has memory of its own besides, and what the steps before it took is kept
_RECORDINGS = MOST * 250_000_000
_FLOAT8 = ("cpu", "cuda", "xpu")  # devices that store it
_SHARED = ("cpu", "mps")  # devices whose memory is the main one
_KINDS = {"whole": "as loaded", "float8": "in float8", "nf4": "in NF4"}
_NAMES = {
    "scenes_apart": "scenes apart", "checkpointing": "checkpointing", "modulation_table": "modulation_table", "stream_blocks": "blocks in main memory",
}  # fmt: skip


@dataclass(frozen=True)
class Room:
    """What is free, in bytes; `device`: the type of the one that trains."""

    device: str
    free: int
    main: int  # of main memory
    records: bool = False  # whether steps can be recorded there (see `recorded`)
    reserved: int = 0  # of what is free, to be left to other programs by what is not needed

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def within(self, memory: str) -> "Room":
        """As much as a card of that size has: of a "12 GB" card the system's and the context's share is left out."""
        if memory in ("auto", "as set") or not self.is_gpu:
            return self
        return replace(self, free=min(self.free, int(float(memory.split()[0]) * 1e9)))

    def holds(self, needed: Estimate) -> bool:
        if self.device in _SHARED:
            return needed.peak + needed.host <= self.free
        return needed.peak * _LOST + _LIBRARIES <= self.free and needed.host <= self.main

    def holds_more(self, needed: Estimate) -> bool:
        """Whether a run with recorded steps is held, and as much left as is reserved."""
        return replace(self, free=self.free - self.reserved).holds(_recorded(needed))


@dataclass(frozen=True)
class Plan:
    """The settings that a run gets, what it needs, and a line about both for people."""

    settings: TrainSettings
    needed: Estimate
    line: str


def plan(
    of: Callable[[TrainSettings], Estimate],
    settings: TrainSettings,
    room: Room,
    begun: Callable[[TrainSettings], bool] = lambda rung: False,
) -> Plan:
    """The first rung of the ladder that fits; `of` estimates a run with changed settings.

    `begun`: whether a run with such settings was begun or finished before. One that fits is taken first, since a base that
    is stored otherwise is another run; of one that no longer fits the line tells.

    `settings.memory`: "auto" takes what is free, "12 GB" and its like at most that much, "as set" turns nothing on. A CPU is
    never refused: where no rung fits it gets the least. Raises ValueError where a GPU has too little: with what is needed,
    what is free and what to change.
    """
    room = room.within(settings.memory)
    tried = [(rung, of(rung)) for rung in _rungs(settings, room.device)]
    fits = [(rung, needed) for rung, needed in tried if room.holds(needed)]
    if not fits and room.is_gpu:
        raise ValueError(_refusal(of, settings, room, tried))
    waiting = [one for one in tried if begun(one[0])]
    fits = fits or [min(waiting or tried, key=lambda one: one[1].peak)]
    chosen, needed = next((one for one in fits if begun(one[0])), fits[0])
    line = _line(settings, chosen, tried[0][1], needed, room)
    if waiting and not begun(chosen):
        least = min(waiting, key=lambda one: one[1].peak)
        line += (
            f". A run that was begun with its base {_KINDS[least[0].frozen_weights]} waits in its folder: it needs {in_words(least[1].peak)}. "
            "To go on with it, stop this one and free as much"
        )
    if room.is_gpu and chosen.can_record and needed.step:
        if not room.holds_more(needed):
            chosen = replace(chosen, record_steps=False)
        elif room.records:
            line += f". There is room to record steps ({in_words(_recorded(needed).peak)} in use): less time, the same result to rounding"
    return Plan(chosen, needed, line)


def has_room_for_more(needed: Estimate, room: Room) -> bool:
    """Whether a GPU has, beside what is on it now, room for a run, as much again as recorded steps take, and what is reserved."""
    return room.device not in _SHARED and room.holds_more(needed)


def _recorded(needed: Estimate) -> Estimate:
    return replace(needed, weights=needed.weights + needed.step + needed.texts + _RECORDINGS)


def _rungs(settings: TrainSettings, device: str) -> Iterator[TrainSettings]:
    yield settings
    for changes in LADDER[1:] if settings.memory != "as set" else ():
        if device in _SHARED:  # nothing is won by moving weights
            if "stream_blocks" in changes:
                continue
            changes = {name: value for name, value in changes.items() if name != "modulation_table"}
        if changes.get("frozen_weights") == "float8" and device not in _FLOAT8:
            continue
        if (rung := _with(settings, changes)) != settings:
            yield rung


def _with(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    """What a person chose stays: a base that is stored in fewer bytes already is left so, and texts that learn have no table."""
    own = {} if settings.frozen_weights == "whole" else {"frozen_weights": settings.frozen_weights}
    own |= {"modulation_table": False} if settings.token_embeddings else {}
    return replace(settings, **{**changes, **own})


def turned_on(before: TrainSettings, after: TrainSettings) -> str:
    """What the one has and the other had not: "checkpointing, modulation_table, the frozen base in float8"."""
    words = [name for key, name in _NAMES.items() if getattr(after, key) and not getattr(before, key)]
    if after.frozen_weights != before.frozen_weights:
        words.append(f"the frozen base {_KINDS[after.frozen_weights]} (not quite the same result)")
    return ", ".join(words)


def _line(settings: TrainSettings, chosen: TrainSettings, plain: Estimate, needed: Estimate, room: Room) -> str:
    where = "the GPU" if room.is_gpu else "main memory"
    line = f"memory: {needed} of {where}; {in_words(room.free)} are free"
    if room.is_gpu and needed.host:
        line += f", and {in_words(needed.host)} of main memory"
    if chosen == settings:
        return line
    return f"{line}. Turned on for it (memory: {settings.memory}): {turned_on(settings, chosen)}; without, {in_words(plain.peak)}"


def _refusal(
    of: Callable[[TrainSettings], Estimate],
    settings: TrainSettings,
    room: Room,
    tried: list[tuple[TrainSettings, Estimate]],
) -> str:
    """What is needed, what is free, and what to change."""
    needed, advice = tried[0][1], []
    if settings.memory == "as set":
        for rung in _rungs(replace(settings, memory="auto"), room.device):
            if room.holds(of(rung)):
                words = turned_on(settings, rung)
                advice.append(f"set memory to auto (it turns on {words}; then {in_words(of(rung).peak)})")
                break
    if settings.batch_size > 1:
        single = next((r for r, _ in tried if room.holds(of(replace(r, batch_size=1)))), None)
        if single is not None:
            least = of(replace(single, batch_size=1))
            on = turned_on(settings, single)
            advice.append(f"set batch_size to 1{f', with {on}' if on else ''} (then {in_words(least.peak)})")
    if advice:
        remedy = f"To make it fit, {', or '.join(advice)}."
    else:
        least = min(tried, key=lambda one: one[1].peak)[1]
        remedy = (
            f"With all that saves memory it is still {in_words(least.peak)}: lower the resolution in Concept Set, close other programs "
            "that use the GPU, or start ComfyUI with --cpu, which is slow."
        )
        if any(replace(room, main=one.host).holds(one) for _, one in tried):  # but for main memory
            remedy += f" Of main memory {in_words(room.main)} are free, too little to keep weights there."
    asked = "" if settings.memory in ("auto", "as set") else f" within {settings.memory}"
    return f"Training needs {needed} of GPU memory, and {in_words(room.free)} are free{asked}. {remedy} Nothing was started."
