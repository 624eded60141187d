"""The host's side: the only folder that touches `comfy.*`, `folder_paths` and `server`.

Nodes take `when_needed("apply")` and write `apply.apply_concept(...)`: a module of this folder is imported when a node first
uses it. So a ComfyUI that lacks one of its internals still loads the pack, and the node that needs it says so.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any

TESTED = "0.3.75 and 0.30.0"
_HOSTS = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server")  # top-level names of the host


class when_needed:  # noqa: N801  (reads as a function)
    """A module of this folder, imported on first use; its functions tell what the host lacks."""

    def __init__(self, name: str):
        self._name = f"{__name__}.{name}"

    def __getattr__(self, name: str) -> Any:
        value = getattr(telling(importlib.import_module)(self._name), name)
        return telling(value) if callable(value) and not isinstance(value, type) else value


def telling(function: Callable) -> Callable:
    """The function, or what `contextmanager` made of it; see `_plainly`."""
    makes_manager = inspect.isgeneratorfunction(inspect.unwrap(function))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _plainly():
            result = function(*args, **kwargs)
        return _telling_manager(result) if makes_manager else result

    return call


@contextmanager
def _telling_manager(manager: AbstractContextManager) -> Iterator[Any]:
    with ExitStack() as stack:
        with _plainly():
            value = stack.enter_context(manager)
        yield value


@contextmanager
def _plainly() -> Iterator[None]:
    """Where the host is without something that the block needs: RuntimeError, for people."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        if not _of_host(error):
            raise
        raise RuntimeError(
            f"This node needs a part of ComfyUI that version {_version()} does not have ({error}). PureCC was tested with "
            f"{TESTED}: update ComfyUI, or the pack if your ComfyUI is newer."
        ) from error


def _of_host(error: ImportError | AttributeError) -> bool:
    """Whether it is the host that lacks a module or a name, and not the pack."""
    if isinstance(error, ImportError):
        owner = error.name or ""
    else:
        owner = error.obj.__name__ if isinstance(error.obj, ModuleType) else type(error.obj).__module__
    return owner.split(".")[0] in _HOSTS


def _version() -> str:
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return "(unknown)"
