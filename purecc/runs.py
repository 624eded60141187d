"""A run is a folder on disk: settings, metrics, checkpoint, result. The same inputs find the same folder.

<root>/<stage>-<hash>/
    settings.json           what the hash is taken of, and a sketch of the encodings
    metrics.jsonl           one StepRecord a line
    checkpoint.safetensors  parameters and optimiser after `step` steps, the last too: a run of more steps goes on from there
    concept.safetensors     the result, there only when the run is finished
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .concept import Concept, load_concept, save_concept
from .files import is_whole, load_metadata, load_tensors, save_json, save_tensors, write_atomically
from .fingerprint import SKETCH, differ_by_rounding

log = logging.getLogger(__name__)
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class StepRecord:
    """What one step measured. Terms that are not part of the loss are None."""

    step: int  # steps done, from 1
    loss: float  # L_PCC, eq. 15
    concept_loss: float  # L_CC, eq. 3
    pure_loss: float | None = None  # L_PureCC, eq. 14
    scale: float | None = None  # lambda*, mean over the batch, eqs. 11, 12
    scale_spread: float | None = None  # lambda*, standard deviation over the batch
    squared_cosine: float | None = None  # cos^2(R_complete, R_tar)
    representation: float | None = None  # |R_complete|, root mean square over the elements
    base_anchor: float | None = None  # || v2 - v3 ||^2 with the base text, without its weight
    null_anchor: float | None = None  # the same with the null text
    background_anchor: float | None = None  # with the complete text against the base text, outside the masks
    scene_anchor: float | None = None  # the same in scenes with other things
    scene_concept: float | None = None  # distance at the concept's place there, from what it is alone
    prior_loss: float | None = None  # flow matching on class pictures, without its weight
    extractor_loss: float | None = None  # L_CC of theta1, where it learns in the same step
    seconds: float = 0.0  # of this step


class Run:
    """One run's folder."""

    def __init__(self, root: Path, stage: str, identity: dict[str, Any], sketch: Sequence[float] = ()):
        """`identity`: all that the result depends on; `sketch`: the same in numbers that may differ by rounding (`ConceptSet.sketch`)."""
        self.identity, self.sketch = identity, list(sketch)
        text, number = json.dumps(identity, sort_keys=True), 0
        while True:
            digest = hashlib.sha256(f"{text}{number or ''}".encode()).hexdigest()
            self.folder = root / f"{stage}-{digest[:12]}"
            if self._is_own():
                break
            number += 1
        self._beside_others = number > 0

    @classmethod
    def at(cls, folder: Path) -> "Run":
        """The run of a folder. Raises OSError or ValueError where its settings cannot be read."""
        kept = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        if not isinstance(kept, dict):
            raise ValueError(f"{_SETTINGS} in {folder.name} is damaged.")
        run = cls.__new__(cls)
        run.folder, run.sketch, run.identity, run._beside_others = folder, kept.pop(SKETCH, []), kept, False
        return run

    def _is_own(self) -> bool:
        """Whether the folder is free, or this run's."""
        try:
            other = Run.at(self.folder)
        except (OSError, ValueError):
            return True
        return differ_by_rounding(other.sketch, self.sketch)

    @property
    def result(self) -> Path:
        return self.folder / "concept.safetensors"

    @property
    def is_finished(self) -> bool:
        """Whether there is a result as long as it was written; `finished` reads it."""
        return is_whole(self.result)

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with, or a result."""
        return self.is_finished or (self.folder / "checkpoint.safetensors").is_file()

    def finished(self) -> Concept | None:
        """The concept, if this very run was finished before. Raises OSError where its file cannot be read now: a finished run is not trained anew for that."""
        if not self.result.is_file():
            return None
        try:
            return load_concept(self.result)
        except ValueError as error:
            log.warning("The result in %s is damaged (%s); the run begins anew.", self.folder.name, error)
            return None

    def begin(self) -> None:
        if self._beside_others:
            log.warning(
                "%s begins: a run of the same inputs was made with an autoencoder or text encoders that gave others.",
                self.folder.name,
            )
        save_json(self.folder / _SETTINGS, {**self.identity, SKETCH: self.sketch})

    def records(self) -> list[StepRecord]:
        """All the steps measured so far, each once and in order, whoever wrote them; a line that a crash damaged is left out."""
        found: dict[int, StepRecord] = {}
        path = self.folder / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            try:
                record = StepRecord(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if isinstance(record.step, int) and record.step > 0 and all(map(_is_measure, asdict(record).values())):
                found[record.step] = record
        return [found[step] for step in sorted(found)]

    def add(self, record: StepRecord) -> None:
        if not self.folder.is_dir():  # someone has cleared it away
            self.begin()
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def save_checkpoint(self, step: int, tensors: dict[str, Tensor]) -> None:
        save_tensors(self.folder / "checkpoint.safetensors", tensors, {"step": str(step)})

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        """Steps done and tensors, of the run or of one alike but for its number of steps, whichever is further; (0, {}) where there is none.

        Measures of later steps are dropped: they come again. A damaged checkpoint is none; raises OSError as `finished`.
        """
        step, tensors = self._checkpoint()
        kept = self._records_to(step)
        reached = {other: other._reached() for other in self._alike()}
        for other in sorted(reached, key=reached.__getitem__, reverse=True):
            if not step < reached[other] <= self.identity["steps"]:
                continue
            if (found := other._checkpoint())[0] == reached[other]:
                (step, tensors), kept = found, other._records_to(reached[other])
                log.info("%s goes on from step %d of %s.", self.folder.name, step, other.folder.name)
                break
        text = "".join(json.dumps(asdict(record)) + "\n" for record in kept)
        write_atomically(self.folder / "metrics.jsonl", lambda p: p.write_text(text, encoding="utf-8"))
        return step, tensors

    def _records_to(self, step: int) -> list[StepRecord]:
        return [record for record in self.records() if record.step <= step]

    def _reached(self) -> int:
        """The checkpoint's step; 0 where there is none that can be read."""
        try:
            return int(load_metadata(self.folder / "checkpoint.safetensors")["step"])
        except (OSError, ValueError, KeyError):
            return 0

    def _checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        path = self.folder / "checkpoint.safetensors"
        if not path.is_file():
            return 0, {}
        try:
            tensors, header = load_tensors(path)
            return int(header["step"]), tensors
        except (ValueError, KeyError) as error:
            log.warning("The checkpoint in %s is damaged (%s) and left aside.", self.folder.name, error)
            return 0, {}

    @property
    def is_part_of_longer(self) -> bool:
        """Whether its steps are those that a run of more steps begins with: no rate falls towards its end, and no early stop ends it."""
        return self.identity.get("schedule") == "constant" and not self.identity.get("stop_patience")

    def _alike(self) -> Iterator["Run"]:
        """Runs beside this one whose steps are the same as far as both go."""
        if not self.is_part_of_longer:
            return
        stage, own = self.folder.name.rpartition("-")[0], _but_steps(self.identity)
        for settings in self.folder.parent.glob(f"{stage}-*/{_SETTINGS}"):
            try:
                other = Run.at(settings.parent)
            except (OSError, ValueError):
                continue
            if (
                other.folder != self.folder
                and _but_steps(other.identity) == own
                and differ_by_rounding(other.sketch, self.sketch)
            ):
                yield other

    def finish(self, concept: Concept) -> None:
        """Keeps the result, and the checkpoint where a run of more steps can go on from it."""
        save_concept(concept, self.result)
        if not self.is_part_of_longer:
            (self.folder / "checkpoint.safetensors").unlink(missing_ok=True)


def _is_measure(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _but_steps(identity: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in identity.items() if name != "steps"}, sort_keys=True)
