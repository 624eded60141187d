"""lambda*, cos^2 and the size of R_complete along training, from the runs that a comparison left in its work folder.

    python -m benchmarks.pocketbench.course --work FOLDER      # the --work of the run that is looked at

PureCC at eta 1 without anchors, on drawings, for each source of v_original; means over runs.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors import safe_open

from purecc.files import write_atomically

from .__main__ import RESULTS
from .arms import COMMON
from .tables import table

_PART = 20  # steps of a row
_FIGURES = {"scale": "lambda*", "scale_spread": "its spread in a batch", "squared_cosine": "cos2", "representation": "size of R_complete"}  # fmt: skip
_ASKED = {"stage": "pure", "method": "PureCC", "eta": 1.0, "fixed_scale": None, "eta_schedule": "constant",
          "steps": COMMON["steps"], "learning_rate": COMMON["learning_rate"]}  # fmt: skip


def runs(work: Path) -> dict[str, list[Path]]:
    """Finished runs of the paper's form on drawings, by their source of v_original."""
    found = defaultdict(list)
    for path in sorted((work / "runs").glob("*/concept.safetensors")):
        settings = json.loads((path.parent / "settings.json").read_text(encoding="utf-8"))
        if settings.get("background_anchor") or any(settings.get(k, "missing") != v for k, v in _ASKED.items()):
            continue
        with safe_open(path, "pt") as file:
            if json.loads(file.metadata()["purecc.kind"]) == "instance":
                found[settings["original"]].append(path.parent)
    return found


def course(folders: list[Path]) -> np.ndarray:
    """Means over the runs and over each _PART steps, [parts, figures]."""
    values = []
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        values.append([[row[name] for name in _FIGURES] for row in rows])
    return np.array(values).mean(0).reshape(-1, _PART, len(_FIGURES)).mean(1)


def text(work: Path) -> str:
    parts = ["# lambda* along training"]
    for original, folders in runs(work).items():
        rows = [
            [f"{1 + _PART * i} to {_PART * (i + 1)}", *(f"{v:.3f}" for v in means)]
            for i, means in enumerate(course(folders))
        ]
        parts += [f"## v_original: {original} ({len(folders)} runs)", table(["steps", *_FIGURES.values()], rows)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    found = text(parser.parse_args().work)
    write_atomically(RESULTS / "course.md", lambda temporary: temporary.write_text(found, encoding="utf-8"))
    print(found)
