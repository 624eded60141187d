"""What a worker process of PocketBench does: all arms of one concept and seed, one after another."""

import logging
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .arms import ARMS
from .bench import Bench
from .case import Drawing
from .concepts import Split, concept
from .opening import TEXTS, require_opening

log = logging.getLogger("pocketbench")


def result_path(folder: Path, name: str, arm: str, seed: int) -> Path:
    return folder / f"{name} - {arm} - {seed}.json"


@cache
def bench(work: Path, drawing: Drawing) -> Bench:
    """One for each process, on one thread: two processes of two threads each would spin against one another."""
    torch.set_num_threads(1)
    return Bench(work, drawing)


def run_cases(
    work: Path, folder: Path, drawing: Drawing, name: str, seed: int, arms: list[str],
    changes: dict[str, Any], split: Split = "development",
) -> list[str]:  # fmt: skip
    """Measures and saves each case; arms of one concept that share its extractor belong into one process.

    Returns the names of those that failed, which are logged; the others are measured all the same.
    """
    if split in TEXTS:
        require_opening(split)
    measuring, failed = bench(work, drawing), []
    for arm in arms:
        start = time.monotonic()
        try:
            case = measuring.measure(concept(name, split), arm, ARMS[arm], seed, **changes)
        except Exception:
            failed.append(f"{name}, {arm}, seed {seed}")
            log.exception("%s failed", failed[-1])
            continue
        case.save(result_path(folder, name, arm, seed))
        log.warning("%s, %s, seed %d: %.0f s", name, arm, seed, time.monotonic() - start)
    return failed
