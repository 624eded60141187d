"""Bytes of tensors that are alive, counted op by op: what an allocator would need without its own losses.

    with LiveBytes() as live:
        ...
    live.peak

Works on real tensors and on meta tensors, which hold none; what was alive before is not seen.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """`now` and `peak`, in bytes, of the storages that were made inside; a view is no storage of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs)) if isinstance(t, Tensor)}
        made = operation(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if tensor.untyped_storage()._cdata not in before:  # else a view of, or written into, what came in
                self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, tree)
    return found
