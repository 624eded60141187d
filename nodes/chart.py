"""The chart of a run in its node: live events while it trains, and a route that gives a reloaded page what it missed.

An event and the route's answer have the same fields: run, state (running, finished, stopped), step, total, points; an
event has also the node. A record is on disk before its event is sent, so that the route knows all that events told.
"""

import time
from dataclasses import asdict
from typing import Any

from ..purecc.curve import Point, point, read_curve
from ..purecc.job import FinishedJob, Job
from ..purecc.runs import StepRecord
from .host import when_needed

folders, page = when_needed("folders"), when_needed("page")
EVENT, ROUTE = "purecc.run", "/purecc/runs/{name}"
_PAUSE = 0.1  # seconds between two events at least: fast steps travel together

_running: set[str] = set()  # names of the runs that train at this moment


class LiveChart:
    """Tells the page of a run from its beginning to its end: a context manager around the training."""

    def __init__(self, node_id: str, job: Job | FinishedJob):
        self.node_id, self.job, self.run = node_id, job, job.run.folder.name
        self._step = 0 if job.concept is None else job.settings.steps
        self._points: list[Point] = []  # not sent yet
        self._sent = 0.0

    def __enter__(self) -> "LiveChart":
        _running.add(self.run)
        self._send("running")
        return self

    def add(self, record: StepRecord) -> None:
        self._step = record.step
        self._points.append(point(record))
        if time.monotonic() - self._sent >= _PAUSE:
            self._send("running")

    def __exit__(self, *exception: object) -> None:
        _running.discard(self.run)
        self._send("stopped" if self.job.concept is None else "finished")

    def _send(self, state: str) -> None:
        fields = {"run": self.run, "state": state, "step": self._step, "total": self.job.settings.steps}
        page.send_event(EVENT, {"node": self.node_id, **fields, "points": self._points})
        self._points, self._sent = [], time.monotonic()


def serve_runs() -> None:
    """Adds the route to the host's server."""
    page.serve_json(ROUTE, lambda name: _answer(name))


def _answer(name: str) -> dict[str, Any]:
    fields = asdict(read_curve(folders.runs_folder(), name))
    if fields.pop("finished"):
        return {**fields, "state": "finished"}
    return {**fields, "state": "running" if name in _running else "stopped"}
