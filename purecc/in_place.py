"""A finished file or folder takes the place of what stood there. Without torch, for the set-up too."""

import os
import time
from pathlib import Path


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
                    f"{path.name} cannot be replaced: it is in use, or may not be written. On Windows a loader keeps the file that it "
                    "loaded: choose another name, or restart ComfyUI."
                ) from error
            time.sleep(wait)
