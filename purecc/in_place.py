"""Files and folders that are whole or not there: what is finished takes the place of what stood there. Without torch, for the set-up too."""

import errno
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: Path, write: Callable[[Path], object], making_room: Callable[[], object] = lambda: None
) -> None:
    """Calls `write(temporary)`, then `making_room()`, and puts the result in `path`'s place; on failure what stood there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # of another kind than `path`, or what a crash leaves behind would be listed among finished files
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut may leave the new name on an empty file
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(errno.ENOSPC, "No space left: make room, and run again", str(path)) from error
        making_room()
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, making_room: Callable[[], object] = lambda: None) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content), making_room)


def put_in_place(finished: Path, path: Path) -> None:
    """os.replace, tried for a second: on Windows it fails while another process or thread reads one of the two.

    Raises PermissionError, in words for a person, where it still fails.
    """
    for wait in (0.05, 0.15, 0.3, 0.5, None):
        try:
            return os.replace(finished, path)
        except PermissionError as error:
            if wait is None:
                raise PermissionError(
                    f"{path.name} cannot be replaced: it is in use, or may not be written."
                ) from error
            time.sleep(wait)
