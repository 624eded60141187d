"""A step's kernels recorded once on a CUDA GPU and replayed (a CUDA graph): one launch in place of some ten thousand.

A fast card otherwise waits for the processor, which launches them one by one. What is computed is the same, kernel for kernel.

A recording reads and writes memory of its own, so a batch is copied into it, and it belongs to one form of batch: the shapes, and whose
text holds the trigger, which decides what acts. The first batch of a form runs unrecorded, and loads its kernels.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .encoding import TextBatch
from .memory import is_out_of_memory
from .network import AdaptedNetwork
from .settings import TrainSettings
from .terms import Objective

log = logging.getLogger(__name__)
MOST = 4  # forms that are recorded; batches of others run as they come

Measured = dict[str, Tensor]


def records_on(device: torch.device) -> bool:
    """Whether steps on a device may be recorded: on an NVIDIA GPU, with PyTorch's own allocator.

    With cudaMallocAsync a recording's memory is found when it is first run, and an error then ends the process.
    """
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and torch.cuda.get_allocator_backend() == "native"


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    gradients: list[Tensor | None]  # of the parameters, in their order
    measured: Measured


class Recorder:
    """`Objective.descend` on one network, recorded where that is possible; `clear` gives the memory back.

    `parameters`: all that get a gradient.
    """

    def __init__(
        self, objective: Objective, network: AdaptedNetwork, settings: TrainSettings, parameters: Sequence[nn.Parameter]
    ):
        self.objective, self.network, self.parameters = objective, network, list(parameters)
        self.share, self.accumulates = 1 / settings.accumulate, settings.accumulate > 1
        self.apart = settings.scenes_apart
        # beside a step, which `savings.plan` sees to
        self.has_room = network.device.type == "cuda" and network.token_encoder is None and settings.can_record
        self.on = self.has_room and records_on(network.device)
        self._recordings: dict[tuple, _Recording | None] = {}  # None: a form that was seen once
        self._pool: Any = None  # of memory; one recording runs at a time

    def descend(self, batch: Batch) -> Measured:
        """Adds the batch's gradient to the parameters'; "loss" and what was measured."""
        form = form_of(batch) if self.on else None
        if not self.on or (form not in self._recordings and len(self._recordings) == MOST):
            return self._unrecorded(batch)
        if form not in self._recordings:
            self._recordings[form] = None
            return self._unrecorded(batch)
        if self._recordings[form] is None and not self._is_recorded(form, batch):
            return self._unrecorded(batch)
        return self._replay(self._recordings[form], batch)

    def clear(self) -> None:
        """A few workspaces of the matrix library stay, 0.2 GB on an H200: another's recordings may use them."""
        if any(self._recordings.values()):
            for parameter in self.parameters:
                parameter.grad = None  # it may be in a recording's memory
        self._forget()

    def _forget(self) -> None:
        if any(self._recordings.values()):
            torch.cuda.synchronize(self.network.device)
        while self._recordings:
            _, recording = self._recordings.popitem()
            if recording is not None:
                recording.graph.reset()
        self._pool = None

    def _is_recorded(self, form: tuple, batch: Batch) -> bool:
        stream = torch.cuda.current_stream(self.network.device)
        try:
            self._recordings[form] = self._record(batch)
            return True
        except RuntimeError as error:  # too little memory, or a driver that cannot
            reason = f"{error} {error.__context__ or ''}"
        finally:
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own in place
        self._give_up(reason, failed=self._pool)  # what the failed one had made is gone with the error
        return False

    def _give_up(self, reason: str, failed: tuple[int, int] | None = None) -> None:
        """Nothing is recorded any more; `failed`: the pool of a recording that was not made."""
        log.warning("PureCC: steps are not recorded on this GPU, and take longer: %s", reason)
        self.on = False
        self._forget()
        if failed is not None:
            _end_of_failed(failed)
        with suppress(RuntimeError):  # where PyTorch still takes a failed recording for one that runs
            torch.cuda.empty_cache()

    def _unrecorded(self, batch: Batch) -> Measured:
        """Where the device has not the memory for it beside recordings, they go, and it is done once more."""
        if not any(self._recordings.values()):
            return self._descend(batch)
        gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in self.parameters]
        try:
            return self._descend(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self._give_up(reason)
        return self._descend(batch)

    def _descend(self, batch: Batch) -> Measured:
        return self.objective.descend(self.network, batch, self.share, self.apart)

    def _record(self, batch: Batch) -> _Recording:
        inputs: list[Tensor] = []

        def own(value: Tensor) -> Tensor:
            inputs.append(value.clone())
            return inputs[-1]

        held = mapped(batch, own, self.network.device)
        before = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None  # the recording makes one, in its memory
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # of this thread alone: the host's may ask the GPU for its free memory at any moment
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                measured = self._descend(held)
            gradients = [parameter.grad for parameter in self.parameters]
        finally:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient
        return _Recording(graph, inputs, gradients, measured)

    def _replay(self, recording: _Recording, batch: Batch) -> Measured:
        values: list[Tensor] = []
        mapped(batch, lambda value: values.append(value) or value, self.network.device)
        torch._foreach_copy_(recording.inputs, values)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is not None:
                parameter.grad += gradient
            else:  # the next batch's would be written over it
                parameter.grad = gradient.clone() if self.accumulates else gradient
        return {name: value.clone() for name, value in recording.measured.items()}


def _end_of_failed(pool: tuple[int, int]) -> None:
    """PyTorch 2.11 takes a recording that the driver refused for one that still runs: its memory would never come back, and random
    numbers could not be drawn on the GPU any more. Versions that end it themselves refuse this, each in its own way.
    """
    device, ignored = torch.cuda.current_device(), (RuntimeError, AttributeError, TypeError)
    with suppress(*ignored):
        torch._C._cuda_endAllocateToPool(device, pool)
    with suppress(*ignored):
        torch._C._cuda_releasePool(device, pool)
    with suppress(*ignored):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


def form_of(part: Any) -> Any:
    """What decides which kernels a batch needs, hashable."""
    if isinstance(part, TextBatch):
        holds = (part.marks > 0).any(1)
        return (*part.rows.shape, *part.pooled.shape, *holds.tolist(), *part.shows.tolist())
    if isinstance(part, Tensor):
        return (*part.shape, part.dtype)
    if is_dataclass(part):
        return tuple(form_of(getattr(part, of.name)) for of in fields(part))
    return part


def mapped(part: Any, change: Callable[[Tensor], Tensor], device: torch.device) -> Any:
    """A batch with each of its tensors on the device changed, always in the same order; a text's marks are put there too."""
    if isinstance(part, TextBatch):
        here = part.marks.to(device, non_blocking=True)
        return replace(part, rows=change(part.rows), pooled=change(part.pooled), here=change(here))
    if isinstance(part, Tensor):
        return change(part)
    if is_dataclass(part):
        return replace(part, **{of.name: mapped(getattr(part, of.name), change, device) for of in fields(part)})
    return part
