"""ComfyUI's own Train LoRA and this pack on the same five pictures, both through the real ComfyUI: what is learnt, and what is harmed?

    python -m benchmarks.native_trainer [--only native|pack] [--concepts poodle ...] [--steps 200] [--report]

Train LoRA gets what its users give it: the folder by Load Image and Text Dataset from Folder and Make Training Dataset, the
trigger in its captions ("a ohwx dog in a room"), as many pictures as the others, and else what its node begins with, but for checkpointing, which
changes no result; at its own rate and at two higher ones. Its LoRA is applied by the stock Load LoRA Model. PocketBench's prompts are drawn by
the stock KSampler and read by PocketBench's witnesses. Cases and pictures are left in `.local/native_trainer`; a table and a sheet of the first
concept are made of all that are there. Needs the ComfyUI that `python run.py test` sets up.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.pocketbench.bench import Bench
from benchmarks.pocketbench.case import Case, Drawing
from benchmarks.pocketbench.concepts import TRIGGER, BenchConcept, Prompt, concept, prompts
from benchmarks.pocketbench.hypotheses import Cases
from benchmarks.pocketbench.report import matched
from benchmarks.pocketbench.sheets import as_pictures, broken, save_jpeg
from benchmarks.pocketbench.summary import Summary, summarise
from benchmarks.pocketbench.tables import mean_over_concepts, table
from benchmarks.through_host import TRAINING, Graph, saved_pictures, write_references
from purecc.files import load_tensors, save_tensors, write_atomically
from purecc.grid import draw_grid
from purecc.launch.install import make_base
from purecc.launch.layout import choose_layout
from purecc.launch.progress import Progress
from purecc.launch.server import Server

CONCEPTS = ("poodle", "unicorn", "taxi", "house-with-garden", "mushroom", "rose")
STRENGTHS, NOISES = (0.6, 1.0, 1.4), 2
SHARES = (0.9, 0.8)  # of the likeness of the arm that has most: where arms are compared at equal likeness
SHEET = Path(__file__).parent / "pocketbench" / "results" / "sheets" / "ComfyUI's own trainer.jpg"
SHOWN = (0, 1, 4, 5, 6, 8, 9, 12)  # of the 13 prompts: four with the concept, four without
COLUMNS: dict[str, Callable[[Summary], float]] = {
    "likeness": lambda s: s.fidelity,
    "surroundings": lambda s: s.background,
    "second thing": lambda s: s.beside,
    "layout": lambda s: s.layout,
    "same class without the word": lambda s: s.same_class,
    "other prompts": lambda s: s.other,
    "no prompt": lambda s: s.null,
}

#: a graph's model and clip for a strength
Applied = Callable[[float], tuple[list, list]]
#: adds a training of so many steps to a graph: the Pocket Model's node -> the training's node, and what it taught
Arm = Callable[[Graph, str, BenchConcept, int], tuple[str, Applied]]


def native(rate: float) -> Arm:
    """ComfyUI's Train LoRA at a rate."""

    def arm(g: Graph, pocket: str, one: BenchConcept, steps: int) -> tuple[str, Applied]:
        trained = g.train_lora(
            pocket, f"{one.name}, with the trigger", batch_size=TRAINING["batch_size"], steps=steps, learning_rate=rate,
            gradient_checkpointing=False,
        )  # fmt: skip

        def applied(strength: float) -> tuple[list, list]:
            loaded = g.add(
                "LoraModelLoader", model=[pocket, 0], lora=[trained, 0], strength_model=strength, bypass=False
            )
            return [loaded, 0], [pocket, 1]

        return trained, applied

    return arm


def pack(method: str, gate: str, holds: bool) -> Arm:
    """Pure Learning at the pocket's rate, and how Apply Concept draws it."""

    def arm(g: Graph, pocket: str, one: BenchConcept, steps: int) -> tuple[str, Applied]:
        data = g.concept_set(pocket, one.name, one.class_word)
        trained = g.pure_learning(pocket, data, method, **TRAINING, steps=steps)

        def applied(strength: float) -> tuple[list, list]:
            made = g.apply([pocket, 0], [pocket, 1], [trained, 0], strength, gate, holds)
            return [made, 0], [made, 1]

        return trained, applied

    return arm


#: by trainer
ARMS: dict[str, dict[str, Arm]] = {
    "native": {
        "ComfyUI's Train LoRA": native(5e-4),
        "ComfyUI's Train LoRA, rate 1e-3": native(1e-3),
        "ComfyUI's Train LoRA, rate 2e-3": native(2e-3),
    },
    "pack": {
        "Pure Learning, method LoRA, not gated": pack("LoRA", "off", False),
        "Pure Learning, as it comes": pack("PureCC", "as trained", True),
    },
}


@dataclass
class Drawn:
    """One arm's pictures: by strength, those of the prompts that were asked for, NOISES each, in their order."""

    pictures: dict[float, Tensor] = field(default_factory=dict)
    seconds: float = 0.0  # of the training


def every(one: BenchConcept, strength: float) -> list[Prompt]:
    """The bench's prompts; those without the concept at strength 1 alone."""
    return [p for p in prompts(one) if p.role == "concept" or strength == 1]


def draw(server: Server, one: BenchConcept, arm: Arm | None, steps: int) -> Drawn:
    """arm None: the base model, of the base texts, at strength 1."""
    g, found = Graph(), Drawn()
    pocket = g.add("PureCCPocketModel")
    trained, applied = arm(g, pocket, one, steps) if arm else ("", lambda strength: ([pocket, 0], [pocket, 1]))
    saved: dict[float, list[str]] = {}
    for strength in STRENGTHS if arm else (1.0,):
        model, clip = applied(strength)
        for prompt in every(one, strength):
            seed = 1000 + 17 * prompts(one).index(prompt)
            text = prompt.complete if arm else prompt.base
            saved.setdefault(strength, []).append(g.draw(model, clip, [pocket, 2], text, NOISES, seed, "s/p"))
    progress = Progress(g.nodes)
    outputs = server.client.run(g.nodes, progress)["outputs"]
    for strength, nodes in saved.items():
        found.pictures[strength] = torch.cat([saved_pictures(server.client, outputs, node) for node in nodes])
    found.seconds = round(progress.seconds.get(trained, 0.0), 1)
    return found


def measured(bench: Bench, one: BenchConcept, name: str, base: Drawn, drawn: Drawn) -> Case:
    """As PocketBench's case; its column "noise" has the number of each picture, for a batch has one seed."""
    asked = [p for p in prompts(one) for _ in range(NOISES)]
    of_concept = [i for i, p in enumerate(asked) if p.role == "concept"]
    rows: dict[str, list] = {}
    for strength, pictures in drawn.pictures.items():
        chosen = of_concept if strength != 1 else list(range(len(asked)))
        part = bench.read(one, [asked[i] for i in chosen], chosen, strength, base.pictures[1.0][chosen], pictures)
        for key, values in part.items():
            rows.setdefault(key, []).extend(values)
    ends = bench.ends(one, base.pictures[1.0][of_concept])
    kid = {"1": bench.kid(asked, base.pictures[1.0], drawn.pictures[1.0])}
    return Case(
        one.name, one.kind, name, 0, {}, bench.base, bench.protocol, {"seconds": drawn.seconds}, ends, rows, kid
    )


def prepare(base: Path, ones: list[BenchConcept]) -> None:
    """A base folder of ComfyUI with the references of each, twice: Train LoRA's captions have the trigger."""
    make_base(base, choose_layout().project)
    for one in ones:
        write_references(base / "input" / one.name, one)
        write_references(base / "input" / f"{one.name}, with the trigger", one, f"{TRIGGER} {one.class_word}")


def run_arms(trainer: str, ones: list[BenchConcept], steps: int, work: Path) -> None:
    """Every arm of a trainer for every concept; their cases and pictures are left in the work folder."""
    base_folder = work / trainer
    prepare(base_folder, ones)
    bench = Bench(work / "bench", Drawing(STRENGTHS, NOISES, drift_at=(1.0,)))
    with Server(choose_layout(), base_folder) as server:
        for one in ones:
            base = draw(server, one, None, steps)
            save_tensors(work / "pictures" / f"{one.name}.safetensors", {"base": base.pictures[1.0]})
            for name, arm in ARMS[trainer].items():
                drawn = draw(server, one, arm, steps)
                case = measured(bench, one, name, base, drawn)
                case.save(work / "cases" / f"{one.name} - {name}.json")
                save_tensors(work / "pictures" / f"{one.name} - {name}.safetensors", {"drawn": drawn.pictures[1.0]})
                figures = summarise(case)
                print(
                    f"{one.name}, {name}: fidelity {figures.fidelity:.2f}, drift {figures.drift:.1f}, {drawn.seconds} s",
                    flush=True,
                )


def sheet(one: BenchConcept, work: Path) -> Image.Image:
    """The base's pictures, then each arm's; one noise of each prompt."""
    chosen = [NOISES * i for i in SHOWN]
    files = {"base model": (f"{one.name}.safetensors", "base")}
    files |= {name: (f"{one.name} - {name}.safetensors", "drawn") for arms in ARMS.values() for name in arms}
    cells = [as_pictures(load_tensors(work / "pictures" / file)[0][key][chosen]) for file, key in files.values()]
    labels = [broken(prompts(one)[i].complete.replace(TRIGGER, "[V]")) for i in SHOWN]
    return draw_grid(cells, [broken(name, 16) for name in files], labels, font_size=13)


def report(cases: Cases) -> str:
    """The arms at strength 1, then at equal likeness."""
    rows = []
    for arm, of_arm in cases.items():
        figures = [mean_over_concepts(of_arm, lambda c, f=of: f(summarise(c))) for of in COLUMNS.values()]
        rows.append([arm, str(len(of_arm)), *(f"{value:.2f}" for value in figures)])
    most = max(cases, key=lambda arm: mean_over_concepts(cases[arm], lambda c: summarise(c).fidelity))
    parts = [table(["arm", "concepts", *COLUMNS], rows)]
    for share in SHARES:
        parts += [f"At {share:g} of the likeness that {most} has, concept by concept:", matched(cases, share, most)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(ARMS), help="one trainer: two processes may share the work")
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), help="of PocketBench's development set")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--report", action="store_true", help="the tables and the sheet alone, of the cases that are there"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("native_trainer.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    ones, work = [concept(name) for name in options.concepts], choose_layout().local / "native_trainer"
    for trainer in () if options.report else [options.only] if options.only else ARMS:
        run_arms(trainer, ones, options.steps, work)
    if options.only:
        return
    found = [Case.load(path) for path in sorted((work / "cases").glob("*.json"))]
    cases = {arm: of_arm for arms in ARMS.values() for arm in arms if (of_arm := [c for c in found if c.arm == arm])}
    text = f"# ComfyUI's own Train LoRA beside this pack\n\n{report(cases)}\n"
    write_atomically(options.out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    save_jpeg(sheet(ones[0], work), SHEET)
    print(text)


if __name__ == "__main__":
    main()
