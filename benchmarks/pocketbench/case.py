"""What one case measured: columns of figures, a row for each picture, small enough to keep in the repository.

A case is one concept, taught by one arm with one seed; `bench.py` measures it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from purecc.files import write_atomically
from purecc.pocket import specification as spec
from purecc.pocket.model import WEIGHTS as POCKET

from .networks import WEIGHTS as JUDGES

_READING = "own half"  # how pictures are measured: cases that were measured otherwise are not compared with these

#: kind of concept -> the witnesses of its presence; a case measured with others is measured again
WITNESSES = {
    "instance": ("pocket CLIP-I", "pocket DINO", "colours", "template"),
    "style": ("pocket CSD", "colours", "patches"),
}


@dataclass
class Case:
    """What one case measured; `rows` has a figure for each picture in each column."""

    concept: str
    kind: str
    arm: str
    seed: int
    settings: dict[str, Any]
    base: str  # fingerprint of the base model
    protocol: str  # `protocol` that it was measured by
    summary: dict[str, float]  # of the training run
    ends: dict[str, list[float]]  # witness -> [floor: base, floor: another instance, ceiling]
    rows: dict[str, list]
    kid: dict[str, float] = field(default_factory=dict)  # strength -> KID to the base, prompts without the concept
    revision: str = ""  # of the code, with a + where it was changed

    @property
    def complete(self) -> bool:
        """Whether it holds all that is measured today."""
        return set(self.ends) == set(WITNESSES[self.kind]) and bool(self.kid)

    def save(self, path: Path) -> None:
        """One line for each field and column: small, and its changes can be read."""
        fields = asdict(self)
        rows = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in fields.pop("rows").items()
        )
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in fields.items()]
        text = "\n".join(["{", *lines, '  "rows": {', rows, "  }", "}\n"])
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @staticmethod
    def load(path: Path) -> "Case":
        return Case(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Drawing:
    """Which pictures a case draws."""

    strengths: tuple[float, ...] = (1.0,)
    noises: int = 1  # for each prompt
    steps: int = spec.STEPS
    drift_at: tuple[float, ...] | None = None  # the strengths that draw prompts without the concept too; None: all


def protocol(drawing: Drawing) -> str:
    """What makes cases comparable, as 12 hexadecimal digits: all weights of the pocket and the judges, and how pictures are drawn and read."""
    how = [_READING, drawing.noises, drawing.strengths, drawing.steps]
    how += [] if drawing.drift_at is None else [drawing.drift_at]
    digest = hashlib.sha256(json.dumps(how).encode())
    for folder in (POCKET, JUDGES):
        for file in sorted(folder.rglob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
