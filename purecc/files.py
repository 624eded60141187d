"""JSON and safetensors, written whole or not at all (`in_place`), and an optimiser's state without pickle."""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .in_place import put_in_place, write_atomically, write_bytes


def save_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    making_room: Callable[[], object] = lambda: None,
) -> None:
    """One safetensors file; tensors may lie on any device and share memory. The same content gives the same bytes.

    `making_room` is called when all is written, before it takes its place.
    """
    whole = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    content = _ordered(safetensors.torch.save(whole, dict(metadata or {})))
    write_bytes(path, content, making_room)


def save_beside_others(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path | None:
    """`save_tensors`, and `keep_other` of what has the name, whose name then is returned."""
    kept: list[Path | None] = []
    save_tensors(path, tensors, metadata, lambda: kept.append(keep_other(path, metadata)))
    return kept[0]


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order; the library writes it in any.

    The format: the header's length (8 bytes, little-endian), the header in JSON, padded with spaces, the data.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if "__metadata__" in header:
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file, which may be replaced afterwards (they are copies).

    Raises ValueError where it is damaged or of another kind, and OSError where it cannot be read, now at least: another
    program may hold it, or a drive be away.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        path.open("rb").close()  # the library says of one that may not be read that there is none
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from error
    except OSError as error:
        raise OSError(f"{path.name} cannot be read now: {error}") from error


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, and nothing else of it. Raises as `load_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


# what tells of which thing a file is: one of the same is meant to be replaced by a later training
_SUBJECT = ("modelspec.title", "modelspec.architecture", "purecc.role", "purecc.kind", "purecc.base")


def _subject(path: Path) -> list[str | None] | None:
    """None of a file that cannot be understood. Raises OSError as `load_tensors`."""
    try:
        metadata = load_metadata(path)
    except ValueError:
        return None
    return [metadata.get(name) for name in _SUBJECT]


def keep_other(path: Path, metadata: Mapping[str, str]) -> Path | None:
    """Gives a safetensors file of another thing, whose place one with this metadata is to take, a name of its own, and returns it.

    "dog.safetensors" becomes "dog_kept_1.safetensors", a name that prompts can have too; one of the same thing that was kept before is
    replaced. None where there is no file, or one of the same thing. Raises OSError where it cannot be read or renamed now.
    """
    if not path.is_file():
        return None
    subject = _subject(path)
    if subject == [metadata.get(name) for name in _SUBJECT]:
        return None
    for number in itertools.count(1):
        kept = path.with_name(f"{path.stem}_kept_{number}{path.suffix}")
        ours = subject is not None and subject[_SUBJECT.index("purecc.role")] is not None
        if not os.path.lexists(kept) or (ours and kept.is_file() and _subject(kept) == subject):
            try:
                put_in_place(path, kept)
            except PermissionError as error:
                raise PermissionError(f"{path.name} is of something else, and in use: choose another name.") from error
            return kept


def is_whole(path: Path) -> bool:
    """Whether there is a safetensors file as long as its header says; nothing else of it is read. Raises OSError where it cannot be read now."""
    try:
        path.open("rb").close()  # as above
        with safetensors.safe_open(path, framework="pt"):
            return True
    except (FileNotFoundError, safetensors.SafetensorError):
        return False


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> dict[str, torch.Tensor]:
    """An optimiser's state as named tensors: `<prefix><parameter index>.<entry>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}{index}.{entry}": torch.as_tensor(value)
        for index, entries in state.items()
        for entry, value in entries.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], prefix: str = "optimizer."
) -> None:
    """The inverse of `optimizer_tensors`, for an optimiser over the same parameters in the same order."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, entry = key[len(prefix) :].split(".")
            state.setdefault(int(index), {})[entry] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
