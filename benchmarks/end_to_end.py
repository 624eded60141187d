"""How long a whole training takes: the product's own jobs at a given size with random weights, phase by phase.

    python -m benchmarks.end_to_end [--shipped | --paper] [--steps 400] [--pixels 512|1024] [--size real|slice|tiny]

--shipped, the default: as the nodes come, without an extractor, so stage 2 alone; before it the base looks for the concept in five
references and draws 16 scenes. --paper: stage 1 and stage 2 of eq. 15, each of so many steps, with nothing before them.

real: SD3.5 Medium's size in bfloat16 on CUDA, the default where that is; slice: two of its 24 layers, float32; tiny: of the tests.
Wall clock, with nothing turned on that saves memory. What follows a phase until the next one begins counts to it: to the search for the
concept, the embeddings' start. Not in it: loading the model, and the encoding of pictures and texts, which are the host's; previews and validation pictures.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from purecc.concept import T5_SLOT, Concept
from purecc.concept_set import ConceptSet, build_concept_set
from purecc.encoding import EncodedText
from purecc.flow import LatentScaling
from purecc.job import Job
from purecc.network import AdaptedNetwork
from purecc.presets import SHIPPED
from purecc.prompts import find_trigger
from purecc.scenes import with_scenes
from purecc.settings import PureSettings, TrainSettings
from purecc.stages import ExtractorJob, PureJob

from .stand_ins import REAL, SLICE, TINY, Size, device_name, transformer_of

GOAL = 180.0  # seconds of 400 + 400 steps at 512 px, batch 2, on a GPU of an H200's class
REFERENCES = 5
SCALING = LatentScaling(1.5305, 0.0609)  # SD3's
_TRIGGER, _CLASS = "[V]", "dog"
_BASE = "random weights"


class RandomTexts:
    """A text encoder: each text has random rows of its own, and the trigger a row in CLIP's part and one in T5's."""

    def __init__(self, size: Size):
        self.size, self._count = size, 0

    def encode(self, text: str) -> EncodedText:
        size, self._count = self.size, self._count + 1
        generator = torch.Generator().manual_seed(self._count)
        length = size.clip_tokens + size.t5_tokens
        rows, pooled = (torch.randn(shape, generator=generator) for shape in ((length, size.joint), (size.pooled,)))
        marks = torch.zeros(length, dtype=torch.int64)
        if find_trigger(_TRIGGER, text):
            marks[2], marks[size.clip_tokens + 2] = 1, 1 + T5_SLOT
        return EncodedText(rows, pooled, marks, text)


def concept_set(size: Size, scenes: bool) -> ConceptSet:
    """Five pictures of random latents, with a caption each."""
    encoder, side = RandomTexts(size), size.pixels // 8
    generator = torch.Generator().manual_seed(0)
    places = ("on the beach", "in the snow", "in a garden", "on a chair", "at night")
    data = build_concept_set(
        [torch.zeros(8, 8, 3)] * REFERENCES, [f"a {_CLASS} {place}" for place in places], trigger=_TRIGGER,
        class_word=_CLASS, kind="instance", tokens=1,
        encode_picture=lambda picture: torch.randn(16, side, side, generator=generator),
        text_encoder=lambda trigger, placeholder: encoder,
    )  # fmt: skip
    return with_scenes(data, encoder) if scenes else data


@dataclass
class Watch:
    """Wall clock by phase. Phases follow each other without a gap; one that comes again is added to."""

    seconds: dict[str, float] = field(default_factory=dict)
    _phase: str = ""
    _since: float = 0.0

    def enter(self, phase: str, ago: float = 0.0) -> None:
        """The phase before it ends here, or `ago` seconds before now."""
        now = time.perf_counter() - ago
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def stop(self) -> None:
        self.enter("")


@dataclass(frozen=True)
class Training:
    """What a whole training took and made."""

    seconds: dict[str, float]  # by phase
    concepts: dict[str, Concept]  # by stage

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def trained(size: Size, steps: int, paper: bool) -> Training:
    """A whole training of `steps` a stage."""
    data, settings, watch = (
        concept_set(size, scenes=not paper),
        TrainSettings(steps=steps, batch_size=size.batch),
        Watch(),
    )
    concepts: dict[str, Concept] = {}
    with TemporaryDirectory() as folder:
        given = data, settings, SCALING, Path(folder), _BASE
        if paper:
            network = _network(size)
            with _timed(watch, "stage 1"):
                concepts["stage 1"] = _run(ExtractorJob(network, *given), watch, "stage 1")
        pure = PureSettings() if paper else PureSettings(**SHIPPED)
        network = _network(size)
        with _timed(watch, "stage 2"):
            job = PureJob(network, *given, pure, concepts.get("stage 1"))
            concepts["stage 2"] = _run(job, watch, "stage 2")
    return Training(watch.seconds, concepts)


@contextmanager
def _timed(watch: Watch, stage: str) -> Iterator[None]:
    watch.enter(f"{stage}, before its steps")
    yield
    watch.stop()


def _run(job: Job, watch: Watch, stage: str) -> Concept:
    job.preparing = lambda what, done, total: watch.enter(f"{stage}, {what[0].lower()}{what[1:]}")
    for record in job:
        if record.step == 1:
            watch.enter(f"{stage}, steps", ago=record.seconds)
        if record.step == job.settings.steps:
            watch.enter(f"{stage}, its figures and its file")
    return job.concept


def _network(size: Size) -> AdaptedNetwork:
    torch.manual_seed(0)
    return AdaptedNetwork(transformer_of(size))


def table(size: Size, steps: int, paper: bool, found: Training) -> str:
    """For people."""
    how = f"as the paper, {steps} + {steps}" if paper else f"as shipped, {steps}"
    rows = [f"{size.name} size, {size.pixels} px, {device_name(size)}, {how} steps of {size.batch} pictures", ""]
    rows += [f"{seconds:9.1f} s  {phase}" for phase, seconds in found.seconds.items()]
    rows += [f"{found.total:9.1f} s  in total", ""]
    goal = f"goal: {GOAL:.0f} s for 400 + 400 steps at real size, 512 px, on a GPU of an H200's class"
    if (size.name, size.pixels, steps, paper, size.device) == ("real", 512, 400, True, "cuda"):
        goal += ": met" if found.total <= GOAL else ": not met"
    return "\n".join([*rows, goal])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["slice", "real", "tiny"], help="real on CUDA, else tiny, where not given")
    parser.add_argument("--steps", type=int, default=400, help="of each stage")
    parser.add_argument(
        "--pixels", type=int, choices=[512, 1024], default=512, help="a side of the pictures; tiny has 64"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--shipped", action="store_true", help="as the nodes come; the default")
    form.add_argument("--paper", action="store_true", help="both stages of the paper")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    name = arguments.size or ("real" if cuda else "tiny")
    if name == "real" and not cuda:
        sys.exit("The real size needs a CUDA GPU, and none was found. Use --size slice or tiny.")
    if arguments.steps < 1:
        sys.exit("--steps must be 1 or more.")
    size = TINY if name == "tiny" else replace(REAL if name == "real" else SLICE, pixels=arguments.pixels)
    print(table(size, arguments.steps, arguments.paper, trained(size, arguments.steps, arguments.paper)))


if __name__ == "__main__":
    main()
