"""A run as a curve to be drawn: read from its folder, thinned out, and never written."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from .runs import Run, StepRecord

MEASURES = ("concept_loss", "pure_loss", "scale", "squared_cosine")  # of StepRecord, in the order of a point
Point = list[float | None]  # [step, *MEASURES]; None where the stage has no such measure
_NAME = re.compile(r"[a-z]+-[0-9a-f]{12}")  # as `Run` names its folders


@dataclass(frozen=True)
class Curve:
    """How far a run is, and some of its points: always the first and the last."""

    run: str
    total: int  # steps that it is to have
    step: int  # steps done
    finished: bool
    points: list[Point]


def point(record: StepRecord) -> Point:
    """One step's place on the curve; a number that JSON cannot hold is left out."""
    values = (getattr(record, name) for name in MEASURES)
    return [record.step, *(v if v is not None and math.isfinite(v) else None for v in values)]


def read_curve(root: Path, name: str, limit: int = 500) -> Curve:
    """The curve of the run `name` below `root`, of about `limit` points. Raises LookupError, with a sentence, for any other name."""
    folder = root / name
    if not _NAME.fullmatch(name) or folder.resolve().parent != root.resolve():
        raise LookupError(f'"{name}" is not the name of a run.')
    try:
        run = Run.at(folder)
        total = int(run.identity["steps"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        raise LookupError(f'There is no run "{name}". It may have been deleted.') from None
    records = run.records()
    stride = max(1, math.ceil(len(records) / limit))
    kept = records[::stride]
    if records and kept[-1] is not records[-1]:
        kept.append(records[-1])
    done = records[-1].step if records else 0
    try:
        finished = run.is_finished
    except OSError:  # another program holds it for a moment
        finished = False
    return Curve(name, total, done, finished, [point(record) for record in kept])
